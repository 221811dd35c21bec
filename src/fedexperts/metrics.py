"""Numbers about a run, from its log alone: what tables and reports show.

A run logs one row a round and one row a client and evaluated round; everything else is computed here, so a figure in a
table is never kept twice. This room reads rows, not files, and knows no method.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """Top-1 accuracies in percent over all clients, each on its own test part, after one round.

    `mean`, `spread` (standard deviation over clients) and `worst` are local: each client with its own predictor.
    `pooled` is the global model on the test examples of all clients together.
    """

    round: int
    mean: float
    spread: float
    worst: float
    pooled: float
    clients: dict[str, float]


def accuracy(row: Row, part: str) -> float:
    """Percent right in a client's row, of its part "valid", "test", or of the global model on its test part."""
    return 100 * float(row[f"{part}_correct"]) / float(row[f"{part.removesuffix('_global')}_examples"])


def score(rows: Sequence[Row]) -> Score:
    """The score of one evaluated round from its client rows."""
    clients = {row["client"]: accuracy(row, "test") for row in rows}
    values = list(clients.values())
    pooled = sum(row["test_global_correct"] for row in rows) / sum(row["test_examples"] for row in rows)
    return Score(
        rows[0]["round"], statistics.fmean(values), statistics.pstdev(values), min(values), 100 * pooled, clients
    )


def valid(rows: Sequence[Row]) -> float:
    """Mean over clients of validation accuracy in percent: what rates and rounds are chosen by, never the test part."""
    return statistics.fmean(accuracy(row, "valid") for row in rows)


def by_round(client_rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Client rows of each evaluated round, in order."""
    rounds: dict[int, list[Row]] = {}
    for row in client_rows:
        rounds.setdefault(row["round"], []).append(row)
    return dict(sorted(rounds.items()))


def last(client_rows: Sequence[Row]) -> Score:
    """The score after the last round."""
    rounds = by_round(client_rows)
    return score(rounds[max(rounds)])


def best_valid(client_rows: Sequence[Row]) -> Score:
    """The score after the round that is best on validation data (the earliest of equals)."""
    rounds = by_round(client_rows)
    return score(rounds[max(rounds, key=lambda r: (valid(rounds[r]), -r))])


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value: one seed has no spread)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
