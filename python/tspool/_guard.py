"""What copying in the background is guarded by: the optimizer, whose next step waits until the tensors were copied.

One hook per optimizer, for its life: a hook that goes while the optimizer walks its hooks breaks that walk.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any


class Guard:
    """What one optimizer's next step waits for."""

    def __init__(self, optimizer: Any) -> None:
        register = getattr(optimizer, "register_step_pre_hook", None)
        if not callable(register):
            raise TypeError(
                f"guard is a torch optimizer, or a list of them, not a {type(optimizer).__name__}: without one, call "
                "wait_staged() before the tensors change"
            )
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waits: list[Callable[[], object]] = []
        register(self._before_step)

    def watch(self, wait: Callable[[], object]) -> None:
        """`wait` returns when the tensors may change. It raises nothing of its own: failures are told elsewhere."""
        with self._lock:
            self._waits.append(wait)

    def _before_step(self, *_: object) -> None:
        if os.getpid() == self._pid:
            self.wait()

    def wait(self) -> None:
        while self._waits:
            self._waits[0]()
            with self._lock:
                del self._waits[:1]


_guards: weakref.WeakKeyDictionary[Any, Guard] = weakref.WeakKeyDictionary()


def guards_of(guard: Any) -> list[Guard]:
    """Of an optimizer, or of each in a list."""
    optimizers = list(guard) if isinstance(guard, (list, tuple)) else [guard]
    for optimizer in optimizers:
        if optimizer not in _guards:
            _guards[optimizer] = Guard(optimizer)
    return [_guards[optimizer] for optimizer in optimizers]
