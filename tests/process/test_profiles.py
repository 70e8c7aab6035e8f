"""fio-profiles/: every profile runs under the real fio and says what its head promises; every twin runs under tspool bench.

No root, no devices: a folder and a few MiB.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

PROFILES = pathlib.Path(__file__).resolve().parents[2] / "fio-profiles"
NAMES = sorted(path.stem for path in PROFILES.glob("*.fio"))
MIB = 1 << 20
SMALL = {"SIZE": "8m", "FILES": "48", "SCALE": "1/64", "RATE": "400m"}
TSPOOL = os.environ.get("TSPOOL", "tspool")


def without(*names):
    return {name: value for name, value in os.environ.items() if name not in names}


def run(folder, *arguments, **variables):
    environment = without("DIR", *SMALL) | SMALL | {"DIR": str(folder)} | variables
    return subprocess.run([str(PROFILES / "run"), *arguments], env=environment, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def fio():
    if not shutil.which("fio"):
        pytest.skip("fio is not installed")


@pytest.fixture(scope="module")
def jobs_of(tmp_path_factory):
    """The jobs of a profile by name, run once."""
    known = {}

    def measured(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            done = run(folder, name, "--output-format=json")
            assert done.returncode == 0, done.stderr
            known[name] = {job["jobname"]: job for job in json.loads(done.stdout[done.stdout.index("{"):])["jobs"]}, folder
        return known[name]
    return measured


@pytest.mark.parametrize("name", NAMES)
def test_profile_runs_under_fio_and_leaves_nothing(fio, jobs_of, name):
    jobs, folder = jobs_of(name)
    assert jobs
    for title, job in jobs.items():
        assert job["error"] == 0, title
        assert job["read"]["io_bytes"] + job["write"]["io_bytes"] > 0, f"{title} moved nothing"
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", NAMES)
def test_head_says_what_is_measured_and_how_to_run_it(name):
    for text in ((PROFILES / f"{name}.fio").read_text(), (PROFILES / f"{name}.tspool.job").read_text()):
        head = text[:text.index("[global]")]
        assert re.match(rf"# {name}\.\S+ - \S.*[.:?]", head), head
        assert f"fio-profiles/{name}.fio" in head or f"run --tspool {name}" in head, head
    assert f"[{name}]({name}.fio)" in (PROFILES / "README.md").read_text()


def test_ladder_climbs_by_depth_alone(fio, jobs_of):
    jobs, _ = jobs_of("depth-ladder")
    assert [int(job["job options"]["iodepth"]) for job in jobs.values()] == [1, 2, 4, 8, 16, 32, 64]
    assert {job["write"]["io_bytes"] for job in jobs.values()} == {8 * MIB}
    assert {job["sync"]["total_ios"] for job in jobs.values()} == {0}, "no sync but the one at the end"


def test_mix_is_the_one_of_the_real_state():
    """Block sizes of GPT-2 124M with Adam, computed here; in the profile they are percentages."""
    layer = [768] * 6 + [2304, 3072, 768 * 2304, 768 * 768, 768 * 3072, 768 * 3072]
    blocks, full = {}, 512 << 10
    for elements in 3 * (12 * layer + [50257 * 768, 1024 * 768, 768, 768]):
        count, tail = divmod(elements * 4, full)
        blocks["512k"] = blocks.get("512k", 0) + count
        if tail:
            size = "4k" if tail <= 4096 else "12k" if tail <= 12288 else "256k"
            blocks[size] = blocks.get(size, 0) + 1
    total = sum(blocks.values())
    said = dict(part.split("/") for part in re.search(r"bssplit=(\S+)", (PROFILES / "save-mix.fio").read_text())[1].split(":"))
    assert {size: 100 * count / total for size, count in blocks.items()} == pytest.approx(
        {size: int(percent) for size, percent in said.items()}, abs=0.7)
    assert sum(map(int, said.values())) == 100


def test_syncs_are_where_the_profile_puts_them(fio, jobs_of):
    jobs, _ = jobs_of("sync-cost")
    assert jobs["never"]["sync"]["total_ios"] == 0
    assert jobs["each-block"]["sync"]["total_ios"] >= 15, "one after each of the 16 blocks but the last"


def test_each_small_file_is_written_and_synced(fio, tmp_path):
    if not shutil.which("strace"):
        done = run(tmp_path, "many-small-files", "--output-format=json")
        syncs = None
    else:
        done = subprocess.run(["strace", "-f", "-qq", "-o", str(tmp_path / "calls"), "-e", "trace=fsync,fdatasync",
                               str(PROFILES / "run"), "many-small-files", "--output-format=json"],
                              env=os.environ | SMALL | {"DIR": str(tmp_path)}, capture_output=True, text=True)
        syncs = (tmp_path / "calls").read_text().count("sync(")
    jobs = {job["jobname"]: job for job in json.loads(done.stdout[done.stdout.index("{"):])["jobs"]}
    assert jobs["create"]["write"]["total_ios"] == jobs["read"]["read"]["total_ios"] == 48
    assert syncs is None or syncs >= 48


def test_reads_are_throttled_beside_the_save(fio, jobs_of):
    jobs, _ = jobs_of("save-beside-reads")
    for title in ("reads-alone", "reads-beside"):
        assert jobs[title]["read"]["bw_bytes"] <= 1.1 * 400 * MIB, title


def test_fio_refuses_a_profile_without_its_variables(fio, tmp_path):
    for name in NAMES:
        done = subprocess.run(["fio", str(PROFILES / f"{name}.fio")], env=without("DIR", *SMALL), cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode != 0 and "${" in done.stderr + done.stdout, name
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("variables, status, said", [
    ({"DIR": "/dev/null"}, 2, "not a directory"),
    ({"SIZE": "much"}, 2, "write it as"),
    ({"SIZE": "900000g"}, 1, "MiB free"),
    ({"FIO": "/nowhere/fio"}, 1, "apt-get install fio"),
])
def test_run_says_what_is_wrong(tmp_path, variables, status, said):
    done = run(tmp_path, "limits", **variables)
    assert done.returncode == status and said in done.stderr, done
    assert os.listdir(tmp_path) == []


def test_run_without_a_folder_cleans_up_its_own(fio, tmp_path):
    done = run(tmp_path, "limits", DIR="")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_unknown_profile_is_named(tmp_path):
    done = run(tmp_path, "limit")
    assert done.returncode == 2 and "'limit'" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_twin_runs_under_tspool_bench(tmp_path, name):
    if not shutil.which(TSPOOL) or subprocess.run([TSPOOL, "bench", "--help"], capture_output=True).returncode:
        pytest.skip("this tspool has no bench command")
    done = run(tmp_path, "--tspool", name, "--output-format=json")
    assert done.returncode == 0, done.stderr
    profile = re.findall(r"^\[(.*)\]", (PROFILES / f"{name}.tspool.job").read_text(), re.M)
    assert {job["jobname"] for job in json.loads(done.stdout[done.stdout.index("{"):])["jobs"]} == set(profile) - {"global"}
    assert os.listdir(tmp_path) == []


def test_script_is_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(PROFILES / "run")], check=True)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", "--noconftest", __file__, *sys.argv[1:]]))
