"""One process saves and loads through torch.distributed.checkpoint; what DCP itself reads and writes is the measure."""

import copy
import io
import json
import os
import pickle

import pytest
import tspool

torch = pytest.importorskip("torch", reason="tspool.torch needs torch")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter  # noqa: E402
from torch.distributed.checkpoint.default_planner import (  # noqa: E402
    DefaultLoadPlanner,
    DefaultSavePlanner,
)
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties  # noqa: E402
from torch.distributed.checkpoint.planner import (  # noqa: E402
    LoadItemType,
    LoadPlan,
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys  # noqa: E402
from tspool.torch import StorageReader, StorageWriter, _spools  # noqa: E402

ARENA = 64 << 20
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def spools_closed():
    yield
    _spools.close_all()


@pytest.fixture
def to(tmp_path):
    return lambda name="step-1", **options: StorageWriter(tmp_path / name, arena_bytes=ARENA, **options)


@pytest.fixture
def at(tmp_path):
    return lambda name="step-1", **options: StorageReader(tmp_path / name, **options)


def random(shape, dtype):
    size = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(0, 2 if dtype == torch.bool else 120, (size,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(bits(left), bits(right))


# There and back -----------------------------------------------------------------------------------------------------------------


def test_every_dtype_comes_back(to, at):
    saved = {str(dtype): random((3, 5), dtype) for dtype in DTYPES}
    dcp.save(saved, storage_writer=to())
    found = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    dcp.load(found, storage_reader=at())
    assert [name for name in saved if not same(found[name], saved[name])] == []


def test_fp4_comes_back(to, at):
    saved = torch.randint(0, 255, (4, 6), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    dcp.save({"w": saved}, storage_writer=to())
    found = {"w": torch.zeros(4, 6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    dcp.load(found, storage_reader=at())
    assert torch.equal(found["w"].view(torch.uint8), saved.view(torch.uint8))


def test_every_kind_of_memory_comes_back(to, at):
    padded = torch.arange(100.0)[:7]
    saved = {
        "scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "transposed": torch.randn(6, 4).t(),
        "expanded": torch.randn(3, 1).expand(3, 4), "steps": torch.randn(20)[::3], "padded": padded,
        "parameter": torch.nn.Parameter(torch.randn(5)), "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "large": torch.randn(2_000_003),
    }  # fmt: skip
    dcp.save(saved, storage_writer=to())
    tspool.verify(at().path)
    found = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in saved.items()}
    dcp.load(found, storage_reader=at())
    assert [name for name in saved if not torch.equal(found[name], saved[name].detach())] == []
    assert tspool.Checkpoint(at().path).entry("padded").bytes == 28


class Custom:
    def __init__(self, value):
        self.value = value


def nested():
    return {
        "model": {"layers.0.weight": torch.randn(4, 3), "layers.0.bias": torch.randn(4)},
        "optim": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 3)}},
                  "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1]}]},
        "step": 7, "none": None, "nothing": [], "text": "a.b", "custom": Custom(5),
        "pair": (torch.ones(2), 3), "ragged": [torch.ones(1), {"x": torch.zeros(2)}],
    }  # fmt: skip


def test_a_nested_state_dict_with_objects_comes_back(to, at):
    saved = nested()
    dcp.save(saved, storage_writer=to())
    found = copy.deepcopy(saved)
    found["optim"]["param_groups"][0]["lr"] = 5.0
    found["step"], found["custom"] = 0, None
    for tensor in (found["model"]["layers.0.weight"], found["optim"]["state"][0]["exp_avg"], found["ragged"][1]["x"]):
        tensor.fill_(9)
    dcp.load(found, storage_reader=at())
    assert torch.equal(found["model"]["layers.0.weight"], saved["model"]["layers.0.weight"])
    assert torch.equal(found["optim"]["state"][0]["exp_avg"], saved["optim"]["state"][0]["exp_avg"])
    assert torch.equal(found["ragged"][1]["x"], torch.zeros(2))
    assert found["optim"]["param_groups"][0]["lr"] == 0.1 and found["optim"]["param_groups"][0]["betas"] == (0.9, 0.95)
    assert (found["step"], found["custom"].value, found["pair"][1]) == (7, 5, 3)


def test_the_metadata_is_that_of_stock(to, at, tmp_path):
    saved = nested()
    dcp.save(saved, checkpoint_id=tmp_path / "stock")
    stock = dcp.FileSystemReader(tmp_path / "stock").read_metadata()
    dcp.save(saved, storage_writer=to())
    ours = at().read_metadata()
    assert ours.planner_data == stock.planner_data
    assert ours.state_dict_metadata.keys() == stock.state_dict_metadata.keys()
    for name, theirs in stock.state_dict_metadata.items():
        mine = ours.state_dict_metadata[name]
        assert type(mine) is type(theirs)
        if hasattr(theirs, "chunks"):
            assert (mine.size, mine.chunks, mine.properties.dtype) == (theirs.size, theirs.chunks, theirs.properties.dtype)


def test_without_flattening_the_top_level_is_one_object_each(to, at):
    saved = {"w": torch.ones(3), "nested": {"x": torch.zeros(2), "y": 1}}
    dcp.save(saved, storage_writer=to(), planner=DefaultSavePlanner(flatten_state_dict=False))
    found = {"w": torch.zeros(3), "nested": None}
    dcp.load(found, storage_reader=at(), planner=DefaultLoadPlanner(False, flatten_sharded_tensors=False))
    assert torch.equal(found["w"], torch.ones(3)) and torch.equal(found["nested"]["x"], torch.zeros(2))


def test_a_checkpoint_is_rebuilt_without_a_state_dict(to, at):
    saved = nested()
    dcp.save(saved, storage_writer=to())
    whole = _load_state_dict_from_keys(storage_reader=at())
    assert torch.equal(whole["optim"]["state"]["0"]["exp_avg"], saved["optim"]["state"][0]["exp_avg"])
    assert torch.equal(whole["ragged"][0], torch.ones(1)) and whole["custom"].value == 5
    part = _load_state_dict_from_keys({"model", "step"}, storage_reader=at())
    assert set(part) == {"model", "step"} and torch.equal(part["model"]["layers.0.bias"], saved["model"]["layers.0.bias"])


def test_dcps_own_conversions(to, at, tmp_path, monkeypatch):
    from torch.distributed.checkpoint import format_utils

    monkeypatch.setattr(format_utils, "FileSystemReader", StorageReader)
    monkeypatch.setattr(format_utils, "FileSystemWriter", lambda path: StorageWriter(path, arena_bytes=ARENA))
    dcp.save({"model": {"w": torch.arange(6.0)}, "step": 3}, storage_writer=to())
    format_utils.dcp_to_torch_save(at().path, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert torch.equal(whole["model"]["w"], torch.arange(6.0)) and whole["step"] == 3
    format_utils.torch_save_to_dcp(tmp_path / "whole.pt", tmp_path / "back")
    assert torch.equal(_load_state_dict_from_keys(storage_reader=at("back"))["model"]["w"], torch.arange(6.0))


def test_a_part_is_loaded_only_when_that_is_allowed(to, at):
    dcp.save({"a": torch.ones(2), "b": torch.ones(2)}, storage_writer=to())
    found = {"a": torch.zeros(2)}
    dcp.load(found, storage_reader=at())  # what is not asked for is not read
    assert torch.equal(found["a"], torch.ones(2))
    found = {"a": torch.zeros(2), "new": torch.full((2,), 5.0)}
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: new"):
        dcp.load(found, storage_reader=at())
    dcp.load(found, storage_reader=at(), planner=DefaultLoadPlanner(allow_partial_load=True))
    assert torch.equal(found["a"], torch.ones(2)) and torch.equal(found["new"], torch.full((2,), 5.0))
    with pytest.raises(CheckpointException, match="Size mismatch"):
        dcp.load({"a": torch.zeros(3)}, storage_reader=at())


def test_targets_of_another_dtype_or_layout_are_copied_to(to, at):
    saved = torch.randn(6, 8)
    dcp.save({"half": saved, "columns": saved, "steps": saved}, storage_writer=to())
    steps = torch.zeros(12, 8)
    found = {"half": torch.zeros(6, 8, dtype=torch.bfloat16), "columns": torch.zeros(8, 6).t(), "steps": steps[::2]}
    dcp.load(found, storage_reader=at())
    assert torch.equal(found["half"], saved.bfloat16()) and torch.equal(found["columns"], saved)
    assert torch.equal(steps[::2], saved) and not steps[1::2].any()


class Pieces(DefaultLoadPlanner):
    """Reads one saved chunk by several items, as resharding does."""

    boxes = [((0, 0), (3, 4)), ((3, 0), (2, 4)), ((0, 4), (5, 2)), ((5, 0), (3, 6))]

    def create_local_plan(self):
        (whole,) = super().create_local_plan().items
        return LoadPlan([
            ReadItem(LoadItemType.TENSOR, whole.dest_index, torch.Size(start), whole.storage_index, torch.Size(start),
                     torch.Size(lengths))
            for start, lengths in self.boxes
        ])  # fmt: skip


class Rows(Pieces):
    boxes = [((5, 0), (3, 6)), ((0, 0), (5, 6))]


@pytest.mark.parametrize("planner", [Pieces, Rows])
def test_one_chunk_is_read_by_several_items(to, at, planner, monkeypatch):
    saved = torch.randn(8, 6)
    dcp.save({"w": saved}, storage_writer=to())
    found = {"w": torch.zeros(8, 6)}
    asked = []
    reader = at()
    opened = reader.read_metadata

    def counting():
        metadata = opened()
        handle = reader._open._handle
        reader._open._handle = type("Counted", (), {
            "read": lambda _, requests: (asked.extend(requests), handle.read(requests))[1], "close": lambda _: handle.close(),
        })()  # fmt: skip
        return metadata

    monkeypatch.setattr(reader, "read_metadata", counting)
    dcp.load(found, storage_reader=reader, planner=planner())
    assert torch.equal(found["w"], saved)
    assert sum(request[4] for request in asked) == saved.nbytes  # nothing twice


class Blocks(torch.Tensor):
    """A tensor that says itself which parts of a larger one it holds, several of them."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(parts, size):
        made = torch.zeros(size)[:0].as_subclass(Blocks)
        made.parts, made.whole = parts, size
        return made

    def size(self):
        return torch.Size(self.whole)

    def _chunks(self):
        return [ChunkStorageMetadata(torch.Size(at), part.shape) for at, part in self.parts.items()]

    def __create_write_items__(self, name, tensor):
        return [
            WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=TensorWriteData(
                chunk, TensorProperties(torch.float32), torch.Size(self.whole)))
            for chunk in self._chunks()
        ]  # fmt: skip

    def __create_chunk_list__(self):
        return self._chunks()

    def __get_tensor_shard__(self, index):
        return self.parts[tuple(index.offset)]


def test_several_shards_of_one_tensor_on_one_rank(to, at):
    whole = torch.arange(24.0).reshape(4, 6)
    saved = Blocks.of({(0, 0): whole[:2].clone(), (2, 0): whole[2:, :4].clone(), (2, 4): whole[2:, 4:].clone()}, (4, 6))
    dcp.save({"w": saved}, storage_writer=to())
    assert sorted(name for name in os.listdir(at().path) if name.endswith(".safetensors")) == [
        f"shard-00001-model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    for reader in (at(), HuggingFaceStorageReader(at().path)):
        found = {"w": torch.zeros(4, 6)}
        dcp.load(found, storage_reader=reader)
        assert torch.equal(found["w"], whole)
    found = {"w": Blocks.of({(0, 0): torch.zeros(4, 3), (0, 3): torch.zeros(4, 3)}, (4, 6))}
    dcp.load(found, storage_reader=at())
    assert torch.equal(torch.cat(list(found["w"].parts.values()), 1), whole)


# As others see it ---------------------------------------------------------------------------------------------------------------


def test_stock_huggingface_reader_loads_what_was_written(to, at):
    embedding = torch.randn(10, 4)
    saved = {"embed": embedding, "head": embedding, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3),
             "half": torch.randn(3).bfloat16(), "steps": torch.randn(9)[::2]}  # fmt: skip
    dcp.save({**saved, "lr": 0.1}, storage_writer=to())
    found = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in saved.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(at().path))
    assert [name for name in saved if not torch.equal(found[name], saved[name])] == []


def test_safetensors_loads_what_was_written(to, at):
    safetensors = pytest.importorskip("safetensors.torch")
    saved = {"a": torch.randn(5, 3), "b": torch.arange(4)}
    dcp.save({"model": saved}, storage_writer=to())
    found = safetensors.load_file(os.path.join(at().path, "model.safetensors"))
    assert all(torch.equal(found[f"model.{name}"], tensor) for name, tensor in saved.items())


def test_several_files_have_an_index(to, at):
    saved = {f"w{number}": torch.randn(1000) for number in range(4)}
    dcp.save(saved, storage_writer=to(shard_bytes=8000))
    with open(os.path.join(at().path, "model.safetensors.index.json")) as file:
        index = json.load(file)
    assert set(index["weight_map"]) == set(saved) and len(set(index["weight_map"].values())) == 2
    found = {name: torch.zeros(1000) for name in saved}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(at().path))
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_tied_tensors_are_stored_once_on_request(to, at):
    embedding = torch.randn(100, 40)
    saved = {"embed": embedding, "head": embedding}
    dcp.save(saved, storage_writer=to(ties=True))
    assert tspool.Checkpoint(at().path).entry("head").tied_to == "embed"
    found = {"embed": torch.zeros(100, 40), "head": torch.zeros(100, 40)}
    dcp.load(found, storage_reader=at())
    assert torch.equal(found["embed"], embedding) and torch.equal(found["head"], embedding)


def test_what_stock_huggingface_writer_wrote_is_read(at, tmp_path):
    saved = {"a": torch.randn(5, 3), "b": torch.arange(4)}
    (tmp_path / "step-1").mkdir()
    dcp.save(saved, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "step-1"), {"a": 1, "b": 2}))
    found = {"a": torch.zeros(5, 3), "b": torch.zeros(4, dtype=torch.int64)}
    dcp.load(found, storage_reader=at())
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_what_a_spool_saved_is_read(at, tmp_path):
    with tspool.Spool(tmp_path, arena_bytes=ARENA) as spool:
        spool.save("step-1", {"model": {"w": torch.arange(4.0)}}).result(60)
    found = {"model": {"w": torch.zeros(4)}}
    dcp.load(found, storage_reader=at())
    assert torch.equal(found["model"]["w"], torch.arange(4.0))


def test_tspool_loads_what_was_written(to, at):
    dcp.save({"model": {"w": torch.arange(4.0)}, "lr": 0.5}, storage_writer=to(metadata={"step": 12}))
    state = tspool.load(at().path)
    assert set(state) == {"model.w", "lr"}
    assert torch.equal(state["model.w"], torch.arange(4.0)) and torch.load(io.BytesIO(state["lr"])) == 0.5
    assert tspool.Checkpoint(at().path).metadata == {"step": "12"}
    assert tspool.latest(os.path.dirname(at().path)) == at().path


# Where it goes ------------------------------------------------------------------------------------------------------------------


def test_one_writer_serves_many_ids_and_a_planner_that_caches(to, at, tmp_path):
    writer, planner = to(), DefaultSavePlanner(enable_plan_caching=True)
    state = {"w": torch.zeros(5), "step": 0}
    seen = set()
    for step in range(3):
        state["w"] += 1
        state["step"] = step
        metadata = dcp.save(state, checkpoint_id=tmp_path / f"step-{step}", storage_writer=writer, planner=planner)
        seen.add(metadata.storage_meta.save_id)
    assert len(seen) == 3
    for step in range(3):
        found = {"w": torch.zeros(5), "step": -1}
        dcp.load(found, checkpoint_id=tmp_path / f"step-{step}", storage_reader=StorageReader())
        assert torch.equal(found["w"], torch.full((5,), step + 1.0)) and found["step"] == step


def test_an_overwriting_save_keeps_others_files(to, at):
    dcp.save({"w": torch.zeros(3)}, storage_writer=to())
    with open(os.path.join(at().path, "config.json"), "w") as file:
        file.write("{}")
    with pytest.raises(CheckpointException, match="exists"):
        dcp.save({"w": torch.ones(3)}, storage_writer=to(overwrite=False))
    dcp.save({"w": torch.ones(3)}, storage_writer=to())
    assert os.path.exists(os.path.join(at().path, "config.json"))
    assert torch.equal(tspool.load(at().path, names="w")["w"], torch.ones(3))


def test_a_folder_made_by_a_framework_is_taken_with_what_is_in_it(to, at):
    os.makedirs(at().path)
    with open(os.path.join(at().path, "meta.pt"), "w") as file:
        file.write("theirs")
    dcp.save({"w": torch.ones(3)}, storage_writer=to())
    with open(os.path.join(at().path, "meta.pt")) as file:
        assert file.read() == "theirs"
    assert torch.equal(tspool.load(at().path, names="w")["w"], torch.ones(3))


def test_anothers_checkpoint_is_not_mixed_with(to, at):
    dcp.save({"w": torch.zeros(3)}, checkpoint_id=at().path)
    before = sorted(os.listdir(at().path))
    with pytest.raises(CheckpointException, match="holds a checkpoint that is not tspool's"):
        dcp.save({"w": torch.ones(3)}, storage_writer=to())
    assert sorted(os.listdir(at().path)) == before


def test_ids_that_are_no_place_for_a_checkpoint(tmp_path):
    good, bad = [tmp_path / "new", tmp_path, "relative/step-1"], ["s3://bucket/step", "hf://x", "", "/", tmp_path / "file"]
    (tmp_path / "file").write_text("")
    assert all(map(StorageWriter.validate_checkpoint_id, good)) and not any(map(StorageWriter.validate_checkpoint_id, bad))
    with pytest.raises(ValueError, match="no directory"):
        StorageWriter("s3://bucket/step")
    with pytest.raises(CheckpointException, match="starts with '.'"):
        dcp.save({"w": torch.ones(1)}, storage_writer=StorageWriter(tmp_path / ".hidden", arena_bytes=ARENA))
    with pytest.raises(CheckpointException, match="no path was given"):
        dcp.save({"w": torch.ones(1)}, storage_writer=StorageWriter())


def test_options_are_checked_when_they_are_given():
    with pytest.raises(TypeError, match="arena_byte: no option"):
        StorageWriter("x", arena_byte=1)


def test_what_cannot_be_stored_is_named_and_the_next_save_goes_through(to, at):
    for bad, message in (
        (torch.empty(3, device="meta"), "meta device"),
        (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        (torch.zeros(3, dtype=torch.complex128), "complex128"),
    ):
        with pytest.raises(CheckpointException, match=message) as told:
            dcp.save({"model": {"w": bad}}, storage_writer=to())
        (error, _) = told.value.failures[0]
        assert isinstance(error, tspool.UnsupportedError) and error.tensor == "model.w"
    dcp.save({"w": torch.ones(3)}, storage_writer=to())
    assert [name for name in os.listdir(os.path.dirname(at().path)) if name.startswith(".")] == []


@pytest.mark.parametrize("value", [torch.ones(1), 5])
@pytest.mark.parametrize("name", ["a\0b", "a\udc80"])
def test_names_that_no_file_can_hold_are_refused(to, name, value):
    with pytest.raises(CheckpointException, match="is no name") as told:
        dcp.save({name: value}, storage_writer=to())
    assert isinstance(told.value.failures[0][0], tspool.UnsupportedError)


class Casting(DefaultSavePlanner):
    """What PyTorch documents: a planner that converts."""

    def transform_object(self, write_item, object):
        object = super().transform_object(write_item, object)
        return object.half() if isinstance(object, torch.Tensor) else object


def test_the_data_count_and_not_the_plan(to, at):
    dcp.save({"w": torch.tensor([1.5, 2.5])}, storage_writer=to(), planner=Casting())
    assert tspool.Checkpoint(at().path).entry("w").dtype == "F16"
    assert at().read_metadata().state_dict_metadata["w"].properties.dtype == torch.float16


def test_a_damaged_file_is_found_out(to, at):
    dcp.save({"w": torch.arange(5000.0), "x": torch.arange(5000.0)}, storage_writer=to())
    entry = tspool.Checkpoint(at().path).entry("x")
    with open(os.path.join(at().path, entry.file), "r+b") as file:
        file.seek(entry.file_offset + 100)
        file.write(b"\xff")
    with pytest.raises(CheckpointException, match="x") as told:
        dcp.load({"w": torch.zeros(5000), "x": torch.zeros(5000)}, storage_reader=at())
    error, _ = told.value.failures[0]
    assert isinstance(error, tspool.DamagedError) and error.tensor == "x"
    dcp.load({"w": torch.zeros(5000)}, storage_reader=at())
    found = {"x": torch.zeros(5000)}
    dcp.load(found, storage_reader=at(verify=False))


def test_a_save_that_takes_too_long_fails_and_the_next_goes_through(to, at):
    with pytest.raises(CheckpointException, match="ETIMEDOUT"):
        dcp.save({"w": torch.zeros(4_000_000)}, storage_writer=to(deadline=0.3, bytes_per_second=4 << 20))
    dcp.save({"w": torch.ones(3)}, storage_writer=to())
    assert torch.equal(tspool.load(at().path, names="w")["w"], torch.ones(3))


def test_a_forked_child_saves_by_a_spool_of_its_own(to, at):
    writer = to()
    dcp.save({"w": torch.ones(3)}, storage_writer=writer)
    child = os.fork()
    if child == 0:
        try:
            dcp.save({"w": torch.zeros(3)}, storage_writer=writer, checkpoint_id=at("step-2").path)
            _spools.close_all()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    dcp.save({"w": torch.full((3,), 2.0)}, storage_writer=writer, checkpoint_id=at("step-3").path)
    assert torch.equal(tspool.load(at("step-2").path, names="w")["w"], torch.zeros(3))


def test_what_is_not_there_is_said(at, tmp_path):
    with pytest.raises(CheckpointException, match="step-1"):
        dcp.load({"w": torch.zeros(3)}, storage_reader=at())


def test_writers_and_readers_travel_by_pickle(to, at):
    writer = to(staging="background", metadata={"step": 1})
    dcp.save({"w": torch.arange(3.0)}, storage_writer=writer)
    other = pickle.loads(pickle.dumps(writer))
    dcp.save({"w": torch.arange(4.0)}, storage_writer=other)
    reader = pickle.loads(pickle.dumps(at()))
    found = {"w": torch.zeros(4)}
    dcp.load(found, storage_reader=reader)
    assert torch.equal(found["w"], torch.arange(4.0)) and other.staging == "background"


def test_async_save_copies_before_it_returns(to, at):
    state = {"w": torch.arange(4.0), "step": 3}
    future = dcp.async_save(state, storage_writer=to())
    state["w"].zero_()
    assert future.result(60).storage_meta.checkpoint_id == at().path
    dcp.load(state, storage_reader=at())
    assert torch.equal(state["w"], torch.arange(4.0))


def test_background_staging_tells_when_tensors_may_change(to, at):
    writer, planner = to(staging="background"), DefaultSavePlanner()
    state = {"w": torch.arange(1_000_000.0)}
    planner.set_up_planner(state, writer.storage_meta(), True)
    writer.set_up_storage_writer(True, rank=0, use_collectives=True)
    (plan,) = writer.prepare_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    written = writer.write_data(planner.finish_plan(plan), planner)
    writer.wait_staged(60)
    state["w"].zero_()
    written.wait()
    writer.finish(metadata=planner.create_global_plan([plan])[1], results=[written.value()])
    assert torch.equal(tspool.load(at().path, names="w")["w"], torch.arange(1_000_000.0))


def test_a_root_for_each_save_gathers_no_spools(tmp_path):
    for number in range(5):
        dcp.save({"w": torch.ones(2)}, storage_writer=StorageWriter(tmp_path / f"run-{number}" / "step", arena_bytes=ARENA))
    assert len(_spools._kept) <= 2


def test_the_object_beside_the_tensors_is_json(to, at):
    dcp.save({"a": {"b": torch.ones(1), "c": 1}}, storage_writer=to())
    with tspool.Checkpoint(at().path) as checkpoint:
        assert checkpoint.object("tspool.dcp-00001") == {"tspool_dcp": 1, "paths": [["a", "b"], ["a", "c"]], "objects": {}}
        assert [item.kind for item in checkpoint.objects if item.name == "a.c"] == ["torch"]


def test_no_planner_data_that_json_cannot_hold(to):
    class Odd(DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            plan.planner_data["w"] = (object(),)
            return plan

    with pytest.raises(CheckpointException, match="as its place in the state dict"):
        dcp.save({"w": torch.ones(1)}, storage_writer=to(), planner=Odd())


def test_an_empty_state_dict_is_a_checkpoint(to, at):
    dcp.save({}, storage_writer=to())
    dcp.load({}, storage_reader=at())
    assert at().read_metadata().state_dict_metadata == {}
