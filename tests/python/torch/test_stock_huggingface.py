"""HuggingFaceStorageWriter and Reader: folders that torch's reader and safetensors open. What torch's writer spoils is refused or
right."""

import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stock_help import DTYPES, Failing, assert_same, contents, every_dtype, filled, load, names, save
from torch.distributed.checkpoint import HuggingFaceStorageReader as TorchReader
from torch.distributed.checkpoint import HuggingFaceStorageWriter as TorchWriter
from tspool.torch import HuggingFaceStorageReader, HuggingFaceStorageWriter

WAYS = [
    (HuggingFaceStorageWriter, TorchReader),
    (HuggingFaceStorageWriter, HuggingFaceStorageReader),
    (TorchWriter, HuggingFaceStorageReader),
]
READ_BY_TORCH = [dtype for dtype in DTYPES if dtype is not torch.float8_e8m0fnu]  # safetensors 0.8 has no name for it in torch
INDEX = "model.safetensors.index.json"


def written(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(("writer", "reader"), WAYS, ids=["ours to torch's", "ours to ours", "torch's to ours"])
@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("files", [None, 3])
def test_every_dtype_and_shape(tmp_path, writer, reader, distributed, files):
    state = every_dtype(READ_BY_TORCH if reader is TorchReader else DTYPES)
    mapping = files and {name: number % files + 1 for number, name in enumerate(state)}
    save(state, writer(str(tmp_path), mapping, 2, distributed))
    assert_same(load(state, reader(str(tmp_path))), state)
    assert_same(written(tmp_path), state)


def test_is_named_and_indexed_as_torchs(tmp_path):
    state = {f"t{number}": torch.randn(number + 1, 3) for number in range(5)}
    mapping = {name: number % 2 + 1 for number, name in enumerate(state)}
    for name, kind in (("ours", HuggingFaceStorageWriter), ("theirs", TorchWriter)):
        save(state, kind(str(tmp_path / name), mapping))
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / name / INDEX).read_text()) for name in ("ours", "theirs"))
    assert ours == theirs
    for path in (tmp_path / "ours").glob("*.safetensors"):
        with safe_open(path, "pt") as our_file, safe_open(tmp_path / "theirs" / path.name, "pt") as their_file:
            assert our_file.metadata() == their_file.metadata() or json.loads(our_file.metadata()["DCP_SHARDING_INFO"])


def test_metadata_read_is_what_torch_reads(tmp_path):
    state = every_dtype(READ_BY_TORCH)
    save(state, HuggingFaceStorageWriter(str(tmp_path), save_distributed=True))
    save_file({"plain": torch.zeros(3, 4)}, tmp_path / "other.safetensors")
    ours, theirs = (kind(str(tmp_path)).read_metadata() for kind in (HuggingFaceStorageReader, TorchReader))
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def test_fp4_comes_back(tmp_path):
    state = {"fp4": filled((3, 4), torch.float4_e2m1fn_x2)}
    save(state, HuggingFaceStorageWriter(str(tmp_path)))
    assert_same(load(state, HuggingFaceStorageReader(str(tmp_path))), state)
    with safe_open(tmp_path / "model-00001-of-00001.safetensors", "pt") as file:
        assert file.get_slice("fp4").get_shape() == [3, 8]


def test_views_ties_and_strides_are_just_written(tmp_path):
    storage = torch.arange(100.0)
    state = {
        "whole": storage, "view": storage[10:20], "again": storage, "turned": torch.randn(3, 4).t(), "every other": storage[::2],
        "parameter": torch.nn.Parameter(torch.randn(3)), "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }  # fmt: skip
    save(state, HuggingFaceStorageWriter(str(tmp_path)))
    assert_same(load(state, TorchReader(str(tmp_path))), state)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (5, '"bad" is no tensor, and safetensors holds nothing else'),
        (torch.zeros(3, dtype=torch.complex128), '"bad" has dtype torch.complex128, which safetensors has not: .*view_as_real'),
        (torch.zeros(3, dtype=torch.complex32), '"bad" has dtype torch.complex32'),
    ],
    ids=["object", "complex128", "complex32"],
)
def test_what_safetensors_has_not_is_refused_and_nothing_written(tmp_path, bad, told):
    with pytest.raises(dcp.CheckpointException, match=told):
        save({"good": torch.zeros(3), "bad": bad}, HuggingFaceStorageWriter(str(tmp_path)))
    assert names(tmp_path) == []


def test_a_key_that_the_mapping_has_not_is_refused(tmp_path):
    with pytest.raises(dcp.CheckpointException, match="fqn_to_index_mapping has no file for b, c: add them"):
        save({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}, HuggingFaceStorageWriter(str(tmp_path), {"a": 1}))
    assert names(tmp_path) == []


