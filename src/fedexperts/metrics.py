"""Numbers about a run, from its log alone: what tables and reports show.

A run logs one row a round and, for every evaluated round, one row a client and one of the server's; everything else is
computed here, so a figure in a table is never kept twice. This room reads rows, not files, and knows no method.
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
    """Top-1 accuracies in percent on the test parts of all clients, after one round.

    `mean`, `spread` (standard deviation over clients) and `worst` are local: each client with its own predictor on its
    own part. `server` is the server's predictor, or the global model where it has none of its own, on all parts in one.
    """

    round: int
    mean: float
    spread: float
    worst: float
    server: float
    clients: dict[str, float]


def accuracy(row: Row, part: str) -> float:
    """Percent right in a row, of its part "valid" or "test"."""
    return 100 * float(row[f"{part}_correct"]) / float(row[f"{part}_examples"])


def served(rows: Sequence[Row], server: Row, part: str) -> float:
    """Percent right of the server's own predictor or, where it has none, of the global model at all clients in one."""
    if f"{part}_correct" in server:
        return accuracy(server, part)
    right, examples = (sum(int(row[f"{part}_{what}"]) for row in rows) for what in ("global_correct", "examples"))
    return 100 * right / examples


def score(rows: Sequence[Row], server: Row | None = None) -> Score:
    """The score of one evaluated round from its client rows and, if there is one, the server's."""
    clients = {row["client"]: accuracy(row, "test") for row in rows}
    values = list(clients.values())
    spread, worst = statistics.pstdev(values), min(values)
    return Score(rows[0]["round"], statistics.fmean(values), spread, worst, served(rows, server or {}, "test"), clients)


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


def evaluated(client_rows: Sequence[Row], server_rows: Sequence[Row]) -> dict[int, tuple[list[Row], Row]]:
    """Client rows and the server's row of each evaluated round, in order; an empty one where it logged none."""
    server = {row["round"]: row for row in server_rows}
    return {round: (rows, server.get(round, {})) for round, rows in by_round(client_rows).items()}


def last(client_rows: Sequence[Row], server_rows: Sequence[Row] = ()) -> Score:
    """The score after the last round; ValueError if nobody answered any evaluation."""
    rounds = evaluated(client_rows, server_rows)
    if not rounds:
        raise ValueError("no client answered any evaluation, so there is no score; rounds.jsonl says what they did")
    return score(*rounds[max(rounds)])


def last_valid(client_rows: Sequence[Row], server_rows: Sequence[Row], judged_by: str) -> float:
    """Validation accuracy after the last round."""
    rounds = evaluated(client_rows, server_rows)
    return valid(*rounds[max(rounds)], judged_by)


