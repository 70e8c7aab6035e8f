"""Two processes under torchrun: sharded tensors, plans, failures of one rank, and torch's own process for asynchronous saves."""

import os
import pathlib
import subprocess
import sys

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
