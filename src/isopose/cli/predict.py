"""``isopose predict``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import (
    AsJson,
    Device,
    Formats,
    MasksAnywhere,
    PrecisionOption,
    Ray,
    Series,
    local_path,
)
from isopose.cli.output import fail_if, print_json
from isopose.errors import InputError


def predict(
    model: Annotated[str, typer.Argument(help="model folder, of one model or of all folds")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="image files, folders of them, DICOM series: a folder, ZIP, DICOMDIR or file; a folder with "
            "a model.json is a further model, and the models' probabilities are averaged"
        ),
    ],
    output: Annotated[str, typer.Option(help="folder for the results")],
    formats: Formats = None,
    series: Series = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="also write class probabilities")
    ] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="also draw the pipeline's steps of each scan")
    ] = False,
    corrections: Annotated[
        Path | None, typer.Option(help="folder of poses and crops set by hand, as isopose serve keeps them")
    ] = None,
    masks: MasksAnywhere = None,
    clean: Annotated[
        bool, typer.Option("--clean-up/--no-clean-up", help="apply the model's rules for cleaning up, if any")
    ] = True,
    device: Device = "auto",
    precision: PrecisionOption = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Segment scans; each result lies on its scan's own grid."""
    from isopose.devices import choose_device
    from isopose.inference.ensemble import is_model, load_ensemble
    from isopose.inference.files import DrawSteps, predict_scans
    from isopose.io.masks import check_masks, mask_path
    from isopose.io.results.formats import NIFTI, choose_formats, result_files
    from isopose.io.scans import check_output_apart, find_scans
    from isopose.models.folder import with_precision
    from isopose.progress import Terminal
    from isopose.scan.correction import read_corrections

    draw: DrawSteps | None = None
    if steps:
        # Drawing takes a quarter of a second to load.
        from isopose.report.steps import write_steps

        draw = write_steps
    chosen_formats = choose_formats(formats or [NIFTI])
    more_models = [path for path in inputs if "://" not in path and is_model(Path(path))]
    inputs = [path for path in inputs if path not in more_models]
    if not inputs:
        raise InputError(f"{more_models[-1]}: a model; expected scans after the models, e.g. scan.nii.gz")
    if masks is not None and masks.rstrip("/") == output.rstrip("/"):
        raise InputError(f"{output}: holds the masks, which results would overwrite; choose another folder")
    if ray is not None:
        if corrections is not None:
            raise InputError("--corrections: not supported with --ray; predict those scans without it")
        if more_models:
            raise InputError(
                f"{more_models[0]}: --ray predicts with one model; leave out the others, or --ray"
            )
        from isopose.cluster.places import place_of
        from isopose.cluster.predict import predict_on_cluster

        outcomes = predict_on_cluster(
            place_of(model),
            [place_of(path) for path in inputs],
            place_of(output),
            ray,
            formats=chosen_formats,
            series=series,
            probabilities=probabilities,
            steps=draw,
            device=device,
            precision=precision,
            masks=None if masks is None else place_of(masks),
            reporter=Terminal(),
        )
    else:
        paths, folder = [local_path(path) for path in inputs], local_path(output)
        check_output_apart(paths, folder)
        scans = find_scans(paths, series)
        if masks is not None:
            mask_folder = local_path(masks)
            check_masks(mask_folder)
            scans = [replace(scan, mask=mask_path(mask_folder, scan.name)) for scan in scans]
        loaded = load_ensemble([local_path(path) for path in (model, *more_models)], choose_device(device))
        outcomes = predict_scans(
            loaded.map_members(lambda m: with_precision(m, precision)).with_clean_up(clean),
            scans,
            folder,
            formats=chosen_formats,
            probabilities=probabilities,
            steps=draw,
            corrections=None if corrections is None else read_corrections(corrections),
            reporter=Terminal(),
        )
    if as_json:
        print_json([{"name": o.name, "problem": o.problem, "record": o.record} for o in outcomes])
    else:
        for outcome in outcomes:
            if outcome.record is not None:
                volumes = "  ".join(f"{k} {v:.1f} ml" for k, v in outcome.record["volumes_ml"].items())
                for file in result_files(Path(), outcome.name, chosen_formats).values():
                    typer.echo(f"{output.rstrip('/')}/{file}  {volumes}")
    fail_if(outcome.problem for outcome in outcomes)
