"""The server's mixture of Fed-MoE: its experts by name, what it answers, and the clients' blends.

Nothing is trained here, and no round is known.

Shapes: B inputs, C classes, m clients, R reserve examples, K routed experts, E experts that a blend
has shares of: the mains (as one, their mean) first if there are any.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..average import mean
from ..declared import Facts
from ..fusing import combine
from ..learn import Examples
from ..model import Model, Portable
from ..predictor import MixturePredictor, dissected
from ..tensors import Tensors, named, under


@dataclass(frozen=True)
class ServedMixture(MixturePredictor):
    """The main experts and the top-L routed ones, renormalised; without routing all of them
    alike.
    """

    trained: bool  # whether the gate routes

    def logits(self, x: Tensor) -> Tensor:
        return self._answer(self.local.trained, x)

    def weights(self, x: Tensor) -> Tensor:
        if self.trained:
            return self.model.routed(self.local.trained, x)
        return self._weigh(self.local.trained, x)

    def metrics(self, x: Tensor, y: Tensor) -> Facts:
        """Its mixture, whole and without its parts, and the clients' shares of the experts."""
        server = self.local.trained
        facts = dissected(self.model, server, x, y, self._weigh, self._answer)
        shares = under(server, "shares")
        return facts | {f"shares.{client}": value.tolist() for client, value in shares.items()}

    def portable(self) -> Portable:
        """Without routing it is the mixture of all experts, behind a gate of zeros, which weighs
        them alike.
        """
        server = self.local.trained
        if self.trained:
            return self.model.portable(server, sparse=True)
        alike = {name: torch.zeros_like(value) for name, value in under(server, "gate").items()}
        return self.model.portable(server | named("gate", alike))

    def _answer(self, server: Tensors, x: Tensor) -> Tensor:
        if self.trained:
            return self.model.predict(server, x)
        mains_MBC, routed_KBC = (
            self.model.probabilities(server, kind, x) for kind in ("main", "expert")
        )
        return self.model.mix(server, mains_MBC, routed_KBC, self._weigh(server, x))

    def _weigh(self, server: Tensors, x: Tensor) -> Tensor:
        return weighed(self.model.gate.logits(under(server, "gate"), x), self.trained)


def expert_names(server: Tensors, prefix: str) -> list[str]:
    """ "expert.0", "expert.1" .. as far as there are any."""
    numbers = {int(name.split(".")[1]) for name in server if name.startswith(prefix + ".")}
    return [f"{prefix}.{number}" for number in sorted(numbers)]


def experts_of(server: Tensors, prefix: str) -> list[Tensors]:
    return [under(server, name) for name in expert_names(server, prefix)]


def blends_of(server: Tensors, clients: Sequence[str]) -> dict[str, Tensors]:
    """sum_k W^c[k, j] E_k of every client, from the experts as they are now, which are read once
    for all.
    """
    if not clients:
        return {}
    mains, routed = experts_of(server, "main"), experts_of(server, "expert")
    experts = [*([mean(mains, [1] * len(mains))] if mains else []), *routed]
    shares_mE = torch.stack([server[f"shares.{client}"] for client in clients])
    return dict(zip(clients, combine(shares_mE, experts), strict=True))


def certainty(expert: Model, clients: Sequence[Tensors], reserve: Examples) -> Tensor:
    """P_y [m, R]: the probability that each client's model gives to the true label."""
    with torch.no_grad():
        return torch.stack(
            [
                expert.logits(client, reserve.x[:, 0])
                .softmax(-1)
                .gather(1, reserve.y[:, None])[:, 0]
                for client in clients
            ]
        )


def weighed(logits: Tensor, routes: bool) -> Tensor:
    """The experts' weights behind a gate's logits, or the same for all."""
    if routes:
        return logits.softmax(-1)
    return torch.full_like(logits, 1 / logits.shape[-1])


def clusters_of(x: Tensor, count: int, seed: int) -> Tensor:
    """k-means clusters [R] of inputs: of their values, or of their tokens' counts."""
    from sklearn.cluster import KMeans  # takes a second to import

    if not x.is_floating_point():
        x = torch.zeros(len(x), int(x.max()) + 1).scatter_add_(
            1, x.flatten(1), torch.ones(x.flatten(1).shape)
        )
    clusters = KMeans(count, n_init=10, random_state=seed).fit(x.flatten(1).double().numpy())
    return torch.from_numpy(clusters.labels_).long()
