"""What a model is: a pure function of named tensors, with whatever is frozen inside and invisible.

Subclass `Model` and say its start, its classes and its logits; all else has a default. This room
knows neither methods nor clients, nor where a model is trained.

Shapes: B inputs, C classes, K routed experts, M main experts, D feature width, l context tokens, W
word width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .learn import Examples, Fitting, Learning, Local, fit
from .tensors import CPU, Tensors, sum_in_order


@dataclass(frozen=True)
class Portable:
    """What predicts without this package."""

    tensors: Tensors
    numbers: dict[str, Any]  # plain values, as JSON has them
    formula: str  # the logits in words
    code: str  # lines of plain torch that define logits(x) by the tensors `t` and the numbers `n`


class Model(ABC):
    """A pure function of named tensors.

    Tensors that are sent, saved or kept lie on the CPU. A model that computes elsewhere says where
    as its `device`, takes tensors from anywhere, and answers where its inputs lie; training moves
    them to the device once.
    """

    initial: Tensors  # what is trained, at its start: the same for every client and the server
    classes: tuple[str, ...]  # names, in the order of the logits
    device: torch.device = CPU  # where it computes
    width: int = 0  # D of the frozen features that it reads; 0: it reads something else
    # whether its classes are texts, so that it can tell apart those that nobody trained on
    named: bool = False
    # whether tensors of several clients may be stacked and computed at once, under torch's vmap
    together: bool = True
    held: int = 0  # about how many numbers a step keeps for its gradients, if these are many
    # names in `initial` of tensors without a gradient, which `step` moves: batch norm's buffers
    buffers: frozenset[str] = frozenset()

    @abstractmethod
    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, ...] inputs to [B, C] logits."""

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """Logits in training, and the next values of the `buffers`."""
        return self.logits(tensors, x), {}

    def starting(self, initial: Tensors) -> "Model":
        """The same model with another start; ValueError if it has none but its own."""
        raise ValueError(
            f"start.epochs: {type(self).__name__} has a start of its own; use start.epochs = 0"
        )

    def portable(self, tensors: Tensors) -> Portable:
        """The model with these tensors, without this package; ValueError if that cannot be."""
        raise ValueError(
            f"{type(self).__name__} cannot be written down in a few lines of torch; use a model of"
            " this package, or write a function `portable` of its own"
        )


class PromptModel(Model):
    """A model whose classes are texts behind a learned context, its tensor "context" [l, W]."""

    named = True
    # whether it reads [B, 1 + P, D]: behind an image's feature those of its patches
    patches: bool = False
    scale: float  # CLIP's inverse temperature, which multiplies every similarity

    @abstractmethod
    def texts(self, context: Tensor) -> Tensor:
        """[..., l, W] context vectors to [..., C, D] normalised text features."""

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: scaled cosines between normalised image features [B, D] and the texts of
        tensors["context"].
        """
        image_BD = x[..., 0, :] if self.patches else x
        return self.scale * image_BD @ self.texts(tensors["context"]).mT

    def portable(self, tensors: Tensors) -> Portable:
        """The text features: neither the prompt nor the text encoder is needed any more."""
        return self.portable_texts(self.texts(tensors["context"]))

    def portable_texts(self, texts: Tensor) -> Portable:
        """The same of text features [C, D], wherever they come from."""
        code = 'def logits(x):\n    return n["scale"] * x @ t["texts"].T'
        formula = (
            "logit(c) = scale * cosine of the image's normalised feature `x` and the text feature"
            " of class c."
        )
        return Portable({"texts": texts}, {"scale": self.scale}, formula, code)


class MixtureModel(Model):
    """Main experts that are always on, routed experts, and a gate; every expert is a client's
    model.

    Its tensors are `main.i.*`, `expert.k.*`, `gate.*` and, with main experts, `alpha`; its logits,
    log-probabilities.
    """

    expert: Model  # what every expert is, and every client trains
    gate: Model  # [B, ...] inputs to [B, K] logits of the routed experts
    experts: int  # K
    mains: int  # M

    @abstractmethod
    def probabilities(self, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
        """[E, B, C]: probabilities from each expert named `prefix.*`, "main" or "expert"."""

    @abstractmethod
    def weigh(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the gate's softmax."""

    @abstractmethod
    def routed(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the weights of the routed experts that `predict` computes; 0 for all others."""

    @abstractmethod
    def mix(
        self, tensors: Tensors, mains_MBC: Tensor, routed_KBC: Tensor, weights_BK: Tensor
    ) -> Tensor:
        """[B, C]: log y(x) from the experts' answers and the routed experts' weights."""

    @abstractmethod
    def predict(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: log y(x) of the few experts that the gate chooses; no other is computed."""

    @abstractmethod
    def having(self, expert: Model, gate: Model) -> "MixtureModel":
        """As many experts and as few that answer, of another kind and behind another gate."""

    @abstractmethod
    def portable(self, tensors: Tensors, sparse: bool = False) -> Portable:
        """The same as `logits` or, if sparse, as `predict`, without this package."""


def as_mixture(model: Model) -> MixtureModel:
    """The same model; ValueError, with what to type, if it is no mixture."""
    if not isinstance(model, MixtureModel):
        raise ValueError("this method needs a mixture; use a section [mixture] with experts = 4")
    return model


def as_prompted(model: Model, patches: bool = False) -> PromptModel:
    """The same model; ValueError, with what to type, if it has no prompt, or reads patches where
    the method does not, or the other way round.
    """
    if not isinstance(model, PromptModel):
        raise ValueError(
            f"this method needs a model with prompts, not {type(model).__name__}; set model.name ="
            ' "prompted-clip" or "prompted-dual"'
        )
    if model.patches != patches:
        what = "the features of an image's patches" if patches else "an image's feature alone"
        type_this = 'model.name = "prompted-clip" and ' if patches else ""
        raise ValueError(
            f"this method reads {what}; set {type_this}model.patches = {str(patches).lower()}"
        )
    return model


def anchored(model: Model, start: Tensors) -> Tensors:
    """What a proximal term holds a client near to: where it starts, but for the buffers."""
    return {name: value for name, value in start.items() if name not in model.buffers}


def proximal(mu: float, local: Local) -> Tensor | float:
    """mu / 2 times the squared distance to what is held (FedProx, arXiv:1812.06127, eq. 2)."""
    apart = [local.trained[name] - local.fixed[name] for name in sorted(local.fixed)]
    if not apart:
        return 0.0
    return mu / 2 * sum_in_order(one.square().sum() for one in apart)


def taught(
    model: Model,
    tensors: Tensors,
    examples: Examples,
    learning: Learning,
    generator: torch.Generator,
) -> Tensors:
    """A model's tensors after training on one set of examples: what the server does with its
    reserve set.
    """
    task = Fitting(
        lambda local, x: model.step(local.trained, x),
        learning,
        buffers=model.buffers,
        device=model.device,
    )
    (trained,), _ = fit(task, [Local(tensors)], [examples], [generator])
    return trained
