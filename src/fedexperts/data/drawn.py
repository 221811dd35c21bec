"""Options that several sources have, with what they mean and what they may be. This room knows no
data.
"""

from dataclasses import dataclass

from ..options import option
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
