"""``isopose review``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isopose.cli.options import Browser, Host, Label, Port, Token, Workers, parse_labels

if TYPE_CHECKING:
    from isopose.evaluation.evaluate import Evaluation
    from isopose.progress import Reporter


def review(
    predictions: Annotated[Path, typer.Argument(help="folder of label maps, as isopose predict writes them")],
    labels: Annotated[
        Path | None, typer.Argument(help="dataset, or folder of ground-truth label maps, as for evaluate")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="folder of the scans (default: the dataset's, or imagesTs beside labelsTs)"),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="other predictions of the same cases, for comparison side by side")
    ] = None,
    folder: Annotated[Path, typer.Option(help="folder for decisions (review.csv) and cached views")] = Path(
        "isopose-review"
    ),
    label: Label = None,
    host: Host = "127.0.0.1",
    port: Port = 8471,
    token: Token = None,
    browser: Browser = True,
    workers: Workers = 2,
) -> None:
    """Review a finished cohort in the browser: worst case first, side by side, accept or reject."""
    from isopose.progress import Terminal
    from isopose.serve import needs_extra

    needs_extra()
    from isopose.serve.cohort import open_cohort
    from isopose.serve.launch import access_for, run_server
    from isopose.serve.review import review_app

    values, reporter = parse_labels(label), Terminal()
    access = access_for(host, port, token)
    cohort = open_cohort(
        predictions,
        folder,
        truth=labels,
        images=images,
        against=against,
        labels=values,
        scores=_score(predictions, labels, values, workers, reporter),
        scores_against=_score(against, labels, values, workers, reporter),
    )
    run_server(lambda access: review_app(cohort, access), folder, access, reporter, browser=browser)


def _score(
    predictions: Path | None,
    labels: Path | None,
    values: Mapping[str, int] | None,
    workers: int,
    reporter: "Reporter",
) -> "Evaluation | None":
    """Score predictions where there are ground-truth labels; report what cannot be scored."""
    from isopose.evaluation.evaluate import evaluate, open_truth

    if predictions is None or labels is None:
        return None
    with reporter.counting(f"evaluate {predictions.name}") as progress:
        evaluation = evaluate(
            predictions,
            *open_truth(labels, values),
            allow_missing=True,
            allow_failed=True,
            workers=workers,
            progress=progress,
        )
    for why in evaluation.failed.values():
        reporter.say(f"warning: not scored: {why}")
    return evaluation
