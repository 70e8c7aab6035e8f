"""Branch coverage per room of what a test run left in a build folder (b_coverage); fails below the target.

usage: coverage.py BUILD_FOLDER [--list ROOM]        with --list: each branch of that room that was never taken

What is counted: gcov's branches, both ways of each condition, as gcovr adds them up, without
  - those that the compiler made and no condition in the source stands for (--exclude-unreachable-branches: no code on the line;
    --exclude-throw-branches: none in C, stated for completeness);
  - lines that begin with assert( : the way out of an assertion is a bug's, and no test may take it;
  - the engine with planted bugs (tests/mutants), built in the same folder: no test of these suites runs it, and in the engine
    that they run MUTANT(NAME) is a constant, no branch.
Processes that end normally write their counters, the writer too; those that the tests kill do not: the figure is a
lower bound.
"""
import collections
import json
import os
import subprocess
import sys

ROOMS = ["format", "wire", "write", "save", "read"]
TARGET = 90.0
OPTIONS = ["--exclude-throw-branches", "--exclude-unreachable-branches", "--exclude-lines-by-pattern", r"^\s*assert\(.*",
           "--gcov-ignore-errors=no_working_dir_found", "--merge-mode-functions=separate",
           "--exclude-directory", r".*/tests/mutants/.*"]


def files_measured(source, build):
    """gcovr's own JSON, file by file."""
    filters = [option for room in ROOMS for option in ("--filter", f"{source}/engine/{room}/")]
    command = [sys.executable, "-m", "gcovr", "--root", source, "--object-directory", build, *OPTIONS, *filters,
               "--json", "-", build]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"gcovr failed: {run.stderr[-2000:]}")
    return json.loads(run.stdout)["files"]


def branches_of(file):
    """(line, taken) of each branch that counts."""
    for line in file["lines"]:
        if line.get("gcovr/noncode") or line.get("gcovr/excluded"):
            continue
        for branch in line.get("branches", []):
            if not branch.get("gcovr/excluded"):
                yield line["line_number"], branch["count"] > 0


def main():
    build = os.path.abspath(sys.argv[1])
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    taken, total, missed = collections.Counter(), collections.Counter(), collections.defaultdict(collections.Counter)
    for file in files_measured(source, build):
        room = file["file"].split("/")[1]
        for line, was_taken in branches_of(file):
            taken[room] += was_taken
            total[room] += 1
            missed[room][(file["file"], line)] += not was_taken
    if "--list" in sys.argv:
        for (file, line), count in sorted(missed[sys.argv[-1]].items()):
            if count:
                text = open(os.path.join(source, file)).read().splitlines()[line - 1]
                print(f"{file}:{line}: {count}: {text.strip()}")
        return 0
    for room in ROOMS:
        print(f"coverage: {room:7} {100 * taken[room] / max(total[room], 1):5.1f} % of {total[room]} branches")
    share = 100 * sum(taken.values()) / max(sum(total.values()), 1)
    print(f"coverage: total   {share:5.1f} % of {sum(total.values())} branches, target {TARGET:.0f} %")
    return share < TARGET


if __name__ == "__main__":
    sys.exit(main())