def best_valid(client_rows: Sequence[Row], server_rows: Sequence[Row] = (), judged_by: str = "clients") -> Score:
    """The score after the round that is best on validation data (the earliest of equals)."""
    rounds = evaluated(client_rows, server_rows)
    return score(*rounds[max(rounds, key=lambda r: (valid(*rounds[r], judged_by), -r))])


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for a single value: one seed has no spread)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def figures(round_rows: Sequence[Row], client_rows: Sequence[Row], server_rows: Sequence[Row]) -> dict[int, Row]:
    """A run in plain numbers, a few a round, for who draws curves: no client is named."""
    found: dict[int, Row] = {}
    for row in round_rows:
        losses = [float(facts["loss"]) for facts in row["trained"].values()]
        found[row["round"]] = ({"train/loss": statistics.fmean(losses)} if losses else {}) | {
            "train/clients": len(losses),
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
        found.setdefault(round, {}).update({f"accuracy/{name}": value for name, value in shown.items()})
    return dict(sorted(found.items()))


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


@dataclass(frozen=True)
class Lead:
    """Differences of the server's accuracy in points, one a seed, after the last round (`over_seeds` NaN: one seed)."""

    mean: float
    over_seeds: float
    seeds: int

    @property
    def error(self) -> float:
        """Standard error of the mean over seeds; NaN for one."""
        return self.over_seeds / math.sqrt(self.seeds)

    @property
    def beyond_noise(self) -> bool:
        """Whether the mean is further from zero than two standard errors: never for one seed."""
        return self.mean != 0 and abs(self.mean) >= 2 * self.error


def lead(these: Mapping[int, float], those: Mapping[int, float]) -> Lead | None:
    """What the first have over the second, each an accuracy by seed; None if they share no seed."""
    found = [these[seed] - those[seed] for seed in sorted(set(these) & set(those))]
    return Lead(*mean_sd(found), len(found)) if found else None


@dataclass(frozen=True)
class Routing:
    """The server's mixture after its last round: what it gets right in percent, whole and without its parts.

    `top` is what it predicts with; `main` and `alpha` are NaN without main experts. `use` has a row an expert: how
    many test inputs of each class it is the first choice for.
    """

    top: float
    dense: float
    uniform: float
    routed: float
    main: float
    experts: list[float]
    apart: float
    entropy: float
    alpha: float
    use: list[list[float]]
    shares: dict[str, list[float]]  # each client's shares of the experts, the main ones first

    @property
    def busiest(self) -> float:
        """Share of the test inputs whose first choice is the most chosen expert."""
        return max(map(sum, self.use)) / sum(map(sum, self.use))


def routing(server_rows: Sequence[Row]) -> Routing | None:
    """None if the server has no mixture."""
    row = server_rows[-1] if server_rows else {}
    if "dense_correct" not in row:
        return None
    experts, use = row["experts_correct"], row["use"]
    classes = len(use) // len(experts)

    def percent(part: str) -> float:
        return 100 * float(row.get(f"{part}_correct", math.nan)) / float(row["test_examples"])

    return Routing(
        top=percent("test"),
        dense=percent("dense"),
        uniform=percent("uniform"),
        routed=percent("routed"),
        main=percent("main"),
        experts=[100 * right / row["test_examples"] for right in experts],
        apart=row["apart"],
        entropy=row["entropy"],
        alpha=row.get("alpha", math.nan),
        use=[use[k * classes : (k + 1) * classes] for k in range(len(experts))],
        shares=shares(row),
    )


def shares(server_row: Row) -> dict[str, list[float]]:
    """Each client's shares of the experts."""
    prefix = "relevance."
    return {key.removeprefix(prefix): value for key, value in server_row.items() if key.startswith(prefix)}


def validated(client_rows: Sequence[Row], judged_by: str = "clients") -> bool:
    """Whether there are validation examples to choose a round by: every client's own, or any for the server."""
    enough = any if judged_by == "server" else all
    return enough(row["valid_examples"] for row in client_rows)


def silent(client_rows: Sequence[Row], server_rows: Sequence[Row] = ()) -> dict[str, str]:
    """Clients without an answer in the last evaluation, and why, as far as that is known: no score counts them."""
    rounds = by_round(client_rows)
    gone = {row["client"] for row in client_rows} - {row["client"] for row in rounds[max(rounds)]}
    said = server_rows[-1].get("unanswered", {}) if server_rows else {}
    return dict(sorted((dict.fromkeys(gone, "") | said).items()))


def curve(client_rows: Sequence[Row]) -> dict[int, float]:
    """Mean local accuracy after each evaluated round."""
    return {round: score(rows).mean for round, rows in by_round(client_rows).items()}


def server_curve(client_rows: Sequence[Row], server_rows: Sequence[Row]) -> dict[int, float]:
    """The server's accuracy after each evaluated round."""
    return {round: score(*rows).server for round, rows in evaluated(client_rows, server_rows).items()}


def logged(server_rows: Sequence[Row], key: str) -> dict[int, float]:
    """A number of the server's after each evaluated round that has it."""
    return {row["round"]: float(row[key]) for row in server_rows if key in row}


def largest_share(server_rows: Sequence[Row]) -> dict[int, float]:
    """The largest share that a client has in one expert, mean over clients."""
    found = {row["round"]: [max(share) for share in shares(row).values()] for row in server_rows}
    return {round: statistics.fmean(values) for round, values in found.items() if values}


def blended(round_rows: Sequence[Row], when: str) -> dict[int, float]:
    """Accuracy of a round's clients, mean over them, "before" or "after" they took what the server gave back."""
    found = {row["round"]: list(row.get("absorbed", {}).values()) for row in round_rows}
    return {
        round: statistics.fmean(100 * facts[f"{when}_correct"] / facts["test_examples"] for facts in clients)
        for round, clients in found.items()
        if clients
    }


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
    found = {row["round"]: [t["moved"] for t in row["trained"].values()] for row in round_rows}
    return {round: statistics.fmean(values) for round, values in found.items() if values}


def received(round_rows: Sequence[Row]) -> Counter[tuple[str, str]]:
    """In how many rounds a client received another one's prompt: (receiver, giver)."""
    return Counter(
        (client, giver)
        for row in round_rows
        for client, facts in row["trained"].items()
        for giver in facts.get("received", [])
    )


def sizes(round_rows: Sequence[Row], server_rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Of "client" (what it trains), "down" and "up" (what one client is sent and sends in a round), and "server" (what
    it holds at last) the "parameters" and "bytes"; means, without those of which the log says nothing.
    """
    trained = [facts for row in round_rows for facts in row["trained"].values()]
    found = {
        (who, what): [row[key] for row in rows if key in row]
        for what in ("parameters", "bytes")
        for who, rows, key in (
            ("client", trained, what),
            ("down", round_rows, f"{what}_down"),
            ("up", round_rows, f"{what}_up"),
            ("server", server_rows[-1:], f"server_{what}"),
        )
    }
    return {key: statistics.fmean(values) for key, values in found.items() if values}


def refusals(round_rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """Round, client and reason of every upload that was not taken."""
    return [(row["round"], client, why) for row in round_rows for client, why in row["refused"].items()]
