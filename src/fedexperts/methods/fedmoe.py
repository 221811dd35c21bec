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
from ..declared import Control, Declared, Facts
from ..learn import Examples, Learning, Local
from ..method import Chosen, Finished, Given, Method, Sent, Upload, needs_reserve
from ..model import MixtureModel, Model, Portable, as_mixture, held, proximal, taught
from ..options import option
from ..predictor import MixturePredictor, dissected, entropy
from ..tensors import Tensors, combine, named, rng, under

NEVER = 1e-6  # a spread or a sum of weights below it is rounding
_CONTROLS = (
    Control(
        "one averaged model",
        {"method.name": ("fedavg", "fedavg-tuned"), "mixture.experts": (None,)},
        alike=("data.", "model.", "start."),
        of="server",
        needed=(
            "no finished run of fedavg on the same data and from the same start is among these, so"
            " they do not tell whether a mixture adds anything to one averaged model"
        ),
    ),
    Control(
        "uniform relevance",
        {"method.relevance": ("uniform",)},
        free=("method.temperature",),
        of="server",
    ),
)


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
    relevance: Literal["mean", "relative", "uniform"] = option(
        "mean",
        says="of clients to experts: the mean outer product (paper); against the other clients;"
        " none",
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
        return Declared(controls=() if ablation else _CONTROLS, ablation=ablation)

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
            clusters = _clusters(given.reserve.x[:, 0], mixture.experts, given.seed)
            learning = replace(
                given.learning, epochs=self.warmup, optimizer="adam", rate=self.gate_rate
            )
            server |= named(
                "gate",
                _fitted(
                    mixture.gate, under(server, "gate"), given, clusters, learning, "warm-up", 0
                ),
            )
        return server

    def publish(self, server: Tensors) -> Tensors:
        """One model, for clients that have none yet: the mean of the main experts or, without any,
        of the routed.
        """
        experts = _experts(server, "main") or _experts(server, "expert")
        return named("global", mean(experts, [1] * len(experts)))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        return under(self.publish(server), "global")

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """One model at most a round: nothing to those who hold one or are given theirs after the
        round; a fresh blend, if it travels now; the published model to newcomers.
        """
        sent, known = (
            dict.fromkeys(clients, Sent({})),
            [c for c in clients if f"shares.{c}" in server],
        )
        if self.blend == "next-order":
            sent |= {
                client: Sent(named("blend", blend))
                for client, blend in _blends(server, known).items()
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
        answers_mR = _right(mixture.expert, clients, given.reserve)
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
        blends = _blends(server, [u.client for u in uploads])
        return {
            u.client: Sent(
                named(
                    "blend",
                    mean([u.tensors, blends[u.client]], [self.lam_client, 1 - self.lam_client]),
                )
            )
            for u in uploads
        }

    def served(self, model: Model, server: Tensors) -> "ServedMixture":
        return ServedMixture(as_mixture(model), Local(server), self.gate == "trained")

    def _relevance(
        self, mixture: MixtureModel, server: Tensors, reserve: Examples, answers_mR: Tensor
    ) -> Tensor:
        """W [K, m]: how much a client's model is worth on the reserve examples that the gate gives
        to an expert.
        """
        with torch.no_grad():
            gate_RK = self._weigh(mixture, server, reserve.x[:, 0])
        if self.relevance == "mean":
            return gate_RK.T @ answers_mR.T / len(gate_RK)
        if self.relevance == "uniform":
            return torch.zeros(gate_RK.shape[1], len(answers_mR))
        ahead_mR = answers_mR - answers_mR.mean(0)
        return (gate_RK / gate_RK.sum(0).clamp_min(NEVER)).T @ ahead_mR.T

    def _fuse(
        self, server: Tensors, clients: Sequence[Tensors], relevance_Km: Tensor, examples_m: Tensor
    ) -> Tensors:
        """E <- (1 - lambda) E + lambda sum_j w_j M_j: relevance decides w for routed experts,
        nothing for main ones.
        """
        counts_m = examples_m.log() if self.weights == "examples" else torch.zeros_like(examples_m)
        routed_Km = (self._scaled(relevance_Km, 1) / self.temperature + counts_m).softmax(1)
        names = [*_names(server, "main"), *_names(server, "expert")]
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
        """Relative relevance in units of its spread along an axis: a temperature then means the
        same in any round.
        """
        if self.relevance != "relative":
            return relevance_Km
        centred = relevance_Km - relevance_Km.mean(axis, keepdim=True)
        return centred / centred.square().mean(axis, keepdim=True).sqrt().clamp_min(NEVER)

    def _tune(self, given: Given, mixture: MixtureModel, server: Tensors, turn: int) -> Tensors:
        """Fused experts, a few passes over the reserve set further (as the published code does)."""
        learning = replace(
            given.learning, epochs=self.tune_epochs, optimizer="adam", rate=self.tune_rate
        )
        for name in (*_names(server, "main"), *_names(server, "expert")):
            tuned = _fitted(
                mixture.expert,
                under(server, name),
                given,
                given.reserve.y,
                learning,
                f"tune {name}",
                turn,
            )
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
                mixture.answers(server, prefix, x) for prefix in ("main", "expert")
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
                answer_BC = mixture.mix(alpha, mains_MRC[:, rows], routed_KRC[:, rows], weights_BK)
                loss = nll_loss(answer_BC, y[rows]) + self.beta * entropy(weights_BK)
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
        return _weighed(logits, self.gate == "trained")

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
        return Local(begun, held(expert, begun) if self.mu else {})

    def penalty(self, local: Local) -> Tensor | float:
        return proximal(self.mu, local)

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays=Local(local.trained).kept(), leaves=local.trained)

    def absorb(self, sent: Tensors, own: Tensors | None) -> Tensors:
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
        right_K = _right(as_mixture(model).expert, _experts(server, "expert"), few).mean(1)
        shares_E = self._shares(server, right_K[:, None])[:, 0]
        blend = _blends(server | {"shares.": shares_E}, [""])[""]
        names = [
            *(["main"] if "alpha" in server else []),
            *(f"expert {k}" for k in range(len(right_K))),
        ]
        return [Chosen(Local(blend), dict(zip(names, shares_E.tolist(), strict=True)))]


@dataclass(frozen=True)
class ServedMixture(MixturePredictor):
    """The main experts and the top-L routed ones, renormalised; without routing all of them
    alike.
    """

    trained: bool  # whether the gate routes

    def logits(self, x: Tensor) -> Tensor:
        return self._answer(self.local.trained, x)

    def weights(self, x: Tensor) -> Tensor:
        if self.trained:
            return self.model.routed(self.local.trained, x)
        return self._weigh(self.local.trained, x)

    def facts(self, x: Tensor, y: Tensor) -> Facts:
        """Its mixture, whole and without its parts, and the clients' shares of the experts."""
        server = self.local.trained
        facts = dissected(self.model, server, x, y, self._weigh, self._answer)
        shares = under(server, "shares")
        return facts | {f"shares.{client}": value.tolist() for client, value in shares.items()}

    def portable(self) -> Portable:
        """Without routing it is the mixture of all experts, behind a gate of zeros, which weighs
        them alike.
        """
        server = self.local.trained
        if self.trained:
            return self.model.portable(server, sparse=True)
        alike = {name: torch.zeros_like(value) for name, value in under(server, "gate").items()}
        return self.model.portable(server | named("gate", alike))

    def _answer(self, server: Tensors, x: Tensor) -> Tensor:
        if self.trained:
            return self.model.predict(server, x)
        mains_MBC, routed_KBC = (self.model.answers(server, kind, x) for kind in ("main", "expert"))
        return self.model.mix(server, mains_MBC, routed_KBC, self._weigh(server, x))

    def _weigh(self, server: Tensors, x: Tensor) -> Tensor:
        return _weighed(self.model.gate.logits(under(server, "gate"), x), self.trained)


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
    """Fed-MoE in strength: the same method, with the levers that gained (docs/deviations.md)."""


def _names(server: Tensors, prefix: str) -> list[str]:
    """ "expert.0", "expert.1" .. as far as there are any."""
    numbers = {int(name.split(".")[1]) for name in server if name.startswith(prefix + ".")}
    return [f"{prefix}.{number}" for number in sorted(numbers)]


def _experts(server: Tensors, prefix: str) -> list[Tensors]:
    return [under(server, name) for name in _names(server, prefix)]


def _blends(server: Tensors, clients: Sequence[str]) -> dict[str, Tensors]:
    """sum_k W^c[k, j] E_k of every client, from the experts as they are now, which are read once
    for all.
    """
    if not clients:
        return {}
    mains, routed = _experts(server, "main"), _experts(server, "expert")
    experts = [*([mean(mains, [1] * len(mains))] if mains else []), *routed]
    shares_mE = torch.stack([server[f"shares.{client}"] for client in clients])
    return dict(zip(clients, combine(shares_mE, experts), strict=True))


def _right(expert: Model, clients: Sequence[Tensors], reserve: Examples) -> Tensor:
    """P_y [m, R]: the probability that each client's model gives to the true label."""
    with torch.no_grad():
        return torch.stack(
            [
                expert.logits(client, reserve.x[:, 0])
                .softmax(-1)
                .gather(1, reserve.y[:, None])[:, 0]
                for client in clients
            ]
        )


def _weighed(logits: Tensor, routes: bool) -> Tensor:
    """The experts' weights behind a gate's logits, or the same for all."""
    if routes:
        return logits.softmax(-1)
    return torch.full_like(logits, 1 / logits.shape[-1])


def _fitted(
    model: Model,
    tensors: Tensors,
    given: Given,
    labels: Tensor,
    learning: Learning,
    use: str,
    turn: int,
) -> Tensors:
    """A model of the server's, trained on the reserve set with these labels."""
    return taught(
        model, tensors, Examples(given.reserve.x, labels), learning, rng(given.seed, use, turn)
    )


def _clusters(x: Tensor, count: int, seed: int) -> Tensor:
    """k-means clusters [R] of inputs: of their values, or of their tokens' counts."""
    from sklearn.cluster import KMeans  # takes a second to import

    if not x.is_floating_point():
        x = torch.zeros(len(x), int(x.max()) + 1).scatter_add_(
            1, x.flatten(1), torch.ones(x.flatten(1).shape)
        )
    found = KMeans(count, n_init=10, random_state=seed).fit(x.flatten(1).double().numpy())
    return torch.from_numpy(found.labels_).long()
