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
CALMER = (1.0, 0.5, 0.25, 0.125, 0.0625)  # shares of kappa that a client may take instead
ADDED = (1.0, 0.3, 0.1, 0.03, 0.01)  # examples more of each class; the first of equals
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
    """[C]: log of the classes' shares, each with `added(count_C)` examples more."""
    shares_C = count_C + added(count_C)
    return (shares_C / shares_C.sum()).log().float()


def added(count_C: Tensor) -> float:
    """How many examples every class gets for those that a client has not seen yet: the number under
    which its own labels are likeliest, each left out in turn; at most one.

    Who has all classes gets one; who will never meet most of them, far less.
    """
    held_C = count_C[count_C > 0]

    def likelihood(number: float) -> float:
        others = count_C.sum() - 1 + number * len(count_C)
        return float((held_C * ((held_C - 1 + number) / others).log()).sum())

    return max(ADDED, key=likelihood)


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
class Judges:
    """A client's own examples, each left out in turn, of which another of its class is there to
    speak for it.
    """

    x: Tensor  # [n, P]
    y: Tensor  # [n]
    count: Tensor  # [C]: of all its examples

    @classmethod
    def of(cls, x_nP: Tensor, own: Examples, count_C: Tensor) -> "Judges":
        others = count_C[own.y] >= 2
        return cls(x_nP[others], own.y[others], count_C)

    @property
    def enough(self) -> bool:
        """Whether they can judge: a few, of half of the client's classes."""
        classes = int((self.count >= 2).sum())
        return len(self.y) >= FEW and 2 * classes >= int((self.count > 0).sum())

    def losses(self, squares_nC: Tensor, kappa: float) -> Tensor:
        """[n]: log losses at squared distances from all but themselves."""
        others_nC = self.count.repeat(len(self.y), 1)
        others_nC[torch.arange(len(self.y)), self.y] -= 1
        logits_nC = (others_nC + added(self.count)).log() - kappa / 2 * squares_nC
        return nll_loss(logits_nC.log_softmax(-1), self.y, reduction="none")

    def asked(self, blend: Blend, prior: float, kappa: float) -> Tensor:
        """[n]: log losses under a blend."""
        return self.losses(left_out(blend, prior, self.x, self.y), kappa)

    def calmed(self, blend: Blend, prior: float, kappa: float) -> float:
        """The kappa, as given or smaller, under which their mean loss is least.

        A client whose classes nobody else has gets its own prior heard above the many others.
        """
        squares_nC = left_out(blend, prior, self.x, self.y)
        shares = [share * kappa for share in CALMER]
        return min(shares, key=lambda one: float(self.losses(squares_nC, one).mean()))


def better(one_n: Tensor, other_n: Tensor) -> bool:
    """Whether one's losses are lower than the other's on the same examples, beyond doubt."""
    ahead_n = other_n - one_n
    error = ahead_n.std() / len(ahead_n) ** 0.5
    return bool(ahead_n.mean() > ERRORS * error)
