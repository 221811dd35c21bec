"""Numbers about a run, from its log alone: what tables and reports show.

A run logs one row a round and, for every evaluated round, one row a client and one of the server's;
everything else is computed here, so a figure in a table is never kept twice. This room reads rows,
not files, and knows no method.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .answers import BASE, OWN, UNSEEN, Bins, bins

Row = dict[str, Any]


@dataclass(frozen=True)
class Reach:
    """What clients know of classes, accuracies in percent, means over clients: of its own on its
    own test part, of those that others train on, of those that nobody does. In each no other
    classes may be said. None where nobody could be asked.
    """

    own: float
    base: float | None
    unseen: float | None

    @property
    def harmonic(self) -> float | None:
        """The harmonic mean of the three; 0 where one of them is."""
        if self.base is None or self.unseen is None:
            return None
        return statistics.harmonic_mean([self.own, self.base, self.unseen])


def reach(rows: Sequence[Row]) -> Reach | None:
    """Of one evaluated round; None where no classes are kept from training."""
    if not all(f"{OWN}_correct" in row for row in rows):
        return None
    own = statistics.fmean(100 * row[f"{OWN}_correct"] / row["test_examples"] for row in rows)
    means: dict[str, float | None] = {}
    for of in (BASE, UNSEEN):
        shares = [
            100 * row[f"{of}_correct"] / row[f"{of}_examples"]
            for row in rows
            if f"{of}_correct" in row
        ]
        means[of] = statistics.fmean(shares) if shares else None
    return Reach(own, **means)


@dataclass(frozen=True)
class Score:
    """Top-1 accuracies in percent on the test parts of all clients, after one round.

    `mean`, `spread` (standard deviation over clients) and `worst` are local: each client with its
    own predictor on its own part. `server` is the server's predictor, or the global model where it
    has none of its own, on all parts in one.
    """

    round: int
    server: float
    # of each client: test examples classified right, and all of them
    correct: dict[str, tuple[int, int]]
    # all clients' answers in one, and the server's own, by confidence; None where a log lacks them
    bins: Bins | None = None
    server_bins: Bins | None = None
    reach: Reach | None = None  # where classes are kept from training

    @cached_property
    def clients(self) -> dict[str, float]:
        """Each client's accuracy."""
        return {
            client: 100 * float(correct) / float(examples)
            for client, (correct, examples) in self.correct.items()
        }

    @property
    def mean(self) -> float:
        return statistics.fmean(self.clients.values())

    @property
    def spread(self) -> float:
        return statistics.pstdev(self.clients.values())

    @property
    def worst(self) -> float:
        return min(self.clients.values())

    @property
    def sampling(self) -> float:
        """The spread that clients would have by their finite test parts alone, if all were as
        accurate as the mean.
        """
        share = self.mean / 100
        return 100 * math.sqrt(
            statistics.fmean(
                share * (1 - share) / examples for _, examples in self.correct.values()
            )
        )


@dataclass(frozen=True)
class Lowest:
    """The client that fares worst in any seed: its correct answers of its test examples, and where
    that was.
    """

    client: str
    seed: int
    correct: int
    examples: int


def lowest(scores: Mapping[int, Score]) -> Lowest:
    """The client with the lowest accuracy in scores by seed; of equals, the one of whom most
    examples say so.
    """
    every = [
        Lowest(client, seed, *counts)
        for seed, score in scores.items()
        for client, counts in score.correct.items()
    ]
    return min(every, key=lambda one: (one.correct / one.examples, -one.examples))


def accuracy(row: Row, part: str) -> float:
    """Percent right in a row, of its part "valid" or "test"."""
    return 100 * float(row[f"{part}_correct"]) / float(row[f"{part}_examples"])


def served(rows: Sequence[Row], server: Row, part: str) -> float:
    """Percent right of the server's own predictor or, where it has none, of the global model at all
    clients in one.
    """
    if f"{part}_correct" in server:
        return accuracy(server, part)
    correct, examples = (
        sum(int(row[f"{part}_{what}"]) for row in rows) for what in ("global_correct", "examples")
    )
    return 100 * correct / examples


