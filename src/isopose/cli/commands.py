"""All commands, in the order in which ``isopose --help`` lists them."""

from typing import Annotated

import typer

from isopose.cli.check import check
from isopose.cli.demo import demo
from isopose.cli.evaluate import evaluate
from isopose.cli.export import export
from isopose.cli.fit import fit
from isopose.cli.homogenize import homogenize
from isopose.cli.phantom import phantom
from isopose.cli.predict import predict
from isopose.cli.preprocess import preprocess
from isopose.cli.restore import restore
from isopose.cli.review import review
from isopose.cli.serve import serve
from isopose.cli.study import study
from isopose.cli.study_run import study_run
from isopose.cli.wrap import wrap
from isopose.version import __version__

app = typer.Typer(
    name="isopose",
    help="Segment organs and tumors in CT and MR of patients who differ in size and pose.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"isopose {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


for _command in (
    *(demo, phantom, check, preprocess, fit, predict, export),
    *(homogenize, restore, wrap, evaluate, study, serve, review),
):
    app.command()(_command)
app.command(hidden=True)(study_run)
