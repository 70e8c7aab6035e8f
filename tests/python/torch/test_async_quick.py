"""The short way of one process, without DCP's planner: what it leaves is what DCP's own way leaves, and what it cannot do is
left to that."""

import errno
from collections import OrderedDict

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

import tspool
from tspool.torch import StorageReader, StorageWriter, async_save, load, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def without_planner(monkeypatch):
    def refuse(self):
        raise AssertionError("DCP's planner was asked")

    monkeypatch.setattr(DefaultSavePlanner, "create_local_plan", refuse)
    monkeypatch.setattr(DefaultLoadPlanner, "create_local_plan", refuse)


def various():
    weight = torch.randn(20, 30)
    return {
        "model": OrderedDict([("w", weight), ("tied", weight), ("t", weight.t()), ("p", torch.nn.Parameter(torch.ones(3)))]),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(4)}},
            "param_groups": [{"lr": 0.5, "params": [0, 1]}],
        },
        "lists": {
            "of tensors": [torch.ones(1), torch.zeros(2), 5],
            "of values": [1, [2, 3]],
            "empty": [],
            "tuple": (torch.ones(2), 1),
        },
        "nothing": {},
        "empty": torch.empty(0, 3),
        "half": torch.ones(5).bfloat16(),
        "none": None,
        "step": 7,
    }


def emptied(value):
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value.detach().contiguous())
    if isinstance(value, dict):
        return type(value)((key, emptied(item)) for key, item in value.items())
    if isinstance(value, list):
        return [emptied(item) for item in value]
    return value if isinstance(value, tuple) else None if value is None else -1


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_metadata_and_bytes_are_those_of_dcps_own_way(root, monkeypatch):
    state = various()
    planned = dcp.save(state, checkpoint_id=root / "planned", storage_writer=StorageWriter())
    quick = save(state, checkpoint_id=root / "quick")
    assert quick.state_dict_metadata == planned.state_dict_metadata and quick.planner_data == planned.planner_data
    assert set(quick.storage_data) == set(planned.storage_data) and quick.version == planned.version
    tensors = [(root / name / "model.safetensors").read_bytes() for name in ("planned", "quick")]
    assert tensors[0] == tensors[1]
    objects = []
    for name in ("planned", "quick"):
        with tspool.Checkpoint(root / name) as checkpoint:
            objects.append({each.name: (each.kind, checkpoint.object(each.name)) for each in checkpoint.objects})
    assert objects[0] == objects[1] and len(objects[0]) > 5


def test_no_planner_is_asked(root, without_planner):
    state = various()
    save(state, checkpoint_id=root / "a")
    async_save(state, checkpoint_id=root / "b").result(60)
    for name in "ab":
        into = emptied(state)
        load(into, checkpoint_id=root / name)
        assert same(into, state)


@pytest.mark.parametrize("writer", ["ours", "dcp's"])
def test_what_either_way_wrote_either_way_loads(root, writer):
    state = various()
    if writer == "ours":
        save(state, checkpoint_id=root / "a")
    else:
        dcp.save(state, checkpoint_id=root / "a", storage_writer=StorageWriter())
    quick, planned = emptied(state), emptied(state)
    del planned["optimizer"]["state"]  # its int key
    load(quick, checkpoint_id=root / "a")
    dcp.load(planned, storage_reader=StorageReader(root / "a"))
    assert same(quick, state) and all(same(planned[key], state[key]) for key in planned if key != "optimizer")


def test_targets_of_other_dtypes_and_layouts_are_copied_to(root, without_planner):
    save({"w": torch.arange(12.0).view(3, 4), "c": torch.tensor([1 + 2j])}, checkpoint_id=root / "a")
    into = {"w": torch.zeros(4, 3, dtype=torch.float64).t(), "c": torch.zeros(1, dtype=torch.complex64).conj()}
    load(into, checkpoint_id=root / "a")
    assert into["w"].equal(torch.arange(12.0).view(3, 4).double()) and into["c"].resolve_conj().item() == 1 + 2j


