"""A comparison as one table of numbers, for a spreadsheet or pandas: a row an experiment, and a
cell empty where there is no number.

Accuracies are in percent after the last round, means over seeds. tables.py says the same, rounded
for a reader. It knows no page and no picture.
"""

import csv
import io
import statistics
from collections.abc import Sequence

from .claims import served, shown
from .collect import Experiment

Row = dict[str, str | float | None]
DIGITS = 4
REACH = ("own", "base", "unseen", "harmonic")  # where classes are kept from training


def as_csv(experiments: Sequence[Experiment]) -> str:
    """The table; its first line names the columns."""
    rows = [_rounded(_row(experiment)) for experiment in experiments]
    names = dict.fromkeys(name for row in rows for name in row)
    file = io.StringIO()
    table = csv.DictWriter(file, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def _row(experiment: Experiment) -> Row:
    scores = experiment.last.values()
    runs = experiment.finished.values()
    row: Row = {"experiment": shown(experiment.name), "seeds": len(runs)}
    row |= _over_seeds("local", [score.mean for score in scores])
    row |= _over_seeds("server", list(served(experiment).values()))
    row |= {
        "local_best_valid": _mean([score.mean for score in experiment.best.values()]),
        "sd_clients": _mean([score.spread for score in scores]),
        "lowest_client": min((score.worst for score in scores), default=None),
        "ece": _mean([score.bins.error for score in scores if score.bins]),
        "seconds": _mean([sum(each["seconds"] for each in run.rounds) for run in runs]),
    }
    reached = [score.reach for score in scores if score.reach]
    for what in REACH if reached else ():
        values = [getattr(reach, what) for reach in reached]
        row[f"{what}_classes"] = _mean([value for value in values if value is not None])
    for who in ("client", "down", "up", "server"):
        for what in ("parameters", "bytes"):
            row[f"{who}_{what}"] = experiment.sizes.get((who, what))
    chosen = experiment.search.get("chosen", {})
    row["chosen"] = shown(", ".join(f"{key}={value}" for key, value in chosen.items()))
    return row


def _over_seeds(name: str, values: Sequence[float]) -> Row:
    """A mean and its standard deviation over seeds, which one seed has not."""
    row: Row = {name: _mean(values), f"{name}_sd": None}
    if len(values) > 1:
        row[f"{name}_sd"] = statistics.stdev(values)
    return row


def _mean(values: Sequence[float]) -> float | None:
    if not values:
        return None
    return statistics.fmean(values)


def _rounded(row: Row) -> Row:
    rounded = dict(row)
    for name, value in row.items():
        if isinstance(value, float):
            rounded[name] = round(value, DIGITS)
    return rounded
