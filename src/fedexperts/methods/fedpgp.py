"""FedPGP: a prompt that all share, changed by a low-rank part that each client keeps.

Cui, Li, Wang, Shi: "Harmonizing Generalization and Personalization in Federated Prompt Learning",
ICML 2024, arXiv:2405.09771. A contrast holds the shared prompt near to where all began and apart
from the client's own. This room does not know where clients keep their part.

Shapes: C classes, D feature width, l context tokens, W word width, r rank.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from ..learn import Local
from ..model import Model, as_prompted
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors
from .fedper import Partly

SPREAD = 0.02  # standard deviation with which a client's own part starts, as in published code


@dataclass(frozen=True)
class FedPGP(Partly):
    """A prompt that all share plus a low-rank part of the client's own, and a contrast between the
    two (arXiv:2405.09771, section 3).

    The shared prompt is held near to the texts behind the common start: with model.init = "words"
    these are the hand-written prompts of the paper.
    """

    rank: int = option(8, says="r, rank of a client's own part of the prompt", ge=1)
    mu: float = option(1.0, says="weight of the contrast", ge=0)
    temperature: float = option(0.5, says="of the contrast", gt=0)

    def fits(self, model: Model, reserve: int) -> None:
        as_prompted(model)

    def own(self, model: Model, rng: torch.Generator) -> Tensors:
        length, width = model.initial["context"].shape
        return {
            "left": SPREAD * torch.randn(length, self.rank, generator=rng),
            "right": SPREAD * torch.randn(self.rank, width, generator=rng),
        }

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        with torch.no_grad():
            anchor_CD = as_prompted(model).texts(model.initial["context"])
        return replace(super().start(model, sent, own, rng), fixed={"anchor": anchor_CD})

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Predictor(model, replace(local, trained={"context": _adapted(local.trained)}))

    def penalty(self, model: Model, local: Local) -> Tensor | float:
        """-log exp(sim(T_g, T_0) / tau) / (exp(sim(T_g, T_0) / tau) + exp(sim(T_g, T_i) / tau)),
        mean over classes.
        """
        contexts_2lW = torch.stack([local.trained["context"], _adapted(local.trained)])
        shared_CD, own_CD = as_prompted(model).texts(contexts_2lW).unbind(-3)
        near_C = cosine_similarity(shared_CD, local.fixed["anchor"], dim=-1)
        apart_C = cosine_similarity(shared_CD, own_CD, dim=-1)
        return self.mu * softplus((apart_C - near_C) / self.temperature).mean()


def _adapted(trained: Tensors) -> Tensor:
    """[l, W]: the shared context and the client's own change of it."""
    return trained["context"] + trained["own.left"] @ trained["own.right"]
