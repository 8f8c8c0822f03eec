"""The command line: results on stdout, progress on stderr; 0 done, 1 failed, 2 bad input or usage."""

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Iterable
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from isopose import __version__
from isopose.errors import InputError, IsoposeError

app = typer.Typer(
    name="isopose",
    help="Segment organs and tumours in CT of patients who differ in size and pose.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DatasetPath = Annotated[
    Path, typer.Argument(help="nnU-Net v2 raw, KiTS or Decathlon folder, or a CSV manifest")
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE, repeated: the labels, where the data do not say"),
]
Workers = Annotated[int, typer.Option(min=0, help="processes; 0 works in this one, with the same result")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="work on a Ray cluster: auto, HOST:PORT, or local for this machine's cores; inputs and outputs "
        "may then be URLs, e.g. s3://bucket/folder",
    ),
]
Host = Annotated[str, typer.Option(help="address to listen at; any but this machine's own needs a token")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")]
Token = Annotated[
    str | None,
    typer.Option(help="that a browser has to show; none: ISOPOSE_TOKEN, or one is made where needed"),
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in one")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, repeated")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"isopose {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder for everything the demo makes")] = Path("demo"),
    workers: Workers = 2,
    seed: int = 0,
) -> None:
    """Phantom cohort, fit, predict, evaluate and report, on this machine, in some minutes."""
    from isopose.demo import run_demo
    from isopose.progress import Terminal

    report = run_demo(output, workers=workers, seed=seed, reporter=Terminal())
    typer.echo(f"report: {report}")


@app.command()
def phantom(
    output: Path,
    cases: Annotated[int, typer.Option(min=1)] = 20,
    slices: Annotated[int | None, typer.Option(min=4, help="per case; none: by thickness")] = None,
    size: Annotated[int, typer.Option(min=64, max=1024, help="pixels along a side of a slice")] = 512,
    seed: int = 0,
    test_fraction: Annotated[float, typer.Option(min=0.0, max=0.9, help="part put into imagesTs")] = 0.25,
    population: Annotated[str, typer.Option(help="child: birth to 16 years, or adult")] = "child",
    workers: Workers = 0,
) -> None:
    """Write synthetic CT of children or adults as an nnU-Net raw dataset, with the true pose of each case."""
    from isopose.data.phantom import write_cohort
    from isopose.progress import Terminal

    with Terminal().counting("phantoms") as progress:
        folder = write_cohort(
            output,
            cases=cases,
            slices=slices,
            size=size,
            seed=seed,
            test_fraction=test_fraction,
            population=population,  # type: ignore[arg-type]  # told in one line where it is neither
            workers=workers,
            progress=progress,
        )
    typer.echo(folder)


