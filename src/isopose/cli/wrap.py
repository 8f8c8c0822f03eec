"""``isopose wrap``."""

from typing import Annotated

import typer

from isopose.cli.options import (
    AsJson,
    Formats,
    HomogenizedSize,
    Label,
    MasksAnywhere,
    ModalityOption,
    PlaneOption,
    Ray,
    ReferenceOption,
    ScaleZ,
    Series,
    Workers,
    local_path,
    parse_labels,
)
from isopose.cli.output import fail_if, print_json
from isopose.errors import InputError, first_names

#: Largest number of volumes that are printed for a scan.
MAX_PRINTED_VOLUMES = 8


def wrap(
    scans: Annotated[
        str, typer.Argument(help="scans: a file, a folder of files, a DICOM series, or a dataset as for fit")
    ],
    output: Annotated[str, typer.Option(help="folder for the results")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="after --: the segmenter and its arguments, with {input} and {output} or {output_folder}, "
            "or {inputs} and {outputs} for all scans at once"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="use this model's poses and reference (default: the shipped ones)")
    ] = None,
    per: Annotated[
        str | None, typer.Option(help="volume (the default), smooth, slice or tilted, as for homogenize")
    ] = None,
    size: HomogenizedSize = None,
    reference: ReferenceOption = None,
    scale_z: ScaleZ = None,
    modality: ModalityOption = None,
    plane: PlaneOption = None,
    masks: MasksAnywhere = None,
    formats: Formats = None,
    series: Series = None,
    label: Label = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="keep homogenized scans and the command's own files")
    ] = False,
    ray: Ray = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Run any segmenter on scans in one pose and size, and restore its results; nothing is trained."""
    from isopose.homogenize.command import read_command

    wrapped = read_command(command or (), remote=ray is not None)
    from isopose.homogenize.wrap import open_scans
    from isopose.homogenize.wrap import wrap as run
    from isopose.homogenize.wrapped import LOGS
    from isopose.io.masks import with_masks
    from isopose.io.results.formats import NIFTI, choose_formats
    from isopose.presets import homogenize_config
    from isopose.progress import Terminal

    config = homogenize_config(
        per=per, size=size, reference=reference, scale_z=scale_z, modality=modality, plane=plane
    )
    chosen_formats, label_values = choose_formats(formats or [NIFTI]), parse_labels(label)
    if ray is not None:
        if keep:
            raise InputError("--keep: not supported with --ray; leave one of the two out")
        from isopose.cluster.places import place_of
        from isopose.cluster.wrap import wrap_on_cluster

        outcomes = wrap_on_cluster(
            place_of(scans),
            place_of(output),
            wrapped,
            ray,
            config,
            model=None if model is None else place_of(model),
            labels=label_values,
            formats=chosen_formats,
            series=series,
            masks=None if masks is None else place_of(masks),
            reporter=Terminal(),
        )
    else:
        mask_folder = None if masks is None else local_path(masks)
        outcomes = run(
            with_masks(open_scans(local_path(scans), series), mask_folder),
            local_path(output),
            wrapped,
            config,
            model=None if model is None else local_path(model),
            labels=label_values,
            formats=chosen_formats,
            series=series,
            keep=keep,
            workers=workers,
            reporter=Terminal(),
        )
    folder = output.rstrip("/")
    if as_json:
        print_json([{"name": o.name, "problem": o.problem, "record": o.record} for o in outcomes])
    else:
        for outcome in outcomes:
            if outcome.record is not None:
                files, volumes = [*outcome.record["files"]], outcome.record["volumes_ml"]
                # The record lists all volumes, however many there are.
                printed = list(volumes.items())[:MAX_PRINTED_VOLUMES]
                listed = "".join(f"  {name} {ml:.1f} ml" for name, ml in printed)
                typer.echo(
                    f"{folder}/{first_names(files, 1)}{listed}{'  …' if len(volumes) > len(printed) else ''}"
                )
    # Without a usable scan the command does not run.
    if ray is not None or (local_path(output) / LOGS).is_dir():
        typer.echo(f"output of the command: {folder}/{LOGS}", err=True)
    # Scans that failed together have one line.
    fail_if(dict.fromkeys(outcome.problem for outcome in outcomes))
