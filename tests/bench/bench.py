"""Measures the engine against fio in the same rounds and prints a table and JSON.

usage: bench.py ENGINE_BENCH WRITER PLAN_BENCH [--dir DIR] [--rounds N] [--json FILE] [--only GROUP]
                [--previous ENGINE_BENCH WRITER]

Every round runs each contestant once, in shuffled order, on the same file system. A ratio is one of medians over the rounds; its
spread is that of the ratios within each round. Sync, hashing and commit are inside the clock; fio's clock has its fsync
(end_fsync=1) and ends at the last byte durable. A measure during which other work took more than 15 % of the machine is marked
and left out of the medians as long as five calm ones remain.

--previous takes part in the rounds of the save with the engine of another build (another tree's build/tests/bench/engine-bench and
build/tools/tspool-writer): what a change costs.
"""
import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

GIB = 1 << 30


def cpu_times():
    """(busy, stolen) seconds of the whole machine since boot."""
    fields = [int(x) / os.sysconf("SC_CLK_TCK") for x in open("/proc/stat").readline().split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return user + nice + system + irq + softirq, steal


def own_cpu(pids):
    total = 0.0
    for pid in pids:
        try:
            stat = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            total += (int(stat[11]) + int(stat[12]) + int(stat[13]) + int(stat[14])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return total


class Engine:
    """One engine_bench process: a trainer with a warm arena."""

    def __init__(self, options, name, state, io="uring", background=False, build=None):
        self.name, self.root = name, os.path.join(options.dir, name)
        os.makedirs(self.root)
        engine, writer = build or (options.engine, options.writer)
        command = [engine, "--root", self.root, "--writer", writer, "--state", state, "--io", io]
        self.process = subprocess.Popen(command + ["--background"] * background, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.bytes = json.loads(self.process.stdout.readline())["bytes"]

    def pids(self):
        children = open(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read().split()
        return [self.process.pid] + [int(child) for child in children]

    def ask(self, command):
        before, other = cpu_times(), own_cpu(self.pids())
        started = time.monotonic()
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"bench: {self.name} ended")
        result = json.loads(answer)
        after = cpu_times()
        foreign = (after[0] - before[0]) - (own_cpu(self.pids()) - other) + (after[1] - before[1])
        result["foreign"] = max(0.0, foreign) / (time.monotonic() - started) / os.cpu_count()
        return result

    def save(self, command="save"):
        result = self.ask(command)
        for name in sorted(os.listdir(self.root))[:-1]:  # keep the last for load; outside the clock
            shutil.rmtree(os.path.join(self.root, name))
        os.sync()
        return result

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.root)


def prime():
    subprocess.run([sys.executable, "-c", "b = bytearray(3 << 30)"], check=True)


class HugePages:
    """Hugetlb pages for fio's buffers (mem=shmhuge): on 4 KiB pages (mem=malloc) it is a third slower, and no rival. Root may
    reserve a few for the time of the benchmark; else what is there decides."""

    PATH, WANTED = "/proc/sys/vm/nr_hugepages", 32

    def __enter__(self):
        self.before = open(self.PATH).read()
        if int(self.before) < self.WANTED and os.geteuid() == 0:
            self.set(str(self.WANTED))
        self.memory = "shmhuge" if int(open(self.PATH).read()) >= self.WANTED else "malloc"
        return self

    def set(self, count):
        with open(self.PATH, "w") as file:
            file.write(count)

    def __exit__(self, *_):
        if os.geteuid() == 0:
            self.set(self.before)


def fio(options, size, direction):
    """Tuned fio: what the device gives to a job that does nothing but this."""
    path = os.path.join(options.dir, "fio.data")
    depth = {"write": 16, "read": 32}[direction]
    command = ["fio", "--name=tuned", f"--filename={path}", f"--rw={direction}", "--bs=512k", f"--iodepth={depth}", "--direct=1",
               "--ioengine=io_uring", f"--mem={options.fio_memory}", "--fixedbufs=1", "--registerfiles=1", "--iodepth_batch=1", "--fallocate=native",
               f"--size={size // 4096 * 4096}", "--output-format=json", "--refill_buffers=0"]
    command += ["--end_fsync=1"] if direction == "write" else []
    if direction == "write" and os.path.exists(path):
        os.unlink(path)
        os.sync()
    prime()
    before = cpu_times()
    started = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True)
    elapsed = time.monotonic() - started
    if run.returncode:
        sys.exit("bench: fio failed: " + run.stderr)
    job = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]
    seconds = job[direction]["runtime"] / 1000  # its end_fsync included
    own = elapsed * (job["usr_cpu"] + job["sys_cpu"]) / 100
    foreign = cpu_times()[0] - before[0] - own
    return {"s": seconds, "bytes": job[direction]["io_bytes"], "foreign": max(0.0, foreign) / elapsed / os.cpu_count()}


