"""FedAMP: each client trains near to a model of its own at the server, in which the models of
similar clients weigh more.

Huang et al.: "Personalized Cross-Silo Federated Learning on Non-IID Data", AAAI 2021,
arXiv:2007.03797. The server holds every client's last model. This room does not know what is
trained.

Shapes: N clients in the pool, R clients of a round, F numbers of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fusing import combine
from ..learn import Local
from ..method import Given, Sent, Upload
from ..model import Model, anchored, proximal
from ..options import option
from ..tensors import Tensors, named, under
from .fedavg import Keeping


@dataclass(frozen=True)
class FedAMP(Keeping):
    """Attentive message passing (arXiv:2007.03797, equations 2 to 6, with
    A(x) = 1 - exp(-x / sigma)).

    Two simplifications keep one setting useful for any model: sigma is in units of the mean squared
    distance between clients, and `share` bounds what others weigh together, where the paper has a
    free alpha.
    """

    share: float = option(
        0.9, says="what all others would weigh in a client's model if all were equal", ge=0, le=1
    )
    sigma: float = option(
        1.0,
        says="at which squared distance a weight falls to 1/e; 1: the mean over all pairs",
        gt=0,
    )
    mu: float = option(
        0.1, says="weight of half the squared distance to the client's model at the server", ge=0
    )

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """Each client's own model; what all share to a client that has not trained before."""
        pool = under(server, "pool")
        names = sorted({name.partition(".")[0] for name in pool})
        known = [client for client in clients if client in names]
        sent = dict.fromkeys(clients, Sent(self.publish(server)))
        if not known:
            return sent
        models = [under(pool, name) for name in names]
        weights_RN = self._weights(models, [names.index(client) for client in known])
        for client, cloud in zip(known, combine(weights_RN, models), strict=True):
            sent[client] = Sent(named("global", cloud))
        return sent

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        averaged = given.averaged(uploads)
        server = server | named("global", averaged)
        for upload in uploads:
            server |= named(f"pool.{upload.client}", upload.tensors)
        return server

    def _weights(self, models: Sequence[Tensors], own: Sequence[int]) -> Tensor:
        """[R, N]: xi of the clients at positions `own`; each row sums to one."""
        flat_NF = torch.stack([_flat(model) for model in models])
        N = len(flat_NF)
        apart_NF = flat_NF - flat_NF.mean(0)
        typical = 2 * apart_NF.square().sum() / max(N - 1, 1)  # the mean over pairs, in closed form
        squared_RN = torch.stack([(flat_NF - flat_NF[i]).square().sum(1) for i in own])
        near_RN = torch.exp(-squared_RN / (self.sigma * typical).clamp_min(1e-30))
        weights_RN = self.share / max(N - 1, 1) * near_RN
        rows = torch.arange(len(own))
        weights_RN[rows, own] = 0
        weights_RN[rows, own] = 1 - weights_RN.sum(1)
        return weights_RN

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        cloud = under(sent, "global")
        return Local(cloud, anchored(model, cloud) if self.mu else {})

    def penalty(self, model: Model, local: Local) -> Tensor | float:
        return proximal(self.mu, local)


def _flat(model: Tensors) -> Tensor:
    """[F]: all numbers of a model that can be averaged."""
    parts = [model[name] for name in sorted(model) if model[name].is_floating_point()]
    return torch.cat([part.double().flatten() for part in parts])
