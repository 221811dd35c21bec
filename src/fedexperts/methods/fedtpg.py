"""FedTPG: what all clients learn together writes each one's prompt from the names of its classes.

Qiu, Li, Mummadi, Ganesh, Li, Peng, Lin: "Federated Text-driven Prompt Generation for
Vision-Language Models", ICLR 2024, arXiv:2310.06123. This room does not know what encodes a name,
nor where a client keeps which classes it has.

Shapes: C classes, D feature width, l context tokens, W word width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from ..learn import Examples, Local
from ..method import Finished, Given, Method, Reads, Sent, Upload
from ..model import Model, as_prompted
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under

SPREAD = 0.02  # standard deviation with which what is written starts
NEVER = -1e4  # of the score of a name that a client has not


@dataclass(frozen=True)
class FedTPG(Method):
    """A generator of prompts from class names, averaged (arXiv:2310.06123).

    What it writes is added to the common start, so that it begins with the model's own prompt; it
    attends with one head. A client's names are those of its training examples' classes, which it
    looks at when its first round ends; until then, and for who is new, they are all classes.
    """

    def reads(self) -> Reads:
        return "sums"

    def fits(self, model: Model, reserve: int) -> None:
        as_prompted(model)

    # ---- server

    def open(self, given: Given) -> Tensors:
        return named("global", _generator(given.model, given.seed))

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(_generator(model, 0))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        return named("global", given.averaged(uploads))

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        """Nothing: it is the moment in which a client may look at its classes."""
        return {upload.client: Sent({}) for upload in uploads}

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        return self.restore(model, sent, own)

    def finish(self, model: Model, local: Local) -> Finished:
        stays = named("shared", local.trained) | {"classes": local.fixed["classes"]}
        return Finished(stays, leaves=local.trained)

    def absorb(self, model: Model, sent: Tensors, kept: Tensors | None, own: Examples) -> Tensors:
        there_C = torch.bincount(own.y, minlength=len(model.classes)).clamp_max(1).float()
        return named("shared", under(kept or {}, "shared")) | {"classes": there_C}

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """What all share, for the names of the client's own classes; without them, for all."""
        own = own or {}
        prompted = as_prompted(model)
        with torch.no_grad():
            names_CD = prompted.texts(model.initial["context"])
        there_C = own.get("classes", torch.ones(len(model.classes)))
        shared = under(sent, "global") or under(own, "shared")
        return Local(shared, {"names": names_CD, "classes": there_C})

    def predictor(self, model: Model, local: Local) -> Predictor:
        context_lW = model.initial["context"] + _written(local.trained, local.fixed)
        return Predictor(model, Local({"context": context_lW}))


def _generator(model: Model, seed: int) -> Tensors:
    """What writes prompts, at its start."""
    length, width = model.initial["context"].shape
    shapes = {
        "query": (length, width),
        "key": (width, model.width),
        "value": (width, model.width),
        "first": (width, width),
        "second": (width, width),
    }
    draw = rng(seed, "generator")
    start = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for name in ("value", "second"):  # what is added to the common start begins small
        start[name] *= SPREAD
    start["first"] *= width**-0.5
    return start


def _written(t: Tensors, given: Tensors) -> Tensor:
    """[l, W]: h(softmax(Q K^T / sqrt(W)) V) with K, V of the names, and h(z) = z + MLP(z)."""
    width = t["query"].shape[-1]
    key_CW, value_CW = given["names"] @ t["key"].mT, given["names"] @ t["value"].mT
    scores_lC = t["query"] @ key_CW.mT / width**0.5 + NEVER * (1 - given["classes"])
    asked_lW = scores_lC.softmax(-1) @ value_CW
    inner_lW = gelu(layer_norm(asked_lW, (width,)) @ t["first"].mT)
    written_lW: Tensor = asked_lW + inner_lW @ t["second"].mT
    return written_lW
