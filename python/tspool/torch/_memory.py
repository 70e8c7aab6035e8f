"""Shared memory for staged tensors: one memfd for all of them, kept warm between saves, pinned where there is CUDA.

A generation is one such memfd. Each stage takes a lease on one that nobody reads any more: the lease is the buffer beneath the
staged tensors, and lives as long as any of them. So an upload that is still under way is never overwritten: the next stage gets
another generation.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import Any

import torch

from tspool import _tspool

_PAGE = mmap.PAGESIZE


def pin_arena(base: int, bytes: int, added: bool) -> int:
    """Registers host memory with CUDA, so that copies into it run beside everything else. For
    `tspool.Spool(on_arena=pin_arena)`."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return int(runtime.cudaHostRegister(base, bytes, 1) if added else runtime.cudaHostUnregister(base))  # 1: for every context


def has_cuda() -> bool:
    """Whether this process uses CUDA: asking must not begin to."""
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class Generation:
    """One memfd, mapped. `lease` gives the buffer beneath tensors; idle: none of them lives."""

    def __init__(self, size: int, is_pinned: bool) -> None:
        self.size = -(-size // _PAGE) * _PAGE
        self.fd = os.memfd_create("tspool-stage")
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self._held: weakref.ref[memoryview[Any]] | None = None
        self.address = _tspool.Memory(self._map).address
        self._is_pinned = is_pinned
        if hasattr(mmap, "MADV_HUGEPAGE"):
            _advise(self._map, mmap.MADV_HUGEPAGE)
        if is_pinned and pin_arena(self.address, self.size, True) != 0:
            self._is_pinned = False

    def lease(self) -> memoryview[Any]:
        buffer = memoryview(self._map)
        self._held = weakref.ref(buffer)
        return buffer

    @property
    def is_idle(self) -> bool:
        return self._held is None or self._held() is None

    def close(self) -> None:
        """Now if it is idle, otherwise when the last staged tensor goes."""
        held = self._held() if self._held is not None else None
        if held is not None:
            weakref.finalize(held, self._end).atexit = False
        else:
            self._end()

    def _end(self) -> None:
        if self.fd < 0:
            return
        if self._is_pinned:
            pin_arena(self.address, self.size, False)
        os.close(self.fd)
        self.fd = -1
        try:
            self._map.close()
        except BufferError:  # the last lease is only just going: the mapping goes with it
            pass


def _advise(mapping: mmap.mmap, advice: int) -> None:
    try:
        mapping.madvise(advice)
    except OSError:  # a kernel without them: small pages do
        pass


class Pool:
    """The generations of one stager. As many as there are uploads in flight, and one idle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generations: list[Generation] = []
        self._pid = os.getpid()

    def take(self, size: int) -> tuple[Generation, memoryview[Any]]:
        with self._lock:
            if os.getpid() != self._pid:  # a forked child shares its parent's memory: it must not write there
                self._generations, self._pid = [], os.getpid()
            idle = [generation for generation in self._generations if generation.is_idle]
            fitting = [generation for generation in idle if generation.size >= size]
            chosen = min(fitting, key=lambda generation: generation.size, default=None)
            for generation in idle:
                if generation is not chosen:
                    self._generations.remove(generation)
                    generation.close()
            if chosen is None:
                chosen = Generation(max(size, 1), has_cuda())
                self._generations.append(chosen)
            return chosen, chosen.lease()

    def close(self) -> None:
        with self._lock:
            generations, self._generations = self._generations, []
        for generation in generations:
            generation.close()

    def __len__(self) -> int:
        return len(self._generations)
