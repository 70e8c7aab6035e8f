"""The storage writer that DCP's save and async_save are given: the plan's tensors go to the engine as they are planned.

It keeps nothing of one save in a plan, because a cached plan comes back with the next one; and nothing that cannot be pickled,
because DCP's process executor sends the writer to another process.
"""

from __future__ import annotations

import errno
import inspect
import os
import stat
from collections.abc import Mapping
from typing import Any, Literal

import torch.distributed as dist
from torch.distributed.checkpoint.storage import StorageWriter as _StorageWriter
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

from tspool._errors import SaveError
from tspool._spool import Spool
from tspool.torch import _leftovers as leftovers
from tspool.torch._agree import Agreement, announce, count_of, fresh_id, hear, introduce
from tspool.torch._attempt import Attempt, Request, Written
from tspool.torch._memory import has_cuda, pin_arena
from tspool.torch._quick import Quick

_MANIFEST = "tspool.manifest.json"
_SPOOL_OPTIONS = frozenset(inspect.signature(Spool).parameters) - {"root", "rank", "world_size", "deadline"}


class StorageWriter(_StorageWriter):
    """Saves in tspool's format. `path` is the checkpoint's directory; `checkpoint_id` of dcp.save takes its place.

    staging: "now" (write_data returns when all tensors were copied) or "background" (at once: wait_staged before they change).
    guard: with "background", an optimizer or a list of them, whose next step waits for the copying by itself.
    overwrite: a checkpoint of that name is exchanged, atomically, and files of others in it are kept; else it is an error.
    metadata: texts and numbers of yours; "step" orders checkpoints for tspool.latest.
    ties: tensors that share their memory are stored once, which PyTorch's HuggingFaceStorageReader does not know: it misses the
    other names. By default each is stored under its own name.
    deadline: seconds from the beginning of a save in which it must be durable, and for which the ranks wait for each other.
    world_size, process_group: only for `use_collectives=False`, where DCP does not tell, and only if the ranks of the save are
    not those of the default group.
    Further options are those of tspool.Spool. A writer serves one save at a time; `attempt` is the one that was begun last, and
    whoever begins another before that is published keeps it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        staging: Literal["now", "background"] = "now",
        overwrite: bool = True,
        metadata: Mapping[str, object] | None = None,
        ties: bool = False,
        deadline: float = 1800.0,
        check_torn: bool = False,
        guard: object = None,
        world_size: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        **spool_options: Any,
    ) -> None:
        unknown = sorted(set(spool_options) - _SPOOL_OPTIONS)
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no option of StorageWriter, nor of tspool.Spool: {sorted(_SPOOL_OPTIONS)}")
        super().__init__()
        self.path = None if path is None else _normal(path)
        self.staging = staging
        self.overwrite = overwrite
        self.metadata: dict[str, object] = dict(metadata or {})
        self.ties = ties
        self.deadline = deadline
        self.check_torn = check_torn
        self.guard = guard
        self.spool_options = spool_options
        self.attempt: Attempt | None
        self._world_size = world_size
        self._process_group = process_group
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "attempt": None, "guard": None, "_process_group": None}

    def _begin(self) -> None:
        self.attempt = None
        self._save_id = fresh_id()  # which the others hear from the coordinator, and which is forgotten elsewhere
        self._is_set_up = False
        self._is_coordinator = True
        self._use_collectives = True
        self._rank = 0
        self._count: int | None = None
        self._agreement: Agreement | None = None

    # As DCP calls it ------------------------------------------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self.path = _normal(checkpoint_id)
        self._begin()

    def storage_meta(self) -> StorageMeta:
        if self._is_set_up:
            self._begin()
        return StorageMeta(checkpoint_id=self.path, save_id=self._save_id.hex())

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if self._is_set_up:
            self._begin()
        self._is_set_up = True
        leftovers.sweep()
        introduce()
        self._is_coordinator = is_coordinator
        self._use_collectives = kwargs.get("use_collectives", True)
        self._rank = kwargs.get("rank", 0 if is_coordinator or not dist.is_initialized() else dist.get_rank())
        if not self._use_collectives and self._size_without_collectives() > 1:
            self._count = count_of(self._path())

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        _check_place(self._path())
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if self._use_collectives:
            self._agreement = Agreement(self._save_id, self._rank, len(plans))
            if len(plans) > 1:
                announce(self._path(), self._agreement)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Written:
        agreement = self._agree()
        self.attempt = Attempt(self._request(self._use_collectives or agreement.world_size == 1), agreement)
        return self.attempt.stage(plan, planner, self.metadata)

    def _request(self, is_shared: bool = True) -> Request:
        settings = {
            "staging": self.staging, "replace": self.overwrite, "check_torn": self.check_torn, "guard": self.guard,
            "on_device": has_cuda(),
        }  # fmt: skip
        options = {"on_arena": pin_arena, **self.spool_options} if has_cuda() else self.spool_options
        return Request(self._path(), settings, options, self.deadline, is_shared, self.ties)

    def write_quick(self, quick: Quick) -> tuple[Metadata, Written]:
        """All of a save by one process as far as `finish`, without a plan."""
        self._begin()
        self._is_set_up = True
        _check_place(self._path())
        self._agreement = Agreement(self._save_id, 0, 1)
        self.attempt = Attempt(self._request(), self._agreement)
        written = self.attempt.stage_quick(quick, self.metadata)
        metadata = quick.metadata(self._save_id.hex())
        metadata.storage_meta = StorageMeta(checkpoint_id=self.path, save_id=self._save_id.hex())
        return metadata, written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        attempt = self._last()
        if self._use_collectives:
            self._check_results(attempt, results)
            attempt.publish()
        else:
            attempt.publish_when_whole()
        self._complete(metadata, results)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        try:
            path = _normal(checkpoint_id)
        except (TypeError, ValueError):
            return False
        return not os.path.exists(path) or os.path.isdir(path)

    @property
    def checkpoint_id(self) -> str | None:
        return self.path

    # For asynchronous saves -----------------------------------------------------------------------------------------------------

    def wait_staged(self, timeout: float | None = None) -> None:
        """Returns when the tensors of the last save were copied: from then on they may change."""
        if self.attempt is not None:
            self.attempt.wait_staged(timeout)

    def publish_when_whole(self, metadata: Metadata, timeout: float | None = None) -> Metadata:
        """Instead of `finish`, on every rank and from any thread, without collectives: waits for the parts of all ranks; the last
        to come publishes. Returns when the checkpoint is published; raises, on all ranks, when it will not be."""
        attempt = self._last()
        attempt.publish_when_whole(timeout)
        self._complete(metadata, [attempt.results])
        return metadata

    # Inside ---------------------------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        if self.path is None:
            raise ValueError("no path was given: StorageWriter(path), or checkpoint_id= of dcp.save")
        return self.path

    def _last(self) -> Attempt:
        if self.attempt is None:
            raise SaveError(f"nothing was written to {self.path!r} yet", errno=errno.EINVAL)
        return self.attempt

    def _size_without_collectives(self) -> int:
        if self._world_size is not None:
            return self._world_size
        if not dist.is_initialized() or dist.get_rank(self._process_group) != self._rank:
            return 1  # no_dist makes every rank rank 0
        return dist.get_world_size(self._process_group)

    def _agree(self) -> Agreement:
        if self._agreement is not None:
            return self._agreement
        if self._use_collectives and not self._is_coordinator:
            return hear(self._path(), self._rank, self.deadline)
        if self._use_collectives or self._count is None:
            return Agreement(self._save_id, 0, 1)
        if not self._is_coordinator:
            return hear(self._path(), self._rank, self.deadline, self._count)
        agreement = Agreement(self._save_id, self._rank, self._size_without_collectives())
        announce(self._path(), agreement, self._count)
        return agreement

    def _check_results(self, attempt: Attempt, results: list[list[WriteResult]]) -> None:
        expected = attempt.agreement.save_id.hex()
        for rank, written in enumerate(results):
            if written and written[0].storage_data != expected:
                raise SaveError(
                    f"rank {rank} saved {self.path!r} under another save id than rank {self._rank}: are two under way?",
                    errno=errno.EINVAL, stage="publish", path=self._path(),
                )  # fmt: skip

    def _complete(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_meta = StorageMeta(checkpoint_id=self.path, save_id=self._last().agreement.save_id.hex())
        metadata.storage_data = {result.index: result.storage_data for written in results for result in written}


def _normal(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    if "://" in text:
        raise ValueError(f"{text!r} is no directory: tspool writes to mounted file systems")
    if not text or "\0" in text or not os.path.basename(os.path.abspath(text)):
        raise ValueError(f"{text!r} is no directory's name")
    return os.path.abspath(text)


def _is_others(name: str) -> bool:
    return name.endswith((".distcp", ".safetensors", ".metadata"))


def _check_place(path: str) -> None:
    """Readers of another checkpoint in that directory would find its files beside ours, and take them for one."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return  # the engine says what it is
        names = os.listdir(path)
    except FileNotFoundError:
        return
    others = [name for name in names if _is_others(name)]
    if others and _MANIFEST not in names:
        raise SaveError(
            f"{path!r} holds a checkpoint that is not tspool's ({others[0]}): remove it, or save elsewhere", errno=errno.EEXIST,
            stage="declare", path=path,
        )  # fmt: skip
