"""Sub-models: a window of the hidden units of a network, and back.

Any network of convolutions, linear maps and norms can be cut: a hidden layer keeps some of its
outputs, the next one the matching inputs; what goes into the first layer and what comes out of the
last stay whole. All layers are cut at the same relative position, so that what belongs together
stays together, also behind a `Flatten`. This room knows shapes alone: neither methods nor clients.
"""

from collections.abc import Mapping
from math import gcd

import torch
from torch import Tensor

from ..model import Model
from ..tensors import Tensors

Window = dict[str, tuple[Tensor, ...]]  # of each tensor: the positions that are kept, by dimension


def hidden(model: Model) -> Tensors:
    """Of each tensor, which of its dimensions count hidden units.

    A weight has outputs first and inputs second; a bias, a norm's tensors and its buffers have
    outputs alone. ValueError, with what to type, if there are none.
    """
    shapes = {name: value.shape for name, value in model.initial.items()}
    weights = [name for name, shape in shapes.items() if len(shape) > 1]
    dimensions = {name: [*range(min(len(shape), 2))] for name, shape in shapes.items()}
    if len(weights) < 2:
        raise ValueError(
            f"{type(model).__name__} has no hidden layer that a weak client could have less of; use"
            ' a network, say model.name = "compact-cnn"'
        )
    dimensions[weights[0]].remove(1)
    last_layer = weights[-1].rpartition(".")[0]
    for name in shapes:
        if name.rpartition(".")[0] == last_layer:
            dimensions[name].remove(0)
    return {name: torch.tensor(d, dtype=torch.int64) for name, d in dimensions.items()}


def window(tensors: Tensors, hidden: Tensors, share: float, turn: int = 0) -> Window:
    """The positions of a sub-model with `share` of each hidden layer, `turn` steps further along.

    A step is the smallest that moves all layers alike; at the end it goes round. ValueError, with
    what to type, if the network cannot be cut so.
    """
    sizes = [tensors[name].shape[d] for name, cut in hidden.items() for d in cut.tolist()]
    period = gcd(*sizes)
    kept = round(share * period)
    if kept < 1 or kept != share * period:
        possible = ", ".join(f"{k / period:g}" for k in range(1, period + 1))
        raise ValueError(
            f"a sub-model cannot have {share:g} of each layer of this network; use one of"
            f" {possible}, or a network with wider layers"
        )

    def along(size: int, is_hidden: bool) -> Tensor:
        if not is_hidden:
            return torch.arange(size)
        step = size // period
        turned = (torch.arange(step * kept) + step * turn) % size
        return turned.sort().values

    return {
        name: tuple(along(size, d in hidden[name].tolist()) for d, size in enumerate(value.shape))
        for name, value in tensors.items()
    }


def cut(tensors: Mapping[str, Tensor], positions: Window) -> Tensors:
    """A network's tensors, the window of each."""
    return {name: value[_mesh(positions[name])].clone() for name, value in tensors.items()}


def add(whole: Tensor, part: Tensor, positions: tuple[Tensor, ...]) -> None:
    """`part` is added to the whole where its window is."""
    whole[_mesh(positions)] += part


def _mesh(positions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.meshgrid(*positions, indexing="ij") if positions else ()
