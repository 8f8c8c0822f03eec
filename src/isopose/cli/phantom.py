"""``isopose phantom``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import Workers


def phantom(
    output: Path,
    cases: Annotated[int, typer.Option(min=1)] = 20,
    slices: Annotated[int | None, typer.Option(min=4, help="per case (default: by slice thickness)")] = None,
    size: Annotated[int, typer.Option(min=64, max=1024, help="pixels along a side of a slice")] = 512,
    seed: int = 0,
    test_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="fraction of the cases in imagesTs")
    ] = 0.25,
    small_tumors: Annotated[
        float | None, typer.Option(help="fraction with a tumor below 20 ml (default: random, about a sixth)")
    ] = None,
    population: Annotated[str, typer.Option(help="child: birth to 16 years, or adult")] = "child",
    pet: Annotated[bool, typer.Option("--pet", help="add a second channel: tracer uptake as in PET")] = False,
    modality: Annotated[
        str, typer.Option(help="ct, or mr: T1 and T2, with or without fat suppression")
    ] = "ct",
    plane: Annotated[str, typer.Option(help="plane of the slices; in MR also coronal or sagittal")] = "axial",
    workers: Workers = 0,
) -> None:
    """Write synthetic CT or MR of children or adults as an nnU-Net raw dataset, with each true pose."""
    from isopose.phantom import write_cohort
    from isopose.progress import Terminal

    with Terminal().counting("phantoms") as progress:
        folder = write_cohort(
            output,
            cases=cases,
            slices=slices,
            size=size,
            seed=seed,
            test_fraction=test_fraction,
            pet=pet,
            small_tumors=small_tumors,
            population=population,  # type: ignore[arg-type]  # checked there
            modality=modality,  # type: ignore[arg-type]  # checked there
            plane=plane,  # type: ignore[arg-type]  # checked there
            workers=workers,
            progress=progress,
        )
    typer.echo(folder)
