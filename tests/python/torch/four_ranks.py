"""Four ranks save and load."""

import concurrent.futures
import os
import time

import checks
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tspool
import tspool.torch
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.utils import _DistWrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from tspool.torch import StorageReader, StorageWriter

ARENA = 64 << 20


def writer(path=None, **options):
    return StorageWriter(path, arena_bytes=ARENA, deadline=60, **options)


def model(seed):
    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(10, 13), torch.nn.ReLU(), torch.nn.Linear(13, 7), torch.nn.LayerNorm(7))
    for layer in made:
        fully_shard(layer)
    fully_shard(made)
    return made


def trained(seed, steps=2):
    made = model(seed)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
    for step in range(steps):
        torch.manual_seed(100 * step + dist.get_rank())
        made(torch.randn(4, 10)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return made, optimizer


def state_of(made, optimizer):
    of_model, of_optimizer = get_state_dict(made, optimizer)
    return {"model": of_model, "optim": of_optimizer, "step": 2}


class Refusing(DefaultSavePlanner):
    """Rank 2 cannot give its data."""

    def resolve_data(self, item):
        if dist.get_rank() == 2:
            raise RuntimeError("the data are gone")
        return super().resolve_data(item)


def full(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def assert_equal(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right):
            assert_equal(a, b)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(full(left), full(right))
    else:
        assert left == right


def check_fsdp_model_and_optimizer_come_back(folder):
    made, optimizer = trained(1)
    saved = state_of(made, optimizer)
    metadata = dcp.save(saved, storage_writer=writer(folder / "fsdp", metadata={"step": 2}))
    assert metadata.storage_meta.save_id == tspool.Checkpoint(folder / "fsdp").info.save_id
    tspool.verify(folder / "fsdp")
    other, its_optimizer = trained(2, steps=1)
    state = state_of(other, its_optimizer)
    state["step"] = 0
    dcp.load(state, storage_reader=StorageReader(folder / "fsdp"))
    set_state_dict(other, its_optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    assert_equal(state_of(other, its_optimizer), saved)
    assert state["step"] == 2


def check_a_cached_plan_saves_what_is_there_now(folder):
    planner, state = DefaultSavePlanner(enable_plan_caching=True), {"rank": torch.full((4,), 1.0), "step": 1}
    mesh = init_device_mesh("cpu", (4,))
    state["sharded"] = distribute_tensor(torch.arange(12.0), mesh, [Shard(0)])
    to = writer()
    for step in range(3):
        state["step"] = step
        with torch.no_grad():
            state["sharded"].add_(1)
        dcp.save(state, checkpoint_id=folder / f"cached-{step}", storage_writer=to, planner=planner)
    for step in range(3):
        found = {"sharded": distribute_tensor(torch.zeros(12), mesh, [Shard(0)]), "step": 0, "rank": torch.zeros(4)}
        dcp.load(found, storage_reader=StorageReader(folder / f"cached-{step}"))
        assert torch.equal(found["sharded"].full_tensor(), torch.arange(12.0) + step + 1) and found["step"] == step


def check_without_collectives_the_parts_are_one_checkpoint(folder):
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (4,))
    state = {"w": distribute_tensor(torch.arange(10.0), mesh, [Shard(0)]), "same": torch.ones(3), "random": f"state {rank}",
             "own": torch.tensor([float(rank)])}
    for number in range(2):
        dcp.save(state, checkpoint_id=folder / f"apart-{number}", storage_writer=writer(), use_collectives=False)
        tspool.verify(folder / f"apart-{number}")
    found = {"w": distribute_tensor(torch.zeros(10), mesh, [Shard(0)]), "same": torch.zeros(3), "random": "",
             "own": torch.zeros(1)}
    dcp.load(found, storage_reader=StorageReader(folder / "apart-1"))
    assert torch.equal(found["w"].full_tensor(), torch.arange(10.0)) and torch.equal(found["same"], torch.ones(3))
    assert found["random"] == f"state {rank}" and found["own"].item() == rank


def layouts():
    """The same values laid out in every way that DCP has: uneven and empty shards, both dimensions, two meshes, replicas, 0-d."""
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    whole = torch.arange(5 * 6, dtype=torch.float32).reshape(5, 6)
    yield "rows", distribute_tensor(whole, line, [Shard(0)])
    yield "columns", distribute_tensor(whole, line, [Shard(1)])
    yield "few", distribute_tensor(whole[:3], line, [Shard(0)])
    yield "none", distribute_tensor(torch.empty(0, 3), line, [Shard(0)])
    yield "square", distribute_tensor(whole, square, [Shard(0), Shard(1)])
    yield "hybrid", distribute_tensor(whole, square, [Replicate(), Shard(0)])
    yield "replicated", distribute_tensor(whole, line, [Replicate()])
    yield "scalar", distribute_tensor(torch.tensor(3.5, dtype=torch.bfloat16), line, [Replicate()])
    yield "plain", whole.clone()


def check_every_layout_comes_back(folder):
    saved = dict(layouts())
    dcp.save(saved, storage_writer=writer(folder / "layouts"))
    tspool.verify(folder / "layouts")
    found = {name: torch.zeros_like(value) for name, value in saved.items()}
    dcp.load(found, storage_reader=StorageReader(folder / "layouts"))
    assert_equal(found, saved)


def check_every_layout_loads_as_every_other(folder):
    whole = torch.arange(5 * 6, dtype=torch.float32).reshape(5, 6)
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    for name in ("rows", "columns", "square", "hybrid", "replicated", "plain"):
        for mesh, placements in ((line, [Shard(0)]), (line, [Shard(1)]), (square, [Shard(1), Shard(0)]), (line, [Replicate()])):
            found = {name: distribute_tensor(torch.zeros(5, 6), mesh, placements)}
            dcp.load(found, storage_reader=StorageReader(folder / "layouts"))
            assert torch.equal(found[name].full_tensor(), whole), (name, placements)


def check_a_rank_may_have_nothing_to_save(folder):
    state = {"w": torch.arange(3.0)} if dist.get_rank() == 2 else {}
    metadata = dcp.save(state, storage_writer=writer(folder / "mostly-empty"))
    assert list(metadata.state_dict_metadata) == ["w"]
    found = {"w": torch.zeros(3)}
    dcp.load(found, storage_reader=StorageReader(folder / "mostly-empty"))
    assert torch.equal(found["w"], torch.arange(3.0))


def check_the_parts_are_published_without_collectives_in_the_background(folder):
    class Recorder(StorageWriter):
        def finish(self, metadata, results):
            raise AssertionError("not here")

    to = Recorder(folder / "background", arena_bytes=ARENA, deadline=30)
    state = {"w": distribute_tensor(torch.arange(9.0), init_device_mesh("cpu", (4,)), [Shard(0)]), "note": "x"}
    planner, wrapper = DefaultSavePlanner(), _DistWrapper(None, True, 0)

    def local():
        planner.set_up_planner(state, to.storage_meta(), wrapper.is_coordinator)
        to.set_up_storage_writer(wrapper.is_coordinator, rank=wrapper.rank, use_collectives=True)
        return to.prepare_local_plan(planner.create_local_plan())

    def everywhere(plans):
        plans, everywhere.metadata = planner.create_global_plan(plans)
        return to.prepare_global_plan(plans)

    everywhere.metadata = None
    plan = wrapper.reduce_scatter("plan", local, everywhere)
    future = to.write_data(planner.finish_plan(plan), planner)
    state["w"].to_local().zero_()  # it was copied
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        metadata = everywhere.metadata or Metadata({})
        assert pool.submit(to.publish_when_whole, metadata, 30).result() is metadata
    assert len(future.wait()) == len(to.attempt.results)
    tspool.verify(folder / "background")
    found = {"w": distribute_tensor(torch.zeros(9), init_device_mesh("cpu", (4,)), [Shard(0)]), "note": ""}
    dcp.load(found, storage_reader=StorageReader(folder / "background"))
    assert torch.equal(found["w"].full_tensor(), torch.arange(9.0)) and found["note"] == "x"


def check_saves_in_flight_beside_each_other(folder):
    to, line = writer(), init_device_mesh("cpu", (4,))
    state = {"w": distribute_tensor(torch.zeros(9), line, [Shard(0)]), "step": 0}
    uploads = []
    for step in range(4):
        with torch.no_grad():
            state["w"].fill_(step)
        state["step"] = step
        uploads.append(tspool.torch.async_save(state, checkpoint_id=folder / f"flight-{step}", storage_writer=to))
    with torch.no_grad():
        state["w"].fill_(77)
    assert len({upload.result(60).storage_meta.save_id for upload in uploads}) == 4
    for step in range(4):
        dcp.load(state, storage_reader=StorageReader(folder / f"flight-{step}"))
        assert torch.equal(state["w"].full_tensor(), torch.full((9,), float(step))) and state["step"] == step


def check_a_failure_in_the_background_is_raised_on_all_ranks_and_not_by_the_next_save(folder):
    to, line = writer(), init_device_mesh("cpu", (4,))
    state = {"w": distribute_tensor(torch.arange(8.0), line, [Shard(0)])}
    started = time.monotonic()
    upload = tspool.torch.async_save(state, checkpoint_id=folder / "lost", storage_writer=to, planner=Refusing())
    with pytest.raises((tspool.SaveError, RuntimeError), match="the data are gone"):
        upload.result(60)
    dist.barrier()
    assert time.monotonic() - started < 40 and not (folder / "lost").exists()
    tspool.torch.async_save(state, checkpoint_id=folder / "found", storage_writer=to).result(60)
    assert tspool.verify(folder / "found").damaged == 0


def check_async_save_of_dcp(folder):
    group = dist.new_group(backend="gloo")
    state = {"w": distribute_tensor(torch.arange(9.0), init_device_mesh("cpu", (4,)), [Shard(0)])}
    future = dcp.async_save(state, storage_writer=writer(folder / "async"), process_group=group)
    state["w"].to_local().zero_()
    future.result(60)
    dcp.load(state, storage_reader=StorageReader(folder / "async"))
    assert torch.equal(state["w"].full_tensor(), torch.arange(9.0))


def check_a_group_of_some_ranks_saves(folder):
    group = dist.new_group([1, 3], backend="gloo")
    for collectives in (True, False):
        path = folder / f"some-{collectives}"
        if dist.get_rank() in (1, 3):
            to = writer(path, process_group=None if collectives else group)
            dcp.save({"w": torch.arange(4.0)}, storage_writer=to, process_group=group, use_collectives=collectives)
        dist.barrier()
        assert tspool.Checkpoint(path).info.world_size == 2
        assert torch.equal(tspool.Checkpoint(path).read(0), torch.arange(4.0))


def check_a_save_that_is_not_distributed(folder):
    path = folder / f"alone-{dist.get_rank()}"
    dcp.save({"w": torch.full((3,), float(dist.get_rank()))}, storage_writer=writer(path), no_dist=True)
    assert tspool.Checkpoint(path).info.world_size == 1
    assert sorted(os.listdir(path))[0] == "model.safetensors"
    assert torch.equal(tspool.load(path, names="w")["w"], torch.full((3,), float(dist.get_rank())))


def check_two_dimensions_of_parallelism(folder):
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def made(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 6))
        parallelize_module(model, square["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(model, mesh=square["data"])
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        return model, optimizer

    saved, whole = state_of(*made(1)), folder / "two-dimensions"
    dcp.save(saved, storage_writer=writer(whole, shard_bytes=64))
    assert len([name for name in os.listdir(whole) if name.endswith(".safetensors")]) > 4
    state = state_of(*made(2))
    dcp.load(state, storage_reader=StorageReader(whole))
    assert_equal(state, saved)


def check_a_rank_that_fails_fails_all_and_the_last_checkpoint_stands(folder):
    line = init_device_mesh("cpu", (4,))
    state = {"w": distribute_tensor(torch.arange(8.0), line, [Shard(0)])}
    dcp.save(state, storage_writer=writer(folder / "failing"))
    before = tspool.Checkpoint(folder / "failing").info.save_id
    started = time.monotonic()
    with pytest.raises(CheckpointException, match="the data are gone") as told:
        dcp.save(state, storage_writer=writer(folder / "failing"), planner=Refusing())
    assert list(told.value.failures) == [2]
    dist.barrier()
    with pytest.raises((tspool.SaveError, RuntimeError), match="the data are gone") as told:
        dcp.save(state, storage_writer=writer(folder / "failing"), planner=Refusing(), use_collectives=False)
    assert dist.get_rank() == 2 or str(told.value).startswith("rank 2 failed to save its part")
    dist.barrier()
    assert time.monotonic() - started < 40
    assert tspool.Checkpoint(folder / "failing").info.save_id == before
    for _ in range(2):
        dcp.save(state, storage_writer=writer(folder / "failing"))
        dist.barrier()
    assert tspool.Checkpoint(folder / "failing").info.save_id != before
    left = [name for name in os.listdir(folder) if name.startswith(".failing.")]
    assert not left, left


def check_a_rank_that_never_comes_is_named_at_the_deadline(folder):
    if dist.get_rank() != 3:
        to = StorageWriter(folder / "waiting", arena_bytes=ARENA, deadline=5)
        with pytest.raises(tspool.SaveError, match="nothing was heard of the part of rank 3"):
            dcp.save({"w": torch.ones(2)}, storage_writer=to, use_collectives=False)
    dist.barrier()
    assert not (folder / "waiting").exists()


def check_others_files_survive_an_overwriting_save(folder):
    path, state = folder / "kept", {"w": torch.arange(4.0)}
    dcp.save(state, storage_writer=writer(path))
    if dist.get_rank() == 0:
        (path / "tokenizer.json").write_text("{}")
    dist.barrier()
    with pytest.raises(CheckpointException, match="exists"):
        dcp.save(state, storage_writer=writer(path, overwrite=False))
    dist.barrier()
    dcp.save({"w": torch.arange(4.0) + 1}, storage_writer=writer(path))
    assert (path / "tokenizer.json").read_text() == "{}"
    assert torch.equal(tspool.Checkpoint(path).read(0), torch.arange(4.0) + 1)


def check_saves_of_ties_and_shards_in_a_hybrid_mesh(folder):
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    tied = distribute_tensor(torch.arange(24.0).reshape(6, 4), square, [Replicate(), Shard(0)])
    saved = {"embed": tied, "head": tied, "third": tied, "other": torch.ones(7)}
    dcp.save(saved, storage_writer=writer(folder / "tied", ties=True))
    found = {name: torch.zeros_like(value) for name, value in saved.items()}
    dcp.load(found, storage_reader=StorageReader(folder / "tied"))
    assert_equal(found, saved)


if __name__ == "__main__":
    checks.run(globals())