def test_what_is_missing_or_misfits_is_told_as_dcp_tells_it_and_nothing_was_changed(root):
    save({"a": torch.ones(3), "b": torch.ones(3)}, checkpoint_id=root / "a")
    for wrong, words in (
        ({"x": torch.zeros(3)}, "Missing key in checkpoint state_dict: x"),
        ({"b": torch.zeros(4)}, "Size mismatch"),
    ):
        into = {"a": torch.zeros(3), **wrong}
        with pytest.raises(dcp.CheckpointException, match=words):
            load(into, checkpoint_id=root / "a")
        assert into["a"].eq(0).all()


def test_a_planner_that_was_given_is_asked(root):
    class Renaming(DefaultSavePlanner):
        def set_up_planner(self, state_dict, *arguments, **options):
            super().set_up_planner({f"my.{key}": value for key, value in state_dict.items()}, *arguments, **options)

    save({"a": torch.ones(2)}, checkpoint_id=root / "a", planner=Renaming())
    assert list(StorageReader(root / "a").read_metadata().state_dict_metadata) == ["my.a"]
    into = {"a": torch.zeros(2), "other": torch.zeros(1)}
    save({"a": torch.ones(2)}, checkpoint_id=root / "b")
    load(into, checkpoint_id=root / "b", planner=DefaultLoadPlanner(allow_partial_load=True))
    assert into["a"].eq(1).all()


def test_dtensors_go_dcps_way(root, tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        tensor = distribute_tensor(torch.arange(6.0), dist.init_device_mesh("cpu", (1,)), [Shard(0)])
        save({"d": tensor, "n": 1}, checkpoint_id=root / "a", no_dist=True)
        into = {"d": torch.zeros(6)}
        load(into, checkpoint_id=root / "a", no_dist=True)
        assert into["d"].equal(torch.arange(6.0))
    finally:
        dist.destroy_process_group()


def test_stateful_objects_are_loaded_back(root, without_planner):
    class Counter:
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    save({"counter": Counter(3), "model": torch.nn.Linear(2, 2)}, checkpoint_id=root / "a")
    counter, model = Counter(0), torch.nn.Linear(2, 2)
    load({"counter": counter, "model": model}, checkpoint_id=root / "a")
    assert counter.count == 3


def trained(megabytes=24):
    parameter = torch.nn.Parameter(torch.zeros(megabytes << 18))
    parameter.grad = torch.ones_like(parameter)
    return parameter, torch.optim.SGD([parameter], lr=1.0)


@pytest.mark.parametrize("planner", [None, DefaultSavePlanner])
def test_a_writer_with_a_guard_makes_the_step_wait(root, planner):
    parameter, optimizer = trained()
    writer = StorageWriter(staging="background", guard=optimizer, arena_bytes=64 << 20)
    for step in range(3):
        response = async_save({"w": parameter.detach(), "step": step}, checkpoint_id=root / f"s{step}", storage_writer=writer,
                              planner=planner and planner())  # fmt: skip
        optimizer.step()
        assert response.staging_completion.result(60) is None
        response.upload_completion.result(60)
    for step in range(3):
        into = {"w": torch.ones(24 << 18)}
        load(into, checkpoint_id=root / f"s{step}")
        assert into["w"].eq(-step).all()


def test_a_writer_with_a_guard_refuses_a_torn_snapshot_by_its_name(root):
    parameter, optimizer = trained(64)  # larger than the arena: copying waits for the disk
    writer = StorageWriter(root / "torn", staging="background", guard=optimizer, arena_bytes=32 << 20, bytes_per_second=8 << 20)
    response = async_save({"model": {"w": parameter.detach()}}, storage_writer=writer)
    with torch.no_grad():
        parameter.add_(1)
    failure = response.upload_completion.exception(60)
    assert isinstance(failure, tspool.SaveError) and (failure.errno, failure.tensor) == (errno.EBUSY, "model.w")
    assert response.staging_completion.exception(60) is not None and not (root / "torn").exists()
