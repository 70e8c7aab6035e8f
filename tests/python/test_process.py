"""What happens to whole processes: Ctrl-C in every wait, exits, exceptions, forks, and kills of trainer and writer."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tspool
import torch

BEGIN = """
import sys, os, signal, threading, time, tspool
root = sys.argv[1]
def slow(**options):
    return tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20, **options)
def state(megabytes):
    return {"w": tspool.Tensor("U8", (megabytes << 20,), bytes(megabytes << 20))}
def ready():
    print("ready", flush=True)
"""

# Each waits for something that takes seconds, says "ready" just before, and must be back at once after SIGINT.
WAITS = {
    "wait_durable": "spool = slow(); save = spool.save('s', state(16)); ready(); save.wait_durable()",
    "result with a timeout": "spool = slow(); save = spool.save('s', state(16)); ready(); save.result(600)",
    "exception": "spool = slow(); save = spool.save('s', state(16)); ready(); save.exception()",
    "wait_staged": "spool = slow(); save = spool.save('s', state(96), staging='background'); ready(); save.wait_staged()",
    "save with staging now": "spool = slow(); ready(); spool.save('s', state(128))",
    "close": "spool = slow(); save = spool.save('s', state(16)); ready(); spool.close()",
    "a with block": "spool = slow()\n    with spool: save = spool.save('s', state(16)); ready(); save.result()",
    "reserve": "spool = tspool.Spool(root, arena_bytes=1 << 30); ready(); spool.reserve(1 << 30)",
    "open": "ready(); [tspool.Spool(root, arena_bytes=64 << 20).close() for _ in range(10**9)]",
    "await": """
    import asyncio
    async def main():
        save = slow().save('s', state(16))
        ready()
        await save
    asyncio.run(main())""",
}


@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_ends_every_wait_at_once(script, root, what):
    trainer = script(
        BEGIN
        + f"""
try:
    {WAITS[what]}
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os._exit(0)
""",
        root,
    )
    assert trainer.line() == "ready"
    trainer.process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    assert trainer.line() == "interrupted"
    assert time.monotonic() - asked < (6 if what in ("close", "a with block") else 1.5)
    trainer.end()


def test_ctrl_c_in_a_load_leaves_the_process_whole(script, root):
    with tspool.Spool(root, arena_bytes=256 << 20) as spool:
        spool.save("s", {f"t{i}": torch.zeros(16 << 20, dtype=torch.uint8) for i in range(16)}).result(60)
    trainer = script(
        BEGIN
        + """
interrupted = 0
while interrupted < 3:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        ready()
        while True:
            tspool.load(root + "/s")
            tspool.verify(root + "/s")
    except KeyboardInterrupt:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        interrupted += 1
