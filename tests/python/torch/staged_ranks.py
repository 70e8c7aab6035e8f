"""Two ranks stage a save that is written slowly, and then do nothing until they are killed. python staged_ranks.py FOLDER, with
RANK and the rest of the environment set."""

import pathlib
import sys
import threading

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from tspool.torch import StorageWriter, async_save

folder = pathlib.Path(sys.argv[1])
dist.init_process_group("gloo")
state = {"w": distribute_tensor(torch.arange(2_000_000.0), init_device_mesh("cpu", (2,)), [Shard(0)]), "step": 5}
upload = async_save(state, storage_writer=StorageWriter(folder / "step-5", arena_bytes=64 << 20, bytes_per_second=2 << 20))
assert not upload.done()
print("staged", flush=True)
threading.Event().wait()
