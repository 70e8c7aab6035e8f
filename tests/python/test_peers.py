"""benchmarks/peers: every figure of its table stands on these: the states, the clock that ends when it is durable, the marks.

Measured here are only the peers that the suite has anyway: torch.save, safetensors, numpy and tspool.
"""
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

PEERS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
LIGHT = ["torch.save", "safetensors save_file", "numpy tofile", "tspool Spool.save"]
MIB = 1 << 20

if str(PEERS) not in sys.path:
    sys.path.insert(0, str(PEERS))
pytest.importorskip("torch")
registry, states, runs, peers = (importlib.import_module(name) for name in ("registry", "state", "run", "peer"))


def run(*arguments):
    return subprocess.run([str(PEERS / "run"), *map(str, arguments)], capture_output=True, text=True,
                          env=os.environ | {"TSPOOL_PEERS_PYTHON": sys.executable})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    done = run("--bytes", "8MiB", "--rounds", "1", "--prime", "0", "--only", ",".join(LIGHT), "--dir", folder, "--out",
               folder / "out")
    return folder, done


def results_of(folder):
    return json.loads((folder / "out/results.json").read_text())


def test_one_command_measures_and_makes_the_table(measured):
    folder, done = measured
    assert done.returncode == 0, done.stderr
    assert results_of(folder)["facts"]["left_out"] == {}
    made = {(result["peer"], result["measure"]) for result in results_of(folder)["results"]}
    assert made == {(name, measure) for name in LIGHT for measure in ("save", "load")} | {("tspool Spool.save", "train")}
    table = (folder / "out/table.md").read_text()
    assert table in done.stdout
    for name in LIGHT:
        assert re.search(rf"^\| {re.escape(name)} \|", table, re.M), name


def test_nothing_but_the_results_stays(measured):
    folder, _ = measured
    assert os.listdir(folder) == ["out"]


def test_figures_are_whole(measured):
    folder, _ = measured
    for result in results_of(folder)["results"]:
        assert result["durable"] > 0 and 0 <= result["foreign"] < 2, result
        if result["measure"] == "save":
            assert 0 < result["stall"] <= result["api"] <= result["durable"], result
            assert 7 * MIB < result["bytes"] < 9 * MIB and result["cpu"] > 0, result
        if result["measure"] == "load":
            assert result["wrong"] == [] and result["api"] <= result["durable"], result
        if result["measure"] == "train":
            assert len(result["before"]) == 40


def test_direct_writers_leave_the_page_cache_alone(measured):
    folder, _ = measured
    cached = {result["peer"]: result["page_cache"] for result in results_of(folder)["results"] if result["measure"] == "save"}
    if None in cached.values():
        pytest.skip("fincore is not installed")
    assert cached["torch.save"] > 7 * MIB
    below = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
    assert below in ("tmpfs", "overlayfs") or cached["tspool Spool.save"] < MIB


@pytest.mark.parametrize("kind, count, size", [("gpt2", 444, 1.39), ("small", 20_000, 0.16)])
def test_states_are_the_ones_of_the_table(kind, count, size):
    shapes = states.shapes_of(kind, None)
    assert len(shapes) == count and states.bytes_of(shapes) / (1 << 30) == pytest.approx(size, abs=0.01)


@pytest.mark.parametrize("kind", ["gpt2", "small"])
def test_states_shrink_and_keep_their_mix(kind):
    shapes = states.shapes_of(kind, 8 * MIB)
    assert states.bytes_of(shapes) == pytest.approx(8 * MIB, rel=0.1)
    assert kind == "small" or len(shapes) == 444


@pytest.mark.parametrize("name", ["torch.save", "numpy tofile"])
def test_clock_ends_when_unsynced_files_are_on_disk(name, tmp_path):
    """An fsync of the file and of its folder for a peer that does none."""
    calls = traced(name, tmp_path)
    for synced in (tmp_path / "second", tmp_path):
        assert any(f"<{synced}>" in call for call in calls), f"{synced} was not synced: {calls}"


def test_peer_that_says_it_syncs_does(tmp_path):
    """tspool's are taken at their word by the clock: every file, the folder and the folder above, by the writer itself."""
    calls = "\n".join(traced("tspool Spool.save", tmp_path))
    for synced in (r"model\.safetensors", r"tspool\.digests", r"tspool\.manifest\.json", rf"{re.escape(str(tmp_path))}>"):
        assert re.search(synced, calls), f"{synced} was not synced:\n{calls}"


