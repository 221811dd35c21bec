"""Differences between two experiments, and what the number of seeds allows to be said of them.

Clients of one seed share its split and its server, so they are not independent: a seed gives one
difference, and errors are taken over seeds, by Student's t with seeds - 1 degrees of freedom. Fewer
than three seeds give no verdict. Several comparisons of one table are judged together (Holm,
Scandinavian Journal of Statistics 6, 1979). This room knows rows and numbers; it makes no sentence.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from scipy.special import stdtr, stdtrit

from ..metrics import Row, last

LEVEL = 0.95
SEEDS = 3  # fewer say nothing of the noise
ROUNDING = 1e-9  # points; an error below it is none


@dataclass(frozen=True)
class Difference:
    """Differences of accuracy in points, one a seed.

    `better`, `worse` and `same` count pairs of client and seed; all 0 where the server's accuracy
    is compared.
    """

    by_seed: Mapping[int, float]
    better: int = 0
    worse: int = 0
    same: int = 0

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @cached_property
    def error(self) -> float:
        """Standard error of the mean, over seeds; NaN for one seed."""
        count = len(self.by_seed)
        if count == 1:
            return math.nan
        return statistics.stdev(self.by_seed.values()) / math.sqrt(count)

    @property
    def nothing(self) -> bool:
        """Whether there is no difference at all, in any seed and any client."""
        return not (self.better or self.worse or any(self.by_seed.values()))

    @property
    def judged(self) -> bool:
        """Whether there are enough seeds for an interval, and they differ."""
        return len(self.by_seed) >= SEEDS and self.error > ROUNDING

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean; NaN if it cannot be judged."""
        if not self.judged:
            return math.nan, math.nan
        reach = float(stdtrit(len(self.by_seed) - 1, (1 + LEVEL) / 2)) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """The p-value of the mean, two-sided; NaN if it cannot be judged."""
        if not self.judged:
            return math.nan
        return 2 * float(stdtr(len(self.by_seed) - 1, -abs(self.mean) / self.error))


def local(
    these: Mapping[int, Sequence[Row]], those: Mapping[int, Sequence[Row]]
) -> Difference | None:
    """Local accuracy of these minus that of those; None without a seed in common."""
    pairs = {seed: _pairs(these[seed], those[seed]) for seed in sorted(set(these) & set(those))}
    pairs = {seed: differences for seed, differences in pairs.items() if differences}
    if not pairs:
        return None
    every = [difference for differences in pairs.values() for difference in differences]
    better = sum(difference > 0 for difference in every)
    worse = sum(difference < 0 for difference in every)
    by_seed = {seed: statistics.fmean(differences) for seed, differences in pairs.items()}
    return Difference(by_seed, better, worse, len(every) - better - worse)


def server(these: Mapping[int, float], those: Mapping[int, float]) -> Difference | None:
    """The server's accuracy of these minus that of those; None without a seed in common."""
    by_seed = {seed: these[seed] - those[seed] for seed in sorted(set(these) & set(those))}
    if not by_seed:
        return None
    return Difference(by_seed)


@dataclass(frozen=True)
class Family:
    """Differences that are judged together, by Holm."""

    differences: Sequence[Difference]

    @cached_property
    def size(self) -> int:
        """How many of them are judged."""
        return sum(difference.judged for difference in self.differences)

    @cached_property
    def limit(self) -> float:
        """The largest p-value of those that are not zero; below every p-value if there is none."""
        told = sorted(difference.p for difference in self.differences if difference.judged)
        limit = -1.0
        for rank, p in enumerate(told):
            if p * (len(told) - rank) > 1 - LEVEL:
                break
            limit = p
        return limit

    def holds(self, difference: Difference) -> bool:
        """Whether one of them is not zero."""
        return difference.judged and difference.p <= self.limit


def established(differences: Sequence[Difference]) -> list[bool]:
    """Which of a table's differences are not zero, by Holm."""
    family = Family(differences)
    return [family.holds(difference) for difference in differences]


def wilson(correct: int, examples: int) -> tuple[float, float]:
    """The 95 % interval, in percent, of `correct` out of `examples` (Wilson, JASA 22, 1927)."""
    z = 1.959963984540054
    middle = (correct + z * z / 2) / (examples + z * z)
    reach = (
        z * math.sqrt(correct * (examples - correct) / examples + z * z / 4) / (examples + z * z)
    )
    return 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)


def _pairs(these: Sequence[Row], those: Sequence[Row]) -> list[float]:
    first, second = last(these).clients, last(those).clients
    return [first[client] - second[client] for client in sorted(set(first) & set(second))]
