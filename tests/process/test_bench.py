"""tspool bench and tune as people use them: real runs of a few MiB, by their reports, what they leave behind, and fio's own.

fio's JSON is the reference for ours: a script that reads one must be able to read the other.
"""
import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from filesystems import needs, run

TSPOOL, WRITER = os.environ["TSPOOL"], os.environ["TSPOOL_WRITER"]
TIMEOUT = 60

signal.signal(signal.SIGINT, signal.default_int_handler)


def tspool(*arguments, timeout=TIMEOUT, **options):
    return subprocess.run([TSPOOL, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **options)


def bench(directory, *arguments, **options):
    return tspool("bench", f"--directory={directory}", f"--writer={WRITER}", *arguments, **options)


def report(directory, *arguments, **options):
    done = bench(directory, "--json", *arguments, **options)
    assert done.returncode == 0, (done.args, done.stderr)
    return json.loads(done.stdout)


def job(directory, *arguments, **options):
    jobs = report(directory, *arguments, **options)["jobs"]
    assert len(jobs) == 1
    return jobs[0]


def fio(*arguments):
    needs("fio")
    done = subprocess.run(["fio", *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def empty(plain_root):
    """A directory that must be as empty afterwards as it was before."""
    yield plain_root
    assert os.listdir(plain_root) == []


# fio's JSON ------------------------------------------------------------------------------------------------------------

VALUES_OF_THEIR_OWN = {"job options", "global options", "bins"}   # their keys are data


def tree(value):
    """What kind of value stands under which keys."""
    if isinstance(value, dict):
        return {key: "data" if key in VALUES_OF_THEIR_OWN else tree(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [tree(inner) for inner in value[:1]]
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def lacking(fios, ours, path=""):
    """Paths of fio's that we do not have, or have as something else."""
    if isinstance(fios, dict):
        if not isinstance(ours, dict):
            return [path]
        return [found for key, inner in fios.items()
                for found in (lacking(inner, ours[key], f"{path}.{key}") if key in ours else [f"{path}.{key}"])]
    if isinstance(fios, list):
        if not isinstance(ours, list):
            return [path]
        return lacking(fios[0], ours[0], f"{path}[]") if fios and ours else []
    return [] if fios == ours else [f"{path}: {fios} in fio's, {ours} in ours"]


@pytest.fixture
def disk(make_filesystem):
    """Not memory: fio reports the load of disks only where there is one."""
    root = make_filesystem("ext4").root
    yield root
    assert os.listdir(root) == []


@pytest.mark.parametrize("output", ["json", "json+"])
@pytest.mark.parametrize("rw", ["write", "read"])
def test_every_key_of_fios_json_is_in_ours_with_the_same_kind_of_value(disk, rw, output):
    options = ["--name=same", f"--rw={rw}", "--bs=64k", "--size=2m", "--iodepth=4", "--direct=1", "--fsync=8",
               f"--output-format={output}"]
    path = f"{disk}/fio"
    theirs = json.loads(fio(*options, f"--filename={path}", "--ioengine=io_uring"))
    ours_run = bench(disk, *options)
    os.unlink(path)
    assert ours_run.returncode == 0, ours_run.stderr
    ours = json.loads(ours_run.stdout)
    assert lacking(tree(theirs), tree(ours)) == []
    mine, its = ours["jobs"][0], theirs["jobs"][0]
    for key in ("io_bytes", "io_kbytes", "total_ios", "short_ios"):
        assert mine[rw][key] == its[rw][key], key
    assert mine[rw]["clat_ns"]["N"] == its[rw]["clat_ns"]["N"]
    assert set(mine) - set(its) == {"tspool"}


def test_the_numbers_fit_each_other(empty):
    done = job(empty, "--rw=write", "--bs=64k", "--size=4m", "--iodepth=8", "--fsync=16")
    write = done["write"]
    assert write["io_bytes"] == 4 << 20 and write["total_ios"] == 64
    assert write["bw"] == write["bw_bytes"] // 1024
    assert write["runtime"] >= 1
    assert abs(write["lat_ns"]["mean"] - write["slat_ns"]["mean"] - write["clat_ns"]["mean"]) < 1
    percentiles = list(write["clat_ns"]["percentile"].values())
    assert percentiles == sorted(percentiles) and len(percentiles) == 17
    assert done["sync"]["total_ios"] == 4
    for levels in ("iodepth_level", "iodepth_submit", "iodepth_complete"):
        assert abs(sum(done[levels].values()) - 100) < 0.1, levels
    assert abs(sum(sum(done[unit].values()) for unit in ("latency_ns", "latency_us", "latency_ms")) - 100) < 0.1


def test_batches_are_counted_as_they_were_submitted(empty):
    one = job(empty, "--rw=write", "--bs=4k", "--size=1m", "--iodepth=64")
    many = job(empty, "--rw=write", "--bs=4k", "--size=1m", "--iodepth=64", "--iodepth_batch=16")
    if one["tspool"]["engine"]["backend"] != "uring":
        pytest.skip("no io_uring here")
    assert one["iodepth_submit"]["4"] == 100
    assert many["iodepth_submit"]["16"] > 0   # the first 64 at least; later ones as slots become free
    assert many["iodepth_submit"]["32"] == many["iodepth_submit"]["64"] == 0
    assert many["write"]["io_bytes"] == 1 << 20


def test_terse_has_fios_fields(disk):
    options = ["--name=same", "--rw=write", "--bs=64k", "--size=1m", "--output-format=terse"]
    path = f"{disk}/fio"
    theirs = fio(*options, "--terse-version=3", f"--filename={path}").strip().split(";")
    os.unlink(path)
    ours = bench(disk, *options).stdout.strip().split(";")
    assert ours[2] == "same" and ours[0] == "3"
    without_disks = len(theirs) - 9 * (len(theirs) - len(ours) > 0)   # fio appends the disks that it knows
    assert len(ours) == without_disks
    assert ours[46] == theirs[46] == "1024"   # KiB written


JOBFILE = """; runs under both
[global]
bs=64k
size=1m
direct=0

[first]
rw=write
end_fsync=1

[second]
stonewall
rw=read
"""


def test_a_job_file_of_fios_runs_unchanged(empty, tmp_path):
    path = tmp_path / "both.fio"
    path.write_text(JOBFILE)
    theirs = json.loads(fio(path, f"--directory={empty}", "--output-format=json"))
    for name in os.listdir(empty):
        os.unlink(f"{empty}/{name}")
    ours = report(empty, path)
    for key in ("jobname", "groupid", "error"):
        assert [done[key] for done in ours["jobs"]] == [done[key] for done in theirs["jobs"]]
    assert ours["global options"]["bs"] == theirs["global options"]["bs"] == "64k"
    assert ours["jobs"][0]["job options"]["rw"] == theirs["jobs"][0]["job options"]["rw"] == "write"


# Saves and loads ---------------------------------------------------------------------------------------------------------

def test_a_save_tells_its_stages_in_their_order(empty):
    done = job(empty, "--rw=save", "--shape=16x256k", "--loops=3")
    saves = done["tspool"]["saves"]
    assert len(saves) == 3 and done["write"]["clat_ns"]["N"] == 3
    for number, save in enumerate(saves):
        assert 0 < save["planned"] <= save["staged"] <= save["written"] <= save["synced"] <= save["durable"] <= save["published"]
        assert save["attempts"] == 1 and save["plan_reused"] == (number > 0)
        assert save["bytes"] >= 4 << 20
    assert done["write"]["io_bytes"] == sum(save["bytes"] for save in saves)
    assert done["tspool"]["classes"] == {"tensors": {"tensors": 16, "bytes": 4 << 20}}


def test_ranks_make_one_checkpoint(plain_root):
    done = report(plain_root, "--rw=save", "--shape=llama3-8b", "--scale=1/20000", "--tp=2", "--dp=2", "--numjobs=4",
                  "--group_reporting", "--keep=1")["jobs"]
    assert len(done) == 1 and done[0]["tspool"]["ranks"] == 4
    work, = os.listdir(plain_root)
    checkpoint = f"{plain_root}/{work}/bench-00000001"
    verified = tspool("verify", checkpoint)
    assert verified.returncode == 0, verified.stderr
    assert len([name for name in os.listdir(checkpoint) if name.endswith(".safetensors")]) == 4
    names = {json.loads(line).get("name") for line in tspool("ls", "--json", checkpoint).stdout.splitlines()}
    assert {"model.layers.0.mlp.gate_proj.weight", "optimizer.exp_avg_sq.lm_head.weight", "model.norm.weight"} <= names


def test_what_is_saved_does_not_compress(plain_root):
    report(plain_root, "--rw=save", "--shape=4x256k", "--keep=1")
    work, = os.listdir(plain_root)
    with open(f"{plain_root}/{work}/bench-00000001/model.safetensors", "rb") as file:
        data = file.read()
    import zlib
    assert len(zlib.compress(data, 1)) > 0.98 * len(data)


def test_a_load_reads_what_was_saved(empty):
    done = job(empty, "--rw=load", "--shape=16x256k", "--loops=2")
    assert done["read"]["io_bytes"] == 8 << 20 and done["read"]["clat_ns"]["N"] == 2
    assert done["write"]["io_bytes"] == 0
    assert len(done["tspool"]["loads"]) == 2


def test_ranks_load_their_own_parts(empty):
    done = report(empty, "--rw=load", "--shape=gpt2-124m", "--scale=1/100", "--dp=3", "--numjobs=3")["jobs"]
    assert sum(rank["read"]["io_bytes"] for rank in done) == sum(rank["tspool"]["state_bytes"] for rank in done) > 0


def test_a_checkpoint_that_is_there_is_loaded_and_left(plain_root):
    report(plain_root, "--rw=save", "--shape=4x256k", "--keep=1")
    work, = os.listdir(plain_root)
    checkpoint = f"{plain_root}/{work}/bench-00000001"
    before = sorted(os.listdir(checkpoint))
    done = job(plain_root, "--rw=load", f"--filename={checkpoint}")
    assert done["read"]["io_bytes"] == 1 << 20
    assert sorted(os.listdir(checkpoint)) == before and os.listdir(plain_root) == [work]


def test_a_damaged_checkpoint_is_not_loaded(plain_root):
    report(plain_root, "--rw=save", "--shape=4x256k", "--keep=1")
    work, = os.listdir(plain_root)
    checkpoint = f"{plain_root}/{work}/bench-00000001"
    with open(f"{checkpoint}/model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    done = bench(plain_root, "--rw=load", f"--filename={checkpoint}")
    assert done.returncode == 1 and "model.safetensors" in done.stderr


def test_a_shape_is_taken_from_a_file(plain_root, tmp_path):
    report(plain_root, "--rw=save", "--shape=3x64k", "--keep=1")
    work, = os.listdir(plain_root)
    shutil.move(f"{plain_root}/{work}/bench-00000001/model.safetensors", tmp_path / "model.safetensors")
    shutil.rmtree(f"{plain_root}/{work}")
    done = job(plain_root, "--rw=save", f"--shape={tmp_path}/model.safetensors")
    assert done["tspool"]["tensors"] == 3 and done["tspool"]["state_bytes"] == 3 << 16
    assert os.listdir(plain_root) == []


def test_training_beside_saves_is_measured(empty):
    training = job(empty, "--rw=save", "--shape=8x256k", "--loops=2", "--interval=10", "--train_ms=2")["tspool"]["training"]
    assert training["steps"] - training["steps_during_saves"] == 20
    assert training["steps_during_saves"] >= 2
    assert training["step_ms"] > 0.5 and 0 < training["goodput"] <= 1.5
    assert training["worst_step_ms"] >= training["step_during_ms"]


def test_runtime_ends_it_and_rate_slows_it(empty):
    started = time.monotonic()
    done = job(empty, "--rw=write", "--bs=64k", "--size=1g", "--runtime=500ms", "--rate=8m")
    assert 0.4 < time.monotonic() - started < 20
    assert (1 << 20) < done["write"]["io_bytes"] < (8 << 20)
    done = job(empty, "--rw=save", "--shape=1x64k", "--time_based", "--runtime=300ms")
    assert done["write"]["clat_ns"]["N"] > 1


# Safety --------------------------------------------------------------------------------------------------------------------

def refused(done, status, *words):
    assert done.returncode == status, (done.stdout, done.stderr)
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_wrong_option_is_named_with_the_nearest(empty):
    refused(bench(empty, "--iodepht=3", "--shape=1x4k"), 2, "'iodepht'", "'iodepth'")
    refused(bench(empty, "--shape=llama3-8b0"), 1, "'llama3-8b'")


def test_a_file_that_is_there_is_never_written(plain_root):
    path = f"{plain_root}/precious"
    with open(path, "w") as file:
        file.write("do not touch")
    refused(bench(plain_root, "--rw=write", "--size=1m", f"--filename={path}"), 1, "precious", "there already")
    with open(path) as file:
        assert file.read() == "do not touch"
    assert os.listdir(plain_root) == ["precious"]


def test_a_file_of_its_own_is_removed(empty):
    done = job(empty, "--rw=write", "--size=1m", "--bs=4k", f"--filename={empty}/mine")
    assert done["write"]["io_bytes"] == 1 << 20


def test_what_does_not_fit_is_refused_before_it_begins(make_filesystem):
    root = make_filesystem("ext4", mib=64).root
    refused(bench(root, "--rw=write", "--size=1g"), 1, "are needed", "are free")
    refused(bench(root, "--rw=save", "--shape=100x10m"), 1, "are needed")
    assert os.listdir(root) == []


@contextlib.contextmanager
def loop_device(folder, mib=16):
    image = f"{folder}/device.img"
    with open(image, "wb") as file:
        file.truncate(mib << 20)
    device = run("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        os.unlink(image)


def test_a_device_is_written_only_with_its_name_spelled_out(folder):
    needs("losetup")
    try:
        with loop_device(folder) as device:
            write = ["--rw=write", "--size=1m", f"--filename={device}"]
            refused(bench(folder, *write), 1, f"destroy_data_on={device}")
            refused(bench(folder, *write, "--destroy_data_on=1"), 1, f"destroy_data_on={device}")
            with open(device, "rb") as file:
                assert file.read(1 << 20) == bytes(1 << 20)
            done = bench(folder, *write, f"--destroy_data_on={device}")
            assert done.returncode == 0, done.stderr
            with open(device, "rb") as file:
                assert file.read(1 << 20) != bytes(1 << 20)
            assert os.path.exists(device)
    except OSError as error:
        pytest.skip(f"no loop device: {error}")


def test_a_mounted_device_needs_more_than_its_name(make_filesystem):
    made = make_filesystem("ext4")
    device = run("findmnt", "--noheadings", "--output", "SOURCE", made.path)
    write = ["--rw=write", "--size=1m", f"--filename={device}", f"--destroy_data_on={device}"]
    refused(bench(made.root, *write), 1, "mounted or in use", f"mounted:{device}")
    made.again()   # it is whole


def await_work(directory, process):
    """Until something of the run stands in the directory."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if os.listdir(f"{directory}/{name}"):
                    return
    raise AssertionError("nothing was begun")


def endless(directory, *arguments):
    command = [TSPOOL, "bench", f"--directory={directory}", f"--writer={WRITER}", "--loops=1000000", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("arguments", [["--shape=64x256k"], ["--shape=16x256k", "--numjobs=2"], ["--rw=write", "--size=8m"],
                                       ["--rw=load", "--shape=16x256k"],
                                       ["--compare=a,b", "--rounds=900", "--shape=16x256k", "--name=a", "--name=b"]])
def test_ctrl_c_leaves_nothing(empty, arguments):
    process = endless(empty, *arguments)
    await_work(empty, process)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "interrupted" in errors and output == ""


def test_ctrl_c_ends_tune_and_leaves_nothing(empty, tmp_path):
    command = [TSPOOL, "tune", empty, "--size=16m", "--rounds=900", "--writer", WRITER, "--output",
               str(tmp_path / "settings.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    await_work(empty, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "interrupted" in errors
    assert os.listdir(tmp_path) == []


def test_a_rank_that_is_killed_ends_all_and_leaves_nothing(empty):
    process = endless(empty, "--shape=16x256k", "--numjobs=2")
    await_work(empty, process)
    children = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and "killed by signal 9" in errors


# What is said --------------------------------------------------------------------------------------------------------------

def test_memory_is_not_taken_for_a_device(empty):
    done = job(empty, "--shape=16x256k")
    assert "no_device" in {doubt["kind"] for doubt in done["tspool"]["doubts"]}
    assert "Not to be trusted" in bench(empty, "--shape=4x64k").stdout


def test_cached_pages_are_told_when_they_are_read(disk):
    kinds = {doubt["kind"] for doubt in job(disk, "--rw=read", "--size=8m", "--direct=0", "--invalidate=0")["tspool"]["doubts"]}
    assert "page_cache_hits" in kinds
    kinds = {doubt["kind"] for doubt in job(disk, "--rw=read", "--size=8m", "--direct=1")["tspool"]["doubts"]}
    assert "page_cache_hits" not in kinds


def test_a_state_larger_than_the_arena_is_saved(empty):
    done = job(empty, "--rw=save", "--shape=16x4m", "--arena=32m", "--staging=background")
    save, = done["tspool"]["saves"]
    assert save["bytes"] >= 64 << 20 and not save["replayable"]


def test_what_is_laid_out_first_is_not_taken_for_others_work(disk):
    done = job(disk, "--rw=read", "--size=64m", "--bs=1m")
    assert done["read"]["io_bytes"] == 64 << 20
    assert "device_busy" not in {doubt["kind"] for doubt in done["tspool"]["doubts"]}


def test_the_device_beneath_is_told(disk):
    device = job(disk, "--shape=4x64k")["tspool"]["device"]
    assert device["filesystem"] == "ext4" and device["name"].startswith("loop") and device["free_bytes"] > 0


def test_threads_and_uring_are_what_was_asked_for(empty):
    assert job(empty, "--shape=4x64k", "--ioengine=threads")["tspool"]["engine"]["backend"] == "threads"
    engine = job(empty, "--shape=4x64k", "--bs=64k", "--iodepth=5", "--direct=0")["tspool"]["engine"]
    assert (engine["item_bytes"], engine["depth"], engine["direct"]) == (65536, 5, False)


def test_a_terminal_shows_progress_and_a_pipe_does_not(empty):
    arguments = [TSPOOL, "bench", f"--directory={empty}", f"--writer={WRITER}", "--rw=write", "--size=64m", "--rate=64m"]
    assert "eta" not in subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT).stderr
    assert "[eta" in subprocess.run([*arguments, "--eta=always"], capture_output=True, text=True, timeout=TIMEOUT).stderr
    master, slave = pty.openpty()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):   # the terminal's end
        while select.select([master], [], [], TIMEOUT)[0]:
            seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(TIMEOUT) == 0
    assert b"[eta" in seen and b"/s]" in seen


# Comparing and tuning ------------------------------------------------------------------------------------------------------

def test_contestants_are_held_against_the_first(empty):
    needs("fio")
    done = report(empty, "--compare=fio,mine,ioengine=threads+bs=64k,fio-default", "--rounds=3", "--name=mine",
                  "--shape=8x256k", "--direct=0")
    assert done["rounds"] == 3
    names = [contestant["name"] for contestant in done["contestants"]]
    assert names == ["fio", "mine", "ioengine=threads+bs=64k", "fio-default"]
    assert done["contestants"][0]["ratio"] == 1 and done["contestants"][2]["backend"] == "threads"
    for contestant in done["contestants"]:
        assert contestant["bytes"] >= 2 << 20 and len(contestant["seconds"]) == 3
        assert contestant["ratio_min"] <= contestant["ratio_max"]
        assert contestant["verdict"] in ("-", "no difference beyond noise")   # three rounds prove nothing


def test_a_real_difference_is_seen(empty):
    done = report(empty, "--compare=free,slow", "--rounds=7", "--shape=4x256k", "--name=free", "--name=slow", "--rate=4m")
    assert [contestant["verdict"] for contestant in done["contestants"]] == ["-", "slower"]


def test_without_fio_it_says_so(empty):
    done = bench(empty, "--compare=fio,mine", "--name=mine", "--shape=1x4k", env=dict(os.environ, PATH="/nonexistent"))
    refused(done, 1, "fio is not on the PATH", "apt-get install fio")


def test_tune_writes_settings_that_bench_reads(empty, tmp_path):
    path = tmp_path / "settings.json"
    done = tspool("tune", empty, "--size=4m", "--rounds=1", "--writer", WRITER, "--output", path)
    assert done.returncode == 0, done.stderr
    assert "Nothing beats the defaults beyond noise" in done.stdout   # one round proves nothing
    assert "no block device beneath tmpfs" in done.stdout
    settings = json.loads(path.read_text())
    assert settings["tspool"] == 1 and settings["item_bytes"] == 524288 and settings["depth"] == 32
    path.write_text(json.dumps(dict(settings, item_bytes=65536, depth=7, submit_batch=3, io="threads")))
    engine = job(empty, "--shape=1x64k", f"--settings={path}")["tspool"]["engine"]
    assert (engine["item_bytes"], engine["depth"], engine["submit_batch"], engine["backend"]) == (65536, 7, 3, "threads")


@pytest.mark.parametrize("text, word", [("{", "JSON"), ('{"tspool": 2}', "another version"),
                                        ('{"tspool": 1, "io": "fast"}', "auto, uring, threads"),
                                        ('{"tspool": 1, "depth": 5000}', "depth"), ("{}", "tspool")])
def test_settings_that_are_none_are_refused(empty, tmp_path, text, word):
    path = tmp_path / "settings.json"
    path.write_text(text)
    done = bench(empty, "--shape=1x4k", f"--settings={path}")
    assert done.returncode == 1 and (word in done.stderr or str(path) in done.stderr), done.stderr


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
