"""safetensors.torch.save_file: a temporary file, renamed over the name unsynced."""
from __future__ import annotations

import pathlib

from peer import Peer, State


class SafetensorsSaveFile(Peer):
    name = "safetensors save_file"
    modules = ("safetensors", "torch")
    distribution = "safetensors"
    publishes = "temporary file renamed, unsynced"

    def save(self, path: pathlib.Path) -> None:
        from safetensors.torch import save_file
        save_file(self.state, path)

    def load(self, path: pathlib.Path) -> State:
        from safetensors.torch import load_file
        return dict(load_file(path))


PEERS = [SafetensorsSaveFile]
