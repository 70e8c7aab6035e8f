"""What a peer is: something a user could save a state dict with, and the little that one.py needs to know about it.

Each file in with/ holds one peer, or several that differ in an option. Nothing is imported before a peer is opened: what is not
installed is a reason to be left out, not an error.
"""
from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
from typing import Any

State = dict[str, Any]   # name -> tensor


class LeftOut(Exception):
    """Why a peer cannot run here."""


class Peer:
    name = ""
    modules: tuple[str, ...] = ()    # what it imports; the first one's distribution is the version in the table
    distribution = ""
    syncs_files = False              # whether its files are on disk when it says so, without an fsync of ours
    syncs_folders = False
    syncs = "no"                     # the same in words, for the table
    publishes = "no"                 # whether a crash can leave a checkpoint that is half there under its name
    is_async = False
    loads = True

    def __init__(self, state: State, folder: pathlib.Path, size: int) -> None:
        self.state, self.folder, self.size = state, folder, size
        self.seconds: float | None = None    # set by peers that are programs and time themselves
        self.cpu_seconds: float | None = None

    def open(self) -> None:
        """What a trainer does once, before training; outside every clock."""

    def save(self, path: pathlib.Path) -> None:
        """Returns when the tensors may be changed."""
        raise NotImplementedError

    def wait(self) -> None:
        """Returns when the peer says that the save is done."""

    def load(self, path: pathlib.Path) -> State:
        """Tensors by name, as they were saved."""
        raise NotImplementedError

    def close(self) -> None:
        """At the end of training."""


def version_of(peer: type[Peer]) -> str:
    """Of what is installed; LeftOut if something is not."""
    for module in peer.modules:
        if importlib.util.find_spec(module) is None:
            raise LeftOut(f"{module} is not installed")
    if not peer.distribution:
        return ""
    try:
        return importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise LeftOut(f"{peer.distribution} is not installed") from None


def empty_like(state: State) -> State:
    """Memory that a loader reads into, touched: a restarted trainer has its tensors already."""
    import torch
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def process_group() -> None:
    """A group of one, for peers that insist."""
    import torch.distributed as dist
    if not dist.is_initialized():
        import os
        import socket
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        dist.init_process_group("gloo", rank=0, world_size=1)
