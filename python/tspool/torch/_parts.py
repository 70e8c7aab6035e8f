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
    """`metadata_path` None: hidden names, which no checkpoint lists."""

    def __init__(self, metadata_path: Path | None) -> None:
        self._metadata_path = metadata_path
        self._before = metadata_path and identity_of(metadata_path)
        self._files: dict[Path, Identity | None] = {}
        self._pid = os.getpid()

    def is_ours(self) -> bool:
        return os.getpid() == self._pid

    def add(self, path: Path) -> None:
        self._files[path] = identity_of(path)

    def keep(self) -> None:
        """They are part of a checkpoint now."""
        self._files.clear()

    def drop(self) -> None:
        """They are known not to be. What another save has written to the name since is that save's."""
        files, self._files = self._files, {}
        if self.is_ours():
            remove(path for path, identity in files.items() if identity_of(path) == identity)

    def settle(self) -> None:
        """The coordinator has said nothing: its metadata does. Where it cannot be read everything stays."""
        if not self._files or not self.is_ours():
            return
        names = self._listed()
        if names is None:
            self.keep()
        else:
            self._files = {path: identity for path, identity in self._files.items() if path.name not in names}
            self.drop()

    def _listed(self) -> set[str] | None:
        if self._metadata_path is None:
            return set()
        return listed(self._metadata_path) if identity_of(self._metadata_path) == self._before else None


def listed_by_index(path: Path) -> set[str]:
    """Names of files that a `model.safetensors.index.json` lists; empty when there is none that can be read."""
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
        return {name for name in names if os.path.basename(name) == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
