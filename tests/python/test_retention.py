"""A spool that keeps the newest checkpoints."""

import pytest
import tspool
import torch


def state(step):
    return {"w": torch.full((1 << 18,), step)}


def test_only_the_newest_stay(root):
    with tspool.Spool(root, arena_bytes=64 << 20, keep=2) as spool:
        for step in range(1, 6):
            spool.save(f"step-{step}", state(step), metadata={"step": step}).result(60)
    assert sorted(path.name for path in root.iterdir()) == ["step-4", "step-5"]
    assert torch.equal(tspool.load(root / "step-4")["w"], state(4)["w"])


def test_results_say_what_has_gone(root):
    with tspool.Spool(root, arena_bytes=64 << 20, keep=1) as spool:
        results = [spool.save("step-1", state(1)).result(60)]
        while not results[-1].removed:
            assert len(results) < 1000
            results.append(spool.save(f"step-{len(results) + 1}", state(1)).result(60))
    assert results[0].removed == 0 and results[-1].removed_bytes > 1 << 20
    assert results[-1].keep_error == 0 and results[-1].keep_left == ""


def test_what_was_saved_after_a_return_to_an_earlier_step_stays(root):
    with tspool.Spool(root, arena_bytes=64 << 20, keep=2) as spool:
        for step in (10, 20, 30, 5):
            spool.save(f"step-{step}", state(step), metadata={"step": step}).result(60)
    assert sorted(path.name for path in root.iterdir()) == ["step-20", "step-30", "step-5"]


@pytest.mark.parametrize("keep", [0, -1])
def test_a_keep_of_none_at_all_is_refused(root, keep):
    with pytest.raises(ValueError, match="at least 1"):
        tspool.Spool(root, keep=keep)
