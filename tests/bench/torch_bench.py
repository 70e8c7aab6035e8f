#!/usr/bin/env python3
"""Measures tspool.torch against PyTorch's own checkpointing and safetensors, and prints each figure beside its bar.

    python tests/bench/torch_bench.py [--dir DIR] [--rounds 5] [--only save|load|small] [--layers 12] [--json FILE]

The state is GPT-2 124M with Adam: 444 tensors, 1.4 GiB, on the CPU. Every measure is a process of its own that saves once to
warm up and once to be measured; the contestants of a round come in shuffled order. All is on disk inside the clock: what a
contestant leaves unsynced is synced before it stops. Memory is touched right before each measure, because a virtual machine may
have taken back what was free. A figure is the median over the rounds, a ratio one of medians.
"""

import argparse
import ctypes
import json
import mmap
import os
import pathlib
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

STEP_SECONDS = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


# The state ----------------------------------------------------------------------------------------------------------------------


def gpt2(layers, width=768, vocabulary=50257, context=1024):
    """Parameters of GPT-2, and Adam's two moments and step of each."""
    import torch

    shapes = {"wte": (vocabulary, width), "wpe": (context, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    for layer in range(layers):
        for name, shape in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.weight": (3 * width, width),
            "attn.bias": (3 * width,),
            "proj.weight": (width, width),
            "proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "fc.weight": (4 * width, width),
            "fc.bias": (4 * width,),
            "out.weight": (width, 4 * width),
            "out.bias": (width,),
        }.items():
            shapes[f"h.{layer}.{name}"] = shape
    model = {name: torch.empty(shape).uniform_() for name, shape in shapes.items()}
    moments = {name: {"exp_avg": torch.rand_like(value), "exp_avg_sq": torch.rand_like(value), "step": torch.tensor(1.0)}
               for name, value in model.items()}  # fmt: skip
    return {"model": model, "optimizer": {"state": moments}}


def small(count):
    """One flat block cut into tensors: 4 KiB each, or 1 to 16 KiB where there are fewer."""
    import torch

    chance = random.Random(1)
    sizes = [1024 if count >= 100000 else chance.randrange(256, 4096) for _ in range(count)]
    return {"model": {f"t{number}": torch.rand(size) for number, size in enumerate(sizes)}}


def state_of(options):
    return small(options.small) if options.small else gpt2(options.layers)


def tensors_in(state):
    for value in state.values():
        if isinstance(value, dict):
            yield from tensors_in(value)
        elif hasattr(value, "numel"):
            yield value


# What is measured ---------------------------------------------------------------------------------------------------------------


def prime(size):
    """Touches twice as much memory as the state takes."""
    subprocess.run([sys.executable, "-c", f"b = bytearray({2 * size})"], check=True)


def bytes_of(state):
    return sum(tensor.nbytes for tensor in tensors_in(state))


def family():
    """This process and all below it."""
    found, new = [], [os.getpid()]
    while new:
        pid = new.pop()
        found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                new += map(int, task.read_text().split())
            except OSError:
                pass
    return found


def cpu_seconds():
    total = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = total.ru_utime + total.ru_stime
    for pid in family():
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return seconds


def memory_bytes():
    """What the family holds, shared pages counted once."""
    total = 0
    for pid in family():
        try:
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
        except OSError:
            pass
    return total


def files_of(path):
    path = pathlib.Path(path)
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def file_bytes(path):
    return sum(file.stat().st_size for file in files_of(path))


def cached_bytes(path):
    """Of the files, in the page cache."""
    total = 0
    for file in files_of(path):
        size = file.stat().st_size
        if size == 0:
            continue
        with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), size) as mapped:
            pages = -(-size // mmap.PAGESIZE)
            resident = (ctypes.c_ubyte * pages)()
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident) == 0:
                total += sum(byte & 1 for byte in resident) * mmap.PAGESIZE
            del address
    return total


