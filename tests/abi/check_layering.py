"""A room includes only lower floors (docs/ARCHITECTURE.md), and each outside library has its sole user.

usage: check_layering.py ENGINE_DIR
"""
import os
import re
import sys

engine = sys.argv[1]
FLOOR = {"base": 0, "format": 1, "wire": 1, "io": 1, "arena": 1, "proc": 1, "plan": 2, "claim": 2, "write": 3, "save": 3, "read": 3, "publish": 3, "stream": 3, "collect": 4, "api": 5}
SOLE_USER = {"liburing.h": {"io/uring.c"}, "xxhash.h": {"base/hash.c"}, "xxh_x86dispatch.h": {"base/hash.c"}}
failed = files = 0

for room in sorted(os.listdir(engine)):
    if not os.path.isdir(f"{engine}/{room}"):
        continue
    if room not in FLOOR:
        print(f"FAIL {room}: a room without a floor")
        failed += 1
        continue
    for name in sorted(os.listdir(f"{engine}/{room}")):
        if not name.endswith((".c", ".h")):
            continue
        files += 1
        bad = 0
        for included in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', open(f"{engine}/{room}/{name}").read()):
            other = included.split("/")[0]
            here = f"{room}/{name}"
            wrong = (
                (other in FLOOR and "/" in included and other != room and FLOOR[other] >= FLOOR[room])
                or (included in SOLE_USER and here not in SOLE_USER[included]))
            if wrong:
                print(f"FAIL {here} includes <{included}>")
                bad = 1
        failed += bad
print(f"{files - failed} passed, {failed} failed, 0 skipped")
sys.exit(failed != 0 or files == 0)
