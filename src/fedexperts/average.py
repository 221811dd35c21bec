"""How several clients' tensors become one: the only place that averages what was uploaded.

Methods take the rule from what the server has (`Given.average`), so another rule than the mean
needs no change of a method. This room knows neither methods nor clients.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .tensors import Tensors, sum_in_order

# equally named tensors and their weights, which are positive in sum, to one
Average = Callable[[Sequence[Mapping[str, Tensor]], Sequence[float]], Tensors]


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

    def one(name: str, kind: torch.dtype) -> Tensor:
        if not kind.is_floating_point:
            return heaviest[name]
        return sum_in_order(
            item[name].double() * share for item, share in zip(items, shares, strict=True)
        ).to(kind)

    return {name: one(name, first.dtype) for name, first in items[0].items()}
