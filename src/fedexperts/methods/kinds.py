"""Which of several kinds a client has, of networks or of widths: what the config says, or what the
client's name draws.

This room does not know what a kind is.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from ..tensors import rng

Kind = TypeVar("Kind")


def kind_of(client: str, said: Mapping[str, Kind], kinds: Sequence[Kind], use: str) -> Kind:
    """The same in every round, and wherever it is asked for."""
    if client in said:
        return said[client]
    drawn = torch.randint(len(kinds), (), generator=rng(0, use, client=client))
    return kinds[int(drawn)]
