"""torch.distributed.checkpoint.save with its own FileSystemWriter."""
from __future__ import annotations

import pathlib

from peer import Peer, State, empty_like


class Dcp(Peer):
    name = "dcp.save"
    modules = ("torch",)
    distribution = "torch"
    syncs_files = True
    syncs = "data and .metadata; no directory"
    publishes = ".metadata renamed"
    threads = 1

    def save(self, path: pathlib.Path) -> None:
        import torch.distributed.checkpoint as dcp
        dcp.save(self.state, storage_writer=dcp.FileSystemWriter(path, thread_count=self.threads), no_dist=True)

    def load(self, path: pathlib.Path) -> State:
        import torch.distributed.checkpoint as dcp
        state = empty_like(self.state)
        dcp.load(state, checkpoint_id=path, no_dist=True)
        return state


class DcpTwoThreads(Dcp):
    name = "dcp.save, 2 threads"
    threads = 2


PEERS = [Dcp, DcpTwoThreads]
