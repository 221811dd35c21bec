"""The gate of pFedMoAP: a client's own prompt and the experts of others, mixed image by image.

Every expert is known here by one feature a class: the text behind its prompt, or the mean of its
images. Zeros say that it knows nothing of a class, and there it has no say. This file knows neither
a server nor how a gate is trained, and not whose experts these are.

Shapes: B images, C classes, E experts with the client's own first, D feature width, G gate width, H
heads, d = G / H.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..declared import Facts
from ..learn import Local
from ..model import Portable, PromptModel
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under


@dataclass(frozen=True)
class TextGate:
    """What the gate is (arXiv:2410.10114, section 4.3), and its functions of named tensors."""

    gate: Literal["attention", "linear"] = option(
        "attention",
        says="attention over the experts' text features, or a softmax of a linear map of the image",
    )
    experts_are: Literal["prompts", "class-means"] = option(
        "prompts",
        says="what others are to the gate: the texts behind their prompts (paper), or the means of"
        " their images of each class, which leave their clients, too",
    )
    gate_init: Literal["random", "identity"] = option(
        "random", says="random linear maps (paper), or values and output that start as the identity"
    )
    width: int = option(128, says="G, width to which features are pooled for the gate", ge=1)
    heads: int = option(8, says="H, heads of the attention gate; divides the width", ge=1)
    pooling: Literal["stride", "mean", "random"] = option(
        "stride",
        says="how features become G wide: every (D/G)-th, means of D/G neighbours, a fixed"
        " projection",
    )
    attention_scale: float = option(
        10.0, says="factor of the attention scores; 0 is 1 / sqrt(G / H); published code: 10", ge=0
    )
    normalised: bool = option(
        False, says="cosine with the mixed feature instead of a plain dot product"
    )
    bias: bool = option(True, says="the gate's linear maps have biases")
    lam: float = option(0.5, says="lambda, weight of the client's own plain CLIP logit", ge=0)

    def __post_init__(self) -> None:
        if self.gate == "attention" and self.width % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide width = {self.width}; use a divisor"
            )

    def new_gate(self, experts: int, generator: torch.Generator) -> Tensors:
        """Fresh parameters: four G x G maps for attention, one G -> E map for the linear
        gate.
        """
        G = self.width
        maps = (
            {"query": G, "key": G, "value": G, "output": G}
            if self.gate == "attention"
            else {"mix": experts}
        )
        gate: Tensors = {}
        for name, rows in maps.items():
            bound = 1 / math.sqrt(G)  # as torch.nn.Linear starts
            gate[f"{name}.weight"] = (torch.rand(rows, G, generator=generator) * 2 - 1) * bound
            if self.gate_init == "identity" and name in ("value", "output"):
                gate[f"{name}.weight"] = torch.eye(G)
            if self.bias:
                gate[f"{name}.bias"] = torch.zeros(rows)
        return gate

    def mix(self, local: Local, own_CD: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity [B, C] of the pooled images to the mixed text features, and the experts'
        weights [B, C, E].
        """
        experts_ECD = torch.cat([own_CD[None], local.fixed["experts"]])
        unknown_EC = (experts_ECD == 0).all(-1)
        mix = self._attend if self.gate == "attention" else self._weigh
        gate = under(local.trained, "gate")
        return mix(gate, self.pooled(x_BD), self.pooled(experts_ECD), unknown_EC)

    def _attend(
        self, gate: Tensors, image_BG: Tensor, texts_ECG: Tensor, unknown_EC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multi-head attention of the image over each class's experts (arXiv:2410.10114 eq. 8 and
        9).
        """
        H = self.heads

        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:-1], H, self.width // H)

        query_BHd = heads(_apply(gate, "query", image_BG))
        key_ECHd = heads(_apply(gate, "key", texts_ECG))
        value_ECHd = heads(_apply(gate, "value", texts_ECG))
        scale = self.attention_scale or (self.width / H) ** -0.5
        scores_BCHE = scale * torch.einsum("bhd,echd->bche", query_BHd, key_ECHd)
        weights_BCHE = scores_BCHE.masked_fill(unknown_EC.T[:, None], -math.inf).softmax(-1)
        if self.normalised:
            mixed_BCG = torch.einsum("bche,echd->bchd", weights_BCHE, value_ECHd).flatten(-2)
            similarity = _cosine(image_BG, _apply(gate, "output", mixed_BCG))
        else:  # exact saving: the output map is applied to B images instead of B x C mixtures
            turned_BHd = heads(image_BG @ gate["output.weight"])
            value_BCHE = torch.einsum("bhd,echd->bche", turned_BHd, value_ECHd)
            similarity = (weights_BCHE * value_BCHE).sum((-1, -2))
            if "output.bias" in gate:
                similarity = similarity + (image_BG @ gate["output.bias"])[:, None]
        return similarity, weights_BCHE.mean(-2)

    def _weigh(
        self, gate: Tensors, image_BG: Tensor, texts_ECG: Tensor, unknown_EC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The paper's linear gate: one weight for each position in the list of experts, the
        same for every class that they all know.
        """
        scores_BE = _apply(gate, "mix", image_BG)[:, : len(texts_ECG)]
        weights_BCE = scores_BE[:, None].masked_fill(unknown_EC.T, -math.inf).softmax(-1)
        mixed_BCG = torch.einsum("bce,ecg->bcg", weights_BCE, texts_ECG)
        if self.normalised:
            return _cosine(image_BG, mixed_BCG), weights_BCE
        return torch.einsum("bcg,bg->bc", mixed_BCG, image_BG), weights_BCE

    def pooled(self, x: Tensor) -> Tensor:
        """[..., D] to [..., G]."""
        D, G = x.shape[-1], self.width
        if D < G:
            raise ValueError(
                f"method.width = {G} is wider than the features, {D}; expected at most {D}"
            )
        pools: dict[str, Callable[[], Tensor]] = {
            "stride": lambda: x[..., :: D // G][..., :G],
            "mean": lambda: x[..., : D // G * G].reshape(*x.shape[:-1], G, D // G).mean(-1),
            "random": lambda: x @ _projection(D, G).to(x.device),
        }
        return pools[self.pooling]()


@dataclass(frozen=True)
class OwnPrompt(Predictor):
    """A client's own prompt, as long as it has received no others."""

    model: PromptModel

    @cached_property
    def _own(self) -> Tensor:
        """[C, D]: the classes' texts behind the client's own prompt, encoded once for all that is
        asked.
        """
        return self.model.texts(self.local.trained["context"])

    def logits(self, x: Tensor) -> Tensor:
        """Plain CLIP."""
        return self.model.scale * (x @ self._own.T)


@dataclass(frozen=True)
class Mixed(OwnPrompt):
    """A client's own prompt and the experts that it received, mixed by its gate image by image."""

    gate: TextGate

    def logits(self, x: Tensor) -> Tensor:
        """sim(Pool(I), T_MoE) + lambda sim(I, T_L), times CLIP's scale (arXiv:2410.10114 eq.
        10).
        """
        own_CD = self._own
        plain_BC = x @ own_CD.T
        mixed_BC, _ = self.gate.mix(self.local, own_CD, x)
        return self.model.scale * (mixed_BC + self.gate.lam * plain_BC)

    def shares(self, x: Tensor) -> Tensor:
        """The gate's weights, the mean of its heads; the client's own prompt first."""
        return self.gate.mix(self.local, self._own, x)[1]

    def metrics(self, x: Tensor, y: Tensor) -> Facts:
        """How far apart the experts' text features are (1 - cosine)."""
        if self.gate.experts_are == "class-means":
            return {}
        apart = 1 - (self.local.fixed["experts"] * self._own).sum(-1)
        if not apart.numel():
            return {}
        return {"experts_apart": float(apart.mean())}

    def portable(self) -> Portable:
        """Text features, gate, and pooling as a matrix: it is a linear map, whichever it is."""
        own_CD, gate = self._own, self.gate
        tensors = {
            "own": own_CD,
            "experts": self.local.fixed["experts"],
            "pool": gate.pooled(torch.eye(own_CD.shape[1])),
        }
        numbers = {
            "scale": self.model.scale,
            "lambda": gate.lam,
            "heads": gate.heads,
            "attention_scale": gate.attention_scale or (gate.width / gate.heads) ** -0.5,
        }
        code = _CODE.format(mix=_MIX[gate.gate], cosine=_COSINE if gate.normalised else "")
        learned = named("gate", under(self.local.trained, "gate"))
        formula = _FORMULA.format(experts=_EXPERTS[gate.experts_are])
        return Portable(tensors | learned, numbers, formula, code)


@cache
def _projection(D: int, G: int) -> Tensor:
    """A Gaussian map [D, G], the same in every run; NumPy's, as torch draws nothing inside a
    vmap.
    """
    drawn = np.random.Generator(np.random.PCG64(0)).standard_normal((D, G))
    return torch.from_numpy(drawn / math.sqrt(G)).float()


def _apply(gate: Tensors, name: str, x: Tensor) -> Tensor:
    return linear(x, gate[f"{name}.weight"], gate.get(f"{name}.bias"))


def _cosine(image_BG: Tensor, texts_BCG: Tensor) -> Tensor:
    return (normalize(image_BG, dim=-1)[:, None] * normalize(texts_BCG, dim=-1)).sum(-1)


_FORMULA = """`x` is an image's normalised feature; `own` are the classes' texts behind the client's own prompt,
`experts` {experts}. For each class the gate mixes all of these, pooled to fewer
coordinates by `pool`. logit(c) = scale * (similarity of the pooled image to the mixture + lambda * cosine of the image
and `own`)."""  # noqa: E501

_EXPERTS = {
    "prompts": "those behind the prompts that it received",
    "class-means": "the means of other clients' images, zeros where they had none of a class",
}

_CODE = """def linear(name, x):
    return torch.nn.functional.linear(x, t[f"gate.{{name}}.weight"], t.get(f"gate.{{name}}.bias"))


def heads(x):
    return x.unflatten(-1, (n["heads"], -1))


def logits(x):
    experts = torch.cat([t["own"][None], t["experts"]])
    image, texts, unknown = x @ t["pool"], experts @ t["pool"], (experts == 0).all(-1)
{mix}{cosine}
    similarity = torch.einsum("bg,bcg->bc", image, mixed)
    return n["scale"] * (similarity + n["lambda"] * x @ t["own"].T)"""

_MIX = {
    "attention": (
        """    query = heads(linear("query", image))
    key, value = heads(linear("key", texts)), heads(linear("value", texts))
    scores = n["attention_scale"] * torch.einsum("bhd,echd->bche", query, key)
    weights = scores.masked_fill(unknown.T[:, None], -float("inf")).softmax(-1)
    mixed = linear("output", torch.einsum("bche,echd->bchd", weights, value).flatten(-2))"""
    ),
    "linear": (
        """    scores = linear("mix", image)[:, : len(texts)]
    weights = scores[:, None].masked_fill(unknown.T, -float("inf")).softmax(-1)
    mixed = torch.einsum("bce,ecg->bcg", weights, texts)"""
    ),
}

_COSINE = """
    image, mixed = (torch.nn.functional.normalize(y, dim=-1) for y in (image, mixed))"""
