#!/usr/bin/env python3
"""Kills examples/trainer with SIGKILL at random moments, resumes it until it is through, and compares the final state,
bit for bit, with that of a run that nobody disturbed.

    test_trainer_resume.py TRAINER WRITER [SEED]

Whatever state a checkpoint fails to hold, or holds from another moment, shows as another digest. Prints TAP.
"""
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

STEPS = 900
SAVE_EVERY = 7  # no divisor of what is printed: kills fall anywhere between two saves
KILLS = 6
PATIENCE_S = 120

number = 0
broken = 0


def check(holds, what, detail=""):
    global number, broken
    number += 1
    broken += not holds
    print(f"{'ok' if holds else 'not ok'} {number} - {what}")
    if not holds:
        print("".join(f"# {line}\n" for line in str(detail).splitlines()), end="")
    sys.stdout.flush()


def command(trainer, writer, root, *more):
    return [trainer, "--root", root, "--writer", writer, "--steps", str(STEPS), "--save-every", str(SAVE_EVERY),
            "--print-every", "5", "--hidden", "256", "--final-digest", *more]


def digest_of(output):
    found = re.search(r"^final digest ([0-9a-f]{16})$", output, re.M)
    return found.group(1) if found else None


def run_whole(arguments):
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stdout


def read_until(process, lines_wanted, pause_s):
    """Reads until so many steps were printed, then for pause_s more; returns what was read."""
    output, deadline = b"", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not piece:
            break
        output += piece
        if len(re.findall(rb"^step ", output, re.M)) >= lines_wanted:
            lines_wanted = sys.maxsize
            deadline = min(deadline, time.monotonic() + pause_s)
    return output.decode()


def run_killed(arguments, chance):
    """Starts the trainer and kills it after some steps; returns (was it killed, its output)."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = read_until(process, chance.randint(1, 24), chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL, output


def strays(root):
    """What is left of saves that never were: the writers of killed trainers may be sweeping still, so look for a while."""
    deadline = time.monotonic() + 10
    while True:
        found = [name for name in os.listdir(root) if name.startswith(".")]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def main():
    trainer, writer = sys.argv[1:3]
    chance = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 20)
    with tempfile.TemporaryDirectory(prefix="tspool-resume-") as folder:
        calm, stormy = os.path.join(folder, "calm"), os.path.join(folder, "stormy")

        status, output = run_whole(command(trainer, writer, calm))
        expected = digest_of(output)
        check(status == 0 and expected, "an undisturbed run ends well", output)
        losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", output)]
        check(losses and losses[-1] < 0.7 * losses[0], "its loss falls", losses)

        resumed = 0
        for kill in range(1, KILLS + 1):
            staging = ["--background"] if kill % 2 else []
            killed, output = run_killed(command(trainer, writer, stormy, "--resume", *staging), chance)
            last = re.findall(r"^step +(\d+)", output, re.M)
            origin = re.search(r"resumed from .*step-0*(\d+)$", output, re.M)
            resumed += origin is not None
            check(killed and last, f"kill {kill}: started at step {origin.group(1) if origin else 0}, killed after step "
                  f"{last[-1] if last else '?'}", output)
        check(resumed >= KILLS - 2, "killed runs were resumed, not begun again", f"{resumed} of {KILLS}")

        status, output = run_whole(command(trainer, writer, stormy, "--resume"))
        check(status == 0, "the last run ends well", output)
        check("resumed from" in output, "it went on from a checkpoint", output)
        check(digest_of(output) == expected, "its state is that of the undisturbed run, bit for bit",
              f"{digest_of(output)} instead of {expected}\n{output}")
        left = strays(stormy)
        check(not left, "nothing stray is left among the checkpoints", left)
    print(f"1..{number}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
