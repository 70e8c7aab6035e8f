"""examples/train_fsdp.py at small size: two ranks train and save, one goes on."""

import json

import pytest
import tspool

pytest.importorskip("torch", reason="tspool.torch needs torch")

from launches import HERE, torchrun  # noqa: E402

EXAMPLE = HERE.parents[2] / "examples" / "train_fsdp.py"
SMALL = ["--width=32", "--layers=2", "--heads=2", "--context=32", "--batch=4", "--arena=64"]


def trained(ranks, root, losses, *arguments):
    done = torchrun(ranks, EXAMPLE, f"--root={root}", f"--losses={losses}", *SMALL, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return {int(step): loss for step, loss in json.loads(losses.read_text()).items()}


def test_two_ranks_train_and_one_goes_on_with_equal_losses(root, tmp_path):
    whole = trained(2, root, tmp_path / "two.json", "--steps=12", "--every=8")
    assert tspool.latest(root) == str(root / "step-00000008") and tspool.verify(root / "step-00000008").damaged == 0
    rest = trained(1, root, tmp_path / "one.json", "--steps=12", "--every=8", "--resume")
    assert list(rest) == [9, 10, 11, 12]
    assert all(abs(rest[step] - whole[step]) < 1e-4 for step in rest), (rest, whole)
    assert whole[12] < whole[1] - 0.5  # it did learn
