"""Numbers about a run, from its log alone: what tables and reports show.

A run logs one row a round and one row a client and evaluated round; everything else is computed here, so a figure in a
table is never kept twice. This room reads rows, not files, and knows no method.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
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


# ---- what a report shows beside scores


@dataclass(frozen=True)
class Gain:
    """Differences of local accuracy in points, paired by seed and client, after the last round.

    `error` is the standard error of the mean over all pairs, or over seeds where that is larger (NaN: a single pair).
    """

    mean: float
    over_seeds: float
    over_clients: float
    error: float
    seeds: int
    better: int
    worse: int
    same: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the mean is further from zero than two standard errors of the paired differences."""
        return self.mean != 0 and abs(self.mean) >= 2 * self.error


def gain(these: Mapping[int, Sequence[Row]], those: Mapping[int, Sequence[Row]]) -> Gain | None:
    """What the first have over the second, each client rows by seed; None if they share no client of a seed."""
    pairs = {seed: _differences(these[seed], those[seed]) for seed in sorted(set(these) & set(those))}
    means = [statistics.fmean(found) for found in pairs.values() if found]
    found = [difference for found in pairs.values() for difference in found]
    if not found:
        return None
    mean, over_seeds = mean_sd(means)
    error = mean_sd(found)[1] / math.sqrt(len(found))
    if len(means) > 1:  # clients of one seed share split and server: they are not independent
        error = max(error, over_seeds / math.sqrt(len(means)))
    better, worse = sum(d > 0 for d in found), sum(d < 0 for d in found)
    spread = statistics.fmean(statistics.pstdev(d) for d in pairs.values() if d)
    return Gain(mean, over_seeds, spread, error, len(means), better, worse, len(found) - better - worse)


def _differences(these: Sequence[Row], those: Sequence[Row]) -> list[float]:
    first, second = last(these).clients, last(those).clients
    return [first[client] - second[client] for client in sorted(set(first) & set(second))]


def validated(client_rows: Sequence[Row]) -> bool:
    """Whether every client has validation examples, so that a round can be chosen by them."""
    return all(row["valid_examples"] for row in client_rows)


def silent(client_rows: Sequence[Row]) -> list[str]:
    """Clients that answered an evaluation once, and not the last one: no score counts them."""
    rounds = by_round(client_rows)
    return sorted({row["client"] for row in client_rows} - {row["client"] for row in rounds[max(rounds)]})


def curve(client_rows: Sequence[Row]) -> dict[int, float]:
    """Mean local accuracy after each evaluated round."""
    return {round: score(rows).mean for round, rows in by_round(client_rows).items()}


def apart(client_rows: Sequence[Row]) -> dict[int, float]:
    """How far the experts' text features are from the client's own (1 - cosine), mean over the clients with experts."""
    far = {
        round: [float(row["experts_apart"]) for row in rows if "experts_apart" in row]
        for round, rows in by_round(client_rows).items()
    }
    return {round: statistics.fmean(values) for round, values in far.items() if values}


def weights(client_rows: Sequence[Row]) -> dict[str, list[float]]:
    """How each client's images weigh the experts after the last round, own first; only clients with a mixture."""
    rounds = by_round(client_rows)
    return {row["client"]: list(row["weights"]) for row in rounds[max(rounds)] if "weights" in row}


def moved(round_rows: Sequence[Row]) -> dict[int, float]:
    """How far an upload is from the global tensors (l2), mean over a round's clients."""
    return {row["round"]: statistics.fmean(t["moved"] for t in row["trained"].values()) for row in round_rows}


def received(round_rows: Sequence[Row]) -> Counter[tuple[str, str]]:
    """In how many rounds a client received another one's prompt: (receiver, giver)."""
    return Counter(
        (client, giver)
        for row in round_rows
        for client, facts in row["trained"].items()
        for giver in facts.get("received", [])
    )


def traffic(round_rows: Sequence[Row]) -> tuple[float, float]:
    """Bytes down and up of one client in one round, on average."""
    if not round_rows:
        return 0.0, 0.0
    return statistics.fmean(r["bytes_down"] for r in round_rows), statistics.fmean(r["bytes_up"] for r in round_rows)


def refusals(round_rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """Round, client and reason of every upload that was not taken."""
    return [(row["round"], client, why) for row in round_rows for client, why in row["refused"].items()]
