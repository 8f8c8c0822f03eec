"""Pages in a browser: predict scans and set poses by hand, review a finished cohort."""

from importlib.util import find_spec

from isopose.errors import InputError


def needs_extra() -> None:
    """Check that the packages for the pages are installed.

    Raises:
        InputError: a package is missing; the message names the extra.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise InputError("the page needs FastAPI and uvicorn; install isopose[serve]")
