"""The archive that `torch.save` puts around one tensor: written from a template and read without `torch.load`.

It is a zip of stored records: `data.pkl` (a pickle that says dtype, shape and strides), `data/0` (the storage's bytes, aligned),
and a few small ones. For one dtype, shape and strides all of it is the same but the bytes and their checksum, so head and tail are
made once and kept; the bytes go from the tensor to the stream. What is read here are those archives only: whatever else a
`torch.save` may hold gives None, and the caller asks `torch.load`. No pickle that is read here can run code.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.serialization import get_crc32_options
from torch.utils.serialization import config

_LOCAL = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, checksum, sizes, lengths of name and extra
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_DESCRIPTOR, _DESCRIPTOR64 = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
_CHECKSUM = struct.Struct("<I")
_WIDE = 0xFFFFFFFF  # "look in the zip64 field", and the first size that must
_DESCRIBED, _UTF8 = 0x08, 0x800  # checksum and sizes follow the bytes; names are UTF-8
_ROOT = b"archive/"


class Layout(NamedTuple):
    """How a tensor lies in its storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    storage_bytes: int


ReadAt = Callable[[int, int], bytes]  # (offset in the archive, size)


# writing ------------------------------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """What torch can be told about its archives."""

    alignment: int
    checked: bool


def form() -> Form:
    return Form(config.save.storage_alignment, bool(get_crc32_options()))


class _Storage(NamedTuple):
    kind: object
    extent: int


class _Stand(NamedTuple):
    """Stands for a tensor in a pickle: there need not be one."""

    layout: Layout


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", obj.kind, "0", "cpu", obj.extent) if type(obj) is _Storage else None

    def reducer_override(self, obj: Any) -> Any:
        return _reduced(obj.layout) if type(obj) is _Stand else NotImplemented


