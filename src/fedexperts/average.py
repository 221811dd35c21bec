"""How several clients' tensors become one: the only place that averages what was uploaded.

Methods take the rule from what the server has (`Given.average`), so another rule than the mean
needs no change of a method. The other rules bear a share of hostile clients; under them all clients
count alike, so that a lie about a number of examples buys nothing. This room knows neither methods
nor clients.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .options import option
from .tensors import Normal, Tensors

BLOCK = 2**15  # numbers that are summed at once
# equally named tensors and their weights, which are positive in sum, to one
Average = Callable[[Sequence[Mapping[str, Tensor]], Sequence[float]], Tensors]
Rule = Literal["mean", "median", "trimmed-mean", "geometric-median", "krum"]

FEW = 3  # fewer than this have no middle from which one of them can be far
STEPS = 30  # of the search for a geometric median


@dataclass(frozen=True)
class MergeSettings:
    """How uploads become one, and what is done about hostile ones within the guard's bounds."""

    rule: Rule = option(
        "mean",
        says="how uploads become one; all but mean bear hostile clients, and count clients alike",
    )
    hostile: float = option(
        0.2,
        says="share of hostile clients that trimmed-mean (at each end) and krum are to bear",
        gt=0,
        lt=0.5,
    )
    apart: float = option(
        3.0,
        says="under a rule that bears hostile clients, distance from the middle of all uploads,"
        " in medians, beyond which one joins no pool and has no relevance",
        gt=1,
    )
    compiled: bool = option(
        False,
        says="whether the server's sums of whole models, Fed-MoE's experts, are compiled by torch:"
        " half as long, after half a minute; needs a C++ compiler, and rounds differently",
    )

    @property
    def robust(self) -> bool:
        return self.rule != "mean"

    def average(self, items: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
        """The rule, as an `Average`."""
        if not self.robust:
            return mean(items, weights)
        voices = [item for item, weight in zip(items, weights, strict=True) if weight > 0]
        if not voices:
            raise ValueError(f"{len(items)} items without any weight: nothing to average")
        # a share of 0.2 of five is one, whatever the rounding of 0.2
        hostile = math.ceil(self.hostile * len(voices) - 1e-9)
        match self.rule:
            case "median":
                return trimmed_mean(voices, (len(voices) - 1) // 2)
            case "trimmed-mean":
                return trimmed_mean(voices, min(hostile, (len(voices) - 1) // 2))
            case "geometric-median":
                return geometric_median(voices)
            case _:
                return krum(voices, hostile)


def mean(items: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Weighted mean of equally named tensors, added in the order given, so that it repeats bit for
    bit.

    Weights need not sum to one; they must be positive in sum. Sums are taken in float64 and
    returned in the tensors' own type. Of others than floating tensors, a batch norm's count of
    steps, the item with the largest weight (the first of equals) gives its own, as in `combine`.
    """
    total = float(sum(weights))
    if not items or total <= 0:
        raise ValueError(
            f"a mean of {len(items)} items with weights that sum to {total}: nothing to average"
        )
    shares = [weight / total for weight in weights]
    heaviest = items[shares.index(max(shares))]

    averaged: Tensors = {}
    for name, first in items[0].items():
        averaged[name] = heaviest[name]
        if first.is_floating_point():
            averaged[name] = _mean([item[name] for item in items], shares)
    return averaged


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Of one tensor, in blocks that stay in a core's cache from the first item to the last."""
    mean = torch.empty_like(values[0], memory_format=torch.contiguous_format)
    flat, parts = mean.view(-1), [value.reshape(-1) for value in values]
    buffers = torch.empty(2, min(BLOCK, max(len(flat), 1)), dtype=torch.float64, device=mean.device)
    for begin in range(0, len(flat), BLOCK):
        block = flat[begin : begin + BLOCK]
        total, part = buffers[:, : len(block)]
        total.zero_()
        for value, share in zip(parts, shares, strict=True):
            part.copy_(value[begin : begin + BLOCK])
            total.add_(part.mul_(share))
        block.copy_(total)
    return mean


def noised_mean(
    items: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    noise: float,
    normal: Normal,
    share: float | None = None,
) -> Tensors:
    """The mean with Gaussian noise that hides one item's change: `noise` times the largest share
    that an item has in it, or a given one.
    """
    deviation = noise * (share or max(weights) / float(sum(weights)))
    merged = mean(items, weights)
    for name, value in sorted(merged.items()):
        if value.is_floating_point():
            merged[name] = value + deviation * normal(value.shape).to(value.dtype)
    return merged


# ---- rules that bear hostile clients


def trimmed_mean(items: Sequence[Mapping[str, Tensor]], cut: int) -> Tensors:
    """Of each number the mean without its `cut` largest and smallest (arXiv:1803.01498); as many as
    possible cut, the median. Whole numbers: the lower median.
    """

    def one(name: str, kind: torch.dtype) -> Tensor:
        values = torch.stack([item[name] for item in items])
        if not kind.is_floating_point:
            return values.median(0).values
        kept = values.sort(0).values[cut : len(items) - cut]
        return kept.mean(0, dtype=torch.float64).to(kind)

    return {name: one(name, first.dtype) for name, first in items[0].items()}


def geometric_median(items: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """The point with the least sum of distances to all items, all tensors as one vector, by
    Weiszfeld's steps (arXiv:1912.13445).
    """
    weights = [1.0] * len(items)
    for _ in range(STEPS):
        middle = mean(items, weights)
        far = [_apart(item, middle) for item in items]
        least = 1e-6 * max(far) or 1.0  # a step that meets an item must not divide by 0
        weights = [1 / max(one, least) for one in far]
    return mean(items, weights)


def krum(items: Sequence[Mapping[str, Tensor]], hostile: int) -> Tensors:
    """The item that is nearest to its nearest, all but the hostile and two (Blanchard et al.,
    NeurIPS 2017); it is taken whole.
    """
    neighbours = max(1, len(items) - hostile - 2)
    sums = []
    for one in items:
        squares = sorted(_apart(one, other) ** 2 for other in items)
        sums.append(sum(squares[1 : 1 + neighbours]))  # the first is itself
    return dict(items[sums.index(min(sums))])


def outliers(items: Mapping[str, Tensors], apart: float) -> dict[str, str]:
    """Which of equally named items lie farther than so many medians from the middle of all, each
    with the reason.
    """
    if len(items) < FEW:
        return {}
    middle = trimmed_mean(list(items.values()), (len(items) - 1) // 2)
    far = {name: _apart(item, middle) for name, item in items.items()}
    limit = apart * statistics.median(far.values())
    if not limit:  # most are equal, and to differ is no crime
        return {}
    return {
        name: f"its upload lies {one:.3g} from the middle of all; at most {limit:.3g} joins a pool"
        for name, one in far.items()
        if one > limit
    }


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """l2 distance, all floating tensors as one vector."""
    floating = [name for name in sorted(one) if one[name].is_floating_point()]
    differences = (one[name].double() - other[name].double() for name in floating)
    return math.hypot(*(float(vector_norm(value)) for value in differences))
