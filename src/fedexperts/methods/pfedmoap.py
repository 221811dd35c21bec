"""pFedMoAP: every client mixes its own prompt with the prompts of the clients most like it, image
by image.

Luo, Chen, Wu: "Mixture of Experts Made Personalized: Federated Prompt Learning for Vision-Language
Models", ICLR 2025, arXiv:2410.10114. The server keeps the global prompt and a pool of the prompts
that clients uploaded last; a client keeps its prompt, its gate and the text features of its experts
on its own disk.

Shapes: B images, C classes, E = K + 1 experts with the client's own first, D feature width, G gate
width, H heads, d = G / H, l context tokens, W word width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from ..declared import ROUNDING, Control, Declared, Facts, Figure, Metric
from ..learn import Examples, Local
from ..method import Chosen, Finished, Given, Method, Sent, Upload
from ..model import Model, Portable, PromptModel
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under

_CONTROLS = (
    Control(
        "gate alone",
        {"method.experts": (0,)},
        free=("method.select",),
        needed=(
            "no finished run of the same with method.experts = 0 is among these, so they do not"
            " tell whether the experts add anything or the gate does it alone"
        ),
    ),
    Control("random experts", {"method.select": ("random",)}),
    Control("linear probe", {"model.name": ("linear-probe",)}, alike=("data.",)),
)
_APART = Metric(
    "experts_apart",
    "How different the experts are",
    "1 - cosine of text features",
    "Text features of the experts against the client's own, mean over classes, experts and clients:"
    " at 0 all experts say the same.",
    allowed=Figure(least=-ROUNDING, most=2 + ROUNDING),
)
_LISTED = {"nearest": "by nearness", "farthest": "farthest first", "random": "in the order drawn"}


@dataclass(frozen=True)
class PFedMoAP(Method):
    """Personalised federated mixture of adaptive prompts (arXiv:2410.10114, section 4)."""

    experts: int = option(
        9, says="K, non-local experts a client receives; 0 is the gate alone", ge=0
    )
    select: Literal["nearest", "random", "farthest"] = option(
        "nearest",
        says="which prompts of the pool: by l2 distance to the client's own entry, or by chance",
    )
    lam: float = option(0.5, says="lambda, weight of the client's own plain CLIP logit", ge=0)
    reset: bool = option(
        True, says="start every round at the global prompt (paper), or at one's own"
    )
    gate: Literal["attention", "linear"] = option(
        "attention",
        says="attention over the experts' text features, or a softmax of a linear map of the image",
    )
    gates: Literal["local", "averaged"] = option(
        "local",
        says="a gate never leaves its client (paper), or is averaged from one start whatever the"
        " seed",
    )
    gate_rate: float = option(0.01, says="learning rate of the gate", gt=0)
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

    def __post_init__(self) -> None:
        if self.gate == "attention" and self.width % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide width = {self.width}; use a divisor"
            )

    def declares(self) -> Declared:
        if not self.experts:
            return Declared(experts=1)
        return Declared(
            controls=_CONTROLS,
            metrics=(_APART,),
            experts=self.experts + 1,
            listed=_LISTED[self.select],
        )

    # ---- server

    def uploads(self, model: Model) -> frozenset[str]:
        gate = named("gate", self._new_gate(torch.Generator())) if self.gates == "averaged" else {}
        return frozenset({"context", *gate})

    def fits(self, model: Model, reserve: int) -> None:
        with torch.no_grad():
            self.pooled(_prompted(model).texts(model.initial["context"]))

    def open(self, given: Given) -> Tensors:
        shared = {"context": given.model.initial["context"]}
        if self.gates == "averaged":
            shared |= named("gate", self._new_gate(rng(0, "gate")))
        return named("global", shared)

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """The global prompt and, for a client with a pool entry, K other entries [K, l, W] for its
        mixture.

        The pool is read as the last round left it. A client's own facts name whose prompts it
        received.
        """
        payload, pool = self.publish(server), under(server, "pool")
        sent = dict.fromkeys(clients, Sent(payload))
        names = sorted(pool)
        places = {name: place for place, name in enumerate(names)}
        known = [client for client in clients if client in pool]
        if not known:
            return sent
        entries_NlW = torch.stack([pool[name] for name in names])
        own = [places[client] for client in known]
        for client, place, distance_N in zip(known, own, _distances(entries_NlW, own), strict=True):
            chosen = self._chosen(distance_N, place, rng(seed, "experts", round, client))
            received = [names[i] for i in chosen.tolist()]
            facts: Facts = {"received": received, "distances": distance_N[chosen].tolist()}
            sent[client] = Sent(payload | {"experts": entries_NlW[chosen]}, facts)
        return sent

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Overwrite the pool and average what is shared, by examples (arXiv:2410.10114, algorithm
        1).
        """
        shared = given.average([u.tensors for u in uploads], [u.examples for u in uploads])
        return (
            server
            | named("global", shared)
            | named("pool", {u.client: u.tensors["context"] for u in uploads})
        )

    def _chosen(self, distance_N: Tensor, own: int, generator: torch.Generator) -> Tensor:
        """Places of K entries of the pool by their l2 distance to the client's own, which is left
        out.
        """
        order = {
            "nearest": lambda: torch.argsort(distance_N, stable=True),
            "farthest": lambda: torch.argsort(distance_N, stable=True, descending=True),
            "random": lambda: torch.randperm(len(distance_N), generator=generator),
        }[self.select]()
        return order[order != own][: self.experts]

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """The prompt at the global one; the gate from the client's own last round; experts' text
        features, once.
        """
        before = Local.of(own) if own else Local({})
        kept = under(before.trained, "gate")
        gate = under(sent, "global.gate") if self.gates == "averaged" else kept
        context = sent["global.context"]
        if not self.reset:
            context = before.trained.get("context", context)
        # a first-timer tunes its prompt alone; a gate that is shared waits
        if "experts" not in sent:
            return Local({"context": context}, named("gate", gate))
        with torch.no_grad():  # behind a context of its own, as K may be 0
            contexts = torch.cat([sent["global.context"][None], sent["experts"]])
            experts = _prompted(model).texts(contexts)[1:]
        trained = {"context": context} | named("gate", gate or self._new_gate(rng))
        return Local(trained, {"experts": experts})

    def rates(self) -> Mapping[str, float]:
        return {"gate": self.gate_rate}

    def predictor(self, model: Model, local: Local) -> Predictor:
        if "experts" in local.fixed:
            return Mixed(_prompted(model), local, self)
        return super().predictor(model, local)

    def finish(self, model: Model, local: Local) -> Finished:
        leaves = {"context": local.trained["context"]}
        if self.gates == "averaged":
            leaves |= named("gate", under(local.trained, "gate") or under(local.fixed, "gate"))
        return Finished(local.kept(), leaves)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """The client's own prompt, gate and experts; the global prompt alone if it never
        trained.
        """
        return Local.of(own) if own else Local({"context": sent["global.context"]})

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """The prompt of the pool that finds the examples' labels likeliest; with averaged gates, K
        such prompts.
        """
        prompted, x, pool = _prompted(model), few.x[:, 0], under(server, "pool")
        texts = {client: prompted.texts(context) for client, context in pool.items()}

        def loss(client: str) -> float:
            return float(cross_entropy(prompted.scale * x @ texts[client].T, few.y))

        useful = sorted(texts, key=loss)
        if not (gate := under(server, "global.gate")):
            return [Chosen(Local({"context": pool[name]}), {name: 1.0}) for name in useful[:1]]
        useful = useful[: self.experts]
        shared = server["global.context"]
        experts = torch.stack([prompted.texts(shared), *(texts[name] for name in useful)])[1:]
        local = Local({"context": shared} | named("gate", gate), {"experts": experts})
        shares_E = Mixed(prompted, local, self).shares(x).mean((0, 1)).tolist()
        return [Chosen(local, dict(zip(("global prompt", *useful), shares_E, strict=True)))]

    # ---- the gate

    def _new_gate(self, generator: torch.Generator) -> Tensors:
        """Fresh parameters: four G x G maps for attention, one G -> K + 1 map for the linear
        gate.
        """
        G = self.width
        maps = (
            {"query": G, "key": G, "value": G, "output": G}
            if self.gate == "attention"
            else {"mix": self.experts + 1}
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
        texts_ECG = self.pooled(torch.cat([own_CD[None], local.fixed["experts"]]))
        mix = self._attend if self.gate == "attention" else self._weigh
        return mix(under(local.trained, "gate"), self.pooled(x_BD), texts_ECG)

    def _attend(self, gate: Tensors, image_BG: Tensor, texts_ECG: Tensor) -> tuple[Tensor, Tensor]:
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
        weights_BCHE = (scale * torch.einsum("bhd,echd->bche", query_BHd, key_ECHd)).softmax(-1)
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

    def _weigh(self, gate: Tensors, image_BG: Tensor, texts_ECG: Tensor) -> tuple[Tensor, Tensor]:
        """The paper's linear gate: one weight for each place in the list of experts, the same for
        every class.
        """
        E, C, _ = texts_ECG.shape
        weights_BE = _apply(gate, "mix", image_BG)[:, :E].softmax(-1)
        if self.normalised:
            similarity = _cosine(image_BG, torch.einsum("be,ecg->bcg", weights_BE, texts_ECG))
        else:
            similarity = torch.einsum("be,ecg,bg->bc", weights_BE, texts_ECG, image_BG)
        return similarity, weights_BE[:, None].expand(-1, C, -1)

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
class Mixed(Predictor):
    """A client's own prompt and the prompts that it received, mixed by its gate image by image."""

    model: PromptModel
    method: PFedMoAP

    def _own(self) -> Tensor:
        """[C, D]: the classes' texts behind the client's own prompt."""
        return self.model.texts(self.local.trained["context"])

    def logits(self, x: Tensor) -> Tensor:
        """sim(Pool(I), T_MoE) + lambda sim(I, T_L), times CLIP's scale (arXiv:2410.10114 eq.
        10).
        """
        own_CD = self._own()
        mixed_BC, _ = self.method.mix(self.local, own_CD, x)
        return self.model.scale * (mixed_BC + self.method.lam * (x @ own_CD.T))

    def shares(self, x: Tensor) -> Tensor:
        """The gate's weights, the mean of its heads; the client's own prompt first."""
        return self.method.mix(self.local, self._own(), x)[1]

    def facts(self, x: Tensor, y: Tensor) -> Facts:
        """How far apart the experts' text features are (1 - cosine)."""
        apart = 1 - (self.local.fixed["experts"] * self._own()).sum(-1)
        if not apart.numel():
            return {}
        return {"experts_apart": float(apart.mean())}

    def portable(self) -> Portable:
        """Text features, gate, and pooling as a matrix: it is a linear map, whichever it is."""
        own_CD, method = self._own(), self.method
        tensors = {
            "own": own_CD,
            "experts": self.local.fixed["experts"],
            "pool": method.pooled(torch.eye(own_CD.shape[1])),
        }
        numbers = {
            "scale": self.model.scale,
            "lambda": method.lam,
            "heads": method.heads,
            "attention_scale": method.attention_scale or (method.width / method.heads) ** -0.5,
        }
        code = _CODE.format(mix=_MIX[method.gate], cosine=_COSINE if method.normalised else "")
        gate = named("gate", under(self.local.trained, "gate"))
        return Portable(tensors | gate, numbers, _FORMULA, code)


@cache
def _projection(D: int, G: int) -> Tensor:
    """A Gaussian map [D, G], the same in every run; NumPy's, as torch draws nothing inside a
    vmap.
    """
    drawn = np.random.Generator(np.random.PCG64(0)).standard_normal((D, G))
    return torch.from_numpy(drawn / math.sqrt(G)).float()


def _prompted(model: Model) -> PromptModel:
    if not isinstance(model, PromptModel):
        raise ValueError(
            f"pFedMoAP needs a model with prompts, not {type(model).__name__}; set model.name ="
            ' "prompted-clip"'
        )
    return model


def _distances(entries_NlW: Tensor, rows: list[int]) -> Tensor:
    """[rows, N] l2 distances, by one matrix product; in float64, since squares cancel."""
    flat_NF = entries_NlW.flatten(1).double()
    squares_N = flat_NF.square().sum(1)
    return (squares_N[rows, None] + squares_N - 2 * flat_NF[rows] @ flat_NF.T).clamp_min(0).sqrt()


def _apply(gate: Tensors, name: str, x: Tensor) -> Tensor:
    return linear(x, gate[f"{name}.weight"], gate.get(f"{name}.bias"))


def _cosine(image_BG: Tensor, texts_BCG: Tensor) -> Tensor:
    return (normalize(image_BG, dim=-1)[:, None] * normalize(texts_BCG, dim=-1)).sum(-1)


_FORMULA = """`x` is an image's normalised feature; `own` are the classes' texts behind the client's own prompt,
`experts` those behind the prompts that it received. For each class the gate mixes all of these texts, pooled to fewer
coordinates by `pool`. logit(c) = scale * (similarity of the pooled image to the mixture + lambda * cosine of the image
and `own`)."""  # noqa: E501

_CODE = """def linear(name, x):
    return torch.nn.functional.linear(x, t[f"gate.{{name}}.weight"], t.get(f"gate.{{name}}.bias"))


def heads(x):
    return x.unflatten(-1, (n["heads"], -1))


def logits(x):
    image, texts = x @ t["pool"], torch.cat([t["own"][None], t["experts"]]) @ t["pool"]
{mix}{cosine}
    similarity = torch.einsum("bg,bcg->bc", image, mixed)
    return n["scale"] * (similarity + n["lambda"] * x @ t["own"].T)"""

_MIX = {
    "attention": (
        """    query = heads(linear("query", image))
    key, value = heads(linear("key", texts)), heads(linear("value", texts))
    weights = (n["attention_scale"] * torch.einsum("bhd,echd->bche", query, key)).softmax(-1)
    mixed = linear("output", torch.einsum("bche,echd->bchd", weights, value).flatten(-2))"""
    ),
    "linear": (
        """    weights = linear("mix", image)[:, : len(texts)].softmax(-1)
    mixed = torch.einsum("be,ecg->bcg", weights, texts)"""
    ),
}

_COSINE = """
    image, mixed = (torch.nn.functional.normalize(y, dim=-1) for y in (image, mixed))"""
