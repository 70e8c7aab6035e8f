"""Four ranks save, as four_ranks.py has them do it; two and one load what they saved."""

import pytest
import tspool

torch = pytest.importorskip("torch", reason="tspool.torch needs torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from launches import Launch, checks_of  # noqa: E402
from torch.distributed.checkpoint import HuggingFaceStorageReader  # noqa: E402
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys  # noqa: E402
from tspool.torch import StorageReader  # noqa: E402


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return Launch(4, "four_ranks.py", tmp_path_factory.mktemp("ranks") / "four")


@pytest.fixture(scope="module")
def two(four):
    return Launch(2, "two_ranks.py", four.folder.parent / "two", four.folder)


@pytest.mark.parametrize("check", checks_of("four_ranks.py"))
def test_four_ranks(four, check):
    four.result(check)


@pytest.mark.parametrize("check", checks_of("two_ranks.py"))
def test_two_ranks(two, check):
    two.result(check)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_what_four_ranks_saved_loads_on_one(four, two):
    two.result("what_four_saved_loads_on_two")
    expected = torch.load(two.folder / "two.pt", weights_only=True)
    whole = _load_state_dict_from_keys(storage_reader=StorageReader(four.folder / "fsdp"))
    assert whole["step"] == expected["step"] and whole["model"].keys() == expected["weights"].keys()
    assert all(torch.equal(whole["model"][name], value) for name, value in expected["weights"].items())
    model = torch.nn.Sequential(torch.nn.Linear(10, 13), torch.nn.ReLU(), torch.nn.Linear(13, 7), torch.nn.LayerNorm(7))
    state = {"model": model.state_dict()}
    for reader in (StorageReader(four.folder / "fsdp"), HuggingFaceStorageReader(str(four.folder / "fsdp"))):
        for tensor in state["model"].values():
            tensor.zero_()
        dcp.load(state, storage_reader=reader)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in expected["weights"].items())


def test_the_published_folder_is_as_the_format_says(four):
    assert sorted(path.name for path in (four.folder / "fsdp").iterdir()) == sorted(
        [f"shard-{rank:05}-model-00001-of-00001.safetensors" for rank in range(1, 5)]
        + [f"objects-{rank:05}.bin" for rank in range(1, 5)]
        + [f"tspool.digests-{rank:05}" for rank in range(1, 5)]
        + ["tspool.manifest.json"]
    )
    assert tspool.Checkpoint(four.folder / "fsdp").metadata == {"step": "2"}
