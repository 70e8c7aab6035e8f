"""Files and directories as a checkpointing framework wants them: whole files read fast, streams written durably, names that hold
after a power cut. What tspool.torch_checkpointing gives its framework; it needs neither that nor torch.

Durable means: a directory is synced after each change of a name in it, before the call returns.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import mmap
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tspool import _tspool
from tspool._spool import Io
from tspool._stream import Stream
from tspool._stream import open as open_stream

if TYPE_CHECKING:
    from typing_extensions import Buffer

ALIGN = 4096  # of O_DIRECT: no device asks for more
_BOUNCE = 1 << 20
_CHUNK = 8 << 20  # of a file that is read by several threads
_SMALL = 1 << 20  # below it one plain read is as fast
_HIDDEN = re.compile(r"\..+\.tspool-[0-9a-f]{16}\.partial")


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Names made, changed and removed in it are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading ----------------------------------------------------------------------------------------------------------


def _open_read(path: str | os.PathLike[str], direct: bool) -> tuple[int, bool]:
    """A descriptor, and whether it is O_DIRECT: not where the file system refuses that."""
    if direct:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def _bounce_read(descriptor: int, into: memoryview, position: int) -> int:
    """O_DIRECT to memory and from places of any alignment: the aligned cover is read, and what was asked for copied."""
    first = position - position % ALIGN
    skip = position - first
    size = min(_BOUNCE, -(-(skip + len(into)) // ALIGN) * ALIGN)
    with mmap.mmap(-1, size) as bounce:
        got = os.preadv(descriptor, [bounce], first) - skip
        got = max(0, min(got, len(into)))
        into[:got] = bounce[skip : skip + got]
    return got


def _direct_read(descriptor: int, into: memoryview, position: int) -> int:
    whole = len(into) - len(into) % ALIGN
    if whole and position % ALIGN == 0 and _tspool.Memory(into).address % ALIGN == 0:
        return os.preadv(descriptor, [into[:whole]], position)
    return _bounce_read(descriptor, into, position)


def _read_fully(descriptor: int, direct: bool, into: memoryview, position: int) -> int:
    """Until it is full or the file ends."""
    done = 0
    while done < len(into):
        rest = into[done:]
        if direct:
            got = _direct_read(descriptor, rest, position + done)
        else:
            got = os.preadv(descriptor, [rest], position + done)
        if got == 0:
            break
        done += got
    return done


def _without_direct(path: str | os.PathLike[str], into: memoryview, position: int) -> int:
    descriptor, _ = _open_read(path, False)
    try:
        return _read_fully(descriptor, False, into, position)
    finally:
        os.close(descriptor)


def _read_range(path: str | os.PathLike[str], descriptor: int, direct: bool, into: memoryview, position: int) -> int:
    """As _read_fully; a file system that opens with O_DIRECT and then refuses to read so is read without."""
    try:
        return _read_fully(descriptor, direct, into, position)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:
            raise
    return _without_direct(path, into, position)


def fill(path: str | os.PathLike[str], into: memoryview, workers: int, chunk: int, direct: bool) -> int:
    """Reads the file from its beginning into `into`, by several threads at once. Bytes read; fewer when the file ends."""
    descriptor, direct = _open_read(path, direct)
    chunk = -(-chunk // ALIGN) * ALIGN
    try:
        if workers < 2 or len(into) <= chunk:
            return _read_range(path, descriptor, direct, into, 0)
        with ThreadPoolExecutor(workers, "tspool-read") as pool:
            starts = range(0, len(into), chunk)
            return sum(pool.map(lambda at: _read_range(path, descriptor, direct, into[at : at + chunk], at), starts))
    finally:
        os.close(descriptor)


class Reader(io.RawIOBase):
    """A file that is read at any place: `seek` lands where it was asked to, `readinto` fills what it is given."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._position = 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check()
        return self._position

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in bases:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if bases[whence] + offset < 0:
            raise ValueError(f"cannot seek to {bases[whence] + offset}")
        self._position = bases[whence] + offset
        return self._position

    def _read_at(self, into: memoryview, position: int) -> int:
        raise NotImplementedError

    def readinto(self, buffer: Any, /) -> int:
        self._check()
        with memoryview(buffer) as view, view.cast("B") as into:
            size = max(0, min(len(into), self._size - self._position))
            got = self._read_at(into[:size], self._position)
        self._position += got
        return got

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        data = bytearray(left if size is None or size < 0 else min(size, left))
        got = self.readinto(data)
        return bytes(memoryview(data)[:got])

    def readall(self) -> bytes:
        return self.read()


class RangedReader(Reader):
    """From the file, range by range, as it is asked for."""

    def __init__(self, path: str | os.PathLike[str], direct: bool) -> None:
        self._descriptor, self._direct = _open_read(path, direct)
        self._path = path
        super().__init__(os.fstat(self._descriptor).st_size, os.fspath(path))

    def _read_at(self, into: memoryview, position: int) -> int:
        return _read_range(self._path, self._descriptor, self._direct, into, position)

    def close(self) -> None:
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)
        super().close()


class WholeReader(Reader):
    """From memory: the file was read when it was opened."""

    def __init__(self, path: str | os.PathLike[str], workers: int, direct: bool) -> None:
        size = os.stat(path).st_size
        self._memory = mmap.mmap(-1, max(size, 1))
        with memoryview(self._memory) as into:
            size = fill(path, into[:size], workers, _CHUNK, direct and size > _SMALL)
        super().__init__(size, os.fspath(path))

    def _read_at(self, into: memoryview, position: int) -> int:
        with memoryview(self._memory) as memory:
            into[:] = memory[position : position + len(into)]
        return len(into)

    def close(self) -> None:
        super().close()
        self._memory.close()


