"""Saved pieces into the tensors that a load planner names: straight into their memory where it is the same, by several threads.

The planner is only ever called from the thread that called `read_data`. Helpers read, sum and copy. Small pieces that lie side by
side are read at once. A piece that cannot be read raises with its name and its file.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from tspool._errors import DamagedError, Error, LoadError, MismatchError, NotFoundError
from tspool.torch import _bytes
from tspool.torch._archive import Found, Layout

SPAN_BYTES = 8 << 20  # what is read at once at most, of small pieces
_GAP_BYTES = 64 << 10  # read rather than skipped
_AHEAD = 2  # batches in flight for each thread


class Bytes(Protocol):
    """Of one file: on disk, or a span of it in memory. Offsets are the file's."""

    def at(self, offset: int, size: int) -> bytes: ...

    def into(self, view: memoryview, offset: int, summed: bool) -> int: ...


class Piece(NamedTuple):
    """What was saved as one. `find` says where in the file a plain tensor's bytes are; None: ask torch.load."""

    name: str
    path: str
    offset: int
    size: int
    find: Callable[[Bytes], Found | None]
    items: list[ReadItem]


Target = torch.Tensor | None  # None for an object
Wanted = list[tuple[Piece, list[Target]]]


class _OnDisk:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def at(self, offset: int, size: int) -> bytes:
        content = self.there(offset, size)
        if len(content) != size:
            raise EOFError(f"the file ends at {offset + len(content)}, {size - len(content)} bytes too early")
        return content

    def there(self, offset: int, size: int) -> bytes:
        """Fewer where the file ends."""
        content = os.pread(self._fd, size, offset)
        while len(content) < size and (more := os.pread(self._fd, size - len(content), offset + len(content))):
            content += more
        return content

    def into(self, view: memoryview, offset: int, summed: bool) -> int:
        return _bytes.read_into(self._fd, view, offset, summed)


class _InMemory:
    def __init__(self, content: bytes, start: int) -> None:
        self._content, self._start = memoryview(content), start

    def at(self, offset: int, size: int) -> bytes:
        return bytes(self._slice(offset, size))

    def into(self, view: memoryview, offset: int, summed: bool) -> int:
        content = self._slice(offset, len(view))
        view[:] = content
        return zlib.crc32(content) if summed else 0

    def _slice(self, offset: int, size: int) -> memoryview:
        first = offset - self._start
        if not 0 <= first <= first + size <= len(self._content):
            raise ValueError(f"{size} bytes at {offset} are not there")
        return self._content[first : first + size]


class _Files:
    """Each opened once, when it is first needed."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._fds: dict[str, int] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, piece: Piece) -> _OnDisk:
        if piece.path not in self._fds:
            self._fds[piece.path] = fd = _opened(piece)
            self._open.callback(os.close, fd)
        return _OnDisk(self._fds[piece.path])


def _opened(piece: Piece) -> int:
    try:
        return os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f'"{piece.name}" is in {piece.path}, which is missing', tensor=piece.name, path=piece.path) from error
    except OSError as error:
        raise _unread(piece, error) from error


def _unread(piece: Piece, error: Exception) -> LoadError:
    where = {"tensor": piece.name, "path": piece.path, "file_offset": piece.offset, "cause": str(error)}
    text = f'"{piece.name}" cannot be read from {piece.path} ({piece.size} bytes at {piece.offset}): '
    text += str(error) or type(error).__name__
    if isinstance(error, OSError):
        return LoadError(text, errno=error.errno or 0, operation="read", **where)  # type: ignore[arg-type]
    return DamagedError(text, operation="read", **where)  # type: ignore[arg-type]


# one piece ----------------------------------------------------------------------------------------------------------------------


def _fill(piece: Piece, content: Bytes, targets: Sequence[Target]) -> list[bytes | None]:
    """The objects' bytes; tensors are in place."""
    if piece.items[0].type == LoadItemType.BYTE_IO:
        return [content.at(piece.offset, piece.size) for _ in piece.items]
    found = piece.find(content)
    runs = [_run(found.layout, item, target) for item, target in zip(piece.items, targets)] if found else [None]
    if found and all(runs):
        for run, target in zip(runs, targets):
            _fill_straight(content, found, run, target)
    else:
        _fill_copied(piece, _loaded(piece, content, found), targets)
    return [None for _ in piece.items]


