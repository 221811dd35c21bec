"""The command that shows what a run learned on a page of this machine."""

from types import ModuleType
from typing import Annotated

import typer
from rich.markup import escape

from .take import ClientName, OneRun, PrivateFolder
from .terminal import err, errors, out


def serve(
    run: OneRun,
    client: ClientName = "",
    private: PrivateFolder = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
) -> None:
    """Serve a page for images or texts: classes, probabilities, each expert's share."""
    from ..predict import Predictor

    with errors():
        room = _room()
        predictor = Predictor.of(run, client, private)
        with room.listen(host, port) as door:
            if host not in room.LOOPBACK:
                err.print(
                    "[yellow]Warning:[/] anybody who reaches this address can use the page; it asks"
                    " for no password, and what is sent is not encrypted.",
                    soft_wrap=True,
                )
            out.print(
                f"Predicting with {escape(predictor.who)}.\n"
                f"Open http://{host}:{door.getsockname()[1]} in a browser; Ctrl-C ends it.",
                soft_wrap=True,
            )
            room.server(room.application(predictor, host)).run(sockets=[door])


def _room() -> ModuleType:
    try:
        from .. import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the page needs a web server ({error}); type: pip install 'fedexperts[serve]'"
        ) from None
    return serve
