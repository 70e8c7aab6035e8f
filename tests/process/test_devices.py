"""Frozen, read-only, dying and dead file systems, and power cuts: a shutdown that drops the log, then a mount.

Waits time out and a thaw commits; what was acknowledged is there after the power comes back; errors are FAILED, or UNKNOWN
where they struck the rename, with operation and path; the older checkpoint loads.
"""
import contextlib
import errno
import os
import random
import sys
import time

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from filesystems import MIB, needs, run
from trainer import (LEVELS, Trainer, assert_gc_leaves_nothing_stray, assert_older_loads, assert_record, assert_whole,
                     handicapped, send, strays, visible)

CUTS = 12
SHAPE = {"tensors": 4, "size": 4 * MIB}
LARGE = (f"tensors={SHAPE['tensors']}", f"bytes={SHAPE['size']}", f"arena={64 * MIB}")
SHUTS_DOWN = ("ext4", "xfs")


# Frozen -------------------------------------------------------------------------------------------------------------------

def test_waits_on_a_frozen_file_system_time_out_and_a_thaw_commits(filesystem, root):
    with Trainer(root) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        with filesystem.frozen():
            assert trainer.ask("begin frozen 2")["event"] == "planned"
            assert trainer.ask("fill")["event"] == "staged", "memory is not frozen"
            assert trainer.ask(f"wait {LEVELS['durable']} 100")["event"] == "timeout"
            assert_older_loads(root)
        trainer.tell("finish 2")
        assert trainer.until()["event"] == "published"
        assert trainer.close()["returned"] == 0
    assert_whole(root, {"older": 1, "frozen": 2})
    assert strays(root) == []


def test_close_on_a_frozen_file_system_leaves_the_save_to_its_writer(filesystem, root):
    with Trainer(root) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        with filesystem.frozen():
            trainer.ask("begin frozen 2")
            assert trainer.ask("fill")["event"] == "staged"
            report = trainer.close(100)
            assert report["returned"] == -errno.ETIMEDOUT and report["left"] == 1 and report["writer_pid"], report
            assert trainer.status() == 0
        trainer.await_writers()
    assert_whole(root, {"older": 1, "frozen": 2})
    assert strays(root) == []


def test_deadline_on_a_frozen_file_system_ends_the_save_and_names_where_it_hangs(make_filesystem):
    """Its writer hangs in the kernel, where not even SIGKILL reaches it: it is abandoned, and the trainer goes on."""
    made = make_filesystem("ext4")
    with Trainer(made.root, "deadline_ms=200", "heartbeat_ms=200") as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        with made.frozen():
            trainer.tell("save frozen 2")
            end = trainer.until()
            assert_record(end, "ETIMEDOUT", path="frozen" if end["operation"] == "deadline" else None)
            assert "frozen" in end["message"], end
            assert_older_loads(made.root)
        trainer.await_writers()
        assert trainer.save("after", 3)["event"] == "published"
        trainer.close()
        trainer.await_writers()
    assert_gc_leaves_nothing_stray(made.root)
    assert_whole(made.root, {"older": 1, "after": 3} if end["event"] == "failed" else
                 {name: step for name, step in (("older", 1), ("frozen", 2), ("after", 3)) if name in visible(made.root)})


# Read-only ----------------------------------------------------------------------------------------------------------------

def test_read_only_from_now_on(make_filesystem, kind):
    made = make_filesystem(kind)
    with Trainer(made.root) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        made.remount("ro")
        end = trainer.save("refused", 2)
        assert_record(end, "EROFS", stage="prepare", operation="mkdir", path="refused", cause="read-only")
        assert_older_loads(made.root)
        trainer.close()
        refused = trainer.ask("open")
        assert_record(refused, "EROFS", stage="open", path=made.root, cause="read-only")
        made.remount("rw")
        trainer.open()
        assert trainer.save("after", 3)["event"] == "published"
        trainer.close()
    assert visible(made.root) == ["after", "older"] and strays(made.root) == []


def test_ext4_that_goes_read_only_in_mid_save(make_filesystem):
    """What ext4 does by itself when it meets an error (errors=remount-ro)."""
    made = make_filesystem("ext4")
    with Trainer(made.root, *LARGE) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        assert trainer.ask("begin doomed 2")["event"] == "planned"
        while not strays(made.root):
            time.sleep(0.001)
        made.remount("abort")
        trainer.tell("fill")
        end = trainer.until("staged")
        if end["event"] == "staged":
            trainer.tell("finish 2")
            end = trainer.until()
        assert end["error"] in (errno.EROFS, errno.EIO), end
        assert_record(end, end["error"], path="doomed", cause="dmesg")
        assert_older_loads(made.root, **SHAPE)
        trainer.close()
        trainer.await_writers()
    made.again()
    assert_gc_leaves_nothing_stray(made.root)
    assert visible(made.root) == ["older"]
    assert_older_loads(made.root, **SHAPE)


