"""A run in Python: its scores as tables of pandas, its tensors by name, its predictions, its page.

It reads a run's folder, finished or not, and changes nothing but the page. This room does not know
how a run goes, how a figure is computed, or what a tensor means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import config as door
from .config import Config
from .data.images import said
from .evaluate import evaluate
from .metrics import Row, Score, accuracy, figures, last
from .predict import (
    Learned,
    Prediction,
    check_client,
    inputs,
    newcomer,
    only_run,
    predictions,
)
from .private import Private
from .report import collect, notebook, write_html
from .report.evaluation import Evaluation
from .rundir import RunDir
from .study import once
from .tensors import Tensors

if TYPE_CHECKING:
    from pandas import DataFrame


_SCORES = ("accuracy/", "calibration/")


@dataclass(frozen=True)
class Results:
    """What one run learned: `Results("runs/first")` opens a folder that `fedexperts run` or
    `fx.run` made.

    `scores`, `rounds`, `clients` and `server` are frames of pandas, read anew each time.
    """

    path: Path | str

    @property
    def folder(self) -> RunDir:
        """The run's folder; ValueError, with what to do, if `path` holds no run or several."""
        return only_run(Path(self.path))

    @property
    def config(self) -> Config:
        """What the run was asked for."""
        return door.parse(self.folder.text("config.toml"), str(self.path))

    @property
    def score(self) -> Score:
        """After the last round; ValueError if no client has answered any evaluation yet."""
        return last(self._rows("clients"), self._rows("server"))

    @property
    def scores(self) -> "DataFrame":
        """Accuracy and calibration in percent, a row for each evaluated round.

        `local`: each client with its own model on its own test part, mean over clients;
        `local-valid`: the same on validation parts; `worst-client`: the lowest; `server`: the
        server's model, if clients share one, on the test parts of all clients; `ece`: the expected
        calibration error of all clients' answers.
        """
        every = self._figures()
        shown = every[[name for name in every if name.startswith(_SCORES)]]
        if not self.config.section("method").declares().shared:
            shown = shown.drop(columns="accuracy/server")
        return shown.rename(columns=lambda name: name.partition("/")[2]).dropna(how="all")

    @property
    def rounds(self) -> "DataFrame":
        """A row for each round: clients that trained and that were refused, the mean of their
        losses, bytes and seconds.
        """
        every = self._figures()
        shown = every[[name for name in every if not name.startswith(_SCORES)]]
        return shown.rename(
            columns=lambda name: name.removeprefix("train/").replace("/", "_")
        ).dropna(how="all")

    @property
    def clients(self) -> "DataFrame":
        """A row for each client and evaluated round: its accuracy in percent, and all that it
        logged.
        """
        rows = [{"accuracy": accuracy(row, "test")} | row for row in self._rows("clients")]
        return _frame(rows, ["round", "client"])

    @property
    def server(self) -> "DataFrame":
        """A row for each evaluated round: all that the server logged of itself."""
        return _frame(self._rows("server"), ["round"])

    def tensors(self, client: str = "") -> Tensors:
        """What the server holds after the last round, by name; or what a client has kept: nothing,
        if it keeps nothing.
        """
        folder = self.folder
        newest = folder.look()
        if newest is None:
            raise ValueError(f"{folder.path} has no finished round yet: wait, or use fx.run again")
        round, server = newest
        if not client:
            return server
        states = Private(folder.path / "private")
        check_client(folder, states, client)
        return states.load(client, round + 1, folder.kept().get(client, 0)) or {}

    def predict(
        self, what: Any, client: str = "", like: Path | str | None = None
    ) -> list[Prediction]:
        """The class of each of `what`: image files and folders of them, or texts and files of
        them; one or a list. Or pixels, uint8 [B, 3, side, side], as a tensor or an array.

        With one client's own model; without a name, with what all share; `like` a folder or table
        of a few examples of its own, with the experts that fit these best.
        """
        predictor = Learned.of(self.folder.path, client)
        if like:
            predictor = newcomer(predictor, Path(like))
        if not isinstance(what, (str, Path, Sequence)):
            pixels = _pixels(what, predictor.side)
            return predictor.say([str(number) for number in range(len(pixels))], pixels)
        asked = [what] if isinstance(what, (str, Path)) else what
        answers: list[Prediction] = []
        for batch, broken in predictions(predictor, _inputs(predictor, asked)):
            if broken:
                raise ValueError(f"images that cannot be read: {'; '.join(said(broken))}")
            answers += batch
        return answers

    def evaluate(self, labelled: Path | str, client: str = "") -> Evaluation:
        """How well one client's own model, or without a name what all share, does on a folder of
        class/image.jpg or a table of labelled examples: what `fedexperts evaluate` prints.

        Its `lines()` say it in words; `accuracy`, `matrix`, `answers` and `plain()` are figures.
        """
        return evaluate(Learned.of(self.folder.path, client), Path(labelled))

    def report(self, page: Path | str | None = None) -> Path:
        """Write the page of tables and pictures, `report.html` in the run's folder, and say where
        it is.
        """
        path = Path(page or self.folder.path / "report.html")
        write_html(collect([self.folder.path]), path)
        return path

    def _repr_html_(self) -> str:
        """What a notebook shows of it: the page's tables, and accuracy over rounds."""
        return notebook.html(collect([self.folder.path]))

    def _rows(self, log: str) -> list[Row]:
        return self.folder.rows(f"{log}.jsonl")

    def _figures(self) -> "DataFrame":
        """Of each round, the numbers that curves are drawn of."""
        logs = [self._rows(log) for log in ("rounds", "clients", "server")]
        return _frame([{"round": round} | row for round, row in figures(*logs).items()], ["round"])


def run(config: Config, folder: Path | str) -> Results:
    """One experiment in a folder, as configured and untuned; a run that is there already goes on.
    A notebook shows a bar meanwhile.

    ValueError if the folder holds another run; NobodyLeftError if no client is left in a round.
    """
    once(config, folder, notebook.bar(config.name))
    return Results(folder)


def _frame(rows: Sequence[Row], index: Sequence[str]) -> "DataFrame":
    """Rows as a frame; ModuleNotFoundError, with what to type, where there is no pandas."""
    try:
        from pandas import DataFrame  # takes a second to import: not for predictions
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "tables of a run need pandas; type: pip install 'fedexperts[pandas]'"
        ) from None
    columns = None if rows else index  # a run that logged nothing yet
    return DataFrame(rows, columns=columns).set_index(list(index))


def _inputs(predictor: Learned, asked: Sequence[str | Path]) -> list[str]:
    """Files and texts, one by one: where a run learned from texts, a str is a text and a Path a
    file of them.
    """
    files = [Path(one) for one in asked if predictor.side or isinstance(one, Path)]
    texts = [str(one) for one in asked if not (predictor.side or isinstance(one, Path))]
    return inputs(predictor, files, texts)


def _pixels(what: Any, side: int | None) -> Tensor:
    """Images as the run learned them; ValueError, with what is expected, for any other."""
    pixels = torch.as_tensor(what)
    if side is None:
        raise ValueError("this run learned from texts; expected texts, or files of them")
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, side, side):
        raise ValueError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}; expected torch.uint8"
            f" [B, 3, {side}, {side}]"
        )
    return pixels
