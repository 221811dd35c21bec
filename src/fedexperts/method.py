"""The contract: what a model and a method are. A newcomer reads this file, client.py and loop.py,
and knows it all.

A *model* is a pure function of named tensors. A *method* is a frozen dataclass: its fields are its
hyperparameters, its functions are pure, and state is always an argument, so the same method runs in
one process, through bytes and on a network. This room does not know where a function runs, how a
client trains, or what is stored where.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .declared import Declared
from .learn import Examples, Learning, Local, fit
from .tensors import CPU, Tensors, apart, named, sum_in_order, under

NEVER = 1e-6  # a weight below it is none

Fact = float | int | str | list[float] | list[str]
Facts = dict[str, Fact]  # plain values beside the tensors: what a round's log says
Normal = Callable[[torch.Size], Tensor]  # standard normal numbers of a shape

_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Figure:
    """What a plain value beside the tensors may be: a number between two bounds, words, or a list
    of such.
    """

    kind: type = float  # int: whole numbers alone; str: words
    least: float = -_LARGEST
    most: float = _LARGEST
    longest: int = 0  # values of a list; 0: one value, and no list

    def allows(self, value: object) -> bool:
        """Whether a value is one of these; never for NaN, an infinite number, or True."""
        if not self.longest:
            return self._one(value)
        return isinstance(value, list) and len(value) <= self.longest and all(map(self._one, value))

    def _one(self, value: object) -> bool:
        if self.kind is str or isinstance(value, str):
            return self.kind is str and isinstance(value, str)
        kinds = (int,) if self.kind is int else (int, float)
        return type(value) in kinds and self.least <= value <= self.most  # type: ignore[operator]

    def __str__(self) -> str:
        one = {int: "a whole number", float: "a number", str: "words"}[self.kind]
        low, high = (
            f"{word} {bound:.16g}" for word, bound in (("from", self.least), ("to", self.most))
        )
        bounds = [
            *([low] if self.least > -_LARGEST else []),
            *([high] if self.most < _LARGEST else []),
        ]
        return " ".join(
            [f"at most {self.longest} times" if self.longest else "", one, *bounds]
        ).strip()


COUNT = Figure(int, 0, 2**53 - 1)  # whole numbers up to this are the same as floats


class Model(Protocol):
    """A pure function of named tensors; whatever is frozen is inside and invisible.

    Tensors that are sent, saved or kept lie on the CPU. A model that computes elsewhere says where
    as its `device`, takes tensors from anywhere, and answers where its inputs lie; training moves
    them to the device once.
    """

    @property
    def initial(self) -> Tensors:
        """What is trained, at its start: the same tensors for every client and for the server."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        ...

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, ...] inputs to [B, C] logits."""
        ...


@runtime_checkable
class PromptModel(Model, Protocol):
    """A model whose classes are texts behind a learned context: a prompted CLIP."""

    @property
    def scale(self) -> float:
        """CLIP's inverse temperature, which multiplies every similarity."""
        ...

    def texts(self, context: Tensor) -> Tensor:
        """[..., l, W] context vectors to [..., C, D] normalised text features."""
        ...


@runtime_checkable
class MovingModel(Model, Protocol):
    """A model with tensors that move by themselves while it trains: batch norm's running means and
    counters.
    """

    @property
    def moving(self) -> frozenset[str]:
        """Their names in `initial`."""
        ...

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """Logits in training, and the moving tensors' next values."""
        ...


