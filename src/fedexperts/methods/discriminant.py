"""Gaussian experts in closed form: what examples say of each class, how far clients disagree, and
the discriminant that blends their experts. Equations of docs/methods.md, "Gaussian experts".

This room knows tensors alone: no method, no model, no message. It computes in float64.

Shapes: N clients, R of them that a blend is for, C classes, P feature width, n examples, J
components of a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RIDGE = 0.3  # of the metric in which clients are compared
TURNS = 10  # alternations of the additive fit
LITTLE = 1e-12


@dataclass(frozen=True)
class Experts:
    """What N clients know of each class: how many examples, their mean feature, and the sum of
    squares about these means.
    """

    count: Tensor  # [N, C]
    mean: Tensor  # [N, C, P]
    scatter: Tensor  # [N, P, P]

    def __len__(self) -> int:
        return len(self.count)

    @property
    def sizes(self) -> Tensor:
        return self.count.sum(1)

    @property
    def sums(self) -> Tensor:
        return self.count[..., None] * self.mean

    @cached_property
    def between(self) -> Tensor:
        """[N, P, P]: the second moments of each client's class means, about zero."""
        return torch.einsum("ncp,ncq->npq", self.sums, self.mean)

    def nobody(self) -> "Experts":
        """The expert of a client without examples."""
        return Experts(*(torch.zeros_like(getattr(self, n)[:1]) for n in self.__annotations__))

    def with_another(self, other: "Experts") -> "Experts":
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__annotations__)
        return Experts(*(torch.cat(pair) for pair in pairs))

    def in_place(self, own: int, other: "Experts") -> "Experts":
        """The same, but for one client's."""
        parts = []
        for name in self.__annotations__:
            part = getattr(self, name).clone()
            part[own] = getattr(other, name)[own]
            parts.append(part)
        return Experts(*parts)


def expert(x_nP: Tensor, y_n: Tensor, classes: int) -> Experts:
    """What examples say: one client's expert."""
    x_nP = x_nP.double()
    count_C = y_n.bincount(minlength=classes).double()
    sum_CP = torch.zeros(classes, x_nP.shape[1], dtype=torch.float64).index_add_(0, y_n, x_nP)
    mean_CP = sum_CP / count_C.clamp_min(1)[:, None]
    rest_nP = x_nP - mean_CP[y_n]
    return Experts(count_C[None], mean_CP[None], (rest_nP.T @ rest_nP)[None])


def offsets(experts: Experts) -> tuple[Tensor, Tensor]:
    """Class means g [C, P] and client offsets b [N, P] of the additive fit m_jc = g_c + b_j."""
    n_NC, s_NCP = experts.count, experts.sums
    b_NP = torch.zeros(len(experts), s_NCP.shape[2], dtype=torch.float64)
    for _ in range(TURNS):
        g_CP = (s_NCP.sum(0) - n_NC.T @ b_NP) / n_NC.sum(0).clamp_min(1)[:, None]
        b_NP = (s_NCP.sum(1) - n_NC @ g_CP) / (experts.sizes + 1)[:, None]
        b_NP = b_NP - b_NP.mean(0)
    return g_CP, b_NP


def within(experts: Experts) -> Tensor:
    """S_w [P, P]: the variance inside a class, once clients' offsets are taken out."""
    g_CP, b_NP = offsets(experts)
    rest_NCP = experts.mean - g_CP - b_NP[:, None]
    n_NC = experts.count
    spread_PP = torch.einsum("nc,ncp,ncq->pq", n_NC, rest_NCP, rest_NCP)
    held = int((n_NC > 0).sum())
    seen = int((n_NC.sum(0) > 0).sum())
    degrees = experts.sizes.sum() - held + max(held - seen - len(experts) + 1, 0)
    return (experts.scatter.sum(0) + spread_PP) / degrees.clamp_min(1)


def grand_mean(experts: Experts) -> Tensor:
    """[C, P]: each class's mean over all clients."""
    return experts.sums.sum(0) / experts.count.sum(0).clamp_min(LITTLE)[:, None]


def total(experts: Experts) -> Tensor:
    """[P, P]: the variance about the classes' means, whoever has an example: how clients differ is
    in it.
    """
    rest_NCP = experts.mean - grand_mean(experts)
    spread_PP = torch.einsum("nc,ncp,ncq->pq", experts.count, rest_NCP, rest_NCP)
    return (experts.scatter.sum(0) + spread_PP) / experts.count.sum().clamp_min(LITTLE)


def inverse_metric(S_PP: Tensor, ridge: float) -> Tensor:
    """[P, P]: the inverse of a variance with a ridge, in mean variances."""
    identity_PP = torch.eye(len(S_PP), dtype=torch.float64)
    least = ridge * _size(S_PP).clamp_min(LITTLE)
    inverse_PP: Tensor = torch.linalg.inv(S_PP + least * identity_PP)
    return inverse_PP


