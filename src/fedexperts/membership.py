"""Can it be told from a model who was in its training data? The plainest attack there is: one
threshold for all losses (Yeom et al., 2018), as what was trained on tends to have a lower one.

An attacker who trains models of its own (LiRA) finds more: benchmarks/membership.py. This room
knows losses alone.
"""

import math

import torch
from torch import Tensor

from .declared import Facts

FALSE = 0.01  # share of other examples that are taken for one trained on
SURE = 1.96  # standard errors to each side of an area


def by_loss(inside_n: Tensor, outside_m: Tensor) -> Facts:
    """How well losses of examples that were trained on stand apart from those of others: area under
    the curve, 0.5 for chance, and the share that is caught where few others are.
    """
    limit = outside_m.quantile(FALSE)
    return {
        "members": len(inside_n),
        "others": len(outside_m),
        "member_area": area(-inside_n, -outside_m),
        "member_caught": float((inside_n < limit).double().mean()),
    }


def area(inside_n: Tensor, outside_m: Tensor) -> float:
    """How likely a score of the first is above one of the others; equal scores count half."""
    ordered_m = outside_m.contiguous().sort().values
    below_n = torch.searchsorted(ordered_m, inside_n.contiguous())
    not_above_n = torch.searchsorted(ordered_m, inside_n.contiguous(), right=True)
    return float((below_n + not_above_n).double().mean()) / 2 / len(outside_m)


def interval(area: float, members: int, others: int) -> tuple[float, float]:
    """95 % of an area (Hanley and McNeil, 1982)."""
    twice, square = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area)
    variance += (members - 1) * (twice - area**2) + (others - 1) * (square - area**2)
    half = SURE * math.sqrt(variance / members / others)
    return max(0.0, area - half), min(1.0, area + half)
