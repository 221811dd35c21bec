"""Clients that see or name the same things otherwise, or are tested on more than they learn from:
settings in which no one model for all can be right, made of any federation of pictures.

What is learned from, and by whom, stays as it was. This room does not know where examples come
from, models or methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..tensors import rng
from . import split
from .federation import Federation

# how a page lies, uint8 [N, 3, H, W]. Read so, what is one thing may look as another does
PAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "upright": lambda images: images,
    "upside-down": lambda images: images.flip(2, 3),
    "mirrored": lambda images: images.flip(3),
    "negative": lambda images: 255 - images,
}


def turned(whole: Federation, clients: Sequence[str], pages: int) -> Federation:
    """The n-th client's pages lie in the n-th way, and again from the first. ValueError for
    texts.
    """
    if not isinstance(whole.inputs, Tensor):
        raise ValueError(f"data.pages = {pages} turns pictures, and these are texts; use pages = 1")
    inputs, ways = whole.inputs.clone(), list(PAGES.values())[:pages]
    for number, client in enumerate(clients):
        own = _all(whole, client)
        inputs[own] = ways[number % pages](inputs[own])
    return replace(whole, inputs=inputs)


def tested_on_everybody(whole: Federation, seed: int) -> Federation:
    """Everybody's test examples dealt out anew, to each client as many and as mixed."""
    tests = torch.cat([parts.test for parts in whole.parts.values()])
    sizes = split.apportion(len(tests), [1] * len(whole.parts))
    hands = split.deal(whole.labels[tests], sizes, rng(seed, "everybody"))
    dealt = {
        client: replace(parts, test=tests[hand])
        for (client, parts), hand in zip(whole.parts.items(), hands, strict=True)
    }
    return replace(whole, parts=dealt)


def renumbered(whole: Federation, clients: Sequence[str], ways: int, apart: int) -> Federation:
    """Another name for each class, in so many ways: C / `ways` classes further on, for every
    `apart` clients, and again from the first.
    """
    labels, classes = whole.labels.clone(), len(whole.classes)
    for number, client in enumerate(clients):
        way = number // apart % ways
        labels[_all(whole, client)] += way * classes // ways
    return replace(whole, labels=labels % classes)


def _all(whole: Federation, client: str) -> Tensor:
    return torch.cat(list(whole.parts[client].named().values()))
