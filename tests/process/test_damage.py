"""tspool verify on a real trainer's checkpoint whose files somebody spoils: each damage is named, with file, range and tensor.

usage: test_damage.py TSPOOL TRAINER WRITER        (needs nothing but the standard library)

What spoils a file is random, from a fixed seed; sim/damage.c does it by the thousand.
"""
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

TSPOOL, TRAINER, WRITER = sys.argv[1:4]
DAMAGES = 25  # of each file
TIMEOUT = 60
MANIFEST = "tspool.manifest.json"
SECTOR = 512
passed = failed = 0


def run(*arguments):
    return subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT)


def check(holds, what, detail=""):
    global passed, failed
    passed += bool(holds)
    failed += not holds
    if not holds:
        print(f"FAIL {what}: {detail}")


def verify(path):
    """(exit status, findings, the last object) of tspool verify --json."""
    ended = run(TSPOOL, "verify", "--json", path)
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    return ended.returncode, [line for line in said if line["event"] == "finding"], said[-1]


def tensors_of(path):
    said = [json.loads(line) for line in run(TSPOOL, "ls", "--json", path).stdout.splitlines()]
    return [line for line in said if "name" in line and "file_offset" in line]


def flipped(raw, at, dice):
    return raw[:at] + bytes([raw[at] ^ 1 << dice.randrange(8)]) + raw[at + 1:]


def zeroed(raw, at, dice):
    begin = at // SECTOR * SECTOR
    end = min(begin + SECTOR, len(raw))
    return raw[:begin] + bytes(end - begin) + raw[end:]


def scrambled(raw, at, dice):
    end = min(at + dice.randrange(1, 100), len(raw))
    return raw[:at] + dice.randbytes(end - at) + raw[end:]


def cut(raw, at, dice):
    return raw[:at]


def extended(raw, at, dice):
    return raw + dice.randbytes(1 + at % 1000)


def covers(finding, name, at, size):
    if finding["file"] != name:
        return False
    if at >= size:  # there is no range beyond the end, only the place
        return finding["file_offset"] == size
    return finding["file_offset"] <= at < finding["file_offset"] + finding["bytes"]


def file_is_damaged(path, name, raw, spoilt, tensors, what):
    status, findings, last = verify(path)
    check(status == 1, what, "it is whole")
    if name == MANIFEST:  # nothing can be said without it but that
        check(last["verdict"] != "whole" and MANIFEST in json.dumps(last), what, last)
        return
    header = 8 + struct.unpack("<Q", raw[:8])[0] if name.endswith(".safetensors") else 0
    changed = [at for at in range(max(len(raw), len(spoilt))) if at >= min(len(raw), len(spoilt)) or raw[at] != spoilt[at]]
    check(last["verdict"] == "damaged" and {finding["file"] for finding in findings} == {name}, what, findings)
    for at in (changed[0], changed[len(changed) // 2], changed[-1]):
        named = [finding for finding in findings if covers(finding, name, at, len(raw))]
        check(named, what, f"byte {at} is in none of {findings}")
        owner = [tensor["name"] for tensor in tensors if tensor["file"] == name
                 and tensor["file_offset"] <= at < tensor["file_offset"] + tensor["bytes"]]
        if owner and len(raw) == len(spoilt) and changed[0] >= header:
            check(owner[0] in [finding["tensor"] for finding in named], what, f"{owner[0]} is not named in {named}")


def bytes_are_spoilt(path, dice):
    tensors = [tensor for tensor in tensors_of(path) if not tensor.get("tied_to")]
    check(len(tensors) > 3, "the trainer has tensors", tensors)
    for name in sorted(os.listdir(path)):
        raw = open(f"{path}/{name}", "rb").read()
        for number in range(DAMAGES):
            spoil = (flipped, zeroed, scrambled, cut, extended)[number % 5]
            at = dice.randrange(len(raw))
            spoilt = spoil(raw, at, dice)
            if spoilt == raw:
                continue
            open(f"{path}/{name}", "wb").write(spoilt)
            file_is_damaged(path, name, raw, spoilt, tensors, f"{name} {spoil.__name__} at {at}")
        open(f"{path}/{name}", "wb").write(raw)
    check(verify(path)[0] == 0, "put back it is whole again")


def unlink(path):
    os.unlink(path)


def pipe(path):
    os.unlink(path)
    os.mkfifo(path)


def directory(path):
    os.unlink(path)
    os.mkdir(path)


def link(path):
    os.rename(path, f"{path}.moved")
    os.symlink(os.path.basename(path) + ".moved", path)


def files_are_replaced(path):
    for name in sorted(os.listdir(path)):
        for put in (unlink, pipe, directory, link):
            spoilt = f"{path}-spoilt"
            shutil.copytree(path, spoilt)
            put(f"{spoilt}/{name}")
            status, findings, last = verify(spoilt)
            named = [finding["file"] for finding in findings if finding["kind"] != "foreign"]
            check(status == 1 and (named == [name] or (name == MANIFEST and MANIFEST in json.dumps(last))),
                  f"{name}: {put.__name__}", (findings, last))
            shutil.rmtree(spoilt)


def files_are_exchanged(one, two):
    for name in sorted(os.listdir(one)):
        spoilt = f"{one}-spoilt"
        shutil.copytree(one, spoilt)
        shutil.copy(f"{two}/{name}", f"{spoilt}/{name}")
        status, findings, last = verify(spoilt)
        check(status == 1 and last["verdict"] == "damaged" and findings, f"{name} of another step", (findings, last))
        shutil.rmtree(spoilt)


def main():
    root = tempfile.mkdtemp(prefix="tspool-damage-", dir=os.environ.get("TSPOOL_TEST_DIR"))
    try:
        made = run(TRAINER, "--root", f"{root}/runs", "--writer", WRITER, "--steps", "4", "--save-every", "2", "--hidden", "32")
        check(made.returncode == 0, "the trainer runs", made.stderr)
        one, two = (f"{root}/runs/{name}" for name in sorted(os.listdir(f"{root}/runs"))[:2])
        check(verify(one)[0] == 0 and verify(two)[0] == 0, "both are whole")
        bytes_are_spoilt(one, random.Random(7))
        files_are_replaced(one)
        files_are_exchanged(one, two)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
