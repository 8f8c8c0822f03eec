"""``isopose homogenize``."""

from typing import Annotated

import typer

from isopose.cli.options import (
    AsJson,
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
from isopose.errors import counted


def homogenize(
    dataset: Annotated[
        str, typer.Argument(help="a dataset as for fit, or scans: a file, a folder of files, a DICOM series")
    ],
    output: Annotated[str, typer.Argument(help="folder for the nnU-Net raw dataset")],
    model: Annotated[
        str | None, typer.Option(help="use this model's poses and reference (default: the shipped ones)")
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(
            help="one pose per volume (the default), smooth along it, its own per slice, or tilted: one per "
            "volume in three dimensions"
        ),
    ] = None,
    size: HomogenizedSize = None,
    crop: Annotated[
        bool, typer.Option("--crop", help="with --model: only the model's crop, one per scan")
    ] = False,
    reference: ReferenceOption = None,
    pose_channel: Annotated[
        str | None,
        typer.Option(
            help="number or name of the channel that shows body and pose (default: the model's, else "
            "the first)"
        ),
    ] = None,
    scale_z: ScaleZ = None,
    modality: ModalityOption = None,
    plane: PlaneOption = None,
    masks: MasksAnywhere = None,
    series: Series = None,
    label: Label = None,
    ray: Ray = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset to one pose and size, for any other segmenter; no training is needed."""
    from isopose.homogenize.dataset import homogenize as run
    from isopose.homogenize.dataset import open_input
    from isopose.io.masks import with_masks
    from isopose.presets import homogenize_config
    from isopose.progress import Terminal

    config = homogenize_config(
        per=per,
        size=size,
        crop=crop,
        reference=reference,
        pose_channel=int(pose_channel) if pose_channel and pose_channel.isdecimal() else pose_channel,
        scale_z=scale_z,
        modality=modality,
        plane=plane,
    )
    if ray is not None:
        from isopose.cluster.homogenize import homogenize_on_cluster
        from isopose.cluster.places import place_of

        outcomes = homogenize_on_cluster(
            place_of(dataset),
            place_of(output),
            ray,
            config,
            labels=parse_labels(label),
            model=None if model is None else place_of(model),
            series=series,
            masks=None if masks is None else place_of(masks),
            reporter=Terminal(),
        )
    else:
        mask_folder = None if masks is None else local_path(masks)
        outcomes = run(
            with_masks(open_input(local_path(dataset), parse_labels(label), series), mask_folder),
            local_path(output),
            config,
            model=None if model is None else local_path(model),
            series=series,
            workers=workers,
            reporter=Terminal(),
        )
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    if as_json:
        print_json(
            [
                {"name": o.name, "problem": o.problem, "record": o.record and o.record.to_json()}
                for o in outcomes
            ]
        )
    elif records:
        training_cases = sum(record.part == "Tr" for record in records)
        grid, sizes = records[0].transform.grid, sorted({record.transform.grid.size for record in records})
        side = " to ".join(map(str, dict.fromkeys([sizes[0], sizes[-1]]))) if crop else str(grid.usual)
        typer.echo(
            f"{output}  {counted(training_cases, 'case')} for training, "
            f"{len(records) - training_cases} for testing, {side} x {side} pixels of {grid.pixel_mm:.3f} mm"
        )
    fail_if(outcome.problem for outcome in outcomes)
