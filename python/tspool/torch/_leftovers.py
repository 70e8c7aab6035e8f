"""Parts of saves that failed on another rank. Each rank's engine has written its part and knows nothing of that; DCP does not
tell a storage writer that a save was given up, it only goes on to the next. So the coordinator notes what it begins, strikes
out what is published, and removes, before the next save, what is over without having been published:

- it ended with an error here, or
- nobody holds its attempt any more, or
- nobody waits for it, and a save that was begun later is published.

As `tspool gc` does it: renamed to `<hidden>.gone` first, so that it means nothing from then on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import threading
import weakref
from typing import Any


class _Note:
    def __init__(self, attempt: Any, hidden: str) -> None:
        self.attempt = weakref.ref(attempt)
        self.hidden = hidden
        self.is_outdated = False  # a later one is published
        self.was_looked_for = False

    def is_over(self) -> bool:
        attempt = self.attempt()
        return attempt is None or attempt.has_ended or (self.is_outdated and not attempt.is_awaited())

    def is_doubtful(self) -> bool:
        """Its part is there, and nobody waits for the others: asked once, because the answer takes time."""
        attempt = self.attempt()
        if attempt is None or self.was_looked_for or attempt.is_awaited() or not attempt.is_done():
            return False
        self.was_looked_for = True
        return True


_lock = threading.Lock()
_notes: list[_Note] = []  # begun first, first


def note(attempt: Any, root: str, name: str, save_id: bytes) -> None:
    with _lock:
        _notes.append(_Note(attempt, os.path.join(root, f".{name}.{save_id.hex()}")))


def strike(attempt: Any) -> None:
    """It is published: nothing is left of it."""
    with _lock:
        numbers = [number for number, note in enumerate(_notes) if note.attempt() is attempt]
        for number in numbers:
            for note in _notes[:number]:
                note.is_outdated = True
            del _notes[number]


def _take_over() -> list[_Note]:
    over = [note for note in _notes if note.is_over()]
    _notes[:] = [note for note in _notes if note not in over]
    return over


def sweep() -> None:
    with _lock:
        over = _take_over()
        if any(note.is_doubtful() for note in _notes):
            gc.collect()  # an exception's frames may hold it, and nobody the exception
            over += _take_over()
    for note in over:
        with contextlib.suppress(OSError):
            os.rename(note.hidden, f"{note.hidden}.gone")
        shutil.rmtree(f"{note.hidden}.gone", ignore_errors=True)
