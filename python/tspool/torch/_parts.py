"""The files that a rank has written into a checkpoint's folder and that no metadata lists yet.

A rank is not told when a save fails elsewhere: `finish` just never comes. So it remembers what it wrote, and removes that when it
is used for the next save, let go, or the interpreter ends, unless the checkpoint's metadata lists it by then. Others' files, and
files of a committed checkpoint, are never touched. A forked child has no part in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import re
from collections.abc import Iterable
from pathlib import Path

Identity = tuple[int, int, int]  # of a file: another one by that name, or other bytes in it, and it differs


def identity_of(path: Path) -> Identity | None:
    """Opened, so that a network file system asks its server."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def listed(path: Path) -> set[str] | None:
    """Names of the data files that a `.metadata` lists; None when it cannot be read, empty when there is none."""
    try:
        with path.open("rb") as file:
            storage_data = pickle.load(file).storage_data
        return {info.relative_path for info in storage_data.values()}
    except FileNotFoundError:
        return set()
    except Exception:  # others' bytes: a pickle can raise anything
        return None


def sync_folder(path: str | os.PathLike[str]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """With its parents, each entry of them on disk."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove(paths: Iterable[Path]) -> None:
    """What is gone already is fine; what cannot be removed stays."""
    folders = set()
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
            folders.add(path.parent)
    for folder in folders:
        with contextlib.suppress(OSError):
            sync_folder(folder)


_UNFINISHED = re.compile(
    r"\.(?:__(?P<rank>\d+)(?:_\d+(?:\.\d+)?\.distcp|\.metadata)|\.metadata|(?:shard-\d+-)?model-\d+-of-\d+\.safetensors)"
    r"(?:\.staged|\.tspool-[0-9a-f]{16}\.partial)+"
)


def unfinished(folder: Path, rank: int | None) -> list[Path]:
    """What killed saves left under hidden names. To be asked for when no rank (or with `rank`, not that one) is writing; a stream
    that is being written all the same holds a lock on its file."""
    found = [(path, _UNFINISHED.fullmatch(path.name)) for path in folder.iterdir() if path.name.startswith(".")]
    return [path for path, match in found if match and rank in (None, int(match["rank"] or -1)) and not _is_locked(path)]


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # gone, or a file system without locks
    return False


class Parts:
    def __init__(self, metadata_path: Path) -> None:
        self.metadata_path = metadata_path
        self.before = identity_of(metadata_path)
        self.files: list[Path] = []
        self._pid = os.getpid()

    def add(self, path: Path) -> None:
        self.files.append(path)

    def keep(self) -> None:
        """They are part of a checkpoint now."""
        self.files.clear()

    def drop(self) -> None:
        """They are known not to be."""
        files, self.files = self.files, []
        if os.getpid() == self._pid:
            remove(files)

    def settle(self) -> None:
        """The coordinator has said nothing: its metadata does. Where it cannot be read everything stays."""
        if not self.files or os.getpid() != self._pid:
            return
        names = listed(self.metadata_path) if identity_of(self.metadata_path) == self.before else None
        if names is None:
            self.keep()
        else:
            self.files = [path for path in self.files if path.name not in names]
            self.drop()


def listed_by_index(path: Path) -> set[str]:
    """Names of files that a `model.safetensors.index.json` lists; empty when there is none that can be read."""
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
        return {name for name in names if os.path.basename(name) == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
