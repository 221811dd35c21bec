"""Gaussian experts: an expert is what a client knows of each class, sent once; a client's predictor
is a closed-form blend of its own and the others'. Nothing is trained by gradient.

A client sends frequencies, means and scatter of its classes' frozen features. The server keeps them
by client, so that to take one out is exact, measures how far each pair disagrees, and gives every
client a discriminant (discriminant.py): class means and metric of all, where those who disagree
with it count less, and each expert's own class means as components, weighed image by image
(head.py). A client keeps to its own expert where that does better on its own examples.

Shapes: C classes, D feature width, P the width that experts have, N clients in the pool, J
components of a class: the client's own expert, the others', the blend's mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..declared import Control, Declared, Figure, Metric
from ..learn import Examples, Local
from ..method import Chosen, Finished, Given, Method, Sent, Upload
from ..model import Model
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under
from . import discriminant, regimes
from .controls import AVERAGED, POOLED
from .discriminant import Blend, Experts, Prior
from .head import PARTS, Discriminant, Judged, better, head, prior_of, projected
from .pool import (
    about,
    anchor_of,
    basis_of,
    blend_of,
    expert_of,
    experts_of,
    row,
    symmetric,
    triangle,
    triangular,
    width_of,
    zero_shot,
)

MOST = 1000  # experts of which a client's log says the shares
ALONE = {"prior": 0.05, "ridge": 1.0, "kappa": 0.1}  # of a client's own expert by itself
_CONTROLS = (
    Control(
        "own expert alone",
        {"method.experts": (0,)},
        free=("method.select", "method.eta", "method.rho"),
        needed=(
            "no finished run of the same with method.experts = 0 is among these, so they do not"
            " tell whether the others' experts add anything to one's own"
        ),
    ),
    Control("all weighed alike", {"method.eta": (0.0,), "method.rho": (0.0,)}),
    Control("random experts", {"method.select": ("random",)}),
    AVERAGED,
    POOLED,
)
_ALONE = Metric(
    "alone",
    "Clients that keep to their own expert",
    "share of clients",
    "1 where a client's own expert by itself did better on its own examples, each left out in"
    " turn.",
    allowed=Figure(least=0, most=1),
)


@dataclass(frozen=True)
class GaussianExperts(Method):
    """Frequencies, means and scatter of classes as experts, blended in closed form."""

    experts: int = option(
        MOST, says="K, others' experts that a client gets at most; 0: its own alone", ge=0, le=MOST
    )
    select: Literal["adds", "nearest", "farthest", "random"] = option(
        "adds", says="which K: by what they add to the client's classes, by disagreement, by chance"
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
    rho: float = option(1.0, says="the same of its scatter", ge=0)
    ridge: float = option(0.1, says="lambda of the metric, in mean variances", gt=0)
    kappa: float = option(0.2, says="inverse temperature of squared distances", gt=0)
    prior: float = option(1.0, says="k0, examples that the prior mean of a class is worth", gt=0)
    texts: float = option(
        0.3, says="tau, how far classes' texts move the prior means, where a model has any", ge=0
    )
    shrink: float = option(
        4.0, says="examples by which an expert's class mean leans on the blend's", ge=0
    )
    head: Literal["imagewise", "linear"] = option(
        "imagewise", says="experts as components, weighed image by image, or one mean a class"
    )
    classes: Literal["own", "alike"] = option(
        "own", says="prior of the classes: the client's own counts, or all alike"
    )
    scatter: Literal["full", "diagonal"] = option(
        "full", says="what an expert says of the variance: P (P + 1) / 2 numbers, or P"
    )
    width: int = option(
        128,
        says="P: wider features are projected, by a PCA of everybody's second moments, which"
        " takes a round more; 0: never",
        ge=0,
    )
    guard: bool = option(
        True, says="keep to one's own expert where that does better on one's own examples"
    )

    def declares(self) -> Declared:
        if not self.experts:
            return Declared(shared=False, metrics=(_ALONE,))
        return Declared(
            controls=_CONTROLS,
            metrics=(_ALONE,),
            experts=self.experts + 2,
            listed="by nearness, the blend's mean last",
        )

    def fits(self, model: Model, reserve: int) -> None:
        width_of(model)

    def uploads(self, model: Model) -> frozenset[str]:
        if not self.experts:
            return frozenset()
        names = {"frequency", "mean", "scatter"}
        if self._projects(model):
            names |= {"middle", "moment"}
        if not self.regimes:
            names.add("scores")
        return frozenset(names)

    def _projects(self, model: Model) -> bool:
        return 0 < self.width < width_of(model)

    # ---- server

    def open(self, given: Given) -> Tensors:
        """Before anybody said anything: the classes' texts as means, which is zero-shot."""
        return named("global", zero_shot(given.model, {}))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        if not self.experts:
            return {}
        D, C = width_of(model), len(model.classes)
        shapes: dict[str, tuple[int, ...]] = {"middle": (D,), "moment": (triangular(D),)}
        if not self._projects(model) or "global.basis" in server:
            P = server["global.mean"].shape[-1]
            scatter = P if self.scatter == "diagonal" else triangular(P)
            shapes = {"frequency": (C,), "mean": (C, P), "scatter": (scatter,)}
        if "global.asked" in server:
            shapes["scores"] = (len(regimes.CANDIDATES),)
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """What all share, with the basis of features if there is one; nothing is trained of it."""
        return dict.fromkeys(clients, Sent(self.publish(server)))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Each client's expert under its name, in the place of what it sent before; or the basis,
        from the second moments of the first round's clients.
        """
        if not self.experts:
            return server
        if "moment" in uploads[0].tensors:
            basis = self._basis(uploads)
            return named("global", zero_shot(given.model, basis))
        server = dict(server)
        for upload in uploads:
            server |= named(f"pool.{upload.client}", row(upload))
        _, experts = experts_of(server)
        basis = basis_of(server)
        server["anchor"] = self.texts * anchor_of(given.model, basis)
        whole_NC = torch.ones_like(experts.count)
        blend = discriminant.blended(experts, whole_NC, whole_NC[:, 0], self._leaning(server))
        server |= named("global", head(blend, self.kappa) | basis)
        if not self.regimes:
            server |= {
                "global.asked": torch.tensor(1.0),
                "chosen": regimes.choice(under(server, "pool")),
            }
        return server

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        """Each client's own blend; where regimes are chosen, the heads it is asked about, too."""
        if not self.experts:
            return {upload.client: Sent({}) for upload in uploads}
        names, experts = experts_of(server)
        if not names:
            return {}
        u_NN = discriminant.disagreement(experts)
        count, eta = self.regimes, self.eta
        if not self.regimes:
            count, eta = regimes.CANDIDATES[int(server["chosen"])]
        counts = {count} if self.regimes else {R for R, _ in regimes.CANDIDATES}
        alike = {R: regimes.together(experts, R) for R in counts}
        back = {}
        for upload in uploads:
            own = names.index(upload.client)
            chosen = self._chosen(experts, u_NN[own], own, upload.client)
            heard = discriminant.heard(experts, u_NN[own], alike[count][own], eta, self.rho)
            tensors = self._blend(server, experts, heard, own, chosen)
            if not self.regimes:
                leaning = self._leaning(server)
                tensors |= regimes.others_heads(experts, u_NN[own], self.rho, leaning, own, alike)
            back[upload.client] = Sent(named("blend", tensors))
        return back

    def _basis(self, uploads: Sequence[Upload]) -> Tensors:
        share_m = torch.tensor([float(upload.examples) for upload in uploads]).double()
        share_m = share_m / share_m.sum()
        middle_D = share_m @ torch.stack([u.tensors["middle"] for u in uploads]).double()
        moment_DD = torch.zeros(len(middle_D), len(middle_D)).double()
        for share, upload in zip(share_m, uploads, strict=True):
            moment_DD += share * symmetric(upload.tensors["moment"], len(middle_D))
        basis_DP = discriminant.basis(moment_DD - torch.outer(middle_D, middle_D), self.width)
        return {"basis": basis_DP.float(), "middle": middle_D.float()}

    def _chosen(self, experts: Experts, u_N: Tensor, own: int, client: str) -> list[int]:
        """Positions of the K others, nearest first."""
        nearest = [j for j in torch.argsort(u_N, stable=True).tolist() if j != own]
        if self.experts >= len(nearest) or self.select == "nearest":
            return nearest[: self.experts]
        if self.select == "farthest":
            return nearest[-self.experts :]
        if self.select == "random":
            order = torch.randperm(len(nearest), generator=rng(0, "experts", 0, client)).tolist()
            chosen = {nearest[i] for i in order[: self.experts]}
        else:
            chosen = discriminant.most_adding(experts, u_N, own, nearest, self.experts, self.prior)
        return [j for j in nearest if j in chosen]

    def _blend(
        self,
        server: Tensors,
        experts: Experts,
        heard: tuple[Tensor, Tensor],
        own: int,
        chosen: Sequence[int],
    ) -> Tensors:
        """What a client predicts with, and what it needs to leave one of its examples out."""
        speaking = [own, *chosen]
        heard_NC, scatter_N = heard
        weight_NC = torch.zeros_like(heard_NC)
        weight_NC[speaking] = heard_NC[speaking]
        weight_NC[own] = 1
        blend = discriminant.blended(experts, weight_NC, scatter_N, self._leaning(server))
        tensors = head(blend, self.kappa) | basis_of(server)
        if self.head == "imagewise":
            count_JC, sum_JCP = experts.count[speaking], experts.sums[speaking]
            weight_JC = weight_NC[speaking] * count_JC
            tensors |= self._components(count_JC, sum_JCP, weight_JC, blend.mu)
        return tensors | named("about", about(blend)) | {"anchor": server["anchor"]}

    def _components(
        self, count_JC: Tensor, sum_JCP: Tensor, weight_JC: Tensor, mu_CP: Tensor
    ) -> Tensors:
        """Each expert's class means, leaning on the blend's, and what they weigh; the blend's
        last.
        """
        mean_JCP = sum_JCP + self.shrink * mu_CP
        mean_JCP = mean_JCP / (count_JC + self.shrink).clamp_min(1e-12)[..., None]
        weight_JC = torch.cat([weight_JC, torch.full_like(weight_JC[:1], self.prior)])
        return {
            "mean": torch.cat([mean_JCP, mu_CP[None]]).float(),
            "weight": (weight_JC / weight_JC.sum(0)).float(),
        }

    def _leaning(self, server: Tensors) -> Prior:
        return Prior(self.prior, server["anchor"].double(), self.ridge)

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """Nothing to train: the client's blend or, if it has none yet, what all share."""
        before = Local.of(own or {}).fixed
        shared = under(sent, "global")
        asked = {"asked": shared["asked"]} if "asked" in shared else {}
        return Local({}, before | asked if "alone" in before else shared)

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """The client's expert; or, before there is a basis, its second moments."""
        if not self.experts:
            return {}
        if self._projects(model) and "basis" not in local.fixed:
            x_nD = own.x[:, 0].double()
            moment = triangle(x_nD.T @ x_nD / len(x_nD))
            return {"middle": x_nD.mean(0).float(), "moment": moment.float()}
        expert = expert_of(model, local.fixed, own)
        scatter_PP = expert.scatter[0] / len(own)
        scatter = scatter_PP.diagonal() if self.scatter == "diagonal" else triangle(scatter_PP)
        said = {
            "frequency": expert.count[0] / len(own),
            "mean": expert.mean[0],
            "scatter": scatter,
        }
        if "asked" in local.fixed:
            said["scores"] = local.fixed.get("scores", regimes.NONE)
        return {name: value.float() for name, value in said.items()}

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays=local.kept(), leaves={})

    def absorb(self, model: Model, sent: Tensors, kept: Tensors | None, own: Examples) -> Tensors:
        """The blend, behind the client's own classes; its own expert alone where that does
        better.
        """
        blend = under(sent, "blend")
        expert = expert_of(model, blend, own)
        anchor_CP = blend.get("anchor", self.texts * anchor_of(model, {}))
        leaning = Prior(ALONE["prior"], anchor_CP.double(), ALONE["ridge"])
        whole_NC = torch.ones_like(expert.count)
        alone = discriminant.blended(expert, whole_NC, whole_NC[:, 0], leaning)
        count_C = expert.count[0]
        local, by_itself = head(alone, ALONE["kappa"]), 1.0
        if blend and not self._keeps_to_itself(blend, alone, expert, own):
            local = {name: blend[name] for name in PARTS if name in blend}
            by_itself = 0.0
        local["alone"] = torch.tensor(by_itself)
        if "others" in blend:
            local["scores"] = regimes.scores(
                blend, self.kappa, projected(own.x[:, 0], blend), own.y
            )
        if self.classes == "own":
            local["classes"] = prior_of(count_C)
        return Local({}, local | basis_of(named("global", blend))).kept()

    def _keeps_to_itself(
        self, blend: Tensors, alone: Blend, expert: Experts, own: Examples
    ) -> bool:
        if not self.guard:
            return False
        x_nP = projected(own.x[:, 0], blend)
        one = Judged(alone, ALONE["prior"], ALONE["kappa"])
        other = Judged(blend_of(blend), self.prior, self.kappa)
        return better(one, other, x_nP, own, expert.count[0])

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """The client's blend; what all share if it has none."""
        return Local.of(own) if own else Local({}, under(sent, "global"))

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Discriminant(model, local)

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """A newcomer's blend: its few examples are an expert as any other."""
        names, experts = experts_of(server)
        if not names:
            return super().offers(model, server, few)
        basis = basis_of(server)
        experts = experts.with_another(expert_of(model, basis, few))
        u_N = discriminant.disagreement(experts)[-1]
        chosen = self._chosen(experts, u_N, len(names), "")
        heard = discriminant.heard(experts, u_N, torch.ones_like(u_N), self.eta, self.rho)
        blend = self._blend(server, experts, heard, len(names), chosen)
        local = Local.of(self.absorb(model, named("blend", blend), None, few))
        shares_BCE = Discriminant(model, local).shares(few.x[:, 0])
        if shares_BCE is None:
            return [Chosen(local)]
        speakers = ["own examples", *(names[j] for j in chosen), "mean of all"]
        return [Chosen(local, dict(zip(speakers, shares_BCE.mean((0, 1)).tolist(), strict=True)))]
