"""Gaussian experts that bear noise: a client's own expert, whose class means lean on everybody's.

What leaves a client are sums over its examples: of each class how many there are, and their
features. So masks can hide a client's sums in everybody's, and one example moves them by a bound
that noise is measured by. All else that a client knows stays with it: its metric, and where its own
images lie, which takes the place of everybody's middle. Nothing is trained, and one round is all.

Shapes: C classes, D feature width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..declared import Control, Declared
from ..learn import Examples, Local
from ..method import Finished, Given, Method, Reads, Sent, Upload
from ..model import Model
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under
from . import discriminant
from .discriminant import Prior
from .head import Discriminant, head, prior_of
from .pool import expert_of, width_of, zero_shot

COUNTED = 0.3  # of a count beside a feature in what is said: noise on sums costs more
# how far one example of length 1 moves its class's count and sum, all as one vector
MOVES = math.hypot(1.0, COUNTED)
FEWEST = 1.0  # examples that a class has at least, as noise takes some away


@dataclass(frozen=True)
class LeaningExperts(Method):
    """A client's own Gaussian expert, which leans on sums over all clients."""

    leans: float = option(
        4.0, says="k0, examples that everybody's class mean is worth beside a client's own", ge=0
    )
    ridge: float = option(1.0, says="lambda of a client's own metric, in mean variances", gt=0)
    kappa: float = option(0.1, says="inverse temperature of squared distances", gt=0)

    def declares(self) -> Declared:
        alone = Control(
            "own expert alone",
            {"method.name": ("gaussian-experts",), "method.experts": (0,)},
            alike=("data.", "model."),
        )
        return Declared(controls=(alone,))

    def fits(self, model: Model, reserve: int) -> None:
        width_of(model)

    def reads(self) -> Reads:
        return "sums"

    def sensitivity(self) -> float:
        return MOVES

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset({"count", "sum"})

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        C = len(model.classes)
        return {"count": torch.zeros(C), "sum": torch.zeros(C, width_of(model))}

    # ---- server

    def open(self, given: Given) -> Tensors:
        """Nobody has said anything: the classes' texts, which is zero-shot."""
        return named("global", zero_shot(given.model, {}))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Everybody's class means; a class that noise leaves without examples has their middle."""
        sizes = [upload.examples for upload in uploads]
        sums = given.average([upload.tensors for upload in uploads], sizes)
        count_C = sum(sizes) * sums["count"].double() / COUNTED
        sum_CD = sum(sizes) * sums["sum"].double()
        middle_D = sum_CD.sum(0) / count_C.sum().clamp_min(FEWEST)
        known_C = count_C >= FEWEST
        mean_CD = torch.where(
            known_C[:, None], sum_CD / count_C.clamp_min(FEWEST)[:, None], middle_D
        )
        return server | {"global.mean": mean_CD.float()[None]}

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        means = {"blend.mean": server["global.mean"][0]}
        return {upload.client: Sent(means) for upload in uploads}

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """Nothing to train."""
        return Local({}, under(sent, "global"))

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """Of each class its count and its sum, by the number of all examples."""
        share_nC = torch.nn.functional.one_hot(own.y, len(model.classes)).double() / len(own)
        count_C, sum_CD = COUNTED * share_nC.sum(0), share_nC.T @ own.x[:, 0].double()
        return {"count": count_C.float(), "sum": sum_CD.float()}

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays=local.kept(), leaves={})

    def absorb(self, model: Model, sent: Tensors, kept: Tensors | None, own: Examples) -> Tensors:
        """The client's expert, whose class means lean on everybody's, moved to where its own images
        lie.
        """
        expert = expert_of(model, {}, own)
        blend = discriminant.piled(
            expert, Prior(self.leans, _about(sent["blend.mean"], expert.count[0]), self.ridge)
        )
        return Local({}, head(blend, self.kappa) | {"classes": prior_of(expert.count[0])}).kept()

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """The client's own head; everybody's means if it has none."""
        return Local.of(own) if own else Local({}, under(sent, "global"))

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Discriminant(model, local)


def _about(mean_CD: Tensor, count_C: Tensor) -> Tensor:
    """Everybody's class means about their middle, as a client meets classes."""
    share_C = count_C / count_C.sum()
    anchor_CD: Tensor = mean_CD.double() - share_C @ mean_CD.double()
    return anchor_CD
