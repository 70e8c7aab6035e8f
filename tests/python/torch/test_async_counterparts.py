"""docs/ARCHITECTURE.md says what stands here for each part of PyTorch's asynchronous checkpointing. Both sides must exist."""

import importlib
import pathlib
import re

import pytest

PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "ARCHITECTURE.md").read_text()
TABLE = PAGE[PAGE.index("The Python side of the same") :]
ROWS = [line.strip("|").split("|") for line in TABLE.splitlines() if line.startswith("| `")]
THEIRS = [
    "_async_executor",
    "_async_thread_executor",
    "_async_process_executor",
    "staging",
    "_state_dict_stager",
    "state_dict_saver",
]


def resolved(path):
    """The object at a dotted path: modules first, then attributes."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:40])
def test_both_sides_exist(row):
    modules = [importlib.import_module(f"torch.distributed.checkpoint.{name}") for name in THEIRS]
    for name in re.findall(r"`(_?[A-Z]\w*[a-z]\w*|async_save)(?:\.(\w+))?`", row[0]):
        (theirs,) = {getattr(module, name[0]) for module in modules if hasattr(module, name[0])}
        assert not name[1] or hasattr(theirs, name[1])
    ours = re.findall(r"`(tspool\.[\w.]+|Spool\.\w+)`", row[1])
    assert ours
    for path in ours:
        assert resolved(path if path.startswith("tspool.") else f"tspool.{path}") is not None, path


def test_the_six_that_the_executor_is_for_are_all_named():
    text = " ".join(row[0] for row in ROWS)
    for name in ("_AsyncCheckpointExecutor", "_ProcessBasedAsyncCheckpointExecutor", "_AsyncCheckpointProcess",
                 "_CheckpointRequestIdentifier", "_CheckpointSaveProcessControlOpts", "_ProcessGroupInitInfo"):  # fmt: skip
        assert f"`{name}" in text
