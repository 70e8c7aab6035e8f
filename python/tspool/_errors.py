"""What can go wrong, as exceptions that carry the C library's failure record.

Error
|-- SpoolError               opening a spool, its memory, its writer; a closed spool; a spool used in a forked child
|-- SaveError                a save was refused or failed; nothing of it is left, older checkpoints stand
|   |-- UnsupportedError     something in the state dict cannot be stored (also a TypeError)
|   |-- EarlierSaveError     an earlier save failed and nobody had looked: told once, by the next save
|   |-- StreamError          a file that tspool.open wrote (also an OSError; FileNotFoundError, ... where that is what it is)
|   `-- UnknownOutcomeError  an error struck after the rename began: open the checkpoint to find out
|-- LoadError                a checkpoint cannot be read
|   |-- NotFoundError        no such checkpoint, tensor or object (also a FileNotFoundError)
|   |-- MismatchError        names, dtypes or shapes are not those of `into`; nothing was read
|   |-- ConsentError         a pickle, and `pickle=True` was not given
|   `-- DamagedError         bytes disagree with their digests, or a file with its format
`-- WaitTimeout              not in time (also a TimeoutError); the save goes on
"""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tspool._checkpoint import VerifyReport


class Error(Exception):
    """Base of all. The fields are those of the failure record; None or empty where there is nothing to say."""

    def __init__(
        self,
        message: str = "",
        *,
        errno: int = 0,
        stage: str = "",
        operation: str = "",
        tensor: str = "",
        path: str = "",
        file_offset: int | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.errno = errno
        self.stage = stage
        self.operation = operation
        self.tensor = tensor
        self.path = path
        self.file_offset = file_offset
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:  # records travel between processes
        return (_rebuild, (type(self), {field: getattr(self, field) for field in FIELDS}))


FIELDS = ("message", "errno", "stage", "operation", "tensor", "path", "file_offset", "cause")


def _rebuild(kind: type[Error], fields: dict[str, object]) -> Error:
    return kind(**fields)  # type: ignore[arg-type]


class SpoolError(Error):
    """The spool could not be opened or used."""


class SaveError(Error):
    """A save was refused, failed or was aborted. Older checkpoints stand."""


class UnsupportedError(SaveError, TypeError):
    """Something in the state dict cannot be stored; `tensor` names it."""


class EarlierSaveError(SaveError):
    """An earlier save failed and nobody had looked. The save that was asked for was not begun: ask again."""


class UnknownOutcomeError(SaveError):
    """The checkpoint may or may not stand: an error struck after its rename began. Nothing was removed."""


class StreamError(SaveError, OSError):  # type: ignore[misc]
    """A file that is written through tspool.open. Unless the message says otherwise, what had its name stands as it was."""

    def __init__(self, message: str = "", **fields: object) -> None:
        Error.__init__(self, message, **fields)  # type: ignore[arg-type]
        self.filename = self.path or None
        self.strerror = message

    def __str__(self) -> str:
        return self.message


class _StreamNotFound(StreamError, FileNotFoundError):  # type: ignore[misc]
    pass


class _StreamExists(StreamError, FileExistsError):  # type: ignore[misc]
    pass


class _StreamPermission(StreamError, PermissionError):  # type: ignore[misc]
    pass


class _StreamIsADirectory(StreamError, IsADirectoryError):  # type: ignore[misc]
    pass


_STREAM_KINDS: dict[int, type[StreamError]] = {
    _errno.ENOENT: _StreamNotFound,
    _errno.EEXIST: _StreamExists,
    _errno.EACCES: _StreamPermission,
    _errno.EISDIR: _StreamIsADirectory,
}


class LoadError(Error):
    """A checkpoint could not be read."""


class NotFoundError(LoadError, FileNotFoundError):  # type: ignore[misc]
    """There is no checkpoint, tensor or object of that name."""

    def __init__(self, message: str = "", **fields: object) -> None:
        Error.__init__(self, message, **fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.message


class MismatchError(LoadError):
    """What was given to load into is not what was saved. Nothing was read."""


class ConsentError(LoadError):
    """The checkpoint holds a pickle, which can run any code when it is loaded: only with pickle=True."""


class DamagedError(LoadError):
    """Bytes disagree with their digests, or a file with its format. `tensor`, `path` and `file_offset` say where.
    Of a verify, `report` has every finding."""

    report: VerifyReport | None = None


class WaitTimeout(Error, TimeoutError):  # type: ignore[misc]
    """Not in time. The save goes on."""

    def __init__(self, message: str = "", **fields: object) -> None:
        Error.__init__(self, message, **fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.message


_KINDS: dict[str, type[Error]] = {"open": SpoolError, "closed": SpoolError, "save": SaveError, "load": LoadError}


def _class_of(kind: str, error: int) -> type[Error]:
    if kind == "stream":
        return _STREAM_KINDS.get(error, StreamError)
    if kind == "save" and error == _errno.ESTALE:
        return UnknownOutcomeError
    if kind == "load" and error == _errno.EBADMSG:
        return DamagedError
    if kind == "load" and error == _errno.ENOENT:
        return NotFoundError
    return _KINDS[kind]


def of_record(
    kind: str, error: int, stage: str, operation: str, tensor: str, path: str, file_offset: int | None, cause: str, message: str
) -> Error:
    """The exception for a failure record. Called by the extension."""
    if kind == "closed":
        message = "it is closed: open another"
    elif not message:
        message = os.strerror(error)
    return _class_of(kind, error)(
        message,
        errno=error,
        stage="" if stage == "none" else stage,
        operation=operation,
        tensor=tensor,
        path=path,
        file_offset=file_offset,
        cause=cause,
    )
