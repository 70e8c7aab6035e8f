"""FileSystemReader reads in place what it can; what is damaged it says by name."""

import io
import re

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings, strategies
from stock_help import assert_same, filled, load, save
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem
from tspool.torch import FileSystemReader, FileSystemWriter, HuggingFaceStorageReader, HuggingFaceStorageWriter


class Boxes:
    """A load planner of boxes of saved tensors, into tensors of any layout."""

    def __init__(self, boxes):
        self.boxes, self.done = boxes, []  # name, offsets, target

    def plan(self):
        items = []
        for number, (name, offsets, target) in enumerate(self.boxes):
            stored = MetadataIndex(name, torch.Size([0] * target.dim()))
            items.append(ReadItem(LoadItemType.TENSOR, MetadataIndex(str(number)), torch.Size([0] * target.dim()), stored,
                                  torch.Size(offsets), target.size()))  # fmt: skip
        return LoadPlan(items)

    def resolve_tensor(self, item):
        return self.boxes[int(item.dest_index.fqn)][2]

    def commit_tensor(self, item, tensor):
        self.done.append(int(item.dest_index.fqn))


def read_boxes(reader, boxes):
    planner = Boxes(boxes)
    reader.set_up_storage_reader(reader.read_metadata(), True)
    reader.read_data(planner.plan(), planner).wait()
    assert sorted(planner.done) == list(range(len(boxes)))


KINDS = [(FileSystemWriter, FileSystemReader), (HuggingFaceStorageWriter, HuggingFaceStorageReader)]
CUBE = torch.arange(6 * 5 * 4).reshape(6, 5, 4)
LARGE = filled((1024, 3000), torch.float32)


