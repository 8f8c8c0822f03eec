"""``isopose study``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import (
    DatasetPath,
    Label,
    Setting,
    Workers,
    comma_separated,
    parse_duration,
    parse_labels,
    parse_whole,
)


def study(
    dataset: DatasetPath,
    output: Annotated[Path, typer.Option(help="folder for everything the study makes")],
    presets: Annotated[str, typer.Option(help="default, paper, or default,paper")] = "default",
    arms: Annotated[str | None, typer.Option(help="comma-separated names (default: all)")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated training seeds")] = "0",
    folds: Annotated[
        int, typer.Option(min=1, help="1: the dataset's own test cases; more: every patient is tested once")
    ] = 1,
    source: Annotated[
        Path | None,
        typer.Option(help="dataset of other patients, e.g. adults, for the transfer learning of Table 1"),
    ] = None,
    source_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="a label of the source dataset; replaces those of its layout"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="time for all training, e.g. 6h or 90m: shortens the U-Net of all arms alike"),
    ] = None,
    short_stns: Annotated[
        bool,
        typer.Option(
            "--short-stns",
            help="allow settings that train STN1 or STN2 less than the preset; the report then says that "
            "the preset was not tested",
        ),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file, for all arms")] = None,
    settings: Setting = None,
    label: Label = None,
    workers: Workers = 2,
) -> None:
    """Repeat the paper's experiment on a dataset: train and test all arms, write tables and figures."""
    from isopose.presets import read_settings
    from isopose.progress import Terminal
    from isopose.study.plan import Options
    from isopose.study.run import run_study

    options = Options(
        dataset=dataset,
        labels=parse_labels(label),
        presets=tuple(comma_separated(presets)),
        seeds=tuple(parse_whole("--seeds", seed) for seed in comma_separated(seeds)),
        folds=folds,
        settings=tuple(settings or ()),
        values=read_settings(config) if config else {},
        source=source,
        source_labels=parse_labels(source_label, "--source-label"),
        short_stns=short_stns,
    )
    report = run_study(
        output,
        options,
        arms=comma_separated(arms) if arms else None,
        budget_s=parse_duration(budget) if budget else None,
        workers=workers,
        reporter=Terminal(),
    )
    typer.echo(f"report: {report}")
