"""One save of one rank, from the plan to the publication.

    staged    every tensor was copied (staging "now": when `stage` returned)
    durable   this rank's part is on disk; with one rank that is the publication
    published by `publish`, once the coordinator knows that all are durable, or by `publish_when_whole`, where each rank comes
              by itself: whoever finds the last part there publishes, and all hear of it

What fails on one rank is told to the others in the store, so that nobody waits for a part that will not come.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from tspool._errors import Error, SaveError, UnsupportedError, WaitTimeout
from tspool._leaves import TORCH, Leaf, leaf_of
from tspool._save import Save
from tspool._spool import publish
from tspool._tree import collector_paused, is_text, metadata_text
from tspool.torch import _leftovers as leftovers
from tspool.torch import _structure
from tspool.torch._agree import Agreement, Meeting, poll
from tspool.torch._quick import Quick
from tspool.torch._spools import borrowed

_LOOK_SECONDS = 2.0  # without a verdict, until a rank looks after whoever was to publish, and after those that are missing

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DTYPES = {getattr(torch, name): dtype for name, dtype in TORCH.items() if hasattr(torch, name) and dtype != "F4"}

_log = logging.getLogger("tspool")
_lock = threading.Lock()


class Written(torch.futures.Future[list[WriteResult]]):
    """What DCP waits for: this rank's results, once its part is durable. Unlike its base it listens to Ctrl-C."""

    attempt: Attempt

    def wait(self) -> list[WriteResult]:
        with self.attempt.awaiting():
            self.attempt.wait_durable()
        results: list[WriteResult] = super().wait()
        return results


class Request(NamedTuple):
    """What the writer was asked for."""

    path: str
    settings: dict[str, Any]
    """of the save"""
    options: dict[str, Any]
    """of the spool"""
    deadline: float
    is_shared: bool
    """the planner has seen to it that each object is saved by one rank"""
    ties: bool

    @property
    def root(self) -> str:
        return os.path.dirname(self.path)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


