"""Two ranks count to six and save each step; rank 1 is killed while it saves step 4, in the first attempt only. Started again by
torchrun they go on from tspool.latest. python resuming.py FOLDER"""

import os
import pathlib
import signal
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tspool
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from tspool.torch import StorageReader, StorageWriter

root = pathlib.Path(sys.argv[1])
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


class Dying(DefaultSavePlanner):
    def resolve_data(self, item):
        if attempt == 0 and dist.get_rank() == 1 and state["step"] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(item)


dist.init_process_group("gloo")
state = {"w": distribute_tensor(torch.zeros(5), init_device_mesh("cpu", (2,)), [Shard(0)]), "step": 0}
path = tspool.latest(root)
if path is not None:
    dcp.load(state, storage_reader=StorageReader(path))
began = state["step"]
to = StorageWriter(arena_bytes=64 << 20, deadline=30)
while state["step"] < 6:
    state["step"] += 1
    with torch.no_grad():
        state["w"].add_(state["step"])
    to.metadata["step"] = state["step"]
    dcp.save(state, checkpoint_id=root / f"step-{state['step']}", storage_writer=to, planner=Dying())
whole = state["w"].full_tensor()
if dist.get_rank() == 0:
    (root / "told").write_text(f"{attempt} {began} {whole.tolist()}")
dist.barrier()
dist.destroy_process_group()
