"""FedAvg of a vector for each class on frozen features: the linear head that is all a federation
needs whose clients agree; and the same on features that everybody's metric has whitened.

The second is the hardest control of Gaussian experts: without it one would credit a mixture with
what its metric does. The metric takes a round of its own, in which clients send sums of their
features, and nothing else is trained. This room knows neither experts nor how a client trains.

Shapes: C classes, D feature width, P the width of whitened features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..learn import Examples, Local
from ..method import Finished, Given, Method, Reads, Upload
from ..model import Model, Portable
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under
from . import discriminant
from .head import projected
from .pool import basis_from, basis_of, pile, scale_of, sums_of, sums_shaped, texts_of, width_of

RIDGE = 0.1  # of the metric, in mean variances
WIDTH = 128  # wider features are whitened in as many main directions


@dataclass(frozen=True)
class ClassVectors(Method):
    """FedAvg of a linear head on frozen features, which starts at the classes' texts."""

    whiten: bool = option(
        False, says="features are whitened by everybody's metric, which takes a round more"
    )
    personal: bool = option(
        False,
        says="a client predicts with what its own last training made of the global vectors: local"
        " fine-tuning",
    )

    def fits(self, model: Model, reserve: int) -> None:
        width_of(model)

    def reads(self) -> Reads:
        return "sums"

    def uploads(self, model: Model) -> frozenset[str]:
        vectors = {"weight", "bias"}
        return frozenset(vectors | {"frequency", "sum", "moment"} if self.whiten else vectors)

    def open(self, given: Given) -> Tensors:
        """The classes' texts, which is zero-shot; 0 where a model reads none."""
        weight_CD = texts_of(given.model)
        return named("global", {"weight": weight_CD, "bias": torch.zeros(len(weight_CD))})

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        shared = under(server, "global")
        if self._measures(shared):
            return sums_shaped(len(model.classes), width_of(model))
        return {name: shared[name] for name in ("weight", "bias")}

    def _measures(self, shared: Tensors) -> bool:
        """Whether this is the round of the metric."""
        return self.whiten and "basis" not in shared

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        averaged = given.averaged(uploads)
        if "moment" in averaged:
            return named("global", _whitened(given.model, under(server, "global"), averaged))
        return server | named("global", averaged)

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """The global vectors; in the round of the metric there is nothing to train."""
        shared = under(sent, "global")
        if self._measures(shared):
            return Local({}, shared)
        return self.restore(model, sent, None)

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        if local.trained:
            return {}
        return sums_of(own.x[:, 0], own.y, len(model.classes), len(own))

    def finish(self, model: Model, local: Local) -> Finished:
        stays = named("trained", local.trained) if self.personal else {}
        return Finished(stays, leaves=local.trained)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        shared = under(own or {}, "trained") or under(sent, "global")
        return Local({name: shared[name] for name in ("weight", "bias")}, basis_of(sent))

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Linear(model, local)


def _whitened(model: Model, start: Tensors, sums: Tensors) -> Tensors:
    """The basis in which everybody's metric is the identity, and the vectors that say there what
    they said before.
    """
    main = basis_from(sums, min(WIDTH, width_of(model)))
    metric_PP = discriminant.total(pile(sums, 1, main))
    size = metric_PP.diagonal().mean().clamp_min(discriminant.LITTLE)
    values_P, vectors_PP = torch.linalg.eigh(metric_PP / size)
    roots_P = (values_P.clamp_min(0) + RIDGE).sqrt()
    turn_DP = main["basis"].double() @ vectors_PP
    weight_CD = start["weight"].double()
    parts = {
        "weight": weight_CD @ turn_DP * roots_P,
        "bias": start["bias"] + scale_of(model) * weight_CD @ main["middle"].double(),
        "basis": turn_DP / roots_P,
        "middle": main["middle"],
    }
    return {name: value.float() for name, value in parts.items()}


@dataclass(frozen=True)
class Linear(Predictor):
    """scale * (x @ weight^T) + bias, of features behind the basis where there is one."""

    def logits(self, x: Tensor) -> Tensor:
        t = self.local.trained
        along = projected(x, self.local.fixed) @ t["weight"].mT
        return scale_of(self.model) * along + t["bias"]

    def portable(self) -> Portable:
        formula = (
            "A linear map of `x`, the image's normalised feature, behind the basis where there is"
            " one."
        )
        tensors = self.local.trained | self.local.fixed
        return Portable(tensors, {"scale": scale_of(self.model)}, formula, _CODE)


_CODE = """def logits(x):
    if "basis" in t:
        x = (x - t["middle"]) @ t["basis"]
    return n["scale"] * x @ t["weight"].T + t["bias"]"""