@app.command()
def check(dataset: DatasetPath, label: Label = None, workers: Workers = 0, as_json: AsJson = False) -> None:
    """Report every problem of a dataset with its case, and its fingerprint."""
    from isopose.config import DataConfig
    from isopose.data.fingerprint import describe, fingerprint_of
    from isopose.io.check import check_dataset
    from isopose.io.datasets import open_dataset
    from isopose.progress import Terminal

    opened = open_dataset(dataset, _labels(label))
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
        _print_json(
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


@app.command()
def preprocess(
    dataset: Annotated[str, typer.Argument(help="as for fit")],
    store: Annotated[str, typer.Option(help="folder for preprocessed slices, as for fit --store")],
    preset: Annotated[str, typer.Option(help="default or paper")] = "default",
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file")] = None,
    settings: Setting = None,
    fold: Annotated[str | None, typer.Option(help="validation fold from 0, or all; as train.fold")] = None,
    label: Label = None,
    ray: Ray = None,
    workers: Workers = 2,
) -> None:
    """Prepare a training's slices in advance; fit --store with the same settings finds them."""
    from isopose.config import load_config
    from isopose.progress import Terminal

    chosen = [*(settings or []), *([] if fold is None else [f"train.fold={fold}"])]
    loaded = load_config(preset, config, chosen)
    if ray is not None:
        from isopose.cluster.places import place_of
        from isopose.cluster.preprocess import preprocess_on_cluster

        place, outcomes = preprocess_on_cluster(
            place_of(dataset), place_of(store), ray, loaded, labels=_labels(label), reporter=Terminal()
        )
        _fail_if(outcome.problem for outcome in outcomes)
        typer.echo(f"store: {place}")
        return
    from isopose.io.datasets import open_dataset
    from isopose.training.preprocessing import preprocess as run
    from isopose.training.preprocessing import split

    opened = open_dataset(_path(dataset), _labels(label))
    cases = split(opened, loaded.train)
    made, _ = run(_path(store), cases, opened.labels, loaded.data, workers=workers, reporter=Terminal())
    typer.echo(f"store: {made.folder}")


@app.command()
def fit(
    dataset: DatasetPath,
    model: Annotated[Path, typer.Option(help="folder for the model")],
    preset: Annotated[str | None, typer.Option(help="default or paper; none: default")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file")] = None,
    settings: Setting = None,
    fold: Annotated[str | None, typer.Option(help="validation fold from 0, or all; as train.fold")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="a model to begin with: its weights, frame and settings"),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="with --from: all, decoder or first2-last2 learns on; as train.parts")
    ] = None,
    label: Label = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what is in the folder")] = False,
    store: Annotated[
        Path | None, typer.Option(help="folder for preprocessed slices; runs may share it")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="that the U-Net's training may take, e.g. 4GB: of the process on a CPU, of the GPU's else; "
            "chooses unet.recompute, unet.optimiser.parts and unet.input so that it fits"
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="also draw the training's curves in mlflow or wandb, if installed; repeated"),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(help="folder of poses and crops set by hand, towards which their scans are trained"),
    ] = None,
    workers: Workers = 2,
) -> None:
    """Train pose, crop and segmentation on a dataset."""
    from isopose.config import load_config
    from isopose.data.correction import read_corrections
    from isopose.io.datasets import open_dataset
    from isopose.models.folder import load_model
    from isopose.progress import Terminal
    from isopose.ranks import rank
    from isopose.training.fit import fit as run
    from isopose.training.memory import fit_into, parse_bytes
    from isopose.training.tracking import Tracked
    from isopose.training.transfer import settings_of

    budget = None if memory is None else parse_bytes(memory)
    options = {"train.fold": fold, "train.parts": train}
    chosen = [*(settings or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
    begun = load_model(source) if source else None
    if begun and preset is not None:
        raise InputError("--preset: a model that learns on keeps its own settings; leave it out, or --from")
    loaded = load_config(preset or "default", config, chosen, base=settings_of(begun) if begun else None)
    opened = open_dataset(dataset, _labels(label))
    reporter = Terminal()
    if budget is not None:
        # A model that learns on keeps the input that its weights are for.
        loaded = fit_into(loaded, opened.labels.classes, budget, reporter, shrink=begun is None)
    with Tracked(reporter, track or (), model / "work", loaded) as told:
        run(
            opened,
            model,
            loaded,
            source=begun,
            resume=resume,
            store=store,
            corrections=None if corrections is None else read_corrections(corrections),
            workers=workers,
            reporter=told,
        )
    if rank() == 0:
        typer.echo(f"model: {model}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="folder that isopose fit made")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="image files, folders of them, DICOM series: a folder, ZIP, DICOMDIR or file"),
    ],
    output: Annotated[str, typer.Option(help="folder for the results")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="nifti (the default), dicom-seg, rtstruct or dicom-sr; repeated"),
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="number or instance UID, where a DICOM input holds several series")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="also write them, per class")
    ] = False,
    steps: Annotated[bool, typer.Option("--steps", help="also draw the pipeline's steps, per scan")] = False,
    corrections: Annotated[
        Path | None, typer.Option(help="folder of poses and crops set by hand, as isopose serve keeps them")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="of the U-Net, e.g. 32-true; none: the model's predict.precision")
    ] = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Segment scans; each result lies on its scan's own grid."""
    from isopose.data.correction import read_corrections
    from isopose.devices import choose_device
    from isopose.inference.formats import NIFTI, choose_formats, result_files
    from isopose.inference.scans import find_scans, predict_scans
    from isopose.models.folder import load_model, with_precision
    from isopose.progress import Terminal

    wanted = choose_formats(formats or [NIFTI])
    if ray is not None:
        if corrections is not None:
            raise InputError("--corrections: not known to --ray; predict those scans without it")
        from isopose.cluster.places import place_of
        from isopose.cluster.predict import predict_on_cluster

        outcomes = predict_on_cluster(
            place_of(model),
            [place_of(given) for given in inputs],
            place_of(output),
            ray,
            formats=wanted,
            series=series,
            probabilities=probabilities,
            steps=steps,
            device=device,
            precision=precision,
            reporter=Terminal(),
        )
    else:
        outcomes = predict_scans(
            with_precision(load_model(_path(model), choose_device(device)), precision),
            find_scans([_path(given) for given in inputs], series),
            _path(output),
            formats=wanted,
            probabilities=probabilities,
            steps=steps,
            corrections=None if corrections is None else read_corrections(corrections),
            reporter=Terminal(),
        )
    if as_json:
        _print_json([{"name": o.scan.name, "problem": o.problem, "record": o.record} for o in outcomes])
    else:
        for outcome in outcomes:
            if outcome.record is not None:
                volumes = "  ".join(f"{k} {v:.1f} ml" for k, v in outcome.record["volumes_ml"].items())
                for file in result_files(Path(), outcome.scan.name, wanted).values():
                    typer.echo(f"{output.rstrip('/')}/{file}  {volumes}")
    _fail_if(outcome.problem for outcome in outcomes)


