"""fio: what the storage gives to a program that does nothing but write. Tuned, and as it comes (with a sync).

Its own clock is taken, which holds the fsync and leaves out its start. It is no checkpoint: one file of as many bytes.
"""
from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

from peer import LeftOut, Peer, State

TUNED = ["--bs=512k", "--direct=1", "--ioengine=io_uring", "--iodepth_batch_submit=1", "--fallocate=native"]


class Fio(Peer):
    syncs_files = True
    syncs = "yes"
    publishes = "-"
    options: list[str] = []
    depths = {"write": "1", "read": "1"}

    def open(self) -> None:
        if not shutil.which("fio"):
            raise LeftOut("fio is not installed")

    def run(self, way: str, path: pathlib.Path) -> None:
        size = max(4096, self.size // 4096 * 4096)
        done = subprocess.run(["fio", "--name=peer", f"--filename={path}", f"--rw={way}", f"--size={size}", *self.options,
                               f"--iodepth={self.depths[way]}", "--end_fsync=1", "--output-format=json"],
                              capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"fio: {done.stderr.strip()}")
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        self.seconds = max(1, job[way]["runtime"]) / 1000
        self.cpu_seconds = (job["usr_cpu"] + job["sys_cpu"]) / 100 * self.seconds

    def save(self, path: pathlib.Path) -> None:
        self.run("write", path)

    def load(self, path: pathlib.Path) -> State:
        self.run("read", path)
        return {}


class FioTuned(Fio):
    name = "fio tuned"
    options = TUNED
    depths = {"write": "16", "read": "32"}


class FioDefault(Fio):
    name = "fio default"
    options = ["--bs=1m"]    # its default of 4 KiB is nobody's choice for large files


PEERS = [FioTuned, FioDefault]