@pytest.fixture(scope="module", params=KINDS, ids=["filesystem", "huggingface"])
def reader(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    writer, kind = request.param
    save({"cube": CUBE, "large": LARGE, "turned": CUBE.permute(2, 0, 1), "one": torch.tensor(7)}, writer(str(folder)))
    return kind(str(folder))


@strategies.composite
def boxes(draw, extents=CUBE.shape):
    offsets = [draw(strategies.integers(0, extent)) for extent in extents]
    return offsets, [draw(strategies.integers(0, extent - offset)) for offset, extent in zip(offsets, extents)]


@settings(max_examples=200, deadline=None)
@given(box=boxes(), turned=strategies.booleans(), into=strategies.sampled_from(["contiguous", "strided", "float"]))
def test_any_box_into_any_tensor(reader, box, turned, into):
    offsets, lengths = box
    saved = CUBE.permute(2, 0, 1) if turned else CUBE
    if turned:
        offsets, lengths = [offsets[2], *offsets[:2]], [lengths[2], *lengths[:2]]
    target = torch.full(lengths, -1, dtype=torch.float32 if into == "float" else torch.int64)
    if into == "strided":
        target = torch.full([*lengths, 2], -1)[..., 0]
    read_boxes(reader, [("turned" if turned else "cube", offsets, target)])
    expected = saved[tuple(slice(offset, offset + length) for offset, length in zip(offsets, lengths))]
    assert torch.equal(target, expected.to(target.dtype))


def test_several_boxes_of_one_piece_and_a_scalar(reader):
    rows, columns, whole, one = torch.empty(10, 3000), torch.empty(1024, 7), torch.empty(1024, 3000), torch.tensor(0)
    read_boxes(reader, [("large", (5, 0), rows), ("large", (0, 9), columns), ("one", (), one), ("large", (0, 0), whole)])
    for target, expected in ((rows, LARGE[5:15]), (columns, LARGE[:, 9:16]), (whole, LARGE)):
        assert_same(target, expected)
    assert one == 7


def test_a_tensor_that_was_loaded_into_counts_as_changed(reader):
    target = torch.empty(1024, 3000)
    before = target._version
    read_boxes(reader, [("large", (0, 0), target)])
    assert target._version > before
    with torch.inference_mode():
        inference = torch.empty(1024, 3000)
    read_boxes(reader, [("large", (0, 0), inference)])
    assert_same(inference.clone(), LARGE)


def test_a_target_of_another_shape_is_told(reader):
    from tspool import MismatchError

    planner = Boxes([("cube", (0, 0, 0), torch.empty(6, 5, 4))])
    plan = planner.plan()
    planner.boxes[0] = ("cube", (0, 0, 0), torch.empty(6, 5, 3))
    reader.set_up_storage_reader(reader.read_metadata(), True)
    with pytest.raises(MismatchError, match=r'"cube" is \[6, 5, 4\] .* \[6, 5, 3\]'):
        reader.read_data(plan, planner)


def test_many_small_tensors_beside_large_ones(tmp_path):
    state = {f"layer{number}": {"weight": filled((number % 7, 9), torch.bfloat16, number), "step": torch.tensor(number)}
             for number in range(500)}  # fmt: skip
    state["large"] = filled((12 << 20,), torch.uint8)
    state["object"] = {"rate": 0.1, "betas": (0.9, 0.95)}
    save(state, FileSystemWriter(tmp_path, thread_count=2))
    assert_same(load(state, FileSystemReader(tmp_path)), state)


# damage -------------------------------------------------------------------------------------------------------------------------


def damaged(folder, damage, name="b"):
    state = {"a": filled((1000,), torch.float32), "b": filled((300_000,), torch.float32), "c": filled((1000,), torch.int8)}
    metadata = save(state, FileSystemWriter(folder))
    (info,) = (info for index, info in metadata.storage_data.items() if index.fqn == name)
    path = folder / info.relative_path
    content = bytearray(path.read_bytes())
    damage(content, info)
    path.write_bytes(content)
    with pytest.raises(dcp.CheckpointException) as caught:
        load(state, FileSystemReader(folder))
    return str(caught.value)


def flipped(content, info):
    content[info.offset + info.length // 2] ^= 1


def end_overwritten(content, info):
    content[info.offset + info.length - 200 : info.offset + info.length] = bytes(200)


def start_overwritten(content, info):
    content[info.offset : info.offset + 600] = bytes(600)


def cut(content, info):
    del content[info.offset + info.length // 2 :]


@pytest.mark.parametrize("damage", [flipped, end_overwritten, start_overwritten, cut])
@pytest.mark.parametrize("name", ["a", "b"])
def test_damage_names_tensor_and_file(tmp_path, damage, name):
    text = damaged(tmp_path, damage, name)
    assert re.search(rf'"{name}" cannot be read from {tmp_path}/__0_0\.distcp \(\d+ bytes at \d+\)', text), text


def test_a_damaged_metadata_is_told(tmp_path):
    save({"a": torch.zeros(3)}, FileSystemWriter(tmp_path))
    (tmp_path / ".metadata").write_bytes(b"rubbish")
    with pytest.raises(dcp.CheckpointException, match=f"{tmp_path}/.metadata cannot be read"):
        load({"a": torch.zeros(3)}, FileSystemReader(tmp_path))


def test_a_missing_file_names_tensor_and_file(tmp_path):
    save({"a": torch.zeros(3)}, FileSystemWriter(tmp_path))
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(dcp.CheckpointException, match=f'"a" is in {tmp_path}/__0_0.distcp, which is missing'):
        load({"a": torch.zeros(3)}, FileSystemReader(tmp_path))


def test_a_damaged_safetensors_file_is_told(tmp_path):
    save({"a": torch.zeros(300)}, HuggingFaceStorageWriter(str(tmp_path)))
    path = tmp_path / "model-00001-of-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(dcp.CheckpointException, match=f'"a" lies at 0 to 1200 behind the head of {path}.*damaged'):
        load({"a": torch.zeros(300)}, HuggingFaceStorageReader(str(tmp_path)))
    path.write_bytes(b"rubbish")
    with pytest.raises(dcp.CheckpointException, match=f"{path} is no safetensors file"):
        load({"a": torch.zeros(300)}, HuggingFaceStorageReader(str(tmp_path)))


def test_unchecked_archives_load(tmp_path):
    state = {"a": filled((1000,), torch.float32)}
    torch.serialization.set_crc32_options(False)
    try:
        save(state, dcp.FileSystemWriter(tmp_path / "theirs"))
        save(state, FileSystemWriter(tmp_path / "ours"))
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("theirs", "ours"):
        assert_same(load(state, FileSystemReader(tmp_path / name)), state)
        assert_same(load(state, dcp.FileSystemReader(tmp_path / name)), state)


def test_objects_come_from_their_start(tmp_path):
    class Watching(dcp.DefaultLoadPlanner):
        def load_bytes(self, item, value):
            assert isinstance(value, io.BytesIO) and value.tell() == 0
            super().load_bytes(item, value)

    state = {"object": [1, "two"], "text": "x" * 100_000}
    save(state, FileSystemWriter(tmp_path))
    assert_same(load(state, FileSystemReader(tmp_path), planner=Watching()), state)
