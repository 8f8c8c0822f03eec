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
        self.output = ""
        while not (match := re.search(r"isopose is at (\S+)", self.output)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.output}"
            self.output += line
        self.address = match[1]

    def stop(self, how=signal.SIGTERM):
        """End the server; return its exit code and all of its output."""
        self.process.send_signal(how)
        self.output += self.process.communicate(timeout=30)[1]
        return self.process.returncode, self.output
