"""Adds up what every test of every build printed; the last line is "N passed, N failed, N skipped".

usage: summarise.py BROKEN_BUILDS TESTLOG.json...

A test program prints TAP (Criterion's --tap), or closes with a line "N passed, N failed, N skipped" or with pytest's; one that closes with
neither counts as one, by its exit status. A program that failed counts at least one failure, whatever it printed.
"""
import json
import re
import sys

TAP_OK = re.compile(r"^ok\b(?!.*# SKIP)", re.M)
TAP_NOT_OK = re.compile(r"^not ok\b", re.M)
TAP_SKIP = re.compile(r"^ok\b.*# SKIP.*$", re.M)
PLAIN = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", re.M)
PYTEST = re.compile(r"^=* ?(?:(\d+) failed, )?(?:(\d+) passed)?(?:, (\d+) skipped)?.* in [\d.]+s.*$", re.M)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def counts_of(test):
    text = COLOUR.sub("", test.get("stdout", "") + "\n" + test.get("stderr", ""))
    ended_well = test["result"] in ("OK", "EXPECTEDFAIL")
    plain = PLAIN.findall(text)
    if test["result"] == "SKIP":
        lines = text.strip().splitlines()
        passed, failed, skips = 0, 0, [lines[-1] if lines else "no reason given"]
        skipped = 1
    elif "TAP version" in text:
        skips = TAP_SKIP.findall(text)
        passed, failed, skipped = len(TAP_OK.findall(text)), len(TAP_NOT_OK.findall(text)), len(skips)
    elif plain:
        passed, failed, skipped = map(int, plain[-1])
        skips = re.findall(r"^skip.*$", text, re.M)
    elif PYTEST.search(text):
        failed, passed, skipped = (int(count or 0) for count in PYTEST.findall(text)[-1])
        skips = re.findall(r"^SKIPPED.*$", text, re.M)
    else:
        passed, failed, skipped, skips = int(ended_well), 0, 0, []
    if not ended_well and test["result"] != "SKIP" and failed == 0:
        failed = 1
    return passed, failed, skipped, skips


def main():
    total = [0, int(sys.argv[1]), 0]
    for path in sys.argv[2:]:
        for line in open(path):
            test = json.loads(line)
            passed, failed, skipped, skips = counts_of(test)
            total = [total[0] + passed, total[1] + failed, total[2] + skipped]
            if failed:
                print(f"failed: {test['name']} ({path})")
            if skipped:
                for reason in skips:
                    print(f"skipped: {test['name']}: {reason.strip()}")
    print("%d passed, %d failed, %d skipped" % tuple(total))
    return 1 if total[1] or not total[0] else 0


sys.exit(main())
