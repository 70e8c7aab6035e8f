"""For the processes that those tests spawn: they get our storage, too. Python imports this module by its name as it starts."""

import sys

if any("multiprocessing" in argument for argument in sys.argv + sys.orig_argv):
    import over_tspool  # noqa: F401
