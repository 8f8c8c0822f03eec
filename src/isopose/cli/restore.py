"""``isopose restore``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import AsJson, Workers
from isopose.cli.output import fail_if, print_json


def restore(
    predictions: Annotated[Path, typer.Argument(help="folder of the other segmenter's results, or one file")],
    homogenized: Annotated[Path, typer.Option(help="the folder that isopose homogenize wrote")],
    output: Annotated[Path, typer.Option(help="folder for the results")],
    keep_values: Annotated[
        bool, typer.Option("--keep-values", help="label values as predicted, not those of the dataset")
    ] = False,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Map another segmenter's results on a homogenized dataset back to each scan's own grid."""
    from isopose.homogenize.restore import restore as run
    from isopose.progress import Terminal

    outcomes = run(
        predictions, homogenized, output, keep_values=keep_values, workers=workers, reporter=Terminal()
    )
    if as_json:
        print_json(
            [
                {"name": outcome.name, "problem": outcome.problem, "record": outcome.record}
                for outcome in outcomes
            ]
        )
    else:
        for outcome in outcomes:
            for name in outcome.record["files"] if outcome.record is not None else ():
                typer.echo(output / name)
    fail_if(outcome.problem for outcome in outcomes)
