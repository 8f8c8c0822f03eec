"""``isopose review``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import Browser, Host, Label, Port, Token, Workers, labels_of


def review(
    predictions: Annotated[Path, typer.Argument(help="folder of label maps, as isopose predict writes them")],
    labels: Annotated[
        Path | None, typer.Argument(help="dataset, or folder of reference label maps, as for evaluate")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="folder of the scans; none: the dataset's, or imagesTs beside labelsTs"),
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
    from isopose.evaluation.evaluate import Evaluation, evaluate_folder
    from isopose.progress import Terminal
    from isopose.serve import needs_extra

    needs_extra()
    from isopose.serve.cohort import open_cohort
    from isopose.serve.launch import access_for, run_server
    from isopose.serve.review import review_app

    values, reporter = labels_of(label), Terminal()
    access = access_for(host, port, token)
    scores: list[Evaluation | None] = []
    for one in (predictions, against):
        if one is None or labels is None:
            scores.append(None)
            continue
        with reporter.counting(f"evaluate {one.name}") as progress:
            scored = evaluate_folder(
                one,
                labels,
                values,
                allow_missing=True,
                allow_failed=True,
                workers=max(workers, 1),
                progress=progress,
            )
        for why in scored.failed.values():
            reporter.say(f"warning: not scored: {why}")
        scores.append(scored)
    cohort = open_cohort(
        predictions,
        folder,
        truth=labels,
        images=images,
        against=against,
        labels=values,
        scores=scores[0],
        scores_against=scores[1],
    )
    run_server(lambda access: review_app(cohort, access), folder, access, reporter, browser=browser)
