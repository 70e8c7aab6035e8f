"""One measure of one peer, in a process of its own. run.py starts it and watches it from outside.

It speaks in lines of JSON and waits for a line after each: when it holds the state and nothing else, when everything is
prepared, and when it has done the one thing that is measured and said what it took; then it cleans up.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import resource
import sys
import time
import traceback
from typing import Any

import peer as peers
import registry
from state import shapes_of, state_of

CHANNEL = os.fdopen(os.dup(1), "w", buffering=1)   # peers print
os.dup2(2, 1)


def say(**facts: Any) -> None:
    CHANNEL.write(json.dumps(facts) + "\n")


def told() -> None:
    if not sys.stdin.readline():
        os._exit(1)


def files_below(path: pathlib.Path) -> list[pathlib.Path]:
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file() and not found.is_symlink())


def fsync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_durable(peer: peers.Peer, path: pathlib.Path) -> None:
    """What the peer left undone: without it, "saved" means "in the page cache"."""
    if not path.exists():
        return
    if not peer.syncs_files:
        for file in files_below(path):
            fsync(file)
    if not peer.syncs_folders:
        for folder in [found for found in path.rglob("*") if found.is_dir()] + ([path] if path.is_dir() else []) + [path.parent]:
            fsync(folder)


def prime(size: int) -> None:
    """Memory touched right before the clock: a virtual machine may have given freed pages back to its host, and the first touch
    afterwards costs ten times as much. In a child, so that the pages are free again and still the machine's."""
    if size and not (child := os.fork()):
        memory = bytearray(size)
        for at in range(0, size, 4096):
            memory[at] = 1
        os._exit(0)
    elif size:
        os.waitpid(child, 0)


def own_cpu() -> float:
    """Of this process and of the children that it has waited for; run.py adds those that still live."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cpu_since(before: float, peer: peers.Peer) -> dict[str, Any]:
    return {"cpu": own_cpu() - before} if peer.cpu_seconds is None else {"cpu": peer.cpu_seconds, "times_itself": True}


def saved(peer: peers.Peer, path: pathlib.Path) -> dict[str, float]:
    began = time.monotonic()
    peer.save(path)
    stall = time.monotonic() - began
    peer.wait()
    api = time.monotonic() - began
    make_durable(peer, path)
    durable = time.monotonic() - began
    if peer.seconds is not None:
        stall = api = durable = peer.seconds
    return {"stall": stall, "api": api, "durable": durable}


def measure_save(peer: peers.Peer, options: argparse.Namespace) -> None:
    """The second save: the first one fills pools and caches, in every peer that has any."""
    saved(peer, options.folder / "first")
    prime(options.prime)
    say(ready=True)
    told()
    cpu = own_cpu()
    times = saved(peer, options.folder / "second")
    say(**times, **cpu_since(cpu, peer), bytes=options.size, files=len(files_below(options.folder / "second")))


class Steps:
    """A training loop on one thread: a real computation of about 50 ms, again and again."""

    def __init__(self, milliseconds: float = 50) -> None:
        import torch
        torch.set_num_threads(1)
        self.a = torch.rand(256, 256)
        self.product = torch.empty_like(self.a)
        self.repeats = 1
        self.step()
        while (took := min(self.step() for _ in range(3))) < milliseconds / 1000:
            self.repeats = max(self.repeats + 1, int(self.repeats * min(10.0, milliseconds / 1000 / took)))

    def step(self) -> float:
        import torch
        began = time.monotonic()
        for _ in range(self.repeats):
            torch.mm(self.a, self.a, out=self.product)
        return time.monotonic() - began


def measure_training(peer: peers.Peer, options: argparse.Namespace) -> None:
    """Steps before a save, and steps while it is in flight; a thread waits for the save, as a trainer's callback would."""
    import threading
    saved(peer, options.folder / "first")
    steps = Steps()
    prime(options.prime)
    say(ready=True)
    told()
    before = [steps.step() for _ in range(options.steps)]
    failures: list[BaseException] = []
    began = time.monotonic()
    peer.save(options.folder / "second")
    stall = time.monotonic() - began

    def finish() -> None:
        try:
            peer.wait()
            make_durable(peer, options.folder / "second")
        except BaseException as error:
            failures.append(error)

    waiting = threading.Thread(target=finish)
    waiting.start()
    during = []
    while waiting.is_alive():
        during.append(steps.step())
    waiting.join()
    if failures:
        raise failures[0]
    say(before=before, during=during, stall=stall, durable=time.monotonic() - began, bytes=options.size)


def measure_load(peer: peers.Peer, options: argparse.Namespace) -> None:
    """From a cold cache, until every page of every tensor was touched; then compared, outside the clock."""
    path = options.folder / "second"
    saved(peer, path)
    for file in files_below(path):
        fsync(file)
        with open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    prime(options.prime)
    say(ready=True)
    told()
    cpu, began = own_cpu(), time.monotonic()
    loaded = peer.load(path)
    api = time.monotonic() - began
    for tensor in loaded.values():
        tensor.reshape(-1)[::1024].sum()
    times = {"api": api, "durable": time.monotonic() - began}
    if peer.seconds is not None:
        times = {"api": peer.seconds, "durable": peer.seconds}
    say(**times, **cpu_since(cpu, peer), bytes=options.size, files=len(files_below(path)), wrong=wrong(peer.state, loaded))


def wrong(state: peers.State, loaded: peers.State) -> list[str]:
    import torch
    if not loaded:
        return []   # a program that only reads
    return sorted(set(state) ^ set(loaded)) or [name for name, tensor in state.items() if not torch.equal(tensor, loaded[name])]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("measure", choices=["save", "train", "load"])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--state", default="gpt2")
    parser.add_argument("--bytes", type=int)
    parser.add_argument("--prime", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    try:
        kind = registry.find(options.peer)
        peers.version_of(kind)
        state = state_of(shapes_of(options.state, options.bytes))
        options.size = sum(tensor.nbytes for tensor in state.values())
        say(bare=True)
        told()
        peer = kind(state, options.folder, options.size)
        peer.open()
        {"save": measure_save, "train": measure_training, "load": measure_load}[options.measure](peer, options)
        told()
        with contextlib.suppress(Exception):
            peer.close()
    except BaseException as error:   # DCP's errors derive from BaseException
        traceback.print_exc()
        say(failed=f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"[:300])
        CHANNEL.flush()
        os._exit(1)
    CHANNEL.flush()
    os._exit(0)   # what peers leave running must not keep us


if __name__ == "__main__":
    main()
