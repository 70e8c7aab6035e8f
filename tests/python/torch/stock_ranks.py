"""What test_stock_ranks.py starts under torchrun: two processes, gloo, one launch for all checks."""

import pathlib
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from stock_help import assert_same, blank, filled
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from tspool.torch import FileSystemReader, FileSystemWriter, HuggingFaceStorageReader, HuggingFaceStorageWriter

warnings.simplefilter("ignore")
torch.set_num_threads(1)


class Job:
    def __init__(self, folder):
        dist.init_process_group("gloo")
        self.folder, self.rank = folder, dist.get_rank()
        self.mesh = init_device_mesh("cpu", (2,))
        self.full = {
            "rows": filled((7, 10), torch.bfloat16, 1),
            "columns": filled((6, 9), torch.float32, 2),
            "replicated": filled((4, 4), torch.float64, 3),
            "short": filled((1, 3), torch.int64, 4),  # one rank's part is empty
        }

    def sharded(self, full):
        placements = {"rows": [Shard(0)], "columns": [Shard(1)], "replicated": [Replicate()], "short": [Shard(0)]}
        return {name: distribute_tensor(tensor, self.mesh, placements[name]) for name, tensor in full.items()}

    def state(self, seed=0):
        torch.manual_seed(seed)
        deep = {"list": [1, 2, seed], "bias": torch.randn(5)}
        plain = {"plain": torch.randn(30, 30), "scalar": torch.tensor(seed), "deep": deep}
        return {**self.sharded(self.full), **plain}

    def blank(self, state):
        if isinstance(state, dict):
            return {key: self.blank(value) for key, value in state.items()}
        if isinstance(state, DTensor):
            local = torch.zeros_like(state.to_local())
            return DTensor.from_local(local, self.mesh, state.placements, shape=state.shape, stride=state.stride())
        return blank(state)

    def check(self, reader, state):
        got = self.blank(state)
        dcp.load(got, storage_reader=reader)
        assert_same(self.whole(got), self.whole(state))

    def whole(self, state):
        if isinstance(state, dict):
            return {key: self.whole(value) for key, value in state.items()}
        return state.full_tensor() if isinstance(state, DTensor) else state

    def files(self, folder):
        dist.barrier()
        found = sorted(path.name for path in folder.iterdir())
        dist.barrier()
        return found


def filesystem_both_ways(job):
    ours, theirs = (FileSystemWriter, FileSystemReader), (dcp.FileSystemWriter, dcp.FileSystemReader)
    for number, (writer, reader) in enumerate([(ours[0], theirs[1]), ours, (theirs[0], ours[1])]):
        for step in range(2):
            state = job.state(step)
            dcp.save(state, storage_writer=writer(job.folder / f"fs{number}", thread_count=2))
            job.check(reader(job.folder / f"fs{number}"), state)


def loads_onto_other_layouts(job):
    other = {
        "rows": distribute_tensor(torch.zeros(7, 10, dtype=torch.bfloat16), job.mesh, [Shard(1)]),
        "columns": distribute_tensor(torch.zeros(6, 9), job.mesh, [Shard(0)]),
        "replicated": distribute_tensor(torch.zeros(4, 4, dtype=torch.float64), job.mesh, [Shard(0)]),
        "short": distribute_tensor(torch.zeros(1, 3, dtype=torch.int64), job.mesh, [Replicate()]),
    }
    dcp.load(other, storage_reader=FileSystemReader(job.folder / "fs0"))
    assert_same({name: tensor.full_tensor() for name, tensor in other.items()}, job.full)


def a_failure_on_one_rank_is_everybodys_and_leaves_the_old(job):
    folder = job.folder / "failing"
    writer = FileSystemWriter(folder)
    old, new = job.state(1), job.state(2)
    dcp.save(old, storage_writer=writer)
    before = job.files(folder)

    class Fails(dcp.DefaultSavePlanner):
        def resolve_data(self, item):
            if job.rank == 1 and item.index.fqn == "rows":
                raise RuntimeError("rank 1 has no data")
            return super().resolve_data(item)

    try:
        dcp.save(new, storage_writer=writer, planner=Fails())
    except dcp.CheckpointException as error:
        assert "rank 1 has no data" in str(error)
    else:
        raise AssertionError("saved without rank 1's data")
    job.check(dcp.FileSystemReader(folder), old)
    writer.reset()
    assert job.files(folder) == before
    dcp.save(new, storage_writer=writer)
    job.check(dcp.FileSystemReader(folder), new)
    assert len(job.files(folder)) == len(before)


def cached_plans(job):
    class Cached(dcp.DefaultSavePlanner):
        pass

    writer, planner = FileSystemWriter(job.folder / "cached"), Cached(enable_plan_caching=True)
    for step in range(3):
        state = job.state(step)
        dcp.save(state, storage_writer=writer, planner=planner)
        job.check(dcp.FileSystemReader(job.folder / "cached"), state)
    assert len([name for name in job.files(job.folder / "cached") if name.endswith(".distcp")]) == 2


def without_collectives(job):
    folder = job.folder / "alone"
    for step in range(2):
        state = {"mine": torch.full((job.rank + 2,), float(step)), "object": [job.rank]}
        dcp.save(state, storage_writer=FileSystemWriter(folder), use_collectives=False)
    assert job.files(folder) == ["__0.metadata", "__0_0.1.distcp", "__1.metadata", "__1_0.1.distcp"]
    for reader in (dcp.FileSystemReader, FileSystemReader):
        got = blank(state)
        dcp.load(got, storage_reader=reader(folder))
        assert_same(got, state)


def huggingface_shards(job):
    state, folder = job.sharded(job.full), job.folder / "hf"
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    assert job.files(folder) == [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    for reader in (dcp.HuggingFaceStorageReader, HuggingFaceStorageReader):
        job.check(reader(str(folder)), state)


def huggingface_consolidated(job):
    from safetensors.torch import load_file

    state, folder = job.sharded(job.full), job.folder / "whole"
    mapping = {name: number % 2 + 1 for number, name in enumerate(state)}
    for _ in range(2):
        dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(folder), mapping, 1, True, True, 2))
    got = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert_same(got, job.full)
    assert len(job.files(folder / "sharded")) == 4


def in_another_process(job):
    """torch's own process for asynchronous saves gets the writer by pickle, on every save."""
    writer = FileSystemWriter(job.folder / "0")
    for step in range(2):
        state = job.state(step)
        done = dcp.async_save(state, storage_writer=writer, checkpoint_id=job.folder / f"async{step}",
                              async_checkpointer_type=AsyncCheckpointerType.PROCESS)  # fmt: skip
        assert isinstance(done.result(120), dcp.Metadata)
        dist.barrier()
        job.check(dcp.FileSystemReader(job.folder / f"async{step}"), state)


CHECKS = [filesystem_both_ways, loads_onto_other_layouts, a_failure_on_one_rank_is_everybodys_and_leaves_the_old, cached_plans,
          without_collectives, huggingface_shards, huggingface_consolidated, in_another_process]  # fmt: skip

if __name__ == "__main__":
    job = Job(pathlib.Path(sys.argv[1]))
    for check in CHECKS:
        check(job)
        dist.barrier()
        if job.rank == 0:
            print(check.__name__, flush=True)
    dist.destroy_process_group()
