"""Loading a whole state dict, as it was nested, or into one that exists."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tspool import _tspool
from tspool._checkpoint import Checkpoint, Entry
from tspool._errors import LoadError, MismatchError, NotFoundError, UnsupportedError
from tspool._leaves import Made, Target, make, size_of, target_of, view_of
from tspool._spool import Io
from tspool._tree import OWN, STATE, Item, build, collector_paused, items, parse, places, plain

_SHOWN = 5  # names in a message


def load(
    path: str | os.PathLike[str],
    names: str | Iterable[str] | None = None,
    verify: bool = True,
    into: Any = None,
    *,
    pickle: bool = False,
    io: Io = "auto",
) -> Any:
    """The state dict that was saved as `path`, nested as it was, or of a Hugging Face folder or a .safetensors file: flat.

    names: only these; a name stands for all below it ("model" for "model.weight"). verify: against digests, always if recorded.
    into: a state dict whose tensors take the data. Names, dtypes and shapes are all checked before the first byte is read;
    plain values are replaced in its dicts and lists. It is returned.
    pickle: consent to objects stored as pickles, which can run any code when they are loaded.
    """
    with Checkpoint(path, verify=verify, io=io) as checkpoint:
        return load_from(checkpoint, names, into, pickle)


class _Contents:
    """What a checkpoint offers: leaves by name, and how they hang together."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        kinds = {item.name: item.kind for item in checkpoint.objects}
        self.checkpoint = checkpoint
        self.has_state = STATE in kinds
        if self.has_state:
            self.tree = parse(checkpoint._handle.object_read(STATE))
        else:
            self.tree = {name: {"$tensor": "any"} for name in checkpoint.names}
            self.tree |= {name: {"$object": kind} for name, kind in kinds.items() if not name.startswith(OWN)}
        self.leaves = {item.name: item for item in self._items()}

    def _items(self) -> Iterable[Item]:
        if self.has_state:
            yield from items(self.tree)
            return
        for name, node in self.tree.items():  # flat: dots in names are just dots
            kind = "tensor" if "$tensor" in node else str(node["$object"])
            yield Item(name, kind, node)

    def select(self, names: str | Iterable[str] | None) -> dict[str, Item]:
        if names is None:
            return self.leaves
        wanted = [names] if isinstance(names, str) else list(names)
        chosen: dict[str, Item] = {}
        for name in wanted:
            below = {leaf: item for leaf, item in self.leaves.items() if leaf == name or leaf.startswith(f"{name}.")}
            if not below:
                raise NotFoundError(
                    f"{self.checkpoint.path!r} has nothing named {name!r}; it has {_list(self.leaves)}", errno=2, tensor=name,
                    path=self.checkpoint.path,
                )  # fmt: skip
            chosen |= below
        return {leaf: item for leaf, item in self.leaves.items() if leaf in chosen}

    def value(self, item: Item, pickle: bool) -> Any:
        """Of a leaf that is no tensor."""
        if item.kind == "value":
            return plain(item.node)
        kind = "bytes" if item.kind == "bytearray" else item.kind
        value = self.checkpoint._decode(item.name, kind, pickle)
        return bytearray(value) if item.kind == "bytearray" else value

    def build(self, values: dict[str, Any]) -> Any:
        if self.has_state:
            return build(self.tree, values)
        return {name: values[name] for name in self.tree if name in values}


