"""What a save leaves behind when it does not end well: the checkpoint that was there, and no file of its own."""

import gc
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from stock_help import Failing, assert_same, contents, load, names, save
from torch.distributed.checkpoint import FileSystemReader as TorchReader
from tspool.torch import FileSystemWriter, HuggingFaceStorageWriter

pytestmark = pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")
OLD = {"a": torch.zeros(70_000), "b": torch.zeros(3)}
NEW = {"a": torch.ones(70_000), "b": torch.ones(3)}


class Rank:
    """One rank's part of a save, step by step as DCP takes them, with the coordinator's steps where they are due."""

    def __init__(self, number, folder, writer=None):
        self.number = number
        self.writer = writer or FileSystemWriter(folder)

    def prepare(self, state):
        self.planner = dcp.DefaultSavePlanner()
        self.planner.set_up_planner(state, None, self.number == 0)
        self.writer.set_up_storage_writer(self.number == 0, rank=self.number, use_collectives=True)
        return self.writer.prepare_local_plan(self.planner.create_local_plan())

    def write(self, plan):
        return self.writer.write_data(self.planner.finish_plan(plan), self.planner).wait()


def written_by(ranks, states):
    """Up to the point where the coordinator would finish."""
    plans = [rank.prepare(state) for rank, state in zip(ranks, states)]
    plans, metadata = ranks[0].planner.create_global_plan(plans)
    plans = ranks[0].writer.prepare_global_plan(plans)
    return metadata, [rank.write(plan) for rank, plan in zip(ranks, plans)]


def halves(value):
    return [{"a": torch.full((50,), value)}, {"b": torch.full((60,), value), "c": torch.full((2,), value)}]


def both(value):
    return halves(value)[0] | halves(value)[1]


@pytest.fixture
def ranks(tmp_path):
    return [Rank(number, tmp_path) for number in range(2)]


def test_every_rank_keeps_what_the_coordinator_has_committed(tmp_path, ranks):
    for number in range(4):
        metadata, results = written_by(ranks, halves(float(number)))
        ranks[0].writer.finish(metadata=metadata, results=results)
        assert_same(load(both(0.0), TorchReader(tmp_path)), both(float(number)))
        assert len(names(tmp_path)) == 3
    ranks[1].writer.reset()
    del ranks[:]
    gc.collect()
    assert_same(load(both(0.0), TorchReader(tmp_path)), both(3.0))


@pytest.mark.parametrize("how", ["reset", "set_up", "let go"])
def test_a_rank_removes_what_the_coordinator_has_not_committed(tmp_path, ranks, how):
    metadata, results = written_by(ranks, halves(1.0))
    ranks[0].writer.finish(metadata=metadata, results=results)
    before = contents(tmp_path)
    written_by(ranks, halves(2.0))
    assert len(names(tmp_path)) == 5, "new files beside the old"
    for rank in ranks:
        if how == "reset":
            rank.writer.reset(tmp_path)
        elif how == "set_up":
            rank.writer.set_up_storage_writer(rank.number == 0, rank=rank.number, use_collectives=True)
    if how == "let go":
        del rank, ranks[:]
        gc.collect()
    assert contents(tmp_path) == before


def test_a_rank_that_failed_alone_does_not_lose_the_others_theirs(tmp_path, ranks):
    metadata, results = written_by(ranks, halves(1.0))
    ranks[0].writer.finish(metadata=metadata, results=results)
    before = contents(tmp_path)
    plans = [rank.prepare(state) for rank, state in zip(ranks, halves(2.0))]
    plans = ranks[0].writer.prepare_global_plan(ranks[0].planner.create_global_plan(plans)[0])
    ranks[0].write(plans[0])
    ranks[1].planner.resolve_data = Failing("b").resolve_data
    with pytest.raises(Exception, match="no data"):
        ranks[1].write(plans[1])
    ranks[0].writer.reset()
    assert contents(tmp_path) == before


def test_a_writer_that_is_let_go_late_leaves_the_files_of_the_save_after_it(tmp_path):
    """An exception keeps a failed save's writer alive, and it had the same names."""
    failed = [Rank(number, tmp_path) for number in range(2)]
    written_by(failed, halves(1.0))
    ranks = [Rank(number, tmp_path) for number in range(2)]
    metadata, results = written_by(ranks, halves(2.0))
    assert names(tmp_path) == ["__0_0.distcp", "__1_0.distcp"]
    del failed
    gc.collect()
    ranks[0].writer.finish(metadata=metadata, results=results)
    assert_same(load(both(0.0), TorchReader(tmp_path)), both(2.0))


