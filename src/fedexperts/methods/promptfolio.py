"""PromptFolio: a prompt that all share and one that each client keeps, mixed by one fixed weight.

Pan, Huang, Shi: "Federated Learning from Vision-Language Foundation Models: Theoretical Analysis
and Method", NeurIPS 2024, arXiv:2409.19610. This room does not know where clients keep their
prompt.

Shapes: B images, C classes, D feature width, l context tokens, W word width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..learn import Local
from ..model import Model, Portable, PromptModel, as_prompted
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors
from .fedper import Partly


@dataclass(frozen=True)
class PromptFolio(Partly):
    """A prompt that all share and one of the client's own, mixed by a fixed weight
    (arXiv:2409.19610, section 5).

    The mixed text features are not normalised again, so that the logits are mixed, too.
    """

    theta: float = option(0.2, says="weight of the client's own prompt", ge=0, le=1)

    def fits(self, model: Model, reserve: int) -> None:
        as_prompted(model)

    def own(self, model: Model, rng: torch.Generator) -> Tensors:
        return {"prompt": model.initial["context"]}

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Portfolio(as_prompted(model), local, self.theta)


@dataclass(frozen=True)
class Portfolio(Predictor):
    """logit(c) = scale * cosine with (1 - theta) T_shared(c) + theta T_own(c)."""

    model: PromptModel
    theta: float

    def logits(self, x: Tensor) -> Tensor:
        return self.model.scale * x @ self._texts().mT

    def _texts(self) -> Tensor:
        trained = self.local.trained
        contexts_2lW = torch.stack([trained["context"], trained["own.prompt"]])
        shared_CD, own_CD = self.model.texts(contexts_2lW).unbind(-3)
        return (1 - self.theta) * shared_CD + self.theta * own_CD

    def portable(self) -> Portable:
        return self.model.portable_texts(self._texts())
