"""Which pictures there are, and those of rounds and clients.

How one is drawn is known by ink.py; the pictures of a server's mixture are in mixtures.py.
"""

import math
import statistics
from collections.abc import Sequence

from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from ..metrics import curve, logged, lowest, moved, server_curve
from .claims import plural, shown
from .collect import Experiment, judged_by_server
from .experts import received, weights
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
    order,
    over_rounds,
    paper,
    plain,
    printed,
    short,
)
from .mixtures import mixtures


def draw(experiments: Sequence[Experiment]) -> list[Picture]:
    """All pictures for which there is something to show, of finished runs."""
    counted = [e for e in experiments if e.finished]
    if not counted:
        return []
    accuracy = [_accuracy(counted)]
    if judged_by_server(counted) or any(e.routing for e in counted):
        accuracy.insert(0, _server([e for e in counted if e.has_global]))
    found: list[Picture | None] = [*accuracy, _clients(counted)]
    for experiment in counted:
        found += [_weights(experiment), _received(experiment)]
    found += [*mixtures(counted), _moved(counted), *_declared(counted), _bytes(counted)]
    return [picture for picture in found if picture]


# ---- over rounds


def _accuracy(experiments: Sequence[Experiment]) -> Picture:
    series = [(e.name, [curve(rows) for rows in e.rows.values()]) for e in experiments]
    caption = (
        "After every evaluated round, all clients, test part. Band: standard deviation over seeds."
    )
    return _above_commonest(
        experiments, series, "Accuracy over rounds", "local accuracy, %, mean over clients", caption
    )


