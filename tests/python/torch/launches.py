"""Several ranks are real processes under torchrun, with gloo. Starting them is what takes the time, so one
launch runs many checks: each is a function check_* of a script, its result a file, and a test of its own looks at it."""

import json
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
SECONDS = 300


def torchrun(ranks, script, *arguments, seconds=SECONDS, options=()):
    """The finished process of a whole launch. It never outlives the test: a hang is a failure."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options,
        str(script), *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
                   "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # in a shared one gloo finds the addresses of the dead
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)


def checks_of(script):
    return re.findall(r"^def check_(\w+)", (HERE / script).read_text(), re.M)


class Launch:
    def __init__(self, ranks, script, folder, *arguments):
        self.ranks, self.folder = ranks, folder
        folder.mkdir()
        self.done = torchrun(ranks, HERE / script, folder, *arguments)

    def result(self, check):
        told = [self.folder / f"{check}-{rank}.json" for rank in range(self.ranks)]
        missing = [path.name for path in told if not path.exists()]
        assert not missing, f"{missing} not reached: {self.done.stdout}{self.done.stderr}"
        failures = [f"rank {rank}:\n{text}" for rank, path in enumerate(told) if (text := json.loads(path.read_text())) != "well"]
        assert not failures, "\n".join(failures)
