"""What logs say of experts: a server's mixture without its parts, clients' experts.

Every method with experts logs the same words, so that this room, as the rest of a report, knows no
method:

    a round's row, for each client      received: whose experts it was sent
    a client's row                      weights: the share of each of its experts, its own first
    the server's row                    its mixture, whole and in parts: dense_, uniform_, routed_,
                                        main_ and experts_correct, use, entropy, apart, alpha; a
                                        client's shares of the experts: shares.CLIENT
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics import Row, by_round


@dataclass(frozen=True)
class Routing:
    """The accuracy of the server's mixture after its last round, whole and without parts.

    `top` is what it predicts with: the server's own predictor, or all experts where all share the
    mixture as it is. `main` and `alpha` are NaN without main experts. `use` has a row an expert:
    how many test inputs of each class it is the first choice for.
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
    def best(self) -> float:
        return max(self.experts)

    @property
    def worst(self) -> float:
        return min(self.experts)

    @property
    def busiest(self) -> float:
        """Share of the test inputs whose first choice is the most chosen expert."""
        return max(map(sum, self.use)) / sum(map(sum, self.use))


def routing(server_rows: Sequence[Row]) -> Routing | None:
    """None if the server has no mixture."""
    if not server_rows or "dense_correct" not in server_rows[-1]:
        return None
    row = server_rows[-1]
    experts, use = row["experts_correct"], row["use"]
    classes, examples = len(use) // len(experts), sum(use)

    def percent(part: str) -> float:
        return 100 * float(row.get(f"{part}_correct", math.nan)) / examples

    top = "dense"
    if "test_correct" in row:
        top = "test"
    return Routing(
        top=percent(top),
        dense=percent("dense"),
        uniform=percent("uniform"),
        routed=percent("routed"),
        main=percent("main"),
        experts=[100 * correct / examples for correct in experts],
        apart=row["apart"],
        entropy=row["entropy"],
        alpha=row.get("alpha", math.nan),
        use=[use[first : first + classes] for first in range(0, len(use), classes)],
        shares=shares(row),
    )


def shares(server_row: Row) -> dict[str, list[float]]:
    """Each client's shares of the experts."""
    prefix = "shares."
    return {
        key.removeprefix(prefix): value
        for key, value in server_row.items()
        if key.startswith(prefix)
    }


def largest_share(server_rows: Sequence[Row]) -> dict[int, float]:
    """The largest share that a client has in one expert, mean over clients."""
    largest = {row["round"]: [max(share) for share in shares(row).values()] for row in server_rows}
    return {round: statistics.fmean(values) for round, values in largest.items() if values}


def own_shares(client_rows: Sequence[Row]) -> dict[str, list[float]]:
    """Mean shares of each client's experts after the last round, its own first."""
    rounds = by_round(client_rows)
    return {row["client"]: list(row["shares"]) for row in rounds[max(rounds)] if "shares" in row}


def received(round_rows: Sequence[Row]) -> Counter[tuple[str, str]]:
    """In how many rounds a client received another one's expert: (receiver, giver)."""
    return Counter(
        (client, giver)
        for row in round_rows
        for client, facts in row["trained"].items()
        for giver in facts.get("received", [])
    )
