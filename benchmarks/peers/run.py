"""Measures all peers side by side and prints a table.

usage: run [--rounds N] [--state gpt2|small] [--bytes SIZE] [--only NAME,...] [--measures save,load,train] [--dir DIR] [--out DIR]

Every round takes each peer once, in shuffled order, each measure in a fresh process. Memory is primed before each, the page
cache of what it will read is dropped, and the machine is watched meanwhile: a measure during which other work took more than 15 %
of the processors (or that began while others waited for them) is marked, and left out of the medians while calm ones remain.
"""
from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import re
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import peer as peers
import registry
from state import bytes_of, shapes_of

HERE = pathlib.Path(__file__).resolve().parent
GIB, MIB = 1 << 30, 1 << 20
FOREIGN, PRESSURE = 0.15, 10.0
TICKS = os.sysconf("SC_CLK_TCK")
ALONE = "fio tuned"          # what every ratio is to


def size_of(text: str) -> int:
    """4096, 8MiB, 1g"""
    number = text.rstrip("kKmMgGtTiBb")
    unit = text[len(number):].lower().removesuffix("b").removesuffix("i")
    try:
        return int(float(number) * {"": 1, "k": 1 << 10, "m": MIB, "g": GIB, "t": 1 << 40}[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"'{text}' is no size (4096, 8MiB, 1g)") from None


# The machine --------------------------------------------------------------------------------------------------------------

def busy_seconds() -> float:
    """Of all processors since boot, with what a hypervisor took."""
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(int, open("/proc/stat").readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) / TICKS


def waiting_before() -> float:
    """Per cent of the last ten seconds in which something waited for a processor; 0 where the kernel does not tell."""
    try:
        return float(open("/proc/pressure/cpu").readline().split("avg10=")[1].split()[0])
    except (OSError, IndexError):
        return 0.0


def family(pid: int) -> list[int]:
    """A process and its descendants, with those that it started in sessions of their own."""
    found = [pid]
    for member in found:
        try:
            for task in os.listdir(f"/proc/{member}/task"):
                found += map(int, open(f"/proc/{member}/task/{task}/children").read().split())
        except OSError:
            continue
    return found


def cpu_of(pids: list[int]) -> dict[int, float]:
    found = {}
    for pid in pids:
        try:
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            found[pid] = sum(map(int, fields[11:15])) / TICKS
        except OSError:
            pass
    return found


def memory_of(pids: list[int]) -> int:
    """Anonymous memory of all, and shared memory once: processes of one trainer share theirs."""
    private, shared = 0, 0
    for pid in pids:
        try:
            fields = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
            private += int(fields["RssAnon"].split()[0]) << 10
            shared = max(shared, int(fields["RssShmem"].split()[0]) << 10)
        except (OSError, KeyError):
            pass
    return private + shared


def open_files_of(pids: list[int]) -> int:
    count = 0
    for pid in pids:
        try:
            count += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            pass
    return count


def cached_bytes(path: pathlib.Path) -> int | None:
    """Of the page cache, taken by the files of a checkpoint."""
    files = [str(file) for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    if not files or not shutil.which("fincore"):
        return None
    done = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", *files], capture_output=True, text=True)
    return sum(map(int, done.stdout.split()))


class Watch:
    """What a measure costs, seen from outside: sampled every 20 ms, so that the measured process is left alone."""

    def __init__(self, pid: int, memory_before: int, files_before: int) -> None:
        """Memory and open files are counted from before the peer was opened: pools that it keeps are its price, too."""
        self.pid = pid
        pids = family(pid)
        self.began, self.busy, self.pressure = time.monotonic(), busy_seconds(), waiting_before()
        self.cpu_before = self.cpu_last = cpu_of(pids)
        self.memory_before, self.files_before = memory_before, files_before
        self.memory = self.files = 0

    def sample(self) -> None:
        pids = family(self.pid)
        self.cpu_last = {**self.cpu_last, **cpu_of(pids)}
        self.memory = max(self.memory, memory_of(pids) - self.memory_before)
        self.files = max(self.files, open_files_of(pids) - self.files_before)

    def cpu(self) -> float:
        """Each process's time holds that of children it has waited for: those are not counted a second time."""
        alive = cpu_of(family(self.pid))
        return max(0.0, sum(seconds - self.cpu_before.get(pid, 0.0) for pid, seconds in alive.items()))

    def end(self) -> dict[str, Any]:
        self.sample()
        elapsed, cpu = time.monotonic() - self.began, self.cpu()
        foreign = max(0.0, busy_seconds() - self.busy - cpu) / elapsed / (os.cpu_count() or 1)
        return {"memory": self.memory, "open_files": self.files, "cpu_family": cpu, "foreign": foreign, "pressure": self.pressure,
                "calm": foreign <= FOREIGN and self.pressure <= PRESSURE}


# One measure --------------------------------------------------------------------------------------------------------------

class Failed(Exception):
    pass


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go on\n")
    process.stdin.flush()


def answer_of(process: subprocess.Popen[str], deadline: float, watch: Watch | None = None) -> dict[str, Any]:
    assert process.stdout
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while not ready.select(0.02 if watch else 1.0):
            if time.monotonic() > deadline:
                raise Failed("took too long")
            if watch:
                watch.sample()
    line = process.stdout.readline()
    if not line:
        raise Failed(f"died: exit status {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    if "failed" in answer:
        raise Failed(answer["failed"])
    return answer


def measured(name: str, measure: str, options: argparse.Namespace) -> dict[str, Any]:
    """In a fresh process and a fresh folder, which is removed afterwards, outside every clock."""
    log = options.out / "log" / re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{measure}.txt")
    with tempfile.TemporaryDirectory(prefix="tspool-peer-", dir=options.dir, ignore_cleanup_errors=True) as folder, \
            open(log, "w") as file:
        command = [sys.executable, str(HERE / "one.py"), name, measure, "--folder", folder, "--state", options.state,
                   "--prime", str(options.prime)] + (["--bytes", str(options.bytes)] if options.bytes else [])
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                                   start_new_session=True)
        try:
            deadline = time.monotonic() + options.timeout
            return watched(process, measure, pathlib.Path(folder), deadline) | {"peer": name, "measure": measure}
        finally:
            ended(process)


def held_by(process: subprocess.Popen[str]) -> tuple[int, int]:
    pids = family(process.pid)
    return memory_of(pids), open_files_of(pids)


def watched(process: subprocess.Popen[str], measure: str, folder: pathlib.Path, deadline: float) -> dict[str, Any]:
    answer_of(process, deadline)
    bare = held_by(process)
    go_on(process)
    answer_of(process, deadline)
    if measure == "load":   # what it kept from the save is not the price of loading
        bare = held_by(process)
    watch = Watch(process.pid, *bare)
    go_on(process)
    result = answer_of(process, deadline, watch)
    result |= watch.end() | {"page_cache": cached_bytes(folder / "second")}
    family_cpu = result.pop("cpu_family")
    result.setdefault("cpu", 0.0)
    if not result.pop("times_itself", False):
        result["cpu"] = max(result["cpu"], family_cpu)
    go_on(process)
    process.wait(60)
    return result


def ended(process: subprocess.Popen[str]) -> None:
    """With all that it started: helpers of peers outlive them gladly."""
    pids = family(process.pid) if process.poll() is None else []
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    for pid in pids[1:]:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass
    process.wait()


# All of them --------------------------------------------------------------------------------------------------------------

def rounds_run(options: argparse.Namespace, wanted: list[type[peers.Peer]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(results, why who was left out); Ctrl-C ends it early, and what was measured until then counts."""
    results: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for kind in wanted:
        try:
            peers.version_of(kind)
        except peers.LeftOut as reason:
            left_out[kind.name] = str(reason)
    try:
        rounds_fill(options, wanted, results, left_out)
    except KeyboardInterrupt:
        print("interrupted: the table holds what was measured until now", file=sys.stderr)
    return results, left_out


def rounds_fill(options: argparse.Namespace, wanted: list[type[peers.Peer]], results: list[dict[str, Any]],
                left_out: dict[str, str]) -> None:
    chance = random.Random(options.seed)
    for number in range(options.rounds):
        for measure in options.measures:
            order = [kind for kind in wanted if takes_part(kind, measure) and not left_out.keys() & keys_of(kind, measure)]
            chance.shuffle(order)
            for kind in order:
                try:
                    result = measured(kind.name, measure, options) | {"round": number}
                except (Failed, subprocess.TimeoutExpired, ValueError) as reason:
                    whole, part = keys_of(kind, measure)
                    left_out[whole if "LeftOut: " in str(reason) else part] = str(reason).removeprefix("LeftOut: ")
                    print(f"round {number + 1}: {measure}: {kind.name}: left out: {reason}", file=sys.stderr, flush=True)
                    continue
                results.append(result)
                print(f"round {number + 1}: {measure}: {told(result)}", file=sys.stderr, flush=True)


def keys_of(kind: type[peers.Peer], measure: str) -> tuple[str, str]:
    """Under which a peer is left out: of everything, or of one measure."""
    return kind.name, f"{kind.name} ({measure})"


def takes_part(kind: type[peers.Peer], measure: str) -> bool:
    return {"save": "mmap" not in kind.name, "load": kind.loads, "train": kind.is_async}[measure]


def told(result: dict[str, Any]) -> str:
    figure = result["durable"]
    return f"{result['peer']}: {figure:.3f} s" + ("" if result["calm"] else f" (marked: {result['foreign']:.0%} other work)")


# The tables ---------------------------------------------------------------------------------------------------------------

def chosen(results: list[dict[str, Any]], name: str, measure: str) -> list[dict[str, Any]]:
    """The calm ones; if there are none, all of them, and the table says so."""
    mine = [result for result in results if result["peer"] == name and result["measure"] == measure]
    return [result for result in mine if result["calm"]] or mine


def spread(values: list[float], form: str = "{:.2f}") -> str:
    if not values:
        return "-"
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))}-{form.format(max(values))})"


def ratios(results: list[dict[str, Any]], name: str, measure: str) -> list[float]:
    """To tuned fio in the same round."""
    base = {result["round"]: result for result in results if result["peer"] == ALONE and result["measure"] == measure}
    return [base[result["round"]]["durable"] / result["durable"] for result in chosen(results, name, measure)
            if result["round"] in base]


def counted(results: list[dict[str, Any]], name: str, measure: str) -> str:
    mine = [result for result in results if result["peer"] == name and result["measure"] == measure]
    return f"{sum(result['calm'] for result in mine)}/{len(mine)}"


def per_gib(result: dict[str, Any]) -> float:
    return float(result["cpu"] * GIB / result["bytes"])


def mib(sizes: list[int | None]) -> str:
    known = [size for size in sizes if size is not None]
    return f"{statistics.median(known) / MIB:.0f}" if known else "-"


def save_table(results: list[dict[str, Any]], kinds: list[type[peers.Peer]]) -> list[list[str]]:
    lines = [["peer", "stall ms", "durable s", "of fio tuned", "CPU s/GiB", "extra memory MiB", "page cache MiB", "files",
              "open files", "fsyncs itself", "publishes atomically", "calm/made"]]
    for kind in kinds:
        mine = chosen(results, kind.name, "save")
        lines.append([kind.name, spread([result["stall"] * 1000 for result in mine], "{:.0f}"),
                      spread([result["durable"] for result in mine]), spread(ratios(results, kind.name, "save")),
                      spread([per_gib(result) for result in mine]), mib([result["memory"] for result in mine]),
                      mib([result["page_cache"] for result in mine]), str(mine[0]["files"]),
                      str(max(result["open_files"] for result in mine)), kind.syncs, kind.publishes,
                      counted(results, kind.name, "save")])
    return lines


def load_table(results: list[dict[str, Any]], kinds: list[type[peers.Peer]]) -> list[list[str]]:
    lines = [["peer", "API s", "loaded and touched s", "of fio tuned read", "CPU s/GiB", "extra memory MiB", "page cache MiB",
              "equal", "calm/made"]]
    for kind in kinds:
        mine = chosen(results, kind.name, "load")
        equal = "-" if kind.name.startswith("fio") else "yes" if not any(result["wrong"] for result in mine) else "NO"
        lines.append([kind.name, spread([result["api"] for result in mine]), spread([result["durable"] for result in mine]),
                      spread(ratios(results, kind.name, "load")), spread([per_gib(result) for result in mine]),
                      mib([result["memory"] for result in mine]), mib([result["page_cache"] for result in mine]), equal,
                      counted(results, kind.name, "load")])
    return lines


def slowdown(result: dict[str, Any]) -> tuple[float, float, float]:
    """(ratio of median steps, steps lost in the save with its stall, longest step in ms)"""
    usual = statistics.median(result["before"])
    during = result["during"] or [usual]
    lost = (result["stall"] + sum(during)) / usual - len(result["during"])
    return statistics.median(during) / usual, lost, max(during) * 1000


def train_table(results: list[dict[str, Any]], kinds: list[type[peers.Peer]]) -> list[list[str]]:
    lines = [["peer", "step before ms", "ratio of median steps", "steps lost per save", "longest step ms", "stall ms", "save s",
              "calm/made"]]
    for kind in kinds:
        mine = chosen(results, kind.name, "train")
        figures = [slowdown(result) for result in mine]
        lines.append([kind.name, spread([1000 * statistics.median(result["before"]) for result in mine], "{:.0f}"),
                      spread([figure[0] for figure in figures]), spread([figure[1] for figure in figures], "{:.1f}"),
                      f"{max(figure[2] for figure in figures):.0f}",
                      spread([result["stall"] * 1000 for result in mine], "{:.0f}"),
                      spread([result["durable"] for result in mine]), counted(results, kind.name, "train")])
    return lines


def markdown(lines: list[list[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest)) + "\n"


def machine_class() -> str:
    memory = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal")) / MIB
    lines = open("/proc/cpuinfo").read().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    virtual = ", virtual" if any("hypervisor" in line for line in lines if line.startswith("flags")) else ""
    return f"{os.cpu_count()} x {model}{virtual}, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def file_system_of(folder: pathlib.Path) -> str:
    done = subprocess.run(["findmnt", "-no", "FSTYPE,OPTIONS", "--target", str(folder)], capture_output=True, text=True)
    return " ".join(done.stdout.split()) or "unknown"


def report(results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    parts = [f"State: {facts['state']}, {facts['tensors']} tensors, {facts['bytes'] / GIB:.2f} GiB. {facts['date']}; "
             f"{facts['machine']}; {facts['file_system']}. {facts['rounds']} round(s), median (least-most) of the calm ones; "
             "`calm/made` says how many those were: 0 of N means that all were disturbed and stand here for want of better.\n"]
    known = registry.all_peers().values()
    for measure, heading, table in (("save", "Save", save_table), ("load", "Load, from a cold cache", load_table),
                                    ("train", "A one-thread training loop beside a save", train_table)):
        there = {result["peer"] for result in results if result["measure"] == measure}
        kinds = [kind for kind in known if kind.name in there]
        kinds.sort(key=lambda kind: -statistics.median(ratios(results, kind.name, measure) or [0]))
        if kinds:
            parts.append(f"### {heading}\n\n{markdown(table(results, kinds))}")
    if facts["left_out"]:
        parts.append("### Left out\n\n" + "".join(f"- {name}: {reason}\n" for name, reason in sorted(facts["left_out"].items())))
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(facts["versions"].items())) + ".\n")
    return "\n".join(parts)


def versions(kinds: list[type[peers.Peer]]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for kind in kinds:
        try:
            if kind.distribution:
                found[kind.distribution] = peers.version_of(kind)
        except peers.LeftOut:
            pass
    if shutil.which("fio"):
        found["fio"] = subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip().removeprefix("fio-")
    return found


def wanted_peers(only: str | None) -> list[type[peers.Peer]]:
    known = registry.all_peers()
    names = [name.strip() for name in only.split(",")] if only else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"run: there is no peer '{unknown[0]}'; known are: " + ", ".join(known))
    return [known[name] for name in names]


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--state", choices=["gpt2", "small"], default="gpt2")
    parser.add_argument("--bytes", type=size_of, help="shrinks the state to about so much (8MiB, 1g)")
    parser.add_argument("--only", help="names of peers, with commas")
    parser.add_argument("--measures", type=lambda text: text.split(","), default=["save", "load", "train"])
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path.cwd(), help="where checkpoints are written")
    parser.add_argument("--out", type=pathlib.Path, help="for results.json, table.md and the peers' own words")
    parser.add_argument("--prime", type=size_of, default=None, help="memory touched before each measure (three times the state)")
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="names the peers and ends")
    options = parser.parse_args(arguments)
    if wrong := [name for name in options.measures if name not in ("save", "load", "train")]:
        parser.error(f"--measures: '{wrong[0]}' is none of save, load, train")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    kinds = wanted_peers(options.only)
    if options.list:
        print("\n".join(kind.name for kind in kinds))
        return 0
    shapes = shapes_of(options.state, options.bytes)
    size = bytes_of(shapes)
    if not options.dir.is_dir():
        raise SystemExit(f"run: --dir {options.dir}: there is no such directory")
    if (free := shutil.disk_usage(options.dir).free) < 3 * size:
        raise SystemExit(f"run: {options.dir} has {free // MIB} MiB free, {3 * size // MIB} are needed: give less --bytes")
    date = datetime.datetime.now(datetime.timezone.utc)
    options.out = options.out or pathlib.Path(f"peers-{date:%Y%m%dT%H%M%SZ}")
    (options.out / "log").mkdir(parents=True, exist_ok=True)
    options.prime = 3 * size if options.prime is None else options.prime
    results, left_out = rounds_run(options, kinds)
    left_out |= json.loads(os.environ.get("TSPOOL_PEERS_LEFT_OUT", "{}"))
    facts = {"date": f"{date:%Y-%m-%d}", "machine": machine_class(), "file_system": file_system_of(options.dir),
             "state": options.state, "tensors": len(shapes), "bytes": size, "rounds": options.rounds, "left_out": left_out,
             "versions": versions(kinds)}
    (options.out / "results.json").write_text(json.dumps({"facts": facts, "results": results}, indent=1))
    text = report(results, facts)
    (options.out / "table.md").write_text(text)
    print(text)
    print(f"results in {options.out}", file=sys.stderr)
    return 0 if results and not any(result.get("wrong") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
