"""DeepSpeed's FastPersist: torch.save into FastFileWriter (O_DIRECT, libaio, two buffers), and that writer fed raw bytes.

Its native operation takes minutes and libaio-dev to compile: `run` does it, this does not.
"""
from __future__ import annotations

import os
import pathlib
from typing import Any

from peer import LeftOut, Peer, State

BUFFER = 256 << 20


class FastPersist(Peer):
    name = "DeepSpeed FastPersist"
    modules = ("deepspeed", "torch")
    distribution = "deepspeed"
    syncs_files = True
    syncs = "file; no directory"

    def open(self) -> None:
        import torch
        from deepspeed.ops.op_builder import AsyncIOBuilder
        builds = pathlib.Path(os.environ.get("TORCH_EXTENSIONS_DIR", pathlib.Path.home() / ".cache/torch_extensions"))
        if not list(builds.rglob("async_io.so")):
            raise LeftOut("its native operation is not compiled: run does so if libaio-dev and a C++ compiler are there")
        import deepspeed.io.fast_file_writer as module

        class Utils:    # the CPU accelerator lacks this operation; a view does the same
            def load(self) -> Any:
                return self

            @staticmethod
            def cast_to_byte_tensor(tensors: Any) -> Any:
                def cast(tensor: Any) -> Any:
                    return tensor.contiguous().reshape(-1).view(torch.uint8)
                return [cast(tensor) for tensor in tensors] if isinstance(tensors, list) else cast(tensors)
        module.UtilsBuilder = Utils
        self.handle = AsyncIOBuilder().load().aio_handle(block_size=1 << 20, queue_depth=32, single_submit=False,
                                                         overlap_events=True, intra_op_parallelism=1)
        self.buffer = self.handle.new_cpu_locked_tensor(BUFFER, torch.empty(0, dtype=torch.uint8))

    def writer(self, path: pathlib.Path) -> Any:
        from deepspeed.io import FastFileWriter, FastFileWriterConfig
        return FastFileWriter(str(path), FastFileWriterConfig(dnvme_handle=self.handle, pinned_tensor=self.buffer))

    def save(self, path: pathlib.Path) -> None:
        import torch
        writer = self.writer(path)
        torch.save(self.state, writer)
        writer.close()

    def load(self, path: pathlib.Path) -> State:
        import torch
        return dict(torch.load(path, weights_only=True))


class FastFileWriterRaw(FastPersist):
    name = "DeepSpeed FastFileWriter, raw"
    loads = False

    def save(self, path: pathlib.Path) -> None:
        writer = self.writer(path)
        for tensor in self.state.values():
            writer.write(memoryview(tensor.numpy()).cast("B"))
        writer.close()


PEERS = [FastPersist, FastFileWriterRaw]
