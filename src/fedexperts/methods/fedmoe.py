"""Fed-MoE: small models of many clients are fused, by measured relevance, into the experts of one
big mixture.

Jiang, Chen, Liu, Jiang, Fan: "Heterogeneous Federated Learning with Scalable Server
Mixture-of-Experts", IJCAI 2025 (ijcai.org/proceedings/2025/610). A client holds, sends and receives
one small model, ever; the server holds the mixture and a small labelled reserve set. A round: A
clients train; B the server fuses what they sent and trains its gate and alpha, T times over; C
every client that took part gets a blend of its own.

Shapes: m clients of a round, R reserve examples, C classes, K routed experts, M main experts, E = K
+ 1 or K: the experts that a blend has shares of, the mains (as one, their mean) first if there are
any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from ..average import mean
from ..declared import Declared
from ..fusing import combine
from ..learn import Examples, Local
from ..method import Chosen, Finished, Given, Method, Sent, Upload, needs_reserve
from ..model import MixtureModel, Model, anchored, as_mixture, proximal, taught
from ..options import option
from ..predictor import entropy
from ..tensors import Tensors, named, rng, under
from .controls import OF_A_MIXTURE
from .served import (
    ServedMixture,
    blends_of,
    certainty,
    clusters_of,
    expert_names,
    experts_of,
    weighed,
)

NEVER = 1e-6  # a spread or a sum of weights below it is rounding


@dataclass(frozen=True)
class FedMoE(Method):
    """Fed-MoE by the letter: the paper's equations and nothing else. `FedMoEStrong` has other
    defaults.
    """

    lam: float = option(
        0.1,
        says="lambda of the experts: share of the clients' models in a fused expert",
        ge=0,
        le=1,
    )
    lam_client: float = option(
        0.1,
        says="lambda of the clients: share of its own model in what a client goes on with",
        ge=0,
        le=1,
    )
    inner: int = option(1, says="T, times a round's models are fused and the gate is trained", ge=1)
    relevance: Literal["sum", "mean", "relative", "uniform"] = option(
        "sum",
        says="of clients to experts: the outer product (paper), or its mean over the reserve set;"
        " against the other clients; none",
    )
    temperature: float = option(1.0, says="of the softmax over clients, a row an expert", gt=0)
    blend_temperature: float = option(
        1.0, says="of the softmax over experts, a column a client", gt=0
    )
    weights: Literal["equal", "examples"] = option(
        "equal", says="every client counts the same (paper), or by its examples"
    )
    mu: float = option(
        0.0, says="FedProx: weight of half the squared distance to what a client starts from", ge=0
    )
    blend: Literal["same-round", "next-order", "none"] = option(
        "same-round",
        says="when a client gets its blend: at once (paper), fresh with its next order, or never",
    )
    gate: Literal["trained", "uniform"] = option(
        "trained", says="trained on the reserve set, or the control: no routing"
    )
    gate_epochs: int = option(1, says="passes over the reserve set that train gate and alpha", ge=1)
    gate_rate: float = option(0.001, says="learning rate of the gate (Adam)", gt=0)
    alpha_rate: float = option(0.01, says="learning rate of alpha (Adam); 0: it stays at 1/2", ge=0)
    beta: float = option(0.001, says="weight of the gate's entropy in its loss", ge=0)
    warmup: int = option(
        0,
        says="passes that teach the new gate k-means clusters of the reserve set; 0: random",
        ge=0,
    )
    tune_epochs: int = option(0, says="passes over the reserve set that tune fused experts", ge=0)
    tune_rate: float = option(0.001, says="learning rate (Adam) of these passes", gt=0)

    def declares(self) -> Declared:
        """Where gate or relevance is switched off on purpose it is a control itself, and needs
        none.
        """
        ablation = "uniform" in (self.gate, self.relevance)
        return Declared(controls=() if ablation else OF_A_MIXTURE, ablation=ablation)

    def fits(self, model: Model, reserve: int) -> None:
        as_mixture(model)
        needs_reserve(reserve)

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(as_mixture(model).expert.initial)

    # ---- server

    def open(self, given: Given) -> Tensors:
        """The mixture at the common start; its gate random, or warmed up (spec: it must not start
        symmetric).
        """
        mixture = as_mixture(given.model)
        server = dict(mixture.initial)
        if self.warmup:
            clusters = clusters_of(given.reserve.x[:, 0], mixture.experts, given.seed)
            learning = replace(
                given.learning, epochs=self.warmup, optimizer="adam", rate=self.gate_rate
            )
            examples = Examples(given.reserve.x, clusters)
            start, draw = under(server, "gate"), rng(given.seed, "warm-up", 0)
            server |= named("gate", taught(mixture.gate, start, examples, learning, draw))
        return server

    def publish(self, server: Tensors) -> Tensors:
        """One model, for clients that have none yet: the mean of the main experts or, without any,
        of the routed.
        """
        experts = experts_of(server, "main") or experts_of(server, "expert")
        return named("global", mean(experts, [1] * len(experts)))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        return under(self.publish(server), "global")

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """One model at most a round: nothing to those who hold one or are given theirs after the
        round; a fresh blend, if it travels now; the published model to newcomers.
        """
        sent = dict.fromkeys(clients, Sent({}))
        known = [client for client in clients if f"shares.{client}" in server]
        if self.blend == "next-order":
            sent |= {
                client: Sent(named("blend", blend))
                for client, blend in blends_of(server, known).items()
            }
        if self.blend != "same-round" and (newcomers := set(clients) - set(known)):
            sent |= dict.fromkeys(newcomers, Sent(self.publish(server)))
        return sent

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Step B: T times relevance, experts, gate and alpha; then each client's shares of the
        experts, for step C.
        """
        mixture, clients = as_mixture(given.model), [upload.tensors for upload in uploads]
        examples_m = torch.tensor([float(upload.examples) for upload in uploads])
        answers_mR = certainty(mixture.expert, clients, given.reserve)
        for inner in range(self.inner):
            relevance_Km = self._relevance(mixture, server, given.reserve, answers_mR)
            server = self._fuse(server, clients, relevance_Km, examples_m)
            if self.tune_epochs:
                server = self._tune(given, mixture, server, round * self.inner + inner)
            server = self._train(
                given, mixture, server, rng(given.seed, "gate", round * self.inner + inner)
            )
        shares_Em = self._shares(
            server, self._relevance(mixture, server, given.reserve, answers_mR)
        )
        return server | {
            f"shares.{u.client}": share
            for u, share in zip(uploads, shares_Em.T.contiguous(), strict=True)
        }

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        """Step C: M_j <- lambda M_j + (1 - lambda) sum_k W^c[k, j] E_k, each to its own client."""
        if self.blend != "same-round":
            return {}
        blends = blends_of(server, [u.client for u in uploads])
        back = {}
        for upload in uploads:
            own, blend = upload.tensors, blends[upload.client]
            kept = mean([own, blend], [self.lam_client, 1 - self.lam_client])
            back[upload.client] = Sent(named("blend", kept))
        return back

    def served(self, model: Model, server: Tensors) -> ServedMixture:
        return ServedMixture(as_mixture(model), Local(server), self.gate == "trained")

    def _relevance(
        self, mixture: MixtureModel, server: Tensors, reserve: Examples, answers_mR: Tensor
    ) -> Tensor:
        """W [K, m]: a client's model's worth on the reserve examples that an expert is given."""
        with torch.no_grad():
            gate_RK = self._weigh(mixture, server, reserve.x[:, 0])
        if self.relevance == "uniform":
            return torch.zeros(gate_RK.shape[1], len(answers_mR))
        outer_Km = gate_RK.T @ answers_mR.T
        if self.relevance == "sum":
            return outer_Km
        if self.relevance == "mean":
            return outer_Km / len(gate_RK)
        ahead_mR = answers_mR - answers_mR.mean(0)
        return (gate_RK / gate_RK.sum(0).clamp_min(NEVER)).T @ ahead_mR.T

    def _fuse(
        self, server: Tensors, clients: Sequence[Tensors], relevance_Km: Tensor, examples_m: Tensor
    ) -> Tensors:
        """E <- (1 - lambda) E + lambda sum_j w_j M_j: relevance decides w for routed experts."""
        counts_m = torch.zeros_like(examples_m)
        if self.weights == "examples":
            counts_m = examples_m.log()
        routed_Km = (self._scaled(relevance_Km, 1) / self.temperature + counts_m).softmax(1)
        names = [*expert_names(server, "main"), *expert_names(server, "expert")]
        mains = len(names) - len(routed_Km)
        fused = torch.cat([counts_m.softmax(0).expand(mains, -1), routed_Km])
        weights = torch.cat([(1 - self.lam) * torch.eye(len(names)), self.lam * fused], dim=1)
        experts = combine(weights, [*(under(server, name) for name in names), *clients])
        for name, expert in zip(names, experts, strict=True):
            server = server | named(name, expert)
        return server

    def _shares(self, server: Tensors, relevance_Km: Tensor) -> Tensor:
        """W^c [E, m]: a softmax over each column of concat(1 - alpha, alpha W)."""
        alpha = server.get("alpha", torch.tensor(1.0))
        rows = [alpha * self._scaled(relevance_Km, 0)]
        if "alpha" in server:
            rows.insert(0, (1 - alpha).expand(1, relevance_Km.shape[1]))
        return (torch.cat(rows) / self.blend_temperature).softmax(0)

    def _scaled(self, relevance_Km: Tensor, axis: int) -> Tensor:
        """Relative relevance in units of its spread: a temperature means the same always."""
        if self.relevance != "relative":
            return relevance_Km
        centred = relevance_Km - relevance_Km.mean(axis, keepdim=True)
        return centred / centred.square().mean(axis, keepdim=True).sqrt().clamp_min(NEVER)

    def _tune(self, given: Given, mixture: MixtureModel, server: Tensors, turn: int) -> Tensors:
        """Fused experts, a few passes over the reserve set further (as the published code does)."""
        learning = replace(
            given.learning, epochs=self.tune_epochs, optimizer="adam", rate=self.tune_rate
        )
        for name in (*expert_names(server, "main"), *expert_names(server, "expert")):
            draw = rng(given.seed, f"tune {name}", turn)
            start = under(server, name)
            tuned = taught(mixture.expert, start, given.reserve, learning, draw)
            server = server | named(name, tuned)
        return server

    def _train(
        self, given: Given, mixture: MixtureModel, server: Tensors, generator: torch.Generator
    ) -> Tensors:
        """Descend L_ce + beta L_ent in the gate and L_ce in alpha. Experts stay, so what they say
        is computed once.
        """
        if self.gate == "uniform" and not mixture.mains:  # then there is nothing to learn
            return server
        x, y = given.reserve.x[:, 0], given.reserve.y
        with torch.no_grad():
            mains_MRC, routed_KRC = (
                mixture.probabilities(server, prefix, x) for prefix in ("main", "expert")
            )
        gate = {name: value.clone() for name, value in under(server, "gate").items()}
        alpha = {"alpha": server["alpha"].clone().requires_grad_()} if mixture.mains else {}
        free = [
            value.requires_grad_()
            for name, value in gate.items()
            if name not in mixture.gate.buffers
        ]
        optimizer = torch.optim.Adam(
            [
                {"params": free, "lr": self.gate_rate},
                *({"params": [a], "lr": self.alpha_rate} for a in alpha.values()),
            ],
            foreach=False,
        )
        for _ in range(self.gate_epochs):
            for rows in torch.randperm(len(y), generator=generator).split(given.learning.batch):
                logits, moved = mixture.gate.step(gate, x[rows])
                weights_BK = self._weights(logits)
                mixed_BC = mixture.mix(alpha, mains_MRC[:, rows], routed_KRC[:, rows], weights_BK)
                loss = nll_loss(mixed_BC, y[rows]) + self.beta * entropy(weights_BK)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                gate |= moved
                for a in alpha.values():
                    a.data.clamp_(0, 1)
        return server | {
            name: value.detach() for name, value in (named("gate", gate) | alpha).items()
        }

    def _weigh(self, mixture: MixtureModel, server: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the gate's weights, or the same for all."""
        return self._weights(mixture.gate.logits(under(server, "gate"), x))

    def _weights(self, logits: Tensor) -> Tensor:
        return weighed(logits, self.gate == "trained")

    # ---- client

    def trains(self, model: Model) -> Model:
        return as_mixture(model).expert

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """The client's own model, as far as it may keep it, and the blend, if that came with the
        order.

        Who has neither begins with the common start.
        """
        begun = Local.of(own).trained if own else under(sent, "global")
        if blend := under(sent, "blend"):
            begun = mean([begun, blend], [self.lam_client, 1 - self.lam_client]) if begun else blend
        expert = as_mixture(model).expert
        begun = begun or expert.initial
        return Local(begun, anchored(expert, begun) if self.mu else {})

    def penalty(self, model: Model, local: Local) -> Tensor | float:
        return proximal(self.mu, local)

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays=Local(local.trained).kept(), leaves=local.trained)

    def absorb(self, model: Model, sent: Tensors, kept: Tensors | None, own: Examples) -> Tensors:
        return Local(under(sent, "blend")).kept()

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """The client's one model; the published one if it never trained."""
        return Local.of(own) if own else Local(under(sent, "global"))

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """Step C for a newcomer: a blend of the experts, by how likely each of them finds its
        examples' labels.

        In step C a client's model stands for its data, and the gate says which examples count. A
        newcomer has no model yet, and its examples count for every expert alike: weighed by the
        gate, the blend does worse (docs/predict.md).
        """
        right_K = certainty(as_mixture(model).expert, experts_of(server, "expert"), few).mean(1)
        shares_E = self._shares(server, right_K[:, None])[:, 0]
        blend = blends_of(server | {"shares.": shares_E}, [""])[""]
        names = [
            *(["main"] if "alpha" in server else []),
            *(f"expert {k}" for k in range(len(right_K))),
        ]
        return [Chosen(Local(blend), dict(zip(names, shares_E.tolist(), strict=True)))]


STRONG: dict[str, Any] = {
    "lam": 1.0,
    "lam_client": 0.0,
    "relevance": "relative",
    "temperature": 0.3,
    "blend_temperature": 0.2,
    "weights": "examples",
    "mu": 0.3,
    "blend": "next-order",
    "gate_epochs": 5,
    "gate_rate": 0.003,
    "warmup": 60,
}
_FIELDS = {f.name: f for f in fields(FedMoE)}  # what a field means and may be stays as it is
_Strong: Any = make_dataclass(
    "_Strong",
    [
        (name, _FIELDS[name].type, field(default=value, metadata=_FIELDS[name].metadata))
        for name, value in STRONG.items()
    ],
    bases=(FedMoE,),
    frozen=True,
)


class FedMoEStrong(_Strong):  # type: ignore[misc]  # a class of fields known only when they are made
    """Fed-MoE in strength: the same method, with other defaults (docs/deviations.md)."""
