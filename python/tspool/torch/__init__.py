"""tspool for PyTorch: writers and readers for `torch.distributed.checkpoint`.

    from tspool.torch import FileSystemReader, FileSystemWriter     # torch's files, written as streams

    dcp.save(state_dict, storage_writer=FileSystemWriter("/nvme/run-17/step-00001000"))
    dcp.load(state_dict, storage_reader=FileSystemReader("/nvme/run-17/step-00001000"))

See docs/PYTHON.md.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("tspool.torch needs PyTorch (2.13 or later): pip install torch", name="torch") from error

from tspool._stream import open
from tspool.torch._filesystem import FileSystemReader, FileSystemWriter
from tspool.torch._huggingface import HuggingFaceStorageReader, HuggingFaceStorageWriter

__all__ = [
    "FileSystemReader",
    "FileSystemWriter",
    "HuggingFaceStorageReader",
    "HuggingFaceStorageWriter",
    "open",
]
