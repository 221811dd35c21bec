"""The command that holds a run's predictor against labelled inputs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .take import ClientName, OneRun, PrivateFolder
from .terminal import counting, errors, out

WORST = 10  # of the surest mistakes, in a terminal


def evaluate(
    run: OneRun,
    labelled: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|TABLE",
            help="A folder with CLASS/IMAGE files, or a table with the columns label and path or"
            " text.",
            show_default=False,
        ),
    ],
    client: ClientName = "",
    private: PrivateFolder = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A new folder for a page, pictures, CSV and JSON.", show_default=False
        ),
    ] = None,
) -> None:
    """Count how well a client's own model or the global model does on labelled images or texts."""
    from .. import evaluate as room
    from ..data.images import said, several
    from ..predict import Learned
    from ..report.evaluation import tables

    with errors():
        predictor = Learned.of(run, client, private)
        with counting("evaluating") as tell:
            evaluation = room.evaluate(predictor, labelled, tell)
        if folder:
            room.write(evaluation, folder, predictor.side, predictor.bits)
        for line in evaluation.lines():
            out.print(escape(line), soft_wrap=True)
        for table in tables(evaluation, WORST):
            out.print()
            out.print(table)
        if folder:
            written = folder / "evaluation.html"
            out.print(f"Wrote {escape(str(written))} and its figures beside it", soft_wrap=True)
        if unread := evaluation.unread:
            total = len(unread) + len(evaluation.answers)
            raise ValueError(
                f"{len(unread)} of {total} images cannot be read: {several(said(unread))}"
            )
