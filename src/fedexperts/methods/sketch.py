"""What a client says of its inputs, without a label: the first and second moments of a few numbers
an input. Who has like sketches makes a group, and the sums of the groups' moments give, in closed
form, the gate that tells them apart.

This room knows moments; it does not know who trains what, nor when a sketch is sent.

Shapes: B inputs, S channels of an image, P numbers an input, N clients, K groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Model
from ..tensors import Tensors, under
from .pool import symmetric, triangle, triangular

SHIFTS = ((0, 1), (0, 2), *((y, x) for y in (1, 2) for x in range(-2, 3)))
KINDS = 3 + len(SHIFTS)  # numbers a channel: mean, deviation, skew, and an image beside itself
FLAT = 1e-6  # a deviation below it is none
RIDGE = 1e-3  # on the diagonal of a covariance of standardised numbers
ROUNDING = 1e-4  # of a covariance's smallest eigenvalue, in its largest
NEVER = -1e6  # a logit of a group without a client
APART = 0.5  # silhouette from which groups are more than chance


def is_image(x: Tensor) -> bool:
    """Whether inputs [B, ...] are images [B, S, H, W]."""
    return x.ndim == 4 and x.is_floating_point()


def numbers(model: Model, start: Tensors, x: Tensor) -> Tensor:
    """[B, P]: of an image, how bright, wide, skewed and smooth it is; of another input, what the
    common start takes it for.
    """
    if is_image(x):
        return of_images(x)
    return model.logits(start, x).log_softmax(-1)


def of_images(x: Tensor) -> Tensor:
    """[B, 15 S]: mean, deviation and skew of each channel, and its correlations with itself a few
    pixels further.
    """
    mean = x.mean((2, 3), keepdim=True)
    centred = x - mean
    sd = centred.square().mean((2, 3), keepdim=True).sqrt().clamp_min(FLAT)
    unit = centred / sd
    rows = [mean[..., 0, 0], sd[..., 0, 0], unit.pow(3).mean((2, 3))]
    for down, right in SHIFTS:
        rows.append(_beside(unit, down, right))
    return torch.cat(rows, dim=1)


def _beside(unit: Tensor, down: int, right: int) -> Tensor:
    """[B, S]: the mean product of an image and itself, moved, where the two overlap."""
    height, width = unit.shape[2:]
    here = unit[..., : height - down, max(0, -right) : width - max(0, right)]
    there = unit[..., down:, max(0, right) : width - max(0, -right)]
    return (here * there).mean((2, 3))


# ---- one client's


def sketch(numbers_BP: Tensor) -> Tensors:
    """Mean and covariance, the latter as a triangle."""
    numbers_BP = numbers_BP.double()
    mean_P = numbers_BP.mean(0)
    apart_BP = numbers_BP - mean_P
    spread_PP = apart_BP.T @ apart_BP / len(apart_BP)
    return {"mean": mean_P.float(), "spread": triangle(spread_PP).float()}


def blank(width: int) -> Tensors:
    """A sketch's names and shapes."""
    return {"mean": torch.zeros(width), "spread": torch.zeros(triangular(width))}


def possible(one: Tensors) -> bool:
    """Whether there can be inputs with this sketch: no direction has a variance below 0."""
    values_P = torch.linalg.eigvalsh(symmetric(one["spread"], len(one["mean"])))
    return bool(values_P[0] >= -ROUNDING * values_P[-1])


# ---- everybody's


@dataclass(frozen=True)
class Moments:
    """N sets of inputs: how many there are, their means [N, P], their second moments [N, P, P]."""

    count: Tensor
    mean: Tensor
    moment: Tensor

    @property
    def spread(self) -> Tensor:
        """[N, P, P] covariances."""
        return self.moment - self.mean[:, :, None] * self.mean[:, None]

    def together(self, member_KN: Tensor) -> "Moments":
        """Of K groups, each with the sets that it names; zeros for a group without any."""
        weight_KN = member_KN.double() * self.count
        count_K = weight_KN.sum(1)
        share_KN = weight_KN / count_K.clamp_min(1)[:, None]
        moment_KPP = torch.einsum("kn,npq->kpq", share_KN, self.moment)
        return Moments(count_K, share_KN @ self.mean, moment_KPP)


