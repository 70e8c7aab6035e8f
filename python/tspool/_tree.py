"""A nested state dict as named tensors, named byte strings and one JSON text that says how they hang together.

The text is the object "tspool.state" of kind "json". Plain values stand in it as they are; what JSON has not is a dict with one
key that begins with "$":

    {"model": {"weight": {"$tensor": "torch"}}, "step": 7, "lr": 0.1, "done": false, "name": "run", "none": null,
     "$..." or int keys, OrderedDict   {"$dict": [[key, value], ...]}, {"$ordered": [[key, value], ...]}
     tuple                             {"$tuple": [...]}
     nan, inf                          {"$float": "nan"}
     bytes, bytearray, pickle          {"$bytes": "bytes"}, {"$bytes": "bytearray"}, {"$pickle": null}: an object of its own
     a view of another tensor          {"$tensor": "torch", "of": "weight", "at": 128, "strides": [1, 64]}}

The name of a tensor or byte string is its path: keys and list positions joined by dots.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import pickle as _pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tspool._errors import LoadError, SaveError, UnsupportedError
from tspool._leaves import Leaf, is_contiguous, leaf_of, size_of

OWN = "tspool."  # begins the names of objects that are ours and no value of the user's
STATE = f"{OWN}state"
Node = Any


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """A hundred thousand small tuples, none of them garbage: looking for cycles among them doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_text(value: object) -> bool:
    """Whether C takes it for a string: NUL ends one there, and lone surrogates have no UTF-8."""
    try:
        return isinstance(value, str) and "\0" not in value and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False


def name_of(prefix: str | None, key: object) -> str:
    return str(key) if prefix is None else f"{prefix}.{key}"


class Blob(NamedTuple):
    name: str
    kind: str
    data: bytes | bytearray


class Encoding:
    """What a state dict comes apart into."""

    def __init__(self, pickle: bool) -> None:
        self.pickle = pickle
        self.tensors: list[tuple[str, Leaf, Node]] = []
        self.values: list[Any] = []  # the tensors themselves
        self.blobs: list[Blob] = []
        self._open: set[int] = set()

    def encode(self, state: object) -> str:
        if not isinstance(state, (dict, list, tuple)):
            raise UnsupportedError(f"a state dict is a dict (or a list or tuple of them), not a {type(state).__name__}")
        try:
            with collector_paused():
                node = self._node(state, None)
                _views_find(self.tensors)
                return json.dumps(node, allow_nan=False, separators=(",", ":"))
        except RecursionError:
            raise UnsupportedError("the state dict is nested deeper than Python recurses") from None

    def _node(self, value: Any, name: str | None) -> Node:
        kind = type(value)
        if value is None or kind is bool or kind is int or kind is str:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind in (dict, list, tuple, OrderedDict):
            return self._container(value, kind, name)
        if kind is bytes or kind is bytearray:
            self.blobs.append(Blob(_checked(name), "bytes", value))
            return {"$bytes": kind.__name__}
        return self._leaf(value, _checked(name))

    def _container(self, value: Any, kind: type, name: str | None) -> Node:
        if id(value) in self._open:
            raise UnsupportedError(f'"{name}" contains itself: a checkpoint is a tree', tensor=name or "")
        self._open.add(id(value))
        try:
            if kind is dict or kind is OrderedDict:
                return self._dict(value, kind, name)
            nodes = [self._node(item, name_of(name, i)) for i, item in enumerate(value)]
            return nodes if kind is list else {"$tuple": nodes}
        finally:
            self._open.remove(id(value))

    def _dict(self, value: dict[Any, Any], kind: type, name: str | None) -> Node:
        plain = kind is dict
        pairs = []
        for key, item in value.items():
            if type(key) is int:
                plain = False
            elif type(key) is not str:
                raise UnsupportedError(
                    f"a key {key!r} of type {type(key).__name__}{f' in {name!r}' if name else ''}: keys are strings, or the "
                    "ints of an optimizer's state; convert it",
                    tensor=name or "",
                )
            elif key.startswith("$"):
                plain = False
            pairs.append((key, self._node(item, name_of(name, key))))
        if plain:
            return dict(pairs)
        return {"$dict" if kind is dict else "$ordered": [list(pair) for pair in pairs]}

    def _leaf(self, value: Any, name: str) -> Node:
        leaf = leaf_of(value, name, may_stay=True)
        if leaf is not None:
            node: Node = {"$tensor": leaf.kind}
            self.tensors.append((name, leaf, node))
            self.values.append(value)
            return node
        if not self.pickle:
            raise UnsupportedError(
                f'"{name}" is a {type(value).__module__}.{type(value).__qualname__}: neither a tensor nor a plain value; convert '
                "it, or store it as a pickle with pickle=True, which runs code when it is loaded",
                tensor=name,
            )
        try:
            self.blobs.append(Blob(name, "pickle", _pickle.dumps(value, protocol=4)))
        except Exception as error:
            raise UnsupportedError(f'"{name}" cannot be pickled: {error}', tensor=name) from error
        return {"$pickle": None}


