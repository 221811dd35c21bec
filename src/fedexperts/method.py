"""The contract of a method: the steps of a round, and the few values that pass between them. A
newcomer reads this file, model.py, client.py and loop.py, and knows it all.

A *method* is a frozen dataclass: its fields are its hyperparameters, its functions are pure, and
state is always an argument, so the same method runs in one process, through bytes and on a network.
Five functions must be written: uploads, merge, start, finish and restore; the others have
defaults that most methods keep. This room does not know where a function runs, how a client trains,
or what is stored where.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .average import Average, mean
from .declared import Declared, Facts
from .learn import Examples, Learning, Local
from .model import MixtureModel, Model
from .predictor import Dissected, Predictor, plain
from .tensors import Tensors, named, under

# what the server must see of uploads: one weighted mean of all, means of some, or each by itself
Reads = Literal["sums", "means", "uploads"]


def needs_reserve(reserve: int, who: str = "this method") -> None:
    """ValueError, with what to type, if the server has no reserve examples."""
    if not reserve:
        raise ValueError(f"{who} needs a reserve set, and there is none; use data.reserve = 10")


@dataclass(frozen=True)
class Given:
    """What the server has beside its state: the same in every round."""

    model: Model
    reserve: Examples  # the server's own small labelled set; empty for most methods
    learning: Learning
    seed: int
    average: Average = mean  # how uploads become one

    def averaged(self, uploads: "Sequence[Upload]") -> Tensors:
        """Uploads as one, each by its examples."""
        return self.average([u.tensors for u in uploads], [u.examples for u in uploads])


@dataclass(frozen=True)
class Sent:
    """One client's payload, and what the server's own log says of it, which stays there."""

    tensors: Tensors
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """What the server accepted from one client, and the number of examples behind it."""

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
class Method(ABC):
    """Subclass it with hyperparameters as fields; examples/own_method.py is a whole one."""

    def fits(self, model: Model, reserve: int) -> None:
        """ValueError, with what to type, if the method cannot work with this model and so many
        reserve examples.
        """
        return  # most work with any

    def declares(self) -> Declared:
        """What a report compares the method with, and what it says of it beside accuracy."""
        return Declared()

    def reads(self) -> Reads:
        """What the server must see of uploads. Secure sums need "sums"; where it is "uploads", a
        robust merge leaves outliers out.
        """
        return "uploads"

    def sensitivity(self) -> float:
        """How far one input of length at most 1 moves what `observe` says of n, times n, in l2; 0:
        nobody knows.
        """
        return 0.0

    # ---- server

    def open(self, given: Given) -> Tensors:
        """The server's state before the first round."""
        return named("global", given.model.initial)

    @abstractmethod
    def uploads(self, model: Model) -> frozenset[str]:
        """Names of the only tensors that may leave a client."""

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        """Tensors of the names, shapes and types that a client's upload must have."""
        shared = under(server, "global")
        return {name: shared[name] for name in self.uploads(model)}

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        """Each client's own payload, with which it trains in this round: by default, what all may
        know.
        """
        return dict.fromkeys(clients, Sent(self.publish(server)))

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

    def without(self, model: Model, server: Tensors, client: str) -> Tensors:
        """The server's state, bit for bit as if this client had never told it anything. ValueError,
        with what to do, if that cannot be had without training anew.
        """
        raise ValueError(
            f"{type(self).__name__} has trained on what {client} sent, and nothing tells it apart"
            " any more; run anew without this client"
        )

    def served(self, model: Model, server: Tensors) -> Predictor | None:
        """The server's own predictor; None where it has no more than `publish` lets clients have.

        By default a server has one where the model that all share is a mixture.
        """
        shared = Local(under(self.publish(server), "global"))
        if isinstance(model, MixtureModel) and under(shared.trained, "gate"):
            return Dissected(model, shared)
        return None

    # ---- client

    def trains(self, model: Model) -> Model:
        """What a client trains and predicts with: the model, or one expert of a mixture."""
        return model

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

    def predictor(self, model: Model, local: Local) -> Predictor:
        """What answers with a client's tensors, in training and after it."""
        return plain(self.trains(model), local)

    def penalty(self, model: Model, local: Local) -> Tensor | float:
        """Added to the cross-entropy."""
        return 0.0

    def observe(self, model: Model, local: Local, own: Examples) -> Tensors:
        """What a client says, after training, of its own training examples; it leaves with the
        upload.
        """
        return {}

    @abstractmethod
    def finish(self, model: Model, local: Local) -> Finished:
        """What stays and what leaves after training."""

    def absorb(self, model: Model, sent: Tensors, kept: Tensors | None, own: Examples) -> Tensors:
        """What the client keeps of its round instead, once it was given something back; it may look
        at its own training examples.
        """
        return {}

    @abstractmethod
    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """What a client predicts with, from `publish`'s payload and its own state; without `own`,
        the global model.
        """

    def offers(self, model: Model, server: Tensors, few: Examples) -> list[Chosen]:
        """What a client that never trained may predict with instead of the global model, from a few
        labelled examples.

        It takes one only if that does better on these examples. ValueError if there are no experts
        to choose from.
        """
        raise ValueError(
            f"{type(self).__name__} has no experts from which a newcomer could choose; use a run of"
            " pfedmoap or fedmoe, or no --like: without it, the global model is used"
        )

    def meets(self, model: Model, server: Tensors, x: Tensor) -> Chosen:
        """The same from inputs [n, ...] without labels; ValueError if the method cannot."""
        raise ValueError(
            f"{type(self).__name__} chooses a newcomer's experts by labels, and these images have"
            " none; use a folder with CLASS/IMAGE files, or a run of gaussian-experts"
        )
