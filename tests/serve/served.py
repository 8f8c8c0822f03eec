"""Servers as a user starts them."""

import re
import signal
import subprocess
import sys


class Served:
    """A running server."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "isopose", *map(str, arguments), "--port", "0", "--no-browser"],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        while not (found := re.search(r"isopose is at (\S+)", self.said)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.said}"
            self.said += line
        self.address = found[1]

    def stop(self, how=signal.SIGTERM):
        """End the server; return its exit code and all of its output."""
        self.process.send_signal(how)
        self.said += self.process.communicate(timeout=30)[1]
        return self.process.returncode, self.said
