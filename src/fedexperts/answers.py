"""Counting answers: how right they are for how sure they are, and which class is said for which.

What is counted at a client are a few small sums, so that clients can be added up and no example can
be told from them. This room knows numbers; it does not know who answers, nor how a count is shown.

Shapes: B inputs, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .declared import COUNT, ROUNDING, Facts, Figure

BINS = 10  # of confidence, the probability of the class that is said; all are equally wide
DIGITS = 2  # of a sum of confidences
CELLS = 2**14  # of a confusion matrix: so many that are not 0 can be told
EXAMPLES, SURE, CORRECT = "test_bin_examples", "test_bin_sure", "test_bin_correct"
CONFUSION = "test_confusion"
SAYS_BINS: dict[str, Figure] = {
    EXAMPLES: replace(COUNT, longest=BINS),
    SURE: Figure(least=0, most=COUNT.most, longest=BINS),
    CORRECT: replace(COUNT, longest=BINS),
}
# cells that are not 0: a cell's number, truth x C + said, and how many examples are in it
SAYS_CONFUSION = {CONFUSION: replace(COUNT, longest=2 * CELLS)}
# of examples of its own classes, of classes that others train on, of classes that nobody does
OWN, BASE, UNSEEN = "own", "base", "unseen"
SAYS_REACH = dict.fromkeys(
    (f"{OWN}_correct", *(f"{of}_{n}" for of in (BASE, UNSEEN) for n in ("correct", "examples"))),
    COUNT,
)

Matrix = list[list[int]]  # [C][C]: examples of each class, by the class that was said


@dataclass(frozen=True)
class Bins:
    """Answers by confidence: of each bin its examples, the sum of their confidences, and how many
    of them are correct.
    """

    examples: Sequence[int]
    sure: Sequence[float]
    correct: Sequence[int]

    @property
    def error(self) -> float:
        """The expected calibration error in percent: how far mean confidence and accuracy are
        apart in a bin, averaged over answers.
        """
        pairs = zip(self.sure, self.correct, strict=True)
        return 100 * sum(abs(sure - correct) for sure, correct in pairs) / sum(self.examples)

    def filled(self) -> list[tuple[int, float, float]]:
        """Of each bin that has answers: how many, their mean confidence, their accuracy."""
        every = zip(self.examples, self.sure, self.correct, strict=True)
        return [(count, sure / count, correct / count) for count, sure, correct in every if count]


def binned(sure_B: Tensor, correct_B: Tensor) -> Bins:
    """Answers by confidence: how sure they are, and whether they are correct."""
    sure_B = sure_B.double().nan_to_num(0)  # of a model that diverged
    bin_B = (sure_B * BINS).long().clamp(max=BINS - 1)

    def summed(values: Tensor | None = None) -> Tensor:
        return torch.bincount(bin_B, values, BINS)

    return Bins(
        summed().tolist(),
        [round(each, DIGITS) for each in summed(sure_B).tolist()],
        summed(correct_B.double()).long().tolist(),
    )


def confused(said_B: Tensor, y: Tensor, classes: int) -> list[int]:
    """The cells that are not 0 of a confusion matrix, each with its count."""
    cells, counts = (y * classes + said_B).unique(return_counts=True)
    pairs: list[int] = torch.stack([cells, counts], 1).flatten().tolist()
    return pairs


def told(logits: Tensor, y: Tensor, by_class: bool = False) -> Facts:
    """What a log says of answers [B, C] to test examples with labels y; `by_class`, which class was
    said for which, too.
    """
    said_B = logits.argmax(-1)
    sure_B = logits.softmax(-1).gather(-1, said_B[:, None])[:, 0]
    bins = binned(sure_B, said_B == y)
    lists: dict[str, list[float]] = {
        EXAMPLES: [*bins.examples],
        SURE: [*bins.sure],
        CORRECT: [*bins.correct],
    }
    if by_class:
        cells = confused(said_B, y, logits.shape[-1])
        if len(cells) <= 2 * CELLS:
            lists[CONFUSION] = [*cells]
    return {**lists}


def among(logits: Tensor, y: Tensor, classes: Tensor) -> int:
    """How many of the answers [B, C] to examples with labels y are correct where some classes alone
    may be said.
    """
    said_B = classes[logits[:, classes].argmax(-1)]
    return int((said_B == y).sum())


@dataclass(frozen=True)
class ByClass:
    """How one class fares: its examples, how often it was said, how often that was correct."""

    name: str
    examples: int
    said: int
    correct: int

    @property
    def recall(self) -> float | None:
        """The share of its examples for which it was said; None without any."""
        return self.correct / self.examples if self.examples else None

    @property
    def precision(self) -> float | None:
        """The share of its answers that are correct; None where it was never said."""
        return self.correct / self.said if self.said else None


def by_class(matrix: Matrix, classes: Sequence[str]) -> list[ByClass]:
    """Every class's row and column of a confusion matrix."""
    columns = zip(*matrix, strict=True)
    return [
        ByClass(name, sum(row), sum(column), row[number])
        for number, (name, row, column) in enumerate(zip(classes, matrix, columns, strict=True))
    ]