def _reduced(layout: Layout) -> tuple[Any, ...]:
    """As Tensor.__reduce_ex__ has it: dtypes of before 2.1 by their class of storage, later ones by name."""
    where: tuple[Any, ...] = (layout.storage_offset, layout.shape, layout.stride, False, collections.OrderedDict())
    if layout.dtype in torch.storage._new_dtypes():
        storage = _Storage(torch.UntypedStorage, layout.storage_bytes)
        return torch._utils._rebuild_tensor_v3, (storage, *where, layout.dtype)
    kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[layout.dtype])
    storage = _Storage(kind, layout.storage_bytes // layout.dtype.itemsize)
    return torch._utils._rebuild_tensor_v2, (storage, *where)


def _pickled(layout: Layout) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(_Stand(layout))
    return file.getvalue()


class _Record(NamedTuple):
    name: bytes
    size: int
    header_offset: int


def _local_header(record: _Record, alignment: int) -> bytes:
    """Padded so that the bytes after it are aligned. What is empty has no descriptor."""
    wide = struct.pack("<2H2Q", 1, 16, 0, 0) if record.size >= _WIDE else b""
    padding = -(record.header_offset + _LOCAL.size + len(record.name) + len(wide) + 4) % alignment
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    flags = _UTF8 | (_DESCRIBED if record.size else 0)
    size = _WIDE if wide else 0
    return _LOCAL.pack(b"PK\3\4", 0, flags, 0, 0, 0, 0, size, size, len(record.name), len(extra)) + record.name + extra


def _descriptor(size: int, checksum: int) -> bytes:
    if not size:
        return b""
    return (_DESCRIPTOR64 if size >= _WIDE else _DESCRIPTOR).pack(b"PK\7\x08", checksum, size, size)


def _central_entry(record: _Record, checksum: int) -> bytes:
    fields = [record.size] * 2 if record.size >= _WIDE else []
    fields += [record.header_offset] if record.header_offset >= _WIDE else []
    extra = struct.pack(f"<2H{len(fields)}Q", 1, 8 * len(fields), *fields) if fields else b""
    size, offset = min(record.size, _WIDE), min(record.header_offset, _WIDE)
    flags = _UTF8 | (_DESCRIBED if record.size else 0)
    return (
        _CENTRAL.pack(b"PK\1\2", 0, 0, flags, 0, 0, 0, checksum, size, size, len(record.name), len(extra), 0, 0, 0, 0, offset)
        + record.name
        + extra
    )


def _end(count: int, directory_offset: int, directory_size: int) -> bytes:
    wide = _END64.pack(b"PK\6\6", 44, 0x31E, 45, 0, 0, count, count, directory_size, directory_offset)
    wide += _LOCATOR.pack(b"PK\6\7", 0, directory_offset + directory_size, 1)
    return wide + _END.pack(b"PK\5\6", 0, 0, count, count, directory_size, min(directory_offset, _WIDE), 0)


class _Archive:
    """Records one after the other; where they lie follows from their sizes."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.content = bytearray()  # without the bytes of what was begun and is no content here
        self.size = 0
        self.entries: list[tuple[_Record, int]] = []

    def begin(self, name: bytes, size: int) -> _Record:
        record = _Record(_ROOT + name, size, self.size)
        self._add(_local_header(record, self.form.alignment))
        self.size += size
        return record

    def end(self, record: _Record, checksum: int) -> None:
        self._add(_descriptor(record.size, checksum))
        self.entries.append((record, checksum))

    def put(self, name: bytes, content: bytes) -> None:
        record = self.begin(name, len(content))
        self.content += content
        self.end(record, self.checksum(content))

    def checksum(self, content: bytes) -> int:
        return zlib.crc32(content) if self.form.checked else 0

    def close(self) -> dict[_Record, int]:
        """Where in `content` each record's entry of the directory is."""
        places, offset = {}, self.size
        for record, checksum in self.entries:
            places[record] = len(self.content)
            self._add(_central_entry(record, checksum))
        self._add(_end(len(self.entries), offset, self.size - offset))
        return places

    def _add(self, content: bytes) -> None:
        self.content += content
        self.size += len(content)


class Frame:
    """What stands before and after the bytes of one tensor. The tail is made once, and the checksum put into it."""

    def __init__(self, layout: Layout, form: Form) -> None:
        described = _pickled(layout)
        archive = _Archive(form)
        archive.put(b"data.pkl", described)
        archive.put(b".format_version", b"1")
        archive.put(b".storage_alignment", b"%d" % form.alignment)
        archive.put(b"byteorder", b"little")
        data = archive.begin(b"data/0", layout.storage_bytes)
        self.head = bytes(archive.content)
        archive.content.clear()
        archive.end(data, 0)
        archive.put(b"version", b"3\n")
        identity = archive.begin(b".data/serialization_id", 40)
        self._digits = len(archive.content)
        archive.content += bytes(40)
        archive.end(identity, 0)
        entries = archive.close()
        self._tail = bytes(archive.content)  # every checksum of the bytes and of the identity is zero
        self._identity = zlib.crc32(described)
        self._data_checksums = [entries[data] + 16] + ([4] if data.size else [])
        self._identity_checksums = [entries[identity] + 16, self._digits + 44]
        self.checked = form.checked

    def tail(self, checksum: int) -> bytes:
        """Of the bytes' checksum, which says by the way what the archive calls its identity."""
        tail = bytearray(self._tail)
        digits = b"%020d%020d" % (self._identity, checksum)
        tail[self._digits : self._digits + 40] = digits
        if self.checked:
            for place in self._data_checksums:
                _CHECKSUM.pack_into(tail, place, checksum)
            for place in self._identity_checksums:
                _CHECKSUM.pack_into(tail, place, zlib.crc32(digits))
        return bytes(tail)

    def read(self, read_at: ReadAt, archive_bytes: int) -> int | None:
        """The checksum of the bytes in an archive that is like this one in all but bytes and identity, else None."""
        if read_at(0, len(self.head)) != self.head:
            return None
        tail = bytearray(read_at(archive_bytes - len(self._tail), len(self._tail)))
        checksums = {_CHECKSUM.unpack_from(tail, place)[0] for place in self._data_checksums}
        tail[self._digits : self._digits + 40] = bytes(40)
        for place in self._data_checksums + self._identity_checksums:
            _CHECKSUM.pack_into(tail, place, 0)
        return checksums.pop() if tail == self._tail and len(checksums) == 1 else None


@functools.lru_cache(maxsize=4096)
def frame(layout: Layout, form: Form) -> Frame:
    return Frame(layout, form)


# reading ------------------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A tensor's bytes inside an archive. `checksum` is None where the archive has none."""

    layout: Layout
    data_offset: int
    checksum: int | None


class _Entry(NamedTuple):
    checksum: int
    size: int
    header_offset: int


_frames: dict[int, tuple[Frame, Found]] = {}  # by size of the archive: the last one that torch writes so today, and its place
_MOST_FRAMES = 4096


def find(read_at: ReadAt, archive_bytes: int) -> Found | None:
    """The one plain tensor that the archive holds, or None when it holds something else, or is none."""
    known, found = _frames.get(archive_bytes, (None, None))
    try:
        if known and found and (checksum := known.read(read_at, archive_bytes)) is not None:
            return found._replace(checksum=checksum if known.checked else None)
        found = _find(read_at, archive_bytes)
        if found:
            _remember(read_at, archive_bytes, found)
        return found
    except (struct.error, KeyError, ValueError, IndexError):
        return None


def _remember(read_at: ReadAt, archive_bytes: int, found: Found) -> None:
    if len(_frames) >= _MOST_FRAMES:
        _frames.clear()
    like = frame(found.layout, Form(config.save.storage_alignment, found.checksum is not None))
    if like.read(read_at, archive_bytes) is not None:
        _frames[archive_bytes] = like, found


def _find(read_at: ReadAt, archive_bytes: int) -> Found | None:
    entries = _directory(read_at, archive_bytes)
    (root,) = {name.partition(b"/")[0] for name in entries}
    if [name for name in entries if name.startswith(root + b"/data/")] != [root + b"/data/0"]:
        return None
    if _content(read_at, entries[root + b"/byteorder"]) != b"little":
        return None
    described, data = entries[root + b"/data.pkl"], entries[root + b"/data/0"]
    content = _content(read_at, described)
    checked = described.checksum != 0  # torch.serialization.set_crc32_options(False) leaves zeros
    layout = _layout(content) if not checked or zlib.crc32(content) == described.checksum else None
    if layout is None or layout.storage_bytes != data.size:
        return None
    return Found(layout, _content_offset(read_at, data), data.checksum if checked else None)


def _directory(read_at: ReadAt, archive_bytes: int) -> dict[bytes, _Entry]:
    tail_bytes = min(archive_bytes, 4096)
    tail = read_at(archive_bytes - tail_bytes, tail_bytes)
    end = _END.unpack_from(tail, tail_bytes - _END.size)
    size, offset = end[5], end[6]
    if end[0] != b"PK\5\6":
        raise ValueError("no end of a directory")
    if offset == _WIDE:
        locator = _LOCATOR.unpack_from(tail, tail_bytes - _END.size - _LOCATOR.size)
        size, offset = _END64.unpack(read_at(locator[2], _END64.size))[8:10]
    start = offset - (archive_bytes - tail_bytes)
    return _entries(tail[start : start + size] if start >= 0 else read_at(offset, size))


def _entries(directory: bytes) -> dict[bytes, _Entry]:
    entries: dict[bytes, _Entry] = {}
    at = 0
    while at < len(directory):
        fields = _CENTRAL.unpack_from(directory, at)
        name_bytes, extra_bytes, comment_bytes = fields[10:13]
        if fields[0] != b"PK\1\2" or fields[4] != 0:  # no entry, or compressed
            raise ValueError("not as torch writes it")
        name_at = at + _CENTRAL.size
        extra = directory[name_at + name_bytes : name_at + name_bytes + extra_bytes]
        entries[directory[name_at : name_at + name_bytes]] = _entry(fields[7], fields[9], fields[16], extra)
        at = name_at + name_bytes + extra_bytes + comment_bytes
    return entries


def _entry(checksum: int, size: int, header_offset: int, extra: bytes) -> _Entry:
    if size == _WIDE or header_offset == _WIDE:
        kind, length = struct.unpack_from("<2H", extra)
        wide = list(struct.unpack_from(f"<{length // 8}Q", extra, 4))
        if kind != 1:
            raise ValueError("no zip64 field")
        size = (wide.pop(0), wide.pop(0))[0] if size == _WIDE else size
        header_offset = wide.pop(0) if header_offset == _WIDE else header_offset
    return _Entry(checksum, size, header_offset)


def _content_offset(read_at: ReadAt, entry: _Entry) -> int:
    fields = _LOCAL.unpack(read_at(entry.header_offset, _LOCAL.size))
    if fields[0] != b"PK\3\4":
        raise ValueError("no record")
    return entry.header_offset + _LOCAL.size + int(fields[9]) + int(fields[10])


def _content(read_at: ReadAt, entry: _Entry) -> bytes:
    return read_at(_content_offset(read_at, entry), entry.size)


class _Unpickler(pickle.Unpickler):
    """Knows the few names that the pickle of a plain tensor has, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        word, kind, _, _, count = pid
        if word != "storage" or not isinstance(kind, (torch.dtype, str)):
            raise pickle.UnpicklingError("no storage")
        return _Storage(kind, count)


def _rebuilt(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool, hooks: object,
    dtype: torch.dtype | None = None,
) -> Layout:  # fmt: skip
    """In the place of torch._utils._rebuild_tensor_v2 and _v3. More arguments, as a lazy conjugate has: TypeError."""
    kind = storage.kind if dtype is None else dtype
    if not isinstance(kind, torch.dtype):
        raise pickle.UnpicklingError("no dtype")
    return Layout(kind, shape, stride, offset, storage.extent * (kind.itemsize if dtype is None else 1))


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuilt,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch.storage", "UntypedStorage"): "bytes",
} | {("torch", kind): dtype for dtype, kind in torch.storage._dtype_to_storage_type_map().items()}


@functools.lru_cache(maxsize=4096)
def _layout(described: bytes) -> Layout | None:
    try:
        layout = _Unpickler(io.BytesIO(described)).load()
    except Exception:  # a pickle can raise anything; what this one says is for torch.load to judge
        return None
    return layout if isinstance(layout, Layout) and _fits(layout) else None


def _fits(layout: Layout) -> bool:
    """Whether every element lies inside the storage."""
    if len(layout.shape) != len(layout.stride) or min((layout.storage_offset, *layout.shape, *layout.stride)) < 0:
        return False
    last = sum((extent - 1) * step for extent, step in zip(layout.shape, layout.stride))
    return 0 in layout.shape or (layout.storage_offset + last + 1) * layout.dtype.itemsize <= layout.storage_bytes
