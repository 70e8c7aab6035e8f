"""Caller staging: the arena's spans filled from Python, where the library cannot or must not copy by itself.

Two reasons to. Tensors on a device are copied straight into the arena, on a stream of their own. And a guard looks at the
tensors' versions after the last byte was copied and before the save counts as staged: the last span is given back only when every
version is what it was, so that a torn snapshot is never published.

A span that was handed out must come back, whatever happens: the library lets go of a save only then.
"""

from __future__ import annotations

import ctypes
import errno
import sys
import threading
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from tspool import _tspool
from tspool._errors import SaveError
from tspool._leaves import Leaf, is_contiguous, packed

if TYPE_CHECKING:
    from tspool._save import Save

BATCH_BYTES = 64 << 20  # spans that are copied at once: enough for several threads, and a quarter of a small arena
_THREADS = 2


class Source(NamedTuple):
    """One declared tensor, in the order of declaration."""

    name: str
    value: Any
    leaf: Leaf
    version: int | None


def version_of(value: Any) -> int | None:
    """How often torch has changed the tensor in place; None for what does not count."""
    try:
        version = value._version
    except (AttributeError, RuntimeError):  # no torch tensor, or one made in inference mode
        return None
    return version if isinstance(version, int) else None


class _Device:
    """Copies from one device to the host on a side stream, which begins where the caller's stream stood. With tensors of the CPU
    the same calls copy at once."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch = torch
        self._stream = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def copy(self, value: Any, offset: int, size: int, address: int) -> None:
        torch = self._torch
        host = torch.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype=torch.uint8)
        with torch.no_grad(), torch.cuda.stream(self._stream):  # None: no other stream
            flat = value.detach().contiguous().view(-1).view(torch.uint8)
            host.copy_(flat[offset : offset + size], non_blocking=True)

    def wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


class Filler:
    """Fills one save. `start` on the thread that submitted it, then `run` there or on another."""

    def __init__(self, save: Save, is_guarded: bool) -> None:
        self._save = save
        self._is_guarded = is_guarded
        self._sources: list[Source] = []
        self._devices: dict[Any, _Device] = {}
        self._packed: tuple[int, Leaf] | None = None  # the last tensor that had to be made contiguous
        self.thread: threading.Thread | None = None

    def take(self, name: str, value: Any, leaf: Leaf) -> None:
        self._sources.append(Source(name, value, leaf, version_of(value) if self._is_guarded else None))

    def start(self) -> None:
        """Streams begin behind what was enqueued so far."""
        for source in self._sources:
            if not source.leaf.is_host and source.value.device not in self._devices:
                self._devices[source.value.device] = _Device(sys.modules["torch"], source.value.device)

    def run_apart(self) -> None:
        self.thread = threading.Thread(target=self._run_quietly, name="tspool-fill")
        self.thread.start()

    def _run_quietly(self) -> None:
        try:
            self.run()
        except BaseException:
            pass  # it stands in the save

    def run(self) -> None:
        """Copies everything. Whatever it raises, the save was given up, and says why."""
        out: list[int] = []
        try:
            self._fill(out)
        except SaveError:
            self._save._handle.abort()
            raise
        except BaseException as error:
            self._save._fail(SaveError(f"copying the tensors failed: {error!r}", stage="stage", operation="copy"), error)
            raise
        finally:
            if out:
                self._save._handle.filled(out)
            self._sources = []
            self._packed = None

    def _fill(self, out: list[int]) -> None:
        handle = self._save._handle
        while spans := self._next():
            out.extend(span[4] for span in spans)
            self._copy(spans)
            if handle.filled(out[:-1]):
                raise self._save._failure()
            del out[:-1]
        self._check_versions()

    def _next(self) -> list[tuple[int, int, int, int, int]] | None:
        try:
            return self._save._handle.next_spans(BATCH_BYTES, None)
        except OSError:
            raise self._save._failure() from None

    def _copy(self, spans: list[tuple[int, int, int, int, int]]) -> None:
        pieces = array("Q")
        for address, size, tensor, offset, _ in spans:
            source = self._sources[tensor]
            if source.leaf.is_host:
                pieces.extend((address, self._address(tensor, source) + offset, size))
                if self._packed is not None:  # not to be let go before it was copied
                    _tspool.copy(pieces, _THREADS)
                    del pieces[:]
            else:
                self._devices[source.value.device].copy(source.value, offset, size, address)
        _tspool.copy(pieces, _THREADS)
        for device in self._devices.values():
            device.wait()

    def _address(self, tensor: int, source: Source) -> int:
        if is_contiguous(source.leaf):
            self._packed = None
            return source.leaf.address
        if self._packed is None or self._packed[0] != tensor:
            self._packed = (tensor, packed(source.value, source.name))
        return self._packed[1].address

    def _check_versions(self) -> None:
        for source in self._sources:
            if source.version is not None and version_of(source.value) != source.version:
                torn = SaveError(
                    f'"{source.name}" was changed between submit and staged: wait for staged before changing it',
                    errno=errno.EBUSY, stage="stage", operation="copy", tensor=source.name,
                    cause="its version counter rose while it was copied",
                )  # fmt: skip
                self._save._fail(torn)
                raise torn
