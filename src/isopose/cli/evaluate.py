"""``isopose evaluate``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isopose.cli.options import AsJson, Label, Workers, parse_labels
from isopose.cli.output import fail_if, print_json


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="folder of label maps, one for each case")],
    labels: Annotated[Path, typer.Argument(help="dataset, or folder of ground-truth label maps")],
    output: Annotated[Path | None, typer.Option(help="folder for CSV, JSON, Markdown and HTML")] = None,
    label: Label = None,
    tolerance: Annotated[float, typer.Option(min=0.01, help="tolerance of the surface Dice, mm")] = 2.0,
    undrawn: Annotated[
        Literal["background", "ignore"],
        typer.Option(help="what slices without any label count as, see data.undrawn"),
    ] = "background",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="allow missing predictions; the tables list them")
    ] = False,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Score predictions against ground-truth labels, in 3D per patient on the native grid."""
    from isopose.evaluation.evaluate import evaluate, open_truth
    from isopose.files import output_folder
    from isopose.progress import Terminal
    from isopose.report.tables import markdown, write_evaluation

    if output is not None:
        output_folder(output)
    reporter = Terminal()
    with reporter.counting("evaluate") as progress:
        evaluation = evaluate(
            predictions,
            *open_truth(labels, parse_labels(label)),
            tolerance_mm=tolerance,
            undrawn=undrawn,
            allow_missing=allow_missing,
            allow_failed=True,
            workers=workers,
            progress=progress,
            note=lambda line: reporter.say(f"warning: {line}"),
        )
    if not evaluation.cases and not as_json:
        fail_if(evaluation.failed.values())
    if output is not None and evaluation.cases:
        write_evaluation(evaluation, output)
        # Imported here: plotting takes a quarter of a second to load.
        from isopose.report.html import write_evaluation_report

        write_evaluation_report(output / "report.html", evaluation)
    if as_json:
        print_json(evaluation.to_json())
    else:
        typer.echo(markdown(evaluation))
    fail_if(evaluation.failed.values())