def _checked(name: str | None) -> str:
    if not name or not is_text(name):
        raise UnsupportedError(
            f"{name!r} is no name for a tensor or object: a name has characters, none of them NUL or a surrogate"
        )
    return name


# Views --------------------------------------------------------------------------------------------------------------------------


def _end_of(leaf: Leaf) -> int:
    if 0 in leaf.shape:
        return leaf.address
    if leaf.strides is None:
        return leaf.address + size_of(leaf.dtype, leaf.shape)
    last = sum((extent - 1) * stride for extent, stride in zip(leaf.shape, leaf.strides))
    return leaf.address + (last + 1) * size_of(leaf.dtype, ())


def _views_find(tensors: list[tuple[str, Leaf, Node]]) -> None:
    """Marks what lies within another, contiguous tensor of its kind. Its bytes are stored all the same, so that every reader
    finds them by name; ours gives a view again. Equal layouts are the C library's to tie."""
    spans = [
        (leaf.address, -_end_of(leaf), not is_contiguous(leaf), number)
        for number, (name, leaf, node) in enumerate(tensors)
        if leaf.kind in ("torch", "numpy") and leaf.dtype != "F4"
    ]
    spans.sort()
    base_end = 0
    base: tuple[str, Leaf, Node] | None = None
    for address, minus_end, scattered, number in spans:
        if base is not None and address < base_end and -minus_end <= base_end and -minus_end > address:
            _view_mark(base, tensors[number])
        elif not scattered and -minus_end > base_end:
            base, base_end = tensors[number], -minus_end


def _view_mark(base: tuple[str, Leaf, Node], view: tuple[str, Leaf, Node]) -> None:
    (name, of, _), (_, leaf, node) = base, view
    apart, element = leaf.address - of.address, size_of(of.dtype, ())
    if (leaf.kind, leaf.dtype) != (of.kind, of.dtype) or apart % element:
        return
    if (apart, leaf.shape, _strides_of(leaf)) == (0, of.shape, _strides_of(of)):
        return
    node["of"], node["at"] = name, apart // element
    node["strides"] = list(_strides_of(leaf))


