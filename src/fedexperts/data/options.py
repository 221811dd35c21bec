"""Options that several sources have, with what they mean and what they may be. This room knows no
data.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from . import split

Shots = Annotated[
    int, Field(description="at most so many training examples a class and client; 0: all", ge=0)
]
Valid = Annotated[
    float, Field(description="share of a client's examples to validate on", ge=0, lt=1)
]
Test = Annotated[float, Field(description="share of a client's examples to test on", gt=0, lt=1)]
Reserve = Annotated[
    int,
    Field(
        description="labelled examples a class that the server holds and no client does; 0: none",
        ge=0,
    ),
]
ReserveAlpha = Annotated[
    float,
    Field(
        description="Dirichlet over labels in the reserve; small: skewed; 0: uniform",
        ge=0,
        allow_inf_nan=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What is asked of every source whose parts and reserve are drawn."""

    valid: Valid = 0.2
    test: Test = 0.3
    reserve: Reserve = 0
    reserve_alpha: ReserveAlpha = 0.0

    def __post_init__(self) -> None:
        split.shares(self.valid, self.test)
