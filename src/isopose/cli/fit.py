"""``isopose fit``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isopose.cli.options import ConfigFile, DatasetPath, Fold, Label, Masks, Setting, Workers, parse_labels
from isopose.errors import InputError

if TYPE_CHECKING:
    from isopose.config import Config as Settings
    from isopose.io.datasets import Dataset
    from isopose.progress import Reporter


def fit(
    dataset: DatasetPath,
    model: Annotated[Path, typer.Option(help="folder for the model")],
    preset: Annotated[str | None, typer.Option(help="default or paper (default: default)")] = None,
    config: ConfigFile = None,
    settings: Setting = None,
    fold: Fold = None,
    folds: Annotated[
        str | None,
        typer.Option(
            help="all: train a model of each fold, one after the other, then cross-validate (--fold all: one "
            "model of all patients); the same command with --resume, run in parallel, trains other folds"
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="model to fine-tune: its weights, frame and settings"),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="with --from: part to fine-tune (all, decoder, first2-last2), as train.parts"),
    ] = None,
    label: Label = None,
    masks: Masks = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the training in the folder")] = False,
    store: Annotated[
        Path | None, typer.Option(help="folder for preprocessed slices; runs may share it")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="memory limit of the U-Net's training, e.g. 4GB (process memory on a CPU, else GPU memory); "
            "chooses unet.recompute, unet.optimizer.parts and unet.input to fit it"
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="also log the training curves to mlflow or wandb, if installed; may be repeated"),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(help="folder of poses and crops set by hand, used as training targets"),
    ] = None,
    workers: Workers = 2,
) -> None:
    """Train pose, crop and segmentation on a dataset."""
    from isopose.data.splits import split
    from isopose.heap import keep_freed_memory
    from isopose.io.datasets import open_dataset
    from isopose.io.masks import with_masks
    from isopose.presets import load_config
    from isopose.progress import Terminal

    if folds not in (None, "all"):
        raise InputError(f"--folds: expected all, got {folds!r}; --set train.folds=N sets their number")
    if folds is not None and fold is not None:
        raise InputError(
            f"--folds all trains a model of each fold, --fold {fold} a single model; give one of them"
        )
    keep_freed_memory()
    budget = None
    if memory is not None:
        from isopose.training.memory import parse_bytes

        budget = parse_bytes(memory)
    options = {"train.fold": fold, "train.parts": train}
    overrides = [
        *(settings or []),
        *(f"{key}={value}" for key, value in options.items() if value is not None),
    ]
    source_model = base = None
    if source:
        from isopose.models.folder import load_model
        from isopose.training.transfer import fine_tuning_settings

        source_model = load_model(source)
        base = fine_tuning_settings(source_model)
    if source_model and preset is not None:
        raise InputError("--preset: fine-tuning keeps the model's own settings; leave out --preset or --from")
    loaded = load_config(preset or "default", config, overrides, base=base)
    opened = with_masks(open_dataset(dataset, parse_labels(label)), masks)
    # Split before slow imports, so that too few patients for the folds are reported at once.
    split(opened, loaded.train)

    from isopose.data.modality import modality_warnings
    from isopose.ranks import rank
    from isopose.scan.correction import read_corrections
    from isopose.training.fit import fit as run
    from isopose.training.memory import fit_into
    from isopose.training.tracking import Tracked

    reporter = Terminal()
    for warning in modality_warnings(loaded.data, opened, "data.modality"):
        reporter.say(f"warning: {warning}")
    common: dict[str, Any] = {
        "source": source_model,
        "resume": resume,
        "store": store,
        "corrections": None if corrections is None else read_corrections(corrections),
        "workers": workers,
    }
    if budget is not None:
        # Fine-tuning keeps the input size of the weights.
        loaded = fit_into(
            loaded,
            opened.labels.classes,
            budget,
            reporter,
            shrink=source_model is None,
            channels=len(opened.channels),
        )
    if folds is not None:
        _fit_folds(opened, model, loaded, reporter, track or (), common)
        return
    with Tracked(reporter, track or (), model / "work", loaded) as tracked:
        run(opened, model, loaded, reporter=tracked, **common)
    if rank() == 0:
        typer.echo(f"model: {model}")


def _fit_folds(
    dataset: "Dataset",
    model: Path,
    config: "Settings",
    reporter: "Reporter",
    track: Sequence[str],
    common: dict[str, Any],
) -> None:
    """Train all folds and cross-validate; of several processes, the last one to finish scores the folds."""
    from isopose.errors import BusyError
    from isopose.evaluation.crossvalidation import cross_validate
    from isopose.report.tables import markdown
    from isopose.training.folds import fit_folds
    from isopose.training.tracking import Tracked

    def tracking(folder: Path, settings: "Settings") -> Tracked:
        return Tracked(reporter, track, folder / "work", settings)

    if not fit_folds(dataset, model, config, reporter=reporter, tracking=tracking, **common):
        return
    try:
        evaluation = cross_validate(dataset, model, config, workers=common["workers"], reporter=reporter)
    except BusyError:
        reporter.say(f"{model}: another process is scoring the folds")
        return
    typer.echo(markdown(evaluation))
    typer.echo(f"model: {model}")