class Attempt:
    def __init__(self, request: Request, agreement: Agreement) -> None:
        self.request = request
        self.agreement = agreement
        self.meeting = Meeting(agreement, request.path) if agreement.world_size > 1 else None
        self.results: list[WriteResult] = []
        self.has_ended = False
        self._awaiting = 0  # threads that wait for it, or publish it
        self._save: Save | None = None
        self._is_copied_now = request.settings["staging"] == "now"
        self._until = time.monotonic() + request.deadline

    # Staging --------------------------------------------------------------------------------------------------------------------

    def stage(self, plan: SavePlan, planner: SavePlanner, metadata: dict[str, object]) -> Written:
        """Hands the plan's data to the engine. Raises what the engine, or the planner, refuses."""
        return self._stage(lambda save: self._declare(save, plan, planner), metadata)

    def stage_quick(self, quick: Quick, metadata: dict[str, object]) -> Written:
        """The same without a plan."""
        return self._stage(lambda save: quick.declare(save, self.agreement.rank, not self.request.ties), metadata)

    def _stage(self, declare: Callable[[Save], None], metadata: dict[str, object]) -> Written:
        agreement, request = self.agreement, self.request
        if self.meeting is not None and agreement.rank == 0:
            leftovers.note(self, request.root, request.name, agreement.save_id)
        try:
            with borrowed(request.root, agreement.rank, agreement.world_size, **request.options) as spool:
                save = spool.begin(request.name, save_id=agreement.save_id, deadline=request.deadline, **request.settings)
                save._seen = True  # its failure is told here, and to nobody else
                with collector_paused():
                    declare(save)
                for key, value in metadata.items():
                    save.add_metadata(*metadata_text(key, value))
                save.submit()
        except BaseException as error:
            self._fail(error)
            raise
        self._save = save
        written = Written()
        written.attempt = self
        save.add_done_callback(lambda save: self._tell(save, written))
        return written

    def _declare(self, save: Save, plan: SavePlan, planner: SavePlanner) -> None:
        objects: dict[str, str] = {}
        for item in plan.items:
            if not is_text(item.index.fqn):
                raise UnsupportedError(
                    f"{item.index.fqn!r} is no name: no NUL and no surrogates; encode it", stage="declare", tensor=item.index.fqn
                )
            data = planner.resolve_data(item)
            if item.type == WriteItemType.BYTE_IO:
                size = self._declare_object(save, item, data, objects)
            else:
                size = self._declare_tensor(save, item, data)
            self.results.append(WriteResult(item.index, size, self.agreement.save_id.hex()))
        text = _structure.encode((item.index.fqn for item in plan.items), plan.planner_data, objects)
        save.add_object(_structure.name_of(self.agreement.rank), "json", text)

    def _declare_object(self, save: Save, item: WriteItem, data: Any, objects: dict[str, str]) -> int:
        name = item.index.fqn
        if not isinstance(data, io.BytesIO):
            raise UnsupportedError(f'"{name}": the planner gave a {type(data).__name__} for bytes', stage="declare", tensor=name)
        stored = _structure.object_name(name, self.agreement.rank, self.request.is_shared)
        if stored != name:
            objects[name] = stored
        bytes = data.getbuffer()
        save.add_object(stored, _structure.KIND, bytes)
        return bytes.nbytes

    def _declare_tensor(self, save: Save, item: WriteItem, tensor: Any) -> int:
        name, planned = item.index.fqn, item.tensor_data
        assert planned is not None
        if not isinstance(tensor, torch.Tensor) or tensor.shape != planned.chunk.sizes:
            found = f"{list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
            raise UnsupportedError(
                f'"{name}" is planned as {list(planned.chunk.sizes)} and the planner gave {found}', stage="declare", tensor=name
            )
        leaf = self._leaf(save, tensor, name)
        whole, offsets, untied = None, None, not self.request.ties
        if item.type == WriteItemType.SHARD and (self.agreement.world_size > 1 or planned.size != planned.chunk.sizes):
            whole, offsets = tuple(planned.size), tuple(planned.chunk.offsets)
            if leaf.dtype == "F4":  # torch counts its bytes
                whole, offsets = (*whole[:-1], 2 * whole[-1]), (*offsets[:-1], 2 * offsets[-1])
        save._add(name, tensor, leaf, whole, offsets, untied)
        return int(tensor.nbytes)

    def _leaf(self, save: Save, tensor: torch.Tensor, name: str) -> Leaf:
        """For a hundred thousand tensors the storage objects that keep their memory are half of the time; what is copied before
        `stage` returns needs none."""
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None or type(tensor) not in _PLAIN or not tensor.is_cpu or not self._is_copied_now or _is_special(tensor):
            leaf = leaf_of(tensor, name, save.may_stay)
            assert leaf is not None
            return leaf
        return Leaf("torch", dtype, tensor.shape, tensor.stride(), tensor.data_ptr(), tensor)

    # Waiting --------------------------------------------------------------------------------------------------------------------

    def abort(self) -> bool:
        """Gives it up; False when it has ended."""
        return self._save is not None and self._save.abort()

    def wait_staged(self, timeout: float | None = None) -> None:
        if self._save is not None:
            self._save.wait_staged(timeout)

    def wait_durable(self, timeout: float | None = None) -> None:
        if self._save is not None:
            self._save.wait_durable(timeout)

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        with _lock:
            self._awaiting += 1
        try:
            yield
        finally:
            with _lock:
                self._awaiting -= 1

    def is_awaited(self) -> bool:
        return self._awaiting > 0

    def is_done(self) -> bool:
        return self._save is not None and self._save.done()

    def _tell(self, save: Save, written: Written) -> None:
        failure = save.exception(0)
        if failure is None:
            written.set_result(self.results)
            return
        self._fail(failure)
        written.set_exception(failure)  # type: ignore[arg-type]  # torch's annotation is of the result

    def _fail(self, error: BaseException) -> None:
        """Tells the other ranks. This rank's error is what matters here: that nobody hears of it is not another."""
        self.has_ended = True
        if self.meeting is None:
            return
        try:
            self.meeting.decide(_record(error))
        except Exception:
            _log.warning("could not tell the other ranks that the save of %r failed", self.request.path, exc_info=True)

    # Publishing -----------------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """All parts are durable: one rank publishes them."""
        with self.awaiting():
            self.wait_durable()
            if self.meeting is None:
                return
            answer = poll(lambda: None if _is_busy(found := self._published()) else found, self._until)
            failure = self._published() if answer is None else answer
        self.has_ended = True
        if failure:
            raise failure
        leftovers.strike(self)

    def _published(self) -> SaveError | Literal[False]:
        """Why not, or False: it is."""
        request, agreement = self.request, self.agreement
        try:
            publish(request.root, request.name, agreement.save_id, agreement.world_size)
        except SaveError as error:
            return error
        return False

    def publish_when_whole(self, timeout: float | None = None) -> None:
        """On every rank, from any thread: returns when the checkpoint is published, or raises why it will not be. At the timeout
        the save goes on; at its deadline it has failed, for all."""
        until = self._until if timeout is None else min(self._until, time.monotonic() + timeout)
        with self.awaiting():
            self.wait_durable(max(0.0, until - time.monotonic()))
            if self.meeting is None:
                return
            try:
                failure = self._meet(self.meeting, until)
            except Error:
                raise
            except Exception as error:  # the store is gone, with the process that held it
                failure = self._alone(error)
        self.has_ended = True
        if failure is not None:
            raise failure
        leftovers.strike(self)

    def _meet(self, meeting: Meeting, until: float) -> Error | None:
        decided = meeting.verdict()
        while decided is None:
            if meeting.arrive():
                decided = (self._decide(meeting),)
                break
            decided = poll(meeting.verdict, min(until, time.monotonic() + _LOOK_SECONDS)) or self._bury(meeting)
            if decided is None and time.monotonic() >= until:
                decided = (self._give_up(meeting),)
        meeting.leave()
        return decided[0]

    def _bury(self, meeting: Meeting) -> tuple[Error | None] | None:
        """Is there a rank that died? What it had staged its writer finishes; what stands on disk decides."""
        dead = meeting.dead()
        refusal = self._published() if dead else None
        if refusal is None or _is_busy(refusal):
            return None
        return (meeting.decide(_dead(meeting, dead, refusal) if refusal else None),)

    def _decide(self, meeting: Meeting) -> Error | None:
        try:
            self.publish()
        except Error as error:
            return meeting.decide(error)
        return meeting.decide(None)

    def _give_up(self, meeting: Meeting) -> Error | None:
        if time.monotonic() >= self._until:
            return meeting.decide(_late(meeting))
        raise WaitTimeout(f"{self.request.path!r} is not published yet; its save goes on", errno=errno.ETIMEDOUT)

    def _alone(self, error: Exception) -> Error | None:
        """Nobody can be asked any more. What stands on disk decides: if all parts are there, it is a checkpoint."""
        refusal = self._published()
        if not refusal:
            return None
        return SaveError(
            f"the store that the ranks meet in is gone ({error}), and {self.request.path!r} is not whole: {refusal.message}",
            errno=errno.ENOTCONN, stage="publish", path=self.request.path,
        )  # fmt: skip


def _is_special(tensor: torch.Tensor) -> bool:
    return tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg() or tensor.is_nested


def _is_busy(failure: SaveError | Literal[False]) -> bool:
    return isinstance(failure, SaveError) and failure.errno == errno.EAGAIN


def _late(meeting: Meeting) -> SaveError:
    absent = meeting.absent(range(meeting.agreement.world_size))
    ranks = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    return SaveError(
        f"{meeting.path!r} was not whole in time: nothing was heard of the part of rank {ranks}" if absent
        else f"{meeting.path!r} was not published in time",
        errno=errno.ETIMEDOUT, stage="publish", path=meeting.path,
    )  # fmt: skip


def _dead(meeting: Meeting, dead: list[int], refusal: SaveError) -> SaveError:
    ranks = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
    return SaveError(
        f"rank {ranks} died before its part of {meeting.path!r} was whole: {refusal.message}", errno=errno.ESRCH, stage="publish",
        path=meeting.path,
    )  # fmt: skip


def _record(error: BaseException) -> Error:
    if isinstance(error, Error):
        return error
    return SaveError(f"{type(error).__name__}: {error}", stage="declare")
