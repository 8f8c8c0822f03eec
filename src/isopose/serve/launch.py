"""Start a server and report its address."""

import contextlib
import os
import secrets
import signal
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from isopose.errors import InputError
from isopose.files import only_writer, output_folder
from isopose.progress import Reporter
from isopose.serve.guard import TOKEN_NAME, Access, is_loopback

#: Environment variable that may hold the token, which other users could read in a command line.
VARIABLE = "ISOPOSE_TOKEN"


def access_for(host: str, port: int, token: str | None) -> Access:
    """Return the access rules: no token on loopback, else a token, generated if none is given.

    Raises:
        InputError: the token is too short.
    """
    given = token or os.environ.get(VARIABLE, "")
    if is_loopback(host):
        return Access(host, port, given)
    # Other machines open the page under this machine's name.
    names = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return Access(host, port, given or secrets.token_urlsafe(24), tuple(sorted(names)))


def run_server(
    make: Callable[[Access], Any], folder: Path, access: Access, reporter: Reporter, *, browser: bool
) -> None:
    """Serve until stopped, holding the folder's lock.

    Args:
        make: returns the application for the final address.
        folder: of the server's data; created.
        access: where to listen; port 0 takes a free one.
        reporter: receives the address and how to stop.
        browser: open the page in a browser.

    Raises:
        InputError: the address is not available, or another server uses the folder.
    """
    import uvicorn

    output_folder(folder)
    with only_writer(folder), contextlib.closing(_bind(access)) as listening:
        port = listening.getsockname()[1]
        access = Access(access.host, port, access.token, access.names)
        app = make(access)
        host_name = f"[{access.host}]" if ":" in access.host else access.host
        address = f"http://{host_name}:{port}/"
        if not is_loopback(access.host):
            reporter.say(
                "warning: others on the network can reach this server, and the connection is not encrypted; "
                "an SSH tunnel to a server on 127.0.0.1 is safer (docs/guides/page.md)"
            )
        opened = f"{address}?{TOKEN_NAME}={quote(access.token, safe='')}" if access.token else address
        reporter.say(f"isopose is at {opened}  (Ctrl-C stops it; its data are in {folder})")
        server = uvicorn.Server(
            # No log of requests: addresses may hold the token, and names of files.
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", server_header=False)
        )
        if browser:
            webbrowser.open(opened)
        # uvicorn raises SIGINT and SIGTERM again after its shutdown, which would end the process before ours.
        before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run(sockets=[listening])
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
        reporter.say("isopose: stopped; queued scans are predicted at the next start with the same folder")


def _bind(access: Access) -> socket.socket:
    kind = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    listening = socket.socket(kind, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((access.host, access.port))
        # From here on a browser that connects early waits instead of failing.
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--port {access.port}: {access.host} is not available ({reason}); choose another, or 0 for a "
            "free one"
        ) from None
    return listening