def _strides_of(leaf: Leaf) -> tuple[int, ...]:
    if leaf.strides is not None:
        return leaf.strides
    strides, step = [], 1
    for extent in reversed(leaf.shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


# Back again ---------------------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A leaf of the tree: a tensor, a byte string ("bytes", "bytearray"), a "pickle" or a plain "value"."""

    name: str
    kind: str
    node: Node


def _pairs(node: dict[str, Any]) -> tuple[str, Any]:
    """The tag of a tagged node and what it tags; ("", node) of a plain dict."""
    for tag in node:
        return (tag, node[tag]) if tag.startswith("$") else ("", node)
    return ("", node)


def _children(node: Node) -> Iterator[tuple[object, Node]] | None:
    if isinstance(node, list):
        return iter(enumerate(node))
    if isinstance(node, dict):
        tag, tagged = _pairs(node)
        if tag == "$tuple":
            return iter(enumerate(tagged))
        if tag in ("$dict", "$ordered"):
            return ((key, value) for key, value in tagged)
        if tag == "":
            return iter(node.items())
    return None


def items(node: Node, name: str | None = None) -> Iterator[Item]:
    """The leaves, in the order of the tree."""
    children = _children(node)
    if children is not None:
        for key, child in children:
            yield from items(child, name_of(name, key))
        return
    tag, tagged = _pairs(node) if isinstance(node, dict) else ("", None)
    if tag == "$tensor":
        yield Item(name or "", "tensor", node)
    elif tag == "$bytes":
        yield Item(name or "", str(tagged), node)
    elif tag == "$pickle":
        yield Item(name or "", "pickle", node)
    else:
        yield Item(name or "", "value", node)


def plain(node: Node) -> Any:
    """The value of a "value" leaf."""
    return float(node["$float"]) if isinstance(node, dict) else node


_ABSENT = object()


def build(node: Node, values: dict[str, Any], name: str | None = None) -> Any:
    """The state dict again, of those leaves that are in `values`. Dicts are built without the others; in a list or tuple that is
    taken in part None stands for them."""
    built = _build(node, values, name)
    return {} if built is _ABSENT else built


def _build(node: Node, values: dict[str, Any], name: str | None) -> Any:
    children = _children(node)
    if children is None:
        return values.get(name or "", _ABSENT)
    pairs = [(key, _build(child, values, name_of(name, key))) for key, child in children]
    kept = [(key, value) for key, value in pairs if value is not _ABSENT]
    if pairs and not kept:
        return _ABSENT
    if isinstance(node, list):
        return [None if value is _ABSENT else value for _, value in pairs]
    tag = _pairs(node)[0]
    if tag == "$tuple":
        return tuple(None if value is _ABSENT else value for _, value in pairs)
    return OrderedDict(kept) if tag == "$ordered" else dict(kept)


_TAGS: dict[str, Callable[[Any], bool]] = {
    "$tuple": lambda tagged: isinstance(tagged, list),
    "$dict": lambda tagged: _are_pairs(tagged),
    "$ordered": lambda tagged: _are_pairs(tagged),
    "$float": lambda tagged: tagged in ("nan", "inf", "-inf"),
    "$tensor": lambda tagged: isinstance(tagged, str),
    "$bytes": lambda tagged: tagged in ("bytes", "bytearray"),
    "$pickle": lambda tagged: tagged is None,
}


def _are_pairs(tagged: Any) -> bool:
    return isinstance(tagged, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in tagged
    )


def _check(node: Node) -> None:
    """A file's word is not taken for it: what stands under a tag must be what the tag says."""
    if isinstance(node, dict):
        tag, tagged = _pairs(node)
        if tag and not _TAGS.get(tag, lambda _: False)(tagged):
            raise LoadError(f"the checkpoint's {STATE} has {tag!r} in a way that this version does not know")
    for _, child in _children(node) or ():
        _check(child)


def parse(text: bytes) -> Node:
    """The tree, checked."""
    try:
        node = json.loads(text)
        if _children(node) is None:
            raise LoadError(f"the checkpoint's {STATE} is no state dict")
        _check(node)
        return node
    except (ValueError, RecursionError) as error:
        raise LoadError(f"the checkpoint's {STATE} is not what tspool writes: {error}") from error


def places(value: Any, name: str | None = None, within: Any = None, key: object = None) -> Iterator[tuple[str, Any, Any, Any]]:
    """The leaves of a state dict that is loaded into: (name, value, container, key)."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from places(item, name_of(name, inner), value, inner)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from places(item, name_of(name, number), value, number)
    else:
        yield name or "", value, within, key


def metadata_text(key: object, value: object) -> tuple[str, str]:
    if not isinstance(key, str) or not isinstance(value, (str, int, float)):
        raise SaveError(f"metadata {key!r}: {value!r}: keys are strings, values are strings or numbers; use json.dumps for more")
    if not is_text(key) or not is_text(str(value)):
        raise SaveError(f"metadata {key!r}: {value!r}: no NUL and no surrogates; encode them")
    return key, str(value)
