"""The example with MPI: two ranks train, save together, and are resumed by two and by three.

usage: test_mpi.py TSPOOL WRITER TRAINER_MPI|-        exit status 77 (skipped) where MPI is missing
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

TSPOOL, WRITER, TRAINER = sys.argv[1:4]
TIMEOUT = 100


def skip(reason):
    print(f"skipped: {reason}\n0 passed, 0 failed, 1 skipped")
    sys.exit(77)


def trainer(root, ranks, *options):
    """Lines of the run. As root and with more ranks than cores, which mpirun only does when asked."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", str(ranks), TRAINER, "--root", root, "--writer", WRITER]
    run = subprocess.run(command + list(options), capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert run.returncode == 0, (run.stdout, run.stderr)
    return run.stdout.splitlines()


def tspool(*arguments):
    run = subprocess.run([TSPOOL, *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    assert run.returncode == 0, (arguments, run.stdout, run.stderr)
    return run.stdout


def main():
    if TRAINER == "-":
        skip("the example was not built: install libopenmpi-dev")
    if not shutil.which("mpirun"):
        skip("there is no mpirun: install openmpi-bin")
    folder = tempfile.mkdtemp(prefix="tspool-mpi-", dir=os.environ.get("TSPOOL_TEST_DIR"))
    root, whole = f"{folder}/run", f"{folder}/whole"
    try:
        first = trainer(root, 2, "--steps", "40")
        assert [line for line in first if line.startswith("checkpoint")] == [
            f"checkpoint step-{step:08} published by 2 ranks" for step in (20, 40)], first
        assert sorted(os.listdir(root)) == ["step-00000020", "step-00000040"]
        tspool("verify", f"{root}/step-00000040")
        shards = [json.loads(line) for line in tspool("ls", "--json", f"{root}/step-00000040").splitlines()]
        assert sorted(line["global_offsets"] for line in shards if line.get("name") == "weight") == [[0, 0], [48, 0]]
        second = trainer(root, 3, "--resume", "--steps", "60")
        assert f"resumed from {root}/step-00000040 with 3 ranks" in second, second
        undisturbed = trainer(whole, 2, "--steps", "60")
        losses = [float(lines[-1].split()[-1]) for lines in (second, undisturbed)]
        assert second[-1].startswith("step 60 ") and abs(losses[0] - losses[1]) <= 1e-6, (second, undisturbed)
        again = trainer(root, 2, "--resume", "--steps", "80")
        assert f"resumed from {root}/step-00000060 with 2 ranks" in again, again
        assert tspool("latest", root) == f"{root}/step-00000080\n"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("ok   ranks save together, and another number of ranks resumes\n1 passed, 0 failed, 0 skipped")


if __name__ == "__main__":
    main()
