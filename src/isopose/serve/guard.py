"""Access control of the server, and the security headers of its pages."""

import hmac
import ipaddress
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isopose.errors import InputError

LOOPBACK = "127.0.0.1"
#: Header required for changes; a page of another site cannot send it.
INTENT = "x-isopose"
#: Query parameter and cookie name of the token.
TOKEN = "token"
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
        InputError: an address other than loopback without a token, or a token that is too short.
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

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this server; any other name may be another site's."""
        name = (urlsplit(f"//{host}").hostname or "").lower()
        # Unlike a name, an IP address cannot be pointed here by the owner of a domain.
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

        headers = Headers(scope=scope)
        reason = self._refused(scope, headers)
        if reason:
            await PlainTextResponse(reason, 403)(scope, receive, send_guarded)
            return
        if self.access.token and not self._shown(headers):
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            if scope["method"] in _SAFE and self._matches(query.pop(TOKEN, "")):
                # Redirect to the address without the token, so that it stays out of history and copied links.
                rest = f"?{urlencode(query)}" if query else ""
                away = RedirectResponse(scope["path"] + rest, 303)
                away.set_cookie(self.cookie, self.access.token, httponly=True, samesite="strict")
                await away(scope, receive, send_guarded)
                return
            message = "a token is needed: open the address that isopose printed when it started"
            await PlainTextResponse(message, 401)(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)

    def _refused(self, scope: Scope, headers: Headers) -> str:
        host = headers.get("host", "")
        if not self.access.knows(host):
            return "this server is not known by that name; open the address that isopose printed"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "requests of other sites are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests of other sites are refused; type the address instead"
        if scope["method"] not in _SAFE and INTENT not in headers:
            return f"expected a header {INTENT}, which the page itself sends"
        return ""

    def _shown(self, headers: Headers) -> bool:
        given = headers.get("authorization", "")
        if given.lower().startswith("bearer ") and self._matches(given[7:].strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and self._matches(cookie.value)

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.access.token.encode())


def is_loopback(host: str) -> bool:
    """Return whether an address or name is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
