"""Ranks that are killed: the last checkpoint stands, the others hear of it, and a launch started again goes on from it."""

import os
import socket
import subprocess
import sys

import pytest
import tspool

torch = pytest.importorskip("torch", reason="tspool.torch needs torch")

from launches import HERE, torchrun  # noqa: E402


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ranks(count, script, *arguments):
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count),
                   "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, HERE / script, *map(str, arguments)], env={**environment, "RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        return [process.wait(120) for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("mode", ["collectives", "apart"])
def test_a_rank_killed_in_mid_save_leaves_the_last_checkpoint_and_an_error(root, mode):
    assert ranks(3, "dying_rank.py", root, mode) == [0, 0, -9]
    for rank in (0, 1):
        seconds, told = (root / f"told-{rank}").read_text().split(" ", 1)
        assert "it went through" not in told and float(seconds) < 20
        assert mode == "collectives" or "nothing was heard of the part of rank 2" in told
    assert tspool.latest(root) == str(root / "step-1")
    assert tspool.verify(root / "step-1").damaged == 0 and not (root / "step-2").exists()


def test_a_launch_that_is_started_again_goes_on_from_the_latest(root):
    done = torchrun(2, HERE / "resuming.py", root, options=["--max-restarts=1"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "told").read_text() == f"1 3 {[21.0] * 5}"
