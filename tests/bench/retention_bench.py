"""Measures what retention costs the saves beside it.

usage: retention_bench.py ENGINE_BENCH WRITER [--dir DIR] [--turns N] [--keep N] [--json FILE]

Three trainers take turns, in shuffled order, on one file system. In a turn each saves three times: after a long pause, after a
training step, and at once. What the first save made superfluous is to go while the second and the third run; only these two are
measured:

    none      nothing is deleted while the trainer has its turn
    keep      tspool's own retention
    unlinked  a thread unlinks the oldest checkpoint while the second save runs, another one while the third does: what scripts do

After its turn each gets time until only the newest are left. A ratio is one of median throughputs; the smallest and the largest
are those of single turns.
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
import threading
import time

PATIENCE_S = 120
KINDS = ("none", "keep", "unlinked")


class Trainer:
    def __init__(self, options, kind):
        self.kind, self.keep, self.root = kind, options.keep, os.path.join(options.dir, kind)
        os.makedirs(self.root)
        retention = ["--keep", str(options.keep)] if kind == "keep" else []
        command = [options.engine, "--root", self.root, "--writer", options.writer, "--state", "gpt2", *retention]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench: the trainer '{self.kind}' ended")
        return json.loads(line)

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()["durable_s"]

    def old(self):
        names = os.listdir(self.root)
        published = sorted(name for name in names if not name.startswith("."))
        return published[:-self.keep], [name for name in names if name.startswith(".")]

    def beside_unlinked(self, command):
        oldest = self.old()[0][:1] if self.kind == "unlinked" else []
        threads = [threading.Thread(target=shutil.rmtree, args=(os.path.join(self.root, name),)) for name in oldest]
        for thread in threads:
            thread.start()
        seconds = self.ask(command)
        for thread in threads:
            thread.join()
        return seconds

    def turn(self):
        self.ask("save")
        seconds = {command: self.beside_unlinked(command) for command in ("soon", "at_once")}
        self.settle()
        return seconds

    def settle(self):
        deadline = time.monotonic() + PATIENCE_S
        while self.kind == "keep" and any(self.old()):
            if time.monotonic() > deadline:
                sys.exit(f"bench: retention does not come to its end: {self.old()}")
            time.sleep(0.05)
        for name in self.old()[0]:
            shutil.rmtree(os.path.join(self.root, name))
        os.sync()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.root)


def turns_run(options):
    trainers = {kind: Trainer(options, kind) for kind in KINDS}
    measured = {kind: [] for kind in KINDS}
    for trainer in trainers.values():
        trainer.turn()  # fills the root up to what is kept; not counted
    for _ in range(options.turns):
        for kind in random.sample(KINDS, len(KINDS)):
            measured[kind].append(trainers[kind].turn())
    for trainer in trainers.values():
        trainer.close()
    return measured


def summary(measured):
    result = {}
    for command in ("soon", "at_once"):
        seconds = {kind: [turn[command] for turn in measured[kind]] for kind in KINDS}
        result[f"{command}: none, s"] = {"median": statistics.median(seconds["none"]), "min": min(seconds["none"]),
                                         "max": max(seconds["none"])}
        for kind in KINDS[1:]:
            ratios = [none / other for none, other in zip(seconds["none"], seconds[kind])]
            median = statistics.median(seconds["none"]) / statistics.median(seconds[kind])
            result[f"{command}: {kind} / none, throughput"] = {"median": median, "min": min(ratios), "max": max(ratios)}
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("writer")
    parser.add_argument("--dir", default=os.environ.get("TSPOOL_BENCH_DIR", "."), help="file system to measure")
    parser.add_argument("--turns", type=int, default=7, help="three saves each (7: twenty-one saves, and three before)")
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--json", help="write every figure there")
    options = parser.parse_args()
    options.dir = tempfile.mkdtemp(prefix="tspool-bench-", dir=options.dir)
    try:
        measured = turns_run(options)
    finally:
        shutil.rmtree(options.dir)
    for name, row in summary(measured).items():
        print(f"{name:44} {row['median']:8.3f}   {row['min']:8.3f} .. {row['max']:.3f}")
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"summary": summary(measured), "turns": measured}, out, indent=1)


main()
