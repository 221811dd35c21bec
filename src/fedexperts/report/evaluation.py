"""What there is to say of answers to labelled inputs: figures, tables, pictures, one page.

It knows answers and their truths; it does not know who answered, nor where inputs come from.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape

import torch
from rich.table import Table

from ..answers import BINS, Bins, ByClass, Matrix, binned, by_class, confused, matrix, mistakes
from ..options import Values
from .claims import shown
from .columns import NONE, Column
from .confusion import confusion
from .ink import Picture
from .page import document, figure, grid, set_table
from .paired import wilson
from .reliability import reliability
from .tables import table

WIDE = 64  # letters: a matrix whose classes need no more stands in a terminal
FREQUENT = 10  # mistakes that are named where they need more


@dataclass(frozen=True)
class Answer:
    """What was said of one input, how sure, and what it is."""

    input: str
    truth: str
    said: str
    probability: float

    @property
    def correct(self) -> bool:
        return self.truth == self.said


@dataclass(frozen=True)
class Evaluation:
    """Answers to labelled inputs, at least one; and the inputs that could not be read, with why."""

    who: str  # answered, in words
    classes: Sequence[str]
    answers: Sequence[Answer]
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def correct(self) -> int:
        return sum(answer.correct for answer in self.answers)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %, in percent."""
        return wilson(self.correct, len(self.answers))

    @cached_property
    def matrix(self) -> Matrix:
        number = {name: position for position, name in enumerate(self.classes)}
        truth = torch.tensor([number[answer.truth] for answer in self.answers])
        said = torch.tensor([number[answer.said] for answer in self.answers])
        return matrix(confused(said, truth, len(number)), len(number))

    @cached_property
    def by_class(self) -> list[ByClass]:
        return by_class(self.matrix, self.classes)

    @cached_property
    def bins(self) -> Bins:
        sure = torch.tensor([answer.probability for answer in self.answers])
        return binned(sure, torch.tensor([answer.correct for answer in self.answers]))

    def worst(self, most: int) -> list[Answer]:
        """The mistakes that were made with most confidence."""
        wrong = [answer for answer in self.answers if not answer.correct]
        return sorted(wrong, key=lambda answer: -answer.probability)[:most]

    def lines(self) -> list[str]:
        """The result in words."""
        low, high = self.interval
        lines = [
            f"{self.correct} of {len(self.answers)} correct: {self.accuracy:.1f} % (between"
            f" {low:.1f} and {high:.1f}, 95 %, Wilson's interval).",
            f"Answered by {shown(self.who)}.",
            _calibrated(self.bins),
        ]
        if self.unread:
            lines.append(f"Not counted, as they cannot be read: {len(self.unread)} inputs.")
        return lines

    def plain(self) -> Values:
        """As JSON has it."""
        low, high = self.interval
        return {
            "answered_by": self.who,
            "examples": len(self.answers),
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval": [low, high],
            "classes": [
                {
                    "class": each.name,
                    "examples": each.examples,
                    "said": each.said,
                    "correct": each.correct,
                    "recall": each.recall,
                    "precision": each.precision,
                }
                for each in self.by_class
            ],
            "confusion": self.matrix,
            "calibration": {
                "expected_error": self.bins.error,
                "examples": list(self.bins.examples),
                "sum_of_confidences": list(self.bins.sure),
                "correct": list(self.bins.correct),
            },
            "unread": dict(self.unread),
        }


def _calibrated(bins: Bins) -> str:
    sure = 100 * sum(bins.sure) / sum(bins.examples)
    return (
        f"Mean confidence {sure:.1f} %; expected calibration error {bins.error:.1f} %, in {BINS}"
        " equal bins of confidence."
    )


def tables(evaluation: Evaluation, worst: int) -> list[Table]:
    """Per class, which class was said for which, and the worst mistakes."""
    every = [_classes(evaluation), _frequent(evaluation)]
    if sum(len(name) + 1 for name in evaluation.classes) <= WIDE:
        every[1] = _matrix(evaluation)
    if wrong := evaluation.worst(worst):
        every.append(_worst(wrong))
    return every


