"""Whether the process of another rank still lives, as far as that can be seen from here: on this machine.

Each rank says once, in the store, which process it is. A rank that was killed cannot say anything any more, and whoever waits for
its part would wait until the deadline; but those beside it can see that it is gone. (A launcher ends the others anyway; not
everybody has one.)
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch.distributed as dist

_FEW = 64

_introduced: weakref.WeakSet[Any] = weakref.WeakSet()  # default groups


def _state_of(pid: int) -> tuple[str, str] | None:
    """(state, ticks after boot at which it started); None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), fields[19].decode()


def _machine() -> str:
    """Where a process id means the same."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def identity() -> str:
    state = _state_of(os.getpid())
    return f"{_machine()} {os.getpid()} {state[1] if state else ''}"


def is_dead(told: str) -> bool:
    """Of the process whose identity that is; False where it cannot be told."""
    machine, pid, started = told.split(" ")
    if not machine or machine != _machine():
        return False
    state = _state_of(int(pid))
    return state is None or state[1] != started or state[0] in "ZX"


def _key(rank: int) -> str:
    return f"tspool/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/process/{rank}"


def introduce(store: Any) -> None:
    """Once for each default group; `store` is that group's."""
    group = dist.distributed_c10d._get_default_group()
    if group not in _introduced:
        _introduced.add(group)
        store.set(_key(dist.get_rank()), identity())


def neighbours(world_size: int) -> list[int]:
    """The ranks on this machine, as the launcher says. Without one: of a few ranks all, of many none, because asking for all of
    them takes too long."""
    local, first = os.environ.get("LOCAL_WORLD_SIZE", ""), os.environ.get("LOCAL_RANK", "")
    if not local.isdecimal() or not first.isdecimal():
        return list(range(world_size)) if world_size <= _FEW else []
    begin = dist.get_rank() - int(first)
    return list(range(max(0, begin), min(world_size, begin + int(local))))


def dead_among(store: Any, ranks: list[int]) -> list[int]:
    """Those of these ranks of the default group that are known to be dead."""
    return [rank for rank in ranks if store.check([_key(rank)]) and is_dead(store.get(_key(rank)).decode())]
