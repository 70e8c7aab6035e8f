"""The spools of this process that DCP's saves go through: one per root directory, rank and world size, opened when it is first
needed and kept, because its arena is worth keeping: the next save finds the memory populated.

A trainer that saves into another directory each time must not gather arenas: beyond two, those in which nothing is under way
are closed, the one that was used longest ago first. At exit all are closed, as every spool is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from tspool._spool import Spool

_KEPT = 2

_Key = tuple[object, ...]


class _Kept:
    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.borrowers = 0

    def is_idle(self) -> bool:
        return self.borrowers == 0 and self.spool.is_idle()


_lock = threading.Lock()
_kept: dict[_Key, _Kept] = {}  # used longest ago first


def _forget() -> None:
    """A forked child has none: its parent's may not be used, nor closed."""
    global _lock
    _lock = threading.Lock()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)


def _local_ranks(world_size: int) -> int:
    """How many ranks share this machine's memory: the launcher says it."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(told), world_size) if told.isdecimal() and int(told) > 0 else 1


def _shed() -> list[Spool]:
    surplus = len(_kept) - _KEPT
    idle = [key for key, kept in _kept.items() if kept.is_idle()]
    return [_kept.pop(key).spool for key in idle[: max(0, surplus)]]


def _take(root: str, rank: int, world_size: int, options: dict[str, Any]) -> _Kept:
    key = (os.path.realpath(root), rank, world_size, *sorted(options.items()))
    kept = _kept.pop(key, None)
    if kept is None or kept.spool.closed:
        os.makedirs(root, exist_ok=True)
        options = {"local_ranks": _local_ranks(world_size), **options}
        kept = _Kept(Spool(root, rank=rank, world_size=world_size, **options))
    _kept[key] = kept
    return kept


@contextlib.contextmanager
def borrowed(root: str, rank: int = 0, world_size: int = 1, **options: Any) -> Iterator[Spool]:
    """The spool for `root`, which stays open at least until the block ends; saves that were submitted in it keep it open too."""
    with _lock:
        kept = _take(root, rank, world_size, options)
        kept.borrowers += 1
        shed = _shed()
    try:
        for spool in shed:
            spool.close()
        yield kept.spool
    finally:
        with _lock:
            kept.borrowers -= 1


def spool_for(root: str, rank: int = 0, world_size: int = 1, **options: Any) -> Spool:
    """The same, for what takes a moment only, such as `reserve`."""
    with borrowed(root, rank, world_size, **options) as spool:
        return spool


def close_all() -> None:
    """Waits for what is under way and closes them all. A later save opens another."""
    with _lock:
        spools = [kept.spool for kept in _kept.values()]
        _kept.clear()
    for spool in spools:
        spool.close()
