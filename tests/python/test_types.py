"""The package is typed: mypy --strict agrees with it, and the stub of the extension with the extension."""

import os
import pathlib
import subprocess
import sys

import pytest
import tspool

TOP = pathlib.Path(__file__).parents[2]
pytest.importorskip("mypy")


def run(*arguments, cwd):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_strict_finds_nothing(tmp_path):
    run("mypy", "--config-file", TOP / "pyproject.toml", "--cache-dir", tmp_path, cwd=TOP)


def test_the_stub_says_what_the_extension_has(tmp_path):
    run("mypy.stubtest", "tspool._tspool", "--ignore-disjoint-bases", cwd=tmp_path)


def test_a_users_program_is_checked_against_the_package(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import tspool\n"
        "with tspool.Spool('/tmp') as spool:\n"
        "    save: tspool.Save = spool.save('a', {}, staging='background')\n"
        "    result: tspool.SaveResult = save.wait_durable(timeout=1.5)\n"
        "    size: int = result.file_bytes\n"
        "path: str | None = tspool.latest('/tmp')\n"
    )
    run("mypy", "--strict", "--cache-dir", tmp_path / "cache", program, cwd=tmp_path)
    assert os.path.exists(os.path.join(os.path.dirname(tspool.__file__), "py.typed"))
