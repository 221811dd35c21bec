"""The command that serves a page on which a run's model can be tried."""

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
        str, typer.Option(help="Address to listen at; by default only this machine can connect.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any free one.")
    ] = 8000,
) -> None:
    """Serve a page for images or texts: classes, probabilities, each expert's share."""
    from ..predict import Learned

    with errors():
        room = _room()
        predictor = Learned.of(run, client, private)
        with room.listen(host, port) as door:
            if host not in room.LOOPBACK:
                err.print(
                    "[yellow]Warning:[/] anybody who can reach this address can use the page; there"
                    " is no password and no encryption.",
                    soft_wrap=True,
                )
            out.print(
                f"Predicting with {escape(predictor.who)}.\n"
                f"Open http://{host}:{door.getsockname()[1]} in a browser; Ctrl-C stops it.",
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
