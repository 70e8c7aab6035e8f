"""tspool's own API: `Spool.save`, staging now or in the background."""
from __future__ import annotations

import pathlib
from typing import Any

from peer import Peer, State


class SpoolNow(Peer):
    name = "tspool Spool.save"
    modules = ("tspool",)
    distribution = "tspool"
    syncs_files = syncs_folders = True
    syncs = "files and directories"
    publishes = "directory renamed"
    is_async = True
    staging = "now"

    def open(self) -> None:
        import tspool
        self.spool = tspool.Spool(str(self.folder))
        self.spool.reserve(self.size)

    def save(self, path: pathlib.Path) -> None:
        self.pending: Any = self.spool.save(path.name, self.state, staging=self.staging)

    def wait(self) -> None:
        self.pending.wait_published()

    def load(self, path: pathlib.Path) -> State:
        import tspool
        return dict(tspool.load(str(path)))

    def close(self) -> None:
        self.spool.close()


class SpoolBackground(SpoolNow):
    """The call returns at once, but the tensors may be changed only after wait_staged: that is the stall of a loop that does
    nothing between; one whose backward pass runs meanwhile waits less."""
    name = "tspool Spool.save background"
    staging = "background"
    loads = False    # what Spool.save wrote is the same

    def save(self, path: pathlib.Path) -> None:
        super().save(path)
        self.pending.wait_staged()


PEERS = [SpoolNow, SpoolBackground]