def _server(experiments: Sequence[Experiment]) -> Picture:
    series = [
        (e.name, [server_curve(run.clients, run.server) for run in e.finished.values()])
        for e in experiments
    ]
    caption = (
        "The server's own predictor, or the global model where it has none, on the test parts of"
        " all clients in one. Band: standard deviation over seeds."
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
    lines(axes, series)
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
    axes.set_ylim(bottom=0)
    ends = ", ".join(
        f"{shown(name)} from {end(s, min):.1f} to {end(s, max):.1f} %" for name, s in series
    )
    return printed(
        figure,
        axes,
        title,
        f"{unit.split(',')[0].capitalize()}, first to last round: {ends}.",
        caption,
    )


def _moved(experiments: Sequence[Experiment]) -> Picture | None:
    series = [(e.name, [moved(run.rounds) for run in e.finished.values()]) for e in experiments]
    # who shares anything
    series = [(name, s if any(any(one.values()) for one in s) else []) for name, s in series]
    return over_rounds(
        series,
        "How far clients move what they share",
        "l2 distance of an upload from the global tensors",
        "A round's clients on average: how far local training moved what they upload (for a"
        " prompted CLIP the prompt).",
    )


def _declared(experiments: Sequence[Experiment]) -> list[Picture | None]:
    """A picture for each number that methods declared, of the experiments whose method did."""
    every = [metric for e in experiments for metric in e.metrics]
    found = []
    for metric in [metric for place, metric in enumerate(every) if metric not in every[:place]]:
        runs = {e.name: e.finished.values() for e in experiments if metric in e.metrics}
        series = [
            (name, [logged(getattr(run, metric["of"]), metric["name"]) for run in r])
            for name, r in runs.items()
        ]
        found.append(over_rounds(series, metric["title"], metric["unit"], metric["says"]))
    return found


# ---- clients


def _clients(experiments: Sequence[Experiment]) -> Picture:
    """A mark for each client and seed, in a lane of its domain."""
    domains = sorted({domain(client) for e in experiments for client in e.clients})
    figure, axes = paper(0.7 + 0.62 * len(experiments) + 0.25)
    worst = []
    for place, experiment in enumerate(experiments):
        scores = list(experiment.last.values())
        for i, name in enumerate(domains):
            values = [
                value
                for s in scores
                for client, value in s.clients.items()
                if domain(client) == name
            ]
            lane = place - 0.3 + 0.6 * (i + 0.5) / len(domains)
            axes.scatter(
                values,
                [lane] * len(values),
                s=22,
                marker=MARKS[i % len(MARKS)],
                color=COLOURS[i % len(COLOURS)],
                alpha=0.65,
                linewidths=0,
                label=None if place else plain(name),
            )
        mean = statistics.fmean(s.mean for s in scores)
        axes.plot([mean, mean], [place - 0.38, place + 0.38], color="black", linewidth=1.6)
        low = lowest(experiment.last)
        worst.append(
            f"{shown(experiment.name)} {low.right} of {low.examples} ({shown(low.client)}, seed"
            f" {low.seed})"
        )
    axes.set_yticks(range(len(experiments)), [short(e.name) for e in experiments])
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.set_xlabel("accuracy on the client's own test part, %")
    axes.grid(axis="x", color="0.9")
    caption = (
        "A mark is one client in one seed after the last round, in a lane and colour of its domain"
        " (its name without the number). Black bar: mean over clients and seeds."
    )
    return printed(
        figure, axes, "Every client", f"The lowest clients: {', '.join(worst)}.", caption
    )


def _weights(experiment: Experiment) -> Picture | None:
    """How images weigh the experts, relative to equal weights."""
    seeds = [weights(rows) for rows in experiment.rows.values()]
    width = max((len(w) for s in seeds for w in s.values()), default=0)
    if width < 2:
        return None
    names = sorted({client for s in seeds for client in s}, key=order)
    shares = [{client: [w * len(ws) for w in ws] for client, ws in s.items()} for s in seeds]
    grid = [
        [_mean([s[c][e] for s in shares if e < len(s.get(c, ()))]) for e in range(width)]
        for c in names
    ]
    figure, axes = paper(1.2 + 0.17 * min(len(names), 60))
    norm = TwoSlopeNorm(
        1, 0, max(2, *(share for row in grid for share in row if not math.isnan(share)))
    )
    image = axes.imshow(grid, aspect="auto", cmap="PuOr_r", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="weight; equal: 1", pad=0.02)
    axes.set_xticks(range(width), ["own", *(str(e) for e in range(1, width))])
    axes.set_xlabel(f"expert ({experiment.listed})" if experiment.listed else "expert")
    axes.set_facecolor("0.8")
    name_clients(axes, names, "y")
    own = _mean([row[0] for row in grid])
    said = (
        f"On average a client's own expert has {own:.2f} times the weight that it would have if all"
        " were equal."
    )
    caption = (
        f"{said} Means over test images, classes and seeds, after the last round. White: equal."
        " Grey: no such expert."
    )
    return printed(
        figure, axes, f"How images weigh the experts: {shown(experiment.name)}", said, caption
    )


def _received(experiment: Experiment) -> Picture | None:
    """Who received whose expert, summed over rounds and seeds."""
    counts = [received(run.rounds) for run in experiment.finished.values()]
    total = sum(sum(c.values()) for c in counts)
    if not total:
        return None
    names = sorted(
        {*experiment.clients, *(n for c in counts for pair in c for n in pair)}, key=order
    )
    grid = [
        [sum(c[to, giver] for c in counts) if to != giver else math.nan for giver in names]
        for to in names
    ]
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
    near = sum(n for c in counts for pair, n in c.items() if domain(pair[0]) == domain(pair[1]))
    said = f"{total} experts were received{_by_chance(names, near / total)}."
    caption = (
        f"{said} Summed over rounds and {plural(len(counts), 'seed')}; lines part the domains."
    )
    return printed(
        figure, axes, f"Who received whose expert: {shown(experiment.name)}", said, caption
    )


def _by_chance(names: Sequence[str], share: float) -> str:
    """What part came from the client's own domain, and what chance would give."""
    if len({domain(name) for name in names}) < 2:
        return ""
    pairs = [(a, b) for a in names for b in names if a != b]
    expected = sum(domain(a) == domain(b) for a, b in pairs) / len(pairs)
    return (
        f", {100 * share:.0f} % of them from a client of the own domain (by chance about"
        f" {100 * expected:.0f} %)"
    )


def _bytes(experiments: Sequence[Experiment]) -> Picture | None:
    """Kilobytes of a client and round."""
    means = [
        [e.sizes.get((way, "bytes"), 0.0) / 1000 for way in ("down", "up")] for e in experiments
    ]
    if not any(map(any, means)):
        return None
    figure, axes = paper(0.9 + 0.55 * len(experiments))
    for k, (way, colour) in enumerate(
        (("down, to a client", COLOURS[0]), ("up, from a client", COLOURS[5]))
    ):
        places = [i - 0.19 + 0.38 * k for i in range(len(experiments))]
        bars = axes.barh(places, [m[k] for m in means], 0.36, color=colour, label=way)
        axes.bar_label(bars, [f"{m[k]:.1f}" for m in means], padding=3, fontsize=9)
    axes.set_yticks(range(len(experiments)), [short(e.name) for e in experiments])
    axes.set_ylim(len(experiments) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("kB (1000 bytes) of one client in one round")
    said = "; ".join(
        f"{shown(e.name)} {m[0]:.1f} down, {m[1]:.1f} up"
        for e, m in zip(experiments, means, strict=True)
    )
    alt = f"kB of a client and round: {said}."
    return printed(
        figure, axes, "What travels", alt, "Tensors alone, mean over rounds and clients."
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
