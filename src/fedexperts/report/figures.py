"""Which pictures there are, and those of rounds and clients.

How one is drawn is known by ink.py; the pictures of a server's mixture are in mixtures.py.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import chain, permutations
from typing import Any

from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from ..metrics import curve, logged, lowest, moved, server_curve
from .claims import plural, shown
from .collect import Experiment, judged_by
from .confusion import by_client
from .experts import own_shares, received
from .ink import (
    COLOURS,
    MARKS,
    WIDTH,
    Picture,
    Series,
    above,
    domain,
    end,
    lines,
    name_clients,
    name_ends,
    order,
    over_rounds,
    paper,
    plain,
    printed,
    short,
)
from .mixtures import mixtures
from .reliability import reliability


def draw(experiments: Sequence[Experiment]) -> list[Picture]:
    """All pictures for which there is something to show, of finished runs."""
    counted = [e for e in experiments if e.finished]
    if not counted:
        return []
    pictures: list[Picture | None] = [*accuracies(counted), _clients(counted)]
    pictures.append(_reliability(counted))
    for experiment in counted:
        pictures += [by_client(experiment), _own_shares(experiment), _received(experiment)]
    pictures += [*mixtures(counted), _moved(counted), *_declared(counted), _bytes(counted)]
    return [picture for picture in pictures if picture]


def accuracies(experiments: Sequence[Experiment]) -> list[Picture]:
    """Over rounds, of finished runs: the clients' and, before it, the server's where it counts."""
    counted = [e for e in experiments if e.finished]
    if not counted:
        return []
    if judged_by(counted) == "server" or any(e.routing for e in counted):
        return [_server(counted), _accuracy(counted)]
    return [_accuracy(counted)]


# ---- over rounds


def _accuracy(experiments: Sequence[Experiment]) -> Picture:
    series = [(e.name, [curve(rows) for rows in e.rows.values()]) for e in experiments]
    caption = (
        "All clients, test part, after every evaluated round. Band: standard deviation over seeds."
    )
    return _above_commonest(
        experiments, series, "Accuracy over rounds", "local accuracy, %, mean over clients", caption
    )


def _server(experiments: Sequence[Experiment]) -> Picture:
    series: Series = []
    for experiment in experiments:
        curves = []  # of one without a global model: its colour stays its own
        if experiment.has_global:
            runs = experiment.finished.values()
            curves = [server_curve(run.clients, run.server) for run in runs]
        series.append((experiment.name, curves))
    caption = (
        "The server's own predictor, or the global model where it has none, on the test parts of"
        " all clients together. Band: standard deviation over seeds."
    )
    return _above_commonest(
        experiments,
        series,
        "Accuracy of the server over rounds",
        "server's accuracy, %",
        caption,
        "server",
    )


def _above_commonest(
    experiments: Sequence[Experiment],
    series: Series,
    title: str,
    unit: str,
    caption: str,
    of: str = "clients",
) -> Picture:
    figure, axes = paper(3.6)
    ends = lines(axes, series)
    levels = sorted({level for e in experiments if (level := e.commonest(of))})
    for level in levels:
        axes.axhline(level, color="0.45", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            "commonest class",
            (1, level),
            (-3, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="0.35",
        )
    above(axes, unit)
    axes.set_ylim(0, 100)
    name_ends(axes, ends)
    said = ", ".join(
        f"{shown(name)} from {end(seeds, min):.1f} to {end(seeds, max):.1f} %"
        for name, seeds in series
        if seeds
    )
    return printed(
        figure,
        axes,
        title,
        f"{unit.split(',')[0].capitalize()}, first to last round: {said}.",
        caption,
    )


def _moved(experiments: Sequence[Experiment]) -> Picture | None:
    series: Series = []
    for experiment in experiments:
        seeds = [moved(run.rounds) for run in experiment.finished.values()]
        if not any(any(distances.values()) for distances in seeds):
            seeds = []  # its clients share nothing; its colour stays its own
        series.append((experiment.name, seeds))
    return over_rounds(
        series,
        "How far clients move what they share",
        "l2 distance of an upload from the global tensors",
        "Mean over a round's clients: how far local training moved what they upload (for a"
        " prompted CLIP, the prompt).",
    )


def _declared(experiments: Sequence[Experiment]) -> list[Picture | None]:
    """A picture for each number that methods declared, of the experiments whose method did."""
    every = [metric for e in experiments for metric in e.metrics]
    pictures = []
    for metric in [
        metric for position, metric in enumerate(every) if metric not in every[:position]
    ]:
        series: Series = []
        for e in experiments:
            runs = e.finished.values() if metric in e.metrics else ()
            rounds = [logged(getattr(run, metric["of"]), metric["name"]) for run in runs]
            series.append((e.name, rounds))
        pictures.append(over_rounds(series, metric["title"], metric["unit"], metric["says"]))
    return pictures


# ---- clients


def _clients(experiments: Sequence[Experiment]) -> Picture:
    """A mark for each client and seed, in its experiment's colour and a lane of its domain."""
    domains = sorted({domain(client) for e in experiments for client in e.clients})
    figure, axes = paper(0.7 + 0.62 * len(experiments) + 0.25)
    worst = []
    for position, experiment in enumerate(experiments):
        scores = list(experiment.last.values())
        values = [pair for score in scores for pair in score.clients.items()]
        for number, name in enumerate(domains):
            own = [value for client, value in values if domain(client) == name]
            lane = position - 0.3 + 0.6 * (number + 0.5) / len(domains)
            mark = MARKS[number % len(MARKS)]
            style: dict[str, Any] = {"s": 22, "marker": mark, "linewidths": 0}
            colour = COLOURS[position % len(COLOURS)]
            axes.scatter(own, [lane] * len(own), color=colour, alpha=0.65, **style)
            if position == 0:  # the legend names each domain once
                axes.scatter([], [], color="0.35", label=plain(name), **style)
        mean = statistics.fmean(score.mean for score in scores)
        axes.plot([mean, mean], [position - 0.38, position + 0.38], color="black", linewidth=1.6)
        low = lowest(experiment.last)
        worst.append(
            f"{shown(experiment.name)} {low.correct} of {low.examples} ({shown(low.client)}, seed"
            f" {low.seed})"
        )
    axes.set_yticks(range(len(experiments)), [short(e.name) for e in experiments])
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.set_xlabel("accuracy on the client's own test part, %")
    axes.set_xlim(-2, 102)  # the same on every page: two points are no gulf
    axes.grid(axis="x", color="0.9")
    caption = (
        "Each mark is one client in one seed after the last round, in the lane and shape of its"
        " domain (its name without the number). Black bar: mean over clients and seeds."
    )
    return printed(
        figure, axes, "Every client", f"The lowest clients: {', '.join(worst)}.", caption
    )


