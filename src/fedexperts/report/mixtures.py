"""The pictures of a server's mixture: who uses which expert, and how routing goes over rounds.

Experts of two seeds have nothing but their numbers in common, so what is shown of single experts is
the first seed's. This room knows neither clients' prompts nor what is in a page.
"""

import statistics
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from ..metrics import Row, blended, logged
from .claims import shown
from .collect import Experiment
from .experts import largest_share
from .ink import CROWD, Picture, name_clients, order, over_rounds, paper, printed, short


def mixtures(experiments: Sequence[Experiment]) -> list[Picture | None]:
    """All of them, as far as there is something to show."""
    return [
        *(draw(e) for e in experiments if e.routing for draw in (_use, _shares, _blends)),
        over_rounds(
            [
                (e.name, [largest_share(run.server) for run in e.finished.values()])
                for e in experiments
            ],
            "Largest share of one expert in a client's blend",
            "largest share, mean over clients",
            "At 1 a client's blend is one expert; at 1 over the number of experts, all experts"
            " have equal shares.",
        ),
        *(_logged(experiments, *words) for words in _LOGGED),
    ]


_LOGGED = (
    (
        "alpha",
        "Share of the routed experts",
        "alpha",
        "Alpha is the share of the routed experts, and 1 - alpha that of the main ones.",
    ),
    (
        "entropy",
        "How undecided the gate is",
        "entropy of the gate's shares, nats",
        "Mean over test inputs. At 0 one expert has the whole share; at the logarithm of their"
        " number, all have equal shares.",
    ),
    (
        "apart",
        "How far apart the routed experts are",
        "distance from their mean / norm of the mean",
        "At 0 all experts are copies of one.",
    ),
)


def _logged(
    experiments: Sequence[Experiment], key: str, title: str, unit: str, caption: str
) -> Picture | None:
    series = [
        (e.name, [logged(run.server, key) for run in e.finished.values()]) for e in experiments
    ]
    return over_rounds(series, title, unit, caption)


def _use(experiment: Experiment) -> Picture:
    """Of each class, the share of inputs whose first choice an expert is."""
    routing = next(iter(experiment.routing.values()))
    totals = [sum(column) for column in zip(*routing.use, strict=True)]
    grid = [
        [100 * count / max(total, 1) for count, total in zip(row, totals, strict=True)]
        for row in routing.use
    ]
    figure, axes = paper(1.3 + 0.28 * min(len(grid), 20))
    image = axes.imshow(
        grid, aspect="auto", cmap="Blues", vmin=0, vmax=100, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label="% of a class", pad=0.02)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("expert")
    axes.set_xlabel("class")
    if len(experiment.classes) == len(totals) <= CROWD:
        axes.set_xticks(range(len(totals)), [short(name) for name in experiment.classes])
        if max(map(len, experiment.classes)) > 3:
            axes.tick_params(axis="x", rotation=90)
    said = (
        f"The most chosen expert is the first choice for {100 * routing.busiest:.0f} % of the test"
        " inputs."
    )
    caption = f"{said} After the last round of the first seed."
    return printed(
        figure, axes, f"Which expert serves which class: {shown(experiment.name)}", said, caption
    )


def _shares(experiment: Experiment) -> Picture | None:
    """Of which experts each client's blend is made."""
    routing = next(iter(experiment.routing.values()))
    if not routing.shares:
        return None
    names = sorted(routing.shares, key=order)
    grid = [routing.shares[name] for name in names]
    figure, axes = paper(1.2 + 0.17 * min(len(names), 60))
    image = axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share", pad=0.02)
    labels = ["main", *(str(k) for k in range(len(routing.experts)))][-len(grid[0]) :]
    every = 1 + len(labels) // 12  # so that they do not touch
    axes.set_xticks(range(0, len(labels), every), labels[::every])
    axes.set_xlabel("expert")
    name_clients(axes, names, "y")
    largest = statistics.fmean(max(row) for row in grid)
    said = (
        f"The largest share of one expert in a client's blend is {largest:.2f} on average, of"
        f" {len(grid[0])} experts."
    )
    caption = f"{said} From the round in which each client last took part, first seed."
    return printed(
        figure,
        axes,
        f"Shares of the experts in clients' blends: {shown(experiment.name)}",
        said,
        caption,
    )


def _blends(experiment: Experiment) -> Picture | None:
    """What clients lose or gain when they take what the server gives back."""
    logs: list[list[Row]] = [run.rounds for run in experiment.finished.values()]
    return over_rounds(
        [(f"{when} it", [blended(rows, when) for rows in logs]) for when in ("before", "after")],
        f"Clients before and after their blend: {shown(experiment.name)}",
        "local accuracy, %, mean over a round's clients",
        "The clients of a round with the model that they trained, and with the same after the"
        " server's blend was mixed in; test part.",
        ("0.55", "black"),  # of one experiment: no colour of another
    )
