"""``isopose export``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.errors import InputError


def export(
    model: Path,
    output: Annotated[Path, typer.Option(help="output folder")],
    form: Annotated[
        str, typer.Option("--format", help="onnx (graphs that need no PyTorch) or monai (a bundle)")
    ] = "onnx",
) -> None:
    """Write a model as ONNX graphs, for runtimes without PyTorch, or as a MONAI bundle."""
    if form == "onnx":
        from isopose.export.onnx import export_onnx
        from isopose.models.folder import load_model

        export_onnx(load_model(model), output)
    elif form == "monai":
        from isopose.export.monai import export_bundle

        export_bundle(model, output)
    else:
        raise InputError(f"--format: expected onnx or monai, got {form!r}")
    typer.echo(f"export: {output}")
