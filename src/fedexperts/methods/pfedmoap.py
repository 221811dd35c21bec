"""pFedMoAP: every client mixes its own prompt with the prompts of the clients most like it.

Luo, Chen, Wu: "Mixture of Experts Made Personalized: Federated Prompt Learning for Vision-Language
Models", ICLR 2025, arXiv:2410.10114. The server keeps the global prompt and a pool of the prompts
that clients uploaded last; a client keeps its prompt, its gate and the text features of its experts
on its own disk.

Shapes: B images, C classes, K experts that a client receives, N prompts in the pool, D feature
width, l context tokens, W word width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, normalize, one_hot

from ..declared import ROUNDING, Control, Declared, Facts, Figure, Metric
from ..learn import Examples, Local
from ..method import Chosen, Finished, Given, Method, Sent, Upload
from ..model import Model, PromptModel, as_prompted
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under
from .controls import AVERAGED, POOLED, PROBE
from .gate import Mixed, OwnPrompt, TextGate
from .nearest import nearest

_CONTROLS = (
    Control(
        "gate alone",
        {"method.experts": (0,)},
        free=("method.select", "method.experts_are"),
        needed=(
            "no finished run of the same with method.experts = 0 is among these, so they do not"
            " tell whether the experts add anything or the gate does it alone"
        ),
    ),
    Control("random experts", {"method.select": ("random",)}),
    Control("prompts as experts", {"method.experts_are": ("prompts",)}),
    Control(
        "prompts averaged, then tuned by each client",
        {"method.name": ("fedavg",), "method.personal": (True,)},
        alike=("data.", "model."),
    ),
    PROBE,
    AVERAGED,
    POOLED,
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
class PFedMoAP(TextGate, Method):
    """Personalised federated mixture of adaptive prompts (arXiv:2410.10114, section 4)."""

    experts: int = option(
        9, says="K, non-local experts a client receives; 0 is the gate alone", ge=0
    )
    select: Literal["nearest", "random", "farthest"] = option(
        "nearest",
        says="which prompts of the pool: by l2 distance to the client's own entry, or by chance",
    )
    reset: bool = option(
        True, says="start every round at the global prompt (paper), or at one's own"
    )
    gates: Literal["local", "averaged"] = option(
        "local",
        says="a gate never leaves its client (paper), or is averaged from one start whatever the"
        " seed",
    )
    gate_rate: float = option(0.01, says="learning rate of the gate", gt=0)

    def declares(self) -> Declared:
        if not self.experts:
            return Declared(experts=1)
        return Declared(
            controls=_CONTROLS,
            metrics=() if self._means else (_APART,),
            experts=self.experts + 1,
            listed=_LISTED[self.select],
        )

    @property
    def _means(self) -> bool:
        """Whether class means travel; a gate alone needs none."""
        return self.experts_are == "class-means" and self.experts > 0

    # ---- server

    def uploads(self, model: Model) -> frozenset[str]:
        gate = named("gate", self._fresh(torch.Generator())) if self.gates == "averaged" else {}
        return frozenset({"context", *gate, *(("means",) if self._means else ())})

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        means = {"means": torch.zeros(len(model.classes), model.width)} if self._means else {}
        return self._shared(server) | means

    def fits(self, model: Model, reserve: int) -> None:
        with torch.no_grad():
            self.pooled(as_prompted(model).texts(model.initial["context"]))

    def open(self, given: Given) -> Tensors:
        shared = {"context": given.model.initial["context"]}
        if self.gates == "averaged":
            shared |= named("gate", self._fresh(rng(0, "gate")))
        return named("global", shared)

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """The global prompt and, for a client with a pool entry, K others' for its mixture: their
        prompts [K, l, W] or their class means [K, C, D].

        The pool is read as the last round left it, and nearness is that of prompts. A client's own
        facts name whose experts it received.
        """
        payload, pool = self.publish(server), under(server, "pool")
        sent = dict.fromkeys(clients, Sent(payload))
        names = sorted(pool)
        positions = {name: position for position, name in enumerate(names)}
        known = [client for client in clients if client in pool]
        if not known:
            return sent
        entries_NlW = torch.stack([pool[name] for name in names])
        means = under(server, "means")
        own = [positions[client] for client in known]
        draws = [rng(seed, "experts", round, client) for client in known]
        chosen_RK = self._chosen(entries_NlW.flatten(1), own, draws)
        for client, position, chosen_K in zip(known, own, chosen_RK, strict=True):
            prompts_KlW = entries_NlW[chosen_K]
            apart_KF = prompts_KlW.double().sub_(entries_NlW[position]).flatten(1)
            received = [names[i] for i in chosen_K.tolist()]
            distances = vector_norm(apart_KF, dim=1).tolist()
            facts: Facts = {"received": received, "distances": distances}
            experts = self._means_of(means, received) if self._means else prompts_KlW
            sent[client] = Sent(payload | {"experts": experts}, facts)
        return sent

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Overwrite the pool and average what is shared, by examples (arXiv:2410.10114, algorithm
        1).
        """
        names = self._shared(server)
        parts = [{name: upload.tensors[name] for name in names} for upload in uploads]
        shared = given.average(parts, [u.examples for u in uploads])
        state = (
            server
            | named("global", shared)
            | named("pool", {u.client: u.tensors["context"] for u in uploads})
        )
        if self._means:
            state |= named("means", {u.client: u.tensors["means"] for u in uploads})
        return state

    def _shared(self, server: Tensors) -> Tensors:
        """The global tensors; all names of a large pool are not read for a prompt's."""
        if self.gates == "local":
            return {"context": server["global.context"]}
        return under(server, "global")

    def _chosen(
        self, entries_NF: Tensor, own: Sequence[int], draws: Sequence[torch.Generator]
    ) -> Sequence[Tensor]:
        """Places of K entries of the pool for each client, whose own is left out."""
        if self.select != "random":
            return list(nearest(entries_NF, own, self.experts, self.select == "farthest"))
        orders = [torch.randperm(len(entries_NF), generator=draw) for draw in draws]
        return [
            order[order != position][: self.experts]
            for position, order in zip(own, orders, strict=True)
        ]

    @staticmethod
    def _means_of(means: Tensors, clients: Sequence[str]) -> Tensor:
        """[K, C, D]: what these clients said last of their images of each class."""
        some_CD = next(iter(means.values()))
        return torch.stack([some_CD, *(means[client] for client in clients)])[1:]

    def _fresh(self, generator: torch.Generator) -> Tensors:
        return self.new_gate(self.experts + 1, generator)

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """The prompt at the global one; the gate from the client's own last round; experts'
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
        experts = self._features(as_prompted(model), sent["global.context"], sent["experts"])
        trained = {"context": context} | named("gate", gate or self._fresh(rng))
        return Local(trained, {"experts": experts})

    def _features(self, model: PromptModel, context: Tensor, experts: Tensor) -> Tensor:
        """[K, C, D]: normalised features of the experts' classes; zeros stay, and say nothing."""
        if self._means:
            return normalize(experts, dim=-1)
        contexts = (context, *experts)  # one of its own, as K may be 0
        return torch.stack([_texts(model, each) for each in contexts])[1:]

    def rates(self) -> Mapping[str, float]:
        return {"gate": self.gate_rate}

    def predictor(self, model: Model, local: Local) -> Predictor:
        if "experts" in local.fixed:
            return Mixed(as_prompted(model), local, self)
        return OwnPrompt(as_prompted(model), local)

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """The mean feature [C, D] of the client's images of each class; zeros for one without."""
        if not self._means:
            return {}
        seen_nC = one_hot(own.y, len(model.classes)).to(own.x.dtype)
        return {"means": seen_nC.T @ own.x[:, 0] / seen_nC.sum(0).clamp_min(1)[:, None]}

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
        such clients' experts.
        """
        prompted, x, pool = as_prompted(model), few.x[:, 0], under(server, "pool")
        texts = {client: prompted.texts(context) for client, context in pool.items()}

        def loss(client: str) -> float:
            return float(cross_entropy(prompted.scale * x @ texts[client].T, few.y))

        useful = sorted(texts, key=loss)
        if not (gate := under(server, "global.gate")):
            return [Chosen(Local({"context": pool[name]}), {name: 1.0}) for name in useful[:1]]
        useful = useful[: self.experts]
        shared = server["global.context"]
        if self._means:
            experts = normalize(self._means_of(under(server, "means"), useful), dim=-1)
        else:
            experts = torch.stack([prompted.texts(shared), *(texts[name] for name in useful)])[1:]
        local = Local({"context": shared} | named("gate", gate), {"experts": experts})
        shares_E = Mixed(prompted, local, self).shares(x).mean((0, 1)).tolist()
        return [Chosen(local, dict(zip(("global prompt", *useful), shares_E, strict=True)))]


def _texts(model: PromptModel, context_lW: Tensor) -> Tensor:
    """[C, D]: text features, once for all clients of this process that receive a prompt. Each
    prompt is encoded by itself, so that what was encoded before changes no bit.
    """
    shape = tuple(context_lW.shape)
    return _remembered(model, context_lW.contiguous().numpy().tobytes(), shape)


@lru_cache(maxsize=256)
def _remembered(model: PromptModel, numbers: bytes, shape: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model.texts(torch.frombuffer(bytearray(numbers), dtype=torch.float32).reshape(shape))
