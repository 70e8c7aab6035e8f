"""Ranks that are killed: the last checkpoint stands, the others hear of it, and a launch started again goes on from it."""

import os
import select
import socket
import subprocess
import sys
import time

import pytest
import tspool

torch = pytest.importorskip("torch", reason="tspool.torch needs torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from launches import HERE, torchrun  # noqa: E402
from tspool.torch import StorageReader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(count, script, *arguments, **options):
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count),
                   "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
    command = [sys.executable, HERE / script, *map(str, arguments)]
    return [subprocess.Popen(command, env={**environment, "RANK": str(rank)}, **options) for rank in range(count)]


def ranks(count, script, *arguments):
    started = start(count, script, *arguments)
    try:
        return [process.wait(120) for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("mode", ["collectives", "apart", "background"])
def test_a_rank_killed_in_mid_save_leaves_the_last_checkpoint_and_an_error(root, mode):
    assert ranks(3, "dying_rank.py", root, mode) == [0, 0, -9]
    for rank in (0, 1):
        seconds, told = (root / f"told-{rank}").read_text().split(" ", 1)
        assert "it went through" not in told and float(seconds) < 40
        assert mode == "collectives" or "rank 2 died before its part" in told
    assert tspool.latest(root) == str(root / "step-1")
    assert tspool.verify(root / "step-1").damaged == 0 and not (root / "step-2").exists()


def test_what_all_ranks_staged_before_they_were_killed_can_be_published(root):
    started = start(2, "staged_ranks.py", root, stdout=subprocess.PIPE, text=True)
    try:
        assert [process.stdout.readline() for process in started] == ["staged\n", "staged\n"]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    publish = [sys.executable, "-m", "tspool", "publish", str(root / "step-5")]
    deadline = time.monotonic() + 60
    while (done := subprocess.run(publish, capture_output=True, text=True)).returncode != 0:
        assert time.monotonic() < deadline, done.stderr
        select.select([], [], [], 0.2)  # their writers still write
    found = {"w": torch.zeros(2_000_000), "step": 0}
    dcp.load(found, storage_reader=StorageReader(root / "step-5"))
    assert torch.equal(found["w"], torch.arange(2_000_000.0)) and found["step"] == 5


def test_a_launch_that_is_started_again_goes_on_from_the_latest(root):
    done = torchrun(2, HERE / "resuming.py", root, options=["--max-restarts=1"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "told").read_text() == f"1 3 {[21.0] * 5}"
