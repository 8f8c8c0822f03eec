"""``isopose demo``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import Workers


def demo(
    output: Annotated[Path, typer.Option(help="folder for everything the demo makes")] = Path("demo"),
    modality: Annotated[str, typer.Option(help="of the phantoms: ct or mr")] = "ct",
    workers: Workers = 2,
    seed: int = 0,
) -> None:
    """Run phantoms, fit, predict, evaluate and report on this machine, in a few minutes."""
    from isopose.demo import run_demo
    from isopose.heap import keep_freed_memory
    from isopose.progress import Terminal

    keep_freed_memory()
    report = run_demo(
        output,
        workers=workers,
        seed=seed,
        reporter=Terminal(),
        modality=modality,  # type: ignore[arg-type]  # checked by the phantoms
    )
    typer.echo(f"report: {report}")
