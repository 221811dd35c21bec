"""The picture of calibration: how often answers are correct, for how sure they are."""

import statistics
from collections.abc import Mapping, Sequence

from ..answers import BINS, Bins, added
from .claims import shown
from .ink import COLOURS, MARKS, Picture, above, paper, plain, printed

DOTS = 90  # the size of a mark that stands for all answers


def reliability(seeds: Mapping[str, Sequence[Bins]], title: str, whose: str) -> Picture:
    """By name, the bins of each seed, drawn in one: a mark for each that has answers, larger for
    more of them. `whose` answers, in a sentence and a space. Without bins, a name keeps its colour.
    """
    figure, axes = paper(4.6)
    axes.set_aspect("equal")
    axes.plot([0, 100], [0, 100], color="0.45", linewidth=1, linestyle=(0, (1, 2)))
    for number, (name, every) in enumerate(seeds.items()):
        if not every:
            continue
        bins = added(every)
        total = sum(bins.examples)
        filled = bins.filled()
        colour = COLOURS[number % len(COLOURS)]
        sure = [100 * each for _, each, _ in filled]
        correct = [100 * each for _, _, each in filled]
        axes.plot(sure, correct, color=colour, linewidth=1, alpha=0.5)
        drawn = axes.scatter(
            sure,
            correct,
            s=[8 + DOTS * count / total for count, _, _ in filled],
            marker=MARKS[number % len(MARKS)],
            color=colour,
            alpha=0.8,
            linewidths=0,
        )
        drawn.set_label(plain(name))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("confidence: the probability of the class that is said, %")
    above(axes, "accuracy, %")
    known = {name: every for name, every in seeds.items() if every}
    errors = ", ".join(f"{shown(name)} {_error(every):.1f}" for name, every in known.items())
    said = f"Expected calibration error in percent, mean over seeds: {errors}."
    if all(len(every) == 1 for every in known.values()):
        said = f"Expected calibration error in percent: {errors}."
    caption = (
        f"{said} {whose}Answers are put in {BINS} equal bins of confidence; a mark is a bin,"
        " larger for more answers, at its mean confidence and its accuracy. Dotted: as often"
        " correct as sure. Below it: too sure."
    )
    return printed(figure, axes, title, said, caption)


def _error(seeds: Sequence[Bins]) -> float:
    return statistics.fmean(bins.error for bins in seeds)