@app.command()
def export(
    model: Path,
    output: Annotated[Path, typer.Option(help="folder for what is written")],
    form: Annotated[
        str, typer.Option("--format", help="onnx (graphs that need no PyTorch) or monai (a bundle)")
    ] = "onnx",
) -> None:
    """Write a model as ONNX graphs, for runtimes without PyTorch, or as a MONAI bundle."""
    if form == "onnx":
        from isopose.inference.export import export_onnx
        from isopose.models.folder import load_model

        export_onnx(load_model(model), output)
    elif form == "monai":
        from isopose.inference.bundle import export_bundle

        export_bundle(model, output)
    else:
        raise InputError(f"--format: expected onnx or monai, got {form!r}")
    typer.echo(f"export: {output}")


@app.command()
def homogenize(
    dataset: Annotated[
        str, typer.Argument(help="a dataset as for fit, or scans: a file, a folder of files, a DICOM series")
    ],
    output: Annotated[str, typer.Argument(help="folder for the nnU-Net raw dataset")],
    model: Annotated[
        str | None, typer.Option(help="take this model's poses and reference; none: those of the package")
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="one pose per volume (the default), smooth along it, its own per slice, or tilted: one per "
            "volume in three dimensions"
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="pixels along a side of the reference's frame; none: 384")
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop", help="with --model: only the square that it crops, one for a scan")
    ] = False,
    label: Label = None,
    ray: Ray = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset to one pose and size, for any other segmenter; nothing need be trained."""
    from isopose.config import homogenize_config
    from isopose.homogenize.dataset import homogenize as run
    from isopose.homogenize.dataset import open_input
    from isopose.progress import Terminal

    config = homogenize_config(per=per, size=size, crop=crop)
    if ray is not None:
        from isopose.cluster.homogenize import homogenize_on_cluster
        from isopose.cluster.places import place_of

        outcomes = homogenize_on_cluster(
            place_of(dataset),
            place_of(output),
            ray,
            config,
            labels=_labels(label),
            model=None if model is None else place_of(model),
            reporter=Terminal(),
        )
    else:
        outcomes = run(
            open_input(_path(dataset), _labels(label)),
            _path(output),
            config,
            model=None if model is None else _path(model),
            workers=workers,
            reporter=Terminal(),
        )
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    if as_json:
        _print_json(
            [
                {"name": o.case, "problem": o.problem, "record": o.record and o.record.to_json()}
                for o in outcomes
            ]
        )
    elif records:
        training = sum(record.part == "Tr" for record in records)
        grid, sizes = records[0].transform.grid, sorted({record.transform.grid.size for record in records})
        side = f"{sizes[0]} to {sizes[-1]}" if crop else str(grid.usual)
        typer.echo(
            f"{output}  {training} cases for training, {len(records) - training} for testing, "
            f"{side} x {side} pixels of {grid.pixel_mm:.3f} mm"
        )
    _fail_if(outcome.problem for outcome in outcomes)


@app.command()
def restore(
    predictions: Annotated[Path, typer.Argument(help="folder of the other segmenter's answers, or one file")],
    homogenized: Annotated[Path, typer.Option(help="the folder that isopose homogenize wrote")],
    output: Annotated[Path, typer.Option(help="folder for the results")],
    keep_values: Annotated[
        bool, typer.Option("--keep-values", help="label values as predicted, not those of the dataset")
    ] = False,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Bring another segmenter's answers on a homogenized dataset back to each scan's own grid."""
    from isopose.homogenize.restore import restore as run
    from isopose.progress import Terminal

    restored = run(
        predictions, homogenized, output, keep_values=keep_values, workers=workers, reporter=Terminal()
    )
    if as_json:
        _print_json([{"name": one.case, "problem": one.problem, "record": one.record} for one in restored])
    else:
        for one in restored:
            for name in one.record["files"] if one.record is not None else ():
                typer.echo(output / name)
    _fail_if(one.problem for one in restored)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="folder of label maps, one for each case")],
    labels: Annotated[Path, typer.Argument(help="dataset, or folder of reference label maps")],
    output: Annotated[Path | None, typer.Option(help="folder for CSV, JSON, Markdown and HTML")] = None,
    label: Label = None,
    tolerance: Annotated[float, typer.Option(min=0.01, help="of the surface Dice, mm")] = 2.0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="score what is there; the tables list what is not")
    ] = False,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Score predictions against reference labels, in 3D per patient on the native grid."""
    from isopose.evaluation.evaluate import evaluate_folder
    from isopose.evaluation.tables import markdown, write_evaluation
    from isopose.files import output_folder
    from isopose.progress import Terminal

    if output is not None:
        output_folder(output)
    with Terminal().counting("evaluate") as progress:
        evaluation = evaluate_folder(
            predictions,
            labels,
            _labels(label),
            tolerance_mm=tolerance,
            allow_missing=allow_missing,
            workers=max(workers, 1),
            progress=progress,
        )
    if output is not None:
        write_evaluation(evaluation, output)
        # Drawing takes a quarter of a second to load.
        from isopose.evaluation.html import write_evaluation_report

        write_evaluation_report(output / "report.html", evaluation)
    if as_json:
        _print_json(evaluation.to_json())
    else:
        typer.echo(markdown(evaluation))


@app.command()
def study(
    dataset: DatasetPath,
    output: Annotated[Path, typer.Option(help="folder for everything the study makes")],
    presets: Annotated[str, typer.Option(help="default, paper, or both with a comma")] = "default",
    arms: Annotated[str | None, typer.Option(help="names with commas; none: all")] = None,
    seeds: Annotated[str, typer.Option(help="of training, with commas")] = "0",
    folds: Annotated[
        int, typer.Option(min=1, help="1: the dataset's own test cases; more: every patient is tested once")
    ] = 1,
    source: Annotated[
        Path | None, typer.Option(help="dataset of other patients, e.g. adults, from which Table 1 transfers")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="time for all training, e.g. 6h or 90m: shortens all arms alike")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file, for all arms")] = None,
    settings: Setting = None,
    label: Label = None,
    workers: Workers = 2,
) -> None:
    """The paper's experiment on a dataset: train and test all arms, and write its tables and figure."""
    from isopose.config import read_settings
    from isopose.progress import Terminal
    from isopose.study.plan import Options
    from isopose.study.run import run_study

    options = Options(
        dataset=dataset,
        labels=_labels(label),
        presets=tuple(_list(presets)),
        seeds=tuple(_whole("--seeds", seed) for seed in _list(seeds)),
        folds=folds,
        settings=tuple(settings or ()),
        values=read_settings(config) if config else {},
        source=source,
    )
    report = run_study(
        output,
        options,
        arms=_list(arms) if arms else None,
        budget_s=_duration(budget) if budget else None,
        workers=workers,
        reporter=Terminal(),
    )
    typer.echo(f"report: {report}")


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="folder that isopose fit made")],
    folder: Annotated[
        Path, typer.Option(help="for scans, results and what was set by hand; a later start goes on with it")
    ] = Path("isopose-serve"),
    forget: Annotated[bool, typer.Option("--forget", help="delete scans and results at the end")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8470,
    token: Token = None,
    browser: Browser = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="of the U-Net, e.g. 32-true; none: the model's predict.precision")
    ] = None,
) -> None:
    """A page in the browser: drop scans, look at the results, correct a pose by hand."""
    from isopose.devices import choose_device
    from isopose.models.folder import load_model, with_precision
    from isopose.progress import Terminal

    _needs_serve()
    from isopose.serve.launch import access_for, run_server
    from isopose.serve.server import forget as delete
    from isopose.serve.server import serve_app

    # What cannot work is told before a page opens.
    with_precision(load_model(model), precision)
    choose_device(device)
    run_server(
        lambda access: serve_app(model, folder, access, device=device, precision=precision),
        folder,
        access_for(host, port, token),
        Terminal(),
        browser=browser,
    )
    if forget:
        delete(folder)


