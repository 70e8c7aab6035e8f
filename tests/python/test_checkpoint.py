"""Looking into a checkpoint, reading slices into the caller's memory, damage named, nothing trusted."""

import errno
import json
import os
import random

import numpy
import pytest
import tspool
import torch


@pytest.fixture
def saved(spool, root):
    torch.manual_seed(3)
    state = {"w": torch.randn(64, 48), "b": torch.ones(5, dtype=torch.bfloat16), "raw": b"bytes", "big": torch.randn(3 << 20)}
    spool.save("saved", state, metadata={"step": 9}).result(60)
    return root / "saved", state


def test_the_contents_are_listed(saved):
    path, state = saved
    with tspool.Checkpoint(path) as checkpoint:
        assert sorted(checkpoint.names) == ["b", "big", "w"] and len(checkpoint) == 3 and "w" in checkpoint
        entry = checkpoint.entry("w")
        assert (entry.dtype, entry.shape, entry.bytes, entry.file) == ("F32", (64, 48), 64 * 48 * 4, "model.safetensors")
        assert len(entry.digest) == 32
        assert [(item.name, item.kind) for item in checkpoint.objects] == [("raw", "bytes"), ("tspool.state", "json")]
        assert checkpoint.object("raw") == b"bytes"
        assert checkpoint.metadata == {"step": "9"} and checkpoint.info.kind == "tspool" and checkpoint.info.has_digests
        with pytest.raises(tspool.NotFoundError, match="has no tensor 'x'") as missing:
            checkpoint.read("x")
        assert isinstance(missing.value, FileNotFoundError) and missing.value.errno == errno.ENOENT
        with pytest.raises(tspool.NotFoundError, match="has no object 'x'"):
            checkpoint.object("x")
    with pytest.raises(tspool.SpoolError, match="closed"):
        checkpoint.read("w")


def test_boxes_are_read_into_what_the_caller_gives(saved):
    path, state = saved
    with tspool.Checkpoint(path) as checkpoint:
        box = checkpoint.read("w", (3, 7), (10, 20))
        assert torch.equal(box, state["w"][3:13, 7:27])
        out = torch.zeros(10, 20)
        assert checkpoint.read("w", (3, 7), (10, 20), out=out) is out and torch.equal(out, box)
        wide = torch.zeros(10, 40)
        checkpoint.read("w", (3, 7), (10, 20), out=wide[:, ::2])
        assert torch.equal(wide[:, ::2], box)
        array = numpy.zeros((64, 48), "f4")
        assert numpy.array_equal(checkpoint.read("w", out=array), state["w"].numpy())
        raw = bytearray(64 * 48 * 4)
        assert checkpoint.read("w", out=raw) == state["w"].numpy().tobytes()
        assert checkpoint.read("w", kind="memoryview").tolist() == state["w"].tolist()
        assert checkpoint.read("b", kind="tensor").dtype == "BF16"
        with pytest.raises(tspool.MismatchError, match=r"'w' is F32 \[64, 48\], `out` is F32 \[48, 64\]"):
            checkpoint.read("w", out=torch.zeros(48, 64))
        with pytest.raises(tspool.LoadError):
            checkpoint.read("w", (60, 0), (10, 48))


def test_random_boxes_are_what_slicing_gives(saved):
    path, state = saved
    rng = random.Random(11)
    with tspool.Checkpoint(path) as checkpoint:
        for _ in range(50):
            rows, columns = sorted(rng.sample(range(65), 2)), sorted(rng.sample(range(49), 2))
            box = checkpoint.read("w", (rows[0], columns[0]), (rows[1] - rows[0], columns[1] - columns[0]))
            assert torch.equal(box, state["w"][rows[0] : rows[1], columns[0] : columns[1]])


