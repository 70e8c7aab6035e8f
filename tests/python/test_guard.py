"""Background staging under a guard: the optimizer's step waits until the tensors were copied; what changed all the same is
refused."""

import errno
import threading

import pytest
import tspool
import torch

CHUNK = 16 << 20


@pytest.fixture
def slow(root):
    """Staging of what is larger than the arena waits for the disk: 32 MiB a second."""
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=32 << 20) as opened:
        yield opened


def trained(megabytes=96):
    """One large parameter with an optimizer that subtracts its gradient of ones."""
    parameter = torch.nn.Parameter(torch.zeros(megabytes << 18))
    parameter.grad = torch.ones_like(parameter)
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def test_the_step_waits_until_the_tensors_were_copied(slow, root):
    parameter, optimizer = trained()
    save = slow.save("guarded", {"w": parameter.detach()}, staging="background", guard=optimizer)
    assert save.status().level == 0
    optimizer.step()
    assert save.status().level >= 1 and parameter[-1] == -1
    save.result(60)
    assert tspool.load(root / "guarded")["w"].eq(0).all()


def test_every_later_save_is_guarded_too_and_a_step_without_a_save_costs_nothing(spool, root):
    parameter, optimizer = trained(1)
    for step in range(5):
        spool.save(f"s{step}", {"w": parameter.detach()}, staging="background", guard=[optimizer])
        optimizer.step()
        optimizer.step()
    spool.close()
    for step in range(5):
        assert tspool.load(root / f"s{step}")["w"].eq(-2 * step).all()
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_a_tensor_that_was_changed_without_a_step_is_refused_by_its_name_and_nothing_is_published(slow, root):
    parameter, optimizer = trained()
    save = slow.save("torn", {"model": {"w": parameter.detach(), "b": torch.ones(3)}}, staging="background", guard=optimizer)
    with torch.no_grad():
        parameter[0] += 1
    with pytest.raises(tspool.SaveError, match='"model.w" was changed between submit and staged') as torn:
        save.result(60)
    assert (torn.value.errno, torn.value.tensor, torn.value.stage) == (errno.EBUSY, "model.w", "stage")
    assert save.status().failure is torn.value and save.status().outcome == "failed"
    assert not (root / "torn").exists()
    optimizer.step()  # training goes on
    slow.save("after", {"w": parameter.detach()[:10]}).result(60)


def test_a_change_before_the_last_byte_of_a_small_state_is_seen_before_it_can_be_published(spool, root, monkeypatch):
    """The versions are compared before the writer can know of the last chunk: there is no window."""
    import tspool._fill as fill

    weight = torch.zeros(1000)
    copy = fill._tspool.copy

    class Late:
        def __getattr__(self, name):
            return getattr(fill_real, name)

        def copy(self, *arguments):
            copy(*arguments)
            weight.add_(1)  # after its copying

    fill_real = fill._tspool
    monkeypatch.setattr(fill, "_tspool", Late())
    save = spool.save("late", {"w": weight}, staging="background", guard=trained(1)[1])
    assert save.exception(60).tensor == "w"
    assert not (root / "late").exists()


