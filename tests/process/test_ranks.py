"""Several ranks as real processes on one root: each saves its part, somebody publishes; and all that may go wrong between.

usage: test_ranks.py TSPOOL WRITER RANK_SAVER [NAME...]        (needs nothing but the standard library)
"""
import collections
import glob
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

TSPOOL, WRITER, SAVER = sys.argv[1:4]
ONLY = sys.argv[4:]
TIMEOUT = 60
RANKS = 8
ROWS, COLUMNS = 4, 1024          # of each rank, as rank_saver.c has them
ID, OTHER_ID = "0123456789abcdef" * 2, "fedcba9876543210" * 2
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def tspool(*arguments, **options):
    return subprocess.run([TSPOOL, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, **options)


def done(run):
    assert run.returncode == 0, (run.args, run.returncode, run.stdout, run.stderr)
    return run.stdout


def lines_of(run):
    return [json.loads(line) for line in done(run).splitlines()]


def publish(root, *options, name="step-1"):
    return tspool("publish", *options, f"{root}/{name}")


def refused(run, *words):
    assert run.returncode == 1 and run.stderr.count("\n") == 1, (run.args, run.returncode, run.stdout, run.stderr)
    for word in words:
        assert word in run.stderr, (word, run.stderr)


class Rank:
    """One rank_saver. A context: it is ended when that is left, whatever happened."""

    def __init__(self, root, number, *options, world=RANKS, save_id=ID, name="step-1"):
        command = [SAVER, root, name, save_id, str(number), str(world), WRITER, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self.line()
        self.writer = int(self.first.split()[1]) if self.first.startswith("begun ") else 0

    def line(self):
        return self.process.stdout.readline().rstrip("\n")

    def expect(self, word):
        line = self.line()
        assert line.startswith(word), f"{line!r} instead of {word!r}"
        return line

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def next(self, name):
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self.durable()

    def durable(self):
        self.expect("staged")
        self.expect("durable")
        return self

    def failure(self):
        line = self.first if not self.writer else self.line()
        while line == "staged":
            line = self.line()
        assert line.startswith("failed "), line
        return line

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(TIMEOUT) in (0, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()
        if not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass


def is_running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, what):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.005)


def save_all(root, numbers=range(RANKS), *options, **named):
    """Parts that are durable; their trainers and writers have ended."""
    ranks = [Rank(root, number, *options, **named) for number in numbers]
    for rank in ranks:
        with rank:
            rank.durable()
            rank.close()


def hidden(root, save_id=ID, name="step-1"):
    return f"{root}/.{name}.{save_id}"


def published(root):
    return sorted(name for name in os.listdir(root) if not name.startswith("."))


def stored(path):
    """Header and data of one safetensors file, read without any of our code."""
    raw = open(path, "rb").read()
    length, = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8:8 + length]), raw[8 + length:]


def is_whole(path, world=RANKS):
    """Every shard of every rank with its contents and its place, by the files alone; and by our own reader."""
    places = collections.defaultdict(list)
    for file in sorted(glob.glob(f"{path}/*.safetensors")):
        header, data = stored(file)
        sharding = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        assert header["__metadata__"]["tied.weight"] == "sharded.weight"
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            offsets = sharding[name]["saved_offsets"]
            places[name].append((offsets, entry["shape"], data[slice(*entry["data_offsets"])]))
    row = 0
    for offsets, shape, data in sorted(places["sharded.weight"]):
        assert offsets == [row, 0] and shape == [ROWS, COLUMNS]
        values = struct.unpack(f"<{ROWS * COLUMNS}f", data)
        assert values == tuple(map(float, range(row * COLUMNS, (row + ROWS) * COLUMNS))), f"row {row}"
        row += ROWS
    assert row == world * ROWS
    assert [data for *_, data in places["replicated.bias"]] == [bytes([7]) * 100] * world
    for rank in range(world):
        assert [set(data) for *_, data in places[f"rank.{rank}"]] == [{rank}]
    done(tspool("verify", path))
    assert not [name for name in os.listdir(path) if name.startswith("tspool.part") or name.endswith(".partial")]