def score(rows: Sequence[Row], server: Row | None = None) -> Score:
    """The score of one evaluated round from its client rows and, if there is one, the server's."""
    correct = {row["client"]: (int(row["test_correct"]), int(row["test_examples"])) for row in rows}
    reached = served(rows, server or {}, "test")
    own_bins, server_bins = bins(rows), bins([server or {}])
    return Score(rows[0]["round"], reached, correct, own_bins, server_bins, reach(rows))


def valid(rows: Sequence[Row], server: Row | None = None, judged_by: str = "clients") -> float:
    """Validation accuracy in percent, by which rates and rounds are chosen, never by the test part.

    Judged by the clients it is the mean of their own; judged by the server, the server's.
    """
    if judged_by == "server":
        return served(rows, server or {}, "valid")
    return statistics.fmean(accuracy(row, "valid") for row in rows)


def by_round(client_rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Client rows of each evaluated round, in order."""
    rounds: dict[int, list[Row]] = {}
    for row in client_rows:
        rounds.setdefault(row["round"], []).append(row)
    return dict(sorted(rounds.items()))


def evaluated(
    client_rows: Sequence[Row], server_rows: Sequence[Row]
) -> dict[int, tuple[list[Row], Row]]:
    """Client rows and the server's row of each evaluated round, in order; an empty one where it
    logged none.
    """
    server = {row["round"]: row for row in server_rows}
    return {round: (rows, server.get(round, {})) for round, rows in by_round(client_rows).items()}


def last(client_rows: Sequence[Row], server_rows: Sequence[Row] = ()) -> Score:
    """The score after the last round; ValueError if nobody answered any evaluation."""
    rounds = evaluated(client_rows, server_rows)
    if not rounds:
        raise ValueError(
            "no client answered any evaluation, so there is no score; rounds.jsonl says what"
            " they did"
        )
    return score(*rounds[max(rounds)])


def last_valid(client_rows: Sequence[Row], server_rows: Sequence[Row], judged_by: str) -> float:
    """Validation accuracy after the last round."""
    rounds = evaluated(client_rows, server_rows)
    return valid(*rounds[max(rounds)], judged_by)


def best_valid(
    client_rows: Sequence[Row], server_rows: Sequence[Row] = (), judged_by: str = "clients"
) -> Score:
    """The score after the round that is best on validation data (the earliest of equals)."""
    rounds = evaluated(client_rows, server_rows)
    return score(*rounds[max(rounds, key=lambda r: (valid(*rounds[r], judged_by), -r))])


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value: one seed has no spread)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def figures(
    round_rows: Sequence[Row], client_rows: Sequence[Row], server_rows: Sequence[Row]
) -> dict[int, Row]:
    """A run in plain numbers, a few a round, for who draws curves: no client is named."""
    by_round: dict[int, Row] = {}
    for row in round_rows:
        trained = row["trained"].values()
        losses = [float(facts["loss"]) for facts in trained if "loss" in facts]
        by_round[row["round"]] = ({"train/loss": statistics.fmean(losses)} if losses else {}) | {
            "train/clients": len(trained),
            "train/refused": len(row["refused"]),
            "train/seconds": row["seconds"],
            "bytes/down": row["bytes_down"],
            "bytes/up": row["bytes_up"],
        }
    for round, (rows, server) in evaluated(client_rows, server_rows).items():
        reached = score(rows, server)
        shown = {"local": reached.mean, "worst-client": reached.worst, "server": reached.server}
        if validated(rows):
            shown["local-valid"] = valid(rows)
        told = {f"accuracy/{name}": value for name, value in shown.items()}
        if reached.bins:
            told["calibration/ece"] = reached.bins.error
        by_round.setdefault(round, {}).update(told)
    return dict(sorted(by_round.items()))


# ---- what a report shows beside scores


def spent(round_rows: Sequence[Row]) -> tuple[float, float] | None:
    """The largest epsilon that any client has spent, and its delta; None where none is counted."""
    told = [facts for row in round_rows for facts in row["trained"].values() if "epsilon" in facts]
    if not told:
        return None
    most = max(told, key=lambda facts: float(facts["epsilon"]))
    return float(most["epsilon"]), float(most["delta"])


def validated(client_rows: Sequence[Row], judged_by: str = "clients") -> bool:
    """Whether there are validation examples to choose a round by: every client's own, or any for
    the server.
    """
    enough = any if judged_by == "server" else all
    return enough(row["valid_examples"] for row in client_rows)


def silent(client_rows: Sequence[Row], server_rows: Sequence[Row] = ()) -> dict[str, str]:
    """Clients without an answer in the last evaluation, and why, as far as that is known: no score
    counts them.
    """
    rounds = by_round(client_rows)
    gone = {row["client"] for row in client_rows} - {row["client"] for row in rounds[max(rounds)]}
    said = server_rows[-1].get("unanswered", {}) if server_rows else {}
    return dict(sorted((dict.fromkeys(gone, "") | said).items()))


def curve(client_rows: Sequence[Row]) -> dict[int, float]:
    """Mean local accuracy after each evaluated round."""
    return {round: score(rows).mean for round, rows in by_round(client_rows).items()}


def server_curve(client_rows: Sequence[Row], server_rows: Sequence[Row]) -> dict[int, float]:
    """The server's accuracy after each evaluated round."""
    return {
        round: score(*rows).server for round, rows in evaluated(client_rows, server_rows).items()
    }


def logged(rows: Sequence[Row], name: str) -> dict[int, float]:
    """A number that rows of clients or the server log, after each evaluated round: mean over those
    that have it.
    """
    logged = {
        round: [float(row[name]) for row in rows if name in row]
        for round, rows in by_round(rows).items()
    }
    return {round: statistics.fmean(values) for round, values in logged.items() if values}


def blended(round_rows: Sequence[Row], when: str) -> dict[int, float]:
    """Accuracy of a round's clients, mean over them, "before" or "after" they took what the server
    gave back.
    """
    by_round = {row["round"]: list(row.get("absorbed", {}).values()) for row in round_rows}
    return {
        round: statistics.fmean(
            100 * facts[f"{when}_correct"] / facts["test_examples"] for facts in clients
        )
        for round, clients in by_round.items()
        if clients
    }


def moved(round_rows: Sequence[Row]) -> dict[int, float]:
    """How far an upload is from the global tensors (l2), mean over a round's clients; behind masks
    nobody knows.
    """
    by_round = {
        row["round"]: [facts["moved"] for facts in row["trained"].values() if "moved" in facts]
        for row in round_rows
    }
    return {round: statistics.fmean(values) for round, values in by_round.items() if values}


def sizes(round_rows: Sequence[Row], server_rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Of "client" (what it trains), "down" and "up" (what one client is sent and sends in a round),
    and "server" (what it holds at last) the "parameters" and "bytes"; means, without those of which
    the log says nothing.
    """
    trained = [facts for row in round_rows for facts in row["trained"].values()]
    by_key = {
        (who, what): [row[key] for row in rows if key in row]
        for what in ("parameters", "bytes")
        for who, rows, key in (
            ("client", trained, what),
            ("down", round_rows, f"{what}_down"),
            ("up", round_rows, f"{what}_up"),
            ("server", server_rows[-1:], f"server_{what}"),
        )
    }
    return {key: statistics.fmean(values) for key, values in by_key.items() if values}


def refusals(round_rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """Round, client and reason of every upload that was not taken."""
    return [
        (row["round"], client, why) for row in round_rows for client, why in row["refused"].items()
    ]


CHANGED = {"data_new": "new", "data_gone": "gone", "data_relabelled": "of another class"}


def changes(client_rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """Round, client and what became of its data since they were split, wherever that is another
    than it was before.
    """
    known: dict[str, str] = {}
    changed = []
    for row in client_rows:
        what = ", ".join(f"{row[name]} {word}" for name, word in CHANGED.items() if row.get(name))
        if what != known.get(row["client"], ""):
            changed.append((row["round"], row["client"], what or "as they were"))
        known[row["client"]] = what
    return changed
