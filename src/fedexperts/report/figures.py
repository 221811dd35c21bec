"""The pictures, each an SVG with the words that say the same.

Drawn with matplotlib's objects alone, so that nothing is kept between two pictures and no window is needed. Colours are
those of Okabe and Ito, which colour-blind readers can tell apart; lines also differ in stroke and marks in shape.
"""

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..metrics import apart, curve, moved, received, traffic, weights
from .claims import plural, shown
from .collect import Experiment

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STROKES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH = 5.6  # inches: letters of 10 points stay readable on a phone
Series = list[tuple[str, list[dict[int, float]]]]  # an experiment's name; for each seed, a value by round
_CROWD = 40  # more clients than this are not named along a picture


@dataclass(frozen=True)
class Picture:
    """A drawing, what to call it, what it shows in one sentence, and how to read it."""

    title: str
    alt: str
    caption: str
    svg: bytes


def draw(experiments: Sequence[Experiment]) -> list[Picture]:
    """All pictures for which there is something to show, of finished runs."""
    counted = [e for e in experiments if e.finished]
    if not counted:
        return []
    found: list[Picture | None] = [_accuracy(counted), _clients(counted)]
    for experiment in counted:
        found += [_weights(experiment), _received(experiment)]
    found += [_moved(counted), _apart(counted), _bytes(counted)]
    return [picture for picture in found if picture]


# ---- over rounds


