"""Loading into a state dict that exists: straight into its memory, and not one byte before everything was looked at."""

import numpy
import pytest
import tspool
import torch


def state_of(fill):
    return {
        "model": {"w": torch.full((4, 6), fill), "b": torch.full((3,), fill, dtype=torch.bfloat16)},
        "array": numpy.full((2, 3), fill, "f4"), "step": int(fill), "fixed": ("adam", 0.9),
        "nested": [{"lr": fill}, torch.full((2,), fill)],
    }  # fmt: skip


@pytest.fixture
def saved(spool, root):
    spool.save("saved", state_of(7.0)).result(60)
    return root / "saved"


def test_data_go_into_the_memory_that_is_there(saved):
    into = state_of(1.0)
    weight, array = into["model"]["w"], into["array"]
    address = weight.data_ptr()
    assert tspool.load(saved, into=into) is into
    assert into["model"]["w"] is weight and weight.data_ptr() == address and weight.eq(7).all()
    assert into["array"] is array and (array == 7).all()
    assert into["step"] == 7 and into["nested"][0]["lr"] == 7.0 and into["nested"][1].eq(7).all()


def test_parameters_and_scattered_targets_take_data_too(saved):
    into = state_of(1.0)
    wide = torch.zeros(4, 12)
    rows = numpy.zeros((2, 6), "f4")
    into["model"]["w"], into["array"] = wide[:, ::2], rows[:, ::2]
    into["model"]["b"] = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    tspool.load(saved, into=into)
    assert wide[:, ::2].eq(7).all() and wide[:, 1::2].eq(0).all()
    assert (rows[:, ::2] == 7).all() and (rows[:, 1::2] == 0).all()
    assert into["model"]["b"].eq(7).all() and into["model"]["b"].requires_grad


def read_only():
    array = numpy.full((2, 3), 1.0, "f4")
    array.flags.writeable = False
    return array


MISFITS = {
    "shape": (
        lambda into: into["model"].update(w=torch.ones(6, 4)),
        r"'model.w' is F32 \[4, 6\] in the checkpoint and F32 \[6, 4\] here",
    ),
    "dtype": (
        lambda into: into["model"].update(b=torch.ones(3)),
        r"'model.b' is BF16 \[3\] in the checkpoint and F32 \[3\] here",
    ),
    "missing here": (lambda into: into["model"].pop("b"), "'model.b' is in the checkpoint and not in `into`.*names="),
    "missing there": (lambda into: into.update(more=torch.ones(1)), "'more' is not in the checkpoint"),
    "no tensor": (lambda into: into["model"].update(w=3), "'model.w' is a tensor in the checkpoint and a int here"),
    "read-only": (lambda into: into.update(array=read_only()), "'array' cannot be loaded into.*read-only"),
    "expanded": (lambda into: into["model"].update(w=torch.ones(1, 6).expand(4, 6)), "expanded"),
    "meta": (lambda into: into["model"].update(w=torch.ones(4, 6, device="meta")), "meta device"),
    "tuple": (lambda into: into.update(fixed=("adam", 0.8)), "'fixed.1' is 0.9 in the checkpoint; here it stands in a tuple"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_misfit_is_found_before_a_byte_lands(saved, what):
    into = state_of(1.0)
    spoil, message = MISFITS[what]
    spoil(into)
    with pytest.raises(tspool.MismatchError, match=message):
        tspool.load(saved, into=into)
    assert into["nested"][1].eq(1).all() and into["step"] == 1 and into["nested"][0]["lr"] == 1.0
    for tensor in (into["model"].get("b"), into["model"]["w"]):
        assert not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.eq(1).all()


def test_names_and_into_go_together(saved):
    model = state_of(1.0)["model"]
    tspool.load(saved, names="model", into={"model": model})
    assert model["w"].eq(7).all()


def test_tied_targets_are_filled_once_and_twice_alike(spool, root):
    weight = torch.randn(8, 8)
    spool.save("tied", {"a": weight, "b": weight, "row": weight[2]}).result(60)
    shared = torch.zeros(8, 8)
    tspool.load(root / "tied", into={"a": shared, "b": shared, "row": shared[2]})
    assert torch.equal(shared, weight)
    apart = {"a": torch.zeros(8, 8), "b": torch.zeros(8, 8), "row": torch.zeros(8)}
    tspool.load(root / "tied", into=apart)
    assert torch.equal(apart["a"], weight) and torch.equal(apart["b"], weight) and torch.equal(apart["row"], weight[2])
