"""A checkpoint on disk: what is in it, and reading it into memory of the caller's."""

from __future__ import annotations

import json
import os
import pickle as _pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from tspool import _tspool
from tspool._errors import ConsentError, DamagedError, LoadError, MismatchError, NotFoundError
from tspool._leaves import make, size_of, target_of
from tspool._spool import IO, Io, choose

_KINDS = {1: "tspool", 2: "huggingface", 3: "file"}
_DAMAGE = {1: "tensor", 2: "file", 3: "missing", 4: "foreign"}


class Entry(NamedTuple):
    """A stored tensor, or a name tied to one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    global_shape: tuple[int, ...] | None
    global_offsets: tuple[int, ...] | None
    bytes: int
    file: str
    file_offset: int
    tied_to: str | None
    digest: str
    """XXH3-128 as hex; empty where none was recorded"""


@dataclass(frozen=True)
class Object:
    name: str
    kind: str
    size: int


@dataclass(frozen=True)
class Info:
    """The checkpoint as a whole."""

    kind: str
    """"tspool", "huggingface" (a folder) or "file" (one safetensors file) """
    has_digests: bool
    save_id: str
    sequence: int
    tensor_bytes: int
    file_bytes: int
    files: int
    world_size: int
    format_version: int
    direct: bool
    backend: str


@dataclass(frozen=True)
class Damage:
    """A finding of verify. kind: "tensor", "file", "missing", or "foreign" (a file that the manifest does not list)."""

    kind: str
    tensor: str | None
    file: str | None
    file_offset: int
    bytes: int
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    has_digests: bool
    """False: nothing was recorded to verify against; headers and sizes were checked"""
    bytes: int
    tensors: int
    leaves: int
    damaged: int
    missing: int
    foreign: int
    findings: list[Damage] = field(default_factory=list)


class Checkpoint:
    """An open checkpoint: ours, a Hugging Face folder, or one .safetensors file. Several threads may read from it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        io: Io = "auto",
        item_bytes: int = 0,
        depth: int = 0,
        hash_threads: int = 0,
        buffered: bool = False,
        tolerant: bool = False,
    ) -> None:
        self.path = os.fsdecode(path)
        self._handle = _tspool.Checkpoint(
            os.fsencode(path), choose(IO, "io", io), item_bytes, depth, hash_threads, buffered, verify, tolerant
        )
        self._entries: list[Entry] | None = None

    # Contents -------------------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> Info:
        fields: dict[str, Any] = dict(self._handle.info)
        return Info(**{**fields, "kind": _KINDS[fields["kind"]], "save_id": fields["save_id"].hex()})

    @property
    def entries(self) -> list[Entry]:
        """Stored tensors in file order, then the names tied to one of them. Shards of one tensor share its name."""
        if self._entries is None:
            self._entries = [Entry(*entry) for entry in self._handle.entries()]
        return self._entries

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(entry.name for entry in self.entries))

    @property
    def metadata(self) -> dict[str, str]:
        return self._handle.metadata()

    def __contains__(self, name: str) -> bool:
        return self._handle.find(name) is not None

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> int:
        """The number of the first entry of that name."""
        number = self._handle.find(name)
        if number is None:
            raise NotFoundError(
                f"{self.path!r} has no tensor {name!r}: Checkpoint.names lists them", errno=2, tensor=name, path=self.path
            )
        return number

    def entry(self, name: str) -> Entry:
        return self.entries[self.find(name)]

    # Reading --------------------------------------------------------------------------------------------------------------------

    def read(
        self,
        name: str | int,
        start: Sequence[int] | None = None,
        extent: Sequence[int] | None = None,
        out: Any = None,
        kind: str = "any",
    ) -> Any:
        """A tensor, or the box of it that begins at `start` and has `extent` elements in each dimension.

        Into `out` (a tensor, array or buffer of that dtype and shape) if given, and then that is returned. Else a fresh one:
        `kind` is "torch", "numpy", "memoryview", "tensor" (a tspool.Tensor), or "any": what is in use here.
        `name` may be the number of an entry, to tell shards of one name apart.
        """
        number = name if isinstance(name, int) else self.find(name)
        entry = self.entries[number]
        shape = entry.shape if extent is None else tuple(extent)
        if start is None and extent is not None:
            start = [0] * len(shape)
        if out is not None:
            return self._read_out(number, entry, start, shape, out)
        made = make(kind, entry.dtype, shape)
        self._handle.read([(number, start, shape if start is not None else None, made.address, size_of(entry.dtype, shape))])
        return made.finish()

    def _read_out(self, number: int, entry: Entry, start: Sequence[int] | None, shape: tuple[int, ...], out: Any) -> Any:
        size = size_of(entry.dtype, shape)
        extent = shape if start is not None else None
        if isinstance(out, (bytearray, memoryview)) and memoryview(out).nbytes == size and memoryview(out).format == "B":
            memory = _tspool.Memory(out, True)  # just bytes
            self._handle.read([(number, start, extent, memory.address, size)])
            return out
        target = target_of(out, entry.name)
        if target is None or (target.dtype, target.shape) != (entry.dtype, shape):
            found = f"{target.dtype} {list(target.shape)}" if target else type(out).__name__
            raise MismatchError(
                f"{entry.name!r} is {entry.dtype} {list(shape)}, `out` is {found}", tensor=entry.name, path=self.path
            )
        if target.address is not None:
            self._handle.read([(number, start, extent, target.address, size)])
        else:
            made = make("torch" if type(out).__module__.startswith("torch") else "numpy", entry.dtype, shape)
            self._handle.read([(number, start, extent, made.address, size)])
            target.place(made.finish())
        return out

    def object(self, name: str, pickle: bool = False) -> Any:
        """An object: "json" and "text" decoded, "bytes" as they are, a "pickle" only with pickle=True."""
        kinds = {item.name: item.kind for item in self.objects}
        if name not in kinds:
            raise NotFoundError(
                f"{self.path!r} has no object {name!r}: it has {sorted(kinds)}", errno=2, tensor=name, path=self.path
            )
        return self._decode(name, kinds[name], pickle)

    def _decode(self, name: str, kind: str, pickle: bool) -> Any:
        if kind == "pickle" and not pickle:
            raise ConsentError(
                f"{name!r} is a pickle, which can run any code when it is loaded: pass pickle=True if you trust {self.path!r}, "
                "or name what you want without it",
                tensor=name,
                path=self.path,
            )
        data = self._handle.object_read(name)
        try:
            if kind == "pickle":
                return _pickle.loads(data)
            if kind == "json":
                return json.loads(data)
            return data.decode() if kind == "text" else data
        except Exception as error:
            raise LoadError(
                f"{name!r} of {self.path!r} cannot be decoded as {kind}: {error}", tensor=name, path=self.path
            ) from error

    def load(self, names: str | Iterable[str] | None = None, into: Any = None, pickle: bool = False) -> Any:
        """As tspool.load."""
        from tspool._load import load_from

        return load_from(self, names, into, pickle)

    def verify(self, progress: Callable[[int, int], Any] | None = None) -> VerifyReport:
        """Reads every byte against its digest; progress(bytes_done, bytes_total). Raises DamagedError, whose `report` has all
        findings."""
        error, findings, size, tensors, leaves, damaged, missing, foreign, message = self._handle.verify(progress)
        found = [Damage(_DAMAGE[finding[0]], *finding[1:]) for finding in findings]
        report = VerifyReport(error != 61, size, tensors, leaves, damaged, missing, foreign, found)  # ENODATA
        first = next((damage for damage in found if damage.kind != "foreign"), None)
        if first is not None:
            raise _damaged(self.path, report, first, message)
        return report

    @property
    def objects(self) -> list[Object]:
        """Objects beside the tensors. "tspool.state" holds the nesting and the plain values."""
        return [Object(*item) for item in self._handle.objects()]

    # Closing --------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tspool.Checkpoint {self.path!r}>"


def _damaged(path: str, report: VerifyReport, first: Damage, message: str) -> DamagedError:
    error = DamagedError(
        message or f"{path!r}: {first.reason}",
        errno=74,  # EBADMSG
        stage="verify",
        operation="verify",
        tensor=first.tensor or "",
        path=os.path.join(path, first.file or ""),
        file_offset=first.file_offset,
        cause=first.reason,
    )
    error.report = report
    return error


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None) -> VerifyReport:
    """Reads a whole checkpoint against its digests. Raises DamagedError, whose `report` has all findings."""
    with Checkpoint(path, tolerant=True) as checkpoint:
        return checkpoint.verify(progress)


def latest(root: str | os.PathLike[str], timeout: float | None = 10.0) -> str | None:
    """The path of the newest published checkpoint below `root`, by user step, else by commit sequence; None without any.

    Waits, so long at most, for the writer of a trainer that died if it still finishes what was staged; None: for ever."""
    return _tspool.latest(os.fsencode(root), timeout)
