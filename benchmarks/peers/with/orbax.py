"""orbax-checkpoint: what JAX users have; numpy arrays here, by its asynchronous checkpointer."""
from __future__ import annotations

import pathlib

from peer import Peer, State


class Orbax(Peer):
    name = "orbax async"
    modules = ("orbax.checkpoint",)
    distribution = "orbax-checkpoint"
    syncs_files = syncs_folders = True
    syncs = "files and directories"
    publishes = "directory renamed"
    is_async = True

    def open(self) -> None:
        import orbax.checkpoint
        self.checkpointer = orbax.checkpoint.AsyncCheckpointer(orbax.checkpoint.PyTreeCheckpointHandler())

    def save(self, path: pathlib.Path) -> None:
        self.checkpointer.save(path.resolve(), {name: tensor.numpy() for name, tensor in self.state.items()})

    def wait(self) -> None:
        self.checkpointer.wait_until_finished()

    def load(self, path: pathlib.Path) -> State:
        import numpy
        import orbax.checkpoint
        import torch
        kinds = {name: orbax.checkpoint.RestoreArgs(restore_type=numpy.ndarray) for name in self.state}
        found = self.checkpointer.restore(path.resolve(), restore_args=kinds)
        return {name: torch.from_numpy(numpy.asarray(array)) for name, array in found.items()}

    def close(self) -> None:
        self.checkpointer.close()


PEERS = [Orbax]
