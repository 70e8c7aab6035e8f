"""What happens to whole processes with a save by async_save under way: exits, exceptions, kills of trainer and writer, forks."""

import os
import signal

import pytest
import tspool
import torch

from tspool.torch import AsyncExecutor, StorageWriter, async_save, load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

BEGIN = """
import os, sys, time, warnings
import torch, tspool
from tspool.torch import Stager, StorageWriter, async_save
import torch.distributed.checkpoint as dcp
warnings.simplefilter("ignore")
torch.set_num_threads(1)
root = sys.argv[1]
def writer(name, rate=16 << 20, **options):
    return StorageWriter(f"{root}/{name}", arena_bytes=64 << 20, bytes_per_second=rate, **options)
def state(megabytes=16, value=1.0):
    return {"w": torch.full((megabytes << 18,), value), "step": 3}
"""


def is_whole(path, value=1.0, megabytes=16):
    into = {"w": torch.zeros(megabytes << 18), "step": 0}
    load(into, checkpoint_id=path)
    return tspool.verify(path).damaged == 0 and bool(into["w"].eq(value).all()) and into["step"] == 3


@pytest.mark.parametrize("how", ["pass", "sys.exit(3)", "raise ValueError('training failed')"])
def test_the_interpreters_exit_waits_for_the_save_in_flight(script, root, how):
    trainer = script(
        BEGIN + f"future = async_save(state(), storage_writer=writer('kept')); assert not future.done(); {how}", root
    )
    trainer.end({"pass": 0, "sys.exit(3)": 3}.get(how, 1))
    assert is_whole(root / "kept")


def test_it_waits_for_a_save_that_is_staged_in_the_background_too(script, root):
    script(BEGIN + "response = async_save(state(), storage_writer=writer('kept', staging='background'))", root).end()
    assert is_whole(root / "kept")


def test_it_waits_for_dcps_own_writer(script, root):
    script(BEGIN + "async_save(state(), storage_writer=dcp.FileSystemWriter(f'{root}/kept'))", root).end()
    into = {"w": torch.zeros(16 << 18), "step": 0}
    load(into, checkpoint_id=root / "kept")
    assert into["w"].eq(1).all() and into["step"] == 3


def test_an_exception_in_the_training_loop_costs_the_save_nothing(root):
    executor = AsyncExecutor()
    try:
        future = executor.execute_save({"w": torch.ones(1 << 20)}, storage_writer=StorageWriter(
            root / "a", arena_bytes=64 << 20, bytes_per_second=16 << 20))  # fmt: skip
        raise RuntimeError("loss is nan")
    except RuntimeError:
        assert future.result(60)
    assert tspool.verify(root / "a").damaged == 0


def test_a_trainer_that_is_killed_after_staged_leaves_the_save_to_the_writer(script, root, appears):
    trainer = script(
        BEGIN + "async_save(state(24), storage_writer=writer('kept')); print('staged', flush=True); time.sleep(600)", root
    )
    assert trainer.line() == "staged"
    trainer.process.kill()
    trainer.process.wait()
    assert appears(root / "kept") == tspool.latest(root, timeout=None)
    assert is_whole(root / "kept", megabytes=24)


def test_a_trainer_that_is_killed_before_staged_leaves_the_last_checkpoint(script, root):
    trainer = script(
        BEGIN
        + """
async_save(state(), storage_writer=writer('before', 0)).result(60)
async_save(state(512), storage_writer=writer('half', 1 << 20, staging='background'))
print('staging', flush=True); time.sleep(600)
""",
        root,
    )
    assert trainer.line() == "staging"
    trainer.process.kill()
    trainer.process.wait()
    assert tspool.latest(root, timeout=None) == str(root / "before") and is_whole(root / "before")


def test_a_writer_that_is_killed_in_mid_save_costs_time_and_nothing_else(root):
    writer = StorageWriter(root / "killed", arena_bytes=64 << 20, bytes_per_second=32 << 20)
    future = async_save({"w": torch.ones(6 << 20), "step": 3}, storage_writer=writer)
    os.kill(writer.attempt._save._spool.writer_pid, signal.SIGKILL)
    assert torch.ones(100, 100).mm(torch.ones(100, 100))[0, 0] == 100  # torch runs on
    future.result(60)
    assert writer.attempt._save.status().attempts > 1 and is_whole(root / "killed", megabytes=24)
    async_save({"w": torch.ones(10)}, checkpoint_id=root / "after", storage_writer=writer).result(60)


def test_data_loader_workers_fork_and_exit_during_a_save(root):
    writer = StorageWriter(root / "a", arena_bytes=64 << 20, bytes_per_second=16 << 20)
    future = async_save({"w": torch.ones(4 << 20)}, storage_writer=writer)
    loader = torch.utils.data.DataLoader(list(range(64)), num_workers=2, multiprocessing_context="fork")
    assert sum(int(batch) for batch in loader) == sum(range(64))
    assert future.result(60) and tspool.verify(root / "a").damaged == 0


def test_ctrl_c_while_waiting_for_the_future_ends_the_wait_and_not_the_save(script, root):
    trainer = script(
        BEGIN
        + """
future = async_save(state(32), storage_writer=writer('kept', 12 << 20))
try:
    print('ready', flush=True)
    future.result()
except KeyboardInterrupt:
    print('interrupted', future.done(), flush=True)
""",
        root,
    )
    assert trainer.line() == "ready"
    trainer.process.send_signal(signal.SIGINT)
    assert trainer.line() == "interrupted False"
    trainer.end()
    assert is_whole(root / "kept", megabytes=32)
