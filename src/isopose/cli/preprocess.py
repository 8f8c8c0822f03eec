"""``isopose preprocess``."""

from typing import Annotated

import typer

from isopose.cli.options import (
    ConfigFile,
    Fold,
    Label,
    MasksAnywhere,
    Ray,
    Setting,
    Workers,
    local_path,
    parse_labels,
)
from isopose.cli.output import fail_if


def preprocess(
    dataset: Annotated[str, typer.Argument(help="as for fit")],
    store: Annotated[str, typer.Option(help="folder for preprocessed slices, as for fit --store")],
    preset: Annotated[str, typer.Option(help="default or paper")] = "default",
    config: ConfigFile = None,
    settings: Setting = None,
    fold: Fold = None,
    label: Label = None,
    masks: MasksAnywhere = None,
    ray: Ray = None,
    workers: Workers = 2,
) -> None:
    """Preprocess the slices of a training in advance; fit --store with the same settings uses them."""
    from isopose.presets import load_config
    from isopose.progress import Terminal

    chosen = [*(settings or []), *([] if fold is None else [f"train.fold={fold}"])]
    loaded = load_config(preset, config, chosen)
    if ray is not None:
        from isopose.cluster.places import place_of
        from isopose.cluster.preprocess import preprocess_on_cluster

        store_place, outcomes = preprocess_on_cluster(
            place_of(dataset),
            place_of(store),
            ray,
            loaded,
            labels=parse_labels(label),
            masks=None if masks is None else place_of(masks),
            reporter=Terminal(),
        )
        fail_if(outcome.problem for outcome in outcomes)
        typer.echo(f"store: {store_place}")
        return
    from isopose.data.splits import measured_cases, split
    from isopose.io.datasets import open_dataset
    from isopose.io.masks import with_masks

    mask_folder = None if masks is None else local_path(masks)
    opened = with_masks(open_dataset(local_path(dataset), parse_labels(label)), mask_folder)
    # Split before slow imports, so that too few patients for the folds are reported at once.
    cases = measured_cases(*split(opened, loaded.train), loaded.train)
    from isopose.data.modality import modality_warnings
    from isopose.training.preprocessing import preprocess as run

    reporter = Terminal()
    for warning in modality_warnings(loaded.data, opened, "data.modality"):
        reporter.say(f"warning: {warning}")
    prepared_store, _ = run(
        local_path(store),
        cases,
        opened.labels,
        loaded.data,
        channels=opened.channels,
        workers=workers,
        reporter=reporter,
    )
    typer.echo(f"store: {prepared_store.folder}")
