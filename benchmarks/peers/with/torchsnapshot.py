"""torchsnapshot: take and async_take. The latter is no snapshot of large CPU tensors: it reads them after it returned."""
from __future__ import annotations

import pathlib
from typing import Any

from peer import Peer, State, empty_like


class Take(Peer):
    name = "torchsnapshot take"
    modules = ("torchsnapshot", "torch")
    distribution = "torchsnapshot"

    def save(self, path: pathlib.Path) -> None:
        from torchsnapshot import Snapshot, StateDict
        Snapshot.take(str(path), {"state": StateDict(**self.state)})

    def load(self, path: pathlib.Path) -> State:
        from torchsnapshot import Snapshot, StateDict
        state = StateDict(**empty_like(self.state))
        Snapshot(str(path)).restore({"state": state})
        return dict(state)


class AsyncTake(Take):
    name = "torchsnapshot async_take"
    is_async = True
    loads = False

    def save(self, path: pathlib.Path) -> None:
        from torchsnapshot import Snapshot, StateDict
        self.pending: Any = Snapshot.async_take(str(path), {"state": StateDict(**self.state)})

    def wait(self) -> None:
        self.pending.wait()


PEERS = [AsyncTake, Take]
