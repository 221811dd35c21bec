"""Averaging a part of what is trained, while the rest never leaves its client: FedPer.

`Partly` is what several methods have in common: each says what a client's own part is, where it
begins, and how both parts make a predictor. This room does not know where clients keep their part.

Shapes: l context tokens, W word width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..learn import Local
from ..method import Finished, Given, Method, Upload
from ..model import Model, PromptModel
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under


@dataclass(frozen=True)
class Partly(Method):
    """Federated averaging of what is shared; a client's own part stays with it (FedPer,
    arXiv:1912.00818).

    A client trains both parts; its own are the tensors `own.*`.
    """

    def shared(self, model: Model) -> Tensors:
        """What all share, at its start."""
        return model.initial

    @abstractmethod
    def own(self, model: Model, rng: torch.Generator) -> Tensors:
        """A client's own part, before it trained for the first time."""

    def open(self, given: Given) -> Tensors:
        return named("global", self.shared(given.model))

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(self.shared(model))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        return named("global", given.averaged(uploads))

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        mine = own if own else named("own", self.own(model, rng))
        return Local(under(sent, "global") | mine)

    def finish(self, model: Model, local: Local) -> Finished:
        mine = named("own", under(local.trained, "own"))
        shared = {name: local.trained[name] for name in self.uploads(model)}
        return Finished(stays=mine, leaves=shared)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """What all share now, with the client's own part; without one, where every client
        begins.
        """
        mine = own if own else named("own", self.own(model, torch.Generator().manual_seed(0)))
        return Local(under(sent, "global") | mine)


@dataclass(frozen=True)
class FedPer(Partly):
    """Personalisation layers: the last context tokens of a prompt, or the last layer of a network,
    stay with their client (arXiv:1912.00818, section 3).
    """

    tokens: int = option(
        2,
        says="context tokens, the last ones, that stay with a client; a network's last layer"
        " stays whatever this is",
        ge=0,
    )

    def fits(self, model: Model, reserve: int) -> None:
        if not any(value.numel() for value in self.shared(model).values()):
            raise ValueError(
                f"fedper with tokens = {self.tokens} leaves nothing of {type(model).__name__} to"
                ' share; use fewer tokens, more model.context, or method.name = "alone"'
            )

    def shared(self, model: Model) -> Tensors:
        return _halves(model, self.tokens)[0]

    def own(self, model: Model, rng: torch.Generator) -> Tensors:
        return _halves(model, self.tokens)[1]

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Predictor(model, replace(local, trained=_whole(local.trained)))


def _halves(model: Model, tokens: int) -> tuple[Tensors, Tensors]:
    """What is shared and what stays: of a prompt, rows of its context; of a network, its last
    layer.
    """
    if isinstance(model, PromptModel):
        context_lW = model.initial["context"]
        kept = min(tokens, len(context_lW))
        first, last = context_lW.split([len(context_lW) - kept, kept])
        return {"context": first}, {"last": last}
    layers = [name.rpartition(".")[0] for name in model.initial if name not in model.buffers]
    last_layer = {name for name in model.initial if name.rpartition(".")[0] == layers[-1]}
    shared = {name: value for name, value in model.initial.items() if name not in last_layer}
    return shared, {name: model.initial[name] for name in last_layer}


def _whole(trained: Tensors) -> Tensors:
    """A model's tensors of both halves."""
    own = under(trained, "own")
    shared = {name: value for name, value in trained.items() if not name.startswith("own.")}
    if "context" in shared:
        return {"context": torch.cat([shared["context"], own["last"]], dim=-2)}
    return shared | own
