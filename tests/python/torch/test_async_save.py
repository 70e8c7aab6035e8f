"""Saves beside the training: order, failures, cancellation, types; by execute_save and by async_save."""

import concurrent.futures
import errno
import os
import pathlib
import threading
import warnings

import pytest
import tspool
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from tspool.torch import AsyncExecutor, Stager, StorageReader, StorageWriter, async_save, load, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def slow():
    """Options of a writer whose saves are still in flight in the next line: 16 MiB a second."""
    return {"arena_bytes": 128 << 20, "bytes_per_second": 16 << 20}


@pytest.fixture
def quick():
    return {"arena_bytes": 128 << 20}


def state(value=0.0, megabytes=1):
    return {"model": {"w": torch.full((megabytes << 18,), float(value))}, "step": int(value)}


def loaded(path, megabytes=1):
    into = state(-1, megabytes)
    load(into, checkpoint_id=path)
    return into


class Refusing(dcp.DefaultSavePlanner):
    """A planner that raises what it was made with."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def create_local_plan(self):
        raise self.error


def test_what_was_staged_is_what_is_saved(root, slow):
    values = state(3)
    future = AsyncExecutor().execute_save(values, storage_writer=StorageWriter(root / "a", **slow))
    values["model"]["w"].fill_(9)
    assert type(future).__mro__[1] is concurrent.futures.Future and not future.done()
    metadata = future.result(60)
    assert isinstance(metadata, Metadata) and "model.w" in metadata.state_dict_metadata
    assert metadata.state_dict_metadata == StorageReader(root / "a").read_metadata().state_dict_metadata
    into = loaded(root / "a")
    assert into["model"]["w"].eq(3).all() and into["step"] == 3


def test_several_are_in_flight_and_end_in_their_order(root, slow):
    executor, order = AsyncExecutor(), []
    futures = [executor.execute_save(state(n, 4), storage_writer=StorageWriter(root / f"s{n}", **slow)) for n in range(4)]
    assert not futures[3].done()
    for number, future in enumerate(futures):
        future.add_done_callback(lambda future, number=number: order.append(number))
    concurrent.futures.wait(futures, 60)
    executor.shutdown()
    assert order == [0, 1, 2, 3]
    assert all(loaded(root / f"s{n}", 4)["step"] == n for n in range(4))


def test_one_writer_serves_saves_that_overlap(root, slow):
    executor, writer = AsyncExecutor(), StorageWriter(**slow)
    futures = [executor.execute_save(state(n), checkpoint_id=root / f"s{n}", storage_writer=writer) for n in range(3)]
    assert [future.result(60).storage_meta.checkpoint_id for future in futures] == [str(root / f"s{n}") for n in range(3)]
    assert all(loaded(root / f"s{n}")["model"]["w"].eq(n).all() for n in range(3))


def test_a_failure_is_told_by_its_future_with_the_record_and_poisons_nothing(root, quick):
    executor = AsyncExecutor()
    before = executor.execute_save(state(1), storage_writer=StorageWriter(root / "before", **quick))
    before.result(60)
    failing = executor.execute_save(state(2), storage_writer=StorageWriter(root / "before", overwrite=False, **quick))
    after = executor.execute_save(state(3), storage_writer=StorageWriter(root / "after", **quick))
    with pytest.raises(tspool.SaveError) as failure:
        failing.result(60)
    assert failure.value.errno == errno.EEXIST and failure.value.path.endswith("before")
    assert after.result(60) and loaded(root / "before")["step"] == 1 and loaded(root / "after")["step"] == 3


def test_what_cannot_be_stored_is_named(root, quick):
    future = AsyncExecutor().execute_save({"a": torch.ones(2, device="meta")}, storage_writer=StorageWriter(root / "m", **quick))
    assert future.exception(60).tensor == "a" and isinstance(future.exception(), tspool.UnsupportedError)


@pytest.mark.parametrize(
    "error", [ValueError("a plan"), dcp.CheckpointException("plan", {})], ids=["an error", "a BaseException"]
)
def test_a_planner_that_raises_ends_its_future(root, quick, error):
    executor = AsyncExecutor()
    future = executor.execute_save(state(), storage_writer=StorageWriter(root / "p", **quick), planner=Refusing(error))
    assert future.exception(60) is not None
    executor.execute_save(state(4), storage_writer=StorageWriter(root / "q", **quick)).result(60)


def test_ctrl_c_while_planning_is_raised_there_and_the_next_save_goes_well(root, quick):
    executor = AsyncExecutor()
    with pytest.raises(KeyboardInterrupt):
        executor.execute_save(state(), storage_writer=StorageWriter(root / "c", **quick), planner=Refusing(KeyboardInterrupt()))
    executor.execute_save(state(5), storage_writer=StorageWriter(root / "d", **quick)).result(60)
    assert not (root / "c").exists() and loaded(root / "d")["step"] == 5


def test_a_base_exception_on_the_helper_thread_ends_its_future_only(root):
    """DCP's writer, whose saves run there whole."""
    executor = AsyncExecutor()
    writer = dcp.FileSystemWriter(root / "k")
    failing = executor.execute_save(state(), storage_writer=writer, planner=Refusing(KeyboardInterrupt()))
    after = executor.execute_save(state(6), storage_writer=dcp.FileSystemWriter(root / "l"))
    with pytest.raises((KeyboardInterrupt, dcp.CheckpointException)):
        failing.result(60)
    after.result(60)
    assert loaded(root / "l")["step"] == 6


