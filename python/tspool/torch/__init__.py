"""tspool for PyTorch: `torch.distributed.checkpoint` reads and writes tspool's checkpoints, and its own by our engine.

    from tspool.torch import StorageReader, StorageWriter           # tspool's format
    from tspool.torch import FileSystemReader, FileSystemWriter     # torch's files, written as streams

    dcp.save(state_dict, storage_writer=StorageWriter("/nvme/run-17/step-00001000"))
    dcp.load(state_dict, storage_reader=StorageReader("/nvme/run-17/step-00001000"))

See docs/PYTHON.md, "PyTorch: DCP in tspool's format".
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("tspool.torch needs PyTorch (2.13 or later): pip install torch", name="torch") from error

from tspool._stream import open
from tspool.torch._async import AsyncExecutor, async_save, load, save
from tspool.torch._filesystem import FileSystemReader, FileSystemWriter
from tspool.torch._huggingface import HuggingFaceStorageReader, HuggingFaceStorageWriter
from tspool.torch._install import install, uninstall
from tspool.torch._memory import pin_arena
from tspool.torch._planner import LoadPlanner, SavePlanner
from tspool.torch._reader import StorageReader
from tspool.torch._stager import Stager
from tspool.torch._writer import StorageWriter

__all__ = [
    "AsyncExecutor",
    "FileSystemReader",
    "FileSystemWriter",
    "HuggingFaceStorageReader",
    "HuggingFaceStorageWriter",
    "LoadPlanner",
    "SavePlanner",
    "Stager",
    "StorageReader",
    "StorageWriter",
    "async_save",
    "install",
    "load",
    "open",
    "pin_arena",
    "save",
    "uninstall",
]
