"""A run, opened to predict with what it learned: with one client's own model, or with what the
server has.

It reads the run's folder and a client's private state, and changes neither: a run that goes on is
not disturbed. The run's data are not loaded. This room does not know what a method learns, nor how
a prediction is shown.

Shapes: B inputs, C classes, E experts.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import config as door
from . import predictor
from .config import Config
from .data.examples import Listing, quoted, words
from .data.folders import ImageFolders, images_below
from .data.images import SUFFIXES, read, readable
from .data.table import Table
from .learn import Examples, Local
from .method import Chosen, Method
from .model import MixtureModel, Model
from .models.built import Built
from .options import Values
from .private import Private
from .report.collect import runs
from .rundir import RunDir
from .tensors import Tensors

BATCH = 256  # inputs that are read and computed at once
TEXTS = ".txt"
OWN = "own"
NEWCOMER = "newcomer"
LOUDEST = 3  # experts that are named


@dataclass(frozen=True)
class Prediction:
    """What is said of one input: its class, with which probability, each expert's share in saying
    so, and the likeliest classes with theirs, as many as were asked for.
    """

    input: str
    label: str
    probability: float
    experts: dict[str, float] = field(default_factory=dict)
    classes: dict[str, float] = field(default_factory=dict)

    def plain(self, every: bool = False) -> Values:
        """As JSON has it; with every class that was asked for, the likeliest first."""
        classes = {"classes": self.classes} if every else {}
        return {
            "input": self.input,
            "class": self.label,
            "probability": self.probability,
            "experts": self.experts,
        } | classes


@dataclass(frozen=True)
class Learned:
    """One client of a run with what it predicts with; without a name, what the server has."""

    folder: RunDir
    config: Config
    built: Built
    model: Model
    method: Method
    server: Tensors
    round: int  # after which the run stands
    client: str
    local: Local
    kept: int | None  # the round from which the client's own state is; None: it has none
    side: int | None  # pixels of an image's side; None: inputs are texts
    # a newcomer's: each expert's share in `local`; {}: it is what all share
    chosen: Mapping[str, float] | None = None
    by: str = "labelled examples"  # that they were chosen by

    @classmethod
    def of(cls, path: Path, client: str, private: Path | None = None) -> "Learned":
        """Of the run in `path`, private states in the folder `private` (the run's own); ValueError,
        with what to do.
        """
        folder = only_run(path)
        config, about = _asked(folder)
        newest = folder.look()
        if newest is None:
            raise ValueError(
                f"{folder.path} has no finished round yet: wait, or use `fedexperts resume`"
            )
        round, server = newest
        states = Private(private or folder.path / "private")
        if client:
            check_client(folder, states, client)
        kept = states.newest(client, round + 1) if client else None
        own = _own(states, client, round + 1, folder.kept().get(client, 0)) if client else None
        built, model = door.modelled(config, tuple(about["classes"]))
        method: Method = config.section("method")
        shared = method.publish(server)
        if config.values["start"]["epochs"] and not shared and own is None:
            split = folder.path / "split.json"
            # all it has is what data taught the common start
            model = door.build(config, states.folder, split)[0].model
        local = method.restore(model, shared, own)
        return cls(
            folder, config, built, model, method, server, round, client, local, kept, about["side"]
        )

    @torch.no_grad()
    def like(self, few: Examples) -> "Learned":
        """The same for a client that never trained, with what does best on a few labelled examples
        of its own.
        """
        shared = self.method.restore(self.model, self.method.publish(self.server), None)
        choices = [Chosen(shared), *self.method.offers(self.model, self.server, few)]
        predictors = [self.method.predictor(self.model, choice.local) for choice in choices]
        losses = [cross_entropy(one.logits(few.x[:, 0]), few.y) for one in predictors]
        best = choices[int(torch.stack(losses).argmin())]
        return replace(self, local=best.local, chosen=best.shares)

    @torch.no_grad()
    def meeting(self, x: Tensor) -> "Learned":
        """The same for one whose inputs [n, ...] have no labels: nothing tells what does best."""
        choice = self.method.meets(self.model, self.server, x)
        return replace(self, local=choice.local, chosen=choice.shares, by="unlabelled images")

    @cached_property
    def _served(self) -> predictor.Predictor | None:
        """The server's own predictor, if it is asked and has one."""
        if self.client or self.chosen is not None:
            return None
        return self.method.served(self.model, self.server)

    @property
    def answering(self) -> predictor.Predictor:
        """What answers: the server's own predictor, or the client's."""
        return self._served or self.method.predictor(self.model, self.local)

    @property
    def bits(self) -> int:
        """How grey pictures of 16 bits are read, as the run's own were."""
        return int(self.config.values["data"].get("bits", 0))

    @property
    def serves(self) -> bool:
        """Whether it is the server's own predictor."""
        return self._served is not None

    @property
    def who(self) -> str:
        """What predicts, in words."""
        if self.chosen:
            best = f"the experts that fit the {self.by} best, after round {self.round}"
            return f"{best}: {loudest(self.chosen)}"
        if self.serves:
            return f"the server's own predictor, after round {self.round}"
        if self.kept is not None:
            return f"{self.client}'s own model, as it kept it in round {self.kept}"
        shared = f"the model that all clients share, after round {self.round}"
        if self.chosen is not None:
            return f"{shared}: on the labelled examples no choice of experts does better"
        return f"{shared}; {self.client} has kept none of its own" if self.client else shared

    @torch.no_grad()
    def say(self, inputs: Sequence[str], given: Any, most: int = 1) -> list[Prediction]:
        """Predictions for images uint8 [B, 3, side, side], or B texts, called `inputs`; of each
        `most` classes.
        """
        x = self.built.encode(given)
        probability_BC, label_BC = (
            self.logits(x).softmax(-1).sort(dim=-1, descending=True, stable=True)
        )
        shares_BE = self._shares(x, label_BC[:, 0])
        names = self.experts(shares_BE.shape[1])
        predictions = []
        for what, labels, probabilities, shares in zip(
            inputs,
            label_BC[:, :most].tolist(),
            probability_BC[:, :most].tolist(),
            shares_BE.tolist(),
            strict=True,
        ):
            classes = {
                self.model.classes[label]: p for label, p in zip(labels, probabilities, strict=True)
            }
            label, probability = next(iter(classes.items()))
            predictions.append(
                Prediction(what, label, probability, dict(zip(names, shares, strict=True)), classes)
            )
        return predictions

    def logits(self, x: Tensor) -> Tensor:
        """[B, C] from a model's inputs [B, ...]."""
        return self.answering.logits(x)

    def _shares(self, x: Tensor, label_B: Tensor) -> Tensor:
        """[B, E]: each expert's share in the class that is answered; E is 0 without experts."""
        shares_BCE = self.answering.shares(x)
        if shares_BCE is None:
            return x.new_zeros(len(x), 0)
        return shares_BCE[torch.arange(len(x)), label_B]

    def experts(self, count: int) -> list[str]:
        """Names of so many experts: a mixture's; or the client's own, then those whose it received,
        as far as the log knows.
        """
        if self.chosen:
            return list(self.chosen)[:count]
        model = self.answering.model
        if isinstance(model, MixtureModel):
            mains = [f"main {i}" for i in range(model.mains)]
            return [*mains, *(f"expert {k}" for k in range(count - model.mains))]
        rows = {row["round"]: row["trained"] for row in self.folder.rows("rounds.jsonl")}
        others = rows.get(self.kept, {}).get(self.client, {}).get("received", [])
        if len(others) != count - 1:
            others = [f"expert {k}" for k in range(1, count)]
        return [OWN, *others][:count]


def loudest(experts: Mapping[str, float]) -> str:
    """The few experts with the largest shares, in words."""
    ordered = sorted(experts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share:.2f}" for name, share in ordered[:LOUDEST])


def inputs(predictor: Learned, paths: Sequence[Path], texts: Sequence[str]) -> list[str]:
    """What is to be predicted, one by one: files of images, or texts; ValueError if it is not what
    the run learned.
    """
    if predictor.side is None:
        return [*(text for path in paths for text in _lines(path)), *texts]
    if texts:
        raise ValueError(
            "this run learned from images, and --text is a text; expected image files, or a folder"
        )
    return [str(file) for path in paths for file in _images(path)]


def predictions(
    predictor: Learned, asked: Sequence[str], most: int = 1
) -> Iterator[tuple[list[Prediction], Mapping[str, str]]]:
    """Batch by batch: predictions, each of `most` classes, and the files that cannot be read with
    the reason.
    """
    for first in range(0, len(asked), BATCH):
        batch, broken = asked[first : first + BATCH], dict[str, str]()
        given: Any = batch
        if predictor.side is not None:
            given, broken = readable([Path(file) for file in batch], predictor.side, predictor.bits)
            batch = [file for file in batch if file not in broken]
        yield predictor.say(batch, given, most) if batch else [], broken


def newcomer(predictor: Learned, path: Path) -> Learned:
    """For a client that never trained, by what lies at `path`: examples with their classes, or a
    folder of images without.
    """
    if predictor.side is None or not path.is_dir() or not any(_in(path)):
        return predictor.like(labelled(predictor, path))
    pixels, broken = readable(_in(path), predictor.side, predictor.bits)
    if broken:
        raise ValueError(f"{next(iter(broken))} cannot be read: {next(iter(broken.values()))}")
    return predictor.meeting(predictor.built.encode(pixels))


def _in(path: Path) -> list[Path]:
    """Images in a folder itself, not in those below it."""
    return [file for file in images_below(path) if file.parent == path]


def labelled(predictor: Learned, path: Path) -> Examples:
    """A few examples with their classes, class/image.jpg in a folder or a row each in a table, as
    the run learned them.

    ValueError, with what to do, for whatever does not fit.
    """
    listing, y = _labelled(predictor, path)
    whats = [example.what for example in listing.examples]
    given: Any = whats
    if listing.store is not None and predictor.side is not None:
        given, _ = read(listing.store, whats, predictor.side, predictor.bits)
    return Examples(predictor.built.encode(given)[:, None], torch.tensor(y))


def truths(predictor: Learned, path: Path) -> list[tuple[str, str]]:
    """The same one by one, to be read later: files of images or texts, each with its class."""
    listing, y = _labelled(predictor, path)
    whats = [example.what for example in listing.examples]
    if listing.store is not None:
        whats = [str(Path(str(listing.store)) / what) for what in whats]
    return [(what, predictor.model.classes[number]) for what, number in zip(whats, y, strict=True)]


def _labelled(predictor: Learned, path: Path) -> tuple[Listing, list[int]]:
    """What lies there, and the number of each example's class."""
    if not path.exists():
        raise ValueError(
            f"{path}: no such file or folder; expected a folder with CLASS/IMAGE files, or a table"
            " with the columns label and path or text"
        )
    table = Table(path=str(path), site=NEWCOMER, site_column="", part_column="")
    listing = (
        ImageFolders(path=str(path), site=NEWCOMER).listing() if path.is_dir() else table.listing()
    )
    classes = predictor.model.classes
    numbers = {words(name): number for number, name in enumerate(classes)}
    if strange := sorted({example.label for example in listing.examples} - numbers.keys()):
        raise ValueError(
            f"{quoted(strange)} in {path}: no class of the run. Expected folders, or labels, named"
            f" like its classes: {', '.join(classes)}"
        )
    if (listing.store is None) != (predictor.side is None):
        learned = "texts, in a table with a column text" if predictor.side is None else "images"
        raise ValueError(f"{path} does not hold what the run learned from; expected {learned}")
    return listing, [numbers[example.label] for example in listing.examples]


def only_run(path: Path) -> RunDir:
    """The one run in `path`."""
    folders = runs(path)
    if len(folders) > 1:
        raise ValueError(
            f"{path} holds {len(folders)} runs; expected one of {', '.join(map(str, folders))}"
        )
    return RunDir(folders[0])


def _asked(folder: RunDir) -> tuple[Config, Values]:
    """A run's config, and what it wrote down of its data."""
    about: Values = json.loads(folder.text("environment.json"))
    if missing := [key for key in ("classes", "side") if key not in about]:
        raise ValueError(
            f"{folder.path}/environment.json does not say {' and '.join(missing)}, as a run of this"
            " version does; run again"
        )
    return door.parse(folder.text("config.toml"), str(folder.path)), about


def _own(states: Private, client: str, before: int, kept: int) -> Tensors | None:
    try:
        return states.load(client, before, kept)
    except ValueError as error:
        error.add_note(
            "If it is elsewhere, use --private FOLDER. Without --client the global model is used."
        )
        raise


def check_client(folder: RunDir, states: Private, client: str) -> None:
    """ValueError if a run knows no such client."""
    rows = folder.rows("clients.jsonl")
    known = sorted({str(row["client"]) for row in rows} | {*states.clients()})
    if client not in known:
        near = difflib.get_close_matches(client, known, 1)
        there = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}."
        raise ValueError(
            f"no client {client!r} in {folder.path}; {there} Without --client the global model is"
            " used."
        )


def _images(path: Path) -> list[Path]:
    """An image, or all images in a folder and in those below it."""
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: no such file or folder")
        return [path]
    files = images_below(path)
    if not files:
        raise ValueError(
            f"no image in {path}; expected a folder with files as {', '.join(SUFFIXES)}"
        )
    return files


def _lines(path: Path) -> list[str]:
    """The texts of a file, a line each."""
    if path.suffix.lower() != TEXTS or not path.is_file():
        raise ValueError(
            f"{path}: this run learned from texts; expected a {TEXTS} file, a text a line, or"
            " --text"
        )
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}); save it so") from None
