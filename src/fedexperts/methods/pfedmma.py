"""pFedMMA: adapters in the upper layers of both encoders, whose middle part all clients share.

Ghiasvand, Alizadeh, Pedarsani: "pFedMMA: Personalized Federated Fine-Tuning with Multi-Modal
Adapter for Vision-Language Models", arXiv:2507.05394; checked against the authors' code
(github.com/sajjad-ucsb/pFedMMA), whose adapters, 32 wide, lie in the upper eight of twelve layers.
The adapters themselves are a model's (models/adapted.py); this room knows their names alone, and
not where clients keep theirs.
"""

from dataclasses import dataclass, replace

import torch

from ..learn import Local
from ..model import Model
from ..predictor import Predictor
from ..tensors import Tensors, under
from .fedper import Partly

SHARED = "shared."  # what both encoders' adapters of a layer have in common


@dataclass(frozen=True)
class PFedMMA(Partly):
    """Adapters of which clients share what lies between both encoders (arXiv:2507.05394).

    Clients train whole adapters and average that projection alone, by their examples. The maps down
    to it and up from it stay with their client.
    """

    def fits(self, model: Model, reserve: int) -> None:
        if not self.shared(model):
            raise ValueError(
                f"pfedmma needs adapters, which {type(model).__name__} has not; set model.name ="
                ' "adapted-clip"'
            )

    def shared(self, model: Model) -> Tensors:
        return {n: value for n, value in model.initial.items() if n.startswith(SHARED)}

    def own(self, model: Model, rng: torch.Generator) -> Tensors:
        return {n: value for n, value in model.initial.items() if not n.startswith(SHARED)}

    def predictor(self, model: Model, local: Local) -> Predictor:
        shared = {n: value for n, value in local.trained.items() if n.startswith(SHARED)}
        return Predictor(model, replace(local, trained=shared | under(local.trained, "own")))