def _reliability(experiments: Sequence[Experiment]) -> Picture | None:
    """All clients in one, of the experiments whose logs say how sure answers are."""
    seeds = {}
    for experiment in experiments:
        every = [score.bins for score in experiment.last.values()]
        known = [bins for bins in every if bins]
        seeds[experiment.name] = known if len(known) == len(every) else []
    if not any(seeds.values()):
        return None
    whose = "Each client's own predictor on its test part after the last round, all in one. "
    return reliability(seeds, "How sure, how right", whose)


def _own_shares(experiment: Experiment) -> Picture | None:
    """Shares of the experts at each client, relative to equal ones."""
    seeds = [own_shares(rows) for rows in experiment.rows.values()]
    width = max((len(shares) for seed in seeds for shares in seed.values()), default=0)
    if width < 2:
        return None
    names = sorted(set().union(*seeds), key=order)
    grid = [_relative([seed[name] for seed in seeds if name in seed], width) for name in names]
    figure, axes = paper(1.2 + 0.17 * min(len(names), 60))
    largest = max(share for row in grid for share in row if not math.isnan(share))
    norm = TwoSlopeNorm(1, 0, max(2, largest))
    image = axes.imshow(grid, aspect="auto", cmap="PuOr_r", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share; equal: 1", pad=0.02)
    axes.set_xticks(range(width), ["own", *map(str, range(1, width))])
    axes.set_xlabel("expert")
    if experiment.listed:
        axes.set_xlabel(f"expert ({experiment.listed})")
    axes.set_facecolor("0.8")
    name_clients(axes, names, "y")
    own = _mean([row[0] for row in grid])
    said = (
        f"On average a client's own expert has {own:.2f} times the share that it would have if all"
        " shares were equal."
    )
    caption = (
        f"{said} Means over test images, classes and seeds, after the last round. White: equal."
        " Grey: no such expert."
    )
    return printed(figure, axes, f"Shares of the experts: {shown(experiment.name)}", said, caption)


def _relative(seeds: Sequence[Sequence[float]], width: int) -> list[float]:
    """A client's shares in multiples of equal ones, means over seeds; NaN where there is none."""
    means = []
    for position in range(width):
        each = [shares[position] * len(shares) for shares in seeds if position < len(shares)]
        means.append(_mean(each))
    return means


def _received(experiment: Experiment) -> Picture | None:
    """Who received whose expert, summed over rounds and seeds."""
    seeds = [received(run.rounds) for run in experiment.finished.values()]
    times = sum(seeds, Counter[tuple[str, str]]())
    if not times:
        return None
    names = sorted({*experiment.clients, *chain.from_iterable(times)}, key=order)
    grid = [[float(times[receiver, giver]) for giver in names] for receiver in names]
    for position in range(len(names)):
        grid[position][position] = math.nan
    figure, axes = paper(WIDTH * 0.92)
    image = axes.imshow(grid, cmap="Blues", vmin=0, interpolation="nearest")
    figure.colorbar(
        image,
        ax=axes,
        label="times received",
        pad=0.02,
        shrink=0.7,
        ticks=MaxNLocator(integer=True),
    )
    name_clients(axes, names, "y")
    name_clients(axes, names, "x")
    axes.set_facecolor("0.8")
    axes.set_xlabel("whose expert")
    axes.set_ylabel("who received it")
    total = times.total()
    near = sum(count for pair, count in times.items() if _alike(*pair))
    said = f"{total} experts were received{_by_chance(names, near / total)}."
    caption = f"{said} Summed over rounds and {plural(len(seeds), 'seed')}; lines separate domains."
    return printed(
        figure, axes, f"Who received whose expert: {shown(experiment.name)}", said, caption
    )


def _by_chance(names: Sequence[str], share: float) -> str:
    """What part came from the client's own domain, and what chance would give."""
    if len({domain(name) for name in names}) < 2:
        return ""
    pairs = list(permutations(names, 2))
    expected = sum(_alike(*pair) for pair in pairs) / len(pairs)
    return (
        f", {100 * share:.0f} % of them from a client of the same domain (by chance about"
        f" {100 * expected:.0f} %)"
    )


def _alike(client: str, other: str) -> bool:
    return domain(client) == domain(other)


def _bytes(experiments: Sequence[Experiment]) -> Picture | None:
    """Kilobytes of a client and round."""
    means = [
        [e.sizes.get((way, "bytes"), 0.0) / 1000 for way in ("down", "up")] for e in experiments
    ]
    if not any(map(any, means)):
        return None
    figure, axes = paper(0.9 + 0.55 * len(experiments))
    ways = (
        ("down, to a client", -0.19, "0.35", [down for down, _ in means]),
        ("up, from a client", 0.19, "0.7", [up for _, up in means]),
    )
    for way, shift, colour, sizes in ways:
        positions = [position + shift for position in range(len(experiments))]
        bars = axes.barh(positions, sizes, 0.36, color=colour, label=way)
        axes.bar_label(bars, [f"{size:.1f}" for size in sizes], padding=3, fontsize=9)
    axes.set_yticks(range(len(experiments)), [short(e.name) for e in experiments])
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("kB (1000 bytes) of one client in one round")
    said = "; ".join(
        f"{shown(e.name)} {down:.1f} down, {up:.1f} up"
        for e, (down, up) in zip(experiments, means, strict=True)
    )
    alt = f"kB of a client and round: {said}."
    return printed(
        figure, axes, "What travels", alt, "Tensors alone, mean over rounds and clients."
    )


def _mean(values: Sequence[float]) -> float:
    if not values:
        return math.nan
    return statistics.fmean(values)