@runtime_checkable
class MixtureModel(Model, Protocol):
    """Main experts that are always on, routed experts, and a gate; every expert is a client's
    model.

    Its tensors are `main.i.*`, `expert.k.*`, `gate.*` and, with main experts, `alpha`; its logits,
    log-probabilities.
    """

    @property
    def expert(self) -> Model:
        """The model that every expert is, and every client trains."""
        ...

    @property
    def gate(self) -> Model:
        """[B, ...] inputs to [B, K] logits of the routed experts."""
        ...

    @property
    def experts(self) -> int:
        """K, the number of routed experts."""
        ...

    @property
    def mains(self) -> int:
        """The number of main experts."""
        ...

    def answers(self, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
        """[E, B, C]: probabilities from each expert named `prefix.*`; prefix is "main" or
        "expert".
        """
        ...

    def routed(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the weights of the routed experts that `predict` computes; 0 for all others."""
        ...

    def mix(
        self, tensors: Tensors, mains_MBC: Tensor, routed_KBC: Tensor, weights_BK: Tensor
    ) -> Tensor:
        """[B, C]: log y(x) from the experts' answers and the routed experts' weights."""
        ...

    def predict(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: log y(x) of the few experts that the gate chooses; no other expert is
        computed.
        """
        ...

    def portable(self, tensors: Tensors, sparse: bool = False) -> "Portable":
        """The same as `logits` or, if sparse, as `predict`, without this package."""
        ...


def as_mixture(model: Model) -> MixtureModel:
    """The same model; ValueError, with what to type, if it is no mixture."""
    if not isinstance(model, MixtureModel):
        raise ValueError("this method needs a mixture; use a section [mixture] with experts = 4")
    return model


def needs_reserve(reserve: int, who: str = "this method") -> None:
    """ValueError, with what to type, if the server has no reserve examples."""
    if not reserve:
        raise ValueError(f"{who} needs a reserve set, and there is none; use data.reserve = 10")


def step(model: Model, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
    """Logits of a model in training, and the next values of its tensors that move by themselves."""
    if isinstance(model, MovingModel):
        return model.step(tensors, x)
    return model.logits(tensors, x), {}


def moving(model: Model) -> frozenset[str]:
    """Names of the tensors that have no gradient and move by themselves: none for most models."""
    return model.moving if isinstance(model, MovingModel) else frozenset()


def device(model: Model) -> torch.device:
    """Where a model computes."""
    found: torch.device = getattr(model, "device", CPU)
    return found


def held(model: Model, start: Tensors) -> Tensors:
    """What a proximal term holds a client near to: where it starts, but for the tensors that move
    by themselves.
    """
    return {name: value for name, value in start.items() if name not in moving(model)}


def proximal(mu: float, local: Local) -> Tensor | float:
    """mu / 2 times the squared distance to what is held (FedProx, arXiv:1812.06127, eq. 2)."""
    apart = [
        (local.trained[name] - local.fixed[name]).square().sum() for name in sorted(local.fixed)
    ]
    return mu / 2 * sum_in_order(apart) if apart else 0.0


def taught(
    model: Model,
    tensors: Tensors,
    examples: Examples,
    learning: Learning,
    generator: torch.Generator,
) -> Tensors:
    """A model's tensors after training on one set of examples: what the server does with its
    reserve set.
    """
    (trained,), _ = fit(
        lambda local, x: step(model, local.trained, x),
        lambda _: 0.0,
        [Local(tensors)],
        [examples],
        [generator],
        learning,
        {},
        moving=moving(model),
        device=device(model),
    )
    return trained


def dissected(
    mixture: MixtureModel,
    tensors: Tensors,
    x: Tensor,
    y: Tensor,
    weights_BK: Tensor,
    predict: Callable[[Tensors, Tensor], Tensor],
) -> Facts:
    """How many of inputs x with labels y a mixture gets right without its parts, and how its
    experts are used.

    `weights_BK` is what its gate says; `predict` answers with whatever experts it is meant to.
    """
    mains_MBC, routed_KBC = (mixture.answers(tensors, prefix, x) for prefix in ("main", "expert"))
    alike_BK = torch.full_like(weights_BK, 1 / mixture.experts)
    use_KC = torch.zeros(mixture.experts, len(mixture.classes)).index_put_(
        (weights_BK.argmax(-1), y), torch.ones(len(y)), accumulate=True
    )
    skipped = moving(mixture.expert)
    experts = [under(tensors, f"expert.{k}") for k in range(mixture.experts)]
    weights = [
        {name: value for name, value in one.items() if name not in skipped} for one in experts
    ]

    def right(answer_BC: Tensor) -> int:
        return int((answer_BC.argmax(-1) == y).sum())

    facts: Facts = {
        "dense_correct": right(mixture.mix(tensors, mains_MBC, routed_KBC, weights_BK)),
        "uniform_correct": right(mixture.mix(tensors, mains_MBC, routed_KBC, alike_BK)),
        "routed_correct": right(predict(tensors | {"alpha": torch.tensor(1.0)}, x)),
        "experts_correct": [float(right(answer_BC)) for answer_BC in routed_KBC],
        "use": use_KC.flatten().tolist(),
        "entropy": float(entropy(weights_BK)),
        "apart": apart(weights),
    }
    mains = (
        {"main_correct": right(mains_MBC.mean(0)), "alpha": float(tensors["alpha"].clamp(0, 1))}
        if mixture.mains
        else {}
    )
    return facts | mains


def entropy(weights_BK: Tensor) -> Tensor:
    """Mean over inputs, in nats; a weight that is exactly 0 has no infinite gradient."""
    return -(weights_BK * weights_BK.clamp_min(NEVER).log()).sum(-1).mean()


@dataclass(frozen=True)
class Given:
    """What the server has beside its state: the same in every round."""

    model: Model
    reserve: Examples  # the server's own small labelled set; empty for most methods
    learning: Learning
    seed: int


@dataclass(frozen=True)
class Sent:
    """One client's payload, and what the server's own log says of it (`facts` stay on the
    server).
    """

    tensors: Tensors
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """What the server accepted from one client: its tensors and the number of examples behind
    them.
    """

    client: str
    tensors: Tensors
    examples: int


@dataclass(frozen=True)
class Finished:
    """A client's round: `stays` goes to its own disk, `leaves` to the server."""

    stays: Tensors
    leaves: Tensors


@dataclass(frozen=True)
class Chosen:
    """What a client that never trained predicts with, and each expert's share in it, by name; none:
    what all share.
    """

    local: Local
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Portable:
    """What predicts without this package."""

    tensors: Tensors
    numbers: dict[str, Any]  # plain values, as JSON has them
    formula: str  # the logits in words
    code: str  # lines of plain torch that define logits(x) by the tensors `t` and the numbers `n`


def portable(model: Model, tensors: Tensors) -> Portable:
    """A model with these tensors; ValueError if it has no way to say itself in a few lines of
    torch.
    """
    if not hasattr(model, "portable"):
        raise ValueError(
            f"{type(model).__name__} cannot be written down in a few lines of torch; expected"
            " a model of this package, or a function `portable` of its own"
        )
    found: Portable = model.portable(tensors)
    return found


@dataclass(frozen=True)
class Method(ABC):
    """Subclass it with hyperparameters as fields; examples/own_method.py is a whole one in thirty
    lines.
    """

    def fits(self, model: Model, reserve: int) -> None:
        """ValueError, with what to type, if the method cannot work with this model and so many
        reserve examples.
        """
        return  # most work with any

    def declares(self) -> Declared:
        """What a report compares the method with, and what it says of it beside accuracy."""
        return Declared()

    def open(self, given: Given) -> Tensors:
        """The server's state before the first round."""
        return named("global", given.model.initial)

    @abstractmethod
    def uploads(self, model: Model) -> frozenset[str]:
        """Names of the only tensors that may leave a client."""

    def expects(self, server: Tensors, model: Model) -> Tensors:
        """Tensors of the names, shapes and types that an upload must have."""
        shared = under(server, "global")
        return {name: shared[name] for name in self.uploads(model)}

    @abstractmethod
    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """Each client's own payload, with which it trains in this round."""

    def publish(self, server: Tensors) -> Tensors:
        """What every client may know, whether it trained or not: the payload of an evaluation."""
        return named("global", under(server, "global"))

    @abstractmethod
    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """The server's next state from the accepted uploads (at least one, sorted by client)."""

    def give_back(self, server: Tensors, uploads: Sequence[Upload]) -> dict[str, Sent]:
        """What each client that took part gets in the same round, after the merge: a second
        exchange, if anything.
        """
        return {}

    def serve(self, model: Model, server: Tensors, x: Tensor) -> Tensor | None:
        """[B, C] logits of the server's own predictor, where that is another than `publish` lets
        clients have.
        """
        return None

    def routes(self, model: Model, server: Tensors, x: Tensor) -> Tensor | None:
        """[B, E]: each expert's share in what `serve` answers, main experts first; None if there
        are no experts.
        """
        return None

    def shows(self, model: Model, server: Tensors, x: Tensor, y: Tensor) -> Facts:
        """What is worth logging of the server, examined on inputs x with labels y: of a mixture,
        its parts.
        """
        shared = under(self.publish(server), "global")
        if not (isinstance(model, MixtureModel) and under(shared, "gate")):
            return {}
        weights_BK = model.gate.logits(under(shared, "gate"), x).softmax(-1)
        return dissected(model, shared, x, y, weights_BK, model.logits)

    @abstractmethod
    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        """Where a client's training begins. `own` is what it kept in its last round, if it had
        one.
        """

    def rates(self) -> Mapping[str, float]:
        """Learning rates of the trained tensors `prefix.*` that do not take the run's own rate."""
        return {}

    def logits(self, model: Model, local: Local, x: Tensor) -> Tensor:
        """[B, ...] inputs to [B, C] logits."""
        return model.logits(local.trained, x)

    def moves(self, model: Model) -> frozenset[str]:
        """Names of those of a client's trained tensors that move by themselves."""
        return moving(model)

    def step(self, model: Model, local: Local, x: Tensor) -> tuple[Tensor, Tensors]:
        """Logits in training, and the next values of those tensors that move by themselves."""
        return (
            step(model, local.trained, x) if moving(model) else (self.logits(model, local, x), {})
        )

    def penalty(self, local: Local) -> Tensor | float:
        """Added to the cross-entropy."""
        return 0.0

    def observe(self, model: Model, local: Local, x: Tensor) -> Tensors:
        """What a client says, after training, of its training inputs x; it leaves with the
        upload.
        """
        return {}

    @abstractmethod
    def finish(self, model: Model, local: Local, normal: Normal) -> Finished:
        """What stays and what leaves after training; noise on what leaves is `normal`'s, and nobody
        else's.
        """

    def absorb(self, sent: Tensors, own: Tensors | None) -> Tensors:
        """What the client keeps of its round instead, once it was given something back."""
        return {}

    @abstractmethod
    def recall(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """What a client predicts with, from `publish`'s payload and its own state; without `own`,
        the global model.
        """

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """What a client that never trained may predict with instead of what all share, from a few
        labelled examples.

        It takes one only if that does better on these examples. ValueError if there are no experts
        to choose from.
        """
        raise ValueError(
            f"{type(self).__name__} has no experts from which a newcomer could choose; use"
            " a run of pfedmoap or fedmoe, or no --like: without it, what all share predicts"
        )

    def portable(self, model: Model, local: Local) -> Portable:
        """The same as `logits`, without this package; ValueError if that cannot be."""
        return portable(model, local.trained)

    def portable_server(self, model: Model, server: Tensors) -> Portable:
        """The same as `serve`, without this package; ValueError if that cannot be."""
        raise ValueError(
            f"{type(self).__name__} does not say how its server's own predictor is written down;"
            " use one client's model, --client NAME"
        )

    def voices(self, model: Model, local: Local, x: Tensor) -> Tensor | None:
        """[B, C, E]: each expert's weight in a client's logits, its own first; None if it mixes no
        experts.
        """
        return None

    def facts(self, model: Model, local: Local, x: Tensor) -> Facts:
        """What is worth logging of a client's prediction on inputs x, as far as there is anything;
        it leaves the client with the reply.
        """
        return {}

    def says(self, model: Model) -> Mapping[str, Figure]:
        """What each of the `facts` may be: no other leaves a client, and the server believes no
        other.
        """
        return {}

    @property
    def simulated(self) -> str:
        """What protects clients only where each has a machine of its own, in words; "": nothing."""
        return ""