def disagreement(experts: Experts) -> Tensor:
    """u [N, N]: the squared offset between two clients' class means, in units of the variance
    inside a class, its noise removed, shrunk to the mean pair (empirical Bayes), at least 0.

    Pairs that share no class have the mean; 0 where nobody shares any.
    """
    n_NC, S_PP = experts.count, within(experts)
    inverse_PP = inverse_metric(S_PP, RIDGE)
    effective = float((inverse_PP * S_PP).sum())
    root_PP = torch.linalg.cholesky(inverse_PP)
    total_NN, weight_NN, shared_NN = torch.zeros(3, len(experts), len(experts)).double()
    for n_N, m_NP in zip(n_NC.T, experts.mean.transpose(0, 1), strict=True):
        both_NN = n_N[:, None] * n_N / (n_N[:, None] + n_N).clamp_min(1)
        total_NN += both_NN * _squares(m_NP @ root_PP)
        weight_NN += both_NN
        shared_NN += both_NN > 0
    known_NN = (shared_NN > 0).fill_diagonal_(False)
    if not known_NN.any() or effective < LITTLE:
        return torch.zeros(len(experts), len(experts), dtype=torch.float64)
    u_NN = (total_NN - shared_NN * effective) / (weight_NN * effective).clamp_min(LITTLE)
    noise_NN = 2 * shared_NN / (effective * weight_NN.square()).clamp_min(LITTLE)
    mean = u_NN[known_NN].mean()
    variance = u_NN[known_NN].var(unbiased=False) - noise_NN[known_NN].mean()
    variance = variance.clamp_min(1e-4)
    trust_NN = variance / (variance + noise_NN)
    u_NN = torch.where(known_NN, trust_NN * u_NN + (1 - trust_NN) * mean, mean)
    return u_NN.clamp_min(0).fill_diagonal_(0)


def strangeness(experts: Experts, x_nP: Tensor) -> Tensor:
    """u [N] of a client whose images have no labels: how far the mean of all of them lies from
    where each client's would, its classes taken to be equally frequent.
    """
    g_CP, b_NP = offsets(experts)
    S_PP = within(experts)
    inverse_PP = inverse_metric(S_PP, RIDGE)
    effective = (inverse_PP * S_PP).sum().clamp_min(LITTLE)
    seen_C = experts.count.sum(0) > 0
    apart_NP = x_nP.double().mean(0) - g_CP[seen_C].mean(0) - b_NP
    squares_N = ((apart_NP @ inverse_PP) * apart_NP).sum(1)
    noise_N = 1 / len(x_nP) + 1 / experts.sizes.clamp_min(1)
    return (squares_N / effective - noise_N).clamp_min(0)


def heard(
    experts: Experts, u_RN: Tensor, alike_RN: Tensor, eta: float, rho: float
) -> tuple[Tensor, Tensor]:
    """What clients take of each expert's class means [R, N, C] and of its scatter [R, N]; 1 is
    whole.

    n examples with an offset u are worth n / (1 + n u); `alike_RN` is how likely both are of one
    regime.
    """
    weight_RNC = alike_RN[..., None] / (1 + eta * experts.count * u_RN[..., None])
    return weight_RNC, 1 / (1 + rho * u_RN)


def most_adding(
    experts: Experts, u_N: Tensor, own: int, others: Sequence[int], count: int, prior: float
) -> set[int]:
    """So many of the others, one after the other: whoever adds most to the classes that a client
    meets, in examples that still move a class mean.
    """
    worth_NC = experts.count / (1 + experts.count * u_N[:, None])
    has_C = experts.count[own]
    meets_C = (has_C + 1) / (has_C + 1).sum()
    left, chosen = list(others), set[int]()
    for _ in range(count):
        after_JC = has_C + worth_NC[left]
        gain_J = (meets_C * after_JC / (after_JC + prior)).sum(1)
        best = left.pop(int(gain_J.argmax()))
        has_C = has_C + worth_NC[best]
        chosen.add(best)
    return chosen


@dataclass(frozen=True)
class Prior:
    """What a blend leans on where a class has few examples, and how much."""

    weight: float  # k0, in examples
    # [C, P]: what the classes' texts say of their means, about their own mean
    anchor: Tensor
    ridge: float  # lambda, in mean variances


@dataclass(frozen=True)
class Blend:
    """A client's discriminant: class means `mu` and the metric `inverse` / `variance`.

    `count` and `mean` are its examples and their means before the prior, `degrees` those of the
    scatter: with them a client can leave one of its own examples out.
    """

    mu: Tensor  # [C, P]
    inverse: Tensor  # [P, P]
    variance: Tensor
    count: Tensor  # [C]
    mean: Tensor  # [C, P]
    degrees: Tensor