def _run(layout: Layout, item: ReadItem, target: Target) -> tuple[int, int] | None:
    """Where in the storage (first element, count) all of the target's bytes lie as they must lie in memory."""
    if target is None or target.dtype != layout.dtype or not _bytes.is_plain(target) or not target.is_contiguous():
        return None
    if layout.storage_offset or layout.stride != _bytes.contiguous_stride(layout.shape) or target.shape != item.lengths:
        return None
    return _bytes.run_of(layout.shape, item.storage_offsets, item.lengths)


def _fill_straight(content: Bytes, found: Found, run: Any, target: Any) -> None:
    first, count = run
    size = found.layout.dtype.itemsize
    summed = found.checksum is not None and count * size == found.layout.storage_bytes
    checksum = content.into(_bytes.writable(target), found.data_offset + first * size, summed)
    if not target.is_inference():
        torch.autograd.graph.increment_version(target)  # as copy_ would: it has changed
    if summed and checksum != found.checksum:
        raise _disagrees()


def _disagrees() -> ValueError:
    return ValueError("its bytes disagree with their checksum: the file is damaged")


def _loaded(piece: Piece, content: Bytes, found: Found | None) -> torch.Tensor:
    if found is None:
        archive = io.BytesIO(content.at(piece.offset, piece.size))
        return torch.load(archive, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    memory = torch.empty(found.layout.storage_bytes, dtype=torch.uint8)
    checksum = content.into(_bytes.writable(memory), found.data_offset, found.checksum is not None)
    if found.checksum is not None and checksum != found.checksum:
        raise _disagrees()
    tensor = torch.empty(0, dtype=found.layout.dtype)
    return tensor.set_(memory.untyped_storage(), found.layout.storage_offset, found.layout.shape, found.layout.stride)


def _fill_copied(piece: Piece, tensor: torch.Tensor, targets: Sequence[Target]) -> None:
    for item, target in zip(piece.items, targets):
        part = narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)
        assert target is not None  # objects do not come here
        if part.shape != target.shape:
            raise MismatchError(
                f'"{piece.name}" is {list(part.shape)} in {piece.path}, and what is loaded into is {list(target.shape)}',
                tensor=piece.name, path=piece.path,
            )  # fmt: skip
        target.copy_(part)


# many pieces --------------------------------------------------------------------------------------------------------------------


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """In the order of the files: large ones alone, small ones with their neighbours."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.path, piece.offset)):
        if batch and not _joins(batch, piece):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _joins(batch: list[Piece], piece: Piece) -> bool:
    first, last = batch[0], batch[-1]
    if piece.path != first.path or piece.offset - (last.offset + last.size) > _GAP_BYTES:
        return False
    return piece.offset + piece.size - first.offset <= SPAN_BYTES


def _read_batch(source: _OnDisk, wanted: Wanted) -> list[list[bytes | None]]:
    content: Bytes = source
    first, last = wanted[0][0], wanted[-1][0]
    with _named(first):
        if len(wanted) > 1:
            content = _InMemory(source.there(first.offset, last.offset + last.size - first.offset), first.offset)
    results = []
    for piece, targets in wanted:
        with _named(piece), torch.no_grad():
            results.append(_fill(piece, content, targets))
    return results


@contextlib.contextmanager
def _named(piece: Piece) -> Iterator[None]:
    try:
        yield
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise _unread(piece, error) from error


def read(pieces: Iterable[Piece], planner: LoadPlanner, thread_count: int) -> None:
    pool = ThreadPoolExecutor(thread_count, thread_name_prefix="tspool-read")
    window: collections.deque[tuple[Wanted, Future[list[list[bytes | None]]]]] = collections.deque()
    with _Files() as files:
        try:
            for batch in _batches(pieces):
                wanted = [(piece, [_target(planner, item) for item in piece.items]) for piece in batch]
                window.append((wanted, pool.submit(_read_batch, files.of(batch[0]), wanted)))
                if len(window) > _AHEAD * thread_count:
                    _hand_over(planner, *window.popleft())
            while window:
                _hand_over(planner, *window.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _target(planner: LoadPlanner, item: ReadItem) -> Target:
    return None if item.type == LoadItemType.BYTE_IO else planner.resolve_tensor(item).detach()


def _hand_over(planner: LoadPlanner, wanted: Wanted, done: Future[list[list[bytes | None]]]) -> None:
    for (piece, targets), contents in zip(wanted, done.result()):
        for item, target, content in zip(piece.items, targets, contents):
            if target is None:
                planner.load_bytes(item, io.BytesIO(content or b""))
            else:
                planner.commit_tensor(item, target)