# Dead devices -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", SHUTS_DOWN)
@pytest.mark.parametrize("moment", ["planned", "staged", "written"])
def test_device_dies_in_mid_save(make_filesystem, kind, moment):
    made = make_filesystem(kind)
    with Trainer(made.root, *LARGE) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.ask("begin doomed 2")
        if moment != "planned":
            trainer.ask("fill")
        if moment == "written":
            trainer.ask(f"wait {LEVELS['written']} 20000")
        made.shut_down()
        if moment == "planned":
            trainer.ask("fill")
        if trainer.events[-1]["event"] in ("staged", "written"):
            trainer.tell(f"finish {LEVELS[trainer.events[-1]['event']] + 1}")
            trainer.until()
        end = trainer.events[-1]
        if end["event"] != "published":   # it was faster than the device's death
            assert_record(end, "EIO", cause="dmesg")
            assert end["operation"] and ("doomed" in end["path"] or end["path"] == "."), end
        again = trainer.save("again", 3)
        assert_record(again, "EIO")
        trainer.close()
        trainer.await_writers()
    made.again()
    standing = visible(made.root)
    assert standing in (["older"], ["doomed", "older"]), standing
    assert "doomed" in standing or end["event"] != "published"
    assert "doomed" not in standing or end["event"] != "failed"
    assert_gc_leaves_nothing_stray(made.root)
    assert_whole(made.root, {name: {"older": 1, "doomed": 2}[name] for name in standing}, **SHAPE)


@pytest.mark.parametrize("kind", SHUTS_DOWN)
def test_rename_that_a_dead_device_loses_is_not_acknowledged(make_filesystem, kind):
    """An XFS that has shut down says 0 to the fsync of a directory whose rename it has lost. The device dies as soon as the
    rename is seen, often before the root is synced: one of four did so."""
    made, acknowledged = make_filesystem(kind), {}
    for step in range(1, 11):
        with Trainer(made.root) as trainer:
            trainer.open()
            trainer.tell(f"save step-{step} {step}")
            while f"step-{step}" not in os.listdir(made.root):
                pass
            made.shut_down()
            if trainer.until()["event"] == "published":
                acknowledged[f"step-{step}"] = step
            trainer.close()
            trainer.await_writers()
        made.again()
        assert set(acknowledged) <= set(visible(made.root)), f"acknowledged and gone: {acknowledged}"
        assert_gc_leaves_nothing_stray(made.root)


def test_fsync_that_fails_is_never_success(filesystem, root):
    """Whatever the file system: the kernel says EIO to each fsync of the writer."""
    with Trainer(root) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.close()
    with handicapped("--refuse", "fsync=EIO") as writer, Trainer(root, "io=threads", writer=writer) as trainer:
        trainer.open()
        end = trainer.save("unsynced", 2)
        assert_record(end, "EIO", stage="sync", operation="fsync", path="unsynced", cause="dmesg")
        trainer.close()
    assert visible(root) == ["older"] and strays(root) == []
    assert_older_loads(root)


def mapped(stack, image, name):
    """The image behind a device of our own making, as long as the stack stands; how many sectors it has."""
    loop = run("losetup", "--find", "--show", image)
    stack.callback(run, "losetup", "-d", loop)
    sectors = os.stat(image).st_size // 512
    run("dmsetup", "create", name, "--table", f"0 {sectors} linear {loop} 0")
    stack.callback(run, "dmsetup", "remove", name)
    return sectors


def test_device_mapper_target_that_turns_to_errors(make_filesystem):
    needs("dmsetup")
    if "device-mapper" not in open("/proc/devices").read():
        pytest.skip("this kernel has no device mapper")
    made, name = make_filesystem("ext4"), f"tspool-{os.getpid()}"
    made.umount()
    with contextlib.ExitStack() as stack:
        sectors = mapped(stack, made.image, name)
        run("mount", f"/dev/mapper/{name}", made.path)
        stack.callback(run, "umount", made.path)
        with Trainer(made.root, *LARGE) as trainer:
            trainer.open()
            assert trainer.save("older", 1)["event"] == "published"
            run("dmsetup", "suspend", "--nolockfs", name)
            run("dmsetup", "load", name, "--table", f"0 {sectors} error")
            run("dmsetup", "resume", name)
            end = trainer.save("doomed", 2)
            assert end["error"] in (errno.EIO, errno.EROFS), end
            assert_record(end, end["error"], cause="dmesg")
            trainer.close()
            trainer.await_writers()
    made.mount()
    assert_gc_leaves_nothing_stray(made.root)
    assert_older_loads(made.root, **SHAPE)


# Power cuts ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", SHUTS_DOWN)
def test_power_is_cut_at_random_moments(make_filesystem, kind, pytestconfig):
    """Everything acknowledged is there, whole; everything that is there is whole."""
    cuts = pytestconfig.getoption("--kills") or CUTS
    chance = random.Random(f"{pytestconfig.getoption('--seed')} {kind}")
    made = make_filesystem(kind)
    stands, step = {}, 0
    for cut in range(cuts):
        with Trainer(made.root, f"io={chance.choice(('uring', 'threads'))}") as trainer:
            trainer.open()
            trainer.tell(f"run {step + 1} 1000000")
            for _ in range(chance.randrange(1, 25)):
                trainer.event()
            time.sleep(chance.uniform(0, 0.02))
            made.shut_down()
            send(trainer.pid, 9)
            trainer.rest()
            trainer.status()
            trainer.await_writers()
            acknowledged = {event["name"]: int(event["name"][-6:]) for event in trainer.events if event["event"] == "published"}
            asked = {event["name"]: int(event["name"][-6:]) for event in trainer.events if event["event"] == "asked"}
        made.again()
        standing = visible(made.root)
        missing = [name for name in {**stands, **acknowledged} if name not in standing]
        assert not missing, f"cut {cut}: acknowledged and gone: {missing}"
        stands = {name: {**stands, **asked}[name] for name in standing}
        assert_whole(made.root, stands)
        step = max((step, *asked.values()))
        assert_gc_leaves_nothing_stray(made.root, keep=3)
        stands = {name: stands[name] for name in visible(made.root)}


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
