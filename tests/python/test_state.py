"""State dicts as frameworks make them: nested, tied, viewed, with plain values; and what must be refused, with the remedy."""

import collections
import enum
import json
import math

import numpy
import pytest
import tspool
import torch


def test_a_model_and_its_optimizer_resume_equal(there_and_back):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = torch.randn(32, 8)

    def step(model, optimizer):
        optimizer.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    step(model, optimizer)
    loaded = there_and_back({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1})
    again = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    resumed = torch.optim.AdamW(again.parameters(), lr=0.5)
    again.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["optimizer"])
    assert [step(model, optimizer) for _ in range(3)] == [step(again, resumed) for _ in range(3)]


def test_plain_values_come_back_with_their_kinds(there_and_back):
    state = {
        "int": 7, "big": 1 << 200, "negative": -3, "float": 0.1, "whole": 2.0, "tiny": 5e-324, "minus": -0.0, "true": True,
        "false": False, "none": None, "text": "naïve \" \\ \n ☃ \ud800", "list": [1, [2.0, "x"], []], "tuple": (1, (), ("a",)),
        "dict": {}, "bytes": b"\0\xff",
        "array": bytearray(b"abc"), "empty": b"", "ints": {0: "a", 17: {"b": 1}}, "ordered": collections.OrderedDict(z=1, a=2),
        "$tensor": "not one", "dollar": {"$dict": [[1, 2]]}, "": 1,
    }  # fmt: skip

    def kinds(value):
        if isinstance(value, dict):
            return type(value), [(type(key), key, kinds(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return type(value), [kinds(item) for item in value]
        return type(value), value

    loaded = there_and_back(state)
    assert kinds(loaded) == kinds(state)
    assert math.copysign(1, loaded["minus"]) == -1
    special = there_and_back({"nan": math.nan, "inf": math.inf, "ninf": -math.inf})
    assert math.isnan(special["nan"]) and special["inf"] == math.inf and special["ninf"] == -math.inf


def test_tied_tensors_are_stored_once_and_share_memory_again(spool, root):
    weight = torch.randn(1000, 100)
    spool.save("tied", {"embedding": weight, "head": weight, "detached": weight.detach()}).result(60)
    with tspool.Checkpoint(root / "tied") as checkpoint:
        assert checkpoint.info.tensor_bytes == 400000
        assert [checkpoint.entry(name).tied_to for name in ("embedding", "head", "detached")] == [None, "embedding", "embedding"]
    loaded = tspool.load(root / "tied")
    assert loaded["embedding"].data_ptr() == loaded["head"].data_ptr() == loaded["detached"].data_ptr()
    loaded["head"].fill_(3)
    assert loaded["embedding"].eq(3).all()


def test_views_are_views_again(there_and_back):
    base, array = torch.arange(48.0).reshape(6, 8), numpy.arange(20).reshape(4, 5)
    state = {
        "view": base[2:4], "base": base, "transposed": base.T, "step": base[::2, 1::3], "flat": base.view(-1),
        "element": base[5, 7],
        "array": {"base": array, "rows": array[1:3], "columns": array[:, ::2]},
    }  # fmt: skip
    loaded = there_and_back(state)
    for name in ("view", "transposed", "step", "flat", "element"):
        assert torch.equal(loaded[name], state[name])
        assert loaded[name].untyped_storage().data_ptr() == loaded["base"].untyped_storage().data_ptr(), name
    for name in ("rows", "columns"):
        assert numpy.array_equal(loaded["array"][name], state["array"][name])
        assert numpy.shares_memory(loaded["array"][name], loaded["array"]["base"])
    loaded["base"].zero_()
    assert loaded["view"].eq(0).all() and loaded["element"] == 0


def test_a_view_without_its_base_stands_alone(spool, root):
    base = torch.arange(48.0).reshape(6, 8)
    spool.save("views", {"base": base, "view": base[2:4]}).result(60)
    assert torch.equal(tspool.load(root / "views", names="view")["view"], base[2:4])


def test_names_choose_a_part(spool, root):
    state = {
        "model": {"a": torch.ones(2), "b": torch.zeros(3)},
        "modelling": 1,
        "list": [torch.ones(1), torch.zeros(1)],
        "step": 4,
    }
    spool.save("part", state).result(60)
    assert list(tspool.load(root / "part", names="model")) == ["model"]
    assert list(tspool.load(root / "part", names=["model.b", "step"])) == ["model", "step"]
    assert list(tspool.load(root / "part", names=["model.b"])["model"]) == ["b"]
    first, second = tspool.load(root / "part", names="list.1")["list"]
    assert first is None and torch.equal(second, torch.zeros(1))
    with pytest.raises(tspool.NotFoundError, match="has nothing named 'optimizer'"):
        tspool.load(root / "part", names=["optimizer"])


def test_every_name_is_in_the_files_for_other_readers(spool, root):
    spool.save("files", {"model": {"w": torch.ones(2)}, "state": {0: {"exp_avg": torch.zeros(2)}}, "l": [torch.ones(1)]}).result(
        60
    )
    with tspool.Checkpoint(root / "files") as checkpoint:
        assert set(checkpoint.names) == {"model.w", "state.0.exp_avg", "l.0"}
        assert json.loads(checkpoint._handle.object_read("tspool.state"))["model"] == {"w": {"$tensor": "torch"}}


class Colour(enum.IntEnum):
    RED = 1


def test_other_objects_are_pickled_only_on_consent_and_loaded_only_on_consent(spool, root):
    state = {"colour": Colour.RED, "size": torch.Size([1, 2]), "dtype": torch.float32, "weight": torch.ones(2)}
    with pytest.raises(tspool.UnsupportedError, match='"colour" is a .*Colour.*pickle=True'):
        spool.save("pickles", state)
    spool.save("pickles", state, pickle=True).result(60)
    with pytest.raises(tspool.ConsentError, match="pickle=True if you trust"):
        tspool.load(root / "pickles")
    assert torch.equal(tspool.load(root / "pickles", names="weight")["weight"], torch.ones(2))
    loaded = tspool.load(root / "pickles", pickle=True)
    assert loaded["colour"] is Colour.RED and loaded["size"] == torch.Size([1, 2]) and loaded["dtype"] is torch.float32


def nested_forever():
    state = {}
    state["self"] = state
    return state


def nested_deeply():
    state = {}
    for _ in range(100000):
        state = {"n": state}
    return state


REFUSED = {
    "meta": (lambda: {"m": {"w": torch.empty(2, device="meta")}}, '"m.w" is on the meta device.*materialise'),
    "sparse": (lambda: {"s": torch.eye(3).to_sparse()}, '"s" has layout torch.sparse_coo.*to_dense'),
    "csr": (lambda: {"s": torch.eye(3).to_sparse_csr()}, "layout torch.sparse_csr"),
    "quantized": (lambda: {"q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, '"q" is quantized.*int_repr'),
    "nested": (lambda: {"n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "is a nested tensor"),
    "complex128": (lambda: {"c": torch.ones(2, dtype=torch.complex128)}, "complex128.*view_as_real"),
    "fake": (lambda: {"f": fake_tensor()}, "is a FakeTensor, a wrapper"),
    "numpy complex": (lambda: {"c": numpy.ones(2, "c16")}, 'complex128.*view\\("float64"\\)'),
    "numpy text": (lambda: {"t": numpy.array(["a", "b"])}, "has dtype <U1"),
    "numpy dates": (lambda: {"d": numpy.array(["2026-01-01"], "M8[D]")}, 'view\\("int64"\\)'),
    "numpy objects": (lambda: {"o": numpy.array([object()])}, "pickle=True"),
    "numpy order": (lambda: {"o": numpy.ones(2, ">f4")}, "other byte order"),
    "numpy masked": (lambda: {"m": numpy.ma.masked_array([1, 2], [0, 1])}, "is a MaskedArray"),
    "numpy long double": (lambda: {"m": numpy.ones(2, "g")}, "safetensors has not"),
    "key": (lambda: {"a": {(1, 2): 3}}, r"key \(1, 2\) of type tuple in 'a'.*convert it"),
    "bool key": (lambda: {True: 3}, "key True of type bool"),
    "none key": (lambda: {None: 3}, "key None of type NoneType"),
    "empty name": (lambda: {"": torch.ones(1)}, "a name has characters"),
    "nul": (lambda: {"a\0b": torch.ones(1)}, "a name has characters, none of them NUL"),
    "surrogate": (lambda: {"a": {"\ud800": b"bytes"}}, "or a surrogate"),
    "reserved": (lambda: {"__metadata__": torch.ones(1)}, "safetensors reserves this name"),
    "set": (lambda: {"s": {1, 2}}, '"s" is a builtins.set'),
    "lambda": (lambda: {"f": lambda: 1}, "neither a tensor nor a plain value"),
    "self": (nested_forever, "contains itself"),
    "deep": (nested_deeply, "nested deeper"),
    "bare": (lambda: torch.ones(2), "a state dict is a dict"),
}


def fake_tensor():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_stored_is_refused_by_name_and_training_goes_on(spool, root, what):
    make, message = REFUSED[what]
    with pytest.raises(tspool.SaveError, match=message) as refused:
        spool.save("refused", make())
    assert what == "reserved" or isinstance(refused.value, TypeError)
    spool.save("refused", {"w": torch.ones(2)}).result(60)
    assert tspool.latest(root) == str(root / "refused")


def test_two_paths_with_one_name_are_refused(spool):
    with pytest.raises(tspool.SaveError, match='"a.b".*declared twice'):
        spool.save("twice", {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}})


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "/etc/passwd", "x" * 181, "line\nbreak", "nul\0", "\ud800"])
def test_names_with_path_tricks_are_refused(spool, root, name):
    with pytest.raises(tspool.SaveError):
        spool.save(name, {"w": torch.ones(1)})
    assert list(root.iterdir()) == []


def test_metadata_are_texts_and_numbers_become_texts(spool, root):
    spool.save("metadata", {"w": torch.ones(1)}, metadata={"step": 12, "lr": 0.5, "run": "ü"}).result(60)
    with tspool.Checkpoint(root / "metadata") as checkpoint:
        assert checkpoint.metadata == {"step": "12", "lr": "0.5", "run": "ü"}
    with pytest.raises(tspool.SaveError, match="json.dumps"):
        spool.save("more", {}, metadata={"list": [1]})
    with pytest.raises(tspool.SaveError, match="no NUL"):
        spool.save("more", {}, metadata={"nul": "\0"})


def test_an_empty_state_dict_is_a_checkpoint(there_and_back):
    assert there_and_back({}) == {}