def _accuracy(experiments: Sequence[Experiment]) -> Picture:
    series = [(e.name, [curve(rows) for rows in e.rows.values()]) for e in experiments]
    figure, axes = _paper(3.6)
    _lines(axes, series)
    levels = sorted({e.chance for e in experiments if e.chance})
    for level in levels:
        axes.axhline(level, color="0.45", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            "guessing", (1, level), (-3, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            color="0.35",
        )  # fmt: skip
    _unit(axes, "local accuracy, %, mean over clients")
    axes.set_ylim(bottom=0)
    ends = ", ".join(f"{shown(name)} from {_end(s, min):.1f} to {_end(s, max):.1f} %" for name, s in series)
    caption = "After every evaluated round, all clients, test part. Band: standard deviation over seeds."
    return _picture(figure, axes, "Accuracy over rounds", f"Local accuracy, first to last round: {ends}.", caption)


def _moved(experiments: Sequence[Experiment]) -> Picture | None:
    series = [(e.name, [moved(run.rounds) for run in e.finished.values()]) for e in experiments]
    return _over_rounds(
        series,
        "How far clients move what they share",
        "l2 distance of an upload from the global tensors",
        "A round's clients on average: how far local training moved what they upload (for a prompted CLIP the prompt).",
    )


def _apart(experiments: Sequence[Experiment]) -> Picture | None:
    series = [(e.name, [apart(rows) for rows in e.rows.values()]) for e in experiments]
    return _over_rounds(
        series,
        "How different the experts are",
        "1 - cosine of text features",
        "Text features of the experts against the client's own, mean over classes, experts and clients: "
        "at 0 all experts say the same.",
    )


def _over_rounds(series: Series, title: str, unit: str, caption: str) -> Picture | None:
    """A line an experiment; those that have only zeros or nothing are left out."""
    series = [(name, s if all(s) and any(any(one.values()) for one in s) else []) for name, s in series]
    if not any(s for _, s in series):
        return None
    figure, axes = _paper(3.0)
    _lines(axes, series)
    _unit(axes, unit)
    axes.set_ylim(bottom=0)
    ends = ", ".join(f"{shown(name)} {_end(s, max):.3g}" for name, s in series if s)
    return _picture(figure, axes, title, f"{title} ({unit}), in the last round: {ends}.", caption)


def _lines(axes: Axes, series: Series) -> None:
    """Mean over seeds, and a band of one standard deviation. The place in `series` decides the colour."""
    for i, (name, seeds) in enumerate(series):
        if not seeds:
            continue
        rounds = sorted(set.intersection(*(set(s) for s in seeds)))
        means = [statistics.fmean(s[r] for s in seeds) for r in rounds]
        colour, stroke = _COLOURS[i % len(_COLOURS)], _STROKES[i % len(_STROKES)]
        mark = _MARKS[i % len(_MARKS)] if len(rounds) < 2 else None
        axes.plot(rounds, means, stroke, color=colour, linewidth=1.8, label=_plain(name), marker=mark)
        if len(seeds) > 1:
            sds = [statistics.stdev(s[r] for s in seeds) for r in rounds]
            low, high = zip(*((m - sd, m + sd) for m, sd in zip(means, sds, strict=True)), strict=True)
            axes.fill_between(rounds, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _end(seeds: Sequence[dict[int, float]], which: Callable[[dict[int, float]], int]) -> float:
    return statistics.fmean(s[which(s)] for s in seeds)


# ---- clients


def _clients(experiments: Sequence[Experiment]) -> Picture:
    """A mark for each client and seed, in a lane of its domain."""
    domains = sorted({domain(client) for e in experiments for client in e.clients})
    figure, axes = _paper(0.7 + 0.62 * len(experiments) + 0.25)
    worst = []
    for place, experiment in enumerate(experiments):
        scores = list(experiment.last.values())
        for i, name in enumerate(domains):
            values = [value for s in scores for client, value in s.clients.items() if domain(client) == name]
            lane = place - 0.3 + 0.6 * (i + 0.5) / len(domains)
            axes.scatter(
                values, [lane] * len(values), s=22, marker=_MARKS[i % len(_MARKS)], color=_COLOURS[i % len(_COLOURS)],
                alpha=0.65, linewidths=0, label=None if place else _plain(name),
            )  # fmt: skip
        mean = statistics.fmean(s.mean for s in scores)
        axes.plot([mean, mean], [place - 0.38, place + 0.38], color="black", linewidth=1.6)
        low = min(((value, client) for s in scores for client, value in s.clients.items()))
        worst.append(f"{shown(experiment.name)} {low[0]:.0f} % ({shown(low[1])})")
    axes.set_yticks(range(len(experiments)), [_short(e.name) for e in experiments])
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.set_xlabel("accuracy on the client's own test part, %")
    axes.grid(axis="x", color="0.9")
    caption = (
        "A mark is one client in one seed after the last round, in a lane and colour of its domain (its name without "
        "the number). Black bar: mean over clients and seeds."
    )
    return _picture(figure, axes, "Every client", f"The lowest clients: {', '.join(worst)}.", caption)


def _weights(experiment: Experiment) -> Picture | None:
    """How images weigh the experts, in shares of equal weight, so that clients with fewer experts compare."""
    seeds = [weights(rows) for rows in experiment.rows.values()]
    width = max((len(w) for s in seeds for w in s.values()), default=0)
    if width < 2:
        return None
    names = sorted({client for s in seeds for client in s}, key=_order)
    shares = [{client: [w * len(ws) for w in ws] for client, ws in s.items()} for s in seeds]
    grid = [[_mean([s[c][e] for s in shares if e < len(s.get(c, ()))]) for e in range(width)] for c in names]
    figure, axes = _paper(1.2 + 0.17 * min(len(names), 60))
    norm = TwoSlopeNorm(1, 0, max(2, *(share for row in grid for share in row if not math.isnan(share))))
    image = axes.imshow(grid, aspect="auto", cmap="PuOr_r", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="weight; 1: all experts equal", pad=0.02)
    nearness = {"nearest": "by nearness", "farthest": "farthest first"}
    by = nearness.get(str(experiment.values["method"].get("select")), "in the order drawn")
    axes.set_xticks(range(width), ["own", *(str(e) for e in range(1, width))])
    axes.set_xlabel(f"expert ({by})")
    axes.set_facecolor("0.8")
    _name_clients(axes, names, "y")
    own = _mean([row[0] for row in grid])
    said = f"On average a client's own prompt has {own:.2f} times the weight that it would have if all were equal."
    caption = (
        f"{said} Means over test images, classes and seeds, after the last round. White: equal. Grey: no such expert."
    )
    return _picture(figure, axes, f"How images weigh the experts: {shown(experiment.name)}", said, caption)


def _received(experiment: Experiment) -> Picture | None:
    """Who received whose prompt, summed over rounds and seeds."""
    counts = [received(run.rounds) for run in experiment.finished.values()]
    total = sum(sum(c.values()) for c in counts)
    if not total:
        return None
    names = sorted({*experiment.clients, *(n for c in counts for pair in c for n in pair)}, key=_order)
    grid = [[sum(c[to, giver] for c in counts) if to != giver else math.nan for giver in names] for to in names]
    figure, axes = _paper(_WIDTH * 0.92)
    image = axes.imshow(grid, cmap="Blues", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="times received", pad=0.02, shrink=0.7, ticks=MaxNLocator(integer=True))
    _name_clients(axes, names, "y")
    _name_clients(axes, names, "x")
    axes.set_facecolor("0.8")
    axes.set_xlabel("whose prompt")
    axes.set_ylabel("who received it")
    near = sum(n for c in counts for pair, n in c.items() if domain(pair[0]) == domain(pair[1]))
    said = f"{total} prompts were received{_by_chance(names, near / total)}."
    caption = f"{said} Summed over rounds and {plural(len(counts), 'seed')}; lines part the domains."
    return _picture(figure, axes, f"Who received whose prompt: {shown(experiment.name)}", said, caption)


def _by_chance(names: Sequence[str], share: float) -> str:
    """What part came from the own domain, and what chance would give; nothing where there is one domain."""
    if len({domain(name) for name in names}) < 2:
        return ""
    pairs = [(a, b) for a in names for b in names if a != b]
    expected = sum(domain(a) == domain(b) for a, b in pairs) / len(pairs)
    return f", {100 * share:.0f} % of them from a client of the own domain (by chance about {100 * expected:.0f} %)"


def _name_clients(axes: Axes, names: Sequence[str], side: str) -> None:
    """Names along a side, those of domains where there are too many clients; lines between domains."""
    axis, line = (axes.xaxis, axes.axvline) if side == "x" else (axes.yaxis, axes.axhline)
    turn: dict[str, Any] = {"rotation": 90} if side == "x" else {}
    if len(names) <= _CROWD:
        axis.set_ticks(range(len(names)), [_short(name) for name in names], fontsize=7.5, **turn)
    else:
        places: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            places.setdefault(domain(name), []).append(i)
        axis.set_ticks([statistics.fmean(p) for p in places.values()], [_short(name) for name in places], **turn)
    for i in range(1, len(names)):
        if domain(names[i]) != domain(names[i - 1]):
            line(i - 0.5, color="0.35", linewidth=0.8)


def _bytes(experiments: Sequence[Experiment]) -> Picture | None:
    """Kilobytes of a client and round."""
    ways = [[traffic(run.rounds) for run in e.finished.values()] for e in experiments]
    means = [[statistics.fmean(way) / 1000 for way in zip(*seeds, strict=True)] for seeds in ways]
    if not any(map(any, means)):
        return None
    figure, axes = _paper(0.9 + 0.55 * len(experiments))
    for k, (way, colour) in enumerate((("down, to a client", _COLOURS[0]), ("up, from a client", _COLOURS[5]))):
        places = [i - 0.19 + 0.38 * k for i in range(len(experiments))]
        bars = axes.barh(places, [m[k] for m in means], 0.36, color=colour, label=way)
        axes.bar_label(bars, [f"{m[k]:.1f}" for m in means], padding=3, fontsize=9)
    axes.set_yticks(range(len(experiments)), [_short(e.name) for e in experiments])
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("kB (1000 bytes) of one client in one round")
    said = "; ".join(f"{shown(e.name)} {m[0]:.1f} down, {m[1]:.1f} up" for e, m in zip(experiments, means, strict=True))
    alt = f"kB of a client and round: {said}."
    return _picture(figure, axes, "What travels", alt, "Tensors alone, mean over rounds and clients.")


# ---- paper and ink


def domain(client: str) -> str:
    """A client's name without its number."""
    return re.sub(r"-\d+$", "", client)


def _order(client: str) -> tuple[str, int, str]:
    number = re.search(r"\d+$", client)
    return domain(client), int(number[0]) if number else -1, client


def _paper(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _unit(axes: Axes, text: str) -> None:
    """What is upwards, written above: beside the axis a long unit would not fit."""
    axes.set_title(text, loc="left", fontsize=10)


def _picture(figure: Figure, axes: Axes, title: str, alt: str, caption: str) -> Picture:
    """With a legend below where lines or marks have names."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        longest = max(map(len, labels))
        columns = 2 if longest > 16 else 3 if longest > 11 else 4
        figure.set_figheight(figure.get_figheight() + 0.22 * (math.ceil(len(handles) / columns) - 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)
    out = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "fedexperts"}):  # equal runs, equal bytes
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is drawn as a box
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Picture(title, alt, caption, out.getvalue())


def _plain(name: str) -> str:
    """A name as matplotlib shows it unchanged: no formulas, and not left out for a leading underscore."""
    text = shown(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _short(name: str) -> str:
    """For a tick: at most 18 letters, both ends kept, since names differ in either."""
    return _plain(name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}")


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