def damage(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_is_named_by_tensor_file_and_offset(saved):
    path, _ = saved
    with tspool.Checkpoint(path) as checkpoint:
        entry = checkpoint.entry("big")
    damage(path / "model.safetensors", entry.file_offset + (5 << 20))
    with pytest.raises(tspool.DamagedError) as damaged:
        tspool.load(path)
    assert damaged.value.tensor == "big" and damaged.value.errno == errno.EBADMSG and damaged.value.stage == "verify"
    assert damaged.value.path.endswith("model.safetensors") and damaged.value.file_offset == entry.file_offset + (4 << 20)
    assert tspool.load(path, names="w")["w"].shape == (64, 48)  # the others are whole
    assert tspool.load(path, verify=False)["big"].shape == (3 << 20,)
    with pytest.raises(tspool.DamagedError) as found:
        tspool.verify(path)
    assert [(finding.kind, finding.tensor) for finding in found.value.report.findings] == [("tensor", "big")]
    assert found.value.report.damaged == 1


def test_missing_and_cut_files_are_damage_not_crashes(saved):
    path, _ = saved
    os.truncate(path / "model.safetensors", 5000)
    with pytest.raises(tspool.LoadError):
        tspool.load(path)
    os.unlink(path / "model.safetensors")
    with pytest.raises(tspool.DamagedError) as found:
        tspool.verify(path)
    assert found.value.report.missing == 1
    with pytest.raises(tspool.NotFoundError):
        tspool.load(path.parent / "nowhere")


def test_verify_counts_what_it_read(saved):
    path, state = saved
    steps = []
    report = tspool.verify(path, progress=lambda done, total: steps.append((done, total)))
    assert report.has_digests and (report.tensors, report.damaged, report.missing, report.foreign) == (3, 0, 0, 0)
    assert steps and steps[-1][0] == steps[-1][1] == report.bytes
    (path / "tokenizer.json").write_text("{}")
    assert [finding.kind for finding in tspool.verify(path).findings] == ["foreign"]


def test_a_folder_without_digests_says_so(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    assert tspool.verify(tmp_path).has_digests is False
    with tspool.Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.info.kind == "huggingface"


def rewritten(spool, root, spoil):
    """A checkpoint of the structure object that `spoil` made."""
    save = spool.begin("spoiled", replace=True)
    save.add("w", torch.arange(4.0))
    save.add("v", torch.arange(2.0))
    save.add_object("tspool.state", "json", json.dumps(spoil).encode() if not isinstance(spoil, bytes) else spoil)
    save.submit().result(60)
    return root / "spoiled"


@pytest.mark.parametrize(
    "spoil",
    [
        b"{", b"[" * 100000, b"\xff", {"w": {"$tensor": "torch"}, "x": {"$later": 1}}, {"missing": {"$tensor": "torch"}},
        {"b": {"$bytes": "bytes"}}, {"t": {"$tuple": 3}}, {"d": {"$dict": [1]}}, {"t": {"$tensor": 5}}, 7,
        {"t": {"$float": "1e5"}}, {"t": {"$bytes": "list"}}, {"d": {"$dict": [[[1], 2]]}},
    ],
    ids=["cut", "deep", "not utf-8", "unknown tag", "no tensor", "no object", "tuple", "dict", "kind", "7", "float", "bytes", "key"],
)  # fmt: skip
def test_a_structure_that_makes_no_sense_is_an_error_of_loading(spool, root, spoil):
    with pytest.raises(tspool.LoadError):
        tspool.load(rewritten(spool, root, spoil))


@pytest.mark.parametrize(
    "node", [{"at": 3}, {"at": -1}, {"at": "0"}, {"strides": [100]}, {"strides": [-1]}, {"strides": [1, 1]}, {"of": "nothing"}]
)
def test_a_view_that_leaves_its_base_is_read_on_its_own(spool, root, node):
    view = {"$tensor": "torch", "of": "w", "at": 0, "strides": [1], **node}
    loaded = tspool.load(rewritten(spool, root, {"w": {"$tensor": "torch"}, "v": view}))
    assert torch.equal(loaded["v"], torch.arange(2.0))


def test_a_root_whose_name_is_not_utf_8_serves_too(root):
    odd = root / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    with tspool.Spool(odd, 64 << 20) as spool:
        spool.save("one", {"w": torch.ones(2)}).result(60)
    assert tspool.latest(odd) == str(odd / "one") and tspool.load(tspool.latest(odd))["w"].eq(1).all()


def test_latest_is_by_step_and_none_where_there_is_nothing(spool, root, tmp_path):
    assert tspool.latest(root) is None and tspool.latest(tmp_path / "nowhere") is None
    for step in (10, 9):
        spool.save(f"at-{step}", {"w": torch.ones(1)}, metadata={"step": step}).result(60)
    assert tspool.latest(root) == str(root / "at-10")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"arena_bytes": 1 << 20}, "below 32 MiB"), ({"item_bytes": 1000}, "item_bytes"), ({"depth": 4096}, "depth"),
        ({"rank": 2, "world_size": 2}, "rank"), ({"excluded_cpus": "x"}, "excluded_cpus"),
        ({"staging_threads": 100}, "staging_threads"),
        ({"writer_path": "/nowhere"}, "writer_path names no executable"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_when_the_spool_is_opened(root, options, message):
    with pytest.raises(tspool.SpoolError, match=message):
        tspool.Spool(root, **options)


def test_a_root_that_is_not_there_is_named(root):
    with pytest.raises(tspool.SpoolError, match="does not exist; create it first") as missing:
        tspool.Spool(root / "nowhere")
    assert missing.value.errno == errno.ENOENT and missing.value.stage == "open" and missing.value.path == str(root / "nowhere")
    with pytest.raises(ValueError, match="io is one of 'auto', 'uring', 'threads'"):
        tspool.Spool(root, io="fast")


@pytest.mark.parametrize(
    "options", [{"io": "threads"}, {"isolation": "thread"}, {"buffered": True}, {"shard_bytes": 1 << 20}, {"depth": 4}]
)
def test_options_change_how_and_not_what(root, options):
    state = {"a": torch.randn(300000), "b": torch.randn(400000)}
    with tspool.Spool(root, 64 << 20, **options) as spool:
        spool.save("same", state).result(60)
    loaded = tspool.load(root / "same")
    assert torch.equal(loaded["a"], state["a"]) and torch.equal(loaded["b"], state["b"])


def test_the_arena_hook_sees_all_memory_come_and_go(root):
    extents = []
    with tspool.Spool(root, 64 << 20, on_arena=lambda base, size, added: extents.append((base, size, added))) as spool:
        assert spool.open_report().orphans_seen == 0
        spool.reserve(32 << 20)
        spool.save("pinned", {"w": torch.ones(1000)}).result(60)
    added = {(base, size) for base, size, is_added in extents if is_added}
    removed = {(base, size) for base, size, is_added in extents if not is_added}
    assert added and sum(size for _, size in added) == sum(size for _, size in removed)
