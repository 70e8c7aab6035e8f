"""Four ranks save and load."""

import os
import pathlib

import checks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tspool
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from tspool.torch import StorageReader, StorageWriter

ARENA = 64 << 20


def writer(path=None, **options):
    return StorageWriter(path, arena_bytes=ARENA, deadline=30, **options)


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
    found = {"w": distribute_tensor(torch.zeros(10), mesh, [Shard(0)]), "same": torch.zeros(3), "random": "", "own": torch.zeros(1)}
    dcp.load(found, storage_reader=StorageReader(folder / "apart-1"))
    assert torch.equal(found["w"].full_tensor(), torch.arange(10.0)) and torch.equal(found["same"], torch.ones(3))
    assert found["random"] == f"state {rank}" and found["own"].item() == rank


if __name__ == "__main__":
    checks.run(globals())
