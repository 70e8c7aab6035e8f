"""Three ranks save twice; the last is killed in the middle of the second save. python dying_rank.py FOLDER
collectives|apart|background, with RANK and the rest of the environment set: without a launcher, which would end the others."""

import datetime
import os
import pathlib
import signal
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from tspool.torch import StorageWriter, async_save

folder, collectives = pathlib.Path(sys.argv[1]), sys.argv[2] != "apart"


class Dying(DefaultSavePlanner):
    def resolve_data(self, item):
        if dist.get_rank() == 2 and item.index.fqn == "second":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(item)


dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
mesh = init_device_mesh("cpu", (3,))
state = {name: distribute_tensor(torch.arange(9.0), mesh, [Shard(0)]) for name in ("first", "second")}
to = StorageWriter(arena_bytes=64 << 20, deadline=300)
dcp.save(state, checkpoint_id=folder / "step-1", storage_writer=to, use_collectives=collectives)
dist.barrier()
started = time.monotonic()
try:
    if sys.argv[2] == "background":
        async_save(state, checkpoint_id=folder / "step-2", storage_writer=to, planner=Dying()).result()
    else:
        dcp.save(state, checkpoint_id=folder / "step-2", storage_writer=to, planner=Dying(), use_collectives=collectives)
    told = "it went through"
except BaseException as error:
    told = f"{type(error).__name__}: {error}"
(folder / f"told-{dist.get_rank()}").write_text(f"{time.monotonic() - started:.1f} {told}")
while dist.get_rank() == 0 and not (folder / "told-1").exists():  # whose store it is
    assert time.monotonic() - started < 60
    time.sleep(0.01)
os._exit(0)
