"""The command line: results on stdout, progress on stderr; 0 done, 1 failed, 2 bad input or usage.

One module a command; each imports what it needs when it runs, so that ``isopose --help`` is quick.
"""

from isopose.cli.commands import app
from isopose.cli.entry import main

__all__ = ["app", "main"]