def chill(path):
    """Out of the page cache."""
    os.sync()
    for file in files_of(path):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_all(path):
    """What the contestant left unsynced: files and directories."""
    path = pathlib.Path(path)
    for each in [*files_of(path), path, path.parent]:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# Contestants that save ----------------------------------------------------------------------------------------------------------


def shared_stager():
    """The best that DCP has: memory that is shared with the checkpoint process and kept between saves."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    return DefaultStager(
        StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False)
    )


class Dcp:
    def __init__(self, kind, folder):
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        self.kind = AsyncCheckpointerType(kind)
        self.stager = shared_stager()
        if kind == "process":
            import torch.distributed as dist

            dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)

    def save(self, state, path):
        """(what to wait for before the tensors change, what to wait for before all is written)"""
        import torch.distributed.checkpoint as dcp

        future = dcp.async_save(state, checkpoint_id=path, async_checkpointer_type=self.kind, async_stager=self.stager)
        return lambda: None, future.result


class Plain:
    def save(self, state, path):
        import torch.distributed.checkpoint as dcp

        dcp.save(state, checkpoint_id=path)
        return lambda: None, lambda: None


class Ours:
    def __init__(self, staging):
        from tspool.torch import StorageWriter

        self.writer = StorageWriter(staging=staging)

    def save(self, state, path):
        from tspool.torch import async_save

        answer = async_save(state, checkpoint_id=path, storage_writer=self.writer)
        if self.writer.staging == "background":
            return answer.staging_completion.result, answer.upload_completion.result
        return lambda: None, answer.result


class OursPlain:
    def save(self, state, path):
        from tspool.torch import save

        save(state, checkpoint_id=path)
        return lambda: None, lambda: None


class OursStockBytes:
    def __init__(self):
        from tspool.torch import install

        install()

    def save(self, state, path):
        import torch.distributed.checkpoint as dcp

        return lambda: None, dcp.async_save(state, checkpoint_id=path).result


SAVERS = {
    "dcp thread": lambda folder: Dcp("thread", folder),
    "dcp process": lambda folder: Dcp("process", folder),
    "dcp.save": lambda folder: Plain(),
    "ours now": lambda folder: Ours("now"),
    "ours background": lambda folder: Ours("background"),
    "ours save": lambda folder: OursPlain(),
    "ours stock bytes": lambda folder: OursStockBytes(),
}


class Training:
    """Steps of one thread, some 50 ms each."""

    def __init__(self):
        import torch

        torch.set_num_threads(1)
        self.matrix, self.rounds = torch.rand(400, 400), 1
        self.step()
        while (seconds := self.step()) < STEP_SECONDS:
            self.rounds = max(self.rounds + 1, int(self.rounds * STEP_SECONDS / seconds))

    def step(self):
        began = time.perf_counter()
        for _ in range(self.rounds):
            self.matrix.mm(self.matrix)
        return time.perf_counter() - began


def measure_save(saver, state, path, base):
    prime(bytes_of(state))
    before_cpu, began = cpu_seconds(), time.perf_counter()
    staged, written = saver.save(state, path)
    returned = time.perf_counter()
    staged()
    free = time.perf_counter()
    peak = memory_bytes()
    written()
    sync_all(path)
    ended = time.perf_counter()
    size = file_bytes(path)
    return {"stall": returned - began, "staged": free - began, "durable": ended - began, "cpu": cpu_seconds() - before_cpu,
            "memory": max(0, peak - base), "cache": cached_bytes(path) / size, "bytes": size}  # fmt: skip


def measure_steps(saver, state, path):
    """Steps that a training loop loses to one save: what it would have made in that time, less what it made."""
    import torch

    training = Training()
    usual = statistics.median(training.step() for _ in range(20))
    prime(bytes_of(state))
    began = time.perf_counter()
    staged, written = saver.save(state, path)
    staged()
    made, ended = 0, []
    import threading

    waiter = threading.Thread(target=lambda: (written(), sync_all(path), ended.append(time.perf_counter())))
    waiter.start()
    while not ended:
        training.step()
        made += 1
    waiter.join()
    lost = (time.perf_counter() - began) / usual - made
    torch.set_num_threads(2)
    return {"lost": max(0.0, lost)}


def save_worker(options):
    state = state_of(options)
    saver = SAVERS[options.worker](options.dir)
    base = memory_bytes()  # what warming up leaves behind is memory that the contestant takes
    saver.save(state, f"{options.dir}/warm")[1]()
    sync_all(f"{options.dir}/warm")
    result = measure_save(saver, state, f"{options.dir}/measured", base)
    if options.steps:
        result |= measure_steps(saver, state, f"{options.dir}/beside")
    return result


# Contestants that load ----------------------------------------------------------------------------------------------------------


def touch(state):
    return sum(float(tensor.view(-1)[::1024].sum()) for tensor in tensors_in(state))


def load_dcp(path, options):
    import torch.distributed.checkpoint as dcp

    state = state_of(options)
    chill(path)
    prime(file_bytes(path))
    began = time.perf_counter()
    dcp.load(state, checkpoint_id=path)
    return state, began


def load_ours(path, options):
    from tspool.torch import load

    state = state_of(options)
    chill(path)
    prime(file_bytes(path))
    began = time.perf_counter()
    load(state, checkpoint_id=path)
    return state, began


def load_tspool(path, options):
    import torch  # noqa: F401
    import tspool

    chill(path)
    prime(file_bytes(path))
    began = time.perf_counter()
    return {"all": {str(number): t for number, t in enumerate(tensors_in(tspool.load(path)))}}, began


def load_safetensors(path, options):
    from safetensors.torch import load_file

    files = [file for file in files_of(path) if file.suffix == ".safetensors"]
    chill(path)
    prime(file_bytes(path))
    began = time.perf_counter()
    return {"all": {name: tensor for file in files for name, tensor in load_file(file).items()}}, began


LOADERS = {
    "dcp.load": load_dcp,
    "safetensors load_file": load_safetensors,
    "ours load": load_ours,
    "ours tspool.load": load_tspool,
}


def load_worker(options):
    state, began = LOADERS[options.worker](options.source, options)
    touch(state)
    return {"seconds": time.perf_counter() - began}


# The table ----------------------------------------------------------------------------------------------------------------------


def worker_command(options, worker, folder, *more):
    return [sys.executable, __file__, "--worker", worker, "--dir", folder, "--layers", str(options.layers), *map(str, more)]


class Bench:
    def __init__(self, options):
        self.options = options
        self.figures = {}
        self.missed = 0

    def run(self, worker, *more):
        folder = tempfile.mkdtemp(dir=self.options.dir)
        command = worker_command(self.options, worker, folder, *more)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench: {worker} failed: {done.stderr[-3000:]}")
        shutil.rmtree(folder)
        os.sync()
        return json.loads(done.stdout.splitlines()[-1])

    def rounds(self, group, workers, *more, rounds=None):
        for number in range(rounds or self.options.rounds):
            for worker in random.sample(workers, len(workers)):
                for name, value in self.run(worker, *more).items():
                    self.figures.setdefault((group, worker, name), []).append(value)
                print(f"  {group} {number + 1}: {worker}", file=sys.stderr)

    def of(self, group, worker, name):
        return statistics.median(self.figures[group, worker, name])

    def line(self, what, value, bar=None, unit="x"):
        verdict = "" if bar is None else f"   bar {bar:g} {unit}   {'reached' if value <= bar else 'MISSED'}"
        self.missed += bar is not None and value > bar
        print(f"{what:<66} {value:10.3f} {unit}{verdict}")

    def ratio(self, what, group, ours, name, theirs, bar=None):
        best = min(self.of(group, peer, name) for peer in theirs)
        self.line(
            f"{what} ({self.of(group, ours, name):.3f} / {best:.3f})",
            self.of(group, ours, name) / best if best else float("inf"),
            bar,
        )


def bench_save(bench):
    stock, ours = ["dcp thread", "dcp process"], ["ours now", "ours background", "ours stock bytes"]
    bench.rounds("save", stock + ours, "--steps")
    for name, unit in (
        ("stall", "s"),
        ("durable", "s"),
        ("cpu", "s"),
        ("memory", "bytes"),
        ("cache", "of file"),
        ("lost", "steps"),
    ):
        for worker in stock + ours:
            bench.line(f"{worker}: {name}", bench.of("save", worker, name), unit=unit)
    bench.ratio("stall, now", "save", "ours now", "stall", stock, 1.0)
    bench.ratio("stall, background", "save", "ours background", "stall", stock, 0.2)
    for worker in ours[:2]:
        bench.ratio(f"durable, {worker}", "save", worker, "durable", stock, 0.40)
        bench.ratio(f"CPU, {worker}", "save", worker, "cpu", stock, 0.6)
        bench.ratio(f"memory, {worker}", "save", worker, "memory", stock, 1.0)
        bench.line(f"page cache, {worker}", bench.of("save", worker, "cache") * 100, 1.0, "%")
        bench.ratio(f"steps lost, {worker}", "save", worker, "lost", stock, 0.25)
    bench.ratio("durable, stock bytes", "save", "ours stock bytes", "durable", stock, 0.6)


def saved(bench, worker, *more):
    """A checkpoint to load from."""
    folder = tempfile.mkdtemp(dir=bench.options.dir)
    command = worker_command(bench.options, worker, folder, *more)
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(f"{folder}/warm")
    return f"{folder}/measured"


def bench_load(bench, group="load", *more):
    places = {"dcp": saved(bench, "dcp.save", *more), "ours": saved(bench, "ours save", *more)}
    for number in range(bench.options.rounds):
        for worker in random.sample(list(LOADERS), len(LOADERS)):
            place = places["dcp" if worker == "dcp.load" else "ours"]
            for name, value in bench.run(worker, "--source", place, *more).items():
                bench.figures.setdefault((group, worker, name), []).append(value)
            print(f"  {group} {number + 1}: {worker}", file=sys.stderr)
    for place in places.values():
        shutil.rmtree(pathlib.Path(place).parent)
    for worker in LOADERS:
        bench.line(f"{group}: {worker}", bench.of(group, worker, "seconds"), unit="s")


def bench_loads(bench):
    bench_load(bench)
    bench.ratio("load", "load", "ours load", "seconds", ["dcp.load"], 0.35)
    bench.ratio("load", "load", "ours load", "seconds", ["safetensors load_file"], 0.5)
    bench.ratio("tspool.load", "load", "ours tspool.load", "seconds", ["safetensors load_file"], 0.5)


def bench_small(bench):
    for count in (20000, 100000):
        group = f"{count} tensors"
        bench.rounds(group, ["dcp.save", "ours save"], "--small", count)
        for worker in ("dcp.save", "ours save"):
            bench.line(f"{group}: {worker}", bench.of(group, worker, "durable"), unit="s")
        bench.ratio(f"{group}: save", group, "ours save", "durable", ["dcp.save"], 0.10)
        bench_load(bench, f"{group}, load", "--small", count)
        bench.ratio(f"{group}: load", f"{group}, load", "ours load", "seconds", ["dcp.load"], 0.10)


def options_take():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where to write; its device is what is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["save", "load", "small"])
    parser.add_argument("--layers", type=int, default=12, help="of the model; fewer to try the benchmark itself")
    parser.add_argument("--json", help="all figures, of every round")
    for inner in ("--worker", "--source"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    parser.add_argument("--small", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = options_take()
    options.dir = os.path.abspath(options.dir)
    os.makedirs(options.dir, exist_ok=True)
    warnings.simplefilter("ignore")
    if options.worker:
        print(json.dumps(load_worker(options) if options.worker in LOADERS else save_worker(options)), flush=True)
        return 0
    bench = Bench(options)
    for name, group in (("save", bench_save), ("load", bench_loads), ("small", bench_small)):
        if options.only in (None, name):
            group(bench)
    if options.json:
        figures = {" / ".join(key): values for key, values in bench.figures.items()}
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1))
    print(f"{bench.missed} bars missed")
    return bench.missed > 0


if __name__ == "__main__":
    sys.exit(main())
