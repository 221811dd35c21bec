"""What the peers of peers.py all do, in plain torch: FedAvg of so many clients, whose data, network
and steps are given. No benchmark itself.

pfl-research lives in an environment of its own and imports this file, too, so it knows nothing but
torch. A player calls `turn` before every round and `ended` after the last.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CLASSES, RATE = 10, 0.1
READY, LOSS = "ready", "loss"  # what a player prints


@dataclass(frozen=True)
class Task:
    """Each client takes one pass over its examples in a round, by SGD."""

    clients: int
    examples: int  # of each client
    batch: int
    side: int  # pixels
    make: Callable[[], nn.Module]

    def module(self) -> nn.Module:
        """With the same start for every player."""
        torch.manual_seed(0)
        return self.make()

    def images(self) -> tuple[Tensor, Tensor]:
        """uint8 [clients, examples + 1, side, side] and labels; a client's last is not trained
        on.
        """
        dice, shape = torch.Generator().manual_seed(0), (self.clients, self.examples + 1)
        labels = torch.randint(CLASSES, shape, generator=dice)
        noise = torch.randint(128, (*shape, self.side, self.side), generator=dice)
        return (noise + 12 * labels[..., None, None]).to(torch.uint8), labels

    def each(self) -> list[tuple[Tensor, Tensor]]:
        """What each client trains on: inputs [examples, 1, side, side] and labels."""
        images, labels = self.images()
        return list(zip(shown(images[:, :-1]), labels[:, :-1], strict=True))


def shown(images: Tensor) -> Tensor:
    """uint8 [..., side, side] to [..., 1, side, side] in -0.5 .. 0.5."""
    return images.unsqueeze(-3) / 255 - 0.5


def network() -> nn.Module:
    """9,098 weights for 28 x 28 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, CLASSES),
    )


class Vector(nn.Module):
    """So many numbers, of which the first are the logits of every input."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(numbers))

    def forward(self, x: Tensor) -> Tensor:
        return self.numbers[:CLASSES].expand(len(x), CLASSES)


TASKS = {
    "CNN": Task(clients=50, examples=50, batch=10, side=28, make=network),
    "16 KB": Task(clients=100, examples=1, batch=1, side=1, make=lambda: Vector(2**12)),
    "4 MB": Task(clients=100, examples=1, batch=1, side=1, make=lambda: Vector(2**20)),
}


@cache
def clients_of(task: str) -> list[tuple[Tensor, Tensor]]:
    """Made once a process, where a player's clients are in several."""
    return TASKS[task].each()


def turn() -> None:
    """Say that all is done, and wait to be asked for the next round."""
    print(READY, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody asks any more")


def ended(task: Task, weights: Mapping[str, Tensor]) -> None:
    """Say how well the global model does on what it was trained on: players must agree."""
    module = task.module()
    module.load_state_dict(dict(weights))
    inputs, labels = zip(*task.each(), strict=True)
    with torch.no_grad():
        loss = cross_entropy(module(torch.cat(inputs)), torch.cat(labels))
    print(LOSS, float(loss), flush=True)


def train(task: Task, module: nn.Module, x: Tensor, y: Tensor) -> None:
    """A client's round."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for rows in torch.randperm(len(y)).split(task.batch):
        optimizer.zero_grad()
        cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()


def loop(task: Task, rounds: int) -> None:
    """FedAvg as one writes it who needs nothing else."""
    module, clients = task.module(), task.each()
    shared = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(rounds):
        turn()
        average = {name: torch.zeros_like(value) for name, value in shared.items()}
        for x, y in clients:
            module.load_state_dict(shared)
            train(task, module, x, y)
            for name, value in module.state_dict().items():
                average[name].add_(value, alpha=1 / task.clients)
        shared = average
    ended(task, shared)
