"""install: code that names DCP's classes gets ours. Each test makes the calls that one framework makes."""

import concurrent.futures
import os

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _storage_utils, format_utils, state_dict_saver
from torch.distributed.checkpoint import async_save as async_save_by_name
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

import tspool.torch
from tspool.torch import install, uninstall

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
NAMES = [
    (dcp, "FileSystemWriter"),
    (dcp, "FileSystemReader"),
    (dcp, "HuggingFaceStorageWriter"),
    (dcp, "HuggingFaceStorageReader"),
    (dcp, "async_save"),
    (_storage_utils, "FileSystemWriter"),
    (_storage_utils, "FileSystemReader"),
    (format_utils, "FileSystemWriter"),
    (format_utils, "FileSystemReader"),
    (state_dict_saver, "async_save"),
    (state_dict_saver, "_ThreadBasedAsyncCheckpointExecutor"),
    (state_dict_saver, "_ProcessBasedAsyncCheckpointExecutor"),
]


@pytest.fixture
def installed():
    with install():
        yield


@pytest.fixture
def written(monkeypatch):
    """The files that went through our streams."""
    opened = []

    def watching(path, *arguments, **options):
        opened.append(os.path.basename(path))
        return real(path, *arguments, **options)

    real = tspool.open
    monkeypatch.setattr(tspool, "open", watching)
    return opened


