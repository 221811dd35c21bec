"""How a server turns a pool of Gaussian experts into a blend for each client: whom a client hears,
how much, and what it gets of that.

Clients are worked on in blocks, so that no tensor has all pairs of clients, classes and features at
once. This room knows the pool; it does not know messages, nor what a client makes of its blend.

Shapes: N clients in the pool, R of them that blends are for, C classes, P feature width, J
components of a class: the client's own expert, the others', the blend's mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..options import option
from ..tensors import Tensors, named, rng
from . import discriminant, regimes
from .discriminant import Blend, Experts, Prior
from .head import head
from .pool import about, basis_of, experts_of, placebos_of

MOST = 1000  # experts of which a client's log says the shares
BLOCK = 64  # clients whose blends are computed at once


@dataclass(frozen=True)
class World:
    """What clients are blended in: experts, how far they disagree, and who is of one kind, by the
    number of regimes.
    """

    names: Sequence[str]
    experts: Experts
    apart: Tensor  # [N, N]
    alike: Mapping[int, Tensor]


@dataclass(frozen=True)
class Blending:
    """Whom a client hears, and how much."""

    experts: int = option(
        50, says="K, others' experts that a client gets at most; 0: its own alone", ge=0, le=MOST
    )
    select: Literal["adds", "nearest", "farthest", "random", "none"] = option(
        "adds",
        says="which K: by what they add to the client's classes, by disagreement, by chance; none:"
        " all weighed alike, and the server learns sums over clients alone",
    )
    eta: float = option(
        1.0, says="how much disagreement makes another's class mean count less; 0: not", ge=0
    )
    regimes: int = option(
        1,
        says="R, groups of clients that see or name classes alike; 0: chosen, with eta, by how well"
        " others' experts name clients' own images, which takes a round more",
        ge=0,
        le=4,
    )
    groups: Literal["anyone", "names"] = option(
        "anyone",
        says="whom a client may hear: anyone, or those whose names are the same up to the last"
        " hyphen, where a federation knows its groups",
    )
    rho: float = option(1.0, says="the same of its scatter", ge=0)
    ridge: float = option(0.1, says="lambda of the metric, in mean variances", gt=0)
    kappa: float = option(0.2, says="inverse temperature of squared distances", gt=0)
    prior: float = option(1.0, says="k0, examples that the prior mean of a class is worth", gt=0)
    shrink: float = option(
        4.0, says="examples by which an expert's class mean leans on the blend's", ge=0
    )
    head: Literal["imagewise", "linear"] = option(
        "imagewise", says="experts as components, weighed image by image, or one mean a class"
    )

    def blends(self, server: Tensors, clients: Sequence[str]) -> Iterator[tuple[str, Tensors]]:
        """What each of these clients of the pool is given."""
        names, experts = experts_of(server)
        row = {name: position for position, name in enumerate(names)}
        placebos = placebos_of(server, names)
        if placebos is None:
            world = self._world(names, experts)
            for first in range(0, len(clients), BLOCK):
                block = clients[first : first + BLOCK]
                given = self._blended(server, world, [row[client] for client in block])
                yield from zip(block, given, strict=True)
            return
        for client in clients:  # all but the client itself tell something else
            seen = placebos.in_place(row[client], experts)
            (tensors,) = self._blended(server, self._world(names, seen), [row[client]])
            yield client, tensors

    def newcomers(self, server: Tensors, newcomer: Experts) -> tuple[list[str], Tensors]:
        """Whom a client hears whose expert is not in the pool, and its blend."""
        names, experts = experts_of(server)
        world = self._world([*names, ""], experts.with_another(newcomer))
        return self._joined(server, world)

    def strangers(self, server: Tensors, x_nP: Tensor) -> tuple[list[str], Tensors]:
        """The same of one whose images have no labels: it has nothing to say of any class."""
        names, experts = experts_of(server)
        N = len(names)
        nothing = experts.nobody()
        apart_NN = torch.zeros(N + 1, N + 1, dtype=torch.float64)
        apart_NN[N, :N] = discriminant.strangeness(experts, x_nP)
        alike = dict.fromkeys(range(5), torch.ones_like(apart_NN))
        world = World([*names, ""], experts.with_another(nothing), apart_NN, alike)
        return self._joined(server, world)

    def _joined(self, server: Tensors, world: World) -> tuple[list[str], Tensors]:
        """Of the last client of a world."""
        last = len(world.names) - 1
        (tensors,) = self._blended(server, world, [last])
        return [world.names[j] for j in self._chosen(world, last)], tensors

    def leaning(self, server: Tensors) -> Prior:
        return Prior(self.prior, server["anchor"].double(), self.ridge)

    def _world(self, names: Sequence[str], experts: Experts) -> World:
        counts = {self.regimes} if self.regimes else {R for R, _ in regimes.CANDIDATES}
        known_NN = torch.ones(len(names), len(names), dtype=torch.float64)
        if self.groups == "names":
            kinds = [name.rpartition("-")[0] or name for name in names]
            known = [[one in ("", other) for other in kinds] for one in kinds]
            known_NN = torch.tensor(known).double()
        alike = {R: known_NN * regimes.together(experts, R) for R in counts}
        return World(names, experts, discriminant.disagreement(experts), alike)

    def _blended(self, server: Tensors, world: World, own: Sequence[int]) -> list[Tensors]:
        """What clients predict with, and what they need to leave one of their examples out."""
        count, eta = self.regimes, self.eta
        if not self.regimes:
            count, eta = regimes.CANDIDATES[int(server["chosen"])]
        experts, own_R = world.experts, torch.tensor(own)
        weight_RNC, scatter_RN = discriminant.heard(
            experts, world.apart[own_R], world.alike[count][own_R], eta, self.rho
        )
        speaking = [[one, *self._chosen(world, one)] for one in own]
        speaks_RN = torch.zeros_like(scatter_RN)
        for row, positions in enumerate(speaking):
            speaks_RN[row, positions] = 1
        weight_RNC *= speaks_RN[..., None]
        weight_RNC[torch.arange(len(own)), own_R] = 1
        blends = discriminant.blended(experts, weight_RNC, scatter_RN, self.leaning(server))
        given = [
            self._told(server, experts, blend, weight_NC, positions)
            for blend, weight_NC, positions in zip(blends, weight_RNC, speaking, strict=True)
        ]
        if self.regimes:
            return given
        asked = regimes.others_heads(
            experts, world.apart[own_R], self.rho, self.leaning(server), own_R, world.alike
        )
        return [tensors | heads for tensors, heads in zip(given, asked, strict=True)]

    def _chosen(self, world: World, own: int) -> list[int]:
        """Positions of the K others, nearest first."""
        u_N = world.apart[own]
        nearest = [j for j in torch.argsort(u_N, stable=True).tolist() if j != own]
        if self.experts >= len(nearest) or self.select == "nearest":
            return nearest[: self.experts]
        if self.select == "farthest":
            return nearest[-self.experts :]
        if self.select == "random":
            draw = rng(0, "experts", 0, world.names[own])
            order = torch.randperm(len(nearest), generator=draw).tolist()
            chosen = {nearest[i] for i in order[: self.experts]}
        else:
            chosen = discriminant.most_adding(
                world.experts, u_N, own, nearest, self.experts, self.prior
            )
        return [j for j in nearest if j in chosen]

    def _told(
        self,
        server: Tensors,
        experts: Experts,
        blend: Blend,
        weight_NC: Tensor,
        speaking: Sequence[int],
    ) -> Tensors:
        tensors = self.said(server, blend)
        if self.head == "imagewise":
            count_JC, mean_JCP = experts.count[speaking], experts.mean[speaking]
            weight_JC = weight_NC[speaking] * count_JC
            tensors |= self._components(count_JC, mean_JCP, weight_JC, blend.mu)
        return tensors

    def said(self, server: Tensors, blend: Blend) -> Tensors:
        """A blend as a client gets it, one mean a class."""
        leaning = {"anchor": server["anchor"]}
        return head(blend, self.kappa) | basis_of(server) | named("about", about(blend)) | leaning

    def _components(
        self, count_JC: Tensor, mean_JCP: Tensor, weight_JC: Tensor, mu_CP: Tensor
    ) -> Tensors:
        """Each expert's class means, leaning on the blend's, and what they weigh; the blend's
        last.
        """
        sum_JCP = count_JC[..., None] * mean_JCP + self.shrink * mu_CP
        mean_JCP = sum_JCP / (count_JC + self.shrink).clamp_min(1e-12)[..., None]
        weight_JC = torch.cat([weight_JC, torch.full_like(weight_JC[:1], self.prior)])
        return {
            "mean": torch.cat([mean_JCP, mu_CP[None]]).float(),
            "weight": (weight_JC / weight_JC.sum(0)).float(),
        }
