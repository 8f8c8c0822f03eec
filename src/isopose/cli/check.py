"""``isopose check``."""

import typer

from isopose.cli.options import AsJson, DatasetPath, Label, Workers, labels_of
from isopose.cli.output import print_json


def check(dataset: DatasetPath, label: Label = None, workers: Workers = 0, as_json: AsJson = False) -> None:
    """Report every problem of a dataset with its case, and its fingerprint."""
    from isopose.config import DataConfig
    from isopose.data.fingerprint import describe, fingerprint_of
    from isopose.io.check import check_dataset
    from isopose.io.datasets import open_dataset
    from isopose.progress import Terminal

    opened = open_dataset(dataset, labels_of(label))
    with Terminal().counting("check") as progress:
        problems = check_dataset(opened, workers=workers, progress=progress)
    broken = {problem.case for problem in problems if problem.severity == "error"}
    # The fingerprint is of what training may see, and of cases that can be read.
    usable = [c for c in opened.cases if c.label is not None and c.split != "test" and c.id not in broken]
    fingerprint = None
    if usable:
        with Terminal().counting("fingerprint") as progress:
            fingerprint = fingerprint_of(
                usable, opened.labels, DataConfig(), workers=workers, progress=progress
            )
    if as_json:
        print_json(
            {
                "dataset": opened.name,
                "layout": opened.layout,
                "cases": len(opened.cases),
                "problems": [vars(problem) for problem in problems],
                "fingerprint": fingerprint and fingerprint.to_json(),
            }
        )
    else:
        typer.echo(
            f"{opened.name}: {opened.layout}, {len(opened.cases)} cases, labels {dict(opened.labels.values)}"
        )
        for problem in problems:
            typer.echo(f"{problem.severity}: {problem.case}: {problem.message}")
        for name, value in describe(fingerprint) if fingerprint else []:
            typer.echo(f"{name:<32} {value}")
        typer.echo(f"{len(broken)} of {len(opened.cases)} cases cannot be used" if broken else "no errors")
    if broken:
        raise typer.Exit(2)