def stock_loads(path, into):
    """With the classes as PyTorch has them, whatever is installed."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    dcp.load(into, storage_reader=FileSystemReader(path))
    return into


def test_it_is_undone_exactly_and_twice_is_once():
    before = [getattr(module, name) for module, name in NAMES]
    install()
    install()
    assert all(getattr(module, name) is not stock for (module, name), stock in zip(NAMES, before))
    uninstall()
    assert [getattr(module, name) for module, name in NAMES] == before
    uninstall()
    with pytest.raises(ZeroDivisionError), install():
        assert dcp.FileSystemWriter is tspool.torch.FileSystemWriter
        1 / 0
    assert [getattr(module, name) for module, name in NAMES] == before


def test_what_somebody_else_rebinds_meanwhile_stays_his(monkeypatch):
    stock = dcp.FileSystemWriter
    install()
    monkeypatch.setattr(dcp, "FileSystemWriter", dict)
    uninstall()
    assert dcp.FileSystemWriter is dict
    dcp.FileSystemWriter = stock


def test_the_fsspec_classes_keep_their_parents(installed):
    from torch.distributed.checkpoint import _fsspec_filesystem
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    assert _fsspec_filesystem.FsspecWriter.__mro__[1] is FileSystemWriter


def test_ours_derive_from_theirs_so_that_isinstance_goes_on_working(installed):
    from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

    assert issubclass(dcp.FileSystemWriter, FileSystemWriter) and issubclass(dcp.FileSystemReader, FileSystemReader)


def test_plain_dcp(installed, root, written):
    dcp.save({"w": torch.ones(5)}, checkpoint_id=root / "a")
    assert "__0_0.distcp" in written and ".metadata" in written
    into = {"w": torch.zeros(5)}
    dcp.load(into, checkpoint_id=root / "a")
    assert into["w"].eq(1).all() and stock_loads(root / "a", {"w": torch.zeros(5)})["w"].eq(1).all()


@pytest.mark.parametrize("how", [AsyncCheckpointerType.THREAD, AsyncCheckpointerType.PROCESS])
def test_torchtitan(installed, root, written, how):
    """components/checkpointer/dcp.py: async_save without a writer, in pinned mode PROCESS with a stager and both futures waited
    for; a step counts when its folder holds `.metadata`."""
    stager = tspool.torch.Stager(use_async_staging=True) if how is AsyncCheckpointerType.PROCESS else None
    weight = torch.ones(1000)
    for step in (1, 2):
        options = {"async_checkpointer_type": how, "async_stager": stager} if stager else {}
        result = dcp.async_save(
            {"w": weight, "step": step},
            storage_writer=None,
            checkpoint_id=str(root / f"step-{step}"),
            process_group=None,
            **options,
        )
        if stager:
            assert isinstance(result, AsyncSaveResponse)
            assert isinstance(result.upload_completion, concurrent.futures.Future)
            result.staging_completion.result()
            result.upload_completion.result()
        else:
            assert isinstance(result, concurrent.futures.Future)
            weight.add_(1)
            result.result()
    if stager:
        stager.close()
    assert (root / "step-2" / ".metadata").is_file() and written.count(".metadata") == 2
    into = {"w": torch.zeros(1000), "step": 0}
    dcp.load(into, checkpoint_id=str(root / "step-2"))
    assert into["step"] == 2 and into["w"][0] == (1 if stager else 2)
    assert stock_loads(root / "step-1", {"w": torch.zeros(1000)})["w"].eq(1).all()


def test_torchtitan_last_save_in_hugging_face_form(installed, root, written):
    """It names HuggingFaceStorageWriter and dcp.save."""
    writer = dcp.HuggingFaceStorageWriter(path=str(root / "hf"), save_distributed=False, fqn_to_index_mapping={"w": 1})
    dcp.save({"w": torch.ones(7)}, storage_writer=writer)
    assert type(writer) is tspool.torch.HuggingFaceStorageWriter and any(".safetensors" in name for name in written)
    into = {"w": torch.zeros(7)}
    dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(path=str(root / "hf")))
    assert into["w"].eq(1).all() and (root / "hf" / "model.safetensors.index.json").is_file()


def test_accelerate_and_the_hugging_face_trainer(installed, root, written):
    """utils/fsdp_utils.py: two folders, one for the model and one for the optimizer, with writers made by name."""
    import torch.distributed.checkpoint as dist_cp
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

    for part, state in (
        ("model", {"weight": torch.ones(9)}),
        ("optimizer", {"state": {"weight": {"exp_avg": torch.ones(9)}}, "lr": 0.5}),
    ):
        folder = str(root / f"pytorch_{part}_fsdp_0")
        os.makedirs(folder)
        dist_cp.save(state_dict={part: state}, storage_writer=dist_cp.FileSystemWriter(folder), planner=DefaultSavePlanner())
    into = {"model": {"weight": torch.zeros(9)}}
    dist_cp.load(
        state_dict=into, storage_reader=dist_cp.FileSystemReader(str(root / "pytorch_model_fsdp_0")), planner=DefaultLoadPlanner()
    )
    optimizer = {"optimizer": {"state": {"weight": {"exp_avg": torch.zeros(9)}}, "lr": 0.0}}
    dist_cp.load(optimizer, storage_reader=dist_cp.FileSystemReader(str(root / "pytorch_optimizer_fsdp_0")))
    assert into["model"]["weight"].eq(1).all() and optimizer["optimizer"]["lr"] == 0.5 and written.count(".metadata") == 2


def test_lightning(installed, root, written):
    """strategies/fsdp.py and model_parallel.py: save and load by path, with a file of its own, meta.pt, in the same folder."""
    from torch.distributed.checkpoint import load, save

    path = root / "epoch=1.ckpt"
    path.mkdir()
    for value in (1.0, 2.0):
        save({"model": {"w": torch.full((4,), value)}, "optimizer_0": {"lr": 0.1}}, checkpoint_id=path)
        torch.save({"epoch": value}, path / "meta.pt")
    into = {"model": {"w": torch.zeros(4)}}
    load(into, checkpoint_id=path)
    assert into["model"]["w"].eq(2).all() and torch.load(path / "meta.pt")["epoch"] == 2 and written.count(".metadata") == 2


def test_lightning_converts_a_checkpoint_with_format_utils(installed, root):
    dcp.save({"w": torch.ones(3)}, checkpoint_id=root / "a")
    format_utils.dcp_to_torch_save(root / "a", root / "a.pt")
    format_utils.torch_save_to_dcp(root / "a.pt", root / "b")
    assert torch.load(root / "a.pt")["w"].eq(1).all()
    assert stock_loads(root / "b", {"w": torch.zeros(3)})["w"].eq(1).all()


@pytest.mark.parametrize("how", [AsyncCheckpointerType.THREAD, AsyncCheckpointerType.PROCESS])
def test_async_save_that_was_imported_by_name_before_runs_on_our_executor(installed, root, written, how):
    """PROCESS without a process group would be refused by DCP's executor."""
    future = async_save_by_name({"w": torch.ones(3)}, checkpoint_id=root / "n", async_checkpointer_type=how)
    future.result(60)
    assert ".metadata" in written and stock_loads(root / "n", {"w": torch.zeros(3)})["w"].eq(1).all()


def test_a_failed_save_tells_its_record(installed, root):
    (root / "file").write_text("in the way")
    future = dcp.async_save({"w": torch.ones(3)}, storage_writer=dcp.FileSystemWriter(root / "file" / "below"))
    assert future.exception(60) is not None
    dcp.async_save({"w": torch.ones(3)}, checkpoint_id=root / "next").result(60)
