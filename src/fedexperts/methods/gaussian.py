"""Gaussian experts: an expert is what a client knows of each class, sent once; a client's predictor
is a closed-form blend of its own and the others'. Nothing is trained by gradient.

A client sends frequencies, means and scatter of its classes' frozen features. The server keeps them
by client, so that to take one out is exact, measures how far each pair disagrees, and gives every
client a discriminant (discriminant.py): class means and metric of all, where those who disagree
with it count less, and each expert's own class means as components, weighed image by image
(head.py). A client keeps to its own expert where that does better on its own examples.

Shapes: C classes, D feature width, P the width that experts have, N clients in the pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..declared import Control, Declared, Figure, Metric
from ..learn import Examples, Local
from ..method import Chosen, Finished, Given, Method, Reads, Sent, Upload
from ..model import Model
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under
from ..tensors import rng as seeded
from . import discriminant, regimes
from .blending import Blending
from .controls import AVERAGED, POOLED, VECTORS, WHITENED
from .discriminant import Blend, Experts, Prior
from .head import PARTS, Discriminant, Judges, better, head, prior_of, projected
from .placebo import Placebo, placebo
from .pool import (
    EXPERT,
    SUMS,
    Kind,
    anchor_of,
    basis_from,
    basis_of,
    blend_of,
    expert_of,
    experts_of,
    pile,
    row,
    said_of,
    said_shaped,
    sums_of,
    sums_shaped,
    width_of,
    zero_shot,
)

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
    WHITENED,
    VECTORS,
    Control("all weighed alike", {"method.select": ("none",)}),
    Control("true groups", {"method.groups": ("names",)}),
    Control("random experts", {"method.select": ("random",)}),
    Control("a placebo in the others' place", {"method.placebo": ("labels", "classes", "random")}),
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
class GaussianExperts(Blending, Method):
    """Frequencies, means and scatter of classes as experts, blended in closed form."""

    texts: float = option(
        0.3, says="tau, how far classes' texts move the prior means, where a model has any", ge=0
    )
    classes: Literal["own", "alike"] = option(
        "own", says="prior of the classes: the client's own counts, or all alike"
    )
    scatter: Kind = option(
        "full",
        says="what an expert says of the variance: P (P + 1) / 2 numbers; 8 directions and the rest"
        " of the diagonal, 9 P; or P",
    )
    width: int = option(
        128,
        says="P: wider features are projected, by a PCA of everybody's second moments, which"
        " takes a round more; 0: never",
        ge=0,
    )
    least: int = option(
        1,
        says="images of a class below which nothing of it is told: few images are in their sums",
        ge=1,
    )
    guard: bool = option(
        True, says="keep to one's own expert where that does better on one's own examples"
    )
    placebo: Placebo = option(
        "none",
        says="an experiment: others' labels are shuffled inside each client, their classes renamed,"
        " or their features random; what still helps is no knowledge of classes",
    )

    def declares(self) -> Declared:
        if not self.experts:
            return Declared(shared=False, metrics=(_ALONE,))
        return Declared(
            controls=_CONTROLS,
            metrics=(_ALONE,),
            experts=0 if self.select == "none" else self.experts + 2,
            listed="by nearness, the blend's mean last",
        )

    def fits(self, model: Model, reserve: int) -> None:
        width_of(model)
        if self.select == "none" and (
            self.regimes != 1 or self.groups != "anyone" or self.placebo != "none"
        ):
            raise ValueError(
                'select = "none" lets the server learn sums over all clients and no client\'s own,'
                ' so there is nothing to group or to replace; use regimes = 1, groups = "anyone"'
                ' and placebo = "none", or another select'
            )

    def reads(self) -> Reads:
        return "sums" if self.select == "none" else "uploads"

    def uploads(self, model: Model) -> frozenset[str]:
        if not self.experts:
            return frozenset()
        if self.select == "none":
            return SUMS
        names = EXPERT
        if self._projects(model):
            names |= SUMS
        if not self.regimes:
            names |= {"scores"}
        if self.placebo != "none":
            names |= {f"placebo.{name}" for name in EXPERT}
        return names

    def _projects(self, model: Model) -> bool:
        return 0 < self.width < width_of(model)

    def _asks_sums(self, model: Model, shared: Tensors) -> bool:
        """Whether sums are all that is asked: always, or before there is a basis."""
        return self.select == "none" or (self._projects(model) and "basis" not in shared)

    # ---- server

    def open(self, given: Given) -> Tensors:
        """Before anybody said anything: the classes' texts as means, which is zero-shot."""
        return named("global", zero_shot(given.model, {}))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        if not self.experts:
            return {}
        D, C = width_of(model), len(model.classes)
        if self._asks_sums(model, under(server, "global")):
            return sums_shaped(C, D)
        shapes = said_shaped(C, server["global.mean"].shape[-1], self.scatter)
        if self.placebo != "none":
            shapes |= named("placebo", shapes)
        if "global.asked" in server:
            shapes["scores"] = torch.zeros(len(regimes.CANDIDATES))
        return shapes

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Each client's expert under its name, in the place of what it sent before; or, of sums,
        the basis or all that there is to know.
        """
        if not self.experts:
            return server
        if "moment" in uploads[0].tensors:
            return self._of_sums(given, uploads)
        server = dict(server)
        for upload in uploads:
            server |= named(f"pool.{upload.client}", self._row(upload))
        return self._shared(given.model, server)

    def _shared(self, model: Model, server: Tensors) -> Tensors:
        """The same server with what follows from its pool for all."""
        _, experts = experts_of(server)
        server = server | self._known(model, experts, basis_of(server))
        if not self.regimes:
            server |= {
                "global.asked": torch.tensor(1.0),
                "chosen": regimes.choice(under(server, "pool")),
            }
        return server

    def _row(self, upload: Upload) -> Tensors:
        said = upload.tensors
        kept = row({name: said[name] for name in EXPERT}, upload.examples)
        if self.placebo != "none":
            kept |= named("placebo", row(under(said, "placebo"), upload.examples))
        if "scores" in said:
            kept["scores"] = said["scores"]
        return kept

    def _of_sums(self, given: Given, uploads: Sequence[Upload]) -> Tensors:
        """From the sums of a round's clients, of which the server needs no single one."""
        sizes = [upload.examples for upload in uploads]
        sums = given.average([upload.tensors for upload in uploads], sizes)
        basis = basis_from(sums, self.width) if self._projects(given.model) else {}
        if self.select != "none":
            return named("global", zero_shot(given.model, basis))
        known = self._known(given.model, pile(sums, sum(sizes), basis), basis)
        return known | named("sums", sums) | {"sums.examples": torch.tensor(float(sum(sizes)))}

    def _known(self, model: Model, experts: Experts, basis: Tensors) -> Tensors:
        """What all share: the head of all experts, weighed alike, and where class texts lie."""
        server = {"anchor": self.texts * anchor_of(model, basis)}
        blend = discriminant.piled(experts, self.leaning(server))
        return server | named("global", head(blend, self.kappa) | basis)

    def without(self, model: Model, server: Tensors, client: str) -> Tensors:
        """The pool without a client's row, added up again."""
        names, _ = experts_of(server)
        if client not in names:
            known = ", ".join(names) or "none: it knows sums alone, or nothing yet"
            raise ValueError(f"the server has no expert of {client!r}; it has {known}")
        if "global.basis" in server or not self.regimes:
            raise ValueError(
                f"what {client} sent is in more than its own expert: in the directions that all"
                " features are brought to, or in the choice of regimes; run anew without it. With"
                " method.width = 0 and regimes of at least 1 a client can be taken out"
            )
        less = {n: value for n, value in server.items() if not n.startswith(f"pool.{client}.")}
        return self._shared(model, less)

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        """Each client's own blend; where regimes are chosen, the heads it is asked about, too."""
        if not self.experts:
            return {upload.client: Sent({}) for upload in uploads}
        clients = [upload.client for upload in uploads]
        if self.select == "none":
            sums = under(server, "sums")
            everybody = pile(sums, float(sums["examples"]), basis_of(server))
            blend = discriminant.piled(everybody, self.leaning(server))
            return dict.fromkeys(clients, Sent(named("blend", self.said(server, blend))))
        if "anchor" not in server:
            return {}
        blends = self.blends(server, clients)
        return {client: Sent(named("blend", tensors)) for client, tensors in blends}

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """Nothing to train: the client's blend or, if it has none yet, what all share."""
        before = Local.of(own or {}).fixed
        shared = under(sent, "global")
        asked = {"asked": shared["asked"]} if "asked" in shared else {}
        drawn = {}
        if self.placebo != "none":
            drawn["draw"] = torch.randint(2**31, (), generator=rng)
        return Local({}, (before | asked if "alone" in before else shared) | drawn)

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """The client's expert, or its sums where they are all that is asked."""
        if not self.experts:
            return {}
        told = self._told_of(own, len(model.classes))
        if self._asks_sums(model, local.fixed):
            return sums_of(told.x[:, 0], told.y, len(model.classes), len(own))
        said = self._said(model, local, told, len(own))
        if self.placebo != "none":
            draw = seeded(int(local.fixed["draw"]), "placebo")
            instead = placebo(self.placebo, told, len(model.classes), draw)
            said |= named("placebo", self._said(model, local, instead, len(own)))
        if "asked" in local.fixed:
            said["scores"] = local.fixed.get("scores", regimes.NONE)
        return said

    def _told_of(self, own: Examples, classes: int) -> Examples:
        """The examples of classes that have enough of them."""
        enough = own.y.bincount(minlength=classes)[own.y] >= self.least
        return Examples(own.x[enough], own.y[enough])

    def _said(self, model: Model, local: Local, told: Examples, examples: int) -> Tensors:
        return said_of(expert_of(model, local.fixed, told), self.scatter, examples)

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
        alone = discriminant.piled(expert, leaning)
        count_C = expert.count[0]
        judges = Judges.of(projected(own.x[:, 0], blend), own, count_C)
        local, by_itself = self._local(blend, alone, judges)
        local["alone"] = torch.tensor(float(by_itself))
        if "others" in blend:
            local["scores"] = regimes.scores(
                blend, self.kappa, projected(own.x[:, 0], blend), own.y
            )
        if self.classes == "own":
            local["classes"] = prior_of(count_C)
        return Local({}, local | basis_of(named("global", blend))).kept()

    def _local(self, blend: Tensors, alone: Blend, judges: Judges) -> tuple[Tensors, bool]:
        """The head that a client predicts with, and whether it keeps to its own expert.

        A blend is heard as loudly as the client's own examples ask for. Its own expert is not asked
        about that: it would lean too much on the few examples of which one is left out.
        """
        if not blend:
            return head(alone, ALONE["kappa"]), True
        kappa = self.kappa
        if judges.enough:
            whole = blend_of(blend)
            kappa = judges.calmed(whole, self.prior, kappa)
            losses_n = judges.asked(whole, self.prior, kappa)
            alone_n = judges.asked(alone, ALONE["prior"], ALONE["kappa"])
            if self.guard and better(alone_n, losses_n):
                return head(alone, ALONE["kappa"]), True
        local = {name: blend[name] for name in PARTS if name in blend}
        return local | {"kappa": torch.tensor(kappa)}, False

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """The client's blend; what all share if it has none."""
        return Local.of(own) if own else Local({}, under(sent, "global"))

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Discriminant(model, local)

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """A newcomer's blend: its few examples are an expert as any other."""
        if not under(server, "pool"):
            return super().offers(model, server, few)
        chosen, blend = self.newcomers(server, expert_of(model, basis_of(server), few))
        local = Local.of(self.absorb(model, named("blend", blend), None, few))
        return [_chosen(model, local, chosen, few.x[:, 0])]

    def meets(self, model: Model, server: Tensors, x: Tensor) -> Chosen:
        """The blend of a newcomer whose images have no labels: of those whose images lie alike."""
        if not under(server, "pool"):
            return super().meets(model, server, x)
        chosen, blend = self.strangers(server, projected(x, basis_of(server)))
        local = Local({}, {name: blend[name] for name in PARTS if name in blend})
        return _chosen(model, local, chosen, x)


def _chosen(model: Model, local: Local, names: Sequence[str], x: Tensor) -> Chosen:
    """A newcomer's predictor, with the shares of whom it hears."""
    shares_BCE = Discriminant(model, local).shares(x)
    if shares_BCE is None:
        return Chosen(local)
    speakers = ["own examples", *names, "mean of all"]
    return Chosen(local, dict(zip(speakers, shares_BCE.mean((0, 1)).tolist(), strict=True)))
