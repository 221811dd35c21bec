"""Fed-MoE framed: experts differ in how they read, and share what they know.

A client says once, without a label, what its inputs look like (sketch.py). The server makes groups
of clients whose sketches are alike, a gate that tells the groups' inputs apart, and for each group
a frame through which its expert reads (frames.py); the experts start from one model, taught on the
reserve set behind these frames. From then on a client trains the expert of its group, and what all
clients moved moves every expert; an expert's own clients move it further by a share that is
estimated layer by layer: 0 where groups do not differ more than the clients inside them.

Shapes: m clients of a round, R reserve examples, P numbers of a sketch, N clients with a sketch, K
experts, one a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..declared import Control, Declared
from ..fusing import combine
from ..learn import Examples, Local
from ..method import Chosen, Finished, Given, Method, Sent, Upload, needs_reserve
from ..model import MixtureModel, Model, anchored, as_mixture, proximal, taught
from ..options import option
from ..tensors import Tensors, named, rng, under
from . import sketch
from .controls import OF_A_MIXTURE
from .frames import FRAME, Framed, SketchGate, frames, read, unframed, without
from .served import ServedMixture, blends_of, expert_names, experts_of

MEMORY = 0.8  # of the variances over rounds
FEW = 2  # clients an expert, below which nobody can tell groups from chance
TAUGHT = 0.003  # learning rate of the restart, as of the common start
SKETCH = ("sketch.mean", "sketch.spread")
_AVERAGED, _, _POOLED = OF_A_MIXTURE
_SHUFFLED = Control("groups by chance", {"method.relevance": ("shuffled",)}, of="server")


@dataclass(frozen=True)
class FedMoEFramed(Method):
    """Fed-MoE with groups, gate and frames from sketches, and experts that are moved together."""

    relevance: Literal["sketch", "shuffled"] = option(
        "sketch", says="clients belong to groups by their sketches; the control: by chance"
    )
    groups: Literal["given", "chosen", "soft"] = option(
        "given",
        says="how many groups: mixture.experts; as many of them as the sketches show clearly; or"
        " mixture.experts of which a client has shares, as the gate sees its average input",
    )
    share: Literal["estimated", "none", "whole"] = option(
        "estimated",
        says="how far an expert follows its own clients beyond what all moved: as far as groups"
        " differ; not at all; it is theirs alone",
    )
    frames: bool = option(
        True, says="an expert reads its inputs scaled and shifted to what all see"
    )
    restart: int = option(
        60,
        says="passes over the reserve set, once there are frames, that teach the experts to read"
        " through them; 0: they go on from the common start",
        ge=0,
    )
    mu: float = option(
        0.3, says="FedProx: weight of half the squared distance to what a client starts from", ge=0
    )

    def declares(self) -> Declared:
        if self.relevance == "shuffled":
            return Declared(ablation=True)
        return Declared(controls=(_AVERAGED, _SHUFFLED, _POOLED))

    def fits(self, model: Model, reserve: int) -> None:
        needs_reserve(reserve)
        if mains := as_mixture(model).mains:
            raise ValueError(
                f"mixture.mains = {mains}: what all experts share is the main expert here; use"
                " mixture.mains = 0"
            )

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset({*as_mixture(model).expert.initial, *SKETCH})

    # ---- server

    def open(self, given: Given) -> Tensors:
        """Experts that are all the common start, and a gate that weighs them alike."""
        plain, x = as_mixture(given.model).expert, given.reserve.x[:, 0]
        image = sketch.is_image(x)
        width = sketch.numbers(plain, plain.initial, x[:1]).shape[1]
        count = as_mixture(given.model).experts
        server = named("gate", sketch.flat_gate(width, count))
        if not image:
            server |= named("gate.start", plain.initial)
        for k, frame in enumerate(unframed(count, image, x.shape[1])):
            own = {name: value.clone() for name, value in plain.initial.items()}
            server |= named(f"expert.{k}", own | frame)
        return server

    def publish(self, server: Tensors) -> Tensors:
        """The expert of most clients, for those that belong to no group yet."""
        shares = under(server, "shares").values()
        most = int(torch.stack([*shares]).sum(0).argmax()) if shares else 0
        return named("global", under(server, f"expert.{most}"))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        """A client's first upload is its sketch, all others are its group's expert."""
        if f"shares.{client}" in server:
            return without(blends_of(server, [client])[client])
        return named("sketch", sketch.blank(len(server["gate.sd"])))

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """Its group's expert and frame; who has no group gets what its sketch needs, if
        anything.
        """
        known = [client for client in clients if f"shares.{client}" in server]
        sent = dict.fromkeys(clients, Sent(named("start", under(server, "gate.start"))))
        for client, expert in blends_of(server, known).items():
            k = int(server[f"shares.{client}"].argmax())
            frame = {name: server[f"expert.{k}.{name}"] for name in FRAME}
            sent[client] = Sent(named("global", expert | frame))
        return sent

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Experts move; then, if there are new sketches, all groups are made anew."""
        told = [upload for upload in uploads if SKETCH[0] in upload.tensors]
        if trained := [upload for upload in uploads if upload not in told]:
            server = self._moved(given, server, trained)
        new: Tensors = {}
        for upload in told:
            one = under(upload.tensors, "sketch")
            if sketch.possible(one):  # else it is asked again
                examples = {"examples": torch.tensor(float(upload.examples))}
                new |= named(f"sketch.{upload.client}", one | examples)
        return self._grouped(given, server | new) if new else server

    def _moved(self, given: Given, server: Tensors, uploads: Sequence[Upload]) -> Tensors:
        """E_k + mean of all moves + share (mean of its own clients' moves - mean of all moves).

        A client's move, seen from expert k, is what it sent, had it started there. A client of
        several groups counts in each by its share of it.
        """
        experts = [without(expert) for expert in experts_of(server, "expert")]
        member_mK = torch.stack([server[f"shares.{upload.client}"] for upload in uploads])
        examples_m = torch.tensor([float(upload.examples) for upload in uploads])
        starts = combine(member_mK, experts)
        everybody, alone, apart = [], {}, _Apart({}, {})
        for k, (expert, member_m) in enumerate(zip(experts, member_mK.T, strict=True)):
            seen_m = [
                _from(u.tensors, start, expert) for u, start in zip(uploads, starts, strict=True)
            ]
            everybody.append(given.average(seen_m, examples_m.tolist()))
            if member_m.any():
                alone[k] = given.average(seen_m, (member_m * examples_m).tolist())
                apart.note(everybody[k], alone[k], seen_m, member_m.tolist())
        shares, server = self._shares(server, apart, len(uploads), len(alone))
        for k, moved in enumerate(everybody):
            if k in alone:
                moved = _further(moved, alone[k], shares)
            server = server | named(f"expert.{k}", moved)
        return server

    def _shares(
        self, server: Tensors, apart: "_Apart", m: int, K: int
    ) -> tuple[dict[str, float], Tensors]:
        """By layer: 1 - variance inside groups / variance between them, both over rounds; and the
        state that remembers them.
        """
        if self.share == "whole":
            return dict.fromkeys(apart.between, 1.0), server
        if self.share == "none" or K < 2 or m < FEW * K:
            return dict.fromkeys(apart.between, 0.0), server
        shares, kept = {}, {}
        for layer, between in apart.between.items():
            now = torch.tensor([between / (K - 1), apart.within[layer] / (m - K)])
            before = server.get(f"variance.{layer}", now)
            kept[layer] = MEMORY * before + (1 - MEMORY) * now
            between, within = kept[layer].tolist()
            shares[layer] = max(0.0, 1 - within / between) if between else 0.0
        return shares, server | named("variance", kept)

    def _grouped(self, given: Given, server: Tensors) -> Tensors:
        """Groups, gate and frames from all sketches; an expert goes on from those that its clients
        had.
        """
        mixture, first = as_mixture(given.model), not under(server, "shares")
        clients, moments = sketch.moments_of(server)
        choose = self.groups == "chosen"
        labels = sketch.groups(moments, mixture.experts, choose, given.seed)
        if self.relevance == "shuffled":
            order = torch.randperm(len(labels), generator=rng(given.seed, "groups"))
            labels = [labels[i] for i in order.tolist()]
        member_KN = sketch.members(labels, mixture.experts)
        experts = experts_of(server, "expert")
        if not first:
            experts = combine(_kept(server, clients, moments.count, member_KN), experts)
        if self.frames and experts[0]["frame.scale"].ndim:
            made = frames(moments.together(member_KN))
            experts = [e | frame for e, frame in zip(experts, made, strict=True)]
        server = server | named("gate", sketch.gate(moments, member_KN))
        if self.groups == "soft":
            member_KN = sketch.shares(moments, under(server, "gate"))
        server |= named("shares", dict(zip(clients, member_KN.T.float().contiguous(), strict=True)))
        for k, expert in enumerate(experts):
            server |= named(f"expert.{k}", expert)
        return self._taught(given, server) if first and self.restart else server

    def _taught(self, given: Given, server: Tensors) -> Tensors:
        """All experts at one model that read the reserve set, each example as its group does."""
        mixture, x = as_mixture(given.model), given.reserve.x[:, 0].clone()
        with torch.no_grad():
            first_R = _framed(mixture).weigh(server, x).argmax(1)
        names = expert_names(server, "expert")
        for k, name in enumerate(names):
            x[first_R == k] = read(under(server, name), x[first_R == k])
        learning = replace(
            given.learning, epochs=self.restart, optimizer="adam", rate=TAUGHT, views=1
        )
        start = without(under(server, names[0]))
        reserve = Examples(x[:, None], given.reserve.y)
        draw = rng(given.seed, "restart")
        model = taught(mixture.expert, start, reserve, learning, draw)
        for name in names:
            server = server | named(name, {key: value.clone() for key, value in model.items()})
        return server

    def served(self, model: Model, server: Tensors) -> ServedMixture:
        return ServedMixture(_framed(as_mixture(model)), Local(server), True)

    # ---- client

    def trains(self, model: Model) -> Model:
        return Framed(as_mixture(model).expert)

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """Its group's expert; nothing to train while it has no group."""
        expert = under(sent, "global")
        if not expert:
            return Local({}, under(sent, "start"))
        return Local(expert, anchored(self.trains(model), expert) if self.mu else {})

    def penalty(self, model: Model, local: Local) -> Tensor | float:
        return proximal(self.mu, local)

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """The sketch of its training inputs, as long as it has no group."""
        if local.trained:
            return {}
        told_BP = sketch.numbers(as_mixture(model).expert, local.fixed, own.x[:, 0])
        return named("sketch", sketch.sketch(told_BP))

    def finish(self, model: Model, local: Local) -> Finished:
        stays = Local(local.trained).kept()
        return Finished(stays, leaves=without(local.trained))

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        return Local.of(own) if own else Local(under(sent, "global"))

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """The expert of the group whose sketch is nearest: that takes no labels."""
        if not under(server, "shares"):
            return super().offers(model, server, few)
        clients, moments = sketch.moments_of(server)
        member_KN = torch.stack([server[f"shares.{client}"] for client in clients], dim=1)
        start = under(server, "gate.start")
        told_BP = sketch.numbers(as_mixture(model).expert, start, few.x[:, 0])
        k = sketch.nearest(moments, member_KN, told_BP)
        return [Chosen(Local(under(server, f"expert.{k}")), {f"expert {k}": 1.0})]


