"""FedOTP: an image's patches beside two prompts, one that all share and one of the client's own.

Li, Huang, Wang, Wang, Shi: "Global and Local Prompts Cooperation via Optimal Transport for
Federated Learning", CVPR 2024, arXiv:2403.00041. This room does not know where clients keep their
prompt, nor what makes features of patches.

Shapes: B images, C classes, P patches, D feature width, l context tokens, W word width.
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

STEPS = 50  # of scaling
# standard deviation by which a client's own prompt starts apart: two equal ones would learn alike
SPREAD = 0.02


@dataclass(frozen=True)
class FedOTP(Partly):
    """Two prompts, matched to an image's patches by optimal transport (arXiv:2403.00041).

    The prompts take the share `gamma` of the patches between them, each half of it, and need not
    take all. The number of scaling steps is fixed, where published code stops by a threshold.
    """

    gamma: float = option(0.8, says="share of the patches that the two prompts take", gt=0, le=1)
    blur: float = option(0.1, says="lambda, weight of the plan's entropy", ge=0.03)

    def fits(self, model: Model, reserve: int) -> None:
        as_prompted(model, patches=True)

    def own(self, model: Model, rng: torch.Generator) -> Tensors:
        start_lW = model.initial["context"]
        return {"prompt": start_lW + SPREAD * torch.randn(start_lW.shape, generator=rng)}

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Transported(as_prompted(model, patches=True), local, self.gamma, self.blur)


@dataclass(frozen=True)
class Transported(Predictor):
    """logit(c) = scale * sum over patches and prompts of plan * cosine; the plan has no
    gradient.
    """

    model: PromptModel
    gamma: float
    blur: float

    def logits(self, x: Tensor) -> Tensor:
        trained = self.local.trained
        contexts_2lW = torch.stack([trained["context"], trained["own.prompt"]])
        texts_2CD = self.model.texts(contexts_2lW)
        alike_BCP2 = torch.einsum("bpd,ncd->bcpn", x[:, 1:], texts_2CD)
        plan_BCP2 = plan((alike_BCP2.detach() - 1) / self.blur, self.gamma)
        return self.model.scale * (plan_BCP2 * alike_BCP2).sum((-2, -1))

    def portable(self) -> Portable:
        raise ValueError(
            "fedotp reads features of patches, which a few lines of torch do not make; use a run of"
            ' another method, say method.name = "promptfolio"'
        )


def plan(closeness_P2: Tensor, gamma: float) -> Tensor:
    """[..., P, 2]: who takes how much of which patch, of kernels exp(closeness).

    Rows have at most 1 / P, columns gamma / 2: the two projections of Dykstra's algorithm in turn.
    """
    kernel_P2 = closeness_P2.exp()
    patches = kernel_P2.shape[-2]
    columns_2 = torch.ones_like(kernel_P2[..., 0, :])
    for _ in range(STEPS):
        rows_P = (1 / patches / (kernel_P2 @ columns_2[..., None])[..., 0]).clamp_max(1)
        columns_2 = gamma / 2 / (rows_P[..., None, :] @ kernel_P2)[..., 0, :]
    return rows_P[..., None] * kernel_P2 * columns_2[..., None, :]
