"""How every picture is drawn: paper, lines over rounds, names along a side.

Drawn with matplotlib's objects alone, so that nothing is kept between two pictures and no window is
needed. Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines also
differ in stroke and marks in shape. A colour is a position: where all pictures list the same
experiments, one without anything to show included, each has one colour in all of them. This room
does not know what is drawn.
"""

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .claims import shown

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STROKES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 5.6  # inches: letters of 10 points stay readable on a phone
# an experiment's name; for each seed, a value by round
Series = list[tuple[str, list[dict[int, float]]]]
CROWD = 40  # more clients than this are not named along a picture
SMALL = 8.5  # points: names at the ends of lines


@dataclass(frozen=True)
class Picture:
    """A drawing, what to call it, what it shows in one sentence, and how to read it."""

    title: str
    alt: str
    caption: str
    svg: bytes


# ---- over rounds


def over_rounds(
    series: Series, title: str, unit: str, caption: str, colours: Sequence[str] = COLOURS
) -> Picture | None:
    """A line an experiment; those that have nothing in a seed are left out."""
    drawn = [(name, seeds) for name, seeds in series if seeds and all(seeds)]
    if not drawn:
        return None
    figure, axes = paper(3.0)
    ends = lines(axes, series, colours)
    above(axes, unit)
    axes.set_ylim(bottom=0)
    name_ends(axes, ends)
    said = ", ".join(f"{shown(name)} {end(seeds, max):.3g}" for name, seeds in drawn)
    return printed(figure, axes, title, f"{title} ({unit}), in the last round: {said}.", caption)


End = tuple[float, float, str, str]  # where a line ends, its name, its colour


def lines(axes: Axes, series: Series, colours: Sequence[str] = COLOURS) -> list[End]:
    """Mean over seeds with a band of one standard deviation, coloured by position in `series`;
    where each line ends.

    What has nothing in a seed is left out.
    """
    ends = []
    for position, (name, seeds) in enumerate(series):
        if not seeds or not all(seeds):
            continue
        rounds = sorted(set.intersection(*map(set, seeds)))
        values = [[seed[round] for seed in seeds] for round in rounds]
        means = [statistics.fmean(each) for each in values]
        colour, stroke = colours[position % len(colours)], STROKES[position % len(STROKES)]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.8}
        if len(rounds) < 2:  # a point is no line
            style["marker"] = MARKS[position % len(MARKS)]
        axes.plot(rounds, means, stroke, **style)
        ends.append((float(rounds[-1]), means[-1], name, colour))
        if len(seeds) > 1:
            pairs = list(zip(means, map(statistics.stdev, values), strict=True))
            low = [mean - sd for mean, sd in pairs]
            high = [mean + sd for mean, sd in pairs]
            axes.fill_between(rounds, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ends


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """The name of each line at its end, apart from the others; the limits must stand."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_figheight(max(figure.get_figheight(), 0.9 + len(ends) * 1.2 * SMALL / 72))
    figure.draw_without_rendering()  # only now does one know how high the axes are
    low, high = axes.get_ylim()
    gap = 1.2 * SMALL / 72 * figure.dpi / axes.get_window_extent().height * (high - low)
    ordered = sorted(ends, key=lambda one: one[1])
    heights = apart([height for _, height, _, _ in ordered], gap, high)
    for (round, height, name, colour), beside in zip(ordered, heights, strict=True):
        axes.annotate(
            short(name),
            (round, height),
            (1.05, beside),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
        )


def apart(heights: Sequence[float], gap: float, most: float) -> list[float]:
    """Rising heights, moved until any two are `gap` apart, the highest at most at `most`."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = most
    for position in reversed(range(len(moved))):
        moved[position] = min(moved[position], ceiling)
        ceiling = moved[position] - gap
    return moved


def end(seeds: Sequence[dict[int, float]], which: Callable[[dict[int, float]], int]) -> float:
    return statistics.fmean(values[which(values)] for values in seeds)


# ---- names


def name_clients(axes: Axes, names: Sequence[str], side: str) -> None:
    """Names along a side (of domains, if there are many clients), and lines between domains."""
    axis, line = {"x": (axes.xaxis, axes.axvline), "y": (axes.yaxis, axes.axhline)}[side]
    if side == "x":
        axis.set_tick_params(rotation=90)
    if len(names) <= CROWD:
        axis.set_ticks(range(len(names)), [short(name) for name in names], fontsize=7.5)
    else:
        positions: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            positions.setdefault(domain(name), []).append(position)
        middles = [statistics.fmean(each) for each in positions.values()]
        axis.set_ticks(middles, [short(name) for name in positions])
    for position, (before, after) in enumerate(pairwise(names)):
        if domain(before) != domain(after):
            line(position + 0.5, color="0.35", linewidth=0.8)


def domain(client: str) -> str:
    """A client's name without its number."""
    return re.sub(r"-\d+$", "", client)


def order(client: str) -> tuple[str, int, str]:
    """Clients of one domain together, by number."""
    number = -1
    if digits := re.search(r"\d+$", client):
        number = int(digits[0])
    return domain(client), number, client


# ---- paper and ink


def paper(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def above(axes: Axes, text: str) -> None:
    """What is upwards, written above: beside the axis a long unit would not fit."""
    axes.set_title(text, loc="left", fontsize=10)


def printed(figure: Figure, axes: Axes, title: str, alt: str, caption: str) -> Picture:
    """With a legend below where lines or marks have names."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = _beside(labels)
        rows = math.ceil(len(handles) / columns)
        figure.set_figheight(figure.get_figheight() + 0.22 * (rows - 1))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5
        )
    return Picture(title, alt, caption, inked(figure, "svg"))


def _beside(labels: Sequence[str]) -> int:
    """How many labels of a legend fit beside each other."""
    longest = max(map(len, labels))
    if longest > 16:
        return 2
    if longest > 11:
        return 3
    return 4


_UNDATED = {"svg": {"Date": None}, "png": {"Software": None}}


def inked(figure: Figure, kind: str) -> bytes:
    """A drawing as a file, "svg" or "png"."""
    out = io.BytesIO()
    # equal runs, equal bytes
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "fedexperts"}):
        # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(out, format=kind, dpi=150, metadata=_UNDATED[kind])
    return out.getvalue()


def plain(name: str) -> str:
    """A name as matplotlib shows it unchanged: no formula, no hidden leading underscore."""
    text = shown(name).replace("$", r"\$")
    if text.startswith("_"):
        return f" {text}"
    return text


def short(name: str) -> str:
    """For a tick: at most 20 letters, both ends kept, since names differ in either."""
    if len(name) > 20:
        name = f"{name[:9]}…{name[-10:]}"
    return plain(name)
