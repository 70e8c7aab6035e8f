"""examples/train_torch.py is killed at random moments; resumed, it goes on with the losses of a run that nobody disturbed."""

import pathlib
import random
import re
import subprocess
import sys
import time

import tspool

EXAMPLE = pathlib.Path(__file__).parents[3] / "examples" / "train_torch.py"
STEPS, KILLS = 120, 3


def command(root, *more):
    return [sys.executable, str(EXAMPLE), "--root", str(root), "--steps", str(STEPS), "--save-every", "7", "--width", "48", *more]


def losses(output):
    return dict(re.findall(r"^step (\d+) loss \S+ (\S+)$", output, re.M))


def run_killed(root, steps, pause):
    """Killed `pause` seconds after it has printed so many steps."""
    output = ""
    with subprocess.Popen(command(root, "--resume"), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            output += line
            steps -= line.startswith("step ")
            if steps <= 0:
                break
        time.sleep(pause)  # the moment is what is random here
        process.kill()
        output += process.stdout.read()
    return output


def test_killed_and_resumed_its_losses_are_those_of_an_undisturbed_run(tmp_path):
    whole = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, timeout=120)
    assert whole.returncode == 0, whole.stderr
    wanted, seen, seed = losses(whole.stdout), {}, random.randrange(1 << 30)
    chance = random.Random(seed)
    for _ in range(KILLS):
        output = run_killed(tmp_path / "killed", chance.randrange(8, 30), chance.random() * 0.02)
        assert losses(output).items() <= wanted.items(), f"seed {seed}"
        seen.update(losses(output))
    last = subprocess.run(command(tmp_path / "killed", "--resume"), capture_output=True, text=True, timeout=120)
    assert last.returncode == 0, last.stderr
    seen.update(losses(last.stdout))
    assert "resumed from" in last.stdout and seen == wanted and len(wanted) == STEPS, f"seed {seed}"
    first, second = (tspool.load(tspool.latest(tmp_path / name)) for name in ("whole", "killed"))
    assert all(first["model"][name].equal(second["model"][name]) for name in first["model"])
