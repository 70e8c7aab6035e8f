"""A save in flight, which is also its future."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tspool import _tspool
from tspool._errors import Error, SaveError, SpoolError, WaitTimeout
from tspool._fill import Filler
from tspool._guard import Guard
from tspool._leaves import Leaf, leaf_of

if TYPE_CHECKING:
    from tspool._spool import Spool

STAGED, WRITTEN, DURABLE, PUBLISHED = 1, 2, 3, 4
_LEVELS = {STAGED: "staged", WRITTEN: "written", DURABLE: "durable", PUBLISHED: "published"}
_OUTCOMES = ("pending", "published", "durable", "failed", "unknown")
_PROGRESS_SECONDS = 0.1

_log = logging.getLogger("tspool")


@dataclass(frozen=True)
class SaveResult:
    """How far a save came, and how. Times are nanoseconds since it was submitted; 0: not reached."""

    outcome: str
    """"pending", "published", "durable" (this rank's part), "failed" or "unknown" """
    level: int
    """highest reached: 1 staged, 2 written, 3 durable, 4 published"""
    save_id: str
    tensor_bytes: int
    file_bytes: int
    staged_bytes: int
    written_bytes: int
    planned_ns: int
    stall_ns: int
    """how long the submit kept the caller"""
    staged_ns: int
    written_ns: int
    synced_ns: int
    durable_ns: int
    published_ns: int
    files: int
    attempts: int
    replayable: bool
    plan_reused: bool
    direct: bool
    """O_DIRECT was really in force"""
    registered: bool
    item_bytes: int
    depth: int
    page_bytes: int
    writes: int
    short_writes: int
    hash_cpu_ns: int
    stage_cpu_ns: int
    writer_pid: int
    backend: str
    """"uring" or "threads" """
    io_note: str
    """why it is not the preferred mode; empty when it is"""
    retry_cause: str
    """why the latest earlier attempt ended; empty during the first"""
    removed: int
    """checkpoints that retention (`keep`) removed since the writer began"""
    removed_bytes: int
    keep_error: int
    """errno with which retention last failed to remove one; 0: nothing stayed that was to go"""
    keep_left: str
    failure: SaveError | None

    @property
    def done(self) -> bool:
        return self.outcome != "pending"


def _result_of(fields: dict[str, Any]) -> SaveResult:
    fields["outcome"] = _OUTCOMES[fields["outcome"]]
    fields["save_id"] = fields["save_id"].hex()
    return SaveResult(**fields)


class Save:
    """What `Spool.save` returns. Any thread may wait for it; dropping it changes nothing."""

    def __init__(
        self,
        spool: Spool,
        name: str,
        handle: _tspool.Save,
        filler: bool = False,
        is_background: bool = False,
        guards: list[Guard] | None = None,
    ) -> None:
        self.name = name
        self._spool = spool
        self._handle = handle
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Save], object]] = []
        self._progress: Callable[[SaveResult], object] | None = None
        self._watcher: threading.Thread | None = None
        self._seen = False  # its failure was told to somebody
        self._submitted = threading.Event()
        self._guards = guards or []
        self._filler = Filler(self, bool(self._guards)) if filler else None
        self._is_background = is_background
        self._own_failure: SaveError | None = None  # why it was given up from here

    # Declaring ------------------------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        tensor: object,
        global_shape: tuple[int, ...] | None = None,
        global_offsets: tuple[int, ...] | None = None,
    ) -> None:
        """Declares one tensor; with both global arguments it is the shard of a larger one. Only after `Spool.begin`."""
        leaf = leaf_of(tensor, name, self.may_stay)
        if leaf is None:
            raise TypeError(f"{name!r} is a {type(tensor).__name__} and no tensor: use add_object")
        self._add(name, tensor, leaf, global_shape, global_offsets)

    def _add(
        self,
        name: str,
        tensor: object,
        leaf: Leaf,
        global_shape: tuple[int, ...] | None = None,
        global_offsets: tuple[int, ...] | None = None,
        untied: bool = False,
    ) -> None:
        self._handle.add(
            name, leaf.dtype, leaf.shape, leaf.strides, leaf.address, leaf.owner, global_shape, global_offsets, untied
        )
        if self._filler is not None:
            self._filler.take(name, tensor, leaf)

    @property
    def may_stay(self) -> bool:
        """Whether tensors on a device are taken from there."""
        return self._filler is not None

    def add_object(self, name: str, kind: str, data: bytes | bytearray | memoryview) -> None:
        """Declares bytes; `kind` says how to read them back: "bytes", "json", "text", "pickle"."""
        self._handle.add_object(name, kind, data)

    def add_metadata(self, key: str, value: str) -> None:
        self._handle.add_metadata(key, value)

    def submit(self) -> Save:
        """Plans, and stages as the save was told to. Afterwards only waiting is left."""
        self._spool._submit(self)
        return self

    def _fill(self) -> None:
        """After the submit, when its spans are filled from here."""
        if self._filler is None:
            return
        try:
            self._filler.start()
            for guard in self._guards:
                guard.watch(partial(self._handle.wait, STAGED, None))
            if self._is_background:
                self._filler.run_apart()
                return
            self._filler.run()
        except BaseException:
            self._handle.abort()  # nobody will fill it
            self._seen = True
            raise
        self._handle.wait(STAGED, None)

    def _fail(self, failure: SaveError, cause: BaseException | None = None) -> None:
        """Gives the save up, for a reason of ours."""
        failure.__cause__ = cause
        self._own_failure = failure
        if not self._handle.abort():  # it had ended already
            self._own_failure = None

    def _stop_filling(self) -> bool:
        """Whether it was given up for that."""
        was_filling, filler = False, self._filler
        if filler is not None and filler.thread is not None:
            was_filling = filler.thread.is_alive() and self._handle.abort()
            filler.thread.join()
            if was_filling:
                self._handle.wait(PUBLISHED, 1)  # so that its end is known
        return was_filling

    # Waiting --------------------------------------------------------------------------------------------------------------------

    def _failure(self) -> SaveError:
        self._seen = True
        failure = self.status().failure
        return failure or SaveError(f"the save of {self.name!r} ended without a record")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise SpoolError("a forked child may not use its parent's saves: open a spool of its own", errno=errno.EPERM)

    def _wait(self, level: int, timeout: float | None) -> None:
        self._check_process()
        if not self._submitted.is_set():
            raise SaveError(f"the save of {self.name!r} was not submitted", errno=errno.EINVAL)
        error = self._handle.wait(level, timeout)
        if error == 0 or (error == errno.EOPNOTSUPP and level == PUBLISHED):  # durable, and another rank publishes
            return
        if error == errno.ETIMEDOUT and not self.done():
            raise WaitTimeout(f"{self.name!r} is not {_LEVELS[level]} after {timeout} s; it goes on", errno=error)
        if error == errno.ESHUTDOWN:
            raise SaveError(
                f"the spool was closed before {self.name!r} was {_LEVELS[level]}: it was left to the writer", errno=error
            )
        raise self._failure()

    def wait_staged(self, timeout: float | None = None) -> SaveResult:
        """Returns when every tensor was copied: from then on they may change."""
        self._wait(STAGED, timeout)
        return self.status()

    def wait_written(self, timeout: float | None = None) -> SaveResult:
        """Returns when every byte was written; a power cut may still lose them."""
        self._wait(WRITTEN, timeout)
        return self.status()

    def wait_durable(self, timeout: float | None = None) -> SaveResult:
        """Returns when this rank's part survives a power cut."""
        self._wait(DURABLE, timeout)
        return self.status()

    def wait_published(self, timeout: float | None = None) -> SaveResult:
        """Returns when the checkpoint stands under its name and survives a power cut."""
        self._wait(PUBLISHED, timeout)
        return self.status()

    def result(self, timeout: float | None = None) -> SaveResult:
        """As a future's: waits for the end and returns the result, or raises the failure."""
        return self.wait_published(timeout)

    def exception(self, timeout: float | None = None) -> Error | None:
        """As a future's: waits for the end and returns the failure, or None."""
        try:
            self._wait(PUBLISHED, timeout)
        except WaitTimeout:
            raise
        except SaveError as failure:
            return failure
        return None

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        self._check_process()
        return self._submitted.is_set() and self._handle.wait(PUBLISHED, 0) != errno.ETIMEDOUT

    def status(self) -> SaveResult:
        """A snapshot; never waits, never raises the failure."""
        self._check_process()
        return self._result()

    def _result(self) -> SaveResult:
        result = _result_of(self._handle.result())
        return replace(result, failure=self._own_failure) if result.failure and self._own_failure else result

    def abort(self) -> bool:
        """Gives the save up; True when there was something to give up. It then fails with ECANCELED."""
        self._check_process()
        self._seen = True
        return self._handle.abort()

    def fileno(self) -> int:
        """A descriptor that polls readable at news, and stays readable once the save has ended. It is the save's."""
        self._check_process()
        return self._handle.fileno()

    # asyncio --------------------------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, SaveResult]:
        return self._awaited().__await__()

    async def _awaited(self) -> SaveResult:
        if not self.done():
            await self._ended()
        return self.result(0)

    async def _ended(self) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        descriptor = os.dup(self.fileno())  # one each: several may wait in one loop

        def news() -> None:
            if not self.done():
                self.status()  # takes the news
            if self.done() and not ended.done():
                ended.set_result(None)

        try:
            loop.add_reader(descriptor, news)
            await ended
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    # Callbacks ------------------------------------------------------------------------------------------------------------------

    def add_done_callback(self, callback: Callable[[Save], object]) -> None:
        """Calls callback(save) when the save has ended: from a thread of tspool's, or at once if it has already."""
        with self._lock:
            if not self.done():
                self._callbacks.append(callback)
                self._watch()
                return
        self._call(callback)

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch_main, name="tspool-watch", daemon=True)
            self._watcher.start()

    def _call(self, callback: Callable[[Save], object]) -> None:
        self._seen = True
        try:
            callback(self)
        except Exception:
            _log.exception("a callback of the save of %r raised", self.name)

    def _watch_main(self) -> None:
        seen = None
        while not self.done():
            if self._progress is None:
                self._handle.wait(PUBLISHED, None)
                continue
            seen = self._progress_tell(seen)
            level = seen.level if seen else 0
            if not self._submitted.wait(_PROGRESS_SECONDS):
                if self._watcher is None:  # the submit was refused
                    return
            elif self._handle.wait(min(level + 1, PUBLISHED), _PROGRESS_SECONDS) not in (0, errno.ETIMEDOUT):
                break
        self._progress_tell(seen)
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call(callback)

    def _progress_tell(self, before: SaveResult | None) -> SaveResult | None:
        if self._progress is None:
            return None
        now = self._result()
        if before is None or (now.level, now.staged_bytes, now.written_bytes, now.outcome) != (
            before.level, before.staged_bytes, before.written_bytes, before.outcome,
        ):  # fmt: skip
            try:
                self._progress(now)
            except Exception:
                _log.exception("the progress callback of the save of %r raised", self.name)
        return now

    def _join(self) -> None:
        watcher = self._watcher
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join()

    def __enter__(self) -> Save:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait_published()

    def __repr__(self) -> str:
        return f"<tspool.Save {self.name!r}>"


def deadline_of(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def left_of(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
