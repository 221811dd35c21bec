"""The command that takes a client out of a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import errors, say


def unlearn(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="Who is taken out.")],
    folder: Annotated[Path, typer.Option("--out", help="A new folder, for the run without it.")],
) -> None:
    """Take a client out of a finished run, exactly: nobody sends anything again.

    For methods whose server keeps what each client told apart, as gaussian-experts does.
    """
    from ..predict import only_run
    from ..unlearn import unlearn as taken_out

    with errors():
        old = only_run(run)
        new = taken_out(old, client, folder)
        say(f"{new.path} is the run without {client}, as if it had never taken part.")
        say(f"{old.path} still has what {client} sent; delete it when it is to be gone.")
