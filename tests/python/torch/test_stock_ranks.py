"""Two processes under torchrun: sharded tensors, plans, failures of one rank, and torch's own process for asynchronous saves."""

import os
import pathlib
import signal
import subprocess
import sys

import torch
import torch.distributed.checkpoint as dcp
from stock_help import assert_same, load
from stock_ranks import CHECKS

HERE = pathlib.Path(__file__).parent


def test_two_ranks(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(HERE / "stock_ranks.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [check.__name__ for check in CHECKS]


DIES = """
import gc, os, signal, sys, warnings
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from tspool.torch import FileSystemWriter
warnings.simplefilter("ignore")
folder, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
state = {f"rank {rank}": torch.zeros(1000), "both": torch.zeros(5)}
dcp.save(state, storage_writer=FileSystemWriter(folder))
before = sorted(os.listdir(folder))
state = {name: tensor + 1 for name, tensor in state.items()}

class Dies(FileSystemWriter):
    def write_data(self, plan, planner):
        done = super().write_data(plan, planner)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

writer = Dies(folder)
try:
    dcp.save(state, storage_writer=writer)
except BaseException as error:
    print(type(error).__name__)
writer.reset()
mine = [name for name in os.listdir(folder) if name.startswith("__0_")]
assert mine == [name for name in before if name.startswith("__0_")], mine
"""


def test_a_rank_that_is_killed_leaves_the_checkpoint_and_an_error(tmp_path, script):
    folder = tmp_path / "checkpoint"
    survivor, killed = (script(DIES, folder, tmp_path / "store", rank) for rank in range(2))
    killed.end(-signal.SIGKILL)
    assert survivor.end()[0].strip(), "told, and not left waiting"
    old = {"rank 0": torch.zeros(1000), "rank 1": torch.zeros(1000), "both": torch.zeros(5)}
    assert_same(load(old, dcp.FileSystemReader(folder)), old)
