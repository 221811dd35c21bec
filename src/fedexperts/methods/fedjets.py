"""FedJETs: of a mixture, each client is sent and trains the gate and those few experts that its
gate prefers.

Dun et al.: "FedJETs: Efficient Just-In-Time Personalization with Federated Mixture of Experts"
(arXiv:2306.08586). Anchor clients, each bound to one expert in all rounds, make the experts differ;
everybody else follows the gate.

Simplified here: anchors are the first K clients that uploaded anything, where the paper picks
clients with unlike data, and beside its own expert an anchor trains what its gate prefers; a
client's choice is that of the gate as it last trained it, by chance at first, which saves an
exchange in front of every round; the gate sees the input itself, not the features of a common
pretrained expert; and predictions weigh all experts, not the best few.

Shapes: B inputs, C classes, K routed experts, n of them at a client.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..learn import Examples, Local
from ..method import Finished, Given, Method, Reads, Sent, Upload
from ..model import MixtureModel, Model, as_mixture
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under


@dataclass(frozen=True)
class FedJETs(Method):
    """Clients name the n experts they hold by position: 0 to n - 1. The server knows which those
    are.
    """

    experts: int = option(2, says="n, routed experts that a client is sent and trains", ge=1)

    def fits(self, model: Model, reserve: int) -> None:
        mixture = as_mixture(model)
        if mixture.expert.buffers | mixture.gate.buffers:
            raise ValueError('fedjets has no batch norm at its clients; use model.norm = "group"')
        if self.experts > (count := mixture.experts):
            raise ValueError(
                f"method.experts = {self.experts} of {count}; expected 1 to mixture.experts"
            )

    def reads(self) -> Reads:
        return "means"

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset({*_part(model.initial, range(self.experts)), "use"})

    # ---- server

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        return _part(under(server, "global"), range(self.experts)) | {
            "use": torch.zeros(_count(server))
        }

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """The gate and the main experts, which all have in common, and each client's own n
        experts.
        """
        sent, shared = {}, under(server, "global")
        for client in clients:
            chosen_n = self._chosen(server, client, round, seed)
            payload = named("global", _part(shared, chosen_n.tolist())) | {"chosen": chosen_n}
            sent[client] = Sent(payload, {"chosen": [float(k) for k in chosen_n]})
        return sent

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Means by examples: of an expert over those who trained it, of the rest over all. Free
        anchors are taken.
        """
        shared, anchors, K = under(server, "global"), under(server, "anchor"), _count(server)
        chosen = [self._chosen(server, u.client, round, given.seed).tolist() for u in uploads]
        for k in range(K):
            holders = [
                (u, own.index(k)) for u, own in zip(uploads, chosen, strict=True) if k in own
            ]
            if holders:
                trained = [under(u.tensors, f"expert.{position}") for u, position in holders]
                expert = given.average(trained, [u.examples for u, _ in holders])
                shared |= named(f"expert.{k}", expert)
        common = [_part(u.tensors, ()) for u in uploads]
        shared |= given.average(common, [u.examples for u in uploads])
        new = [u.client for u in uploads if u.client not in anchors][: K - len(anchors)]
        anchors |= {client: torch.tensor(k) for k, client in enumerate(new, len(anchors))}
        use = {u.client: u.tensors["use"] for u in uploads}
        return server | named("global", shared) | named("use", use) | named("anchor", anchors)

    def _chosen(self, server: Tensors, client: str, round: int, seed: int) -> Tensor:
        """[n]: an anchor's own expert, then those that the client's gate weighed most, by chance
        the first time.
        """
        use_K = server.get(f"use.{client}")
        if use_K is None:
            use_K = torch.rand(_count(server), generator=rng(seed, "experts", round, client))
        if f"anchor.{client}" in server:
            use_K = use_K.index_fill(0, server[f"anchor.{client}"], math.inf)
        return use_K.argsort(descending=True, stable=True)[: self.experts]

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        return Local(under(sent, "global"), {"chosen": sent["chosen"]})

    def predictor(self, model: Model, local: Local) -> Predictor:
        if "chosen" in local.fixed:
            return FewExperts(as_mixture(model), local)
        return super().predictor(model, local)

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """use [K]: how the gate weighs all experts, on average over what the client trained on."""
        return {"use": _gate(as_mixture(model), local.trained, own.x[:, 0]).softmax(-1).mean(0)}

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays={}, leaves=local.trained)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        return Local(under(sent, "global"))


@dataclass(frozen=True)
class FewExperts(Predictor):
    """The experts that are here, numbered anew, the gate's weights renormalised over them."""

    model: MixtureModel

    def logits(self, x: Tensor) -> Tensor:
        """log y(x)."""
        mixture, tensors, chosen_n = self.model, self.local.trained, self.local.fixed["chosen"]
        routed = [
            mixture.expert.logits(under(tensors, f"expert.{position}"), x)
            for position in range(len(chosen_n))
        ]
        weights_Bn = _gate(mixture, tensors, x).index_select(1, chosen_n).softmax(-1)
        return mixture.mix(
            tensors,
            mixture.probabilities(tensors, "main", x),
            torch.stack(routed).softmax(-1),
            weights_Bn,
        )


def _gate(mixture: MixtureModel, tensors: Tensors, x: Tensor) -> Tensor:
    """[B, K] logits."""
    return mixture.gate.logits(under(tensors, "gate"), x)


def _part(tensors: Tensors, chosen: Iterable[int]) -> Tensors:
    """Of a mixture's tensors, those of the chosen experts, numbered anew, and all that belong to no
    routed expert.
    """
    part = {
        name: value
        for name, value in tensors.items()
        if name.split(".")[0] not in ("expert", "use")
    }
    for position, k in enumerate(chosen):
        part |= named(f"expert.{position}", under(tensors, f"expert.{k}"))
    return part


def _count(server: Tensors) -> int:
    """K."""
    return len({name.split(".")[2] for name in server if name.startswith("global.expert.")})
