"""Commands that use what a run learned: predict, and export as a folder."""

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .plain import plain
from .terminal import counting, err, errors, out

if TYPE_CHECKING:
    from ..predict import Prediction

OneRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run's folder, such as OUT/EXPERIMENT/seed-0.", show_default=False
    ),
]
ClientName = Annotated[
    str,
    typer.Option(
        "--client",
        metavar="NAME",
        help="Use this client's own model; without it, the global model.",
    ),
]
PrivateFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of clients' private states.", show_default="private in RUN"),
]


class Form(StrEnum):
    """How predictions are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def predict(
    run: OneRun,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE|FOLDER|TEXTS.txt",
            help="What to predict; a .txt file: one text per line.",
        ),
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="A text to predict; repeatable.")
    ] = None,
    client: ClientName = "",
    private: PrivateFolder = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help=(
                "For a client that never trained: a few examples of its own, used to choose"
                " experts. A folder with CLASS/IMAGE files, or a table with the columns label and"
                " path or text; for gaussian-experts also a folder of images without classes."
            ),
            show_default=False,
        ),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="Output format.")] = Form.table,
    every: Annotated[
        bool, typer.Option("--all", help="Give the probabilities of all classes.")
    ] = False,
) -> None:
    """Predict new images or texts with a client's own model or the global model."""
    from .. import predict as room
    from ..data.folders import in_class_folders

    with errors():
        if like and client:
            raise ValueError(
                "--like is for a client that never trained; use either --like or --client"
            )
        predictor = room.Learned.of(run, client, private)
        if like:
            predictor = room.newcomer(predictor, like)
        asked = room.inputs(predictor, paths or [], texts or [])
        if not asked:
            raise ValueError("nothing to predict; expected images, a folder of images, or texts")
        err.print(f"Predicted with {escape(predictor.who)}.", soft_wrap=True)
        if predictor.side and (named := in_class_folders(asked, predictor.model.classes)):
            err.print(
                f"{len(named)} of {len(asked)} inputs lie in folders named like classes:"
                " `fedexperts evaluate` says how many are predicted so.",
                soft_wrap=True,
            )
        predictions, broken = list[room.Prediction](), dict[str, str]()
        classes: Sequence[str] = ()
        if every:
            classes = predictor.model.classes
        with counting("predicting") as tell:
            for said, unread in room.predictions(predictor, asked, len(classes) or 1):
                predictions += said
                broken |= unread
                tell(len(predictions) + len(broken), len(asked))
        _print_predictions(predictions, form, classes)
        if broken:
            listed = "\n".join(f"  {file} ({why})" for file, why in broken.items())
            raise ValueError(f"{len(broken)} of {len(asked)} images cannot be read:\n{listed}")


def export(
    run: OneRun,
    folder: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    client: ClientName = "",
    private: PrivateFolder = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write model.onnx; needs the extra onnx.")
    ] = False,
) -> None:
    """Write a client's or the server's model as a folder that predicts without this package."""
    from .. import export as room
    from ..predict import Learned

    with errors():
        predictor = Learned.of(run, client, private)
        room.export(predictor, folder, onnx)
        out.print(
            f"Wrote {escape(predictor.who)}; {escape(str(folder / 'README.md'))} says how to"
            " use it.",
            soft_wrap=True,
        )


def _print_predictions(predictions: "list[Prediction]", form: Form, classes: Sequence[str]) -> None:
    """In a form; with the probabilities of these classes, all or none."""
    from ..predict import loudest

    if form is Form.json:
        written = [each.plain(bool(classes)) for each in predictions]
        typer.echo(json.dumps(written, indent=1, ensure_ascii=False))
    elif form is Form.csv:
        rows = csv.writer(sys.stdout, lineterminator="\n")
        experts = list(dict.fromkeys(name for each in predictions for name in each.experts))
        heads = [f"p({plain(name)})" for name in classes]
        rows.writerow(["input", "class", "probability", *experts, *heads])
        rows.writerows(
            [
                plain(each.input),
                plain(each.label),
                each.probability,
                *(each.experts.get(name, "") for name in experts),
                *(each.classes[name] for name in classes),
            ]
            for each in predictions
        )
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("input", overflow="fold")
        table.add_column("class", overflow="fold")
        table.add_column("%", justify="right")
        table.add_column("experts", overflow="fold")
        if classes:
            table.add_column("all classes, %", overflow="fold")
        for each in predictions:
            cells = [each.input, each.label, f"{100 * each.probability:.1f}", loudest(each.experts)]
            if classes:
                cells.append(", ".join(f"{name} {100 * p:.1f}" for name, p in each.classes.items()))
            table.add_row(*map(escape, cells))
        out.print(table)
