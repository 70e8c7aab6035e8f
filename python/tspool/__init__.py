"""tspool writes training checkpoints beside the training, whole or not at all.

    with tspool.Spool("/nvme/run-17") as spool:
        save = spool.save("step-00001000", state_dict, metadata={"step": 1000})
        ...                                         # training goes on; tensors may change
        save.wait_durable()

    state_dict = tspool.load(tspool.latest("/nvme/run-17"))

Importing it needs neither torch nor numpy. See docs/PYTHON.md.
"""

from tspool._checkpoint import Checkpoint, Damage, Entry, Info, Object, VerifyReport, latest, verify
from tspool._errors import (
    ConsentError,
    DamagedError,
    EarlierSaveError,
    Error,
    LoadError,
    MismatchError,
    NotFoundError,
    SaveError,
    SpoolError,
    StreamError,
    UnknownOutcomeError,
    UnsupportedError,
    WaitTimeout,
)
from tspool._leaves import Tensor
from tspool._load import load
from tspool._save import Save, SaveResult
from tspool._spool import CloseReport, OpenReport, Spool, publish
from tspool._stream import Stream, open
from tspool._tspool import version as _version

__version__ = _version()

__all__ = [
    "Checkpoint",
    "CloseReport",
    "ConsentError",
    "Damage",
    "DamagedError",
    "EarlierSaveError",
    "Entry",
    "Error",
    "Info",
    "LoadError",
    "MismatchError",
    "NotFoundError",
    "Object",
    "OpenReport",
    "Save",
    "SaveError",
    "SaveResult",
    "Spool",
    "SpoolError",
    "Stream",
    "StreamError",
    "Tensor",
    "UnknownOutcomeError",
    "UnsupportedError",
    "VerifyReport",
    "WaitTimeout",
    "latest",
    "load",
    "open",
    "publish",
    "verify",
]
