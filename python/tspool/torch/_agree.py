"""What the ranks of one save tell each other beside DCP: which save it is, whose part is durable, how it ended.

DCP hands a storage writer neither the process group nor a way to reach another rank; with cached plans nothing of a save travels
in a plan. So ranks meet in the c10d store of the default process group, which every initialised group has. Nobody waits in the
store, whose connection other threads of the process need: it is asked again and again, ever more slowly, until a deadline.

Under tspool/<restart>/<digest of the path>[/<count>] the coordinator says save id and world size. With collectives that precedes
the scatter of the plan, so that every rank that has its plan finds it, and finds the latest. Without, the ranks count their saves
of that path, and the last to hear it removes it. torchrun's restarts may share one store: what one left is not for the next.
Under tspool/save/<save id>/ there are `part/<rank>` (durable), `verdict` (the first to set it decides: published, or failed and
how), and two counters.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch.distributed as dist

from tspool._errors import FIELDS, Error, SaveError
from tspool.torch import _alive

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25


class Agreement(NamedTuple):
    """Which save this is, for one rank of it."""

    save_id: bytes
    rank: int
    world_size: int


def default_store() -> Any:
    """That of the default process group; None without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    try:
        return dist.distributed_c10d._get_default_store()
    except (ValueError, KeyError):
        return None


def introduce() -> None:
    """So that others can see whether this process lives."""
    store = default_store()
    if store is not None and dist.get_world_size() > 1:
        _alive.introduce(store)


def fresh_id() -> bytes:
    return secrets.token_bytes(16)


def poll(answer: Callable[[], Any], deadline: float) -> Any:
    """The first answer that is not None; None at the deadline (of time.monotonic)."""
    pause = _FIRST_PAUSE
    while True:
        found = answer()
        left = deadline - time.monotonic()
        if found is not None or left <= 0:
            return found
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _get(store: Any, key: str) -> bytes | None:
    found: bytes | None = store.get(key) if store.check([key]) else None
    return found


# Which save it is ---------------------------------------------------------------------------------------------------------------

_counts: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


def count_of(path: str) -> int:
    """How many saves of `path` without collectives this process has begun in the default group: on all of its ranks alike."""
    group = dist.distributed_c10d._get_default_group()
    counts = _counts.setdefault(group, {})
    counts[path] = counts.get(path, -1) + 1
    return counts[path]


def _place(path: str, count: int | None) -> str:
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    key = f"tspool/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{digest}"
    return key if count is None else f"{key}/{count}"


def announce(path: str, agreement: Agreement, count: int | None = None) -> None:
    """Said by the coordinator."""
    store = default_store()
    if store is None:
        raise SaveError(
            f"{agreement.world_size} ranks save {path!r} and the default process group has no store to meet in: "
            "initialise it with one (init_process_group with env://, tcp:// or store=)",
            errno=errno.ENOTCONN, stage="declare", path=path,
        )  # fmt: skip
    store.set(_place(path, count), f"{agreement.save_id.hex()} {agreement.world_size}")


def hear(path: str, rank: int, timeout: float, count: int | None = None) -> Agreement:
    """What the coordinator said, to any other rank."""
    store = default_store()
    place = _place(path, count)
    told = None if store is None else poll(lambda: _get(store, place), time.monotonic() + timeout)
    if told is None:
        raise SaveError(
            f"rank {rank} waited {timeout:g} s for rank 0 to begin the save of {path!r}: it failed before, or saves elsewhere",
            errno=errno.ETIMEDOUT, stage="declare", path=path,
        )  # fmt: skip
    save_id, world_size = told.decode().split()
    agreement = Agreement(bytes.fromhex(save_id), rank, int(world_size))
    if rank >= agreement.world_size:
        raise SaveError(
            f"rank {rank} saves {path!r}, and rank 0 counts {agreement.world_size} ranks: give all the same process group",
            errno=errno.EINVAL, stage="declare", path=path,
        )  # fmt: skip
    if count is not None and int(store.add(f"{place}/heard", 1)) == agreement.world_size - 1:
        store.delete_key(place)
        store.delete_key(f"{place}/heard")
    return agreement


# How it ends --------------------------------------------------------------------------------------------------------------------


class Meeting:
    """The ranks of one save, at its end. `path` is for messages."""

    def __init__(self, agreement: Agreement, path: str) -> None:
        self.agreement = agreement
        self.path = path
        self.store = default_store()
        self._base = f"tspool/save/{agreement.save_id.hex()}"
        self._has_arrived = self._has_left = False

    def arrive(self) -> bool:
        """This rank's part is durable. True: so are all others."""
        more = 0 if self._has_arrived else 1
        self._has_arrived = True
        if more:
            self.store.set(f"{self._base}/part/{self.agreement.rank}", "durable")
        return int(self.store.add(f"{self._base}/arrived", more)) == self.agreement.world_size

    def absent(self, ranks: Iterable[int]) -> list[int]:
        """Those whose part is not durable yet."""
        return [rank for rank in ranks if not self.store.check([f"{self._base}/part/{rank}"])]

    def dead(self) -> list[int]:
        """The absent ones whose process is gone, as far as can be seen. Of a group of some ranks only, nothing can."""
        if self.agreement.world_size != dist.get_world_size():
            return []
        return _alive.dead_among(self.store, self.absent(_alive.neighbours(self.agreement.world_size)))

    def decide(self, failure: Error | None) -> Error | None:
        """Says how the save ended, unless that was said before; what was said first holds, and is returned."""
        record = None if failure is None else {field: getattr(failure, field) for field in FIELDS}
        verdict = json.dumps({"rank": self.agreement.rank, "failure": record})
        return self._read(self.store.compare_set(f"{self._base}/verdict", "", verdict))

    def verdict(self) -> tuple[Error | None] | None:
        """None: not decided yet. Else a tuple of one: the failure, or None where it was published."""
        told = _get(self.store, f"{self._base}/verdict")
        return None if told is None else (self._read(told),)

    def _read(self, told: bytes) -> Error | None:
        verdict = json.loads(told)
        fields = verdict["failure"]
        if fields is None:
            return None
        if verdict["rank"] != self.agreement.rank:
            fields["message"] = f"rank {verdict['rank']} failed to save its part of {self.path!r}: {fields['message']}"
        return SaveError(**fields)

    def leave(self) -> None:
        """The last to leave removes what was written here."""
        if self._has_left:
            return
        self._has_left = True
        if int(self.store.add(f"{self._base}/left", 1)) < self.agreement.world_size:
            return
        keys = [f"part/{rank}" for rank in range(self.agreement.world_size)]
        for key in [*keys, "arrived", "verdict", "left"]:
            self.store.delete_key(f"{self._base}/{key}")
