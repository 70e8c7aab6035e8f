"""NVIDIA's resiliency extension: DCP planned in the trainer, written by processes that live on between saves."""
from __future__ import annotations

import pathlib
from typing import Any

from peer import Peer, State, process_group


class Nvrx(Peer):
    name = "NVRx async"
    modules = ("nvidia_resiliency_ext", "torch")
    distribution = "nvidia-resiliency-ext"
    syncs_files = True
    syncs = "data and .metadata; no directory"
    publishes = ".metadata renamed"
    is_async = True

    def open(self) -> None:
        import torch
        from nvidia_resiliency_ext.checkpointing.async_ckpt.core import AsyncCallsQueue
        process_group()
        if not torch.cuda.is_available():    # it asks CUDA to finish, whatever there is to finish
            torch.cuda.synchronize = lambda *_: None
        self.queue: Any = AsyncCallsQueue(persistent=False)    # the persistent one asks CUDA for its device

    def save(self, path: pathlib.Path) -> None:
        from nvidia_resiliency_ext.checkpointing.async_ckpt import core, filesystem_async, state_dict_saver
        path.mkdir(exist_ok=True)
        writer = filesystem_async.FileSystemWriterAsync(path, thread_count=2)
        planned = state_dict_saver.save_state_dict_async_plan(self.state, writer)
        run, preload, arguments = writer.get_save_function_and_args()
        request = core.AsyncRequest(run, arguments, [lambda: state_dict_saver.save_state_dict_async_finalize(*planned)], {},
                                    preload)
        self.queue.schedule_async_request(request)

    def wait(self) -> None:
        self.queue.maybe_finalize_async_calls(blocking=True, no_dist=True)

    def load(self, path: pathlib.Path) -> State:
        import torch.distributed.checkpoint as dcp
        from peer import empty_like
        state = empty_like(self.state)
        dcp.load(state, checkpoint_id=path, no_dist=True)
        return state

    def close(self) -> None:
        self.queue.close()


PEERS = [Nvrx]