ready()
assert len(tspool.load(root + "/s")) == 16
""",
        root,
    )
    for _ in range(3):
        assert trainer.line() == "ready"
        trainer.process.send_signal(signal.SIGINT)
    assert trainer.line() == "ready"
    trainer.end()


@pytest.mark.parametrize("how", ["end of the script", "sys.exit", "an exception", "a spool that nobody holds"])
def test_a_normal_exit_finishes_the_save_in_flight(script, root, how):
    ending = {"end of the script": "pass", "sys.exit": "sys.exit(0)", "an exception": "raise ValueError('training failed')",
              "a spool that nobody holds": "del spool, save"}[how]  # fmt: skip
    trainer = script(BEGIN + f"spool = slow(); save = spool.save('kept', state(24), staging='background'); {ending}", root)
    trainer.end(1 if how == "an exception" else 0)
    assert tspool.verify(root / "kept").damaged == 0


def test_callbacks_run_before_a_normal_exit(script, root):
    out, _ = script(
        BEGIN + "slow().save('kept', state(8)).add_done_callback(lambda save: print(save.result().outcome))", root
    ).end()
    assert out.strip() == "published"


def test_a_killed_trainer_leaves_its_staged_save_to_the_writer(script, root, appears):
    trainer = script(BEGIN + "spool = slow(); save = spool.save('kept', state(24)); ready(); time.sleep(600)", root)
    assert trainer.line() == "ready"
    trainer.process.kill()
    trainer.process.wait()
    assert appears(root / "kept") == tspool.latest(root, timeout=None)
    assert tspool.verify(root / "kept").damaged == 0


def test_a_killed_writer_costs_at_most_one_save(root):
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20) as spool:
        before = spool.save("before", {"w": torch.ones(1)}).result(60)
        save = spool.save("killed", {"w": torch.zeros(24 << 20, dtype=torch.uint8)})
        writer = spool.writer_pid
        assert before.writer_pid == writer
        os.kill(writer, signal.SIGKILL)
        failure = save.exception(60)  # or it was written again, by another writer
        if failure is None:
            assert save.status().attempts > 1 and save.status().retry_cause
            assert tspool.verify(root / "killed").damaged == 0
        else:
            assert isinstance(failure, tspool.SaveError) and failure.stage == "writer" and failure.message
        assert spool.save("after", {"w": torch.full((3,), 7.0)}).result(60).outcome == "published"
        assert spool.writer_pid != writer
    assert tspool.load(root / "after")["w"].eq(7).all() and tspool.load(root / "before")["w"].eq(1).all()


def in_child(work):
    """Forks; 0 when `work` raised nothing."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_forked_child_gets_errors_and_the_parent_is_untouched(root):
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20) as spool:
        save = spool.save("parent", {"w": torch.zeros(16 << 20, dtype=torch.uint8)})

        def child():
            for call in (lambda: spool.save("child", {}), lambda: save.result(), lambda: save.status(), lambda: spool.close(),
                         lambda: spool.reserve(1), lambda: spool.writer_pid, lambda: save.abort()):  # fmt: skip
                with pytest.raises(tspool.SpoolError, match="forked child"):
                    call()
            with tspool.Spool(root, arena_bytes=64 << 20) as own:
                own.save("own", {"w": torch.ones(2)}).result(60)

        assert in_child(child) == 0
        assert save.result(60).outcome == "published"
    assert tspool.load(root / "own")["w"].eq(1).all() and not (root / "child").exists()


def test_data_loader_workers_may_fork_and_exit_during_a_save(root):
    """They run Python's exit, with the parent's spool in their memory."""
    with tspool.Spool(root, arena_bytes=64 << 20, bytes_per_second=16 << 20) as spool:
        save = spool.save("parent", {"w": torch.zeros(16 << 20, dtype=torch.uint8)}, staging="background")
        loader = torch.utils.data.DataLoader(list(range(64)), num_workers=2, multiprocessing_context="fork")
        assert sum(int(batch) for batch in loader) == sum(range(64))
        assert save.result(60).outcome == "published"


def test_importing_needs_neither_torch_nor_numpy(script):
    script("import tspool, sys; assert not {'torch', 'numpy'} & set(sys.modules)").end()


def test_the_command_is_installed(root):
    tspool_command = os.path.join(os.path.dirname(sys.executable), "tspool")
    source = root / "source"
    source.mkdir()
    with tspool.Spool(source, arena_bytes=64 << 20) as spool:
        spool.save("one", {"w": torch.ones(2)}, metadata={"step": 1}).result(60)
    for command in ([tspool_command], [sys.executable, "-m", "tspool"]):
        run = subprocess.run([*command, "latest", str(source)], capture_output=True, text=True)
        assert (run.returncode, run.stdout.strip()) == (0, str(source / "one")), run.stderr
    run = subprocess.run([tspool_command, "copy", str(source / "one"), str(root / "copied")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert tspool.load(root / "copied")["w"].eq(1).all()
    assert subprocess.run([tspool_command, "verify", str(root / "nowhere")], capture_output=True).returncode == 1
