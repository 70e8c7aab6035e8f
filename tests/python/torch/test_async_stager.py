"""The stager: what it hands back is a copy, in memory that is used again only when nobody reads it any more."""

import concurrent.futures
import errno
import gc
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import AsyncStager

from tspool.torch import Stager

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def stager():
    made = Stager()
    yield made
    made.close()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_it_is_a_stager_by_dcps_protocol(stager):
    assert isinstance(stager, AsyncStager) and stager.should_synchronize_after_execute is False
    stager.synchronize_staging()


def test_every_dtype_and_layout_is_copied(stager):
    from tspool._leaves import TORCH

    state = {name: torch.arange(24, dtype=torch.uint8).view(getattr(torch, name)) for name in TORCH
             if name != "bool" and hasattr(torch, name)}  # fmt: skip
    state |= {
        "bool": torch.tensor([True, False]),
        "complex128": torch.ones(2, dtype=torch.complex128),
        "t": torch.randn(5, 4).t(),
        "strided": torch.randn(9, 9)[::2, 1::3],
        "expanded": torch.ones(1).expand(4, 4),
        "0-d": torch.tensor(5),
        "empty": torch.empty(3, 0),
        "conj": torch.randn(3, dtype=torch.complex64).conj(),
    }
    wanted = {name: tensor.clone() for name, tensor in state.items()}
    staged = stager.stage(state)
    for tensor in state.values():
        tensor.untyped_storage().fill_(0)
    for name, tensor in staged.items():
        assert tensor.dtype == wanted[name].dtype and tensor.shape == wanted[name].shape
        assert (
            tensor.contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(wanted[name].resolve_conj().contiguous().view(-1).view(torch.uint8))
        ), name


def test_views_and_tied_tensors_go_on_sharing(stager):
    base = torch.randn(100, 10)
    state = {"base": base, "tied": base, "row": base[3], "deep": {"column": base[:, 2]}, "parameter": torch.nn.Parameter(base)}
    staged = stager.stage(state)
    staged["row"].fill_(7)
    assert staged["tied"] is staged["base"] and staged["base"][3].eq(7).all() and staged["deep"]["column"][3] == 7
    assert not base[3].eq(7).any() and type(staged["parameter"]) is torch.Tensor and not staged["parameter"].requires_grad
    assert staged["parameter"].data_ptr() == staged["base"].data_ptr()


def test_a_small_view_does_not_drag_its_storage_along(stager):
    staged = stager.stage({"row": torch.zeros(1 << 20, 4)[5]})
    assert staged["row"].untyped_storage().nbytes() <= 128


def test_objects_are_copied_and_containers_keep_their_kinds(stager):
    from collections import OrderedDict, defaultdict, namedtuple

    Pair = namedtuple("Pair", "first second")
    state = {
        "list": [1, [2]],
        "tuple": (torch.ones(1), "a"),
        "ordered": OrderedDict(b=1, a=2),
        "default": defaultdict(list, a=[1]),
        "pair": Pair(torch.ones(2), {3}),
        "none": None,
    }
    staged = stager.stage(state)
    state["list"][1].append(9)
    state["default"]["a"].append(9)
    state["pair"].second.add(9)
    assert staged["list"] == [1, [2]] and staged["default"] == {"a": [1]} and staged["pair"].second == {3}
    assert [type(staged[key]) for key in ("tuple", "ordered", "default", "pair")] == [tuple, OrderedDict, defaultdict, Pair]


def test_what_has_no_storage_is_kept_as_it_is(stager):
    sparse = torch.eye(3).to_sparse()
    staged = stager.stage({"sparse": sparse, "meta": torch.ones(2, device="meta")})
    assert staged["sparse"].to_dense().equal(torch.eye(3)) and staged["sparse"] is not sparse and staged["meta"].is_meta


def test_an_upload_under_way_is_never_overwritten(stager):
    weight = torch.zeros(1 << 16)
    first = stager.stage({"w": weight})
    second = stager.stage({"w": weight.add_(1)})
    third = stager.stage({"w": weight.add_(1)})
    assert [staged["w"][-1].item() for staged in (first, second, third)] == [0, 1, 2]
    assert len(stager._pool) == 3
    kept = second["w"][5:]  # one view is enough
    del first, second
    fourth = stager.stage({"w": weight.add_(1)})
    assert kept.eq(1).all() and fourth["w"].eq(3).all() and third["w"].eq(2).all()


def test_memory_is_used_again_and_what_is_too_much_is_let_go(stager):
    before, weight = descriptors(), torch.zeros(1 << 16)
    places = set()
    for _ in range(5):
        staged = stager.stage({"w": weight})
        places.add(staged["w"].data_ptr())
        del staged
    assert len(places) == 1 and len(stager._pool) == 1
    several = [stager.stage({"w": weight}) for _ in range(4)]
    del several
    stager.stage({"w": weight})
    assert len(stager._pool) == 1 and descriptors() <= before + 2
    stager.close()
    assert descriptors() <= before


def test_what_is_staged_outlives_its_stager():
    stager = Stager()
    staged, before = stager.stage({"w": torch.full((1 << 16,), 5.0)}), descriptors()
    stager.close()
    gc.collect()
    assert staged["w"].eq(5).all()
    del staged
    assert descriptors() <= before - 2


