"""Access control of the server, and the security headers of its pages."""

import hmac
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isopose.errors import InputError

#: Header required for changes; a page of another site cannot send it.
INTENT_HEADER = "x-isopose"
#: Query parameter and cookie name of the token.
TOKEN_NAME = "token"
#: Minimum length of a user's token in characters.
SHORTEST_TOKEN = 16

#: No resources from other origins, and no embedding in other pages. NiiVue loads its font and color maps from
#: data URLs.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Access:
    """Where a server listens and which requests it accepts.

    Args:
        host: address that it is bound to.
        port: port that it is bound to.
        token: required token; empty: none, which is allowed on loopback only.
        names: further host names of this machine.

    Raises:
        InputError: an address other than loopback without a token, or a token that is too short or holds
            characters that no HTTP header can.
    """

    host: str
    port: int
    token: str = ""
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host}: others can reach it, expected --token as well, or no --host"
            )
        if self.token and len(self.token) < SHORTEST_TOKEN:
            raise InputError(f"--token: expected {SHORTEST_TOKEN} characters or more, got {len(self.token)}")
        if not (self.token.isascii() and self.token.isprintable()):
            raise InputError("--token: expected ASCII letters, digits and signs only")

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this server; any other name may be another site's."""
        # Not Starlette's TrustedHostMiddleware: it compares names with a list, and the addresses of this
        # server cannot be listed (forwarded ports, networks that are joined later).
        name = _host_name(host)
        # Unlike a name, an IP address cannot be pointed here by the owner of a domain (DNS rebinding).
        return (
            name in ("localhost", *self.names)
            or (bool(self.token) and _is_address(name))
            or is_loopback(name)
        )


class Guard:
    """ASGI middleware that rejects what :class:`Access` does not allow and sets security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access
        # Cookies ignore ports, so the name contains it: two servers of one machine stay separate.
        self.cookie = f"isopose-{access.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse, one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        request = HTTPConnection(scope)
        reason = self._check(request)
        if reason:
            await PlainTextResponse(reason, 403)(scope, receive, send_guarded)
            return
        if self.access.token and not self._has_token(request):
            if scope["method"] in _SAFE and self._matches(request.query_params.get(TOKEN_NAME, "")):
                # Redirect to the address without the token, so that it stays out of history and copied links.
                rest = urlencode(
                    [item for item in request.query_params.multi_items() if item[0] != TOKEN_NAME]
                )
                away = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
                away.set_cookie(self.cookie, self.access.token, httponly=True, samesite="strict")
                await away(scope, receive, send_guarded)
                return
            message = "a token is needed: open the address that isopose printed when it started"
            await PlainTextResponse(message, 401)(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)

    def _check(self, request: HTTPConnection) -> str:
        """Return why a request is refused; empty if it is not."""
        headers = request.headers
        host = headers.get("host", "")
        if not self.access.knows(host):
            return "this server does not use that name; open the address that isopose printed"
        origin = headers.get("origin")
        # With the port, because another port of this machine is another site.
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            return "requests from other sites are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests from other sites are refused; type the address instead"
        if request.scope["method"] not in _SAFE and INTENT_HEADER not in headers:
            return f"expected a header {INTENT_HEADER}, which the page itself sends"
        return ""

    def _has_token(self, request: HTTPConnection) -> bool:
        given = request.headers.get("authorization", "")
        if given.lower().startswith("bearer ") and self._matches(given[7:].strip()):
            return True
        return self._matches(request.cookies.get(self.cookie, ""))

    def _matches(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.access.token.encode())


def is_loopback(host: str) -> bool:
    """Return whether an address or name is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_name(host: str) -> str:
    """Return the name or address in a Host header; empty if the header is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # Raises for a port that is none.
    except ValueError:
        return ""
    whole = parts.netloc == host and parts.username is None
    return (parts.hostname or "") if whole else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
