"""Saves beside the training, by DCP's calls: save, async_save, load, and the executor beneath.

One helper thread per executor, and no second Python process: tspool-writer is that. With our StorageWriter the caller's thread
plans (its collectives are the trainer's own, in the trainer's order) and stages straight from the tensors into the arena; the
helper waits and publishes, without collectives. Other writers are served as DCP's thread executor does: all of the save on the
helper.

An executor's saves end in the order in which they were asked for. A failure ends its own future and nothing else.
"""

from __future__ import annotations

import copy
import errno
import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint._async_executor import _AsyncCheckpointExecutor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager, BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load as _stock_load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.checkpoint.state_dict_saver import save as _stock_save
from torch.distributed.checkpoint.storage import StorageReader as AnyReader
from torch.distributed.checkpoint.storage import StorageWriter as AnyWriter
from torch.distributed.checkpoint.utils import _DistWrapper

from tspool._errors import Error, SaveError, SpoolError
from tspool._tree import collector_paused
from tspool.torch._planner import LoadPlanner as OurLoadPlanner
from tspool.torch._planner import SavePlanner as OurPlanner
from tspool.torch._quick import quick_of, stateful
from tspool.torch._reader import StorageReader
from tspool.torch._stager import Stager
from tspool.torch._writer import StorageWriter

_T = TypeVar("_T")
StateDict = dict[str, Any]
Id = str | os.PathLike[str]

_stock_stages = (BlockingAsyncStager.stage, FileSystemWriter.stage)


# Failures -----------------------------------------------------------------------------------------------------------------------


def _record_in(error: CheckpointException) -> Error | None:
    """The record of a failure of ours that DCP has wrapped. They hold each other: neither is made the other's cause."""
    failures = [failure for _, (failure, _) in sorted(error.failures.items())]
    return next((failure for failure in failures if isinstance(failure, Error)), None)


def record_of(error: BaseException) -> BaseException:
    """The failure as a tspool.Error where DCP has wrapped it: CheckpointException is no Exception, and most handlers miss it."""
    if not isinstance(error, CheckpointException) or not error.failures:
        return error
    record = _record_in(error)
    if record is None:
        rank, (failure, _) = min(error.failures.items())
        record = SaveError(f"rank {rank}: {type(failure).__name__}: {failure}", stage="declare")
        record.__cause__ = failure
    return record


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class _Options(NamedTuple):
    """What every call of DCP's takes."""

    planner: SavePlanner | None
    process_group: dist.ProcessGroup | None
    no_dist: bool
    use_collectives: bool


# Our writer: planned and staged here, waited for elsewhere ----------------------------------------------------------------------


class _Begun(NamedTuple):
    """A save that is staged, or being staged. `writer` is a copy that belongs to it alone."""

    writer: StorageWriter
    metadata: Metadata | None  # where this rank is the coordinator
    written: Any  # torch.futures.Future of this rank's results
    is_quick: bool = False


def _set_up(planner: SavePlanner, writer: AnyWriter, state: StateDict, ranks: _DistWrapper, use_collectives: bool) -> None:
    set_up: Callable[..., None] = planner.set_up_planner
    if "storage_meta" in inspect.signature(set_up).parameters:
        set_up(state_dict=state, storage_meta=writer.storage_meta(), is_coordinator=ranks.is_coordinator)
    else:
        set_up(state, ranks.is_coordinator)
    writer.set_up_storage_writer(ranks.is_coordinator, rank=ranks.rank, use_collectives=use_collectives)


def _plan(
    planner: SavePlanner, writer: AnyWriter, state: StateDict, ranks: _DistWrapper, use_collectives: bool
) -> tuple[SavePlan, Metadata | None]:
    """This rank's plan, and on the coordinator the metadata: as dcp.save does it."""
    metadata: Metadata | None = None

    def local_step() -> SavePlan:
        _set_up(planner, writer, state, ranks, use_collectives)
        return writer.prepare_local_plan(planner.create_local_plan())

    def global_step(plans: list[SavePlan]) -> list[SavePlan]:
        nonlocal metadata
        plans, metadata = planner.create_global_plan(plans)
        return writer.prepare_global_plan(plans)

    if use_collectives and ranks.use_dist:
        plan: SavePlan = ranks.reduce_scatter("plan", local_step, global_step)
    else:
        plan = global_step([local_step()])[0]
    return planner.finish_plan(plan), metadata


def _begin(state: StateDict, writer: StorageWriter, checkpoint_id: Id | None, options: _Options) -> _Begun:
    if checkpoint_id is not None:
        writer.reset(checkpoint_id)
    state = stateful(state)
    alone = options.no_dist or not _is_distributed()
    quick = quick_of(state) if alone and options.planner is None and type(writer) is StorageWriter else None
    if quick is not None:
        with collector_paused():
            metadata, written = writer.write_quick(quick)
        return _Begun(_own(writer), metadata, written, True)
    planner = options.planner or OurPlanner()
    ranks = _DistWrapper(options.process_group, not alone, 0)
    with collector_paused():
        plan, planned = _plan(planner, writer, state, ranks, options.use_collectives)
    written = writer.write_data(plan, planner)
    return _Begun(_own(writer), planned, written)


