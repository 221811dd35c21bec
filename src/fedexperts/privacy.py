"""The account of differential privacy: what noise that is used again and again gives away, and how
much noise is needed to give away no more than was asked for.

Counted by Google's dp-accounting (privacy loss distributions, rounded up), which the extra
`privacy` installs. This room knows numbers alone: no tensor, no client, and not where noise is
added.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from .options import option

GRID = 5e-3  # of privacy losses, which are rounded up to it
LEAST, MOST = 0.2, 1e4  # noise that is searched for: less would take long, and protect nobody
CLOSE = 0.005  # how near the least noise a search comes, as a share of it

HIDDEN = {"example": "a training example", "client": "a client"}  # whom a unit hides


class Use(NamedTuple):
    """Gaussian noise, in units of what one may change, on a sum over a part that each joins by
    chance (Poisson), so many times.
    """

    noise: float
    rate: float
    times: int


@dataclass(frozen=True)
class PrivacySettings:
    """What a run promises about whoever is in its training data, and what that costs in noise."""

    unit: Literal["none", "example", "client"] = option(
        "none",
        says="whose presence is hidden: one training example's (DP-SGD), or a whole client's"
        " (clipped uploads)",
    )
    epsilon: float = option(
        0.0,
        says="most that the planned rounds may give away; noise = 0 is found for it; 0: no limit",
        ge=0,
    )
    delta: float = option(1e-5, says="delta that belongs to epsilon", gt=0, lt=1)
    clip: float = option(
        1.0, says="largest l2 norm of an example's gradient, or of an upload's change", gt=0
    )
    noise: float = option(
        0.0, says="deviation of the Gaussian noise, in units of clip; 0: found for epsilon", ge=0
    )
    noised_by: Literal["client", "server"] = option(
        "client",
        says="who adds the noise of unit = client: each client to its upload, or the server, which"
        " must then be trusted, to the mean",
    )

    def __post_init__(self) -> None:
        if self.unit == "none" and (self.epsilon or self.noise):
            raise ValueError(
                f"epsilon = {self.epsilon} and noise = {self.noise} say nothing of whom they hide;"
                ' use privacy.unit = "example" or "client"'
            )
        if self.unit != "none" and not (self.epsilon or self.noise):
            raise ValueError(
                f'unit = "{self.unit}" needs privacy.epsilon = 8, for example, or privacy.noise'
            )
        if self.unit == "example" and self.noised_by == "server":
            raise ValueError(
                'unit = "example" is noised in every step, at the client; use noised_by = "client"'
            )

    @property
    def simulated(self) -> str:
        """What protects clients only where each has a machine of its own, in words; "": nothing."""
        return "" if self.unit == "none" else "the noise of differential privacy"

    def use(self, examples: int, batch: int, epochs: int, rounds: int) -> Use:
        """What a client with so many examples uses in a round."""
        rate, times = 1.0, 1
        if self.unit == "example":
            rate, times = min(1.0, batch / examples), epochs * math.ceil(examples / batch)
        noise = self.noise or noise_for(self.epsilon, self.delta, rate, times * max(1, rounds))
        return Use(noise, rate, times)

    def total(self, uses: Iterable[Use]) -> float:
        """The epsilon of all uses together."""
        counted: Counter[tuple[float, float]] = Counter()
        for use in uses:
            counted[use.noise, use.rate] += use.times
        return epsilon_of(
            tuple(Use(*kind, times) for kind, times in sorted(counted.items())), self.delta
        )

    def beyond(self, total: float) -> bool:
        """Whether that is more than was promised."""
        return 0 < self.epsilon < total


def given_away(hidden: str, epsilon: float, delta: float) -> str:
    """A run's total in words."""
    return (
        f"uploads give away of {hidden} epsilon {epsilon:.3g} at delta {delta:g}, of the client"
        " that spent most; numbers of examples and of correct answers are not counted."
    )


def accounting() -> Any:
    """The package that counts; ValueError, with what to type, if it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError:
        raise ValueError(
            "[privacy] is counted by dp-accounting, which is not installed; use pip install"
            ' "fedexperts[privacy]"'
        ) from None
    return dp_accounting


@lru_cache(maxsize=4096)
def epsilon_of(uses: tuple[Use, ...], delta: float) -> float:
    """What these uses give away together, at a delta; an upper bound."""
    package = accounting()
    accountant = package.pld.PLDAccountant(value_discretization_interval=GRID)
    for use in uses:
        event = package.GaussianDpEvent(use.noise)
        if use.rate < 1:
            event = package.PoissonSampledDpEvent(use.rate, event)
        accountant.compose(event, use.times)
    return float(accountant.get_epsilon(delta)) if uses else 0.0


@lru_cache(maxsize=4096)
def noise_for(epsilon: float, delta: float, rate: float, times: int) -> float:
    """The least noise, up to half a percent, with which so many uses give away no more than
    epsilon.
    """

    def enough(noise: float) -> bool:
        return epsilon_of((Use(noise, rate, times),), delta) <= epsilon

    low, high = LEAST, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            raise ValueError(
                f"privacy.epsilon = {epsilon} at delta {delta} needs noise beyond {MOST:g} for"
                f" {times} steps; use fewer rounds or epochs, or a larger epsilon"
            )
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return float(f"{high * (1 + CLOSE / 2):.4g}")
