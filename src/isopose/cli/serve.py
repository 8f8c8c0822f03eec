"""``isopose serve``."""

from pathlib import Path
from typing import Annotated

import typer

from isopose.cli.options import Browser, Device, Host, Port, PrecisionOption, Token
from isopose.errors import InputError


def serve(
    model: Annotated[Path, typer.Argument(help="model folder")],
    folder: Annotated[
        Path, typer.Option(help="folder for scans, results and corrections; a later start continues with it")
    ] = Path("isopose-serve"),
    forget: Annotated[bool, typer.Option("--forget", help="delete scans and results at the end")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8470,
    token: Token = None,
    browser: Browser = True,
    device: Device = "auto",
    precision: PrecisionOption = None,
) -> None:
    """Segment scans in the browser: drop scans, view the results, correct a pose by hand."""
    from isopose.devices import choose_device
    from isopose.inference.ensemble import load_ensemble
    from isopose.models.folder import with_precision
    from isopose.progress import Terminal
    from isopose.serve import needs_extra

    needs_extra()
    from isopose.serve.launch import access_for, run_server
    from isopose.serve.server import forget as delete
    from isopose.serve.server import serve_app

    # Report problems before a page opens.
    loaded = load_ensemble([model]).map_members(lambda member: with_precision(member, precision))
    if len(loaded.channels) > 1:
        raise InputError(
            f"{model}: needs the channels {', '.join(loaded.channels)}, but the page accepts only scans of "
            "one channel; use isopose predict"
        )
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
