"""Options that several sources have, with what they mean and what they may be. This room knows no
data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..options import option
from ..tensors import rng
from . import split

# the seed of every test pool, which no run can have: what is tested on is the same for all seeds
POOL = -1
SHOTS = "at most so many training examples a class and client; 0: all"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What is asked of every source whose parts and reserve are drawn."""

    valid: float = option(0.2, says="share of a client's examples to validate on", ge=0, lt=1)
    test: float = option(0.3, says="share of a client's examples to test on", gt=0, lt=1)
    reserve: int = option(
        0, says="labelled examples a class that the server holds and no client does; 0: none", ge=0
    )
    reserve_alpha: float = option(
        0.0, says="Dirichlet over labels in the reserve; small: skewed; 0: uniform", ge=0
    )

    def __post_init__(self) -> None:
        split.shares(self.valid, self.test)


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """What is asked of every source that can keep classes from training."""

    unseen: int = option(
        0,
        says="classes that nobody trains on, the same for every seed; after the last round every"
        " client is asked about them and about the classes of others",
        ge=0,
    )

    def withheld(self, classes: int) -> Tensor:
        """Their labels, sorted; ValueError if fewer than two of `classes` are left."""
        if self.unseen > classes - 2:
            raise ValueError(
                f"data.unseen = {self.unseen} of {classes} classes; expected at most {classes - 2},"
                " so that there are two to train on"
            )
        return torch.randperm(classes, generator=rng(POOL, "unseen"))[: self.unseen].sort().values

    def check_unseen(self, **alone: int) -> None:
        """ValueError if, with classes kept from training, one of these options is not 1."""
        for name, ways in alone.items():
            if self.unseen and ways > 1:
                raise ValueError(
                    f"data.unseen = {self.unseen} with data.{name} = {ways}: what is kept from"
                    f" training is seen and named in one way; use data.{name} = 1, or"
                    " data.unseen = 0"
                )
