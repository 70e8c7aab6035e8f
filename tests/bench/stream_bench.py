"""torch.save and plain bytes through tspool.open, against Python's own files with an fsync; turn and turn about.

    python tests/bench/stream_bench.py DIRECTORY [--rounds 5] [--bytes 1.5e9]

A clock ends when the file and its directory are on disk. CPU is that of the process with all its threads. Page cache: how much
of the file is in it afterwards. Dirty pages of one contestant would be written in the next one's time: each begins after a sync.
"""

import argparse
import ctypes
import mmap
import os
import random
import resource
import statistics
import time

import torch
import tspool

PAGE = mmap.PAGESIZE


def theirs(path):
    return open(path, "wb")


def theirs_end(file, folder):
    file.flush()
    os.fsync(file.fileno())
    file.close()
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


KINDS = {
    "python": (theirs, theirs_end),
    "tspool": (tspool.open, lambda file, folder: file.close()),
    "tspool, threads": (lambda path: tspool.open(path, io="threads"), lambda file, folder: file.close()),
}
WRITERS = {
    "torch.save": torch.save,
    "bytes": lambda state, file: [file.write(memoryview(tensor.numpy()).cast("B")) for tensor in state.values()],
}


def cached_bytes(path):
    """Of the file's pages those that are in the page cache, by mincore."""
    size = os.path.getsize(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        pages = -(-size // PAGE)
        resident = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), resident)
        return sum(page & 1 for page in resident) * PAGE


def once(folder, kind, write, state):
    path = os.path.join(folder, "stream_bench.bin")
    opener, end = KINDS[kind]
    os.sync()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    file = opener(path)
    write(state, file)
    end(file, folder)
    took, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cached = cached_bytes(path)
    os.unlink(path)
    return took, cpu, cached


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=float, default=1.5e9)
    options = parser.parse_args()
    state = {f"t{number}": torch.randn(4_000_000) for number in range(max(1, int(options.bytes / 16e6)))}
    contests = [(kind, name) for kind in KINDS for name in WRITERS]
    seen = {contest: [] for contest in contests}
    for _ in range(options.rounds):
        for kind, name in random.sample(contests, len(contests)):
            seen[kind, name].append(once(options.directory, kind, WRITERS[name], state))
    size = sum(tensor.nbytes for tensor in state.values())
    print(f"{size / 1e9:.2f} GB, {options.rounds} rounds\n{'':28} {'durable s':>18} {'GB/s':>6} {'CPU s':>6} {'in page cache':>14}")
    for (kind, name), runs in seen.items():
        times, cpus, cached = zip(*runs, strict=True)
        middle = statistics.median(times)
        print(f"{name + ', ' + kind:28} {middle:6.2f} ({min(times):.2f}-{max(times):.2f}) {size / middle / 1e9:6.2f} "
              f"{statistics.median(cpus):6.2f} {statistics.median(cached) / size:14.1%}")  # fmt: skip


main()
