"""What DCP knows of a state dict and the files' headers do not say, as an object of each rank, `tspool.dcp-<rank + 1>`, in JSON:

    {"tspool_dcp": 1, "paths": [["model", "layers.0.weight"], ["optim", "param_groups", 0, "lr"]], "objects": {}}

`paths` (null: the planner did not nest) are the ways to the values that this rank saved through the nested state dict; joined by
dots each is the value's name. One that is not is written as {"name": ..., "path": [...]}. `objects` are the names that objects
were stored under where that is not their own: without collectives each rank saves its own value of a name, and they must not
meet. An object's bytes are what the planner made of it, by default torch.save's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tspool._errors import LoadError, UnsupportedError

PREFIX = "tspool.dcp-"
KIND = "torch"  # of objects: what torch.save wrote, which may run code when it is loaded

Path = tuple[str | int, ...]


class Structure(NamedTuple):
    paths: dict[str, Path] | None
    objects: dict[str, str]


def name_of(rank: int) -> str:
    return f"{PREFIX}{rank + 1:05}"


def rank_of(name: str) -> int:
    return int(name[len(PREFIX) :]) - 1


def object_name(name: str, rank: int, is_shared: bool) -> str:
    """`is_shared`: no other rank has a value of that name."""
    return name if is_shared or rank == 0 else f"{PREFIX}{rank + 1:05}/{name}"


def _written(name: str, path: Any) -> Any:
    if not isinstance(path, (tuple, list)) or not all(type(step) in (str, int) for step in path):
        raise UnsupportedError(
            f'"{name}": the planner gave {path!r} as its place in the state dict, where a tuple of strings and ints is expected',
            stage="declare", tensor=name,
        )  # fmt: skip
    return path if ".".join(map(str, path)) == name else {"name": name, "path": path}


def encode(names: Iterable[str], planner_data: Any, objects: Mapping[str, str]) -> bytes:
    paths = None
    if planner_data:
        if not isinstance(planner_data, Mapping):
            raise UnsupportedError(
                f"planner_data is a {type(planner_data).__name__}, where a dict of names to paths is expected: it would be lost",
                stage="declare",
            )  # fmt: skip
        paths = [_written(name, planner_data[name]) for name in dict.fromkeys(names) if name in planner_data]
    return json.dumps({"tspool_dcp": 1, "paths": paths, "objects": objects}, separators=(",", ":")).encode()


def _path_read(written: Any) -> tuple[str, Path]:
    path = written["path"] if isinstance(written, dict) else written
    if not isinstance(path, list) or not path or not all(type(step) in (str, int) for step in path):
        raise ValueError(f"{path!r} is no path")
    return written["name"] if isinstance(written, dict) else ".".join(map(str, path)), tuple(path)


def decode(text: bytes) -> Structure:
    try:
        told = json.loads(text)
        if told["tspool_dcp"] != 1:
            raise ValueError("a newer version of tspool wrote it")
        paths = None if told["paths"] is None else dict(_path_read(written) for written in told["paths"])
        objects = {str(name): str(stored) for name, stored in told["objects"].items()}
        return Structure(paths, objects)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LoadError(f"the checkpoint's {PREFIX}* is not what tspool writes: {error}", stage="read") from error
