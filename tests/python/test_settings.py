"""The settings that `tspool tune` writes for a directory are what a spool takes them to be, and nothing else is taken for settings."""

import json
import subprocess
from pathlib import Path

import pytest
import tspool
from tspool._spool import home

ARENA = 64 << 20


def saved(root, **options):
    with tspool.Spool(root, arena_bytes=ARENA, **options) as spool:
        return spool.save("step", {"x": 1}, replace=True).result(60)


def settings(tmp_path, **members):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(members))
    return path


def test_settings_are_taken_from_the_file(root, tmp_path):
    path = settings(tmp_path, tspool=1, item_bytes=65536, depth=5, submit_batch=2, io="threads", staging_threads=1, found_later=7)
    result = saved(root, settings=path)
    assert (result.item_bytes, result.depth, result.backend) == (65536, 5, "threads")


def test_an_argument_wins_over_the_file(root, tmp_path):
    result = saved(root, settings=settings(tmp_path, tspool=1, item_bytes=65536, depth=5), depth=9)
    assert (result.item_bytes, result.depth) == (65536, 9)


def test_what_tune_writes_is_loaded(root, tmp_path):
    path = tmp_path / "tuned.json"
    subprocess.run([Path(home()) / "tspool", "tune", root, "--size=4m", "--rounds=1", "--quiet", "--output", path], check=True, timeout=120)
    result = saved(root, settings=path)
    assert (result.item_bytes, result.depth) == (json.loads(path.read_text())["item_bytes"], json.loads(path.read_text())["depth"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tspool": 2}', '{"tspool": 1, "io": "fast"}', '{"tspool": 1, "depth": -1}'])
def test_what_is_no_settings_file_is_refused_by_name(root, tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(tspool.SpoolError, match="settings.json"):
        tspool.Spool(root, arena_bytes=ARENA, settings=path)


def test_a_missing_file_and_a_value_out_of_range_are_refused(root, tmp_path):
    with pytest.raises(tspool.SpoolError, match="nothing.json"):
        tspool.Spool(root, arena_bytes=ARENA, settings=tmp_path / "nothing.json")
    with pytest.raises(tspool.SpoolError, match="depth"):
        tspool.Spool(root, arena_bytes=ARENA, settings=settings(tmp_path, tspool=1, depth=5000))