def test_a_forked_child_does_not_write_into_its_parents_memory(stager):
    staged = stager.stage({"w": torch.ones(8)})
    del staged  # idle: the child would take it
    before = stager.stage({"w": torch.ones(8)})
    child = os.fork()
    if child == 0:
        try:
            del before
            stager.stage({"w": torch.zeros(8)})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert before["w"].eq(1).all()


def test_one_descriptor_serves_twenty_thousand_tensors(stager):
    """DCP's shared-memory stagers need one for each, and fail here."""
    before = descriptors()
    staged = stager.stage({f"t{number}": torch.full((2,), float(number)) for number in range(20000)})
    assert descriptors() <= before + 2
    assert all(staged[f"t{number}"][1] == number for number in range(0, 20000, 999))


def test_in_the_background_it_gives_a_future_and_the_optimizer_waits_for_it():
    parameter = torch.nn.Parameter(torch.zeros(1 << 22))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    stager = Stager(use_async_staging=True, guard=optimizer)
    for step in range(3):
        future = stager.stage({"w": parameter.detach(), "lr": 0.5})
        optimizer.step()
        assert isinstance(future, concurrent.futures.Future) and future.done()
        assert future.result()["w"].eq(-step).all()
    stager.close()


def test_in_the_background_a_tensor_that_changed_is_named():
    tensors = {f"t{number}": torch.zeros(1 << 20) for number in range(4)}
    stager = Stager(use_async_staging=True)
    block = concurrent.futures.Future()
    stager._worker.submit(block.result)  # the copying has not begun
    future = stager.stage({"model": tensors})
    tensors["t3"].add_(1)
    block.set_result(None)
    assert future.exception(60).tensor == "model.t3" and future.exception().errno == errno.EBUSY
    stager.close()


def test_a_guard_without_background_staging_is_a_mistake():
    with pytest.raises(ValueError, match="guard goes with use_async_staging"):
        Stager(guard=object())
    with pytest.raises(TypeError, match="guard is a torch optimizer"):
        Stager(use_async_staging=True, guard=object())


@pytest.mark.parametrize("use_async_staging", [False, True])
def test_dcps_thread_type_saves_what_was_staged(root, use_async_staging):
    stager, weight = Stager(use_async_staging=use_async_staging), torch.full((1000,), 3.0)
    for number in range(3):
        answer = dcp.async_save({"w": weight, "n": number}, checkpoint_id=root / f"s{number}", async_stager=stager)
        if use_async_staging:
            answer.staging_completion.result(60)
            answer = answer.upload_completion
        weight.add_(1)
        if number == 1:
            answer.result(60)
    answer.result(60)
    stager.close()
    for number in range(3):
        into = {"w": torch.zeros(1000), "n": -1}
        dcp.load(into, checkpoint_id=root / f"s{number}")
        assert into["w"].eq(3 + number).all() and into["n"] == number


PROCESS = """
    import os, sys, torch, warnings
    import torch.distributed as dist, torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
    from torch.distributed.tensor import distribute_tensor, Replicate, Shard
    from tspool.torch import Stager

    if __name__ == "__main__":
        root = sys.argv[1]
        dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=0, world_size=1)
        mesh = dist.init_device_mesh("cpu", (1,))
        stager, base = Stager(), torch.arange(6.0)
        state = {f"t{n}": torch.full((2,), float(n)) for n in range(3000)}
        state |= {"base": base, "view": base[2:], "scalar": distribute_tensor(torch.tensor(4.0), mesh, [Replicate()]),
                  "sharded": distribute_tensor(torch.arange(8.0), mesh, [Shard(0)]), "text": "a"}
        for number in range(2):
            future = dcp.async_save(state, checkpoint_id=f"{root}/s{number}", async_stager=stager,
                                    async_checkpointer_type=AsyncCheckpointerType.PROCESS)
            state["scalar"].to_local().add_(1); state["sharded"].to_local().add_(1); base.add_(1)
            future.result(120)
        print(len(stager._pool), len(os.listdir("/proc/self/fd")) < 100)
        stager.close()
        dist.destroy_process_group()
"""


def test_dcps_process_type_gets_the_memory_as_one_descriptor(root, tmp_path):
    """DTensors, also 0-d ones, which DCP's blocking stager does not copy; and more tensors than descriptors are to be had."""
    script = tmp_path / "process.py"
    script.write_text(textwrap.dedent(PROCESS))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 400; exec {sys.executable} {script} {root}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["1", "True"]
    for number in range(2):
        into = {
            "base": torch.zeros(6),
            "view": torch.zeros(4),
            "scalar": torch.zeros(()),
            "sharded": torch.zeros(8),
            "t2999": torch.zeros(2),
        }
        dcp.load(into, checkpoint_id=root / f"s{number}")
        assert into["scalar"] == 4 + number and into["sharded"][0] == number and into["view"][0] == 2 + number
        assert into["t2999"].eq(2999).all()


def test_0d_dtensors_are_copied(root, tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        step = distribute_tensor(torch.tensor(4.0), dist.init_device_mesh("cpu", (1,)), [Replicate()])
        staged = Stager().stage({"step": step})
        step.to_local().add_(1)
        assert (
            type(staged["step"]) is type(step) and staged["step"].to_local() == 4 and staged["step"].placements == step.placements
        )
    finally:
        dist.destroy_process_group()
