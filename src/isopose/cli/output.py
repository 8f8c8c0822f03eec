"""Report the results and problems of a command."""

import json
from collections.abc import Iterable
from typing import Any

import typer


def fail_if(problems: Iterable[str | None]) -> None:
    """Print problems that are not None and, if there are any, exit with code 2."""
    lines = [problem for problem in problems if problem is not None]
    for problem in lines:
        typer.echo(f"isopose: {problem}", err=True)
    if lines:
        raise typer.Exit(2)


def print_json(value: Any) -> None:
    """Print the result as JSON, for ``--json``.

    Raises:
        ValueError: a value is not finite.
    """
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