def moments_of(server: Tensors) -> tuple[list[str], Moments]:
    """The clients that sent a sketch, sorted, and what they sent."""
    kept = under(server, "sketch")
    clients = sorted(name.removesuffix(".mean") for name in kept if name.endswith(".mean"))
    count_N = torch.stack([kept[f"{client}.examples"] for client in clients]).double()
    mean_NP = torch.stack([kept[f"{client}.mean"] for client in clients]).double()
    P = mean_NP.shape[1]
    spread_NPP = torch.stack([symmetric(kept[f"{client}.spread"], P) for client in clients])
    moment_NPP = spread_NPP + mean_NP[:, :, None] * mean_NP[:, None]
    return clients, Moments(count_N, mean_NP, moment_NPP)


def _scale(moments: Moments) -> tuple[Tensor, Tensor]:
    """[P], [P]: mean and deviation of all inputs together."""
    whole = moments.together(torch.ones(1, len(moments.count)))
    return whole.mean[0], whole.spread[0].diagonal().clamp_min(FLAT**2).sqrt()


def groups(moments: Moments, most: int, choose: bool, seed: int) -> list[int]:
    """A number for each client, from 0 by first member: k-means of the standardised means.

    Where the count is to be chosen, that with the clearest groups is; one, where none are clear.
    """
    middle_P, sd_P = _scale(moments)
    z_NP = (moments.mean - middle_P) / sd_P
    most = min(most, len(z_NP.unique(dim=0)))
    if choose:
        most = _clearest(z_NP, most, seed)
    return _numbered(_clusters(z_NP, most, seed))


def _clusters(z_NP: Tensor, count: int, seed: int) -> list[int]:
    from sklearn.cluster import KMeans  # takes a second to import

    labels: list[int] = KMeans(count, n_init=20, random_state=seed).fit(z_NP.numpy()).labels_
    return [int(label) for label in labels]


def _clearest(z_NP: Tensor, most: int, seed: int) -> int:
    from sklearn.metrics import silhouette_score

    best, chosen = APART, 1
    for count in range(2, min(most, len(z_NP) - 1) + 1):
        clear = silhouette_score(z_NP.numpy(), _clusters(z_NP, count, seed))
        if clear > best:
            best, chosen = clear, count
    return chosen


def _numbered(labels: Sequence[int]) -> list[int]:
    """The same groups, numbered as they are first met."""
    order = list(dict.fromkeys(labels))
    return [order.index(label) for label in labels]


def members(labels: Sequence[int], count: int) -> Tensor:
    """[K, N]: 1 where a client belongs to a group."""
    return torch.nn.functional.one_hot(torch.tensor(labels), count).T.double()


def gate(moments: Moments, member_KN: Tensor) -> Tensors:
    """A linear discriminant of the groups: as if all inputs lay in one place.

    logits(x) = ((numbers(x) - middle) / sd) W + b,  W = S^-1 mu^T,  b = log(N_k / N) - mu W / 2
    """
    middle_P, sd_P = _scale(moments)
    each = moments.together(member_KN)
    share_K = each.count / each.count.sum()
    inside_PP = torch.einsum("k,kpq->pq", share_K, each.spread) / (sd_P[:, None] * sd_P)
    inside_PP += RIDGE * torch.eye(len(sd_P), dtype=torch.float64)
    mu_KP = (each.mean - middle_P) / sd_P
    weight_PK = torch.linalg.solve(inside_PP, mu_KP.T)
    bias_K = share_K.log() - (mu_KP * weight_PK.T).sum(1) / 2
    empty_K = share_K == 0
    parts = {
        "middle": middle_P,
        "sd": sd_P,
        "weight": weight_PK.masked_fill(empty_K, 0),
        "bias": bias_K.masked_fill(empty_K, NEVER),
    }
    return {name: value.float() for name, value in parts.items()}


def shares(moments: Moments, gate: Tensors) -> Tensor:
    """[K, N]: how far a client belongs to each group: the gate at the mean of its inputs."""
    unit_NP = (moments.mean - gate["middle"]) / gate["sd"]
    return (unit_NP @ gate["weight"].double() + gate["bias"]).softmax(1).T


def flat_gate(width: int, count: int) -> Tensors:
    """The gate before there is a sketch: all groups alike."""
    return {
        "middle": torch.zeros(width),
        "sd": torch.ones(width),
        "weight": torch.zeros(width, count),
        "bias": torch.zeros(count),
    }


def nearest(moments: Moments, member_KN: Tensor, numbers_BP: Tensor) -> int:
    """The group whose mean is nearest to that of a newcomer's inputs."""
    _, sd_P = _scale(moments)
    each = moments.together(member_KN)
    apart_KP = (each.mean - numbers_BP.double().mean(0)) / sd_P
    far_K = apart_KP.square().sum(1).masked_fill(each.count == 0, torch.inf)
    return int(far_K.argmin())