@app.command()
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
        Path | None, typer.Option(help="other predictions of the same cases, to be seen side by side")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="for decisions (review.csv) and what the page keeps ready")
    ] = Path("isopose-review"),
    label: Label = None,
    host: Host = "127.0.0.1",
    port: Port = 8471,
    token: Token = None,
    browser: Browser = True,
    workers: Workers = 2,
) -> None:
    """A page in the browser over a finished cohort: worst first, side by side, accept or reject."""
    from isopose.evaluation.evaluate import Evaluation, evaluate_folder
    from isopose.progress import Terminal

    _needs_serve()
    from isopose.serve.cohort import open_cohort
    from isopose.serve.launch import access_for, run_server
    from isopose.serve.review import review_app

    values, reporter = _labels(label), Terminal()
    access = access_for(host, port, token)
    scores: list[Evaluation | None] = []
    for one in (predictions, against):
        if one is None or labels is None:
            scores.append(None)
            continue
        with reporter.counting(f"evaluate {one.name}") as progress:
            scores.append(
                evaluate_folder(
                    one, labels, values, allow_missing=True, workers=max(workers, 1), progress=progress
                )
            )
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


@app.command(hidden=True)
def study_run(folder: Path) -> None:
    """One run of a study, as isopose study starts it."""
    from isopose.study.job import run_job

    run_job(folder)


