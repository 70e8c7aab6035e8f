"""No space: before a save, in the middle of it, by quota, and on a device that promised more than it has.

A save that cannot fit is refused while its tensors still exist, with figures. One that was prepared has its blocks. Whatever
fails names operation, path and cause, leaves nothing behind, and the older checkpoint loads.
"""
import errno
import os
import re
import sys
import time

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from filesystems import MIB, needs, run
from trainer import (PATIENCE_S, Trainer, assert_gc_leaves_nothing_stray, assert_older_loads, assert_record, assert_whole,
                     handicapped, strays, visible)

SHAPE = {"tensors": 4, "size": 4 * MIB}
SETTINGS = (f"tensors={SHAPE['tensors']}", f"bytes={SHAPE['size']}", f"arena={64 * MIB}")
TOTAL = SHAPE["tensors"] * SHAPE["size"]


def assert_only_the_older_is_left(root):
    assert visible(root) == ["older"] and strays(root) == [], os.listdir(root)
    assert_older_loads(root, **SHAPE)


def await_prepared(root):
    """Every file of the save in flight is there and has its size."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for stray in strays(root):
            path = f"{root}/{stray}"
            names = os.listdir(path) if os.path.isdir(path) else []
            if any("manifest" in name for name in names) and all(
                    name.startswith("tspool.part") or os.stat(f"{path}/{name}").st_size for name in names):
                return
        time.sleep(0.002)
    raise AssertionError("not prepared")


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_too_little_before_the_save_is_refused_with_figures(filesystem, root, io):
    with Trainer(root, f"io={io}", *SETTINGS) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        filesystem.eat(leave=TOTAL // 2)
        end = trainer.save("refused", 2)
        assert_record(end, "ENOSPC", stage="prepare", operation="allocate", path="refused", cause="free")
        needed, free = map(int, re.findall(r"\((\d+) bytes\)", end["cause"]))
        assert needed > TOTAL > free, end["cause"]
        assert_only_the_older_is_left(root)
        filesystem.free_again()
        assert trainer.save("after", 3)["event"] == "published", "there is room again"
        trainer.close()
    assert_whole(root, {"older": 1, "after": 3}, **SHAPE)


def test_prepared_save_has_its_blocks_when_another_file_takes_the_rest(filesystem, root, kind):
    with Trainer(root, *SETTINGS) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.ask("begin prepared 2")
        await_prepared(root)
        filesystem.eat()
        trainer.tell("fill")
        end = trainer.until("staged")
        if end["event"] == "staged":
            trainer.tell("finish 2")
            end = trainer.until()
        filesystem.free_again()
        trainer.close()
    if end["event"] == "published":
        assert_whole(root, {"older": 1, "prepared": 2}, **SHAPE)
    else:   # btrfs needs new blocks for its trees, even for what is preallocated
        assert kind == "btrfs", end
        assert_record(end, "ENOSPC", path="prepared")
        assert_only_the_older_is_left(root)


def test_full_in_mid_save_where_blocks_cannot_be_had_before(filesystem, root):
    """As on NFSv3, whose files cannot be preallocated."""
    with handicapped("--refuse", "fallocate=EOPNOTSUPP") as writer, Trainer(root, *SETTINGS, writer=writer) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.ask("begin full 2")
        await_prepared(root)
        filesystem.eat()
        trainer.tell("fill")
        end = trainer.until("staged")
        if end["event"] == "staged":
            trainer.tell("finish 2")
            end = trainer.until()
        assert_record(end, "ENOSPC", stage=("write", "seal", "sync"), operation=("write", "fsync"), path="full",
                      cause="file system is full")
        if end["operation"] == "write" and end["stage"] == "write":
            assert end["tensor"].startswith("t") or end["file_offset"] < 4096, end
            assert end["path"].endswith(".safetensors.partial") and end["file_offset"] >= 0, end
        assert_only_the_older_is_left(root)
        filesystem.free_again()
        assert trainer.save("after", 3)["event"] == "published"
        trainer.close()


def quota_of(made):
    """A limit for half a save more than there is, on whatever this kernel's file system counts."""
    if made.kind == "btrfs":
        run("btrfs", "quota", "enable", made.path)
        os.sync()
        run("btrfs", "qgroup", "limit", TOTAL * 3 // 2, made.path)
    elif made.kind == "xfs":
        run("xfs_quota", "-x", "-c", f"project -s -p {made.root} 7", "-c", f"limit -p bhard={TOTAL * 3 // 2} 7", made.path)
    else:
        run("setquota", "-u", "0", "0", TOTAL * 3 // 2 // 1024, "0", "0", made.path)


@pytest.mark.parametrize("kind, options, make_options, program", [
    ("btrfs", (), (), "btrfs"), ("xfs", ("prjquota",), (), "xfs_quota"), ("ext4", ("usrquota",), ("-O", "quota"), "setquota")],
    ids=["btrfs", "xfs", "ext4"])
def test_quota(make_filesystem, kind, options, make_options, program):
    needs(program)
    made = make_filesystem(kind, options=options, make_options=make_options)
    with Trainer(made.root, *SETTINGS) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        quota_of(made)
        end = trainer.save("over", 2)
        assert_record(end, "EDQUOT", path="over", cause="tspool gc")
        assert_only_the_older_is_left(made.root)
        trainer.close()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_thin_device_that_has_less_than_it_promised(folder, make_filesystem, kind):
    """The loop device's file lies in a small tmpfs: writes fail when that is full, as those of a thin volume do."""
    thin = f"{folder}/thin-{kind}"
    os.mkdir(thin)
    run("mount", "-t", "tmpfs", "-o", "size=96m", "none", thin)
    try:
        made = make_filesystem(kind, image=f"{thin}/image")
        with Trainer(made.root, *SETTINGS) as trainer:
            trainer.open()
            assert trainer.save("older", 1)["event"] == "published"
            os.sync()
            with open(f"{thin}/stuffing", "wb") as file:
                status = os.statvfs(thin)
                file.write(bytes(status.f_bavail * status.f_frsize - 4 * MIB))
            end = trainer.save("lost", 2)
            assert_record(end, end["error"], stage=("write", "seal", "sync", "publish"), path="lost")
            assert end["error"] in (errno.EIO, errno.ENOSPC, errno.EROFS), end
            os.unlink(f"{thin}/stuffing")
            trainer.close()
            trainer.await_writers()
        made.again()
        assert_whole(made.root, {"older": 1}, **SHAPE)
        assert_gc_leaves_nothing_stray(made.root)
        assert_only_the_older_is_left(made.root)
        made.destroy()
    finally:
        run("umount", "-l", thin)
        os.rmdir(thin)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
