"""Placebos: what clients tell of themselves in an experiment that asks whether experts help by what
they know. Whatever still helps with them is not knowledge of classes.

This room knows examples alone; it does not know who hears them.
"""

from typing import Literal

import torch
from torch import Generator
from torch.nn.functional import normalize

from ..learn import Examples

Placebo = Literal["none", "labels", "classes", "random"]


def placebo(kind: Placebo, own: Examples, classes: int, draw: Generator) -> Examples:
    """A client's examples with their labels shuffled, with its classes renamed, or random features
    as long as they are.
    """
    if kind == "labels":
        return Examples(own.x, own.y[torch.randperm(len(own), generator=draw)])
    if kind == "classes":
        order = torch.randperm(classes, generator=draw)
        renamed = torch.empty_like(order).index_copy_(0, order, order.roll(1))  # each another
        return Examples(own.x, renamed[own.y])
    away = torch.randn(own.x.shape, generator=draw)
    return Examples(normalize(away, dim=-1) * own.x.norm(dim=-1, keepdim=True), own.y)
