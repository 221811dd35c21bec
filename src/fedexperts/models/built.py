"""What every model's settings build: the model, what stands in front of it, and where. This room
knows no model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import Model
from ..tensors import CPU


class Sighted(ABC):
    """Settings of a model that is shown images of one size."""

    @abstractmethod
    def sees(self) -> int:
        """Pixels of a side; ValueError, with what to type, if the model is not on this machine."""

    @abstractmethod
    def rounded(self, device: torch.device) -> str:
        """The type of its frozen weights on a device, "fp32" or "bf16"; ValueError likewise."""


@dataclass(frozen=True)
class Backbone:
    """Frozen weights that a recipe reads from a folder of the name "backbone"."""

    name: str  # a hub's, or that of its folder
    folder: Path  # where they lie on this machine


@dataclass(frozen=True)
class Built:
    """A model and the frozen encoder in front of it."""

    model: Model
    # images uint8 [B, 3, H, W], or texts Sequence[str] of length B -> inputs [B, ...]
    encode: Callable[[Any], Tensor]
    recipe: str = field(
        default="", kw_only=True
    )  # lines of Python that define inputs(pixels or texts) as `encode` does
    # what these lines read, by name
    files: Callable[[], dict[str, bytes]] = field(default=dict, kw_only=True)
    # the model with plain prompts, which classifies untrained; None: it has no prompts
    plain: Callable[[], Model] | None = field(default=None, kw_only=True)
    backbone: Backbone | None = field(default=None, kw_only=True)  # what they read besides
    # hash of everything that `encode` depends on; "": quicker to compute again than to keep
    key: str


_device: ContextVar[torch.device] = ContextVar("device", default=CPU)
_cache: ContextVar[Callable[[], Path] | None] = ContextVar("cache", default=None)


@contextmanager
def computing_on(device: torch.device, cache: Callable[[], Path] | None = None) -> Iterator[None]:
    """Models that are made in here compute on a device, and keep in the folder `cache` what takes
    long to make again. Nothing else moves: torch's default device does not.
    """
    before, kept = _device.set(device), _cache.set(cache)
    try:
        yield
    finally:
        _device.reset(before)
        _cache.reset(kept)


def matrix_units(device: torch.device) -> bool:
    """Whether it has units for matrix products in bf16: a CPU's AMX, a GPU's tensor cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def device() -> torch.device:
    """Where a model that is made now computes."""
    return _device.get()


def kept_in() -> Path | None:
    """Where a model that is made now keeps what takes long to make again; None: nowhere."""
    folder = _cache.get()
    return folder() if folder else None
