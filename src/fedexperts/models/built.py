"""What every model's settings build: the model, and what stands in front of it. This room knows no model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..method import Model


@dataclass(frozen=True)
class Built:
    """A model and the frozen encoder in front of it."""

    model: Model
    encode: Callable[[Any], Tensor]  # images uint8 [B, 3, H, W], or texts Sequence[str] of length B -> inputs [B, ...]
    recipe: str = field(
        default="", kw_only=True
    )  # lines of Python that define inputs(pixels or texts) as `encode` does
    files: Callable[[], dict[str, bytes]] = field(default=dict, kw_only=True)  # what these lines read, by name
    key: str  # hash of everything that `encode` depends on; "": quicker to compute again than to keep
