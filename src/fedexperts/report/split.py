"""The picture of a split: who holds how many examples of which class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..tensors import write as write_whole
from .ink import CROWD, WIDTH, above, inked, name_clients, order, paper, short

KINDS = (".svg", ".png")
ROOM = 12  # so many classes or fewer: a number fits into each square


def write(counts: Mapping[str, Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Write examples by client and class at `path`; ValueError if its suffix is no picture's."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"{path}: expected the name of a picture, ending in {' or '.join(KINDS)}")
    write_whole(path, inked(_draw(counts, classes), path.suffix.lower()[1:]))


def _draw(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Figure:
    """A row a client, a column a class; the darker, the more examples."""
    names = sorted(counts, key=order)
    grid = [list(counts[name]) for name in names]
    most = max(map(max, grid))
    figure, axes = paper(1.6 + 0.2 * min(len(names), 2 * CROWD))
    image = axes.imshow(
        grid, aspect="auto", cmap="Blues", vmin=0, vmax=most, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, pad=0.02, ticks=MaxNLocator(integer=True))
    if len(classes) <= ROOM and len(names) <= CROWD:
        for row, own in enumerate(grid):
            for column, count in enumerate(own):
                colour = "black"
                if 2 * count > most:
                    colour = "white"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=7, color=colour
                )
    if len(classes) <= CROWD:
        axes.set_xticks(
            range(len(classes)), [short(name) for name in classes], rotation=90, fontsize=7.5
        )
    else:
        axes.set_xlabel(f"{len(classes)} classes, in their order")
    name_clients(axes, names, "y")
    above(axes, "examples of each class, all parts together")
    if len(classes) > CROWD:
        figure.set_figwidth(1.6 * WIDTH)
    return figure
