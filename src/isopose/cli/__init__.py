"""The command line: results on stdout, progress on stderr; 0 done, 2 bad input or usage, or scans not done.

1 is what ended the whole run and was not in what was given, such as a full disk; 130 a signal.

One module a command; each imports what it needs when it runs, so that ``isopose --help`` is quick.
"""

from isopose.cli.commands import app
from isopose.cli.entry import main

__all__ = ["app", "main"]