SAVES = """
import os, signal, sys, warnings
import torch, torch.distributed.checkpoint as dcp
import tspool.torch
warnings.simplefilter("ignore")
state = {"a": torch.ones(70_000), "b": torch.ones(3)}
folder = sys.argv[1]
Writer, Planner = tspool.torch.FileSystemWriter, dcp.DefaultSavePlanner

def save(**options):
    options = {"storage_writer": Writer(folder, thread_count=2), "planner": Planner(), **options}
    return dcp.save(state, no_dist=True, **options)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED = {
    "while it writes": "Planner.resolve_data = lambda self, item: die() if item.index.fqn == 'b' else state['a']\nsave()",
    "before it commits": "Writer.finish = die\nsave()",
    "as it commits": "import pickle\npickle.dumps = die\nsave()",
}


@pytest.mark.parametrize("when", KILLED)
def test_killed_in_an_overwrite_the_old_checkpoint_stands(tmp_path, script, when):
    save(OLD, FileSystemWriter(tmp_path, thread_count=2))
    before = contents(tmp_path)
    script(SAVES + KILLED[when], tmp_path).end(-signal.SIGKILL)
    assert before.items() <= contents(tmp_path).items()
    assert_same(load(OLD, TorchReader(tmp_path)), OLD)
    save(NEW, FileSystemWriter(tmp_path, thread_count=2))
    assert names(tmp_path) == [".metadata", "__0_0.1.distcp", "__0_1.1.distcp"], "what the killed one left is gone"
    assert_same(load(NEW, TorchReader(tmp_path)), NEW)


def test_killed_in_the_first_save_of_a_folder_the_next_one_takes_its_names(tmp_path, script):
    script(SAVES + KILLED["as it commits"], tmp_path).end(-signal.SIGKILL)
    assert ".metadata" not in names(tmp_path)
    save(NEW, FileSystemWriter(tmp_path, thread_count=2))
    assert names(tmp_path) == [".metadata", "__0_0.distcp", "__0_1.distcp"]
    assert_same(load(NEW, TorchReader(tmp_path)), NEW)


def test_killed_in_a_huggingface_overwrite_the_old_files_stand(tmp_path, script):
    save(OLD, HuggingFaceStorageWriter(str(tmp_path), {"a": 1, "b": 2}))
    before = contents(tmp_path)
    script(SAVES + "Writer = tspool.torch.HuggingFaceStorageWriter\nWriter.finish = die\n"
           "save(storage_writer=Writer(folder, {'a': 1, 'b': 2}))", tmp_path).end(-signal.SIGKILL)  # fmt: skip
    assert before.items() <= contents(tmp_path).items()
    save(NEW, HuggingFaceStorageWriter(str(tmp_path)))
    assert names(tmp_path) == ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]


def test_an_exit_removes_what_was_never_committed(tmp_path, script):
    save(OLD, FileSystemWriter(tmp_path))
    before = contents(tmp_path)
    script(SAVES + """
writer = Writer(folder)
def fail(metadata, results): raise OSError("not today")
writer.finish = fail
try:
    save(storage_writer=writer)
except dcp.CheckpointException:
    print(len(os.listdir(folder)))
""", tmp_path).end()  # fmt: skip
    assert contents(tmp_path) == before


def test_a_forked_child_removes_nothing(tmp_path, script):
    script(SAVES + """
writer = Writer(folder)
writer.finish = lambda metadata, results: None
save(storage_writer=writer)
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert os.listdir(folder) == ["__0_0.distcp"], os.listdir(folder)
""", tmp_path).end()  # fmt: skip
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path):
    """A tmpfs in a mount namespace of its own; it goes with the process."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare for a small file system")
    small = tmp_path / "small"
    small.mkdir()
    text = SAVES + """
state = {"a": torch.zeros(1 << 20)}
save()
before = sorted(os.listdir(folder))
state = {"a": torch.ones(4 << 20), "b": torch.ones(3)}
for number in range(3):
    try:
        save()
    except dcp.CheckpointException as error:
        assert "No space left" in str(error) or "ENOSPC" in str(error), str(error)
    else:
        raise SystemExit("it fitted")
    assert sorted(os.listdir(folder)) == before, os.listdir(folder)
state = {"a": torch.empty(1 << 20)}
dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
assert not state["a"].any()
state = {"a": torch.ones(1 << 20)}
save()
print("there is room again for what fits")
"""
    mounted = 'mount -t tmpfs -o size=10m none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, "sh", small, sys.executable, text], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("may not mount here")
    assert "there is room again" in done.stdout, done.stdout + done.stderr
