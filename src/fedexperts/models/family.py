"""Networks of several kinds as one model: the server's own, and smaller ones, a kind a group of
clients.

Each network's tensors are named `kind.N.*`; whoever holds those of one kind answers with that
network. This room does not know who holds which.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..model import Model, Portable
from ..options import option
from ..tensors import Tensors, named, under
from .built import Built
from .network import Network, seeded
from .vision import compact_cnn, grey

SIDE = 16  # pixels of a side, to which images are made small
SEEN = 16  # numbers that every network makes of an image, and of which its last layer makes logits


class Family(Model):
    """Several models that read the same inputs; the first is the server's."""

    def __init__(self, members: Sequence[Model]) -> None:
        self.members = tuple(members)
        self.classes, self.device = members[0].classes, members[0].device
        self.together = all(member.together for member in members)
        self.initial = {}
        buffers: set[str] = set()
        for number, member in enumerate(members):
            self.initial |= named(f"kind.{number}", member.initial)
            buffers |= {f"kind.{number}.{name}" for name in member.buffers}
        self.buffers = frozenset(buffers)

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        prefix, member = self._whose(tensors)
        return member.logits(under(tensors, prefix), x)

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        prefix, member = self._whose(tensors)
        logits, moved = member.step(under(tensors, prefix), x)
        return logits, named(prefix, moved)

    def portable(self, tensors: Tensors) -> Portable:
        prefix, member = self._whose(tensors)
        return member.portable(under(tensors, prefix))

    def _whose(self, tensors: Tensors) -> tuple[str, Model]:
        """Whose tensors these are; of several kinds, the first."""
        number = min(int(name.split(".")[1]) for name in tensors)
        return f"kind.{number}", self.members[number]


class Topped(nn.Module):
    """A network of its kind below a last layer that all kinds have alike."""

    parts = ("body", "top")

    def __init__(self, body: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.body, self.top = body, top

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(torch.relu(self.body(x)))
        return logits


def cnn(width: int) -> nn.Module:
    return compact_cnn(width, SIDE, SEEN)


def mlp(width: int) -> nn.Module:
    """One hidden layer."""
    first, second = nn.Linear(SIDE**2, width), nn.Linear(width, SEEN)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)


KINDS: dict[str, Callable[[int], nn.Module]] = {"cnn": cnn, "mlp": mlp}


def of_kind(kind: str, classes: int) -> nn.Module:
    """The network that a config calls, say, "cnn-8"."""
    name, width = kind.split("-")
    return Topped(KINDS[name](int(width)), nn.Linear(SEEN, classes))


@dataclass(frozen=True)
class FamilySettings:
    """Networks of several kinds for grey images: the server's first, then those of clients."""

    kinds: list[str] = option(
        ["cnn-8", "cnn-2", "mlp-8"],
        says='the server\'s network, then one or more of clients: "cnn-W", two convolutions, the'
        ' first of W channels, or "mlp-W", one hidden layer of W units; all end alike',
    )

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if not re.fullmatch(rf"({'|'.join(KINDS)})-[1-9]\d{{0,4}}", kind):
                raise ValueError(f'kinds = {self.kinds}: {kind!r} is none; expected, say, "cnn-8"')
        if len(self.kinds) < 2:
            raise ValueError(
                f"kinds = {self.kinds}: expected the server's and at least one of clients, as in"
                ' ["cnn-8", "cnn-2"]'
            )

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        members = []
        for kind in self.kinds:
            module = seeded(partial(of_kind, kind, len(classes)), seed)
            members.append(Network(module, classes))
        return Built(Family(members), partial(grey, SIDE), "")
