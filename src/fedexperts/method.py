"""The contract: what a model and a method are. A newcomer reads this file, client.py and loop.py, and knows it all.

A *model* is a pure function of named tensors. A *method* is a frozen dataclass: its fields are its hyperparameters, its
functions are pure, and state is always an argument, so the same method runs in one process, through bytes and on a
network. This room does not know where a function runs, how a client trains, or what is stored where.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .tensors import Tensors, named, under

Fact = float | int | str | list[float] | list[str]
Facts = dict[str, Fact]  # plain values beside the tensors: what a round's log says


class Model(Protocol):
    """A pure function of named tensors; whatever is frozen is inside and invisible."""

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


@dataclass(frozen=True)
class Local:
    """What one client works with: `trained` moves under the optimiser, `fixed` does not."""

    trained: Tensors
    fixed: Tensors = field(default_factory=dict)

    def kept(self) -> Tensors:
        """As tensors for the private store; `Local.of` is the inverse."""
        return named("trained", self.trained) | named("fixed", self.fixed)

    @classmethod
    def of(cls, kept: Tensors) -> "Local":
        return cls(under(kept, "trained"), under(kept, "fixed"))


@dataclass(frozen=True)
class Sent:
    """One client's payload, and what the server's own log says of it (`facts` stay on the server)."""

    tensors: Tensors
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """What the server accepted from one client: its tensors and the number of examples behind them."""

    client: str
    tensors: Tensors
    examples: int


@dataclass(frozen=True)
class Finished:
    """A client's round: `stays` goes to its own disk, `leaves` to the server."""

    stays: Tensors
    leaves: Tensors


@dataclass(frozen=True)
class Method(ABC):
    """Subclass it with hyperparameters as fields; examples/own_method.py is a whole one in thirty lines."""

    def open(self, model: Model) -> Tensors:
        """The server's state before the first round."""
        return named("global", model.initial)

    @abstractmethod
    def uploads(self, model: Model) -> frozenset[str]:
        """Names of the only tensors that may leave a client."""

    def expects(self, server: Tensors, model: Model) -> Tensors:
        """Tensors of the names, shapes and types that an upload must have."""
        shared = under(server, "global")
        return {name: shared[name] for name in self.uploads(model)}

    @abstractmethod
    def send(self, server: Tensors, clients: Sequence[str], round: int, seed: int) -> dict[str, Sent]:
        """Each client's own payload, with which it trains in this round."""

    def publish(self, server: Tensors) -> Tensors:
        """What every client may know, whether it trained or not: the payload of an evaluation."""
        return named("global", under(server, "global"))

    @abstractmethod
    def merge(self, server: Tensors, uploads: Sequence[Upload]) -> Tensors:
        """The server's next state from the accepted uploads (at least one, sorted by client)."""

    @abstractmethod
    def start(self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator) -> Local:
        """Where a client's training begins. `own` is what it kept in its last round, if it had one."""

    def rates(self) -> Mapping[str, float]:
        """Learning rates of the trained tensors `prefix.*` that do not take the run's own rate."""
        return {}

    def logits(self, model: Model, local: Local, x: Tensor) -> Tensor:
        """[B, ...] inputs to [B, C] logits, in training and in prediction."""
        return model.logits(local.trained, x)

    def penalty(self, local: Local) -> Tensor | float:
        """Added to the cross-entropy."""
        return 0.0

    @abstractmethod
    def finish(self, model: Model, local: Local, rng: torch.Generator) -> Finished:
        """What stays and what leaves after training."""

    @abstractmethod
    def recall(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        """What a client predicts with, from `publish`'s payload and its own state; without `own`, the global model."""

    def facts(self, model: Model, local: Local, x: Tensor) -> Facts:
        """What is worth logging of a client's prediction on inputs x; it leaves the client with the reply."""
        return {}
