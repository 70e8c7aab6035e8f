"""`python -m tspool` is the `tspool` command."""

from tspool._command import main

main()