def mistakes(matrix: Matrix, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Truth, what was said instead, and how often: the most frequent first."""
    mistaken = [
        (classes[truth], classes[said], count)
        for truth, row in enumerate(matrix)
        for said, count in enumerate(row)
        if count and truth != said
    ]
    return sorted(mistaken, key=lambda mistake: -mistake[2])


# ---- from logs


def bins(rows: Iterable[Mapping[str, Any]]) -> Bins | None:
    """The bins of several rows in one; None where one has none, as those of version 0.1."""
    added_up = list(rows)
    if not added_up or not all(EXAMPLES in row for row in added_up):
        return None
    return added([Bins(row[EXAMPLES], row[SURE], row[CORRECT]) for row in added_up])


def added(every: Sequence[Bins]) -> Bins:
    """Several, at least one, in one."""
    return Bins(
        [sum(values) for values in zip(*(each.examples for each in every), strict=True)],
        [sum(values) for values in zip(*(each.sure for each in every), strict=True)],
        [sum(values) for values in zip(*(each.correct for each in every), strict=True)],
    )


def matrix(cells: Sequence[int], classes: int) -> Matrix:
    """The confusion matrix of cells and their counts."""
    whole = [[0] * classes for _ in range(classes)]
    for cell, count in zip(cells[::2], cells[1::2], strict=True):
        whole[cell // classes][cell % classes] += count
    return whole


def unlike(facts: Mapping[str, Any], classes: int) -> str:
    """Why a client's counts do not fit its own figures, or ""; each figure alone is allowed."""
    every = [facts[key] for key in SAYS_BINS]
    if any(len(values) != BINS for values in every):
        return f"it does not say {BINS} bins of confidence"
    whole = (facts["test_examples"], facts["test_correct"])
    if (sum(facts[EXAMPLES]), sum(facts[CORRECT])) != whole:
        return "its bins of confidence do not add up to its examples and correct answers"
    for position, (count, sure, correct) in enumerate(zip(*every, strict=True)):
        low, high = position * count / BINS, (position + 1) * count / BINS
        if correct > count or not low - ROUNDING <= sure <= high + ROUNDING:
            return f"its bin {position} of confidence has {correct} correct of {count}, sure {sure}"
    return _unlike_confusion(facts, classes)


def _unlike_confusion(facts: Mapping[str, Any], classes: int) -> str:
    if CONFUSION not in facts:
        return ""
    cells, counts = facts[CONFUSION][::2], facts[CONFUSION][1::2]
    if len(cells) != len(counts) or any(cell >= classes**2 for cell in cells):
        return f"its confusion matrix is not one of {classes} classes"
    correct = sum(n for cell, n in zip(cells, counts, strict=True) if cell % (classes + 1) == 0)
    if (sum(counts), correct) != (facts["test_examples"], facts["test_correct"]):
        return "its confusion matrix does not add up to its examples and correct answers"
    return ""
