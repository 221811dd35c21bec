"""pFedPrompt and Tip-Adapter: what a prompt says, beside what a client's own images say.

Guo, Guo, Wang: "pFedPrompt: Learning Personalized Prompt for Vision-Language Models in Federated
Learning", WWW 2023. Zhang et al.: "Tip-Adapter", ECCV 2022, arXiv:2111.03930. A client keeps the
features of its training images as a memory and asks it without any training. This room does not
know where a client keeps it.

Shapes: B images, C classes, D feature width, n training images of a client.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..learn import Examples, Local
from ..method import Finished, Given, Method, Sent, Upload
from ..model import Model, Portable, PromptModel, as_prompted
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under


@dataclass(frozen=True)
class PFedPrompt(Method):
    """A prompt that all share, averaged, and each client's own memory of its images (pFedPrompt,
    WWW 2023); with `tuned = false` the words alone and the memory (Tip-Adapter, arXiv:2111.03930,
    equation 5).

    The memory holds the image's pooled feature, as Tip-Adapter's does; pFedPrompt's attention over
    its spatial features is left out.
    """

    alpha: float = option(1.0, says="weight of the memory beside the prompt", ge=0)
    beta: float = option(5.5, says="how sharply the memory looks at the images most like one", gt=0)
    tuned: bool = option(True, says="the prompt is learned and averaged; or stays at its start")

    def fits(self, model: Model, reserve: int) -> None:
        as_prompted(model)

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(model.initial) if self.tuned else frozenset()

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        if not self.tuned:
            return server
        return named("global", given.averaged(uploads))

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        """Nothing: it is the moment in which a client may look at its images."""
        return {upload.client: Sent({}) for upload in uploads}

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        shared = under(sent, "global")
        return Local(shared) if self.tuned else Local({}, shared)

    def finish(self, model: Model, local: Local) -> Finished:
        context = named("shared", local.trained | local.fixed)
        return Finished(stays=context, leaves=local.trained)

    def absorb(self, model: Model, sent: Tensors, kept: Tensors | None, own: Examples) -> Tensors:
        memory = {"features": own.x[:, 0], "labels": one_hot(own.y, len(model.classes)).float()}
        return named("shared", under(kept or {}, "shared")) | named("memory", memory)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """The prompt of all with the client's memory; without one, the prompt alone."""
        own = own or {}
        shared = under(sent, "global") or under(own, "shared")
        return Local(shared, under(own, "memory"))

    def predictor(self, model: Model, local: Local) -> Predictor:
        if "features" in local.fixed:
            return Remembering(as_prompted(model), local, self.alpha, self.beta)
        return Predictor(model, Local(local.trained or local.fixed))


@dataclass(frozen=True)
class Remembering(Predictor):
    """logit(c) = scale cos(x, T_c) + alpha sum_n exp(-beta (1 - cos(x, x_n))) [y_n = c]."""

    model: PromptModel
    alpha: float
    beta: float

    def logits(self, x: Tensor) -> Tensor:
        memory = self.local.fixed
        near_Bn = torch.exp(-self.beta * (1 - x @ memory["features"].mT))
        return super().logits(x) + self.alpha * near_Bn @ memory["labels"]

    def portable(self) -> Portable:
        texts_CD = self.model.texts(self.local.trained["context"])
        numbers = {"scale": self.model.scale, "alpha": self.alpha, "beta": self.beta}
        formula = (
            "logit(c) = scale * cosine of the image's feature `x` and the text feature of class c,"
            " plus alpha * the sum over remembered images of class c of exp(-beta * (1 - their"
            " cosine with x))."
        )
        return Portable(self.local.fixed | {"texts": texts_CD}, numbers, formula, _CODE)


_CODE = """def logits(x):
    near = torch.exp(-n["beta"] * (1 - x @ t["features"].T))
    return n["scale"] * x @ t["texts"].T + n["alpha"] * near @ t["labels"]"""
