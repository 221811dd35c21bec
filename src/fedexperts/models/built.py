"""What every model's settings build: the model, what stands in front of it, and where. This room
knows no model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    def rounded(self, units: bool) -> str:
        """The type of its frozen weights, "fp32" or "bf16", on a processor with matrix units for
        bf16 or without; ValueError likewise.
        """


@dataclass(frozen=True)
class Backbone:
    """Frozen weights that a recipe reads from a folder of the name "backbone"."""

    name: str  # a hub's, or that of its folder
    folder: Path  # where they lie on this machine

    @classmethod
    def of(cls, name: str, folder: Path) -> "Backbone":
        """As a config names it, which does not say where on this machine."""
        if Path(name).expanduser().is_dir():
            name = Path(name).name
        return cls(name, folder)


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
    # what `encode` reads; "": either, or it does not say
    reads: Literal["", "images", "texts"] = field(default="", kw_only=True)
    # hash of everything that `encode` depends on; "": quicker to compute again than to keep
    key: str


_device: ContextVar[torch.device] = ContextVar("device", default=CPU)
_units: ContextVar[bool] = ContextVar("units", default=False)
_cache: ContextVar[Callable[[], Path] | None] = ContextVar("cache", default=None)


@contextmanager
def computing_on(
    device: torch.device, cache: Callable[[], Path] | None = None, units: bool = False
) -> Iterator[None]:
    """Models that are made in here compute on a device, which may have matrix units for bf16, and
    keep in the folder `cache` what takes long to make again. Nothing else moves: torch's default
    device does not.
    """
    before, kept, unlike = _device.set(device), _cache.set(cache), _units.set(units)
    try:
        yield
    finally:
        _device.reset(before)
        _cache.reset(kept)
        _units.reset(unlike)


def device() -> torch.device:
    """Where a model that is made now computes."""
    return _device.get()


def kept_in() -> Path | None:
    """Where a model that is made now keeps what takes long to make again; None: nowhere."""
    folder = _cache.get()
    return folder() if folder else None


def matrix_units() -> bool:
    """Whether the processor under a model that is made now has matrix units for bf16."""
    return _units.get()
