"""Who is computed with whom: clients of equal shapes in stacks that are as large as is fastest.

Shapes alone say how large, and never a clock, so that equal settings give equal bits;
benchmarks/together.py shows where a stack wins and where it loses. This room does not know what is
computed.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .learn import Local
from .model import Model
from .tensors import CPU, count, shapes

T = TypeVar("T")

# A step of so little is mostly the calls of its operations, which clients can share.
SMALL = 2**17  # numbers of one client that are trained and held fixed
SHOWN = 2**14  # numbers in its batch of inputs
MOST = 50  # clients in one stack
STACK = 2**20  # numbers in one stack, which a core has in its cache
HELD = 2**27  # numbers that their steps may hold beside it: 512 MB
FEW = 4  # fewer gain nothing


def at_once(numbers: int, shown: int, held: int, device: torch.device = CPU) -> int:
    """Of how many clients a computation is fastest, from shapes alone: equal settings, equal bits.

    `numbers` are a client's own, `shown` those of a batch of inputs, `held` what a step keeps for
    its gradients beside them.
    """
    if device.type == "cpu":
        count = min(MOST, STACK // max(numbers, 1), HELD // max(held, 1))
        return count if numbers <= SMALL and shown <= SHOWN and count >= FEW else 1
    return max(1, min(MOST, HELD * 8 // max(numbers + held, 1)))  # alone, it leaves a GPU idle


@dataclass(frozen=True)
class Stacks:
    """Of clients that train `model` in steps of `batch` examples."""

    model: Model
    batch: int
    together: int  # in one stack; 0: as many as is fastest

    def each(
        self, states: Sequence[Local], inputs: Sequence[Tensor], act: Callable[[list[int]], list[T]]
    ) -> list[T]:
        """`act` on the positions of each stack; its results in the order of `states`, whose clients
        have such inputs [N, V, ...].

        A model that cannot be stacked (batch norm would see the padding) says `together = False`,
        and goes one by one.
        """
        alike: dict[object, list[int]] = defaultdict(list)
        for position, local in enumerate(states):
            alike[self._kind(local, position)].append(position)
        results: dict[int, T] = {}
        for positions in alike.values():
            first = positions[0]
            most = self.together or self._fastest(states[first], inputs[first])
            for begin in range(0, len(positions), most):
                stack = positions[begin : begin + most]
                results |= dict(zip(stack, act(stack), strict=True))
        return [results[position] for position in range(len(states))]

    def _kind(self, local: Local, position: int) -> object:
        """What can be stacked has the same."""
        if not self.model.together or self.together == 1:
            return position
        return tuple(shapes(local.trained).items()), tuple(shapes(local.fixed).items())

    def _fastest(self, local: Local, inputs: Tensor) -> int:
        numbers = count(local.trained) + count(local.fixed)
        shown = self.batch * inputs.shape[2:].numel()
        return at_once(numbers, shown, self.model.held, self.model.device)
