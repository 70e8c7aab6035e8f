"""Whole checkpoints against Python's safetensors, both ways: what `tspool copy` commits, safetensors opens and finds equal;
what safetensors writes, single files and indexed folders, tspool reads, and says that there is nothing to verify against.

Run by meson; alone: TSPOOL=build/tools/tspool TSPOOL_WRITER=build/tools/tspool-writer RANK_SAVER=build/tests/process/rank_saver
python3 -m pytest tests/exchange
"""
import json
import os
import random
import subprocess
import sys

try:
    import numpy
    import pytest
    import safetensors
    import safetensors.numpy
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

TSPOOL, WRITER, RANK_SAVER = os.environ.get("TSPOOL", "tspool"), os.environ.get("TSPOOL_WRITER"), os.environ.get("RANK_SAVER")
DTYPES = ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "?"]


def tspool(*arguments, status=0):
    run = subprocess.run([TSPOOL, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == status, run.stdout + run.stderr
    return run


def copy(*arguments, status=0):
    return tspool("copy", "--writer", WRITER, *arguments, status=status)


def random_state(seed):
    """Every dtype, scalars, empty tensors, odd sizes, names that need escaping."""
    rng, state = numpy.random.default_rng(seed), {}
    random.seed(seed)
    for number in range(40):
        rank = random.randrange(4)
        shape = [random.choice([0, 1, 3, 17, 64, 100]) for _ in range(rank)]
        bytes_ = rng.integers(0, 256, size=int(numpy.prod(shape)) * 8, dtype="u1")
        dtype = numpy.dtype(random.choice(DTYPES))
        values = bytes_[: int(numpy.prod(shape)) * dtype.itemsize]
        values = (values % 2).astype("?")[: int(numpy.prod(shape))] if dtype == "?" else values.view(dtype)
        state[f"layer.{number}.\"quoted\"\\ {chr(0x3b1 + number)}"] = values.reshape(shape)
    state["big"] = rng.integers(0, 256, size=(5 << 20) + 3, dtype="u1")
    return state


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape, name
        assert ours[name].tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("io", ["uring", "threads"])
def test_what_we_commit_safetensors_finds_equal(tmp_path, seed, io):
    state = random_state(seed)
    safetensors.numpy.save_file(state, tmp_path / "source.safetensors", metadata={"format": "np"})
    copy("--io", io, tmp_path / "source.safetensors", tmp_path / "copied")
    same(state, safetensors.numpy.load_file(tmp_path / "copied" / "model.safetensors"))
    assert "whole" in tspool("verify", tmp_path / "copied").stdout
    assert "0 added, 0 removed, 0 changed" in tspool("diff", tmp_path / "source.safetensors", tmp_path / "copied").stdout


def test_several_files_become_one_state(tmp_path):
    parts = [random_state(seed) for seed in (7, 8)]
    parts[1] = {f"second.{name}": value for name, value in parts[1].items()}
    for number, part in enumerate(parts):
        safetensors.numpy.save_file(part, tmp_path / f"part-{number}.safetensors")
    copy(tmp_path / "part-0.safetensors", tmp_path / "part-1.safetensors", tmp_path / "whole")
    same({**parts[0], **parts[1]}, safetensors.numpy.load_file(tmp_path / "whole" / "model.safetensors"))


def folder_of(tmp_path, state):
    """A Hugging Face folder: two shards and their index."""
    names, folder = sorted(state), tmp_path / "folder"
    folder.mkdir()
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in halves.items():
        safetensors.numpy.save_file({name: state[name] for name in members}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, members in halves.items() for name in members}
    total = sum(value.nbytes for value in state.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return folder


def test_a_changed_value_is_a_difference(tmp_path):
    state = {"same": numpy.ones(5, "f4"), "changed": numpy.zeros(3, "f4")}
    safetensors.numpy.save_file(state, tmp_path / "source.safetensors")
    copy(tmp_path / "source.safetensors", tmp_path / "first")
    state["changed"][1] = 1
    safetensors.numpy.save_file(state, tmp_path / "source.safetensors")
    run = tspool("diff", tmp_path / "first", tmp_path / "source.safetensors")
    assert [line.split()[2] for line in run.stdout.splitlines() if line.startswith("~")] == ["changed"]


def test_an_indexed_folder_of_others_is_read_and_nothing_to_verify_is_said(tmp_path):
    state = random_state(9)
    folder = folder_of(tmp_path, state)
    listed = [json.loads(line) for line in tspool("ls", "--json", folder).stdout.splitlines()]
    assert {line["name"] for line in listed if "dtype" in line} == set(state)
    run = subprocess.run([TSPOOL, "verify", str(folder)], capture_output=True, text=True)
    assert "digest" in run.stdout + run.stderr
    copy(folder, tmp_path / "ours")
    loaded = {}
    for file in (tmp_path / "ours").glob("*.safetensors"):
        loaded.update(safetensors.numpy.load_file(file))
    same(state, loaded)


def saved_by_ranks(root, world):
    """A published checkpoint of so many ranks, as rank_saver.c describes it."""
    for rank in range(world):
        subprocess.run([RANK_SAVER, root, "step-1", "ab" * 16, str(rank), str(world), WRITER], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    tspool("publish", root / "step-1")
    return root / "step-1"


def put_together(folder):
    """Every tensor, its shards where the files themselves tell, as safetensors finds them; and how often it was there."""
    whole, times = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="numpy") as opened:
            sharding = json.loads((opened.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
            for name in opened.keys():
                shard = opened.get_tensor(name)
                place = sharding.get(name, {"saved_offsets": [0] * shard.ndim})["saved_offsets"]
                end = [begin + length for begin, length in zip(place, shard.shape)]
                whole[name] = enlarged(whole.get(name, shard), end)
                whole[name][tuple(map(slice, place, end))] = shard
                times[name] = times.get(name, 0) + 1
    return whole, times


def enlarged(array, shape):
    larger = numpy.zeros([max(pair) for pair in zip(array.shape, shape)], array.dtype)
    larger[tuple(map(slice, array.shape))] = array
    return larger


def test_files_of_several_ranks_open_in_safetensors_and_make_the_whole(tmp_path):
    world = 3
    folder = saved_by_ranks(tmp_path, world)
    copy(folder, tmp_path / "copied")
    expected = {f"rank.{rank}": numpy.full(5000, rank, "u1") for rank in range(world)}
    expected["sharded.weight"] = numpy.arange(4 * world * 1024, dtype="f4").reshape(4 * world, 1024)
    expected["replicated.bias"] = numpy.full(100, 7, "u1")
    whole, times = put_together(folder)
    same(expected, whole)
    assert times["sharded.weight"] == times["replicated.bias"] == world
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="numpy") as opened:
            assert opened.metadata()["tied.weight"] == "sharded.weight"
    whole, times = put_together(tmp_path / "copied")
    tied = whole.pop("tied.weight")  # a name with several shards is never tied by one rank alone
    same(expected, whole)
    same({"tied.weight": expected["sharded.weight"]}, {"tied.weight": tied})
    assert times["sharded.weight"] == world and times["replicated.bias"] == 1


def test_a_damaged_source_is_named_and_nothing_is_left(tmp_path):
    safetensors.numpy.save_file(random_state(10), tmp_path / "source.safetensors")
    copy(tmp_path / "source.safetensors", tmp_path / "first")
    shard = tmp_path / "first" / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    run = copy(tmp_path / "first", tmp_path / "second", status=1)
    assert "model.safetensors" in run.stderr
    assert sorted(os.listdir(tmp_path)) == ["first", "source.safetensors"]
    assert tspool("verify", tmp_path / "first", status=1)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__]))
