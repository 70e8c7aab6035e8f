"""FileSystemWriter and FileSystemReader: what either class wrote, either reads; and what stands in a folder stands."""

import copy
import io
import os
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from stock_help import DTYPES, NOT_IN_SAFETENSORS, Failing, assert_same, contents, every_dtype, filled, load, names, save
from torch.distributed.checkpoint import FileSystemReader as TorchReader
from torch.distributed.checkpoint import FileSystemWriter as TorchWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from tspool.torch import FileSystemReader, FileSystemWriter, HuggingFaceStorageWriter

WAYS = [(FileSystemWriter, TorchReader), (FileSystemWriter, FileSystemReader), (TorchWriter, FileSystemReader)]
WAY_NAMES = ["ours to torch's", "ours to ours", "torch's to ours"]


def rich_state():
    storage = torch.arange(1000.0)
    tied = torch.randn(20, 30)
    return {
        "whole": torch.randn(300, 400),
        "views": {"middle": storage[10:30], "every other": storage[::2], "first": storage[:1]},
        "transposed": torch.randn(10, 20).t(),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.randn(3, 1).expand(3, 4),
        "tied": {"one": tied, "two": tied},
        "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
        "negative": torch.randn(4, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
        "scalar": torch.tensor(1.5),
        "objects": {"list": [1, "two", 3.0], "int": 5, "text": "a.b", "tuple": (1, 2)},
        "large": torch.randint(0, 256, (3 << 20,), dtype=torch.uint8),
    }


@pytest.mark.parametrize(("writer", "reader"), WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("thread_count", [1, 3])
def test_every_dtype_and_shape(tmp_path, writer, reader, thread_count):
    state = every_dtype(DTYPES + NOT_IN_SAFETENSORS + [torch.float4_e2m1fn_x2])
    save(state, writer(tmp_path, thread_count=thread_count))
    assert_same(load(state, reader(tmp_path)), state)


@pytest.mark.parametrize(("writer", "reader"), WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("options", [{}, {"thread_count": 2}, {"single_file_per_rank": False}], ids=str)
def test_nested_tied_viewed_and_objects(tmp_path, writer, reader, options):
    state = rich_state()
    save(state, writer(tmp_path, **options))
    assert_same(load(state, reader(tmp_path)), state)


class Kind(torch.Tensor):
    pass


def test_a_tensor_that_is_more_than_its_bytes_goes_through_torch_save(tmp_path):
    state = {"a": torch.arange(5.0).as_subclass(Kind), "b": torch.arange(3)}
    save(state, FileSystemWriter(tmp_path))
    for reader in (TorchReader, FileSystemReader):
        with torch.serialization.safe_globals([Kind]):
            assert_same(load(state, reader(tmp_path)), state)


@pytest.mark.parametrize("options", [{}, {"thread_count": 3}, {"single_file_per_rank": False}], ids=str)
def test_items_are_in_the_files_that_torch_puts_them_in(tmp_path, options):
    state = rich_state()
    ours = save(state, FileSystemWriter(tmp_path / "ours", **options))
    theirs = save(state, TorchWriter(tmp_path / "theirs", **options))
    files = [{index: info.relative_path for index, info in metadata.storage_data.items()} for metadata in (ours, theirs)]
    assert files[0] == files[1]
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")


def test_metadata_holds_torchs_classes_only(tmp_path):
    save(rich_state(), FileSystemWriter(tmp_path))
    seen = set()

    class Recording(pickle.Unpickler):
        def find_class(self, module, name):
            seen.add(module.partition(".")[0])
            return super().find_class(module, name)

    metadata = Recording(io.BytesIO((tmp_path / ".metadata").read_bytes())).load()
    assert seen <= {"torch", "builtins", "collections", "pathlib"}
    assert {type(info) for info in metadata.storage_data.values()} == {_StorageInfo}
    assert isinstance(metadata.storage_meta, StorageMeta) and metadata.version == "1.0.0"


@pytest.mark.parametrize("writer", [FileSystemWriter, TorchWriter])
def test_torchs_own_converters_take_it(tmp_path, writer):
    state = rich_state()
    save(state, writer(tmp_path / "dcp"))
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "whole.pt")
    assert_same(torch.load(tmp_path / "whole.pt", weights_only=False), {**state, "parameter": state["parameter"].detach()})
    torch_save_to_dcp(tmp_path / "whole.pt", tmp_path / "again")
    assert_same(load(state, FileSystemReader(tmp_path / "again")), state)


def test_cached_plans_save_what_there_is_now(tmp_path):
    class Cached(dcp.DefaultSavePlanner):
        pass

    writer, planner = FileSystemWriter(tmp_path / "0"), Cached(enable_plan_caching=True)
    for step in range(3):
        state = {"a": torch.full((100,), float(step)), "b": {"c": torch.arange(step, step + 5), "step": step}}
        save(state, writer, planner=planner, checkpoint_id=tmp_path / str(step))
        assert_same(load(state, TorchReader(tmp_path / str(step))), state)


def test_a_planner_that_makes_another_dtype(tmp_path):
    class Half(dcp.DefaultSavePlanner):
        def resolve_data(self, item):
            data = super().resolve_data(item)
            return data.to(torch.bfloat16) if torch.is_tensor(data) else data

    state = {"a": torch.randn(5, 5)}
    save(state, FileSystemWriter(tmp_path), planner=Half())
    expected = {"a": state["a"].to(torch.bfloat16).to(torch.float32)}
    for reader in (TorchReader, FileSystemReader):
        assert_same(load(state, reader(tmp_path)), expected)


class Inverted(dcp._extension.StreamTransformExtension):
    @staticmethod
    def from_descriptor(version):
        return Inverted()

    @staticmethod
    def registry_name():
        return "inverted"

    def get_descriptor(self):
        return "inverted/1"

    def transform_to(self, output):
        class Writer(io.IOBase):
            def write(self, content):
                return output.write(bytes(byte ^ 0xFF for byte in bytes(content)))

            def flush(self):
                output.flush()

            def close(self):
                output.close()

        return Writer()

    def transform_from(self, input):
        return io.BytesIO(bytes(byte ^ 0xFF for byte in input.read()))


def test_stream_extensions_are_torchs(tmp_path):
    registry = dcp._extension.ExtensionRegistry()
    registry.register(Inverted)
    state = {"a": torch.randn(7, 3), "view": torch.arange(100)[5:9], "object": [1, 2]}
    save(state, FileSystemWriter(tmp_path, _extensions=[Inverted()]))
    assert b"archive/data.pkl" not in (tmp_path / "__0_0.distcp").read_bytes()
    for reader in (TorchReader, FileSystemReader):
        assert_same(load(state, reader(tmp_path, _extension_registry=registry)), state)


def test_safetensors_as_serialization_format(tmp_path):
    state = every_dtype(DTYPES)
    metadata = save(state, FileSystemWriter(tmp_path, serialization_format=SerializationFormat.SAFETENSORS))
    assert_same(load_file(tmp_path / "__0_0.distcp"), state)
    with pytest.raises(dcp.CheckpointException, match='"object" is no tensor'):
        save({"object": 5}, FileSystemWriter(tmp_path / "other", serialization_format=SerializationFormat.SAFETENSORS))
    for index, info in metadata.storage_data.items():
        content = (tmp_path / info.relative_path).read_bytes()[info.offset :][: info.length]
        assert_same(torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8),
                    state[index.fqn].reshape(-1).view(torch.uint8) if content else torch.empty(0, dtype=torch.uint8))  # fmt: skip


def test_nothing_planned_writes_nothing(tmp_path):
    writer = FileSystemWriter(tmp_path)
    writer.set_up_storage_writer(False, rank=3, use_collectives=True)
    plan = writer.prepare_global_plan([writer.prepare_local_plan(dcp.SavePlan([]))])[0]
    assert writer.write_data(plan, dcp.DefaultSavePlanner()).wait() == []
    assert names(tmp_path) == []


def test_without_collectives_each_rank_has_its_own_metadata(tmp_path):
    state = {"a": torch.randn(50), "b": [1]}
    for number in range(2):
        save(state, FileSystemWriter(tmp_path), use_collectives=False)
    assert names(tmp_path) == ["__0.metadata", "__0_0.1.distcp"]
    assert_same(load(state, TorchReader(tmp_path)), state)


def test_options_that_make_no_sense_warn(tmp_path):
    with pytest.warns(UserWarning, match="sync_files=False has no effect"):
        FileSystemWriter(tmp_path, sync_files=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer = FileSystemWriter(tmp_path, True, True, 2, 1000, False, True, None, SerializationFormat.TORCH_SAVE)
    theirs = TorchWriter(tmp_path)
    assert vars(theirs).keys() <= vars(writer).keys() and writer.thread_count == 2 and writer.per_thread_copy_ahead == 1000
    assert isinstance(writer, TorchWriter) and isinstance(writer, dcp.staging.AsyncStager)
    assert isinstance(FileSystemReader(tmp_path), TorchReader)


def test_overwrite_false_refuses_an_existing_checkpoint(tmp_path):
    save({"a": torch.zeros(3)}, FileSystemWriter(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(dcp.CheckpointException, match="already exists"):
        save({"a": torch.ones(3)}, FileSystemWriter(tmp_path, overwrite=False))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", [FileSystemWriter, FileSystemReader])
def test_urls_are_refused(tmp_path, kind):
    assert kind.validate_checkpoint_id(tmp_path / "a") and kind.validate_checkpoint_id(str(tmp_path / "a"))
    for url in ("s3://bucket/run", "gs://bucket"):
        assert not kind.validate_checkpoint_id(url)
        with pytest.raises(ValueError, match="is a URL"):
            kind(url)
        with pytest.raises(ValueError, match="is a URL"):
            kind(tmp_path).reset(url)
    assert not kind.validate_checkpoint_id((tmp_path / "s3://bucket/run").relative_to(tmp_path))


def test_travels_by_pickle_also_with_a_save_behind_it(tmp_path):
    writer = FileSystemWriter(tmp_path / "a", thread_count=2)
    save({"a": torch.arange(5)}, writer)
    for other in (pickle.loads(pickle.dumps(writer)), copy.deepcopy(writer)):
        save({"b": torch.arange(9)}, other, checkpoint_id=tmp_path / "b")
        assert_same(load({"b": torch.zeros(9, dtype=torch.int64)}, FileSystemReader(tmp_path / "b")), {"b": torch.arange(9)})
    assert_same(load({"a": torch.arange(5)}, FileSystemReader(tmp_path / "a")), {"a": torch.arange(5)})


def test_is_a_stager_and_writer_for_async_save(tmp_path):
    """The scalar DTensor is one that torch's own stager does not copy."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        scalar = distribute_tensor(torch.tensor(1.0), init_device_mesh("cpu", (1,)))
        state = {"a": torch.randn(1000), "n": {"b": torch.arange(7), "c": "text", "l": [torch.zeros(2), scalar]}}
        expected = {"a": state["a"].clone(), "n": {"b": torch.arange(7), "c": "text", "l": [torch.zeros(2), torch.tensor(1.0)]}}
        future = dcp.async_save(state, storage_writer=FileSystemWriter(tmp_path))
        for tensor in (state["a"], state["n"]["b"], *state["n"]["l"]):
            tensor.fill_(9)
        assert isinstance(future.result(60), dcp.Metadata)
    finally:
        torch.distributed.destroy_process_group()
    dcp_to_torch_save(tmp_path, tmp_path / "whole.pt")
    assert_same(torch.load(tmp_path / "whole.pt", weights_only=False), expected)


@pytest.mark.parametrize("kind", [FileSystemWriter, HuggingFaceStorageWriter])
@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda: torch.empty(3, device="meta"), '"n.bad" is on the meta device and has no data: materialise it'),
        (lambda: torch.eye(3).to_sparse(), r'"n.bad" has layout torch.sparse_coo: save its indices\(\) and values\(\)'),
        (lambda: torch.eye(3).to_sparse_csr(), '"n.bad" has layout torch.sparse_csr'),
        (lambda: torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8), r'"n.bad" is quantized \(torch.qint8\)'),
    ],
    ids=["meta", "sparse", "csr", "quantized"],
)
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:Sparse")
def test_a_tensor_that_could_not_be_loaded_again_is_refused_by_name(tmp_path, kind, bad, told):
    with pytest.raises(dcp.CheckpointException, match=told):
        save({"a": torch.zeros(3), "n": {"bad": bad()}}, kind(str(tmp_path)))
    assert names(tmp_path) == []


# failures -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread_count", [1, 4])
@pytest.mark.parametrize("single_file", [True, False])
def test_a_failing_item_fails_the_save_in_whatever_thread(tmp_path, thread_count, single_file):
    state = {f"t{number}": torch.full((1000 + number,), float(number)) for number in range(12)}
    writer = FileSystemWriter(tmp_path, single_file, thread_count=thread_count)
    for name in ("t0", "t5", "t11"):
        with pytest.raises(dcp.CheckpointException, match="no data"):
            save(state, writer, planner=Failing(name))
        assert names(tmp_path) == []
    save(state, writer)
    assert_same(load(state, TorchReader(tmp_path)), state)


def test_an_interruption_is_no_less(tmp_path):
    state = {f"t{number}": torch.zeros(100) for number in range(4)}
    with pytest.raises(BaseException, match="enough"):
        save(state, FileSystemWriter(tmp_path, thread_count=3), planner=Failing("t2", KeyboardInterrupt("enough")))
    assert names(tmp_path) == []


def test_what_others_have_in_the_folder_stands(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("meta.pt", "config.json", "tokenizer/vocab.txt", "__7_0.distcp", "rng_0.distcp", ".hidden"):
        (tmp_path / name).write_text(f"{name} is another's")
    others = contents(tmp_path)
    for number in range(3):
        save({"a": torch.full((5,), float(number))}, FileSystemWriter(tmp_path))
        with pytest.raises(dcp.CheckpointException):
            save({"a": torch.zeros(5)}, FileSystemWriter(tmp_path), planner=Failing("a"))
        assert others.items() <= contents(tmp_path).items()
        assert len(contents(tmp_path)) == len(others) + 2


def test_a_checkpoint_is_there_until_the_next_one_is(tmp_path):
    """Looked at from inside the next save, at each of its steps."""
    states = [{"a": torch.full((50,), float(number)), "b": torch.arange(number + 1)} for number in range(4)]
    save(states[0], FileSystemWriter(tmp_path, thread_count=2))

    class Looking(FileSystemWriter):
        def look(self):
            assert_same(load(old, TorchReader(tmp_path)), old)

        def _write_data(self, planner, file_queue):
            self.look()
            future = super()._write_data(planner, file_queue)
            self.look()
            return future

        def finish(self, metadata, results):
            self.look()
            super().finish(metadata, results)

    for old, new in zip(states, states[1:]):
        save(new, Looking(tmp_path, thread_count=2))
        assert_same(load(new, TorchReader(tmp_path)), new)
        assert len(names(tmp_path)) == 3, "two data files and .metadata: nothing of the old one"


def test_one_that_fails_leaves_the_checkpoint_that_was_there(tmp_path):
    old, new = {"a": torch.zeros(50), "b": torch.zeros(3)}, {"a": torch.ones(50), "b": torch.ones(3)}
    save(old, FileSystemWriter(tmp_path, thread_count=2))
    before = contents(tmp_path)
    with pytest.raises(dcp.CheckpointException):
        save(new, FileSystemWriter(tmp_path, thread_count=2), planner=Failing("b"))
    assert contents(tmp_path) == before


def test_overwrites_what_torch_wrote(tmp_path):
    save({name: torch.zeros(5) for name in "abc"}, TorchWriter(tmp_path, thread_count=3))
    save({"a": torch.ones(5)}, FileSystemWriter(tmp_path))
    assert names(tmp_path) == [".metadata", "__0_0.1.distcp"]
    assert_same(load({"a": torch.ones(5)}, TorchReader(tmp_path)), {"a": torch.ones(5)})


def test_a_metadata_that_cannot_be_read_is_overwritten_and_no_file_under_it(tmp_path):
    save({"a": torch.zeros(5)}, FileSystemWriter(tmp_path))
    (tmp_path / ".metadata").write_bytes(b"rubbish")
    save({"a": torch.ones(5)}, FileSystemWriter(tmp_path))
    assert names(tmp_path) == [".metadata", "__0_0.1.distcp", "__0_0.distcp"]
    assert_same(load({"a": torch.ones(5)}, TorchReader(tmp_path)), {"a": torch.ones(5)})


def test_new_folders_are_made_with_their_parents(tmp_path):
    save({"a": torch.ones(5)}, FileSystemWriter(tmp_path / "x" / "y" / "z"))
    assert os.listdir(tmp_path / "x") == ["y"]
    assert_same(load({"a": torch.ones(5)}, TorchReader(tmp_path / "x" / "y" / "z")), {"a": torch.ones(5)})
