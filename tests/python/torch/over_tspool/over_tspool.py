"""A pytest plugin (-p over_tspool) for torch_checkpointing's own tests: where they name its local storage, they get ours."""

from dataclasses import dataclass
from typing import Any

from torch_checkpointing.storage import filesystem

from tspool.torch_checkpointing import TspoolStorage, TspoolStorageConfig

MADE: list[str] = []


@dataclass
class LocalFileSystemStorageConfig(TspoolStorageConfig):
    use_direct_io: bool = True

    def create_storage(self) -> TspoolStorage:
        return LocalFileSystemStorage(config=self)


class LocalFileSystemStorage(TspoolStorage):
    """Also of a config whose class was imported before this plugin: that one asks for this name when it makes its storage."""

    def __init__(self, config: Any) -> None:
        super().__init__(config if isinstance(config, TspoolStorageConfig) else TspoolStorageConfig())
        MADE.append(type(self).__name__)


filesystem.LocalFileSystemStorageConfig = LocalFileSystemStorageConfig
filesystem.LocalFileSystemStorage = LocalFileSystemStorage


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"storages made over tspool: {len(MADE)}")