def traced(name, folder):
    """The fsyncs of the second save, one.py driven by hand."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    log = folder.parent / f"{folder.name}.calls"
    done = subprocess.run(["strace", "-f", "-qq", "-y", "-o", log, "-e", "trace=fsync,fdatasync", sys.executable,
                           PEERS / "one.py", name, "save", "--folder", folder, "--bytes", str(MIB)], input="\n" * 3,
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip().splitlines()[-1]}")
    return [line.split(" = ")[0] for line in log.read_text().splitlines() if "sync(" in line]


def result_of(durable, calm=True, number=0, peer="torch.save"):
    return {"peer": peer, "measure": "save", "durable": durable, "calm": calm, "round": number}


def test_marked_rounds_are_left_out_while_there_are_calm_ones():
    results = [result_of(9.0, calm=False), result_of(1.0, number=1), result_of(2.0, number=2)]
    assert [result["durable"] for result in runs.chosen(results, "torch.save", "save")] == [1.0, 2.0]
    assert [result["durable"] for result in runs.chosen(results[:1], "torch.save", "save")] == [9.0]


def test_ratios_are_to_fio_in_the_same_round():
    results = [result_of(2.0), result_of(8.0, number=1), result_of(1.0, peer="fio tuned"),
               result_of(2.0, number=1, peer="fio tuned")]
    assert runs.ratios(results, "torch.save", "save") == [0.5, 0.25]


def test_work_of_others_is_told_from_our_own():
    """A process that burns a processor without being asked is foreign; in our own family it is not."""
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = runs.Watch(idle.pid, 0, 0)
    busy = watch.busy
    subprocess.run([sys.executable, "-c", burn])
    assert watch.cpu() < 0.2 and runs.busy_seconds() - busy - watch.cpu() > 0.3
    idle.communicate(b"\n")
    own = subprocess.Popen([sys.executable, "-c", f"input()\n{burn}\nprint('burnt', flush=True)\ninput()"], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE)
    watch = runs.Watch(own.pid, 0, 0)
    own.stdin.write(b"\n")
    own.stdin.flush()
    own.stdout.readline()
    assert watch.cpu() > 0.3, "a family's time is its own"
    own.communicate(b"\n")


def test_peer_that_is_not_installed_is_listed_with_its_reason():
    class Absent(peers.Peer):
        name, modules, distribution = "absent", ("no_such_module",), "no-such-module"

    with pytest.raises(peers.LeftOut, match="no_such_module is not installed"):
        peers.version_of(Absent)


def test_peer_that_fails_is_left_out_and_the_others_go_on(tmp_path):
    """The folder cannot take its name: a file where torch.save wants to write is a folder."""
    options = runs.options_of(["--bytes", "1MiB", "--rounds", "1", "--measures", "save", "--dir", str(tmp_path), "--prime", "0",
                               "--out", str(tmp_path / "out")])
    (tmp_path / "out/log").mkdir(parents=True)
    broken = type("Broken", (registry.find("numpy tofile"),), {"name": "no such peer"})
    results, left_out = runs.rounds_run(options, [broken, registry.find("numpy tofile")])
    assert [result["peer"] for result in results] == ["numpy tofile"] and "KeyError" in left_out["no such peer (save)"]


def test_interrupted_run_keeps_what_it_has_and_leaves_no_process(tmp_path):
    running = subprocess.Popen([str(PEERS / "run"), "--bytes", "1MiB", "--rounds", "99", "--measures", "save", "--prime", "0",
                                "--only", "numpy tofile", "--dir", str(tmp_path), "--out", str(tmp_path / "out")],
                               env=os.environ | {"TSPOOL_PEERS_PYTHON": sys.executable}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    line = running.stderr.readline()
    running.send_signal(signal.SIGINT)
    line += running.stderr.read()
    assert running.wait() == 0 and "interrupted" in line, line
    assert len(results_of(tmp_path)["results"]) >= 1 and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("arguments, said", [
    (("--only", "torch.saved"), "there is no peer 'torch.saved'"),
    (("--bytes", "much"), "is no size"),
    (("--rounds", "0"), "at least 1"),
    (("--measures", "saving"), "none of save, load, train"),
    (("--dir", "/nowhere"), "no such directory"),
])
def test_wrong_use_is_named(arguments, said, tmp_path):
    done = run("--out", tmp_path / "out", *arguments)
    assert done.returncode != 0 and said in done.stderr, done.stderr


def test_every_file_of_a_peer_is_in_the_table_and_named_once():
    stems = {path.stem for path in (PEERS / "with").glob("*.py")}
    assert stems == set(registry.ORDER)
    names = [kind.name for stem in registry.ORDER for kind in importlib.import_module(f"with.{stem}").PEERS]
    assert len(names) == len(set(names)) and set(LIGHT) <= set(names)


def test_script_is_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(PEERS / "run")], check=True)


def test_programs_are_typed():
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "--ignore-missing-imports",
                           "--follow-imports=skip", "--allow-subclassing-any", "--allow-untyped-calls", "peer.py", "state.py",
                           "one.py", "run.py", "registry.py"], cwd=PEERS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
