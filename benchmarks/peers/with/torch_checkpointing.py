"""torch_checkpointing: staging into shared memory, a process that writes. Its default, direct I/O, fails on ext4: it is off."""
from __future__ import annotations

import pathlib
from typing import Any

from peer import Peer, State, empty_like


def holding(value: State | None) -> Any:
    from torch_checkpointing import CheckpointBase, CheckpointItem

    class Holder(CheckpointBase):
        def __init__(self) -> None:
            self.value = value

        def get_items(self) -> dict[str, Any]:
            return {"state": CheckpointItem(value=self.value)}

        def load_state_dict(self, state_dict: Any) -> None:
            self.value = state_dict["state"]

    return Holder()


class TorchCheckpointing(Peer):
    name = "torch_checkpointing async"
    modules = ("torch_checkpointing",)
    distribution = "torch_checkpointing"
    publishes = "no (one rank: in place)"
    is_async = True

    def open(self) -> None:
        from torch_checkpointing import make_async_checkpoint_saver
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
        self.saver = make_async_checkpoint_saver(storage_config=LocalFileSystemStorageConfig(use_direct_io=False))

    def save(self, path: pathlib.Path) -> None:
        staged, self.written = self.saver.save(str(path), holding(self.state))
        staged.result()

    def wait(self) -> None:
        self.written.result()

    def load(self, path: pathlib.Path) -> State:
        from torch_checkpointing import CheckpointLoader, CheckpointReader
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig
        from torch_checkpointing.types import RankInfo
        reader = CheckpointReader(rank_info=RankInfo(global_world_size=1, global_rank=0, role_rank=0, role_world_size=1),
                                  storage_config=LocalFileSystemStorageConfig(use_direct_io=False))
        held = holding(empty_like(self.state))
        CheckpointLoader(reader=reader).load(str(path), held)
        return dict(held.value)

    def close(self) -> None:
        self.saver.close()


PEERS = [TorchCheckpointing]
