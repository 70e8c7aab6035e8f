"""Our header parser against Python's safetensors over tens of thousands of spoiled headers: what it refuses we refuse, what
both accept both read alike, and what only it accepts we refuse for a reason that is listed here.

    test_header_differential.py HEADER_TOOL CORPUS [--cases N] [--seed N] [--seconds N]

With --seconds it goes on, seed after seed. A disagreement is cut down to its least and printed. Prints TAP; skipped (77) where
safetensors is missing.
"""
import argparse
import json
import os
import random
import struct
import sys
import tempfile
import time

try:
    import safetensors
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

import header_mutants
from header_tool import Tool

# What safetensors 0.8.0 lets pass and we refuse: by our reason, or (the last two) by what is found in the file, where the same
# file without it is accepted. docs/FORMAT.md says the same to people.
TWICE, SHARDING = "given twice", "DCP_SHARDING_INFO"
STRICTER = {
    "contains a NUL": "names end at it in C, and two names would become one",
    "an array is too long": "more than 64 dimensions",
    "an object is expected here": "safetensors takes [dtype, shape, offsets] for an entry; the format says object",
    "a number is out of range": "numbers in members that nobody knows are read with less care there",
    "values are nested too deeply": "more than 64 levels in a member that nobody knows",
    TWICE: "safetensors keeps the last of two and does not look at the first: which one a reader takes would be chance",
    SHARDING: "it is any text to safetensors; parts are placed by it here, so it must be right",
}


def theirs(file):
    """{name: (dtype, shape, data)} as safetensors reads it, or None when it refuses."""
    try:
        return {name: (one["dtype"], one["shape"], bytes(one["data"])) for name, one in safetensors.deserialize(file)}
    except safetensors.SafetensorError:
        return None


def their_metadata(file, path):
    with open(path, "wb") as written:
        written.write(file)
    with safetensors.safe_open(path, "np") as opened:
        return opened.metadata() or {}


def without(file, what):
    """The file with the last of each name, or without the sharding info; None when it is not that."""
    repeated = []

    def pairs(members):
        repeated.append(len({key for key, _ in members}) != len(members))
        return dict(members)
    text = header_mutants.text_of(file)
    try:
        header = json.loads(text, object_pairs_hook=pairs)
        if what == SHARDING:
            del header["__metadata__"][SHARDING]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if what == TWICE and not any(repeated):
        return None
    return header_mutants.file_of(json.dumps(header).encode(), file[8 + len(text):])


def reason_known(parse, answer, file):
    """Which entry of STRICTER excuses us, or None."""
    for what in (TWICE, SHARDING):
        rest = without(file, what)
        if rest is not None:
            again = parse(rest)
            if "refused" not in again or reason_known(parse, again, rest):
                return what
    return next((known for known in STRICTER if known in answer["refused"]), None)


def disagreement(parse, file, scratch, count):
    """What is wrong with our answer, or None."""
    answer, reference = parse(file), theirs(file)
    if reference is None:
        count.refused += "refused" in answer
        return None if "refused" in answer else "only we accept it"
    if "refused" in answer:
        known = reason_known(parse, answer, file)
        count.stricter[known] = count.stricter.get(known, 0) + 1
        return None if known else f"only safetensors accepts it; we say: {answer['refused']}"
    count.accepted += 1
    (length,) = struct.unpack_from("<Q", file)
    data = file[8 + length:]
    got = {name: (dtype, shape, data[begin:end]) for name, dtype, shape, begin, end, _ in answer["tensors"]}
    if got != reference:
        return "both accept it and read different tensors"
    if answer["metadata"] and answer["metadata"] != their_metadata(file, scratch):
        return "both accept it and read different metadata"
    return None


def least(parse, file, complaint, scratch):
    """The same complaint about less: pieces of the JSON are left out while it stays."""
    text = header_mutants.text_of(file)
    data, size = file[8 + len(text):], len(text) // 2
    while size:
        at = 0
        while at < len(text):
            shorter = header_mutants.file_of(text[:at] + text[at + size:], data)
            if disagreement(parse, shorter, scratch, Count()) == complaint:
                text = text[:at] + text[at + size:]
            else:
                at += size
        size //= 2
    return header_mutants.file_of(text, data)


class Count:
    def __init__(self):
        self.cases = self.accepted = self.refused = 0
        self.stricter, self.complaints = {}, []


def corpus_read(folder):
    return [open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))]


def run(parse, folder, cases, seed, count):
    chance, corpus = random.Random(seed), corpus_read(folder)
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "one.safetensors")
        for _ in range(cases):
            file, accepted = header_mutants.mutant(chance, corpus), count.accepted
            complaint = disagreement(parse, file, path, count)
            count.cases += 1
            if complaint:
                count.complaints.append((complaint, least(parse, file, complaint, path)))
                break
            if count.accepted > accepted and len(corpus) < 500 and chance.random() < 0.05:
                corpus.append(file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("corpus")
    parser.add_argument("--cases", type=int, default=30000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0)
    options = parser.parse_args()
    count, started, tool = Count(), time.monotonic(), Tool(options.tool, "parse")

    def parse(file):
        return json.loads(tool.ask(file))
    run(parse, options.corpus, options.cases, options.seed, count)
    while time.monotonic() - started < options.seconds and not count.complaints:
        options.seed += 1
        run(parse, options.corpus, options.cases, options.seed, count)
    tool.close()

    print("TAP version 13\n1..2")
    print(f"{'not ok' if count.complaints else 'ok'} 1 - {count.cases} headers: none that only we accept, none refused without a "
          "listed reason, none read differently")
    for complaint, file in count.complaints:
        print(f"# seed {options.seed}: {complaint}\n#   {file!r}")
    told = count.accepted > count.cases // 20 and count.refused > count.cases // 4 and count.stricter
    print(f"{'ok' if told else 'not ok'} 2 - they told something: {count.accepted} accepted by both, {count.refused} refused")
    for reason, number in sorted(count.stricter.items(), key=str):
        print(f"#   {number} refused by us alone: \"{reason}\": {STRICTER.get(reason)}")
    print(f"# {count.cases / (time.monotonic() - started):.0f} headers a second")
    return 1 if count.complaints or not told else 0


if __name__ == "__main__":
    sys.exit(main())
