"""The spool: what a trainer opens once and hands its state dicts to."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

from tspool import _tspool
from tspool._errors import FIELDS, EarlierSaveError, Error, SaveError, SpoolError
from tspool._guard import guards_of
from tspool._save import DURABLE, PUBLISHED, STAGED, Save, SaveResult, deadline_of, left_of
from tspool._tree import STATE, Encoding, is_text, metadata_text

Io = Literal["auto", "uring", "threads"]
Staging = Literal["now", "background"]
IO = {"auto": 0, "uring": 1, "threads": 2}
_ISOLATION = {"process": 0, "thread": 1}
_STAGING = {"now": 0, "background": 1}
_CALLER = 2  # TSPOOL_STAGING_CALLER
_FOR_EVER = (1 << 64) - 1
_OPEN: weakref.WeakSet[Spool] = weakref.WeakSet()
_log = logging.getLogger("tspool")


def home() -> str:
    """The directory of the package, where the library, the writer and the command lie."""
    return os.path.dirname(os.path.abspath(__file__))


def choose(table: Mapping[str, int], what: str, value: object) -> int:
    if value not in table:
        raise ValueError(f"{what} is one of {', '.join(map(repr, table))}, not {value!r}")
    return table[value]  # type: ignore[index]


def _ns(seconds: float | None) -> int:
    return 0 if seconds is None else max(1, int(seconds * 1e9))


def _keep(keep: int | None) -> int:
    if keep is not None and keep < 1:
        raise ValueError(f"keep is the number of checkpoints that stay, at least 1, or None for all, not {keep!r}")
    return keep or 0


def publish(root: str | os.PathLike[str], name: str, save_id: bytes, world_size: int) -> None:
    """Makes one checkpoint of what `world_size` ranks saved as `name` under `save_id`, once all parts are durable. By anyone,
    any number of times; it goes on from what stands on disk."""
    _tspool.publish(os.fsencode(root), name, save_id, world_size)


@dataclass(frozen=True)
class CloseReport:
    """How a spool was closed."""

    published: int
    failed: int
    left: int
    """staged saves left to the writer, which finishes them"""
    aborted: int
    writer_pid: int
    """of the writer that finishes what is left; 0: none"""


@dataclass(frozen=True)
class OpenReport:
    """What opening waited for: writers of dead trainers that still finished what was staged."""

    waited_ns: int
    orphans_seen: int
    orphans_finished: int
    orphans_left: int
    orphan_left: str
    """name of one that is still under way"""


class Spool:
    """An arena of memory and a writer process for saves into one directory.

    `root` must exist. Everything else has a good default: see docs/PYTHON.md. Times are seconds, sizes bytes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        arena_bytes: int | None = None,
        io: Io = "auto",
        *,
        item_bytes: int = 0,
        depth: int = 0,
        submit_batch: int = 0,
        isolation: Literal["process", "thread"] = "process",
        bytes_per_second: int = 0,
        staging_threads: int = 0,
        hash_threads: int = 0,
        deadline: float | None = None,
        heartbeat: float | None = None,
        start_timeout: float | None = None,
        shard_bytes: int = 0,
        rank: int = 0,
        world_size: int = 1,
        local_ranks: int = 1,
        buffered: bool = False,
        writer_path: str | os.PathLike[str] | None = None,
        excluded_cpus: str | None = None,
        orphan_wait: float | None = 10.0,
        settings: str | os.PathLike[str] | None = None,
        keep: int | None = None,
        on_arena: Callable[[int, int, bool], object] | None = None,
    ) -> None:
        self.root = os.fsdecode(root)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._in_flight: list[Save] = []
        self._handle: _tspool.Spool | None = _tspool.Spool(
            root=os.fsencode(root),
            writer_path=os.fsencode(writer_path if writer_path is not None else os.path.join(home(), "tspool-writer")),
            excluded_cpus=excluded_cpus,
            arena_bytes=arena_bytes or 0,
            item_bytes=item_bytes,
            depth=depth,
            io=choose(IO, "io", io),
            isolation=choose(_ISOLATION, "isolation", isolation),
            bytes_per_second=bytes_per_second,
            staging_threads=staging_threads,
            hash_threads=hash_threads,
            deadline_ns=_ns(deadline),
            heartbeat_ns=_ns(heartbeat),
            start_timeout_ns=_ns(start_timeout),
            shard_bytes=shard_bytes,
            rank=rank,
            world_size=world_size,
            local_ranks=local_ranks,
            buffered=buffered,
            orphan_wait_ns=_FOR_EVER if orphan_wait is None else _ns(orphan_wait),
            submit_batch=submit_batch,
            settings=b"" if settings is None else os.fsencode(settings),
            keep=_keep(keep),
            on_arena=on_arena,
        )
        _OPEN.add(self)

    # Saving ---------------------------------------------------------------------------------------------------------------------

    def _open_handle(self) -> _tspool.Spool:
        if self._handle is None:
            raise SpoolError("the spool is closed: open another", errno=errno.EINVAL)
        if os.getpid() != self._pid:
            raise SpoolError("a forked child may not use its parent's spool: open one of its own", errno=errno.EPERM)
        return self._handle

    def save(
        self,
        name: str,
        state_dict: object,
        metadata: Mapping[str, object] | None = None,
        staging: Staging = "now",
        replace: bool = False,
        deadline: float | None = None,
        progress: Callable[[SaveResult], object] | None = None,
        *,
        pickle: bool = False,
        check_torn: bool = False,
        save_id: bytes | None = None,
        guard: object = None,
    ) -> Save:
        """Begins to save `state_dict` as the checkpoint `name`.

        staging "now": returns when every tensor was copied. "background": returns at once; do not change a tensor before
        `wait_staged` returned. With `guard`, a torch optimizer or a list of them, their next step waits for that by itself, and a
        tensor that was changed all the same fails the save by its name.
        """
        self._open_handle()
        encoding = Encoding(pickle)
        structure = encoding.encode(state_dict)
        save = self.begin(
            name, staging=staging, replace=replace, deadline=deadline, check_torn=check_torn, save_id=save_id, guard=guard,
            on_device=not all(leaf.is_host for _, leaf, _ in encoding.tensors),
        )  # fmt: skip
        for (tensor, leaf, _), value in zip(encoding.tensors, encoding.values):
            save._add(tensor, value, leaf)
        for blob in encoding.blobs:
            save.add_object(blob.name, blob.kind, blob.data)
        save.add_object(STATE, "json", structure.encode("ascii"))
        for key, value in (metadata or {}).items():
            save.add_metadata(*metadata_text(key, value))
        save._progress = progress
        return save.submit()

    def begin(
        self,
        name: str,
        *,
        staging: Staging = "now",
        replace: bool = False,
        deadline: float | None = None,
        check_torn: bool = False,
        save_id: bytes | None = None,
        guard: object = None,
        on_device: bool = False,
    ) -> Save:
        """Begins a save whose tensors and objects are declared one by one: `add`, `add_object`, `add_metadata`, then `submit`.
        With `on_device`, tensors on CUDA are copied straight into the arena; else by way of a copy on the host."""
        handle = self._open_handle()
        if not is_text(name):
            raise SaveError(f"{name!r} is no checkpoint's name: that is a string which UTF-8 can hold", errno=errno.EINVAL)
        kind = choose(_STAGING, "staging", staging)
        if guard is not None and staging != "background":
            raise ValueError("guard goes with staging='background': otherwise everything was copied when save returns")
        guards = [] if guard is None else guards_of(guard)
        self._earlier_tell()
        is_filled = bool(guards) or on_device
        made = _tspool.Save(
            handle, name, _CALLER if is_filled else kind, replace, _ns(deadline), save_id, check_torn and not is_filled
        )
        return Save(self, name, made, is_filled, staging == "background", guards)

    def _submit(self, save: Save) -> None:
        self._open_handle()
        if save._progress is not None:
            save._watch()
        try:
            save._handle.submit()
        except BaseException:
            save._watcher = None
            save._seen = True
            raise
        save._submitted.set()
        with self._lock:
            self._in_flight.append(save)
        save._fill()

    def _settle(self) -> list[Save]:
        """Takes those that have ended off the list, and lets go of tensors that were copied."""
        with self._lock:
            for save in self._in_flight:
                save._handle.wait(STAGED, 0)
            ended = [save for save in self._in_flight if save.done()]
            self._in_flight = [save for save in self._in_flight if save not in ended]
        return ended

    def _earlier_tell(self) -> None:
        """A failure that nobody looked at is told by the next save, once."""
        failure = _untold(self._settle())
        if failure is not None:
            fields: dict[str, Any] = {field: getattr(failure, field) for field in FIELDS if field != "message"}
            raise EarlierSaveError(f"an earlier save failed: {failure.message}; this one was not begun", **fields) from failure

    # The rest -------------------------------------------------------------------------------------------------------------------

    def reserve(self, bytes: int) -> None:
        """Populates the arena for saves of that size now rather than in the first save."""
        self._open_handle().reserve(bytes)

    def save_id(self) -> bytes:
        """A fresh id of a save, for rank 0 to broadcast when several ranks save one checkpoint."""
        return self._open_handle().save_id()

    def open_report(self) -> OpenReport:
        """What opening waited for."""
        return OpenReport(*self._open_handle().open_report())

    @property
    def writer_pid(self) -> int:
        """The writer that serves now; 0 when it is dead or a thread."""
        return self._open_handle().writer_pid

    @property
    def closed(self) -> bool:
        return self._handle is None

    def is_idle(self) -> bool:
        """Whether no save is under way."""
        with self._lock:
            return all(save.done() for save in self._in_flight)

    def close(self, timeout: float | None = None, abort: bool = False) -> CloseReport:
        """Waits for the saves in flight, then ends the spool. At the timeout, or at Ctrl-C, what is staged is left to the writer,
        which finishes it without us; with `abort` it is given up. A failure that nobody looked at is raised, once closed."""
        if self._handle is None:
            return CloseReport(0, 0, 0, 0, 0)
        self._open_handle()
        pending = [save for save in self._in_flight if not save.done()]
        try:
            ended = self._drain(deadline_of(timeout))
        except BaseException:
            self._end(abort)
            raise
        left = self._end(abort)
        failure = _untold(ended)
        if failure is not None:
            raise failure
        well = sum(save in pending and _is_well(save) for save in ended)
        failed = sum(save in pending and not _is_well(save) for save in ended)
        return CloseReport(left.published + well, left.failed + failed, left.left, left.aborted, left.writer_pid)

    def _drain(self, deadline: float | None) -> list[Save]:
        """Waits until nothing is in flight, or for the deadline; gives those that ended."""
        ended = []
        while self._in_flight:
            save = self._in_flight[0]
            save._handle.wait(PUBLISHED, left_of(deadline))
            if not save.done():
                break
            save._join()
            ended.append(save)
            self._in_flight.remove(save)
        return ended

    def _end(self, abort: bool) -> CloseReport:
        handle, self._handle = self._handle, None
        _OPEN.discard(self)
        stopped = sum(save._stop_filling() for save in self._in_flight)
        numbers = handle.close(0, abort) if handle is not None else None
        for save in self._in_flight:
            save._join()
        self._in_flight = []
        report = CloseReport(*(numbers or (0, 0, 0, 0, 0)))
        return replace(report, aborted=report.aborted + stopped)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for what is in flight, also when the block raised; after Ctrl-C it is left to the writer."""
        try:
            self.close(timeout=0 if kind is KeyboardInterrupt else None)
        except Error as failure:
            if kind is None:
                raise
            _log.error("while an exception left the spool's block: %s", failure)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is None or os.getpid() != self._pid:
            return
        warnings.warn(f"a spool for {self.root!r} was not closed", ResourceWarning, stacklevel=2, source=self)
        for save in self._in_flight:
            save._handle.wait(STAGED, None)
        self._end(False)


def _is_well(save: Save) -> bool:
    return save._handle.wait(DURABLE, 0) == 0


def _untold(ended: list[Save]) -> Error | None:
    """The first failure that nobody was told, of saves that have ended. All of them count as told now."""
    failures = [save._failure() for save in ended if not save._seen and not _is_well(save)]
    return failures[0] if failures else None


@atexit.register
def _finish() -> None:
    """A normal exit waits for saves in flight; Ctrl-C leaves them to the writer."""
    for spool in list(_OPEN):
        if os.getpid() != spool._pid:
            continue
        try:
            spool.close()
        except Error as failure:
            _log.error("at exit: %s", failure)