def _framed(mixture: MixtureModel) -> MixtureModel:
    """The same with experts behind frames, and the gate of sketches."""
    return mixture.having(Framed(mixture.expert), SketchGate(mixture.expert, mixture.experts))


@dataclass(frozen=True)
class _Apart:
    """By layer, sums of squares: of groups' experts from everybody's, and of clients from their
    groups'.
    """

    between: dict[str, float]
    within: dict[str, float]

    def note(
        self,
        everybody: Tensors,
        alone: Tensors,
        seen_m: Sequence[Tensors],
        member_m: Sequence[float],
    ) -> None:
        """Of one group, whose clients are members by these shares."""
        _add(self.between, alone, everybody, sum(member_m))
        for seen, member in zip(seen_m, member_m, strict=True):
            if member:
                _add(self.within, seen, alone, member)


def _add(sums: dict[str, float], one: Tensors, other: Tensors, times: float) -> None:
    """To each layer's sum the squared distance of its tensors, so many times."""
    for name, value in one.items():
        if value.is_floating_point():
            square = float((value - other[name]).double().square().sum())
            sums[_layer(name)] = sums.get(_layer(name), 0.0) + times * square


def _from(sent: Tensors, start: Tensors, other: Tensors) -> Tensors:
    """What a client would have sent, had it started from another expert and moved as it did."""
    seen = dict(sent)
    for name, value in sent.items():
        if value.is_floating_point():
            seen[name] = value + (other[name] - start[name])
    return seen


def _further(moved: Tensors, alone: Tensors, shares: dict[str, float]) -> Tensors:
    """From where all clients moved an expert, a share of the way to where its own did."""
    further = dict(moved)
    for name, value in moved.items():
        if value.is_floating_point():
            further[name] = torch.lerp(value, alone[name], shares[_layer(name)])
    return further


def _layer(name: str) -> str:
    """A layer's weight and bias have one share."""
    return name.rpartition(".")[0]


def _kept(server: Tensors, clients: Sequence[str], count_N: Tensor, member_KN: Tensor) -> Tensor:
    """[K, K]: of which experts a new group's expert is made, by its clients' examples; of all
    clients', if all of its own are new.
    """
    none_K = torch.zeros(len(member_KN))
    before_NK = torch.stack([server.get(f"shares.{client}", none_K) for client in clients])
    weight_NK = count_N[:, None] * before_NK
    weight_KK = member_KN @ weight_NK
    alone_K = weight_KK.sum(1) == 0
    weight_KK[alone_K] = weight_NK.sum(0)
    return weight_KK / weight_KK.sum(1, keepdim=True)
