"""torch.distributed.checkpoint.async_save: in a thread or a process, with its defaults or with the cached shared-memory stager.

That stager is one option object, kept between saves, and the difference between the slowest and the best stall.
"""
from __future__ import annotations

import importlib
import pathlib
from typing import Any

from peer import process_group
Dcp = importlib.import_module("with.dcp").Dcp   # "with" is a word of the language


class Async(Dcp):
    is_async = True
    loads = False    # dcp.save's files
    kind = "THREAD"
    cached = False

    def open(self) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        process_group()
        self.stager: Any = None
        if self.cached:
            self.stager = DefaultStager(StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=False,
                                                       use_non_blocking_copy=False))

    def save(self, path: pathlib.Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
        more = {"async_stager": self.stager} if self.cached else {}
        self.pending: Any = dcp.async_save(self.state, checkpoint_id=path,
                                           async_checkpointer_type=getattr(AsyncCheckpointerType, self.kind), **more)

    def wait(self) -> None:
        getattr(self.pending, "upload_completion", self.pending).result()


class Thread(Async):
    name = "dcp async THREAD"


class Process(Async):
    name = "dcp async PROCESS"
    kind = "PROCESS"


class ThreadCached(Async):
    name = "dcp async THREAD, cached shm"
    cached = True


class ProcessCached(Async):
    name = "dcp async PROCESS, cached shm"
    kind, cached = "PROCESS", True


PEERS = [ThreadCached, ProcessCached, Thread, Process]