def test_what_is_filled_from_here_is_what_the_engine_would_have_copied(spool, root):
    """Every kind of leaf: views, transposed, expanded, 0-d, empty, tied, numpy, buffers, fp8, conjugated."""
    import array

    import numpy

    base = torch.randn(300, 200)
    state = {
        "base": base, "transposed": base.t(), "strided": base[::2, ::3], "row": base[7], "expanded": torch.ones(1).expand(50, 3),
        "scalar": torch.tensor(3), "empty": torch.empty(0, 4), "tied": base, "parameter": torch.nn.Parameter(torch.ones(5)),
        "fp8": torch.randn(64).to(torch.float8_e4m3fn), "conj": torch.randn(9, dtype=torch.complex64).conj(),
        "numpy": numpy.arange(12.0).reshape(3, 4), "fortran": numpy.asfortranarray(numpy.arange(12).reshape(3, 4)),
        "backwards": numpy.arange(5)[::-1], "buffer": array.array("i", range(9)), "large": torch.randn(CHUNK // 2),
        "raw": b"bytes", "step": 7,
    }  # fmt: skip
    spool.save("filled", state, staging="background", guard=trained(1)[1])
    spool.save("engine", state).result(60)
    spool.close()
    filled, engine = ((root / name / "model.safetensors").read_bytes() for name in ("filled", "engine"))
    assert filled == engine
    tspool.verify(root / "filled")


def test_100000_spans_of_small_tensors(spool, root):
    state = {f"t{number}": torch.full((3,), float(number)) for number in range(20000)}
    spool.save("many", state, staging="background", guard=trained(1)[1]).result(60)
    loaded = tspool.load(root / "many")
    assert all(loaded[f"t{number}"][2] == number for number in range(0, 20000, 997))


def test_tensors_of_a_device_take_the_same_way(spool, root, monkeypatch):
    """On CUDA where there is one; else the CPU's tensors are sent that way."""
    import tspool._leaves as leaves
    import tspool._tree as tree

    if torch.cuda.is_available():
        device = "cuda"
    else:
        device = "cpu"
        real = leaves.leaf_of

        def away(value, name, may_stay=False):
            leaf = real(value, name, may_stay)
            return leaf._replace(is_host=False) if may_stay and leaf is not None and leaves.is_contiguous(leaf) else leaf

        monkeypatch.setattr(tree, "leaf_of", away)
    state = {
        "a": torch.randn(CHUNK // 3, device=device),
        "b": torch.arange(7, device=device),
        "c": torch.tensor(True, device=device),
        "d": torch.randn(10, 10, device=device).t(),
        "half": torch.randn(99, device=device).bfloat16(),
    }
    spool.save("now", state).wait_staged(0)
    background = spool.save("background", state, staging="background")
    background.wait_staged(60)
    wanted = {name: tensor.cpu().clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.zero_()
    spool.close()
    for name in ("now", "background"):
        loaded = tspool.load(root / name)
        assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


def test_cuda_tensors_go_straight_into_the_pinned_arena(root):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: the side stream and the pinned arena need one")
    from tspool.torch import pin_arena

    parameter = torch.nn.Parameter(torch.zeros(CHUNK, device="cuda"))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    optimizer.step()
    wanted = parameter.detach().cpu().clone()
    with tspool.Spool(root, arena_bytes=256 << 20, on_arena=pin_arena) as spool:
        spool.save("gpu", {"w": parameter.detach(), "o": optimizer.state_dict()}, staging="background", guard=optimizer)
        optimizer.step()
    assert torch.equal(tspool.load(root / "gpu")["w"], wanted)


def test_a_spool_that_is_closed_early_gives_up_what_was_not_copied_and_hangs_nowhere(root):
    spool = tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20)
    save = spool.save("early", {"w": torch.zeros(64 << 20)}, staging="background", guard=trained(1)[1])
    report = spool.close(timeout=0)
    assert report.aborted + report.failed == 1 and report.left == 0
    assert save.status().outcome == "failed" and not (root / "early").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "tspool-fill"]


def test_an_abort_ends_the_filling(slow):
    parameter, optimizer = trained()
    save = slow.save("given-up", {"w": parameter.detach()}, staging="background", guard=optimizer)
    assert save.abort()
    optimizer.step()
    assert save.exception(60).errno == errno.ECANCELED


def test_a_failure_does_not_stop_training(slow, root):
    parameter, optimizer = trained(8)
    save = slow.save("taken", {"w": parameter.detach()}, staging="background", guard=optimizer)
    (root / "taken").mkdir()  # by somebody else, meanwhile
    (root / "taken" / "file").touch()
    optimizer.step()
    optimizer.step()
    assert parameter[0] == -2 and save.exception(60).errno == errno.EEXIST


def test_a_copying_that_breaks_is_told_and_costs_that_save_only(spool, root, monkeypatch):
    import tspool._fill as fill

    class Broken:
        def copy(self, *arguments):
            raise MemoryError("no more")

    monkeypatch.setattr(fill, "_tspool", Broken())
    save = spool.save("broken", {"w": torch.ones(9)}, staging="background", guard=trained(1)[1])
    failure = save.exception(60)
    assert "copying the tensors failed: MemoryError('no more')" in failure.message and isinstance(failure.__cause__, MemoryError)
    monkeypatch.undo()
    spool.save("next", {"w": torch.ones(9)}, staging="background", guard=trained(1)[1]).result(60)
    assert not (root / "broken").exists()


@pytest.mark.parametrize("guard", [object(), [None], 3])
def test_a_guard_must_be_an_optimizer(spool, guard):
    with pytest.raises(TypeError, match="guard is a torch optimizer"):
        spool.save("no", {"w": torch.ones(1)}, staging="background", guard=guard)


def test_a_guard_without_background_staging_is_a_mistake(spool):
    with pytest.raises(ValueError, match="guard goes with staging='background'"):
        spool.save("no", {"w": torch.ones(1)}, guard=trained(1)[1])


def test_a_killed_writer_costs_a_guarded_save_nothing_that_fits_the_arena(root):
    import os
    import signal

    parameter, optimizer = trained(24)
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=32 << 20) as spool:
        save = spool.save("killed", {"w": parameter.detach()}, staging="background", guard=optimizer)
        os.kill(spool.writer_pid, signal.SIGKILL)
        optimizer.step()
        assert save.result(60).attempts > 1
    assert tspool.load(root / "killed")["w"].eq(0).all()
