"""The shared library exports exactly the functions that the public headers declare.

usage: check_symbols.py INCLUDE_DIR LIBTSPOOL
"""
import glob
import re
import subprocess
import sys

include, library = sys.argv[1:3]
declared = set()
for path in glob.glob(f"{include}/tspool/*.h"):
    text = re.sub(r"/\*.*?\*/", "", open(path).read(), flags=re.S)
    text = re.sub(r"typedef[^;]*;", "", text)
    declared |= set(re.findall(r"\b(tspool_\w+)\s*\(", text))
listing = subprocess.run(["nm", "-D", "--defined-only", library], text=True, capture_output=True, check=True).stdout
exported = {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.split()[1] != "A"}

for name in sorted(declared - exported):
    print(f"FAIL declared but not exported: {name}")
for name in sorted(exported - declared):
    print(f"FAIL exported but not declared: {name}")
good = len(declared & exported)
bad = len(declared ^ exported)
print(f"{good} passed, {bad} failed, 0 skipped")
sys.exit(bad != 0 or good == 0)
