"""200 saves by async_save, by every way it has, leave nothing behind: no descriptors, no threads, no memory, no processes."""

import gc
import os

import pytest
import torch

from tspool.torch import AsyncExecutor, Stager, StorageWriter, async_save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def usage():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident


def test_200_saves_leave_nothing_behind(root):
    parameter = torch.nn.Parameter(torch.zeros(100, 100))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter])
    stager = Stager(use_async_staging=True, guard=optimizer)
    writer = StorageWriter(arena_bytes=64 << 20)
    background = StorageWriter(staging="background", arena_bytes=64 << 20)
    executor = AsyncExecutor()

    def once(number):
        optimizer.step()
        state = {"model": {"w": parameter.detach()}, "optimizer": optimizer.state_dict(), "step": number}
        futures = [async_save(state, checkpoint_id=root / "now", storage_writer=writer)]
        response = async_save(state, checkpoint_id=root / "background", storage_writer=background)
        futures.append(response.upload_completion)
        response.staging_completion.result(60)
        futures.append(executor.execute_save(stager.stage(state), checkpoint_id=root / "staged", storage_writer=writer))
        for future in futures:
            future.result(60)
        refused = async_save({"m": torch.ones(1, device="meta")}, checkpoint_id=root / "refused", storage_writer=writer)
        assert refused.exception(60) is not None

    # The writers share an arena of four slots. How many of them a round needs depends on how its saves overlap, and to populate
    # one more is no leak: all are populated before.
    async_save({"m": torch.ones(60 << 20, dtype=torch.uint8)}, checkpoint_id=root / "whole", storage_writer=writer).result(60)
    for number in range(15):
        once(number)
    before = usage()
    for number in range(67):
        once(number)
    after = usage()
    stager.close()
    executor.shutdown()
    assert after[0] <= before[0] and after[1] <= before[1] + 1, (before, after)  # the thread of a staging that is just ending
    assert after[2] - before[2] < 6 << 20, (before, after)
