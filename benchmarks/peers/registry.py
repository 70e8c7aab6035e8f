"""All peers by name, in the order of the table."""
from __future__ import annotations

import importlib
import pathlib

from peer import Peer

FOLDER = pathlib.Path(__file__).resolve().parent / "with"
ORDER = ("fio", "tspool_spool", "tspool_dcp", "fastpersist", "tensorstore", "numpy", "dcp", "dcp_async", "torch_save",
         "safetensors", "torchsnapshot", "torch_checkpointing", "orbax", "huggingface", "nvrx")


def all_peers() -> dict[str, type[Peer]]:
    found: dict[str, type[Peer]] = {}
    for stem in ORDER:
        module = importlib.import_module(f"with.{stem}")
        for kind in module.PEERS:
            found[kind.name] = kind
    return found


def find(name: str) -> type[Peer]:
    return all_peers()[name]
