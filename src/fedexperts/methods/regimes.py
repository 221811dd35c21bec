"""Regimes: groups of clients that see or name classes alike, found in the pool; and how a
federation chooses whether it has any.

Each candidate is a number of regimes and a strength of the gate. A client says how well the
others' experts, weighed so, name its own images, which they have not seen; the plainest candidate
stands unless another is better beyond doubt. Equations of docs/methods.md, "Gaussian experts".

Shapes: N clients, C classes, P feature width, K candidates, S starts; R regimes or, of heads,
clients that are asked.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..tensors import Tensors, rng
from .discriminant import Experts, Prior, blended, grand_mean, heard, inverse_metric, total

# (R, eta), the plainest first
CANDIDATES = (
    (1, 1.0),
    (1, 0.0),
    (1, 3.0),
    (2, 0.0),
    (2, 1.0),
    (3, 0.0),
    (3, 1.0),
    (4, 0.0),
    (4, 1.0),
)
STARTS, STEPS = 48, 25
COLD, WARM = 0.02, 0.2  # the likelihood's exponent, from the first step to half of them
RIDGE = 1.0  # of the metric in which regimes are told apart
SHRINK = 3.0  # examples by which a regime's class means lean on everybody's
NONE = -torch.ones(len(CANDIDATES))  # of a client that was not asked yet
LOUDER = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # times kappa
ERRORS = 2.0  # standard errors by which another candidate must be better


def together(experts: Experts, regimes: int) -> Tensor:
    """[N, N]: how likely another is of a client's regime, in units of how likely it is itself: EM
    over clients, the likeliest of many random starts.
    """
    N = len(experts)
    if regimes == 1:
        return torch.ones(N, N, dtype=torch.float64)
    root_PP = torch.linalg.cholesky(inverse_metric(total(experts), RIDGE))
    mean_NCP, count_NC = experts.mean @ root_PP, experts.count
    grand_CP = grand_mean(experts) @ root_PP
    draw = rng(0, "regimes")
    member_SNR = (2 * torch.randn(STARTS, N, regimes, generator=draw)).double().softmax(-1)
    for step in range(STEPS):
        exponent = COLD + (WARM - COLD) * min(1.0, 2 * step / STEPS)
        fit_SNR = exponent * _likelihood(member_SNR, mean_NCP, count_NC, grand_CP)
        fit_SNR = fit_SNR + member_SNR.mean(1, keepdim=True).clamp_min(1e-12).log()
        member_SNR = fit_SNR.softmax(-1)
    best = fit_SNR.logsumexp(-1).sum(-1).argmax()
    same_NN = member_SNR[best] @ member_SNR[best].T
    return (same_NN / same_NN.diagonal()[:, None]).clamp_max(1)


def _likelihood(member_SNR: Tensor, mean_NCP: Tensor, count_NC: Tensor, grand_CP: Tensor) -> Tensor:
    """[S, N, R]: log likelihood of each client's class means in each regime."""
    weight_SNRC = member_SNR[..., None] * count_NC[:, None]
    sum_SRCP = torch.einsum("snrc,ncp->srcp", weight_SNRC, mean_NCP) + SHRINK * grand_CP
    mu_SRCP = sum_SRCP / (weight_SNRC.sum(1) + SHRINK)[..., None]
    own_N = (count_NC * mean_NCP.square().sum(-1)).sum(-1)
    theirs_SNR = torch.einsum("nc,src->snr", count_NC, mu_SRCP.square().sum(-1))
    across_SNR = torch.einsum("ncp,srcp->snr", count_NC[..., None] * mean_NCP, mu_SRCP)
    return -(own_N[:, None] - 2 * across_SNR + theirs_SNR) / 2


def others_heads(
    experts: Experts,
    u_RN: Tensor,
    rho: float,
    prior: Prior,
    own_R: Tensor,
    alike: Mapping[int, Tensor],
) -> list[Tensors]:
    """Clients' linear heads of the others' experts for each candidate: `others` [9, C, P] and
    `offset` [9, C]. `alike` has what `together` says, by R.
    """
    weights, offsets = [], []
    rows_R = torch.arange(len(own_R))
    for count, eta in CANDIDATES:
        weight_RNC, scatter_RN = heard(experts, u_RN, alike[count][own_R], eta, rho)
        weight_RNC[rows_R, own_R] = 0
        scatter_RN[rows_R, own_R] = 0
        blends = blended(experts, weight_RNC, scatter_RN, prior)
        weight_RCP = torch.stack([one.mu @ one.inverse / one.variance for one in blends])
        mu_RCP = torch.stack([one.mu for one in blends])
        weights.append(weight_RCP.float())
        offsets.append(-(weight_RCP * mu_RCP).sum(2).float() / 2)
    pairs = zip(torch.stack(weights, 1), torch.stack(offsets, 1), strict=True)
    return [{"others": others, "offset": offset} for others, offset in pairs]


def scores(heads: Tensors, kappa: float, x_nP: Tensor, y_n: Tensor) -> Tensor:
    """[9]: the mean of 1 - p(y) over a client's own examples, under each candidate at the loudness
    that suits it: who speaks louder names no more classes rightly.
    """
    logits_KnC = kappa * (x_nP @ heads["others"].mT + heads["offset"][:, None])
    losses = []
    for louder in LOUDER:
        likely_KnC = (louder * logits_KnC).softmax(-1)
        losses.append(1 - likely_KnC[:, torch.arange(len(y_n)), y_n].mean(1))
    return torch.stack(losses).amin(0)


def choice(pool: Tensors) -> Tensor:
    """The number of the candidate that the federation takes, from the scores in its pool: bounded
    ones, so that no client decides alone.
    """
    every = [pool[name] for name in sorted(pool) if name.endswith(".scores")]
    told = [score_K.clamp(0, 1) for score_K in every if score_K.min() >= 0]
    if len(told) < 2:
        return torch.tensor(0)
    score_NK = torch.stack(told).double()
    ahead_NK = score_NK[:, :1] - score_NK
    error_K = ahead_NK.std(0) / math.sqrt(len(told))
    better_K = ahead_NK.mean(0) > ERRORS * error_K
    if not better_K.any():
        return torch.tensor(0)
    return torch.where(better_K, score_NK.mean(0), torch.inf).argmin()
