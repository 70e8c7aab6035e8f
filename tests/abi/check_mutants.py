"""What is shipped has no planted bugs in it (engine/base/mutant.h), not even ones that are switched off.

usage: check_mutants.py BINARY...
"""
import sys

failed = 0
for path in sys.argv[1:]:
    if b"mutant_planted" in open(path, "rb").read():
        print(f"FAIL {path} asks which bug is planted")
        failed += 1
print(f"{len(sys.argv) - 1 - failed} passed, {failed} failed, 0 skipped")
sys.exit(failed != 0 or len(sys.argv) < 2)