class Table:
    """Ratios per round; calm rounds first."""

    def __init__(self):
        self.rows = {}

    def add(self, name, value, foreign=0.0, bar=None, above=True, unit="ratio"):
        row = self.rows.setdefault(name, {"values": [], "marked": [], "bar": bar, "above": above, "unit": unit})
        (row["marked"] if foreign > 0.15 else row["values"]).append(value)

    def ratio(self, name, above, below, foreign=0.0, bar=None, at_least=True):
        """above / below: seconds or rates of the same round."""
        self.add(name, (above, below), foreign, bar, at_least)

    def summary(self):
        result = {}
        for name, row in self.rows.items():
            values = row["values"] if len(row["values"]) >= 5 else row["values"] + row["marked"]
            if isinstance(values[0], tuple):
                median = statistics.median(above for above, _ in values) / statistics.median(below for _, below in values)
                values = [above / below for above, below in values]
            else:
                median = statistics.median(values)
            bar = row["bar"]
            met = None if bar is None else (median >= bar if row["above"] else median <= bar)
            result[name] = {"median": median, "min": min(values), "max": max(values), "rounds": len(values), "marked": len(row["marked"]),
                            "unit": row["unit"], "bar": bar, "met": met}
        return result

    def show(self):
        print(f"{'figure':58} {'median':>9} {'min':>9} {'max':>9} {'rounds':>6} {'marked':>6}   bar")
        for name, row in self.summary().items():
            sign = ">=" if self.rows[name]["above"] else "<="
            bar = "" if row["bar"] is None else f"{sign} {row['bar']:g} {'met' if row['met'] else 'MISSED'}"
            print(f"{name:58} {row['median']:9.4g} {row['min']:9.4g} {row['max']:9.4g} {row['rounds']:6} {row['marked']:6}   {bar}")


def save_figures(table, label, result, fio_seconds, bar):
    table.ratio(f"{label}: durable throughput / tuned fio", fio_seconds, result["durable_s"], result["foreign"], bar)
    table.add(f"{label}: durable", result["durable_s"], result["foreign"], unit="s")


def killed_figures(table, killed, undisturbed):
    if killed["attempts"] != 2:
        sys.exit(f"bench: the save of the killed writer took {killed['attempts']} attempts, not 2")
    table.ratio("save, writer killed half way: durable time / undisturbed", killed["durable_s"], undisturbed["durable_s"],
                killed["foreign"], 2.5, at_least=False)


def big_round(table, engines, options, order):
    measured = {}
    for who in order:
        if who == "fio":
            measured["fio"] = fio(options, engines["now"].bytes, "write")
        elif who in ("copy", "bare"):
            measured[who] = engines["now"].ask(who)
        elif who == "killed":
            measured["killed"] = engines["killed"].save("killed")
        else:
            measured[who] = engines[who].save()
    job = measured["fio"]
    table.add("tuned fio: durable", job["s"], job["foreign"], unit="s")
    gib = measured["now"]["bytes"] / GIB
    save_figures(table, "save, uring, staging now", measured["now"], job["s"], 0.95)
    save_figures(table, "save, threads, staging now", measured["threads"], job["s"], 0.92)
    save_figures(table, "save, uring, staging background", measured["background"], job["s"], None)
    now, bare = measured["now"], measured["bare"]
    table.ratio("a loop of writes from as much memory / tuned fio", job["s"], bare["bare_s"], bare["foreign"])
    table.ratio("save, uring, staging now: durable throughput / that loop", bare["bare_s"], now["durable_s"], now["foreign"])
    killed_figures(table, measured["killed"], now)
    if "previous" in measured:
        table.ratio("save, staging now: durable time / previous build", now["durable_s"], measured["previous"]["durable_s"],
                    max(now["foreign"], measured["previous"]["foreign"]), 1.02, at_least=False)
    table.ratio("stall, staging now / best two-thread copy", now["stall_s"], measured["copy"]["copy_s"],
                max(now["foreign"], measured["copy"]["foreign"]), 1.1, at_least=False)
    table.add("stall, staging now", now["stall_s"] * 1e3, now["foreign"], unit="ms")
    table.add("best two-thread copy", measured["copy"]["copy_s"] * 1e3, measured["copy"]["foreign"], unit="ms")
    table.add("stall, staging background, ms", measured["background"]["stall_s"] * 1e3, measured["background"]["foreign"], 20, False, "ms")
    table.add("CPU of writer and library, s/GiB", now["cpu_s"] / gib, now["foreign"], 0.40, False, "s/GiB")
    table.add("page cache growth / bytes", max(0.0, now["page_cache_bytes"]) / now["bytes"], now["foreign"], 0.01, False)
    table.add("memory beyond the arena, MiB", now["private_bytes"] / (1 << 20), now["foreign"], 64, False, "MiB")


