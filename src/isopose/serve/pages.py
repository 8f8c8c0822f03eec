"""Static files, access control and binary responses of both servers."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isopose.isolation import line_of
from isopose.serve.guard import Access, Guard
from isopose.serve.viewing import slice_bytes

STATIC = Path(str(files("isopose.serve"))) / "static"


def add_pages(app: FastAPI, page: str) -> None:
    """Serve the page at ``/`` and its files at ``/static``."""

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(STATIC / page, media_type="text/html")

    app.mount("/static", _Unchanging(directory=STATIC), name="static")


def add_guard(app: FastAPI, access: Access) -> None:
    """Add access control, and answer unexpected errors in one line."""
    app.add_middleware(_OneLine)
    app.add_middleware(Guard, access=access)


def send_octets(path: Path) -> FileResponse:
    """Return a file as a binary response."""
    return FileResponse(path, media_type="application/octet-stream")


def send_slice(folder: Path, shape: tuple[int, int, int], z: int) -> Response:
    """Return all panels of one slice, see :func:`~isopose.serve.viewing.slice_bytes`.

    Raises:
        HTTPException: 404, there is no such slice.
    """
    try:
        return Response(slice_bytes(folder, shape, z), media_type="application/octet-stream")
    except IndexError:
        raise HTTPException(404, f"there are slices 0 to {shape[0] - 1}") from None


class _OneLine:
    """ASGI middleware that answers an unexpected error in one line.

    Starlette's own handler logs a traceback, which could name a patient.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            if scope["type"] != "http":
                raise
            # A response that has begun can only end.
            if not begun:
                await JSONResponse({"detail": str(line_of(error))}, 500)(scope, receive, send)


class _Unchanging(StaticFiles):
    """Static files that a browser caches but revalidates each time."""

    def file_response(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # as Starlette has it
        """Return the response with a header that asks browsers to revalidate."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response