@pytest.mark.parametrize("thread_count", [1, 3])
def test_a_failing_tensor_in_whatever_thread_leaves_what_was_there(tmp_path, thread_count):
    old, new = ({f"t{number}": torch.full((9,), value + number) for number in range(6)} for value in (0.0, 100.0))
    writer = HuggingFaceStorageWriter(str(tmp_path), {name: number + 1 for number, name in enumerate(old)}, thread_count)
    save(old, writer)
    before = contents(tmp_path)
    for name in ("t0", "t3", "t5"):
        with pytest.raises(dcp.CheckpointException, match="no data"):
            save(new, writer, planner=Failing(name))
        assert contents(tmp_path) == before
    save(new, writer)
    assert_same(written(tmp_path), new)


def test_fewer_files_leave_none_of_the_old(tmp_path):
    state = {f"t{number}": torch.full((4,), float(number)) for number in range(4)}
    save(state, HuggingFaceStorageWriter(str(tmp_path), {name: number + 1 for number, name in enumerate(state)}))
    save({"t0": torch.ones(2)}, HuggingFaceStorageWriter(str(tmp_path)))
    assert names(tmp_path) == ["model-00001-of-00001.safetensors", INDEX]
    assert_same(load({"t0": torch.ones(2)}, TorchReader(str(tmp_path))), {"t0": torch.ones(2)})


def test_what_others_have_in_the_folder_stands(tmp_path):
    """Also weights that another program wrote and listed in the index that is now ours."""
    for name in ("config.json", "tokenizer.json", "meta.pt"):
        (tmp_path / name).write_text(f"{name} is another's")
    save_file({"x": torch.zeros(3)}, tmp_path / "model-00001-of-00009.safetensors")
    weight_map = {"x": "model-00001-of-00009.safetensors", "y": "../y"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    others = {name: content for name, content in contents(tmp_path).items() if name != INDEX}
    for number in range(2):
        save({"t": torch.full((3,), float(number))}, HuggingFaceStorageWriter(str(tmp_path)))
    assert others.items() <= contents(tmp_path).items()
    assert names(tmp_path) == sorted([*others, INDEX, "model-00001-of-00001.safetensors"])


def test_nothing_is_seen_by_readers_before_finish(tmp_path):
    class Looking(HuggingFaceStorageWriter):
        def finish(self, metadata, results):
            seen.append(list(tmp_path.glob("*.safetensors")))
            super().finish(metadata, results)

    seen = []
    save({"t": torch.zeros(3)}, Looking(str(tmp_path)))
    assert seen == [[]]


def test_a_save_that_was_never_finished_leaves_nothing(tmp_path):
    class Unfinished(HuggingFaceStorageWriter):
        def finish(self, metadata, results):
            raise OSError("not today")

    writer = Unfinished(str(tmp_path))
    for before in ({}, None):
        if before is None:
            save({"t": torch.ones(3)}, HuggingFaceStorageWriter(str(tmp_path)))
            before = contents(tmp_path)
        with pytest.raises(dcp.CheckpointException, match="not today"):
            save({"t": torch.zeros(3)}, writer)
        assert len(contents(tmp_path)) == len(before) + 1
        writer.reset(tmp_path)
        assert contents(tmp_path) == before


def test_kinds_of_saves_in_one_folder_do_not_mix(tmp_path):
    """A reader takes whatever files it finds: those of the save before must be gone, the index too."""
    names_of = {"a": 1, "b": 2}
    old, new = ({"a": torch.full((2,), value), "b": torch.full((3,), value)} for value in (0.0, 1.0))
    for options in ([False, False], [True, False], [False, False], [True, True], [True, False], [True, True]):
        old, new = new, old
        save(new, HuggingFaceStorageWriter(str(tmp_path), names_of if options[0] else None, 1, *options))
        assert_same(load(new, TorchReader(str(tmp_path))), new)
        assert (INDEX in names(tmp_path)) == (options != [True, False])
    save({"a": new["a"]}, HuggingFaceStorageWriter(str(tmp_path), None, 1, True, True))
    assert names(tmp_path) == ["model-00001-of-00001.safetensors", INDEX, "shard-00001-model-00001-of-00001.safetensors"]


# several ranks, one after the other ---------------------------------------------------------------------------------------------


def prepared(writer, rank, state, collectives=True):
    planner = dcp.DefaultSavePlanner()
    planner.set_up_planner(state, None, rank == 0)
    writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=collectives)
    return writer.prepare_local_plan(planner.create_local_plan()), planner


def test_ranks_without_collectives_write_shards_of_their_own(tmp_path):
    states = [{"a": torch.zeros(3)}, {"b": torch.ones(4)}]
    for rank, state in enumerate(states):
        writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
        plan, planner = prepared(writer, rank, state, collectives=False)
        (plan,), metadata = planner.create_global_plan([plan])
        (plan,) = writer.prepare_global_plan([plan])
        writer.finish(metadata=metadata, results=[writer.write_data(planner.finish_plan(plan), planner).wait()])
    assert names(tmp_path) == ["shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors"]
    assert_same(written(tmp_path), states[0] | states[1])