def _list(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(map(repr, shown[:_SHOWN])) + more if shown else "nothing"


def _number(checkpoint: Checkpoint, name: str) -> int:
    number = checkpoint.find(name)
    if checkpoint.entries[number].global_offsets is not None:
        raise LoadError(
            f"{name!r} is stored in shards: read them with Checkpoint.read by number, or leave it out with names=", tensor=name,
            path=checkpoint.path,
        )  # fmt: skip
    return number


# Fresh --------------------------------------------------------------------------------------------------------------------------


class _Reading:
    """Fresh tensors for the chosen leaves; those that shared memory when they were saved share it again."""

    def __init__(self, checkpoint: Checkpoint, chosen: dict[str, Item]) -> None:
        self.checkpoint = checkpoint
        self.chosen = chosen
        self.requests: list[_tspool._Request] = []
        self.made: dict[tuple[str, str], Made] = {}  # by stored name and kind

    def _make(self, item: Item) -> Made:
        number = _number(self.checkpoint, item.name)
        entry = self.checkpoint.entries[number]
        kind = item.node["$tensor"]
        key = (entry.tied_to or entry.name, kind)
        if key not in self.made:
            self.made[key] = make(kind, entry.dtype, entry.shape)
            if entry.bytes:
                self.requests.append((number, None, None, self.made[key].address, entry.bytes))
        return self.made[key]

    def run(self) -> dict[str, Any]:
        tensors = [item for item in self.chosen.values() if item.kind == "tensor"]
        views = [item for item in tensors if item.node.get("of") in self.chosen]
        made = {item.name: self._make(item) for item in tensors if item.node.get("of") not in self.chosen}
        values: dict[str, Any] = {}
        for item in views:
            base = made.get(item.node["of"])
            entry = self.checkpoint.entries[_number(self.checkpoint, item.name)]
            shares = base is not None and _fits(entry, base, item)
            view = view_of(base.value, item.node["at"], entry.shape, tuple(item.node["strides"])) if base and shares else None
            if view is None:
                made[item.name] = self._make(item)
            else:
                values[item.name] = view
        self.requests.sort(key=lambda request: request[0])
        self.checkpoint._handle.read(self.requests)
        return values | {name: fresh.finish() for name, fresh in made.items()}


def _fits(entry: Entry, base: Made, item: Item) -> bool:
    """A view's numbers come from a file: they must stay within the base."""
    strides, at = item.node.get("strides"), item.node.get("at")
    if not isinstance(at, int) or not isinstance(strides, list) or len(strides) != len(entry.shape) or at < 0:
        return False
    if not all(isinstance(stride, int) and stride >= 0 for stride in strides):
        return False
    elements = getattr(base.value, "numel", lambda: getattr(base.value, "size", 0))()
    last = sum((extent - 1) * stride for extent, stride in zip(entry.shape, strides))
    return 0 not in entry.shape and at + last < elements


def load_from(checkpoint: Checkpoint, names: str | Iterable[str] | None, into: Any, pickle: bool) -> Any:
    with collector_paused():
        contents = _Contents(checkpoint)
        chosen = contents.select(names)
        if into is not None:
            return _Placing(contents, chosen, pickle).run(into)
        values = {item.name: contents.value(item, pickle) for item in chosen.values() if item.kind != "tensor"}
        values |= _Reading(checkpoint, chosen).run()
        return contents.build(values)


# Into what exists ---------------------------------------------------------------------------------------------------------------


class _Placing:
    """Everything is looked at first; then tensors are read, and at the end values are put in their places."""

    def __init__(self, contents: _Contents, chosen: dict[str, Item], pickle: bool) -> None:
        self.contents = contents
        self.checkpoint = contents.checkpoint
        self.chosen = chosen
        self.pickle = pickle
        self.targets: list[tuple[int, Target, str]] = []
        self.values: list[tuple[Any, Any, Any]] = []  # container, key, value

    def _refuse(self, name: str, what: str) -> MismatchError:
        return MismatchError(f"{name!r} {what}; nothing was read", tensor=name, path=self.checkpoint.path, stage="read")

    def _target(self, name: str, value: Any) -> Target | None:
        try:
            return target_of(value, name)
        except UnsupportedError as error:
            raise self._refuse(name, f"cannot be loaded into: {error.message}") from error

    def _tensor(self, item: Item, value: Any) -> None:
        number = _number(self.checkpoint, item.name)
        entry, target = self.checkpoint.entries[number], self._target(item.name, value)
        if target is None:
            raise self._refuse(item.name, f"is a tensor in the checkpoint and a {type(value).__name__} here")
        if (target.dtype, target.shape) != (entry.dtype, entry.shape):
            stored, here = (
                f"{dtype} {list(shape)}" for dtype, shape in ((entry.dtype, entry.shape), (target.dtype, target.shape))
            )
            raise self._refuse(item.name, f"is {stored} in the checkpoint and {here} here")
        self.targets.append((number, target, str(item.node["$tensor"])))

    def _value(self, item: Item, value: Any, container: Any, key: Any) -> None:
        stored = self.contents.value(item, self.pickle)
        if isinstance(container, (dict, list)):
            self.values.append((container, key, stored))
        elif type(stored) is not type(value) or stored != value:
            raise self._refuse(item.name, f"is {stored!r} in the checkpoint; here it stands in a tuple, which cannot be changed")

    def _look(self, into: Any) -> None:
        found = {name: (value, container, key) for name, value, container, key in places(into)}
        missing = [name for name in found if name not in self.chosen]
        left = [name for name in self.chosen if name not in found]
        if missing:
            raise self._refuse(
                missing[0], f"is not in the checkpoint, nor are all of {_list(missing)}; it has {_list(self.chosen)}"
            )
        if left:
            raise self._refuse(left[0], f"is in the checkpoint and not in `into`, as {_list(left)}; choose with names=")
        for name, (value, container, key) in found.items():
            item = self.chosen[name]
            if item.kind == "tensor":
                self._tensor(item, value)
            else:
                self._value(item, value, container, key)

    def run(self, into: Any) -> Any:
        self._look(into)
        requests: list[_tspool._Request] = []
        scattered: list[tuple[Target, Made]] = []
        for number, target, kind in sorted(self.targets, key=lambda each: each[0]):
            address = target.address
            if address is None:
                made = make("numpy" if kind.startswith("numpy") else kind, target.dtype, target.shape)
                scattered.append((target, made))
                address = made.address
            size = size_of(target.dtype, target.shape)
            if size:
                requests.append((number, None, None, address, size))
        self.checkpoint._handle.read(requests)
        for target, made in scattered:
            target.place(made.finish())
        for container, key, value in self.values:
            container[key] = value
        return into
