"""What a Gaussian expert's client predicts with: components of each class in one metric, and which
of them speaks for an image.

This room knows how a head answers, and how a client judges its own against another; it does not
know where experts come from.

Shapes: B inputs, C classes, D feature width, P the width that experts have, J components of a
class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from ..declared import Facts
from ..learn import Examples
from ..model import Portable
from ..predictor import Predictor
from ..tensors import Tensors
from .discriminant import Blend, left_out

FEW = 8  # examples that can judge whether one head does better than another
ERRORS = 2.0  # standard errors by which it must
PARTS = ("mean", "weight", "inverse", "variance", "kappa", "classes", "basis", "middle")


def projected(x: Tensor, basis: Tensors) -> Tensor:
    """Features [.., D] as [.., P]; as they are without a basis."""
    if "basis" not in basis:
        return x
    return (x - basis["middle"]) @ basis["basis"]


def head(blend: Blend, kappa: float) -> Tensors:
    """One component a class, at the blend's mean; all classes alike."""
    C = len(blend.mu)
    return {
        "mean": blend.mu[None].float(),
        "weight": torch.ones(1, C),
        "inverse": blend.inverse.float(),
        "variance": blend.variance.float(),
        "kappa": torch.tensor(kappa),
        "classes": torch.zeros(C),
    }


def prior_of(count_C: Tensor) -> Tensor:
    """[C]: log of the classes' shares, each with one example more."""
    return ((count_C + 1) / (count_C + 1).sum()).log().float()


@dataclass(frozen=True)
class Discriminant(Predictor):
    """logit(c) = log sum_j pi_jc exp(-kappa / 2 |x - m_jc|^2) + log prior(c), in a metric that all
    classes share.
    """

    def logits(self, x: Tensor) -> Tensor:
        return self._joint(x).logsumexp(0) + self.local.fixed["classes"]

    def shares(self, x: Tensor) -> Tensor | None:
        """Responsibilities: the client's own expert first, the blend's mean last."""
        if len(self.local.fixed["weight"]) == 1:
            return None
        return self._joint(x).softmax(0).permute(1, 2, 0)

    def metrics(self, x: Tensor, y: Tensor) -> Facts:
        """Whether a client keeps to its own expert."""
        if "alone" not in self.local.fixed:
            return {}
        return {"alone": float(self.local.fixed["alone"])}

    def _joint(self, x_BD: Tensor) -> Tensor:
        """[J, B, C]: log of each component's share and likelihood, but for what all have alike."""
        t = self.local.fixed
        x_BP = projected(x_BD, t)
        turned_BP = x_BP @ t["inverse"]
        lengths_B = (turned_BP * x_BP).sum(-1)
        own_JC = ((t["mean"] @ t["inverse"]) * t["mean"]).sum(-1)
        across_JBC = torch.einsum("bp,jcp->jbc", turned_BP, t["mean"])
        squares_JBC = lengths_B[:, None] - 2 * across_JBC + own_JC[:, None]
        return t["weight"].log()[:, None] - t["kappa"] / (2 * t["variance"]) * squares_JBC

    def portable(self) -> Portable:
        tensors = {name: self.local.fixed[name] for name in PARTS if name in self.local.fixed}
        formula = (
            "logit(c) = log sum over components j of weight * exp(-kappa / 2 * squared distance of"
            " the image's feature `x` to mean[j, c]) + classes[c]; distances are x' inverse x /"
            " variance, of the feature behind the basis where there is one."
        )
        return Portable(tensors, {}, formula, _CODE)


_CODE = """def logits(x):
    if "basis" in t:
        x = (x - t["middle"]) @ t["basis"]
    turned = x @ t["inverse"]
    own = ((t["mean"] @ t["inverse"]) * t["mean"]).sum(-1)
    squares = (turned * x).sum(-1)[:, None] - 2 * torch.einsum("bp,jcp->jbc", turned, t["mean"]) + own[:, None]
    joint = t["weight"].log()[:, None] - t["kappa"] / (2 * t["variance"]) * squares
    return joint.logsumexp(0) + t["classes"]"""  # noqa: E501


@dataclass(frozen=True)
class Judged:
    """A blend, what it leans on, and its temperature: enough to ask it of examples left out."""

    blend: Blend
    prior: float
    kappa: float

    def losses(self, x_nP: Tensor, y_n: Tensor, count_C: Tensor) -> Tensor:
        """[n]: log losses of a client's own examples, each left out of all that it changes."""
        squares_nC = left_out(self.blend, self.prior, x_nP, y_n)
        others_nC = count_C.repeat(len(y_n), 1)
        others_nC[torch.arange(len(y_n)), y_n] -= 1
        logits_nC = (others_nC + 1).log() - self.kappa / 2 * squares_nC
        return nll_loss(logits_nC.log_softmax(-1), y_n, reduction="none")


def better(one: Judged, other: Judged, x_nP: Tensor, own: Examples, count_C: Tensor) -> bool:
    """Whether one does better than the other on a client's own examples, beyond doubt.

    Examples whose class has no other cannot judge; a few classes and examples must be able to.
    """
    judges = count_C[own.y] >= 2
    classes = int((count_C >= 2).sum())
    if int(judges.sum()) < FEW or classes < max(3, len(count_C) / 2):
        return False
    x_nP, y_n = x_nP[judges], own.y[judges]
    ahead_n = other.losses(x_nP, y_n, count_C) - one.losses(x_nP, y_n, count_C)
    error = ahead_n.std() / len(ahead_n) ** 0.5
    return bool(ahead_n.mean() > ERRORS * error)
