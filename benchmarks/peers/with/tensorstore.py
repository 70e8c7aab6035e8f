"""tensorstore: a zarr array for each tensor, uncompressed, all written at once. It syncs every file and directory itself."""
from __future__ import annotations

import pathlib
from typing import Any

from peer import Peer, State


def spec(path: pathlib.Path, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path / name)},
            "metadata": {"compressor": None, "dtype": "<f4", "shape": list(shape), "chunks": list(shape)}}


class Tensorstore(Peer):
    name = "tensorstore zarr raw"
    modules = ("tensorstore",)
    distribution = "tensorstore"
    syncs_files = syncs_folders = True
    syncs = "files and directories"
    publishes = "each file renamed"

    def save(self, path: pathlib.Path) -> None:
        import tensorstore
        opened = [tensorstore.open(spec(path, name, tuple(tensor.shape)), create=True) for name, tensor in self.state.items()]
        written = [array.result().write(tensor.numpy()) for array, tensor in zip(opened, self.state.values())]
        for future in written:
            future.result()

    def load(self, path: pathlib.Path) -> State:
        import tensorstore
        import torch
        opened = {name: tensorstore.open(spec(path, name, tuple(tensor.shape))) for name, tensor in self.state.items()}
        read = {name: array.result().read() for name, array in opened.items()}
        return {name: torch.from_numpy(future.result()) for name, future in read.items()}


PEERS = [Tensorstore]
