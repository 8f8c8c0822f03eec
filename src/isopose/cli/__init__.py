"""The command line: results on stdout, progress on stderr.

Exit codes: 0 success; 2 bad input or usage, or some scans failed; 1 any other error that ended the run, such
as a full disk; 130 a signal. There is one module per command, and each imports what it needs when it runs, so
that ``isopose --help`` is quick.
"""

from isopose.cli.commands import app
from isopose.cli.entry import main

__all__ = ["app", "main"]
