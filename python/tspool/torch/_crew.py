"""Work on several threads, the caller's among them. The first error ends it and is raised; nothing is lost in a helper."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Stopped(Exception):
    """Another thread failed: what this one does is for nothing."""


class Crew:
    """`check` belongs into long work: it raises once another thread has failed."""

    def __init__(self) -> None:
        self._failed = threading.Event()
        self._errors: list[BaseException] = []

    def check(self) -> None:
        if self._failed.is_set():
            raise Stopped

    def run(self, work: Callable[[Job], Result], jobs: Sequence[Job], thread_count: int) -> list[Result]:
        results: dict[int, Result] = {}
        pending = iter(list(enumerate(jobs)))
        lock = threading.Lock()

        def labour() -> None:
            while not self._failed.is_set():
                with lock:
                    number, job = next(pending, (None, None))
                if number is None:
                    return
                results[number] = work(job)  # type: ignore[arg-type]

        def guarded() -> None:
            try:
                labour()
            except BaseException as error:  # told by the caller's thread
                self._errors.append(error)
                self._failed.set()

        self._run_threads(guarded, min(thread_count, len(jobs)) - 1)
        if self._errors:
            raise self._errors[0]
        return [results[number] for number in range(len(jobs))]

    def _run_threads(self, body: Callable[[], None], helper_count: int) -> None:
        helpers = [threading.Thread(target=body, name="tspool-stock", daemon=True) for _ in range(helper_count)]
        try:
            for helper in helpers:
                helper.start()
            body()
            for helper in helpers:
                helper.join()
        except BaseException:  # Ctrl-C in join
            self._failed.set()
            for helper in helpers:
                if helper.ident is not None:
                    helper.join()
            raise