def test_ranks_that_would_write_one_file_are_refused(tmp_path):
    writer = HuggingFaceStorageWriter(str(tmp_path))
    plans = [prepared(writer, rank, {name: torch.zeros(3)})[0] for rank, name in enumerate("ab")]
    with pytest.raises(TypeError, match="ranks 0 and 1 would both write file 1: save_distributed=True"):
        writer.prepare_global_plan(plans)
    apart = HuggingFaceStorageWriter(str(tmp_path), {"a": 1, "b": 2})
    assert len(apart.prepare_global_plan(plans)) == 2
    plan, _ = prepared(writer, 1, {"a": torch.zeros(3)}, collectives=False)
    with pytest.raises(TypeError, match="rank 1 would write the files of rank 0"):
        writer.prepare_global_plan([plan])


def test_two_shards_of_a_name_on_a_rank_are_refused(tmp_path):
    writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    plan, planner = prepared(writer, 0, {"a": torch.zeros(3)})
    (plan,) = writer.prepare_global_plan([plan])
    plan.items.append(plan.items[0])
    with pytest.raises(TypeError, match='"a" has several pieces on this rank'):
        writer.write_data(plan, planner)
    assert names(tmp_path) == []


# consolidation ------------------------------------------------------------------------------------------------------------------


def test_consolidates_every_dtype_and_shape(tmp_path):
    """torch's own raises for ints and bools, and makes zeros of 0-d tensors."""
    state = every_dtype(DTYPES)
    save(state, HuggingFaceStorageWriter(str(tmp_path), save_distributed=True, enable_consolidation=True))
    assert_same(written(tmp_path), state)
    assert_same(load(state, HuggingFaceStorageReader(str(tmp_path))), state)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"].keys() == state.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())


def test_consolidates_into_the_folder_that_the_save_names(tmp_path):
    state = {"a": torch.randn(4), "b": torch.randn(3)}
    writer = HuggingFaceStorageWriter(str(tmp_path / "constructor"), {"a": 1, "b": 2}, 1, True, True, 2)
    save(state, writer, checkpoint_id=str(tmp_path / "save"))
    assert not (tmp_path / "constructor").exists()
    whole = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert names(tmp_path / "save") == [*whole, INDEX, *(f"shard-00001-{name}" for name in whole)]
    assert_same(written(tmp_path / "save"), state)


@pytest.mark.parametrize("dim", [0, 1])
def test_consolidates_shards_of_rows_and_of_columns(tmp_path, dim):
    """As two ranks hold them: each half of a tensor at its offset."""
    whole = filled((6, 10), torch.bfloat16)
    writer, results = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True, enable_consolidation=True), []
    plans = []
    for rank, half in enumerate(whole.chunk(2, dim)):
        plan, planner = prepared(writer, rank, {"a": half})
        plans.append((plan, planner))
    given_plans = writer.prepare_global_plan([plan for plan, _ in plans])
    for (_, planner), given, offset in zip(plans, given_plans, (0, whole.shape[dim] // 2)):
        chunk = given.items[0].tensor_data.chunk
        chunk.offsets = torch.Size([offset if each == dim else 0 for each in range(2)])
        results.append(writer.write_data(given, planner).wait())
    metadata = dcp.Metadata({"a": None})
    writer.finish(metadata=metadata, results=results)
    assert_same(written(tmp_path), {"a": whole})
    assert len(names(tmp_path / "sharded")) == 2


def test_whole_files_are_not_consolidated(tmp_path):
    with pytest.warns(UserWarning, match="enable_consolidation has nothing to do"):
        writer = HuggingFaceStorageWriter(str(tmp_path), enable_consolidation=True)
    save({"a": torch.zeros(2)}, writer)
    assert names(tmp_path) == ["model-00001-of-00001.safetensors", INDEX]
    assert_same(load({"a": torch.zeros(2)}, TorchReader(str(tmp_path))), {"a": torch.zeros(2)})


def test_consolidation_needs_every_rank(tmp_path):
    writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True, enable_consolidation=True)
    with pytest.raises(ValueError, match="needs use_collectives=True"):
        writer.set_up_storage_writer(True, rank=0, use_collectives=False)


def test_shards_of_an_older_save_do_not_come_back(tmp_path):
    options = {"save_distributed": True, "enable_consolidation": True}
    save({"a": torch.zeros(2), "b": torch.zeros(3)}, HuggingFaceStorageWriter(str(tmp_path), {"a": 1, "b": 2}, **options))
    save({"a": torch.ones(2)}, HuggingFaceStorageWriter(str(tmp_path), **options))
    assert names(tmp_path / "sharded") == ["shard-00001-model-00001-of-00001.safetensors"]
    assert_same(load_file(tmp_path / "model-00001-of-00001.safetensors"), {"a": torch.ones(2)})


def test_travels_by_pickle(tmp_path):
    writer = pickle.loads(pickle.dumps(HuggingFaceStorageWriter(str(tmp_path), {"a": 1}, save_distributed=True)))
    save({"a": torch.ones(2)}, writer)
    assert_same(written(tmp_path), {"a": torch.ones(2)})
