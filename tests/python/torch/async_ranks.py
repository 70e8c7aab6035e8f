"""Two ranks save beside a training that has collectives of its own. Checks for test_async_ranks.py."""

import concurrent.futures

import checks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tspool
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from tspool.torch import AsyncExecutor, Stager, StorageReader, StorageWriter, async_save, install, uninstall

OPTIONS = {"arena_bytes": 64 << 20, "deadline": 60}


def sharded(value, rows=1 << 16):
    return distribute_tensor(torch.full((rows, 8), float(value)), init_device_mesh("cpu", (2,)), [Shard(0)])


def reduced(times=20):
    """What a training step does between ranks."""
    total = torch.ones(10)
    for _ in range(times):
        dist.all_reduce(total.fill_(1))
    return total[0].item()


def check_the_trainers_collectives_and_the_saves_do_not_meet(folder):
    executor = AsyncExecutor()
    slow = {**OPTIONS, "bytes_per_second": 8 << 20}
    futures = []
    for number in range(3):
        writer = StorageWriter(folder / f"s{number}", **slow)
        futures.append(executor.execute_save({"w": sharded(number), "step": number}, storage_writer=writer))
        assert reduced() == 2
    reports = [future.result(60) for future in futures]
    told = [None, None]
    dist.all_gather_object(told, [sorted(report.state_dict_metadata) for report in reports])
    assert told[0] == told[1] == [["step", "w"]] * 3
    assert all(len(report.state_dict_metadata["w"].chunks) == 2 for report in reports)
    for number in range(3):
        found = {"w": sharded(-1), "step": -1}
        dcp.load(found, storage_reader=StorageReader(folder / f"s{number}"))
        assert found["w"].to_local().eq(number).all() and found["step"] == number


def check_a_rank_that_cannot_save_fails_the_futures_of_all(folder):
    executor = AsyncExecutor()
    refused = torch.ones(2, device="meta" if dist.get_rank() == 1 else "cpu")
    future = executor.execute_save(
        {"w": sharded(1), f"own.{dist.get_rank()}": refused}, storage_writer=StorageWriter(folder / "half", **OPTIONS)
    )
    failure = future.exception(60)
    assert isinstance(failure, tspool.SaveError) and failure.tensor == "own.1", failure
    assert dist.get_rank() == 1 or "rank 1" in failure.message
    executor.execute_save({"w": sharded(2)}, storage_writer=StorageWriter(folder / "next", **OPTIONS)).result(60)
    dist.barrier()
    assert not (folder / "half").exists() and tspool.verify(folder / "next").damaged == 0


def check_a_planner_that_raises_on_one_rank_fails_the_futures_of_all(folder):
    class Refusing(dcp.DefaultSavePlanner):
        def create_local_plan(self):
            if dist.get_rank() == 1:
                raise ValueError("no plan")
            return super().create_local_plan()

    future = AsyncExecutor().execute_save(
        {"w": sharded(1)}, storage_writer=StorageWriter(folder / "p", **OPTIONS), planner=Refusing()
    )
    assert isinstance(future.exception(60), tspool.SaveError) and "rank 1: ValueError: no plan" in str(future.exception())


def check_background_staging_under_a_guard(folder):
    parameter = torch.nn.Parameter(sharded(0))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    writer = StorageWriter(staging="background", guard=optimizer, **OPTIONS)
    uploads = []
    for step in range(3):
        parameter.grad = sharded(1)
        response = async_save({"w": parameter.detach()}, checkpoint_id=folder / f"g{step}", storage_writer=writer)
        optimizer.step()
        uploads.append(response.upload_completion)
    concurrent.futures.wait(uploads, 60)
    for step in range(3):
        uploads[step].result(0)
        found = {"w": sharded(9)}
        dcp.load(found, storage_reader=StorageReader(folder / f"g{step}"))
        assert found["w"].to_local().eq(-step).all()


def check_without_collectives(folder):
    future = async_save(
        {"own": torch.full((3,), float(dist.get_rank()))},
        storage_writer=StorageWriter(folder / "apart", **OPTIONS),
        use_collectives=False,
    )
    future.result(60)
    dist.barrier()
    assert tspool.verify(folder / "apart").damaged == 0


def check_torchtitan_with_install(folder):
    """A gloo group of its own for the checkpoints, and dcp.async_save by name."""
    group, stager = dist.new_group(backend="gloo"), Stager(use_async_staging=True)
    install()
    try:
        for step in range(2):
            response = dcp.async_save(
                {"w": sharded(step)}, checkpoint_id=str(folder / f"t{step}"), process_group=group, async_stager=stager
            )
            response.staging_completion.result(60)
            assert reduced() == 2
            response.upload_completion.result(60)
            found = {"w": sharded(-1)}
            dcp.load(found, checkpoint_id=str(folder / f"t{step}"), process_group=group)
            assert found["w"].to_local().eq(step).all() and (folder / f"t{step}" / ".metadata").is_file()
    finally:
        uninstall()
        stager.close()


if __name__ == "__main__":
    checks.run(globals())
