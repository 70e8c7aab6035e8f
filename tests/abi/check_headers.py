"""Each public header compiles alone, without warnings, as C99 and up and as C++11 and up; its _INIT macros work in both.

usage: check_headers.py INCLUDE_DIR CC CXX|- HEADER...
"""
import re
import subprocess
import sys

include, cc, cxx, headers = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
passed = failed = skipped = 0


def initialisers(header):
    """One variable per _INIT macro of the header: struct tspool_x v = TSPOOL_X_INIT; in each language."""
    text = open(f"{include}/tspool/{header}").read()
    return [f"struct {name.lower()[:-5]} v{number} = {name};"
            for number, name in enumerate(re.findall(r"#define (TSPOOL_\w+_INIT)\b", text))]


def compiles(compiler, language, standard, header):
    text = f"#include <tspool/{header}>\n" + "\n".join(initialisers(header)) + "\nint main(void) { return 0; }\n"
    command = [compiler, "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers",
               "-I", include, "-fsyntax-only", "-"]
    return subprocess.run(command, input=text, text=True, capture_output=True)


for header in headers:
    for language, compiler, standards in (("c", cc, ("gnu99", "c11", "c17")), ("c++", cxx, ("c++11", "c++17", "c++20"))):
        for standard in standards:
            if compiler == "-":
                skipped += 1
                print(f"skip {header} {standard}: no C++ compiler")
                continue
            run = compiles(compiler, language, standard, header)
            passed += run.returncode == 0
            failed += run.returncode != 0
            print(("ok  " if run.returncode == 0 else "FAIL"), header, standard)
            if run.returncode:
                print(run.stderr)
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(failed != 0)
