"""A file object over the engine: for torch.save, pickle, and whatever else writes a file in order."""

from __future__ import annotations

import io as _io
import os
import sys
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tspool import _tspool
from tspool._spool import IO, Io, choose

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MODES = {"wb": 0, "xb": 1}
_PIECE = bytes(65536)


def open(
    path: str | os.PathLike[str],
    mode: str = "wb",
    *,
    replace: bool = True,
    io: Io = "auto",
    buffered: bool = False,
    expected_bytes: int = 0,
    block_bytes: int = 0,
    depth: int = 0,
) -> Stream:
    """A file to be written in order: past the page cache, under a hidden name until it is closed, durable then.

    mode: "wb", or "xb" for replace=False: a file that has the name makes this a FileExistsError, now or at the close.
    expected_bytes: how long it will be, where that is known. block_bytes, depth: of the writes in flight; 0: 1 MiB, 16.
    """
    only_new = bool(choose(_MODES, "mode", mode))
    handle = _tspool.Stream(
        os.fsencode(path), choose(IO, "io", io), block_bytes, depth, expected_bytes, only_new or not replace, buffered
    )
    return Stream(handle, os.fspath(path), mode)


def _exception_now() -> BaseException | None:
    return sys.exc_info()[1]


class Stream(_io.RawIOBase):
    """What tspool.open gives. `close` commits: the file has its name, durably, when it returns. An exception inside `with`
    aborts, and so does leaving a stream to the garbage collector: then there is no trace of it, and an older file stands.

    One that wraps it (io.BufferedWriter, contextlib.closing) closes it even when it failed: so a `close` during the handling of
    an exception that came after the opening aborts as well, with a warning. `commit` commits in any case.
    """

    def __init__(self, handle: _tspool.Stream, name: str, mode: str) -> None:
        self._handle = handle
        self._over = False
        self._exception_at_open = _exception_now()
        self.name = name
        self.mode = mode

    def __repr__(self) -> str:
        return f"<tspool.Stream {self.name!r}{' closed' if self._over else ''}>"

    # Writing -------------------------------------------------------------------------------------------------------

    def writable(self) -> bool:
        self._check()
        return True

    def write(self, data: Buffer, /) -> int:
        """All of it. Any contiguous buffer; its memory may change afterwards."""
        return self._handle.write(data)

    def tell(self) -> int:
        self._check()
        return self._handle.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Forward from where it stands, and zeros are written; nothing else."""
        self._check()
        if whence != os.SEEK_CUR or offset < 0:
            raise _io.UnsupportedOperation("a stream is written in order: seek(n, os.SEEK_CUR) forward is all there is")
        for begin in range(0, offset, len(_PIECE)):
            self.write(memoryview(_PIECE)[: offset - begin])
        return self.tell()

    def readinto(self, buffer: Any, /) -> int:
        raise _io.UnsupportedOperation("a stream is only written")

    def flush(self) -> None:
        """Nothing to do: nobody else sees the file before it is closed. See `sync`."""
        self._check()

    def sync(self) -> None:
        """What was written so far is on the disk, under the hidden name."""
        self._handle.sync()

    fsync = sync  # as multi-storage-client's files have it

    def fileno(self) -> int:
        """For `os.fsync(file.fileno())`: syncs, and gives a descriptor of the hidden file, for reading only. A write by anybody
        else would come into the middle, so who writes to descriptors (numpy's tofile, torch.save's old format) gets EBADF."""
        self._check()
        return self._handle.fileno()

    # The end -------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._over

    def _check(self) -> None:
        if self._over:
            raise ValueError("I/O operation on a closed stream")

    def commit(self) -> None:
        """Durable under its name when it returns; nothing of it is left when it raises. Closes the stream."""
        self._check()
        self._over = True
        self._handle.commit()

    def abort(self) -> None:
        """As if it had never been opened. Closes the stream; nothing on one that is closed."""
        if not self._over:
            self._over = True
            self._handle.abort()

    def close(self) -> None:
        """commit(), once."""
        if self._over:
            return
        exception = _exception_now()
        if exception is None or exception is self._exception_at_open:
            self.commit()
            return
        self.abort()
        warnings.warn(
            f"{self.name!r} was closed while {type(exception).__name__} was being handled, and given up: what stood there "
            "stands. Call commit() where it is whole all the same, abort() where it is not",
            RuntimeWarning,
            stacklevel=2,
        )

    def __enter__(self) -> Stream:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _dealloc_warn(self, source: Any) -> None:
        """Python's buffered writers call it when they are collected and not closed: they would close us next."""
        if not self._over:
            warnings.warn(f"unclosed stream {self.name!r}: given up", ResourceWarning, stacklevel=2, source=source)
            self.abort()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._dealloc_warn(self)