def read_round(table, engine, options):
    job = fio(options, engine.bytes, "read")
    result = engine.ask("load")
    if result["wrong"]:
        sys.exit("bench: the load returned wrong bytes")
    table.ratio("verified read / tuned fio read", job["s"], result["load_s"], max(result["foreign"], job["foreign"]), 0.90)
    table.add("verified read", result["load_s"], result["foreign"], unit="s")


def small_round(table, engine, options):
    job = fio(options, engine.bytes, "write")
    result = engine.save()
    save_figures(table, "20,000 tensors of 1-16 KiB", result, job["s"], 0.75)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("writer")
    parser.add_argument("plan")
    parser.add_argument("--dir", default=os.environ.get("TSPOOL_BENCH_DIR", "."), help="file system to measure (default: here)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write every figure there")
    parser.add_argument("--previous", nargs=2, metavar=("ENGINE_BENCH", "WRITER"), help="another build, in the same rounds")
    parser.add_argument("--only", choices=["save", "read", "small", "plan"])
    options = parser.parse_args()
    if not shutil.which("fio"):
        sys.exit("bench: fio is not installed (apt-get install fio)")
    options.dir = tempfile.mkdtemp(prefix="tspool-bench-", dir=options.dir)
    table = Table()
    try:
        with HugePages() as pages:
            options.fio_memory = pages.memory
            run(options, table)
    finally:
        shutil.rmtree(options.dir)
    print(f"tuned fio: bs=512k, mem={options.fio_memory}, fixedbufs=1, registerfiles=1, iodepth 16 writing and 32 reading, end_fsync=1")
    table.show()
    if options.json:
        with open(options.json, "w") as out:
            json.dump(table.summary(), out, indent=1)


def run(options, table):
    wanted = [options.only] if options.only else ["save", "read", "small", "plan"]
    if "save" in wanted:
        engines = {"now": Engine(options, "now", "gpt2"), "threads": Engine(options, "threads", "gpt2", "threads"),
                   "background": Engine(options, "background", "gpt2", background=True), "killed": Engine(options, "killed", "gpt2")}
        if options.previous:
            engines["previous"] = Engine(options, "previous", "gpt2", build=options.previous)
        for engine in engines.values():
            engine.save()  # the first save populates what is left and is not counted
        for _ in range(options.rounds):
            order = ["fio", "copy", "bare"] + list(engines)
            random.shuffle(order)
            big_round(table, engines, options, order)
        for engine in engines.values():
            engine.close()
    if "read" in wanted:
        engine = Engine(options, "read", "gpt2")
        engine.save()
        fio(options, engine.bytes, "write")
        for _ in range(options.rounds):
            read_round(table, engine, options)
        engine.close()
    if "small" in wanted:
        engine = Engine(options, "small", "small")
        engine.save()
        for _ in range(options.rounds):
            small_round(table, engine, options)
        engine.close()
    if "plan" in wanted:
        for _ in range(max(5, options.rounds)):
            result = json.loads(subprocess.run([options.plan], capture_output=True, text=True, check=True).stdout)
            table.add("1,000,000 tensors planned, s", result["plan_s"], bar=1.5, above=False, unit="s")


main()
