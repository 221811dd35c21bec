"""Pictures of confusion matrices, which class was said for which: one, or one for each client."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..answers import CONFUSION, Matrix, matrix, mistakes
from .claims import plural, shown
from .collect import Experiment
from .ink import CROWD, WIDTH, Picture, inked, order, paper, short

ROOM = 12  # so many classes or fewer: a number fits into each square
ACROSS = 5  # clients beside each other
BROAD, HIGH = 1.1, 1.25  # what a client's square takes, of its own side; its name stands above
NAMED = 5  # mistakes that are said in words

Corners = tuple[float, float, float, float]  # left, right, bottom, top


def confusion(counts: Matrix, classes: Sequence[str], title: str) -> Picture:
    """A matrix with its classes and, where there is room, its numbers."""
    figure, axes = paper(WIDTH)
    _draw(axes, counts)
    axes.set_xlabel("said")
    axes.set_ylabel("truth")
    if len(classes) <= CROWD:
        names = [short(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=7.5)
        axes.set_yticks(range(len(classes)), names, fontsize=7.5)
    if len(classes) <= ROOM:
        _number(axes, counts)
    caption = "A row is a class, a column what was said; darker: a larger share of the row."
    return Picture(title, in_words(counts, classes), caption, inked(figure, "svg"))


def in_words(counts: Matrix, classes: Sequence[str]) -> str:
    """The most frequent mistakes."""
    every = mistakes(counts, classes)
    if not every:
        return "No mistake was made."
    named = [
        f"{shown(truth)} taken for {shown(said)} ({count})" for truth, said, count in every[:NAMED]
    ]
    return f"Most frequent mistakes: {', '.join(named)}."


def by_client(experiment: Experiment) -> Picture | None:
    """All clients together, then each of them, after the last round; counts of all seeds. None
    where runs do not say.
    """
    cells, classes = _cells(experiment), experiment.classes
    if not cells or not classes:
        return None
    names = sorted(cells, key=order)
    together = matrix(_flat(sum(cells.values(), Counter[int]())), len(classes))
    drawn = {"all clients": together}
    drawn |= {name: matrix(_flat(cells[name]), len(classes)) for name in names[:CROWD]}
    figure = _beside(drawn)
    seeds = plural(len(experiment.finished), "seed")
    caption = (
        f"{in_words(together, classes)} Each client's own predictor on its test part after the last"
        f" round, counts of {seeds} together. A row is a class, a column what was said, in this"
        f" order: {', '.join(map(shown, classes[:CROWD]))}. Darker: a larger share of the row."
    )
    if len(names) > CROWD:
        caption += f" The first {CROWD} of {len(names)} clients are shown."
    title = f"Which class is said for which: {shown(experiment.name)}"
    return Picture(title, in_words(together, classes), caption, inked(figure, "svg"))


def _cells(experiment: Experiment) -> dict[str, Counter[int]]:
    """Cells of each client's matrix with their counts, as far as runs say them."""
    cells: dict[str, Counter[int]] = {}
    for run in experiment.finished.values():
        for row in run.clients:
            if row["round"] == run.asked and CONFUSION in row:
                pairs = zip(row[CONFUSION][::2], row[CONFUSION][1::2], strict=True)
                cells.setdefault(row["client"], Counter()).update(dict(pairs))
    return cells


def _flat(cells: Mapping[int, int]) -> list[int]:
    return [number for pair in sorted(cells.items()) for number in pair]


def _beside(drawn: Mapping[str, Matrix]) -> Figure:
    """Matrices as squares of one pair of axes: a pair for each takes a second to lay out."""
    rows = math.ceil(len(drawn) / ACROSS)
    figure = Figure(figsize=(WIDTH, WIDTH / ACROSS * rows * HIGH / BROAD))
    figure.suppressComposite = True  # squares stay as sharp as they are drawn
    axes = figure.add_axes((0, 0, 1, 1))
    for position, (name, counts) in enumerate(drawn.items()):
        left, top = BROAD * (position % ACROSS), HIGH * (position // ACROSS)
        _draw(axes, counts, (left, left + 1, top + 1, top))
        axes.add_patch(Rectangle((left, top), 1, 1, fill=False, linewidth=0.8))
        axes.text(left + 0.5, top - 0.04, short(name), ha="center", va="bottom", fontsize=7.5)
    axes.set(xlim=(-0.05, BROAD * ACROSS - 0.05), ylim=(HIGH * rows - 0.2, -0.2))
    axes.set_axis_off()
    return figure


def _draw(axes: Axes, counts: Matrix, where: Corners | None = None) -> None:
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=where)


def _number(axes: Axes, counts: Matrix) -> None:
    for truth, row in enumerate(counts):
        for said, count in enumerate(row):
            colour = "black"
            if 2 * count > sum(row):
                colour = "white"
            if count:
                axes.text(
                    said, truth, str(count), ha="center", va="center", fontsize=7, color=colour
                )