def blended(experts: Experts, weight_RNC: Tensor, scatter_RN: Tensor, prior: Prior) -> list[Blend]:
    """Blends of experts, of which class c of client j counts `weight_RNC` and its scatter
    `scatter_RN`: 1 is whole.

    How far an expert's class means lie from the blend's counts as much as its class means do on
    average: so no sum runs over receivers, clients, classes and pairs of directions at once.
    """
    n_RNC = weight_RNC * experts.count
    count_RC = n_RNC.sum(1)
    sum_RCP = torch.einsum("rnc,ncp->rcp", n_RNC, experts.mean)
    mean_RCP = sum_RCP / count_RC.clamp_min(LITTLE)[..., None]
    centre_RP = sum_RCP.sum(1) / count_RC.sum(1).clamp_min(LITTLE)[:, None]
    mu_RCP = sum_RCP + prior.weight * (centre_RP[:, None] + prior.anchor)
    mu_RCP = mu_RCP / (count_RC + prior.weight)[..., None]
    spread_RN = torch.minimum(n_RNC.sum(2) / experts.sizes.clamp_min(LITTLE), scatter_RN)
    total_RPP = _mixed(scatter_RN, experts.scatter) + _mixed(spread_RN, experts.between)
    total_RPP = total_RPP + _about(experts, spread_RN, mean_RCP)
    degrees_R = scatter_RN @ experts.sizes - (count_RC > 0).sum(1)
    sigma_RPP = total_RPP / degrees_R.clamp_min(1)[:, None, None]
    variance_R = _size(sigma_RPP).clamp_min(LITTLE)
    ridge_PP = prior.ridge * torch.eye(sigma_RPP.shape[-1], dtype=torch.float64)
    inverse_RPP = torch.linalg.inv(sigma_RPP / variance_R[:, None, None] + ridge_PP)
    parts = (mu_RCP, inverse_RPP, variance_R, count_RC, mean_RCP, degrees_R)
    return [Blend(*one) for one in zip(*parts, strict=True)]


def piled(experts: Experts, prior: Prior) -> Blend:
    """The blend in which every expert counts whole: the discriminant of all examples in one
    pile.
    """
    whole_1NC = torch.ones_like(experts.count)[None]
    return blended(experts, whole_1NC, whole_1NC[..., 0], prior)[0]


def _mixed(weight_RN: Tensor, matrix_NPP: Tensor) -> Tensor:
    """[R, P, P]: weighted sums of matrices, by one product."""
    mixed_RPP: Tensor = (weight_RN @ matrix_NPP.flatten(1)).unflatten(1, matrix_NPP.shape[1:])
    return mixed_RPP


def _about(experts: Experts, weight_RN: Tensor, mean_RCP: Tensor) -> Tensor:
    """[R, P, P]: what weighted second moments about zero lack of those about `mean_RCP`."""
    count_RC = weight_RN @ experts.count
    sum_RCP = (weight_RN @ experts.sums.flatten(1)).unflatten(1, mean_RCP.shape[1:])
    half_RPP: Tensor = (count_RC[..., None] * mean_RCP / 2 - sum_RCP).mT @ mean_RCP
    return half_RPP + half_RPP.mT


def left_out(blend: Blend, prior_weight: float, x_nP: Tensor, y_n: Tensor) -> Tensor:
    """[n, C]: squared distances of a client's own examples to the class means, each as if it were
    not among the blend's.

    Exact but for the ridge, whose unit is the variance of all: the example's class mean moves, and
    the metric by a matrix of rank one (Sherman and Morrison, 1950).
    """
    x_nP = x_nP.double()
    count_n = blend.count[y_n]
    others_n = (count_n - 1).clamp_min(0)
    leaning_nP = blend.mu[y_n] * (count_n + prior_weight)[:, None] - x_nP
    mean_nP = leaning_nP / (others_n + prior_weight).clamp_min(LITTLE)[:, None]
    apart_nCP = x_nP[:, None] - blend.mu
    apart_nCP[torch.arange(len(y_n)), y_n] = x_nP - mean_nP
    rest_nP = x_nP - blend.mean[y_n]
    factor_n = count_n / others_n.clamp_min(LITTLE) / (blend.degrees * blend.variance)
    turned_nP = rest_nP @ blend.inverse
    length_n = (turned_nP * rest_nP).sum(1)
    plain_nC = torch.einsum("ncp,pq,ncq->nc", apart_nCP, blend.inverse, apart_nCP)
    along_nC = torch.einsum("ncp,np->nc", apart_nCP, turned_nP)
    moved_n = factor_n / (1 - factor_n * length_n).clamp_min(LITTLE)
    return (plain_nC + moved_n[:, None] * along_nC.square()) / blend.variance


def basis(moment_DD: Tensor, width: int) -> Tensor:
    """[D, P]: the directions in which features differ most, from their covariance."""
    vectors_DD: Tensor = torch.linalg.eigh(moment_DD).eigenvectors
    return vectors_DD[:, -width:].flip(1).contiguous()


def _size(matrix: Tensor) -> Tensor:
    """The mean variance of each matrix [.., P, P]."""
    return matrix.diagonal(dim1=-2, dim2=-1).mean(-1)


def _squares(rows_NP: Tensor) -> Tensor:
    """[N, N]: squared distances of rows, by one product, the same both ways: some processors round
    a product's halves differently.
    """
    lengths_N, dots_NN = rows_NP.square().sum(1), rows_NP @ rows_NP.T
    return (lengths_N[:, None] + lengths_N - (dots_NN + dots_NN.T)).clamp_min(0)
