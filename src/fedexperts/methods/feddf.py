"""FedDF: the clients' average, taught by all clients' models together on the server's examples.

Lin et al.: "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020,
arXiv:2006.07242. The reserve set's labels are not used. This room does not know what a client's
model is.

Shapes: m clients, R reserve examples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..learn import Examples
from ..method import Given, Upload, needs_reserve
from ..model import Model, taught
from ..options import option
from ..tensors import Tensors, named, rng, under
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedDF(FedAvg):
    """Federated averaging, then ensemble distillation on the reserve set (arXiv:2006.07242,
    algorithm 1 and equation 3).

    The teacher is the softmax of the clients' mean logits. Passes over the reserve set are counted,
    where the paper stops early on a validation set.
    """

    epochs: int = option(5, says="passes over the reserve set", ge=1)
    distil_rate: float = option(0.001, says="learning rate of these passes", gt=0)

    def fits(self, model: Model, reserve: int) -> None:
        needs_reserve(reserve, "feddf")

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        averaged = under(super().merge(given, server, uploads, round), "global")
        x_R = given.reserve.x
        with torch.no_grad():
            said_mRC = torch.stack([given.model.logits(u.tensors, x_R[:, 0]) for u in uploads])
        soft = Examples(x_R, said_mRC.mean(0).softmax(-1))
        learning = replace(given.learning, epochs=self.epochs, rate=self.distil_rate)
        draws = rng(given.seed, "distil", round)
        return named("global", taught(given.model, averaged, soft, learning, draws))
