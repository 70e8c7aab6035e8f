"""tools/nvme/ and tools/tspool-plot: small sweeps of folders and loop devices, what is refused, and the pictures.

Loop devices need root; everything else runs for anybody.
"""
import csv
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"
MIB = 1 << 20
TSPOOL = os.environ.get("TSPOOL", "tspool")
QUICK = ("--size", "8m", "--depth", "4")


def has_bench():
    return bool(shutil.which(TSPOOL)) and subprocess.run([TSPOOL, "bench", "--help"], capture_output=True).returncode == 0


@pytest.fixture(autouse=True)
def programs():
    for program in ("jq", "fio", "lsblk"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def run(tool, *arguments, cwd=None, **variables):
    return subprocess.run([str(TOOLS / tool), *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=120,
                          env=os.environ | {"TSPOOL": TSPOOL} | variables)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def loop(tmp_path):
    """A device of our own, of 32 MiB, with a text at its start."""
    if os.geteuid() != 0:
        pytest.skip("loop devices are made by root only")
    image = tmp_path / "image"
    image.write_bytes(b"precious" + bytes(32 * MIB - 8))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "-d", device], check=True)


def start_of(device):
    with open(device, "rb") as file:
        return file.read(8)


# nvme-sweep ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two folders with everything in it, made once."""
    folder = tmp_path_factory.mktemp("sweep")
    for name in ("one", "two"):
        (folder / name).mkdir()
    checkpoint = folder / "small.safetensors"
    header = json.dumps({"weight": {"dtype": "F32", "shape": [MIB], "data_offsets": [0, 4 * MIB]}}).encode()
    checkpoint.write_bytes(struct.pack("<Q", len(header)) + header + os.urandom(4 * MIB))
    life = ("--life", checkpoint) if shutil.which(TSPOOL) else ()
    done = run("nvme/nvme-sweep", *QUICK, "--bs", "64k,512k", "--jobs", "1,2", "--cliff", "16m", "--together", *life, "--out",
               "results", "one", "two/", cwd=folder)
    return folder, done


def test_sweep_measures_every_cell_once(swept):
    folder, done = swept
    assert done.returncode == 0, done.stderr
    rows = rows_of(folder / "results/sweep.csv")
    engines = ["fio", "tspool"] if has_bench() else ["fio"]
    wanted = {(target, engine, way, str(block), depth, jobs) for target in ("one", "two") for engine in engines
              for way in ("write", "read") for block in (65536, 524288) for depth in ("4",) for jobs in ("1", "2")}
    assert {tuple(row[name] for name in ("target", "engine", "rw", "bs", "iodepth", "numjobs")) for row in rows} == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        assert int(row["bytes"]) == 8 * MIB and float(row["bw_bytes"]) > 0 and float(row["seconds"]) > 0, row
        assert 0 < float(row["lat_p50_us"]) <= float(row["lat_p99_us"]) <= float(row["lat_p999_us"]), row
        assert 0 <= float(row["foreign"]) <= 1.5, row


def test_sweep_removes_its_files(swept):
    folder, _ = swept
    assert os.listdir(folder / "one") == os.listdir(folder / "two") == []


def test_sweep_says_what_it_lacks(swept):
    folder, done = swept
    meta = json.loads((folder / "results/meta.json").read_text())
    assert meta["targets"] == ["one", "two"] and re.match(r"\d+\.", meta["versions"]["fio"])
    assert ("tspool bench" in " ".join(meta["missing"])) == (not has_bench()) == ("missing: tspool bench" in done.stderr)


def test_cliff_has_a_figure_for_every_second(swept):
    folder, _ = swept
    rows = rows_of(folder / "results/cliff.csv")
    assert {row["target"] for row in rows} == {"one", "two"}
    assert all(float(row["bw_bytes"]) > 0 for row in rows)


def test_together_sets_all_at_once_against_each_alone(swept):
    folder, _ = swept
    rows = [(row["rw"], row["mode"].split("-")[0], row["target"]) for row in rows_of(folder / "results/together.csv")]
    assert sorted(rows) == sorted((way, mode, target) for way in ("write", "read") for mode in ("alone", "together")
                                  for target in ("one", "two"))


