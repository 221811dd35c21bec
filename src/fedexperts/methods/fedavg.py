"""Averaging, and not averaging: the baselines. What they train is the model's business, not theirs.

FedAvg of a prompted CLIP is PromptFL; with `mu` it is PromptFL + FedProx; `Alone` on a prompted
CLIP is CoOp on each client, on a linear head a linear probe; either of them for zero rounds, from a
context made of words, is zero-shot. With `personal`, FedAvg is FedAvg with local fine-tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..declared import Declared
from ..learn import Local
from ..method import Finished, Given, Method, Reads, Sent, Upload
from ..model import Model, anchored, proximal
from ..options import option
from ..tensors import Tensors, named, under


@dataclass(frozen=True)
class Keeping(Method):
    """What a client does that trains the model it is sent, uploads it and keeps it: it predicts
    with what it trained last, or with what all share if it never trained.
    """

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(model.initial)

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        return Local(under(sent, "global"))

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(named("trained", local.trained), leaves=local.trained)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        if own:
            return Local(under(own, "trained"))
        return Local(under(sent, "global"))


@dataclass(frozen=True)
class FedAvg(Keeping):
    """Federated averaging (arXiv:1602.05629, algorithm 1); with mu > 0, FedProx (arXiv:1812.06127,
    eq. 2).
    """

    mu: float = option(
        0.0, says="FedProx: weight of half the squared distance to the global model", ge=0
    )
    personal: bool = option(
        False,
        says="a client predicts with what its own last training made of the global model: local"
        " fine-tuning, if the schedule is constant",
    )

    def reads(self) -> Reads:
        return "sums"

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        return named("global", given.averaged(uploads))

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        shared = under(sent, "global")
        return Local(shared, anchored(model, shared) if self.mu else {})

    def penalty(self, model: Model, local: Local) -> Tensor | float:
        return proximal(self.mu, local)

    def finish(self, model: Model, local: Local) -> Finished:
        if self.personal:
            return super().finish(model, local)
        return Finished({}, leaves=local.trained)


@dataclass(frozen=True)
class Alone(Method):
    """Every client by itself, from the common start: nothing is sent, nothing is uploaded."""

    def declares(self) -> Declared:
        return Declared(shared=False)

    def open(self, given: Given) -> Tensors:
        return {}

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset()

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        return dict.fromkeys(clients, Sent({}))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        return server

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        return self.restore(model, sent, own)

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays=local.kept(), leaves={})

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        return Local.of(own) if own else Local(model.initial)
