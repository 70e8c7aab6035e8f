"""Our header code against Python's safetensors: what it writes we read, what we write it reads. What it refuses
and we must not accept is hunted for in test_header_differential.py.

Run by meson; alone: HEADER_TOOL=build/tests/exchange/header_tool python3 -m pytest tests/exchange
"""
import json
import os
import random
import struct
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

from header_mutants import ITEM_BITS, NAMES
from header_tool import Tool

TOOL = os.environ.get("HEADER_TOOL", "header_tool")
@pytest.fixture
def parse():
    tool = Tool(TOOL, "parse")
    yield lambda file: json.loads(tool.ask(file))
    tool.close()


@pytest.fixture
def rebuild():
    tool = Tool(TOOL, "rebuild")
    yield tool.ask
    tool.close()


def theirs(file):
    """{name: (dtype, shape, data)} as safetensors reads it, or None when it refuses."""
    try:
        return {name: (one["dtype"], one["shape"], bytes(one["data"])) for name, one in safetensors.deserialize(file)}
    except safetensors.SafetensorError:
        return None


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text)) + text + data


def their_metadata(file, tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(file)
    with safetensors.safe_open(path, "np") as opened:
        return opened.metadata()


def random_header(chance):
    """A legal header as a dict, and its data."""
    header, end = {}, 0
    for number in range(chance.randrange(6)):
        dtype = chance.choice(list(ITEM_BITS))
        shape = [chance.choice([0, 1, 2, 3, 5, 8]) for _ in range(chance.randrange(4))]
        bits = ITEM_BITS[dtype]
        for extent in shape:
            bits *= extent
        if bits % 8:
            dtype, shape, bits = "U8", [3], 24
        offsets = [end, end + bits // 8]
        header[chance.choice(NAMES) + str(number)] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        end += bits // 8
    entries = list(header.items())
    chance.shuffle(entries)
    header = dict(entries)
    if chance.random() < 0.4:
        header["__metadata__"] = {chance.choice(NAMES): chance.choice(NAMES) for _ in range(chance.randrange(3))}
    return header, bytes(chance.randrange(256) for _ in range(end))


def random_text(chance, header):
    """One of the many ways to write the same JSON."""
    text = json.dumps(header, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1]),
                      separators=chance.choice([(",", ":"), (", ", " : ")]))
    return (chance.choice(["", " ", "\n\t"]) + text + " " * chance.randrange(9)).encode()


def test_files_of_safetensors_are_read(parse, tmp_path):
    chance = random.Random(1)
    dtypes = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64",
              "complex64"]
    for _ in range(200):
        tensors = {}
        for number in range(chance.randrange(8)):
            shape = [chance.randrange(4) for _ in range(chance.randrange(4))]
            tensors[chance.choice(NAMES) + str(number)] = numpy.zeros(shape, chance.choice(dtypes))
        metadata = {chance.choice(NAMES): "v"} if chance.random() < 0.5 else None
        file = safetensors.numpy.save(tensors, metadata)
        ours = parse(file)
        assert "refused" not in ours, ours
        got = {name: (dtype, shape, end - begin) for name, dtype, shape, begin, end, _ in ours["tensors"]}
        assert got == {name: (dtype, shape, len(data)) for name, (dtype, shape, data) in theirs(file).items()}
        assert ours["metadata"] == (metadata or {})


def test_every_legal_header_is_read_alike(parse):
    chance = random.Random(2)
    for _ in range(1500):
        header, data = random_header(chance)
        file = file_of(random_text(chance, header), data)
        reference, ours = theirs(file), parse(file)
        assert reference is not None
        assert "refused" not in ours, (ours, file)
        got = {name: (dtype, shape, data[begin:end]) for name, dtype, shape, begin, end, _ in ours["tensors"]}
        assert got == reference
        assert ours["metadata"] == header.get("__metadata__", {})


def test_what_is_built_safetensors_opens(rebuild, tmp_path):
    chance = random.Random(3)
    for _ in range(400):
        header, data = random_header(chance)
        file = file_of(header, data)
        built = rebuild(file)
        assert theirs(built) == theirs(file)
        (length,) = struct.unpack_from("<Q", built)
        assert (8 + length) % 4096 == 0
        assert (their_metadata(built, tmp_path) or {}) == header.get("__metadata__", {})


def test_sharding_info_is_built_and_read_alike(parse, rebuild, tmp_path):
    chance = random.Random(4)
    for _ in range(200):
        header, data = random_header(chance)
        header.pop("__metadata__", None)
        offsets = {name: {"saved_offsets": [chance.randrange(1 << 40) for _ in one["shape"]]}
                   for name, one in header.items()}
        if not offsets:
            continue
        info = json.dumps(offsets, ensure_ascii=chance.random() < 0.5)
        file = file_of({"__metadata__": {"DCP_SHARDING_INFO": info, "DCP_VERSION": "1.0", "format": "pt"}, **header}, data)
        built = rebuild(file)
        assert theirs(built) == theirs(file)
        metadata = their_metadata(built, tmp_path)
        assert json.loads(metadata["DCP_SHARDING_INFO"]) == offsets
        assert (metadata["DCP_VERSION"], metadata["format"]) == ("1.0", "pt")
        for name, _, _, _, _, ours in parse(built)["tensors"]:
            assert ours == offsets[name]["saved_offsets"]


EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.parametrize("text", [
    "{}", " {} ", '{"__metadata__":null}', '{"__metadata__":{}}', '{"":%s}' % EMPTY, '{"a":%s,"b":%s}' % (EMPTY, EMPTY),
    '{"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}',
    '{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}',
    '{"a":{"dtype":"F32","shape":[2305843009213693952,0],"data_offsets":[0,0]}}',
    '{"a":{"dtype":"F32","shape":[2305843009213693952,2,0],"data_offsets":[0,0]}}',
    '{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}',
    '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":{"dtype":[1e5,-0,"\\ud83d\\ude00"]}}}',
    '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1e400}}',
    '{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', '{"a":{"dtype":"U8","shape":[0.0],"data_offsets":[0,0]}}',
    '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}}', '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}}',
    '{"a":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}', '{"a":{"dtype":"u8","shape":[0],"data_offsets":[0,0]}}',
    '{"\\ud800":%s}' % EMPTY, '{"\\ud83d\\ude00":%s}' % EMPTY, '{"a\n":%s}' % EMPTY, '{"a":%s,}' % EMPTY, '{"a":%s}x' % EMPTY,
    '{"__metadata__":{"a":1}}', '{"__metadata__":{"a":null}}', '{"__metadata__":[]}', "[]", "null", "", " ",
    '{"__metadata__":{},"__metadata__":{}}', '{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
])
def test_the_hard_cases_are_decided_alike(parse, text):
    file = file_of(text.encode())
    assert ("refused" not in parse(file)) == (theirs(file) is not None)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", __file__]))
