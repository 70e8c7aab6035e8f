"""Adds up what every test of every build printed; the last line is "N passed, N failed, N skipped".

usage: summarise.py BROKEN_BUILDS TESTLOG.json|JUNIT.xml...

A test program prints TAP (Criterion's --tap), or closes with a line "N passed, N failed, N skipped" or with pytest's; one that
closes with neither counts as one, by its exit status. A program that failed counts at least one failure, whatever it printed.
pytest, run alone, leaves a JUnit file; one that is missing or empty is a failure.
"""
import json
import re
import sys
import xml.etree.ElementTree

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


def of_testlog(path):
    """(name, passed, failed, skipped, reasons of skips) of each program in meson's log."""
    for line in open(path):
        test = json.loads(line)
        yield (test["name"], *counts_of(test))


def of_junit(path):
    """The same of each test in pytest's report."""
    try:
        cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError):
        cases = []
    if not cases:
        yield "pytest, which ended before it reported", 0, 1, 0, []
    for case in cases:
        failed = case.find("failure") is not None or case.find("error") is not None
        skip = case.find("skipped")
        skipped = skip is not None and not failed
        reasons = [skip.get("message", "no reason given")] if skipped else []
        yield f"{case.get('classname')}.{case.get('name')}", int(not failed and not skipped), int(failed), int(skipped), reasons


def main():
    total = [0, int(sys.argv[1]), 0]
    for path in sys.argv[2:]:
        for name, passed, failed, skipped, skips in of_junit(path) if path.endswith(".xml") else of_testlog(path):
            total = [total[0] + passed, total[1] + failed, total[2] + skipped]
            if failed:
                print(f"failed: {name} ({path})")
            if skipped:
                for reason in skips:
                    print(f"skipped: {name}: {reason.strip()}")
    print("%d passed, %d failed, %d skipped" % tuple(total))
    return 1 if total[1] or not total[0] else 0


sys.exit(main())
