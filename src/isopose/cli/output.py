"""What a command tells at its end."""

import json
from collections.abc import Iterable
from typing import Any

import typer


def fail_if(problems: Iterable[str | None]) -> None:
    """Tell what could not be done, and end with code 2 where that is anything."""
    told = [problem for problem in problems if problem is not None]
    for problem in told:
        typer.echo(f"isopose: {problem}", err=True)
    if told:
        raise typer.Exit(2)


def print_json(value: Any) -> None:
    """Return the result as JSON, for ``--json``; a value that is not finite is an error of ours."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