def main() -> NoReturn:
    """Run the command line and turn every foreseen failure into one line and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    # A peer's worker, forked from here, is ended by its own pool and has nothing to tell.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        app()
    except IsoposeError as error:
        _fail(str(error), error.exit_code)
    except _Stopped:
        _fail("stopped; what was finished is kept, the same command (fit: with --resume) goes on", 130)
    except FloatingPointError as error:
        _fail(f"{error}: the model's weights are damaged; copy its folder again, or train again", 2)
    except MemoryError:
        _fail(_OUT_OF_MEMORY, 1)
    except RuntimeError as error:
        # PyTorch and ITK have no common kind of error for it.
        if not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        _fail(_OUT_OF_MEMORY, 1)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}; nothing was left half-written", 1)
    sys.exit(0)


_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation")
_OUT_OF_MEMORY = (
    "out of memory; lower the batch size (--set unet.optimiser.batch_size=4), let fit --memory choose, "
    "or lower data.size; predict: take --device cpu, or close other programs"
)

#: What the place that is written to, and not the program, is the reason of.
_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


class _Stopped(BaseException):
    """By a signal. Not KeyboardInterrupt, which typer turns into an exit without a word."""


def _stop(_signum: int, _frame: FrameType | None) -> NoReturn:
    # Workers would finish their case first, which may take minutes; files are whole or absent all the same.
    for worker in active_children():
        worker.terminate()
    raise _Stopped


def _fail(message: str, code: int) -> NoReturn:
    # Of several processes of a training (torchrun) each tells what it ended by.
    rank = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    which = "" if rank == "0" else f"process {rank}: "
    print(f"isopose: {which}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _fail_if(problems: Iterable[str | None]) -> None:
    """Tell what could not be done, and end with code 2 where that is anything."""
    told = [problem for problem in problems if problem is not None]
    for problem in told:
        typer.echo(f"isopose: {problem}", err=True)
    if told:
        raise typer.Exit(2)


def _needs_serve() -> None:
    from importlib.util import find_spec

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise InputError("the page needs FastAPI and uvicorn; install isopose[serve]")


def _labels(given: list[str] | None) -> dict[str, int] | None:
    if not given:
        return None
    labels: dict[str, int] = {}
    for item in given:
        name, _, value = item.partition("=")
        if not name or not value.isdecimal():
            raise InputError(f"--label {item!r}: expected NAME=VALUE, e.g. kidney=1")
        if name in labels:
            raise InputError(f"--label {item!r}: {name} is {labels[name]} already; give each name once")
        labels[name] = int(value)
    return labels


def _path(given: str) -> Path:
    """A path on this machine."""
    if "://" in given:
        raise InputError(
            f"{given}: a URL; it is read and written by a Ray cluster (--ray local is this machine's)"
        )
    return Path(given)


def _list(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _whole(option: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{option}: expected whole numbers, e.g. 0,1, got {text!r}")
    return int(text)


def _duration(text: str) -> float:
    """Seconds of ``6h``, ``90m`` or ``1h30m``."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?", text.replace(" ", ""))
    parts = zip(found.groups(), (3600.0, 60.0), strict=True) if found else ()
    seconds = sum(float(part) * unit for part, unit in parts if part)
    if seconds <= 0:
        raise InputError(f"--budget: expected hours and minutes, e.g. 6h or 90m, got {text!r}")
    return seconds


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