def _own(writer: StorageWriter) -> StorageWriter:
    """A copy for one save, that the next one does not change."""
    own = copy.copy(writer)
    own.attempt = writer.attempt
    return own


def _finish(begun: _Begun) -> Metadata:
    """On the helper thread: until this rank's part is durable, and the checkpoint published."""
    begun.written.wait()
    if begun.is_quick and begun.metadata is not None:
        return begun.metadata  # one rank: durable is published
    metadata = begun.writer.publish_when_whole(begun.metadata or Metadata({}))
    if begun.metadata is None:  # the coordinator's is on disk now
        return StorageReader(begun.writer.path).read_metadata()
    return metadata


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Upload(Future[Metadata]):
    """The future of a save with our writer."""

    def __init__(self, begun: _Begun) -> None:
        super().__init__()
        self._attempt = begun.writer.attempt

    def cancel(self) -> bool:
        """Gives the save up: nothing of it is left. False when it has ended."""
        return self._attempt is not None and self._attempt.abort() and super().cancel()

    def run(self, begun: _Begun) -> None:
        metadata, failure = None, None
        try:
            metadata = _finish(begun)
        except BaseException as error:
            failure = error
        if not self.set_running_or_notify_cancel():
            return
        if failure is not None:
            self.set_exception(record_of(failure))
        elif metadata is not None:
            self.set_result(metadata)


# The executor -------------------------------------------------------------------------------------------------------------------


class AsyncExecutor(_AsyncCheckpointExecutor):
    """Saves one after the other; each `execute_save` gives a future of DCP's Metadata. Several may be in flight.

    A failure is raised from the future: a tspool.Error with its record, or what a planner raised. Cancelling the future gives
    up the save; with other writers only one that has not begun.
    """

    def __init__(self) -> None:
        self._line = ThreadPoolExecutor(1, "tspool-save")
        self._pid = os.getpid()

    def execute_save(
        self,
        staging_future_or_state_dict: StateDict | Future[StateDict],
        *,
        checkpoint_id: Id | None = None,
        storage_writer: AnyWriter | None = None,
        planner: SavePlanner | None = None,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        use_collectives: bool = True,
    ) -> Future[Metadata]:
        self._check_process()
        state = staging_future_or_state_dict
        options = _Options(planner, process_group, no_dist, use_collectives)
        if isinstance(storage_writer, StorageWriter) and not isinstance(state, Future):
            return self._begin(state, storage_writer, checkpoint_id, options)[0]
        return self._line.submit(_save_whole, state, checkpoint_id, storage_writer, options)

    def _begin(
        self, state: StateDict, writer: StorageWriter, checkpoint_id: Id | None, options: _Options
    ) -> tuple[Future[Metadata], StorageWriter | None]:
        """The future, and what to wait with for the staging."""
        try:
            begun = _begin(state, writer, checkpoint_id, options)
        except (Exception, CheckpointException) as error:  # Ctrl-C is not the save's: it is raised here
            return _failed(record_of(error)), None
        upload = _Upload(begun)
        self._line.submit(upload.run, begun)
        return upload, begun.writer

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise SpoolError("a forked child may not use its parent's executor: make one of its own", errno=errno.EPERM)

    def shutdown(self) -> None:
        """Waits for its saves. At a normal exit of the interpreter that happens by itself."""
        self._line.shutdown(wait=True)


def _save_whole(
    state: StateDict | Future[StateDict], checkpoint_id: Id | None, writer: AnyWriter | None, options: _Options
) -> Metadata:
    staged = state.result() if isinstance(state, Future) else state
    save: Callable[..., Metadata] = _stock_save
    return _told(lambda: save(staged, checkpoint_id=checkpoint_id, storage_writer=writer, **options._asdict()))


def _told(call: Callable[[], _T]) -> _T:
    """A failure of ours as itself, wherever DCP has wrapped it."""
    try:
        return call()
    except CheckpointException as error:
        record = _record_in(error)
        if record is None:
            raise
    raise record


# The calls ----------------------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_default: tuple[AsyncExecutor, Stager] | None = None


def _defaults() -> tuple[AsyncExecutor, Stager]:
    """Those of this process: saves of one trainer are in one order, and its staging memory is used again."""
    global _default
    with _lock:
        if _default is None:
            _default = AsyncExecutor(), Stager()
        return _default


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _default, _lock
    _lock = threading.Lock()
    _default = None


os.register_at_fork(after_in_child=_forget)


def default_executor() -> AsyncExecutor:
    return _defaults()[0]


def _is_path(checkpoint_id: Id | None) -> bool:
    return checkpoint_id is not None and "://" not in os.fsdecode(checkpoint_id)


def _writer_of(writer: AnyWriter | None, checkpoint_id: Id | None) -> AnyWriter | None:
    """Ours where none was given; for URLs whatever DCP has for them."""
    return StorageWriter(checkpoint_id) if writer is None and _is_path(checkpoint_id) else writer