def _classes(evaluation: Evaluation) -> Table:
    columns = [
        Column[ByClass]("class", "", lambda each: shown(each.name), words=True),
        Column[ByClass]("examples", "", lambda each: str(each.examples)),
        Column[ByClass](
            "recall", "of its examples, those for which it was said", lambda e: _share(e.recall)
        ),
        Column[ByClass](
            "precision", "of the answers that say it, those that are correct", _precision
        ),
    ]
    return table("Classes, in percent", evaluation.by_class, columns, "")


def _precision(each: ByClass) -> str:
    return _share(each.precision)


def _share(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.1f}"


def _matrix(evaluation: Evaluation) -> Table:
    rows = list(zip(evaluation.classes, evaluation.matrix, strict=True))
    columns = [Column[tuple[str, list[int]]]("truth", "", lambda row: shown(row[0]), words=True)]
    columns += [_said(number, name) for number, name in enumerate(evaluation.classes)]
    about = "A row is a class; the columns are what was said."
    return table("Which class was said for which", rows, columns, about)


def _said(number: int, name: str) -> Column[tuple[str, list[int]]]:
    return Column(shown(name), "", lambda row: str(row[1][number]))


def _frequent(evaluation: Evaluation) -> Table:
    columns = [
        Column[tuple[str, str, int]]("truth", "", lambda row: shown(row[0]), words=True),
        Column[tuple[str, str, int]]("said", "", lambda row: shown(row[1]), words=True),
        Column[tuple[str, str, int]]("times", "", lambda row: str(row[2])),
    ]
    rows = mistakes(evaluation.matrix, evaluation.classes)[:FREQUENT]
    return table("Frequent mistakes", rows, columns, "")


def _worst(wrong: Sequence[Answer]) -> Table:
    columns = [
        Column[Answer]("input", "", lambda answer: shown(answer.input), words=True),
        Column[Answer]("truth", "", lambda answer: shown(answer.truth), words=True),
        Column[Answer]("said", "", lambda answer: shown(answer.said), words=True),
        Column[Answer]("%", "", lambda answer: f"{100 * answer.probability:.1f}"),
    ]
    return table("The surest mistakes", wrong, columns, "%: how sure the wrong answer was.")


def pictures(evaluation: Evaluation) -> dict[str, Picture]:
    """By the name of a file."""
    return {
        "confusion": confusion(evaluation.matrix, evaluation.classes, "Confusion matrix"),
        "reliability": reliability({"answers": [evaluation.bins]}, "Calibration", ""),
    }


def page(evaluation: Evaluation, worst: int, thumbnails: Mapping[str, bytes]) -> str:
    """One HTML file that needs nothing else; `thumbnails`, PNG by input, of mistakes."""
    first, *others = evaluation.lines()
    listed = 0 if thumbnails else worst  # what is shown needs no list
    return document(
        "Evaluation",
        [
            "<h1>Evaluation</h1>",
            f'<p class="result">{escape(first)}</p>',
            *(f"<p>{escape(line)}</p>" for line in others),
            *(set_table(each) for each in tables(evaluation, listed)),
            *_tiles(evaluation.worst(worst), thumbnails),
            *(figure(each) for each in pictures(evaluation).values()),
            *_unread(evaluation.unread),
        ],
    )


def _tiles(wrong: Sequence[Answer], thumbnails: Mapping[str, bytes]) -> list[str]:
    """The surest mistakes as they were shown to the model."""
    if not thumbnails:
        return []
    tiles = "".join(_tile(each, thumbnails[each.input]) for each in wrong)
    return [
        "<h2>The surest mistakes, as the model saw them</h2>",
        f'<div class="tiles">{tiles}</div>',
    ]


def _tile(answer: Answer, png: bytes) -> str:
    says = f"{answer.truth}, said {answer.said}, {100 * answer.probability:.1f} %"
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(shown(says))}" src="data:image/png;base64,{data}">'
        f'<figcaption class="small">{escape(shown(says))}<br>{escape(shown(answer.input))}'
        "</figcaption></figure>"
    )


def _unread(unread: Mapping[str, str]) -> list[str]:
    if not unread:
        return []
    return ["<h2>Not read</h2>", grid(["input", "why"], unread.items(), "words")]
