"""The planners make what DCP's make."""

import pytest

torch = pytest.importorskip("torch", reason="tspool.torch needs torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner  # noqa: E402
from tspool.torch import LoadPlanner, SavePlanner, StorageReader, StorageWriter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def state():
    weight = torch.randn(4, 3)
    return {
        "model": {"w": weight, "tied": weight, "scalar": torch.tensor(1.0), "none": torch.empty(0, 3)},
        "parameter": torch.nn.Parameter(weight),
        "groups": [{"lr": 0.1, "x": torch.ones(2)}], "objects": {"a": (1, 2), "b": None, "c": range(3), "d": torch.Size([1])},
    }  # fmt: skip


def planned(planner, what):
    planner.set_up_planner(what, None, True)
    (plan,), metadata = planner.create_global_plan([planner.create_local_plan()])
    return planner.finish_plan(plan), metadata


@pytest.mark.parametrize("options", [{}, {"flatten_state_dict": False}, {"enable_plan_caching": True}])
def test_plans_of_a_save_are_dcps(options):
    what = state()
    ours, theirs = planned(SavePlanner(**options), what), planned(DefaultSavePlanner(**options), what)
    assert ours[0].items == theirs[0].items and [item.index.index for item in ours[0].items] == [
        item.index.index for item in theirs[0].items
    ]
    assert ours[0].planner_data == theirs[0].planner_data and ours[1] == theirs[1]


def test_plans_of_a_load_are_dcps(tmp_path):
    what = state()
    dcp.save(what, storage_writer=StorageWriter(tmp_path / "x", arena_bytes=64 << 20), planner=SavePlanner())
    metadata = StorageReader(tmp_path / "x").read_metadata()
    plans = []
    for planner in (LoadPlanner(), DefaultLoadPlanner()):
        planner.set_up_planner(what, metadata, True)
        plans.append(planner.create_local_plan().items)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("wrong", [{"new": torch.ones(2)}, {"w": torch.ones(4)}, {"w": 3}, {"lr": torch.ones(1)}])
def test_what_is_wrong_is_said_as_dcp_says_it(tmp_path, wrong):
    dcp.save({"w": torch.ones(3), "lr": 1.5}, storage_writer=StorageWriter(tmp_path / "x", arena_bytes=64 << 20))
    told = []
    for planner in (LoadPlanner(), DefaultLoadPlanner()):
        try:
            dcp.load(dict(wrong), storage_reader=StorageReader(tmp_path / "x"), planner=planner)
            told.append(None)
        except dcp.CheckpointException as failed:
            told.append(str(failed.failures[0][0]))
    assert told[0] == told[1]


def test_a_part_loads_where_that_is_allowed(tmp_path):
    dcp.save({"w": torch.ones(3)}, storage_writer=StorageWriter(tmp_path / "x", arena_bytes=64 << 20), planner=SavePlanner())
    found = {"w": torch.zeros(3), "new": torch.zeros(2)}
    dcp.load(found, storage_reader=StorageReader(tmp_path / "x"), planner=LoadPlanner(allow_partial_load=True))
    assert torch.equal(found["w"], torch.ones(3))
