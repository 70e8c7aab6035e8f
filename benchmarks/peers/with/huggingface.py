"""torch.distributed.checkpoint's HuggingFaceStorageWriter: safetensors, each file put together in memory."""
from __future__ import annotations

import pathlib

from peer import Peer, State, empty_like


class HuggingFace(Peer):
    name = "dcp HuggingFaceStorageWriter"
    modules = ("torch", "safetensors")
    distribution = "torch"
    syncs = "data; not the index"

    def save(self, path: pathlib.Path) -> None:
        import torch.distributed.checkpoint as dcp
        dcp.save(self.state, storage_writer=dcp.HuggingFaceStorageWriter(path=str(path)), no_dist=True)

    def load(self, path: pathlib.Path) -> State:
        import torch.distributed.checkpoint as dcp
        state = empty_like(self.state)
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(path=str(path)), no_dist=True)
        return state


PEERS = [HuggingFace]
