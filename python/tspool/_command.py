"""The `tspool` command: the C program that lies in the package."""

import os
import sys

from tspool._spool import home


def main() -> None:
    program = os.path.join(home(), "tspool")
    os.execv(program, [program, *sys.argv[1:]])
