"""torch's FileSystemWriter and Reader against tspool's classes of these names, on the same state, turn and turn about.

    python tests/bench/stock_bench.py DIRECTORY [--rounds 5] [--bytes 1.5e9] [--small COUNT] [--threads 1] [--load]

The state is GPT-2's with Adam's, in CPU tensors, cut down to --bytes; --small COUNT: that many tensors of 1 KiB instead. A save's
clock ends when files and directory are on disk (for torch's the directory is synced after it, within the clock). CPU is that of
the process with all its threads. A load begins with none of the files in the page cache. The bar is tspool's durable <= 0.6 x
torch's.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import time
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from tspool.torch import FileSystemReader, FileSystemWriter

LAYERS, WIDTH, WORDS, POSITIONS = 12, 768, 50257, 1024
BAR = 0.6
KINDS = {"torch": (dcp.FileSystemWriter, dcp.FileSystemReader), "tspool": (FileSystemWriter, FileSystemReader)}


def gpt2_shapes():
    yield "wte.weight", (WORDS, WIDTH)
    yield "wpe.weight", (POSITIONS, WIDTH)
    for layer in range(LAYERS):
        for name, columns in (("attn.c_attn", 3 * WIDTH), ("attn.c_proj", WIDTH), ("mlp.c_fc", 4 * WIDTH)):
            yield f"h.{layer}.{name}.weight", (WIDTH, columns)
            yield f"h.{layer}.{name}.bias", (columns,)
        yield f"h.{layer}.mlp.c_proj.weight", (4 * WIDTH, WIDTH)
        yield f"h.{layer}.mlp.c_proj.bias", (WIDTH,)
        for name in ("ln_1", "ln_2"):
            yield f"h.{layer}.{name}.weight", (WIDTH,)
            yield f"h.{layer}.{name}.bias", (WIDTH,)
    yield "ln_f.weight", (WIDTH,)
    yield "ln_f.bias", (WIDTH,)


def gpt2_state(size):
    model, optimizer, used = {}, {}, 0
    for name, shape in gpt2_shapes():
        if used >= size:
            break
        model[name] = torch.randn(shape)
        optimizer[name] = {"step": torch.tensor(1000.0), "exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)}
        used += 3 * model[name].nbytes
    return {"model": model, "optimizer": {"state": optimizer, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]}}


def small_state(count):
    return {f"t{number:06}": torch.randn(256) for number in range(count)}


def size_of(state):
    if isinstance(state, dict):
        return sum(map(size_of, state.values()))
    return state.nbytes if torch.is_tensor(state) else 0


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(work):
    began, cpu_began = time.perf_counter(), cpu()
    work()
    return {"seconds": time.perf_counter() - began, "cpu": cpu() - cpu_began}


def sync_folder(folder):
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def forget(folder):
    """Out of the page cache, so that a load reads the disk."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def save(kind, state, folder, threads):
    dcp.save(state, storage_writer=KINDS[kind][0](folder, thread_count=threads), no_dist=True)
    if kind == "torch":
        sync_folder(folder)


def one_round(kinds, state, directory, options, results):
    for kind in kinds:
        folder = directory / kind
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()  # what the round before has left to write is not this one's
        results[kind, "save"].append(measured(lambda: save(kind, state, folder, options.threads)))
    for kind in kinds if options.load else ():
        os.sync()
        forget(directory / kind)
        reader = KINDS[kind][1](directory / kind)
        results[kind, "load"].append(measured(lambda: dcp.load(state, storage_reader=reader, no_dist=True)))


def told(results, size):
    medians = {
        key: {field: statistics.median(each[field] for each in rounds) for field in ("seconds", "cpu")}
        for key, rounds in results.items() if rounds
    }  # fmt: skip
    for (kind, what), median in medians.items():
        rate = size / median["seconds"] / 1e9
        print(f"{what} {kind:7} {median['seconds']:7.3f} s  {rate:5.2f} GB/s  cpu {median['cpu']:6.3f} s")
    ratios = {}
    for what in ("save", "load"):
        if ("torch", what) in medians:
            ours, theirs = medians["tspool", what], medians["torch", what]
            ratios[what] = {field: ours[field] / theirs[field] for field in ours}
            print(f"{what} tspool / torch: {ratios[what]['seconds']:.2f} of the time, {ratios[what]['cpu']:.2f} of the CPU")
    return {"medians": {" ".join(key): value for key, value in medians.items()}, "ratios": ratios}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=float, default=1.5e9)
    parser.add_argument("--small", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    options = arguments()
    warnings.simplefilter("ignore")
    state = small_state(options.small) if options.small else gpt2_state(options.bytes)
    size = size_of(state)
    print(f"{size / 1e9:.2f} GB, {options.rounds} rounds, thread_count={options.threads}")
    results = {(kind, what): [] for what in ("save", "load") for kind in KINDS}
    directory = options.directory / "stock-bench"
    directory.mkdir(parents=True)
    try:
        for number in range(options.rounds):
            one_round(list(KINDS)[:: -1 if number % 2 else 1], state, directory, options, results)
    finally:
        shutil.rmtree(directory)
    summary = told(results, size)
    if not options.small:
        met = summary["ratios"]["save"]["seconds"] <= BAR
        print(f"bar: durable <= {BAR} x torch's: {'met' if met else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"bytes": size, "rounds": options.rounds, **summary}, indent=2))


if __name__ == "__main__":
    main()