def test_cancelling_gives_the_save_up_and_leaves_nothing(root, slow):
    executor = AsyncExecutor()
    first = executor.execute_save(state(1, 4), storage_writer=StorageWriter(root / "first", **slow))
    second = executor.execute_save(state(2, 8), storage_writer=StorageWriter(root / "second", **slow))
    third = executor.execute_save(state(3, 1), storage_writer=StorageWriter(root / "third", **slow))
    assert second.cancel() and second.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        second.result(60)
    assert first.result(60) and third.result(60)
    executor.shutdown()
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == ["first", "third"]
    assert not third.cancel() and not third.cancelled()


def test_a_save_that_waits_for_a_staging_future_begins_when_that_is_done(root, quick):
    executor, staging = AsyncExecutor(), concurrent.futures.Future()
    future = executor.execute_save(staging, storage_writer=StorageWriter(root / "f", **quick))
    assert not future.done()
    staging.set_result(state(7))
    future.result(60)
    assert loaded(root / "f")["step"] == 7


@pytest.mark.parametrize(
    "error", [OSError(5, "staging broke"), KeyboardInterrupt(), concurrent.futures.CancelledError()], ids=repr
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_staging_future_that_failed_fails_both_futures(root, quick, error, when):
    class Failing(Stager):
        def stage(self, state_dict):
            self.future = concurrent.futures.Future()
            if when == "before":
                self.future.set_exception(error)
            return self.future

    stager = Failing()
    response = async_save(state(), storage_writer=StorageWriter(root / "g", **quick), async_stager=stager)
    if when == "after":
        stager.future.set_exception(error)
    assert isinstance(response, AsyncSaveResponse)
    assert response.staging_completion.exception(60) is error and response.upload_completion.exception(60) is error
    async_save(state(8), storage_writer=StorageWriter(root / "h", **quick)).result(60)


def test_a_failure_that_dcp_has_wrapped_comes_as_itself_and_is_let_go(root, quick):
    """A record and the exception around it that held each other would keep the state dict until the next search for cycles."""
    staging = concurrent.futures.Future()
    staging.set_result({"a": torch.ones(2, device="meta")})
    future = AsyncExecutor().execute_save(staging, storage_writer=StorageWriter(root / "w", **quick))
    failure = future.exception(60)
    assert isinstance(failure, tspool.UnsupportedError) and failure.tensor == "a"
    assert failure.__cause__ is None and not isinstance(failure.__context__, dcp.CheckpointException)


def test_a_cached_plan_is_used_by_the_next_save_with_that_planner(root, quick):
    planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
    travelled = []

    class Watching(StorageWriter):
        def prepare_local_plan(self, plan):
            travelled.append(plan.usable)
            return super().prepare_local_plan(plan)

    executor = AsyncExecutor()
    try:
        for number in range(3):
            executor.execute_save(state(number), storage_writer=Watching(root / f"s{number}", **quick), planner=planner).result(
                60
            )
    finally:
        for cache in (
            "_cached_save_plan",
            "_cached_all_plans",
            "_cached_global_plan",
            "_cached_metadata",
            "_cached_final_save_plan",
        ):
            getattr(dcp.SavePlanner, cache).clear()
    assert travelled == [True, False, False]
    assert [loaded(root / f"s{number}")["model"]["w"][0] for number in range(3)] == [0, 1, 2]


def test_async_save_returns_dcps_types(root, quick):
    future = async_save(state(1), checkpoint_id=root / "a", storage_writer=StorageWriter(**quick))
    assert isinstance(future, concurrent.futures.Future) and isinstance(future.result(60), Metadata)
    stager = Stager(use_async_staging=True)
    response = async_save(state(2), checkpoint_id=root / "b", storage_writer=StorageWriter(**quick), async_stager=stager)
    assert isinstance(response, AsyncSaveResponse)
    assert response.staging_completion.result(60) is None and isinstance(response.upload_completion.result(60), Metadata)
    response = async_save(
        state(3), storage_writer=StorageWriter(root / "c", staging="background", **quick),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    )  # fmt: skip
    assert isinstance(response, AsyncSaveResponse) and response.staging_completion.result(60) is None
    assert isinstance(response.upload_completion.result(60), Metadata)
    stager.close()
    assert [loaded(root / name)["step"] for name in "abc"] == [1, 2, 3]


def test_a_refused_background_save_fails_both_futures(root, quick):
    writer = StorageWriter(root / "m", staging="background", **quick)
    response = async_save({"a": torch.ones(1, device="meta")}, storage_writer=writer)
    assert isinstance(response.staging_completion.exception(60), tspool.UnsupportedError)
    assert isinstance(response.upload_completion.exception(60), tspool.UnsupportedError)


def test_by_default_it_is_our_format_and_load_reads_both(root):
    assert isinstance(save(state(1), checkpoint_id=root / "ours"), Metadata)
    async_save(state(2), checkpoint_id=root / "beside").result(60)
    dcp.save(state(3), checkpoint_id=root / "dcp")
    assert tspool.latest(root) and tspool.verify(root / "ours").damaged == 0
    assert [loaded(root / name)["step"] for name in ("ours", "beside", "dcp")] == [1, 2, 3]


def test_another_writer_is_staged_by_ours_and_written_on_the_helper_thread(root):
    values, threads = state(4), []

    class Watched(dcp.FileSystemWriter):
        def write_data(self, plan, planner):
            threads.append(threading.current_thread().name)
            return super().write_data(plan, planner)

    future = async_save(values, storage_writer=Watched(root / "d"))
    values["model"]["w"].fill_(9)
    future.result(60)
    assert threads[0].startswith("tspool-save") and loaded(root / "d")["model"]["w"].eq(4).all()


def test_a_writer_that_stages_in_a_way_of_its_own_is_asked_to(root):
    class Own(dcp.FileSystemWriter):
        def stage(self, state_dict):
            return {"model": {"w": torch.full((1 << 18,), 11.0)}, "step": 11}

    async_save(state(1), storage_writer=Own(root / "o")).result(60)
    assert loaded(root / "o")["step"] == 11


def test_stateful_objects_are_asked_for_their_state(root):
    model = torch.nn.Linear(3, 3)
    async_save({"model": model}, checkpoint_id=root / "s").result(60)
    other = torch.nn.Linear(3, 3)
    load({"model": other}, checkpoint_id=root / "s")
    assert torch.equal(model.weight, other.weight)


def test_there_is_no_other_process_than_the_writer_and_no_process_group(root, quick):
    def children():
        found = set()
        for task in pathlib.Path("/proc/self/task").iterdir():
            found |= set((task / "children").read_text().split())
        return found

    before = children()
    writer = StorageWriter(root / "a", item_bytes=1 << 20, **quick)  # options that no other test's spool has
    async_save(state(), storage_writer=writer, async_checkpointer_type=AsyncCheckpointerType.PROCESS).result(60)
    (made,) = children() - before
    assert pathlib.Path(f"/proc/{made}/comm").read_text().strip() == "tspool-writer"
    assert not torch.distributed.is_initialized()


def test_a_forked_child_makes_its_own_executor(root, quick):
    executor = AsyncExecutor()
    executor.execute_save(state(1), storage_writer=StorageWriter(root / "p", **quick)).result(60)
    child = os.fork()
    if child == 0:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(tspool.SpoolError, match="forked child"):
                    executor.execute_save({}, storage_writer=StorageWriter(root / "no", **quick))
                # small: torch's threads do not survive a fork
                async_save({"w": torch.ones(3)}, storage_writer=StorageWriter(root / "own", **quick)).result(60)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tspool.verify(root / "own").damaged == 0
