"""What both servers share: static files, the guard, and files as a browser takes them."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from isopose.serve.guard import Access, Guard
from isopose.serve.viewing import slice_bytes

STATIC = Path(str(files("isopose.serve"))) / "static"


def add_pages(app: FastAPI, page: str) -> None:
    """The page at ``/``, and what it is made of at ``/static``."""

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(STATIC / page, media_type="text/html")

    app.mount("/static", _Unchanging(directory=STATIC), name="static")


def with_guard(app: FastAPI, access: Access) -> None:
    """Nothing is answered but through the guard."""
    app.add_middleware(Guard, access=access)


def octets(path: Path) -> FileResponse:
    """A file for the page itself to read."""
    return FileResponse(path, media_type="application/octet-stream")


def slice_answer(folder: Path, shape: tuple[int, int, int], z: int) -> Response:
    """All panels of one slice, see :func:`~isopose.serve.viewing.slice_bytes`; 404 where there is no such."""
    try:
        return Response(slice_bytes(folder, shape, z), media_type="application/octet-stream")
    except IndexError:
        raise HTTPException(404, f"there are slices 0 to {shape[0] - 1}") from None


class _Unchanging(StaticFiles):
    """Files that a browser keeps, and asks each time whether they are still the same."""

    def file_response(self, *args, **kwargs):  # type: ignore[no-untyped-def]  # as Starlette has it
        """With a header that says so."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response
