"""The zip around a tensor is the one that torch.save writes, byte for byte but for its identity."""

import io
import zipfile
import zlib

import pytest
import torch
from hypothesis import given, settings, strategies
from stock_help import DTYPES, NOT_IN_SAFETENSORS, SHAPES, bits, filled
from tspool.torch import _archive

IDENTITY = "archive/.data/serialization_id"


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def written(tensor):
    content = bits(tensor).numpy().tobytes()
    layout = _archive.Layout(tensor.dtype, tuple(tensor.shape), tensor.stride(), 0, len(content))
    form = _archive.form()
    frame = _archive.frame(layout, form)
    return frame.head + content + frame.tail(zlib.crc32(content) if form.checked else 0)


def found(archive):
    return _archive.find(lambda offset, size: archive[offset : offset + size], len(archive))


def without_identity(archive):
    """The record's forty digits and its three checksums... of which the first is always zero."""
    record = zipfile.ZipFile(io.BytesIO(archive)).getinfo(IDENTITY)
    digits = archive.index(b"serialization_id", record.header_offset) + len(b"serialization_id")
    digits += int.from_bytes(archive[record.header_offset + 28 : record.header_offset + 30], "little")
    blanked = bytearray(archive)
    blanked[digits : digits + 40] = bytes(40)
    return bytes(blanked).replace(record.CRC.to_bytes(4, "little"), b"....")


@pytest.mark.parametrize("dtype", DTYPES + NOT_IN_SAFETENSORS + [torch.float4_e2m1fn_x2], ids=str)
def test_is_what_torch_save_writes(dtype):
    for shape in SHAPES:
        tensor = filled(shape, dtype)
        ours, theirs = written(tensor), saved(tensor)
        assert without_identity(ours) == without_identity(theirs), shape
        assert zipfile.ZipFile(io.BytesIO(ours)).testzip() is None
        assert torch.equal(bits(torch.load(io.BytesIO(ours))), bits(tensor))
        for archive in (ours, theirs):
            place = found(archive)
            assert place.layout[:3] == (dtype, tuple(shape), tensor.stride())
            assert archive[place.data_offset :].startswith(bits(tensor).numpy().tobytes())


def test_without_checksums_when_torch_is_told_so():
    tensor = filled((3, 4), torch.float32)
    torch.serialization.set_crc32_options(False)
    try:
        ours, theirs = written(tensor), saved(tensor)
    finally:
        torch.serialization.set_crc32_options(True)
    assert without_identity(ours).replace(bytes(4), b"") == without_identity(theirs).replace(bytes(4), b"")
    assert found(ours).checksum is None and found(theirs).checksum is None
    assert torch.equal(torch.load(io.BytesIO(ours)), tensor)


def test_follows_the_alignment_that_torch_is_told():
    from torch.utils.serialization import config

    tensor = filled((3, 4), torch.float32)
    with config.patch("save.storage_alignment", 4096):
        ours = written(tensor)
        assert without_identity(ours) == without_identity(saved(tensor))
    assert found(ours).data_offset % 4096 == 0


def test_a_tensor_of_more_than_4_gib(tmp_path):
    """In a file with a hole, so that neither disk nor memory is needed."""
    elements = (5 << 30) // 2 + 1
    layout = _archive.Layout(torch.int16, (elements,), (1,), 0, elements * 2)
    frame = _archive.frame(layout, _archive.form())
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.write(frame.head)
        file.seek(elements * 2 - 2, io.SEEK_CUR)
        file.write((7).to_bytes(2, "little"))
        file.write(frame.tail(12345))
    tensor = torch.load(path, mmap=True)
    assert tensor.shape == (elements,) and tensor[-1] == 7
    with zipfile.ZipFile(path) as archive:
        assert [archive.getinfo(f"archive/{name}").file_size for name in ("data/0", "version")] == [elements * 2, 2]
        assert archive.read("archive/version") == b"3\n"
    with path.open("rb") as file:

        def read_at(offset, size):
            file.seek(offset)
            return file.read(size)

        place = _archive.find(read_at, path.stat().st_size)
    assert place == (layout, len(frame.head), 12345)


class Kind(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "thing",
    [
        [torch.zeros(2), torch.zeros(3)], {"a": 1}, 5, "text", print, torch.zeros(3).as_subclass(Kind),
        torch.zeros(2, 3).to_sparse(), torch.randn(3, dtype=torch.complex64).conj(), torch.nn.Parameter(torch.zeros(2)),
        torch.empty(3, device="meta"),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_anything_else_is_left_to_torch_load(thing):
    assert found(saved(thing)) is None


def test_views_are_found_with_their_strides():
    base = torch.arange(24.0)
    view = base.as_strided((3, 2), (1, 8), 4)
    place = found(saved(view))
    assert place.layout == (torch.float32, (3, 2), (1, 8), 4, 96)


def test_a_pickle_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    assert found(saved(Bomb())) is None
    assert not (tmp_path / "ran").exists()


ARCHIVE = saved(filled((3, 4), torch.float32))


@settings(max_examples=300, deadline=None)
@given(strategies.integers(0, len(ARCHIVE) - 1), strategies.binary(min_size=1, max_size=8), strategies.integers(0, len(ARCHIVE)))
def test_damage_gives_nothing_or_a_place_inside(at, noise, end):
    damaged = (ARCHIVE[:at] + noise + ARCHIVE[at + len(noise) :])[: len(ARCHIVE)]
    for archive in (damaged, ARCHIVE[:end]):
        place = found(archive)
        if place is not None:
            assert place.layout.storage_bytes <= len(archive)
            assert place.data_offset >= 0
