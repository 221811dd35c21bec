"""What answers: a model with its tensors, a client's or the server's.

One class says all that is asked of an answer: its logits, each expert's share in it, what is worth
logging of it, and how it is written down without this package. This room does not know how its
tensors were learned.

Shapes: B inputs, C classes, E experts, K routed experts, M main experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .declared import Facts
from .learn import Local
from .model import MixtureModel, Model, Portable
from .tensors import Tensors, apart, under

NEVER = 1e-6  # a weight below it is none


@dataclass(frozen=True)
class Predictor:
    """A plain model. Methods subclass it where more speaks than one model."""

    model: Model
    local: Local

    def logits(self, x: Tensor) -> Tensor:
        """[B, ...] inputs to [B, C] logits."""
        return self.model.logits(self.local.trained, x)

    def step(self, x: Tensor) -> tuple[Tensor, Tensors]:
        """Logits in training, and the next values of the model's buffers."""
        if self.model.buffers:
            return self.model.step(self.local.trained, x)
        return self.logits(x), {}

    def shares(self, x: Tensor) -> Tensor | None:
        """[B, C, E]: each expert's share in each class's logit; None if no experts are mixed."""
        return None

    def metrics(self, x: Tensor, y: Tensor) -> Facts:
        """What is worth logging of the answers to inputs x with labels y."""
        return {}

    def portable(self) -> Portable:
        """The same as `logits`, without this package; ValueError if that cannot be."""
        return self.model.portable(self.local.trained)


@dataclass(frozen=True)
class MixturePredictor(Predictor):
    """A mixture whose gate weighs all experts."""

    model: MixtureModel

    def weights(self, x: Tensor) -> Tensor:
        """[B, K]: what each routed expert weighs."""
        return self.model.weigh(self.local.trained, x)

    def shares(self, x: Tensor) -> Tensor:
        """[B, C, M + K], main experts first; the same for every class."""
        alpha = self.local.trained.get("alpha", torch.tensor(1.0)).clamp(0, 1)
        mains = self.model.mains
        mains_BM = ((1 - alpha) / max(mains, 1)).expand(len(x), mains)
        shares_BE = torch.cat([mains_BM, alpha * self.weights(x)], dim=1)
        return shares_BE[:, None].expand(-1, len(self.model.classes), -1)


@dataclass(frozen=True)
class Dissected(MixturePredictor):
    """The same at a server, whose log says how its parts do."""

    def metrics(self, x: Tensor, y: Tensor) -> Facts:
        """The mixture taken apart."""
        return dissected(self.model, self.local.trained, x, y, self.model.weigh, self.model.logits)


def plain(model: Model, local: Local) -> Predictor:
    """The model with these tensors; a whole mixture with its experts' shares."""
    if isinstance(model, MixtureModel) and under(local.trained, "gate"):
        return MixturePredictor(model, local)
    return Predictor(model, local)


def dissected(
    mixture: MixtureModel,
    tensors: Tensors,
    x: Tensor,
    y: Tensor,
    weigh: Callable[[Tensors, Tensor], Tensor],
    predict: Callable[[Tensors, Tensor], Tensor],
) -> Facts:
    """How many of inputs x with labels y a mixture gets right without its parts, and how its
    experts are used.

    `weigh` says what its gate gives to each routed expert; `predict` answers with whatever experts
    it is meant to.
    """
    weights_BK = weigh(tensors, x)
    mains_MBC, routed_KBC = (
        mixture.probabilities(tensors, prefix, x) for prefix in ("main", "expert")
    )
    alike_BK = torch.full_like(weights_BK, 1 / mixture.experts)

    def correct(answer_BC: Tensor) -> int:
        return int((answer_BC.argmax(-1) == y).sum())

    facts: Facts = {
        "dense_correct": correct(mixture.mix(tensors, mains_MBC, routed_KBC, weights_BK)),
        "uniform_correct": correct(mixture.mix(tensors, mains_MBC, routed_KBC, alike_BK)),
        "routed_correct": correct(predict(tensors | {"alpha": torch.tensor(1.0)}, x)),
        "experts_correct": [float(correct(answer_BC)) for answer_BC in routed_KBC],
        "use": _use(weights_BK, y, len(mixture.classes)).flatten().tolist(),
        "entropy": float(entropy(weights_BK)),
        "apart": apart(_weights(mixture, tensors)),
    }
    if mixture.mains:
        facts["main_correct"] = correct(mains_MBC.mean(0))
        facts["alpha"] = float(tensors["alpha"].clamp(0, 1))
    return facts


def _use(weights_BK: Tensor, y: Tensor, classes: int) -> Tensor:
    """[K, C]: of how many inputs of each class an expert weighs most."""
    use_KC = torch.zeros(weights_BK.shape[1], classes)
    return use_KC.index_put_((weights_BK.argmax(-1), y), torch.ones(len(y)), accumulate=True)


def _weights(mixture: MixtureModel, tensors: Tensors) -> list[Tensors]:
    """Each routed expert's weights, without its buffers."""
    experts = [under(tensors, f"expert.{k}") for k in range(mixture.experts)]
    buffers = mixture.expert.buffers
    return [{name: one[name] for name in one if name not in buffers} for one in experts]


def entropy(weights_BK: Tensor) -> Tensor:
    """Mean over inputs, in nats; a weight that is exactly 0 has no infinite gradient."""
    return -(weights_BK * weights_BK.clamp_min(NEVER).log()).sum(-1).mean()
