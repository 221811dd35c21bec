"""The nearest, or the farthest, of many vectors to some of them.

Candidates come from products in single precision, block by block, each of which serves both of its
vectors; the distances of the candidates are then taken in double precision. A bound on the rounding
of the products says for which vectors the candidates are certain to hold all that is asked for. The
others, where many distances are nearly equal, are searched in double precision altogether. This
room does not know what the vectors mean.

Shapes: N vectors of F numbers, R of them whose neighbours are asked for, C candidates, K chosen,
b vectors of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

BLOCK = 512  # vectors that are held against all others at once
FEW = 8  # vectors whose candidates are looked at together
SPARE = (2, 16)  # candidates beyond those that are asked for: at first, and where in doubt


def nearest(vectors_NF: Tensor, rows: Sequence[int], count: int, farthest: bool = False) -> Tensor:
    """Positions [R, K] of the vectors nearest to each of the rows, its own left out; of equal
    distances, the first. K is `count`, or as many others as there are.
    """
    N, own_R = len(vectors_NF), torch.tensor(rows)
    if not (count := min(count, N - 1)):
        return torch.empty(len(rows), 0, dtype=torch.int64)
    others = torch.ones(N, dtype=torch.bool)
    others[own_R] = False
    places_N = torch.cat([own_R, others.nonzero()[:, 0]])  # the rows come first
    sign = -1 if farthest else 1
    candidates = _candidates(vectors_NF[places_N], len(rows), min(count + SPARE[-1], N - 1), sign)
    chosen_RK = torch.empty(len(rows), count, dtype=torch.int64)
    doubtful = torch.arange(len(rows))
    for spare in SPARE:
        some = candidates.of(doubtful, min(count + spare, N - 1))
        chosen_RK[doubtful], certain = _chosen(
            vectors_NF, own_R[doubtful], places_N, some, count, sign
        )
        doubtful = doubtful[~certain]
    for part in doubtful.split(BLOCK):
        chosen_RK[part] = _searched(vectors_NF, own_R[part], sign)[:, :count]
    return chosen_RK


@dataclass(frozen=True)
class Candidates:
    """For each row C of the vectors, by their squared distance; minus it, where far is better."""

    columns: Tensor  # [R, C]
    near: Tensor  # [R, C]
    bound: Tensor  # [R]: on what rounding changed in `near`

    @classmethod
    def none(cls, rows: int, count: int, bound_R: Tensor) -> "Candidates":
        columns_RC = torch.zeros(rows, count, dtype=torch.int64)
        return cls(columns_RC, torch.full((rows, count), torch.inf), bound_R)

    def of(self, rows: Tensor, count: int) -> "Candidates":
        """The best few of some rows."""
        columns_RC, near_RC = self.columns[rows, :count], self.near[rows, :count]
        return Candidates(columns_RC, near_RC, self.bound[rows])

    def offer(self, rows: slice, near_bn: Tensor, first: int) -> None:
        """Take what is better of more columns, from the `first` on."""
        count = self.near.shape[1]
        best = near_bn.topk(min(count, near_bn.shape[1]), largest=False)
        near = torch.cat([self.near[rows], best.values], dim=1)
        columns = torch.cat([self.columns[rows], best.indices + first], dim=1)
        best = near.topk(count, largest=False)
        self.near[rows] = best.values
        self.columns[rows] = columns.gather(1, best.indices)


def _candidates(vectors_NF: Tensor, rows: int, count: int, sign: int) -> Candidates:
    """Candidates of the first vectors."""
    middle_F = vectors_NF.mean(0, dtype=torch.float64).to(vectors_NF)
    centred_NF = (vectors_NF - middle_F).float()  # small numbers have small roundings
    squares_N = vector_norm(centred_NF, dim=1, dtype=torch.float64).square().float()
    rounding = (centred_NF.shape[1] + 16) * _unit() * (squares_N[:rows] + squares_N.max())
    candidates = Candidates.none(rows, count, rounding)
    for first in range(0, rows, BLOCK):
        last = min(first + BLOCK, rows)
        block_bF, after_nF = centred_NF[first:last], centred_NF[first:]
        near_bn = torch.addmm(squares_N[first:], block_bF, after_nF.T, alpha=-2)
        near_bn.add_(squares_N[first:last, None]).mul_(sign).fill_diagonal_(torch.inf)
        candidates.offer(slice(first, last), near_bn, first)
        later_nb = near_bn[:, last - first : rows - first].T.contiguous()
        candidates.offer(slice(last, rows), later_nb, first)
    return candidates


def _unit() -> float:
    """Rounding of an operation in a product of single precision, which may have been lowered."""
    return 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-7


def _chosen(
    vectors_NF: Tensor,
    own_R: Tensor,
    places_N: Tensor,
    candidates: Candidates,
    count: int,
    sign: int,
) -> tuple[Tensor, Tensor]:
    """The best of the candidates [R, K], and whether no other vector can be among them [R]."""
    places_RC = places_N[candidates.columns].sort(1).values
    near_RC, bound_R = candidates.near.double(), candidates.bound
    chosen_RK = torch.empty(len(own_R), count, dtype=torch.int64)
    certain_R = torch.empty(len(own_R), dtype=torch.bool)
    for rows in torch.arange(len(own_R)).split(FEW):
        apart_bCF = vectors_NF[places_RC[rows]].double().sub_(vectors_NF[own_R[rows], None])
        squares_bC = sign * vector_norm(apart_bCF, dim=-1).square()
        squares_bC, order_bC = squares_bC.sort(stable=True)
        chosen_RK[rows] = places_RC[rows].gather(1, order_bC[:, :count])
        others_b = near_RC[rows, -1] - bound_R[rows]  # no other vector's is less
        certain_R[rows] = squares_bC[:, count - 1] < others_b
    every = candidates.near.shape[1] == len(vectors_NF) - 1
    return chosen_RK, certain_R | every


def _searched(vectors_NF: Tensor, own_b: Tensor, sign: int) -> Tensor:
    """All others [b, N - 1] by their distance in double precision."""
    flat_NF = vectors_NF.double()
    squares_N = vector_norm(flat_NF, dim=1).square()
    squares_bN = squares_N[own_b, None] + squares_N - 2 * flat_NF[own_b] @ flat_NF.T
    near_bN = sign * squares_bN.clamp_min(0).sqrt()
    order_bN: Tensor = near_bN.scatter_(1, own_b[:, None], torch.inf).argsort(stable=True)
    return order_bN[:, :-1]
