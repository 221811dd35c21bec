"""The tables: one line an experiment, and what experts add.

A cell is made from metrics.py and nothing else; the page shows the same tables as the terminal. Whoever reads a figure
finds below the table what it is a figure of.
"""

import math
import statistics
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ..metrics import best_valid, last, mean_sd, traffic, validated
from .claims import claims, has_experts, notes, shown, signed, unknown
from .collect import Experiment

_NONE = "-"
_COLUMNS = (
    "local", "sd\nseeds", "sd\nclients", "worst\nclient", "best\nvalid", "at\nround", "global",
    "kB\ndown", "kB\nup", "sec-\nonds",
)  # fmt: skip


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """The comparison; and, where an experiment has experts, what they add."""
    return [comparison(experiments), *([added(experiments)] if any(map(has_experts, experiments)) else [])]


def comparison(experiments: Sequence[Experiment]) -> Table:
    """One row an experiment, in the order given."""
    table = _table("Accuracy in percent", ("experiment", *_COLUMNS))
    for experiment in experiments:
        table.add_row(Text(shown(experiment.name)), *_cells(experiment))
    table.caption = Text("\n".join([_legend(experiments), *notes(experiments)]))
    return table


def added(experiments: Sequence[Experiment]) -> Table:
    """Paired differences of every experiment with experts to its controls."""
    columns = ("experiment", "against", "points", "sd\nseeds", "sd\nclients", "gain", "lose", "same")
    table = _table("What do experts add?", columns, words=2)
    found = claims(experiments)
    for c in found:
        names = (Text(shown(c.experiment.name)), Text(f"{shown(c.control.name)} ({c.what})"))
        counts = (str(count) for count in (c.gain.better, c.gain.worse, c.gain.same))
        seeds = _over_seeds(c.gain.over_seeds, c.gain.seeds, c.gain.seeds)
        table.add_row(*names, signed(c.gain.mean), seeds, f"{c.gain.over_clients:.1f}", *counts)
    legend = (
        "points: difference of local accuracy after the last round, paired by seed and client. gain, lose, same: pairs "
        "of client and seed. Noise: two standard errors of the paired differences."
    )
    lines = [*([legend] if found else []), *(c.sentence() for c in found), *unknown(experiments)]
    table.caption = Text("\n".join(lines))
    return table


def _table(title: str, columns: Sequence[str], words: int = 1) -> Table:
    """The first `words` columns may be folded, the others hold numbers."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", padding=0,
    )  # fmt: skip
    for i, name in enumerate(columns):
        if i < words:
            table.add_column(name, overflow="fold", min_width=8)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(experiment: Experiment) -> list[str]:
    count, asked = len(experiment.finished), len(experiment.runs)
    if not count:
        return [_NONE, f"(0/{asked})", *[_NONE] * (len(_COLUMNS) - 2)]
    scores = [last(rows) for rows in experiment.rows.values()]
    mean, sd = mean_sd([score.mean for score in scores])
    return [
        f"{mean:.1f}",
        _over_seeds(sd, count, asked),
        f"{statistics.fmean(score.spread for score in scores):.1f}",
        f"{statistics.fmean(score.worst for score in scores):.1f}",
        *_by_validation(experiment),
        f"{statistics.fmean(score.pooled for score in scores):.1f}" if experiment.has_global else _NONE,
        *_cost(experiment),
    ]


def _over_seeds(sd: float, count: int, asked: int) -> str:
    of = f"{count}/{asked}" if count < asked else str(count)
    if math.isnan(sd):
        return "1 seed" if count == asked else f"({of})"
    return f"{sd:.1f} ({of})"


def _by_validation(experiment: Experiment) -> tuple[str, str]:
    """Local accuracy after the round that is best on validation data, and which round that is for each seed."""
    if not all(map(validated, experiment.rows.values())):
        return _NONE, _NONE
    scores = [best_valid(rows) for rows in experiment.rows.values()]
    rounds = sorted({score.round for score in scores})
    which = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}-{rounds[-1]}"
    return f"{statistics.fmean(score.mean for score in scores):.1f}", which


def _cost(experiment: Experiment) -> tuple[str, str, str]:
    """Kilobytes down and up of a client and round, and seconds of training of a run."""
    logs = [run.rounds for run in experiment.finished.values()]
    down, up = (statistics.fmean(way) / 1000 for way in zip(*map(traffic, logs), strict=True))
    seconds = statistics.fmean(sum(row["seconds"] for row in rows) for rows in logs)
    return f"{down:.1f}", f"{up:.1f}", f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _legend(experiments: Sequence[Experiment]) -> str:
    levels = sorted({e.chance for e in experiments if e.chance})
    chance = " or ".join(f"{level:.3g} %" for level in levels) if levels else "not known from these runs"
    clients = max((len(e.clients) for e in experiments), default=0)
    return (
        "local: top-1 accuracy on a client's own test part by its own predictor after the last round, mean over "
        f"all clients, sampled or not ({clients}). worst client: the lowest. best valid: the same after the round (at "
        "round) that is best on validation data. global: the global model on all test parts together. kB: 1000 bytes "
        "of one client in one round of training. seconds: training of a run. Means over seeds; sd: standard deviation "
        f"(number of seeds). The chance level is {chance}. Nothing here is from the round that is best on test data."
    )
