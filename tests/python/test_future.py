"""A save is a future: waits with timeouts, callbacks, asyncio, progress, several in flight, failures told once."""

import asyncio
import errno
import pickle
import threading

import pytest
import tspool
import torch

LARGE = 96 << 20  # larger than the arena of ARENA: staging waits for the disk


def large(count=1):
    return {f"t{number}": torch.randint(0, 256, (LARGE // count,), dtype=torch.uint8) for number in range(count)}


@pytest.fixture
def slow(root):
    """A spool that writes 16 MiB a second: whatever is saved with it is still in flight in the next line."""
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20) as opened:
        yield opened


def megabytes(count):
    return {"w": torch.zeros(count << 20, dtype=torch.uint8)}


def test_levels_are_waited_for_one_by_one(spool, root):
    save = spool.save("levels", megabytes(1))
    assert save.wait_staged().level >= 1
    assert save.wait_written(60).written_ns > 0
    assert save.wait_durable(60).level >= 3
    result = save.wait_published(60)
    assert result.outcome == "published" and result.done and result.failure is None
    assert result.file_bytes == result.written_bytes == (root / "levels" / "model.safetensors").stat().st_size
    assert save.done() and save.exception() is None and save.result() == result
    assert result.backend in ("uring", "threads") and len(result.save_id) == 32


def test_a_wait_that_is_too_short_times_out_and_the_save_goes_on(slow):
    save = slow.save("slow", megabytes(8))
    with pytest.raises(tspool.WaitTimeout, match="not published after 0.01 s; it goes on") as late:
        save.wait_published(0.01)
    assert isinstance(late.value, TimeoutError) and late.value.errno == errno.ETIMEDOUT
    assert not save.done() and save.status().outcome == "pending"
    save.result(60)


def test_staged_tensors_may_change(slow, root):
    state = megabytes(8)
    save = slow.save("changed", state)
    state["w"].fill_(9)
    save.result(60)
    assert tspool.load(root / "changed")["w"].eq(0).all()


def test_background_staging_returns_before_it_has_copied(slow, root):
    state = large()
    wanted = state["t0"].clone()
    save = slow.save("background", state, staging="background", replace=True)
    assert save.status().level == 0
    save.abort()
    with pytest.raises(tspool.SaveError):
        save.wait_staged(60)
    with tspool.Spool(root, arena_bytes=64 << 20) as fast:
        save = fast.save("background", state, staging="background", replace=True)
        save.wait_staged(60)
        state["t0"].zero_()
        save.result(60)
    assert torch.equal(tspool.load(root / "background")["t0"], wanted)


def test_a_tensor_that_changes_while_it_is_staged_is_named_when_asked_for(root):
    state = large()
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20) as spool:
        save = spool.save("torn", state, staging="background", check_torn=True)
        state["t0"][-1] ^= 1  # the end of what is larger than the arena: not copied yet
        failure = save.exception(60)
    assert failure is not None and failure.errno == errno.EBUSY and failure.tensor == "t0"


def test_tensors_live_until_they_are_staged_whoever_drops_them(spool, root):
    save = spool.save("dropped", {"t": torch.full((LARGE // 4,), 3.0)}, staging="background")
    save.result(60)
    assert tspool.load(root / "dropped")["t"].eq(3).all()
    spool.save("nobody", {"t": torch.full((LARGE // 4,), 4.0)}, staging="background")
    spool.save("next", {"t": torch.ones(1)}).result(60)
    assert tspool.load(root / "nobody")["t"].eq(4).all()


def test_saves_in_flight_are_written_in_order(slow, root):
    order = []
    saves = [slow.save(f"s{number}", megabytes(2), metadata={"step": number}) for number in range(4)]
    for save in saves:
        save.add_done_callback(lambda save: order.append(save.name))
    for save in saves:
        save.result(60)
    slow.close()
    assert order == ["s0", "s1", "s2", "s3"]
    assert tspool.latest(root) == str(root / "s3")


def test_callbacks_are_called_once_from_another_thread_or_at_once(slow, caplog):
    calls, called = [], threading.Event()
    save = slow.save("called", megabytes(2))
    save.add_done_callback(lambda save: 1 / 0)  # logged; the others are called all the same
    save.add_done_callback(lambda save: (calls.append((save.done(), threading.current_thread().name)), called.set()))
    assert called.wait(60)
    assert calls == [(True, "tspool-watch")]
    assert "ZeroDivisionError" in caplog.text
    save.add_done_callback(lambda save: calls.append(threading.current_thread()))
    assert calls[1] is threading.current_thread()


def test_progress_rises_to_the_end(slow):
    seen = []
    save = slow.save("progress", megabytes(8), progress=seen.append)
    save.result(60)
    slow.close()
    assert seen[-1].outcome == "published" and seen[-1].written_bytes == seen[-1].file_bytes
    assert [result.written_bytes for result in seen] == sorted(result.written_bytes for result in seen)
    assert len(seen) > 3


def test_a_save_can_be_awaited_by_many(slow):
    async def main():
        first, second = slow.save("first", megabytes(4)), slow.save("second", megabytes(2))
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        async def impatient():
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.ensure_future(wait(first)), 0.01)

        async def wait(save):
            return await save

        ticking = asyncio.ensure_future(tick())
        await impatient()
        results = await asyncio.gather(wait(first), wait(second), wait(first))
        ticking.cancel()
        assert [result.outcome for result in results] == ["published"] * 3
        assert (await first).outcome == "published"
        return ticks

    assert asyncio.run(main()) > 10  # the loop was not blocked


def test_a_failed_save_raises_from_every_side_with_its_record(slow, root):
    save = slow.save("failing", megabytes(16))
    assert save.abort() is True
    with pytest.raises(tspool.SaveError) as failed:
        save.result(60)
    assert failed.value.errno == errno.ECANCELED and failed.value.operation == "abort"
    assert failed.value.message == str(failed.value) and "aborted by its caller" in failed.value.cause
    assert isinstance(save.exception(), tspool.SaveError)
    assert save.status().outcome == "failed" and save.abort() is False

    async def wait():
        return await save

    with pytest.raises(tspool.SaveError):
        asyncio.run(wait())
    again = pickle.loads(pickle.dumps(failed.value))
    assert (type(again), again.errno, again.cause, str(again)) == (
        tspool.SaveError,
        errno.ECANCELED,
        failed.value.cause,
        str(failed.value),
    )
    assert not (root / "failing").exists()


def fail_unnoticed(spool, root):
    """A directory in the way that was not there when the save began."""
    save = spool.save("unnoticed", megabytes(4))
    (root / "unnoticed" / "in the way").mkdir(parents=True)
    while not save.done():
        threading.Event().wait(0.001)
    return save


def test_a_failure_that_nobody_looked_at_is_told_by_the_next_save_once(slow, root):
    save = fail_unnoticed(slow, root)
    with pytest.raises(tspool.EarlierSaveError, match="an earlier save failed: .*unnoticed.*this one was not begun") as told:
        slow.save("next", {"w": torch.ones(1)})
    assert told.value.errno == errno.EEXIST or told.value.errno == errno.ENOTEMPTY
    assert slow.save("next", {"w": torch.ones(1)}).result(60).outcome == "published"
    assert save.exception() is not None


def test_a_failure_that_nobody_looked_at_is_told_by_close(root):
    spool = tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20)
    fail_unnoticed(spool, root)
    with pytest.raises(tspool.SaveError, match="unnoticed"):
        spool.close()
    assert spool.closed and spool.close().published == 0


def test_close_counts_what_it_waited_for(root):
    spool = tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=32 << 20)
    save = spool.save("waited", megabytes(8))
    report = spool.close()
    assert (report.published, report.failed, report.left, report.aborted) == (1, 0, 0, 0)
    assert save.result().outcome == "published" and save.status().level == 4
    with pytest.raises(tspool.SpoolError, match="closed: open another"):
        spool.save("more", {})


def test_close_in_no_time_leaves_staged_saves_to_the_writer(root, appears):
    spool = tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20)
    save = spool.save("left", megabytes(8))
    report = spool.close(timeout=0)
    assert report.left == 1 and report.writer_pid > 0
    with pytest.raises(tspool.SaveError, match="left to the writer"):
        save.result()
    assert appears(root / "left") == tspool.latest(root)


def test_close_with_abort_gives_up_what_is_left(root):
    spool = tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20)
    spool.save("aborted", megabytes(16))
    assert spool.close(timeout=0, abort=True).aborted == 1
    assert tspool.latest(root) is None


def test_an_exception_in_the_block_still_finishes_the_save(root):
    with pytest.raises(ZeroDivisionError):
        with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=32 << 20) as spool:
            spool.save("kept", megabytes(8))
            raise ZeroDivisionError
    assert spool.closed and tspool.load(root / "kept")["w"].eq(0).all()


def test_a_spool_that_is_dropped_says_so_and_finishes(root):
    with pytest.warns(ResourceWarning, match="was not closed"):
        spool = tspool.Spool(root, arena_bytes=64 << 20)
        spool.save("dropped", megabytes(1)).result(60)
        del spool
        import gc

        gc.collect()
    assert tspool.latest(root) == str(root / "dropped")


def test_ranks_save_parts_and_anyone_publishes_them(root):
    spools = [tspool.Spool(root, 64 << 20, rank=rank, world_size=2) for rank in range(2)]
    save_id = spools[0].save_id()
    for rank, spool in enumerate(spools):
        save = spool.begin("parts", save_id=save_id)
        save.add("w", torch.full((2, 3), float(rank)), global_shape=(4, 3), global_offsets=(2 * rank, 0))
        assert save.submit().wait_durable(60).outcome in ("pending", "durable")
        if rank == 0:
            with pytest.raises(tspool.SaveError):
                tspool.publish(root, "parts", save_id, 2)
    for spool in spools:
        spool.close()
    tspool.publish(root, "parts", save_id, 2)
    with tspool.Checkpoint(root / "parts") as checkpoint:
        assert sorted(entry.global_offsets for entry in checkpoint.entries) == [(0, 0), (2, 0)]
        assert checkpoint.read(1).eq(checkpoint.entries[1].global_offsets[0] / 2).all()


def test_declaring_one_by_one(spool, root):
    save = spool.begin("single")
    save.add("w", torch.ones(3))
    save.add("shard", torch.ones(2, 4), global_shape=(8, 4), global_offsets=(2, 0))
    save.add_object("note", "text", "ü".encode())
    save.add_metadata("step", "3")
    with pytest.raises(TypeError, match="no tensor: use add_object"):
        save.add("x", {})
    with pytest.raises(tspool.SaveError, match="not submitted"):
        save.wait_staged()
    save.submit().result(60)
    with tspool.Checkpoint(root / "single") as checkpoint:
        assert checkpoint.object("note") == "ü"
        entry = checkpoint.entry("shard")
        assert (entry.global_shape, entry.global_offsets, entry.shape) == ((8, 4), (2, 0), (2, 4))


def test_many_threads_wait_while_the_spool_is_closed(root):
    spool = tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20)
    save, ends = spool.save("crowd", megabytes(8)), []

    def wait():
        try:
            ends.append(save.result().outcome)
        except tspool.SaveError as error:
            ends.append(error.errno)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    spool.close(timeout=0.05)
    for thread in threads:
        thread.join(60)
    assert ends == [errno.ESHUTDOWN] * 8
