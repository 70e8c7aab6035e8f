"""200 saves and loads leave nothing behind: no descriptors, no threads, no memory, no processes."""

import asyncio
import gc
import os
import threading

import tspool
import torch


def usage():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident


def children():
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return file.read().split()


def save_once(spool, root, number):
    state = {
        "w": torch.randn(500, 100),
        "nested": {"b": torch.ones(10), "step": number, "raw": b"x" * 1000},
        "list": [torch.zeros(3)] * 3,
    }
    save = spool.save("same", state, replace=True, staging="background" if number % 2 else "now", metadata={"step": number})
    save.add_done_callback(lambda save: None)
    if number % 3 == 0:
        asyncio.run(wait(save))
    save.result(60)
    try:
        spool.save("same", {"refused": object()}, replace=True)
    except tspool.UnsupportedError:
        pass
    tspool.load(root / "same")
    tspool.load(root / "same", into=state)


async def wait(save):
    return await save


def test_200_saves_and_loads_leave_nothing_behind(root):
    before_any = children()
    with tspool.Spool(root, arena_bytes=64 << 20) as spool:
        for number in range(40):
            save_once(spool, root, number)
        before = usage()
        for number in range(200):
            save_once(spool, root, number)
        after = usage()
    assert after[0] <= before[0] and after[1] <= before[1], (before, after)
    assert after[2] - before[2] < 4 << 20, (before, after)
    assert children() == before_any


def test_spools_and_checkpoints_come_and_go_without_a_trace(root):
    def once():
        with tspool.Spool(root, arena_bytes=64 << 20) as spool:
            spool.save("same", {"w": torch.ones(1000)}, replace=True)
        with tspool.Checkpoint(root / "same") as checkpoint:
            checkpoint.read("w")
        tspool.Checkpoint(root / "same").names
        tspool.latest(root)

    for _ in range(3):
        once()
    before = usage()
    for _ in range(10):
        once()
    after = usage()
    assert after[0] <= before[0] and after[1] <= before[1], (before, after)
    assert after[2] - before[2] < 4 << 20, (before, after)


def test_what_is_saved_is_let_go_once_it_was_staged(root):
    import weakref

    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20) as spool:
        tensors = [torch.zeros(4 << 20, dtype=torch.uint8) for _ in range(3)]
        gone = [weakref.ref(tensor.untyped_storage()) for tensor in tensors]
        del gone
        storage = tensors[0].untyped_storage()
        import sys

        held = sys.getrefcount(storage)
        save = spool.save("held", dict(enumerate(tensors)), staging="background")
        save.wait_staged(60)
        assert not save.done() and sys.getrefcount(storage) == held