def test_life_has_the_steps_in_their_order(swept):
    if not shutil.which(TSPOOL):
        pytest.skip("no tspool to save with")
    folder, _ = swept
    for target in ("one", "two"):
        events = [row for row in rows_of(folder / "results/life.csv") if row["target"] == target]
        assert [event["event"] for event in events] == ["planned", "staged", "written", "synced", "durable", "published"]
        assert [float(event["seconds"]) for event in events] == sorted(float(event["seconds"]) for event in events)


def test_life_of_a_state_in_memory(tmp_path):
    if not has_bench():
        pytest.skip("this tspool has no bench command")
    (tmp_path / "here").mkdir()
    done = run("nvme/nvme-sweep", *QUICK, "--rw", "write", "--bs", "512k", "--engines", "fio", "--life", "4 x 1m", "--out", "results",
               "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = rows_of(tmp_path / "results/life.csv")
    assert [event["event"] for event in events] == ["planned", "staged", "written", "synced", "durable", "published"]
    assert float(events[-1]["seconds"]) > 0 and float(events[-1]["file_bytes"]) >= 4 * MIB
    assert os.listdir(tmp_path / "here") == []


def test_interrupted_sweep_leaves_nothing(tmp_path):
    (tmp_path / "here").mkdir()
    sweep = subprocess.Popen([str(TOOLS / "nvme/nvme-sweep"), "--size", "64m", "--out", "results", "here"], cwd=tmp_path,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in sweep.stderr:
        if "MB/s" in line:
            break
    os.killpg(sweep.pid, 2)
    sweep.stderr.read()
    assert sweep.wait() == 130
    assert os.listdir(tmp_path / "here") == []


def test_device_is_swept_with_consent_only(loop, tmp_path):
    refused = run("nvme/nvme-sweep", *QUICK, loop, cwd=tmp_path)
    assert refused.returncode == 2 and f"--destroy-data-on={loop}" in refused.stderr
    other = run("nvme/nvme-sweep", *QUICK, "--destroy-data-on=/dev/other", loop, cwd=tmp_path)
    assert other.returncode == 2 and start_of(loop) == b"precious"
    agreed = run("nvme/nvme-sweep", *QUICK, "--bs", "512k", "--engines", "fio", f"--destroy-data-on={loop}", "--out",
                 "results", loop, cwd=tmp_path)
    assert agreed.returncode == 0, agreed.stderr
    assert {row["rw"] for row in rows_of(tmp_path / "results/sweep.csv")} == {"write", "read"}
    assert start_of(loop) != b"precious"


@pytest.mark.parametrize("arguments, status, said", [
    ((), 2, "name a directory"),
    (("--rw", "append", "."), 2, "'append' is none of"),
    (("--bs", "much", "."), 2, "'much' is no size"),
    (("--depth", "0", "."), 2, "no number above 0"),
    (("--speed", "1", "."), 2, "there is no option '--speed'"),
    (("/dev/null",), 2, "neither a directory nor a block device"),
    (("--size", "900000g", "."), 1, "MiB free"),
    (("--engines", "tspool", "."), 1, "there is no 'tspool bench'"),
    (("--life", "/nowhere", "."), 2, "/nowhere: there is no such file"),
])
def test_sweep_names_what_is_wrong(tmp_path, arguments, status, said):
    variables = {"TSPOOL": "/nowhere/tspool"} if "--engines" in arguments else {}
    done = run("nvme/nvme-sweep", *arguments, cwd=tmp_path, **variables)
    assert done.returncode == status and said in done.stderr, done
    assert os.listdir(tmp_path) == []


def test_results_are_never_mixed(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/older.csv").touch()
    done = run("nvme/nvme-sweep", *QUICK, "--out", "results", ".", cwd=tmp_path)
    assert done.returncode == 1 and "not empty" in done.stderr


# nvme-precondition --------------------------------------------------------------------------------------------------------

def test_precondition_writes_the_whole_device_and_looks_for_a_steady_state(loop, tmp_path):
    done = run("nvme/nvme-precondition", f"--destroy-data-on={loop}", "--passes", "1", "--rounds", "9", "--within", "100",
               loop, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    meta = json.loads((tmp_path / "results/meta.json").read_text())
    assert meta["steady_state"] == "reached" and len(meta["rounds_bw_bytes"]) == 5, "five rounds are the fewest that can agree"
    targets = [row["target"] for row in rows_of(tmp_path / "results/precondition.csv")]
    assert targets[0] == "pass-1" and targets[-1] == "round-5"
    with open(loop, "rb") as file:
        assert all(any(file.read(MIB)) for _ in range(32)), "a piece was left as it was"


def test_precondition_wants_its_consent(loop, tmp_path):
    done = run("nvme/nvme-precondition", loop, cwd=tmp_path)
    assert done.returncode == 2 and f"--destroy-data-on={loop}" in done.stderr
    assert start_of(loop) == b"precious" and os.listdir(tmp_path) == ["image"]


def test_device_in_use_is_refused_whatever_the_consent(loop, tmp_path):
    """Swap, mounts and holders are looked up; a lock is what a test can put there without harm."""
    with open(loop) as held:
        import fcntl
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run("nvme/nvme-precondition", f"--destroy-data-on={loop}", loop, cwd=tmp_path)
    assert done.returncode == 1 and "locked by another program" in done.stderr and start_of(loop) == b"precious"


def test_mounted_device_is_refused_whatever_the_consent(tmp_path):
    mounts = [line.split()[0] for line in open("/proc/mounts") if line.startswith("/dev/")]
    if not mounts or not os.access(mounts[0], os.R_OK):
        pytest.skip("no mounted block device that this user could name")
    for tool in ("nvme/nvme-precondition", "nvme/nvme-sweep"):
        done = run(tool, f"--destroy-data-on={mounts[0]}", mounts[0], cwd=tmp_path)
        assert done.returncode == 1 and "mounted on" in done.stderr, done


def test_precondition_refuses_folders(tmp_path):
    done = run("nvme/nvme-precondition", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "no block device" in done.stderr


# nvme-report --------------------------------------------------------------------------------------------------------------

def test_report_describes_the_drive_below_a_device(loop, tmp_path):
    done = run("nvme/nvme-report", "--out", "results", loop, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (disk,) = json.loads((tmp_path / "results/report.json").read_text())["disks"]
    assert disk["path"] == loop and disk["bytes"] == 32 * MIB and disk["logical_block"] == 512
    (row,) = rows_of(tmp_path / "results/report.csv")
    assert row["name"] == os.path.basename(loop) and row["bytes"] == str(32 * MIB)


def test_report_without_an_nvme_drive_says_so(tmp_path):
    if any(name.startswith("nvme") for name in os.listdir("/sys/block")):
        pytest.skip("this machine has one")
    done = run("nvme/nvme-report", "--print", cwd=tmp_path)
    assert done.returncode == 0 and "an NVMe drive" in " ".join(json.loads(done.stdout)["missing"])
    assert os.listdir(tmp_path) == []


ANSWERS = {
    "id-ctrl": {"mdts": 7, "vwc": 1, "subnqn": "nqn.test", "psds": [{}, {}]},
    "id-ns": {"flbas": 0, "lbafs": [{"ms": 0, "ds": 9, "rp": 2}, {"ms": 0, "ds": 12, "rp": 0}]},
    "smart-log": {"temperature": 345, "percent_used": 83, "critical_warning": 0, "avail_spare": 100, "data_units_written": 2000,
                  "warning_temp_time": 3, "critical_comp_time": 1},
}


@pytest.fixture
def drive(tmp_path):
    """lsblk and nvme as they are where there is a drive: what they would say of one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    cases = "\n".join(f"{name}) echo '{json.dumps(answer)}' ;;" for name, answer in ANSWERS.items())
    for name, text in {"lsblk": 'case "$*" in *NAME,TYPE*) echo "nvme0n1 disk" ;; *) echo nvme0n1 ;; esac',
                       "nvme": f'case $1 in\n{cases}\nget-feature) echo "Current value:0x00000001" ;;\nesac'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_report_takes_in_what_an_nvme_drive_says(drive, tmp_path):
    done = run("nvme/nvme-report", "--out", "results", cwd=tmp_path, **drive)
    assert done.returncode == 0, done.stderr
    (disk,) = json.loads((tmp_path / "results/report.json").read_text())["disks"]
    said = disk["drive"]
    assert disk["name"] == "nvme0n1" and said["vwc"] is True and said["power_state"] == 1 and said["power_states"] == 2
    assert said["temperature_c"] == 72 and said["percent_used"] == 83 and said["throttled_minutes"] == 4
    assert said["bytes_written"] == 2000 * 512000
    assert [(form["bytes"], form["in_use"]) for form in said["lba_formats"]] == [(512, True), (4096, False)]
    for concern in ("another LBA format is faster", "72 C", "worn: 83 %"):
        assert concern in " ".join(disk["advice"])
    assert sorted(os.listdir(tmp_path / "results/raw")) == ["nvme0-id-ctrl.json", "nvme0-smart-log.json", "nvme0n1-id-ns.json"]


def test_report_without_nvme_cli_names_the_package(drive, tmp_path):
    """A PATH of only what the script needs otherwise."""
    needed = ("bash", "jq", "readlink", "dirname", "basename", "sed", "awk", "grep", "sort", "find", "wc", "nproc", "date",
              "uname", "id", "findmnt", "cat", "ls", "df", "tail")
    for name in needed:
        os.symlink(shutil.which(name), tmp_path / "programs" / name)
    (tmp_path / "programs/nvme").unlink()
    done = run("nvme/nvme-report", "--print", cwd=tmp_path, PATH=str(tmp_path / "programs"))
    assert done.returncode == 0, done.stderr
    assert "apt-get install nvme-cli" in " ".join(json.loads(done.stdout)["missing"])


# tspool-plot --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def matplotlib():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def plotted(swept, matplotlib, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures")
    done = plot(swept[0] / "results", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def plot(*arguments):
    return subprocess.run([sys.executable, str(TOOLS / "tspool-plot"), *map(str, arguments)], capture_output=True, text=True)


def picture_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_plot_draws_all_that_was_measured(plotted):
    wanted = {"throughput-by-block-size", "throughput-by-depth", "latency", "over-time", "together"}
    wanted |= {"life"} if shutil.which(TSPOOL) else set()
    assert {path.stem for path in plotted.glob("*.png")} == wanted
    assert all(min(picture_size(path)) >= 300 for path in plotted.glob("*.png"))


def test_report_page_needs_no_other_file(plotted):
    text = (plotted / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') == len(list(plotted.glob("*.png")))
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "give more --size" in text, "cells of milliseconds are no figures, and the page must say so"


def test_busy_rounds_are_left_out_while_there_are_calm_ones(matplotlib):
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_loader
    sys.dont_write_bytecode = True
    loader = SourceFileLoader("tspool_plot", str(TOOLS / "tspool-plot"))
    module = sys.modules["tspool_plot"] = module_from_spec(spec_from_loader("tspool_plot", loader))
    loader.exec_module(module)
    rounds = [{"bw_bytes": value, "foreign": foreign} for value, foreign in (("10", "0.01"), ("12", "0.02"), ("90", "0.6"))]
    assert module.figure_of(rounds, "bw_bytes") == 11
    assert module.figure_of(rounds[2:], "bw_bytes") == 90


EVENTS = "".join(json.dumps({"event": event, "name": "x", "seconds": at / 10}) + "\n"
                 for at, event in enumerate(("planned", "staged", "written", "durable", "published")))
BENCH = json.dumps({"jobs": [{"jobname": "usual", "tspool": {"saves": [
    {"bytes": MIB, "planned": 0.1, "staged": 0.2, "written": 0.3, "synced": 0.4, "durable": 0.5, "published": 0.5}]}}]})


@pytest.mark.parametrize("text", [EVENTS, BENCH], ids=["copy", "bench"])
def test_life_is_drawn_from_what_a_command_printed(matplotlib, tmp_path, text):
    (tmp_path / "printed").write_text(text)
    done = plot(tmp_path / "printed", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["life.png", "report.html"] and min(picture_size(tmp_path / "out/life.png")) >= 250


@pytest.mark.parametrize("name, text, said", [
    ("sweep.csv", "target,engine\nhere,fio,more\n", "sweep.csv:2"),
    ("meta.json", "{", "meta.json"),
    ("other.txt", "", "neither sweep.csv nor"),
])
def test_plot_names_what_it_cannot_read(matplotlib, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    if name == "meta.json":
        (tmp_path / "cliff.csv").write_text("target,second,bw_bytes\nhere,1,1000000\n")
    done = plot(tmp_path)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["nvme-report", "nvme-precondition", "nvme-sweep"])
def test_script_is_clean_and_explains_itself(name):
    done = run(f"nvme/{name}", "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name}")
    assert "set -u" in (TOOLS / "nvme" / name).read_text()
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "-x", str(TOOLS / "nvme" / name)], check=True)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", "--noconftest", __file__, *sys.argv[1:]]))