def shards_in(file):
    """Place and data of each shard of "sharded.weight"."""
    header, data = stored(file)
    sharding = json.loads(header.get("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
    for name, entry in header.items():
        if name == "sharded.weight":
            yield sharding[name]["saved_offsets"], data[slice(*entry["data_offsets"])]


# All is well ------------------------------------------------------------------------------------------------------------

@test
def eight_ranks_save_and_one_publishes(root):
    save_all(root)
    assert published(root) == [] and tspool("latest", root).returncode == 1, "nothing shows before it is published"
    line, = lines_of(publish(root, "--json"))
    assert line == {"event": "published", "name": "step-1", "save_id": ID, "world_size": RANKS}
    is_whole(f"{root}/step-1")
    assert os.listdir(root) == ["step-1"], "nothing else is left"
    assert done(tspool("latest", root)) == f"{root}/step-1\n"


@test
def ls_tells_each_ranks_shard_with_its_place_and_file(root):
    save_all(root, range(3), world=3)
    done(publish(root))
    lines = lines_of(tspool("ls", "--json", f"{root}/step-1"))
    for name in ("sharded.weight", "tied.weight"):
        shards = [line for line in lines if line.get("name") == name]
        assert sorted(line["global_offsets"] for line in shards) == [[0, 0], [4, 0], [8, 0]], shards
        assert len({line["file"] for line in shards}) == 3
        assert all(line["global_shape"] == [12, COLUMNS] for line in shards)


@test
def a_published_one_is_copied_and_compared_like_any_other(root):
    """A copy is the work of one: shards stay shards, and what all ranks saved is there once, as no shard any more."""
    save_all(root, range(3), world=3)
    done(publish(root))
    os.mkdir(f"{root}/second")
    done(tspool("copy", "--writer", WRITER, f"{root}/step-1", f"{root}/second/step-1"))
    done(tspool("verify", f"{root}/second/step-1"))
    done(tspool("diff", "--exit-code", f"{root}/step-1", f"{root}/second/step-1"))
    done(tspool("diff", "--exit-code", f"{root}/second/step-1", f"{root}/step-1"))
    lines = [line for line in lines_of(tspool("ls", "--json", f"{root}/second/step-1")) if "dtype" in line]
    assert sorted(line["name"] for line in lines) == sorted(
        ["sharded.weight", "tied.weight"] * 3 + ["replicated.bias", "rank.0", "rank.1", "rank.2"])
    for line in lines:
        whole = [12, COLUMNS] if line["name"].endswith(".weight") else None
        assert line.get("global_shape") == whole, line
    places = [(offsets, data) for file in glob.glob(f"{root}/second/step-1/*.safetensors") for offsets, data in shards_in(file)]
    assert [offsets for offsets, _ in sorted(places)] == [[0, 0], [4, 0], [8, 0]]
    values = struct.unpack(f"<{12 * COLUMNS}f", b"".join(data for _, data in sorted(places)))
    assert values == tuple(map(float, range(12 * COLUMNS)))


@test
def a_copy_of_one_that_differs_in_a_rank_is_told_by_diff(root):
    save_all(root, range(2), world=2)
    save_all(root, [0], world=2, name="step-2")
    save_all(root, [1], "size=3", world=2, name="step-2")
    for name in ("step-1", "step-2"):
        done(publish(root, name=name))
    run = tspool("diff", "--exit-code", f"{root}/step-1", f"{root}/step-2")
    assert run.returncode == 1 and "~ tensor rank.1" in run.stdout and "1 changed" in run.stdout, run.stdout


@test
def objects_that_ranks_saved_alike_are_listed_once(root):
    save_all(root, range(3), world=3)
    done(publish(root))
    manifest = json.load(open(f"{root}/step-1/tspool.manifest.json"))
    assert [item["name"] for item in manifest["objects"]] == ["state", "state.0", "state.1", "state.2"]
    assert manifest["objects"][0]["rank"] == 0
    done(tspool("verify", f"{root}/step-1"))


@test
def publishing_again_changes_nothing(root):
    save_all(root, range(2), world=2)
    done(publish(root))
    before = sorted((name, os.stat(f"{root}/step-1/{name}").st_ino) for name in os.listdir(f"{root}/step-1"))
    for _ in range(3):
        done(publish(root, "--save-id", ID))
        done(publish(root, "--save-id", ID, "--world-size", "2"))
    assert sorted((name, os.stat(f"{root}/step-1/{name}").st_ino) for name in os.listdir(f"{root}/step-1")) == before
    refused(publish(root, "--save-id", ID, "--world-size", "3"), "2 ranks")


@test
def two_publish_at_once_and_both_succeed(root):
    for step in range(5):
        name = f"step-{step}"
        save_all(root, range(3), world=3, name=name)
        both = [subprocess.Popen([TSPOOL, "publish", "--save-id", ID, "--world-size", "3", f"{root}/{name}"]) for _ in range(4)]
        assert [process.wait(TIMEOUT) for process in both] == [0] * 4
        is_whole(f"{root}/{name}", 3)
    assert not glob.glob(f"{root}/.*")


@test
def a_replace_is_exchanged_and_keeps_the_files_of_others(root):
    save_all(root, range(2), "step=1", world=2)
    done(publish(root))
    open(f"{root}/step-1/tokenizer.json", "w").write("theirs")
    with Rank(root, 0, "step=2", world=2, save_id=OTHER_ID) as rank:
        assert "replace" in rank.failure()
    save_all(root, range(2), "step=2", "replace", world=2, save_id=OTHER_ID)
    both = [subprocess.Popen([TSPOOL, "publish", "--save-id", OTHER_ID, "--world-size", "2", f"{root}/step-1"]) for _ in range(3)]
    assert [process.wait(TIMEOUT) for process in both] == [0] * 3
    is_whole(f"{root}/step-1", 2)
    assert open(f"{root}/step-1/tokenizer.json").read() == "theirs"
    assert json.load(open(f"{root}/step-1/tspool.manifest.json"))["metadata"]["step"] == "2"
    assert os.listdir(root) == ["step-1"]


# A part is missing -------------------------------------------------------------------------------------------------------

@test
def nothing_is_published_before_the_last_part(root):
    for number in range(RANKS):
        refused(publish(root, "--save-id", ID, "--world-size", RANKS), "step-1")
        assert published(root) == []
        save_all(root, [number])
    done(publish(root))
    is_whole(f"{root}/step-1")


@test
def a_late_rank_is_named_and_then_its_part_is_taken(root):
    save_all(root, [0, 1, 3], world=4)
    refused(publish(root), "3 of 4 parts")
    refused(publish(root, "--save-id", ID), "rank 2 of 4", "missing")
    with Rank(root, 2, "hold", world=4) as late:
        late.go()
        late.durable()
        done(publish(root))
        late.close()
    is_whole(f"{root}/step-1", 4)


@test
def a_rank_at_work_is_told_from_one_that_is_missing(root):
    save_all(root, [0], world=2)
    with Rank(root, 1, "size=400000", world=2) as slow:
        wait_until(lambda: os.path.exists(f"{hidden(root)}/tspool.part-00002"), "its part record")
        os.kill(slow.writer, signal.SIGSTOP)
        stopped = not os.path.exists(f"{hidden(root)}/tspool.part-00002.json")
        try:
            if stopped:   # else it was faster than we
                refused(publish(root, "--save-id", ID), "rank 1 of 2", "still writing")
        finally:
            os.kill(slow.writer, signal.SIGCONT)
        slow.durable()
        done(publish(root))
    assert stopped, "it was never seen at work"


# Deaths ------------------------------------------------------------------------------------------------------------------

@test
def a_rank_killed_before_it_staged_is_named_and_completes_the_save_when_it_comes_back(root):
    others = [Rank(root, number, world=3) for number in (0, 2)]
    try:
        with Rank(root, 1, "hold", world=3) as victim:
            for rank in others:
                rank.durable()
            victim.kill()
            wait_until(lambda: not is_running(victim.writer), "the victim's writer")
        refused(publish(root, "--save-id", ID), "rank 1 of 3")
        assert published(root) == []
        with Rank(root, 1, world=3) as again:
            again.durable()
            done(publish(root))
        is_whole(f"{root}/step-1", 3)
    finally:
        for rank in others:
            rank.__exit__()


@test
def a_rank_killed_after_it_staged_is_finished_by_its_writer(root):
    save_all(root, [0], world=2)
    with Rank(root, 1, "size=60000", world=2) as victim:
        victim.expect("staged")
        victim.kill()
        wait_until(lambda: not is_running(victim.writer), "the writer to finish")
    done(publish(root))
    is_whole(f"{root}/step-1", 2)


@test
def a_rank_whose_writer_died_at_work_saves_again_under_the_same_id(root):
    save_all(root, [0], world=2)
    with Rank(root, 1, "size=400000", world=2) as victim:
        wait_until(lambda: glob.glob(f"{hidden(root)}/shard-00002-*"), "its files")
        os.kill(victim.writer, signal.SIGKILL)
        os.kill(victim.process.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(victim.writer), "the writer")
    left = glob.glob(f"{hidden(root)}/shard-00002-*")
    assert left, "the dead left its files"
    refused(publish(root, "--save-id", ID), "rank 1 of 2", "did not finish")
    save_all(root, [1], world=2)
    done(publish(root))
    is_whole(f"{root}/step-1", 2)
    assert len(glob.glob(f"{root}/step-1/shard-00002-*")) == 1


@test
def a_rank_whose_writer_alone_dies_is_replayed_beside_the_others(root):
    dice, died = random.Random(4), 0
    for round_number in range(6):
        name = f"step-{round_number}"
        save_all(root, [0, 2], world=3, name=name)
        others = sorted(os.listdir(hidden(root, name=name)))
        with Rank(root, 1, "size=30000", world=3, name=name) as rank:
            wait_until(lambda: len(os.listdir(hidden(root, name=name))) > len(others), "its files")
            time.sleep(dice.random() * 0.05)   # anywhere between its first file and its last sync
            try:
                os.kill(rank.writer, signal.SIGKILL)
                died += 1
            except ProcessLookupError:
                pass
            rank.durable()
            assert set(others) <= set(os.listdir(hidden(root, name=name)))
            done(publish(root, name=name))
        is_whole(f"{root}/{name}", 3)
    assert died >= 3 and not glob.glob(f"{root}/.*")


@test
def a_second_attempt_beside_a_living_one_is_refused_and_harms_nothing(root):
    with Rank(root, 0, world=2) as first:
        first.durable()
        with Rank(root, 0, world=2) as second:
            assert "another attempt of this rank" in second.failure()
        save_all(root, [1], world=2)
        done(publish(root))
    is_whole(f"{root}/step-1", 2)


@test
def a_rank_that_comes_back_after_the_publish_is_refused_and_harms_nothing(root):
    save_all(root, range(2), world=2)
    done(publish(root))
    with Rank(root, 1, world=2) as late:
        assert "choose another name" in late.failure()
    is_whole(f"{root}/step-1", 2)
    assert os.listdir(root) == ["step-1"]


@test
def a_part_lock_is_held_until_the_next_save_after_the_publish(root):
    with Rank(root, 0, world=2) as rank:
        def held():
            links = []
            for descriptor in glob.glob(f"/proc/{rank.writer}/fd/*"):
                try:
                    links.append(os.readlink(descriptor))
                except FileNotFoundError:   # closed since it was listed
                    pass
            return [re.search(r"step-\d", link).group() for link in links if "tspool.part-" in link]

        rank.durable()
        assert held() == ["step-1"]
        rank.next("step-2")
        assert sorted(held()) == ["step-1", "step-2"], "neither is published"
        save_all(root, [1], world=2)
        done(publish(root))
        assert len(held()) == 2, "nothing tells it"
        rank.next("step-3")
        wait_until(lambda: sorted(held()) == ["step-2", "step-3"], held())


@test
def a_publisher_killed_at_random_moments_is_followed_by_one_that_succeeds(root):
    dice, cut = random.Random(20), 0
    save_all(root, range(2), "replace", world=2, name="step-0")
    begun = time.monotonic()
    done(publish(root, "--save-id", ID, "--world-size", "2", name="step-0"))
    duration = time.monotonic() - begun
    for round_number in range(1, 12):
        name = f"step-{round_number}"
        save_all(root, range(2), "replace", world=2, name=name)
        for _ in range(6):
            process = subprocess.Popen([TSPOOL, "publish", "--save-id", ID, "--world-size", "2", f"{root}/{name}"],
                                       stderr=subprocess.DEVNULL)
            time.sleep(dice.random() * duration)
            process.kill()
            cut += process.wait(TIMEOUT) < 0
            if name in published(root):
                break
        done(publish(root, "--save-id", ID, "--world-size", "2", name=name))
        is_whole(f"{root}/{name}", 2)
    assert not glob.glob(f"{root}/.*"), os.listdir(root)
    assert cut >= 3, f"only {cut} were killed before they were done"


# Mistakes ----------------------------------------------------------------------------------------------------------------

@test
def two_save_ids_that_were_mixed_are_told(root):
    save_all(root, [0], world=2)
    save_all(root, [1], world=2, save_id=OTHER_ID)
    refused(publish(root, "--save-id", ID), "rank 1 of 2", OTHER_ID, "mixed")
    refused(publish(root, "--save-id", OTHER_ID), "rank 0 of 2", ID, "mixed")
    refused(publish(root), ID, OTHER_ID, "--save-id")
    for file in os.listdir(hidden(root, OTHER_ID)):
        os.rename(f"{hidden(root, OTHER_ID)}/{file}", f"{hidden(root)}/{file}")
    refused(publish(root, "--save-id", ID, "--world-size", "2"), OTHER_ID, "two save ids")


@test
def world_sizes_that_disagree_are_told(root):
    save_all(root, [0], world=2)
    save_all(root, [1], world=3)
    refused(publish(root, "--save-id", ID, "--world-size", "2"), "rank 1", "of 3 ranks")
    save_all(root, [2], world=3)
    refused(publish(root, "--save-id", ID, "--world-size", "2"), "rank 2", "world size")


@test
def files_that_were_cut_extended_or_lost_are_named(root):
    save_all(root, range(2), world=2)
    file = f"{hidden(root)}/shard-00002-model-00001-of-00001.safetensors"
    whole = open(file, "rb").read()
    for spoiled in (whole[:-1], whole + b"x", whole[:4096]):
        open(file, "wb").write(spoiled)
        refused(publish(root), os.path.basename(file), "rank 1", str(len(whole)))
    os.unlink(file)
    refused(publish(root), os.path.basename(file), "missing")
    open(file, "wb").write(whole.replace(b"sharded", b"shardee", 1))
    refused(publish(root), os.path.basename(file), "digest")
    open(file, "wb").write(whole)
    done(publish(root))


@test
def ranks_that_disagree_about_a_tensor_are_told(root):
    save_all(root, [0], world=2)
    save_all(root, [1], "rows=99", world=2)
    refused(publish(root), "sharded.weight", "global shape", "ranks 0 and 1")


@test
def ranks_that_saved_different_objects_under_one_name_are_told(root):
    """A reader asks by name, and would get the first rank's for every rank's."""
    save_all(root, [0, 1], world=3)
    save_all(root, [2], 'state={"ranks": "other"}', world=3)
    refused(publish(root), "ranks 0 and 2", "objects as state", "own name")
    assert published(root) == []
    save_all(root, [2], world=3)
    done(publish(root))
    is_whole(f"{root}/step-1", 3)


@test
def ranks_that_saved_different_steps_are_told(root):
    save_all(root, [0], "step=7", world=2)
    save_all(root, [1], "step=8", world=2)
    refused(publish(root), "step 8", "step 7")


@test
def a_name_that_was_taken_meanwhile_is_refused_and_kept(root):
    save_all(root, range(2), world=2)
    save_all(root, [0], world=2, save_id=OTHER_ID)
    save_all(root, [1], "replace", world=2, save_id=OTHER_ID)
    done(publish(root, "--save-id", ID))
    before = sorted(os.listdir(f"{root}/step-1"))
    refused(publish(root, "--save-id", OTHER_ID), "another checkpoint", "not every rank")
    assert sorted(os.listdir(f"{root}/step-1")) == before
    is_whole(f"{root}/step-1", 2)
    os.rename(hidden(root, OTHER_ID), hidden(root, OTHER_ID, "step-2"))
    done(publish(root, name="step-2"))
    is_whole(f"{root}/step-2", 2)


@test
def a_wrong_id_names_nothing(root):
    save_all(root, range(2), world=2)
    refused(publish(root, "--save-id", OTHER_ID, "--world-size", "2"), OTHER_ID, "nothing of this save")
    refused(publish(root, "--save-id", OTHER_ID), OTHER_ID)
    refused(publish(root, name="step-9"), "nothing unpublished")
    assert publish(root, "--save-id", "xyz").returncode == 2


def aged(root):
    """As if nothing had been touched for long: young records are taken for living ones."""
    for path in glob.glob(f"{root}/.*/*") + glob.glob(f"{root}/.*"):
        os.utime(path, (1, 1))
    return root


# gc ----------------------------------------------------------------------------------------------------------------------

@test
def gc_leaves_what_is_at_work_and_what_is_whole_and_sweeps_the_rest(root):
    with Rank(root, 0, world=2) as alive:
        alive.durable()
        done(tspool("gc", aged(root), "--keep", "1"))
        assert os.path.isdir(hidden(root)), "a part whose writer lives"
        alive.close()
    save_all(root, [1], world=2)
    collected = tspool("gc", aged(root), "--keep", "1")
    assert collected.returncode == 0 and "can still be published" in collected.stderr, collected
    assert os.path.isdir(hidden(root)), "a whole save that nobody published"
    done(publish(root))
    is_whole(f"{root}/step-1", 2)
    save_all(root, [0], world=2, name="step-2")
    done(tspool("gc", aged(root), "--keep", "1"))
    assert not glob.glob(f"{root}/.step-2*"), "a dead save without one of its parts"


# ------------------------------------------------------------------------------------------------------------------------

def main():
    passed = failed = 0
    for function in TESTS:
        if ONLY and function.__name__ not in ONLY:
            continue
        root = tempfile.mkdtemp(prefix="tspool-ranks-", dir=os.environ.get("TSPOOL_TEST_DIR"))
        begun = time.monotonic()
        try:
            function(root)
            passed += 1
            print(f"ok   {function.__name__} ({time.monotonic() - begun:.2f} s)")
        except Exception as error:  # noqa: BLE001 - a test may fail in any way
            failed += 1
            print(f"FAIL {function.__name__}: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
