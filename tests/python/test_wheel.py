"""The wheel alone, in a clean virtual environment of every Python that is here, without torch and numpy."""

import glob
import os
import subprocess
import sys
import zipfile

import pytest

WHEEL = os.environ.get("TSPOOL_WHEEL", "")
pytestmark = pytest.mark.skipif(not WHEEL, reason="TSPOOL_WHEEL names no wheel: tools/check python builds one")

USE = """
import array, asyncio, sys, tspool
root = sys.argv[1]
values = array.array("f", range(1000))
with tspool.Spool(root, arena_bytes=64 << 20) as spool:
    save = spool.save("clean", {"values": values, "bf16": tspool.Tensor("BF16", (2,), b"abcd"), "step": 3}, metadata={"step": 3})
    asyncio.run(asyncio.wait_for(save._awaited(), 60))
    assert save.result().outcome == "published"
loaded = tspool.load(tspool.latest(root))
assert loaded["values"].tolist() == values.tolist() and loaded["bf16"].data == b"abcd" and loaded["step"] == 3
into = {"values": array.array("f", bytes(4000)), "bf16": tspool.Tensor("BF16", (2,), bytearray(4)), "step": 0}
tspool.load(root + "/clean", into=into)
assert into["values"] == values and into["bf16"].data == b"abcd" and into["step"] == 3
assert tspool.verify(root + "/clean").tensors == 2
torch = tspool.load(sys.argv[2])  # saved from torch and numpy, which are not here
assert torch["w"].dtype == "BF16" and torch["w"].shape == (2, 2) and torch["f"].view().tolist() == [1.0, 2.0]
assert not {"torch", "numpy"} & set(sys.modules)
"""


def pythons():
    """The interpreters of this machine that a stable-ABI wheel of the one that built it must serve."""
    found = {sys.version_info[:2]: sys.executable}
    for path in glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3")) + glob.glob("/usr/bin/python3.1?"):
        run = subprocess.run([path, "-c", "import sys, ensurepip; print(*sys.version_info[:2])"], capture_output=True, text=True)
        if run.returncode == 0:
            found.setdefault(tuple(map(int, run.stdout.split())), path)
    return {version: path for version, path in found.items() if version >= sys.version_info[:2]}


@pytest.mark.parametrize("version", sorted(pythons()), ids=lambda version: "%d.%d" % version)
def test_the_wheel_works_in_a_clean_environment(spool, root, tmp_path, version):
    import numpy
    import torch

    spool.save("rich", {"w": torch.ones(2, 2, dtype=torch.bfloat16), "f": numpy.array([1, 2], "f4")}).result(60)
    clean = tmp_path / "clean"
    subprocess.run([pythons()[version], "-m", "venv", "--without-pip", clean], check=True)
    pip = [sys.executable, "-m", "pip", "--python", clean / "bin" / "python"]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", WHEEL], check=True)
    run = subprocess.run([clean / "bin" / "python", "-c", USE, root, root / "rich"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    run = subprocess.run([clean / "bin" / "tspool", "ls", root / "clean"], capture_output=True, text=True)
    assert run.returncode == 0 and "BF16" in run.stdout, run.stderr


def test_the_wheel_holds_library_command_writer_and_binding_and_no_more():
    with zipfile.ZipFile(WHEEL) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("tspool/")}
    assert {
        "tspool/libtspool.so.0",
        "tspool/tspool",
        "tspool/tspool-writer",
        "tspool/_tspool.abi3.so",
        "tspool/py.typed",
    } <= names
    assert not [name for name in names if name.endswith((".h", ".a", ".pc"))]