def _reader_of(checkpoint_id: Id | None) -> AnyReader | None:
    """By what stands there: DCP's own format is read by its own reader."""
    if checkpoint_id is None or not _is_path(checkpoint_id):
        return None
    if any(name.endswith(".metadata") for name in _names_in(checkpoint_id)):
        return None
    return StorageReader(checkpoint_id)


def _names_in(folder: Id) -> list[str]:
    try:
        return [os.fsdecode(name) for name in os.listdir(folder)]
    except OSError:
        return []  # the reader says what is wrong with it


def save(
    state_dict: StateDict,
    *,
    checkpoint_id: Id | None = None,
    storage_writer: AnyWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Metadata:
    """As torch.distributed.checkpoint.save; without a `storage_writer` in tspool's format. Failures are tspool.SaveError."""
    writer = _writer_of(storage_writer, checkpoint_id)
    options = _Options(planner, process_group, no_dist, use_collectives)
    if isinstance(writer, StorageWriter) and (no_dist or not _is_distributed()):
        return _told(lambda: _finish(_begin(state_dict, writer, checkpoint_id, options)))
    return _save_whole(state_dict, checkpoint_id, writer, options)


def load(
    state_dict: StateDict,
    *,
    checkpoint_id: Id | None = None,
    storage_reader: AnyReader | None = None,
    planner: LoadPlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
) -> None:
    """As torch.distributed.checkpoint.load, of checkpoints in tspool's and in DCP's own format."""
    reader = storage_reader or _reader_of(checkpoint_id)
    alone = no_dist or not _is_distributed()
    if isinstance(reader, StorageReader) and planner is None:
        if alone and reader.load_quick(state_dict, checkpoint_id):
            return
        planner = OurLoadPlanner()
    _told(
        lambda: _stock_load(
            state_dict, checkpoint_id=checkpoint_id, storage_reader=reader, planner=planner, process_group=process_group,
            no_dist=no_dist,
        )
    )  # fmt: skip


def async_save(
    state_dict: StateDict,
    *,
    checkpoint_id: Id | None = None,
    storage_writer: AnyWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    async_checkpointer_type: AsyncCheckpointerType = AsyncCheckpointerType.THREAD,
    async_stager: AsyncStager | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Future[Metadata] | AsyncSaveResponse:
    """As torch.distributed.checkpoint.async_save; without a `storage_writer` in tspool's format.

    The tensors may change when it returns, or, where it returns an AsyncSaveResponse, when staging_completion is done: with a
    stager that stages in the background, and with StorageWriter(staging="background"). `async_checkpointer_type` is taken and
    makes no difference: tspool-writer is the other process.
    """
    writer = _writer_of(storage_writer, checkpoint_id)
    options = _Options(planner, process_group, no_dist, use_collectives)
    return begin_async(state_dict, checkpoint_id, writer, async_stager, options)


def begin_async(
    state_dict: StateDict, checkpoint_id: Id | None, writer: AnyWriter | None, stager: AsyncStager | None, options: _Options
) -> Future[Metadata] | AsyncSaveResponse:
    executor, own_stager = _defaults()
    if isinstance(writer, StorageWriter) and stager is None:
        upload, staging = executor._begin(state_dict, writer, checkpoint_id, options)
        if writer.staging != "background":
            return upload
        return AsyncSaveResponse(_staging_of(staging, upload), upload)  # type: ignore[arg-type]
    stager = stager or _stager_of(writer) or own_stager
    staged = stager.stage(stateful(state_dict))
    upload = executor.execute_save(staged, checkpoint_id=checkpoint_id, storage_writer=writer, **options._asdict())
    if isinstance(staged, Future):
        return AsyncSaveResponse(_completion_of(staged), upload)  # type: ignore[arg-type]
    if stager.should_synchronize_after_execute:
        stager.synchronize_staging()
    return upload


def _stager_of(writer: AnyWriter | None) -> AsyncStager | None:
    """A writer that stages in a way of its own; DCP's own way keeps no memory, and ours is better."""
    if not isinstance(writer, AsyncStager) or type(writer).stage in _stock_stages:
        return None
    return writer


def _completion_of(staged: Future[StateDict]) -> Future[None]:
    completion: Future[None] = Future()

    def done(staged: Future[StateDict]) -> None:
        if staged.cancelled():
            completion.cancel()
            completion.set_running_or_notify_cancel()
            return
        failure = staged.exception()
        if failure is not None:
            completion.set_exception(failure)
        else:
            completion.set_result(None)

    staged.add_done_callback(done)
    return completion


def _staging_of(writer: StorageWriter | None, upload: Future[Metadata]) -> Future[None]:
    """The engine copies; a thread waits for it."""
    completion: Future[None] = Future()

    def wait_staged() -> None:
        try:
            if writer is not None:
                writer.wait_staged()
            elif (failure := upload.exception()) is not None:
                raise failure
        except BaseException as error:
            completion.set_exception(error)
        else:
            completion.set_result(None)

    threading.Thread(target=wait_staged, name="tspool-staged").start()
    return completion