# Names ------------------------------------------------------------------------------------------------------------


def _missing(path: Path) -> Iterator[Path]:
    while not path.exists():
        yield path
        path = path.parent


def make_directory(path: Path, recursive: bool) -> None:
    if not recursive:
        os.mkdir(path)
        sync_directory(path.parent)
        return
    made = [path, *(missing for missing in _missing(path.parent))]
    os.makedirs(path, exist_ok=True)
    for directory in reversed(made):  # also what another thread has just made: when this returns it is there to stay
        sync_directory(directory.parent)


def _copy_file(source: str, destination: str) -> str:
    with open(source, "rb") as reading, open_stream(destination, expected_bytes=os.path.getsize(source)) as writing:
        shutil.copyfileobj(reading, writing, 1 << 22)
    return destination


def _sync_tree(path: Path) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        sync_directory(directory)


def _copy_tree(source: Path, destination: Path) -> None:
    """Under a hidden name until all of it is there; into a directory that stands, file by file."""
    stands = destination.exists()
    to = destination if stands else destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.copy")
    try:
        shutil.copytree(source, to, copy_function=_copy_file, dirs_exist_ok=True)
        _sync_tree(to)
        if not stands:
            os.rename(to, destination)
    except BaseException:
        if not stands:
            shutil.rmtree(to, ignore_errors=True)
        raise


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path)
    sync_directory(path.parent)


def move(source: Path, destination: Path, cleanup_beside: bool) -> None:
    """One rename. To another file system: a copy, and then the source goes, on a thread of its own with `cleanup_beside`."""
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(source, destination, cleanup_beside)
    else:
        sync_directory(destination.parent)
        if source.parent != destination.parent:
            sync_directory(source.parent)


def _move_across(source: Path, destination: Path, cleanup_beside: bool) -> None:
    if not source.is_dir():
        _copy_file(os.fspath(source), os.fspath(destination))
        os.remove(source)
        sync_directory(source.parent)
        return
    _copy_tree(source, destination)
    sync_directory(destination.parent)
    if cleanup_beside:
        threading.Thread(target=_remove_tree, args=(source,), name="tspool-cleanup").start()
    else:
        _remove_tree(source)


class Files:
    """The operations of a storage. Safe to be used by several threads at once."""

    def __init__(
        self,
        *,
        io: Io = "auto",
        buffered: bool = False,
        block_bytes: int = 0,
        depth: int = 0,
        direct_reads: bool = True,
        read_threads: int = 4,
    ) -> None:
        self._options: dict[str, Any] = {"io": io, "buffered": buffered, "block_bytes": block_bytes, "depth": depth}
        self._direct_reads = direct_reads
        self._read_threads = read_threads

    # Files

    def stream_read(self, path: str | os.PathLike[str], read_args: Any = None) -> Reader:
        """read_args: with pre_read_full_file (the default) the file is read now, by several threads; else as it is asked for,
        past the page cache with direct_io."""
        if read_args is None or read_args.pre_read_full_file:
            direct = self._direct_reads or (read_args is not None and read_args.direct_io)
            return WholeReader(path, self._read_threads, direct)
        return RangedReader(path, read_args.direct_io)

    def read(self, path: str | os.PathLike[str], read_args: Any = None) -> bytes:
        with self.stream_read(path, read_args) as file:
            return file.read()

    def _stream(self, path: str | os.PathLike[str], expected_bytes: int) -> Stream:
        try:
            return open_stream(path, expected_bytes=expected_bytes, **self._options)
        except FileNotFoundError as error:
            raise RuntimeError(f"Parent directory does not exist, create it: {Path(path).parent}") from error

    def stream_write(self, path: str | os.PathLike[str]) -> Stream:
        return self._stream(path, 0)

    def write(self, path: str | os.PathLike[str], data: Buffer) -> None:
        with memoryview(data) as view, self._stream(path, view.nbytes) as stream:
            stream.write(view)

    def delete(self, path: str | os.PathLike[str]) -> None:
        os.remove(path)
        sync_directory(Path(path).parent)

    def getsize(self, path: str | os.PathLike[str]) -> int:
        return os.path.getsize(path)

    # Directories

    def mkdir(self, path: str | os.PathLike[str], recursive: bool = True) -> None:
        make_directory(Path(path), recursive)

    def rmdir(self, path: str | os.PathLike[str]) -> None:
        """With all that is in it."""
        _remove_tree(Path(path))

    def rename(
        self,
        src_path: str | os.PathLike[str],
        dst_path: str | os.PathLike[str],
        is_directory: bool = False,
        is_cross_link: bool = False,
        background_cleanup: bool = False,
    ) -> None:
        """The commit of a checkpoint: durable when it returns. A directory that has the name and is not empty stays as it is, and
        this raises. Across file systems it is a copy that gets its name at the end; then too."""
        move(Path(src_path), Path(dst_path), background_cleanup)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [name for name in os.listdir(path) if not _HIDDEN.fullmatch(name)]

    def glob(self, pattern: str) -> list[str]:
        directory, name = os.path.split(pattern)
        with contextlib.suppress(OSError):
            return [os.path.join(directory, entry) for entry in fnmatch.filter(self.ls(directory or "."), name)]
        return []

    # Names

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return os.path.exists(path)

    def isdir(self, path: str | os.PathLike[str]) -> bool:
        return os.path.isdir(path)

    def remap_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)
