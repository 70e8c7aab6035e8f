"""Two ranks load what four saved, whose folder is the second argument; and save beside collectives that DCP has of its own."""

import pathlib
import sys

import checks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tspool
from four_ranks import ARENA, assert_equal, state_of, trained, writer
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from tspool.torch import StorageReader, StorageWriter

four = pathlib.Path(sys.argv[2])


def check_what_four_saved_loads_on_two(folder):
    made, optimizer = trained(3, steps=1)
    state = state_of(made, optimizer)
    dcp.load(state, storage_reader=StorageReader(four / "fsdp"))
    set_state_dict(made, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    weights = {name: value.full_tensor() for name, value in get_model_state_dict(made).items()}
    if dist.get_rank() == 0:
        torch.save({"weights": weights, "step": state["step"]}, folder / "two.pt")
    assert state["step"] == 2


def check_layouts_of_four_load_as_layouts_of_two(folder):
    whole, mesh = torch.arange(5 * 6, dtype=torch.float32).reshape(5, 6), init_device_mesh("cpu", (2,))
    for name in ("rows", "columns", "square", "hybrid", "replicated", "plain"):
        for placement in (Shard(0), Shard(1), Replicate()):
            found = {name: distribute_tensor(torch.zeros(5, 6, dtype=torch.float64), mesh, [placement])}
            dcp.load(found, storage_reader=StorageReader(four / "layouts"))
            assert torch.equal(found[name].full_tensor(), whole.double()), (name, placement)


def check_stock_huggingface_reader_loads_what_four_saved(folder):
    whole, mesh = torch.arange(5 * 6, dtype=torch.float32).reshape(5, 6), init_device_mesh("cpu", (2,))
    names = ("rows", "columns", "square", "hybrid", "replicated", "plain")
    found = {name: distribute_tensor(torch.zeros(5, 6), mesh, [Shard(0)]) for name in names}
    found["scalar"] = torch.zeros((), dtype=torch.bfloat16)
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(four / "layouts")))
    assert all(torch.equal(found[name].full_tensor(), whole) for name in names) and found["scalar"].item() == 3.5


def check_own_values_of_more_ranks_than_there_are_now(folder):
    found = {"random": "", "own": torch.zeros(1)}
    dcp.load(found, storage_reader=StorageReader(four / "apart-1"))
    assert found["random"] == f"state {dist.get_rank()}" and found["own"].item() == dist.get_rank()


def check_dcps_process_executor_saves_through_a_writer_sent_by_pickle(folder):
    state = {"w": distribute_tensor(torch.arange(9.0), init_device_mesh("cpu", (2,)), [Shard(0)]), "step": 3}
    for number in range(2):
        state["step"] = number
        dcp.async_save(
            state, storage_writer=StorageWriter(folder / f"process-{number}", arena_bytes=ARENA, deadline=60),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        ).result(120)  # fmt: skip
        dist.barrier()
        tspool.verify(folder / f"process-{number}")
    found = {"w": distribute_tensor(torch.zeros(9), init_device_mesh("cpu", (2,)), [Shard(0)]), "step": -1}
    dcp.load(found, storage_reader=StorageReader(folder / "process-1"))
    assert torch.equal(found["w"].full_tensor(), torch.arange(9.0)) and found["step"] == 1


def check_a_replicated_optimizer_comes_back(folder):
    made = torch.nn.Linear(6, 3)
    for parameter in made.parameters():
        dist.broadcast(parameter.data, 0)
    replica = torch.nn.parallel.DistributedDataParallel(made)
    optimizer = torch.optim.Adam(replica.parameters())
    replica(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    saved = state_of(replica, optimizer)
    dcp.save(saved, storage_writer=writer(folder / "replicated"))
    other = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(6, 3))
    its_optimizer = torch.optim.Adam(other.parameters())
    state = state_of(other, its_optimizer)
    dcp.load(state, storage_reader=StorageReader(folder / "replicated"))
    assert_equal(state, saved)


if __name__ == "__main__":
    checks.run(globals())
