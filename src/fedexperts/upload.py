"""The one door out: what leaves a client is clipped, noised and sealed here, whatever the method.

This room does not know what the tensors mean, nor where they go.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

import torch

from .options import option
from .tensors import Normal, Tensors, under

T = TypeVar("T")


@dataclass(frozen=True)
class UploadSettings:
    """What is done to an upload before it leaves its client."""

    clip: float = option(
        0.0, says="largest l2 distance of an upload from the global tensors; 0: no limit", ge=0
    )
    noise: float = option(
        0.0,
        says="Gaussian noise on an upload, in units of clip; where clients are simulated it"
        " follows from the seed and protects nobody",
        ge=0,
    )

    secure: bool = option(
        False,
        says="secure sums: masks hide each upload, and the server sees their weighted mean alone",
    )

    def __post_init__(self) -> None:
        if self.noise and not self.clip:
            raise ValueError(f"noise = {self.noise} counts in units of clip: set upload.clip > 0")

    @property
    def simulated(self) -> str:
        """What protects clients only where each has a machine of its own, in words; "": nothing."""
        return "the noise on uploads" if self.noise else ""

    def leaving(
        self, leaves: Tensors, sent: Tensors, normal: Normal, may: Collection[str], client: str
    ) -> Tensors:
        """What goes to the server: the Gaussian mechanism on the change since `sent`, then sealed.

        ValueError if a tensor may not leave.
        """
        if self.clip and leaves:
            leaves = self._privatised(leaves, under(sent, "global"), normal)
        return seal(leaves, may, client)

    def _privatised(self, leaves: Tensors, start: Tensors, normal: Normal) -> Tensors:
        """Clipped in l2, all tensors as one vector, then noised; what was not sent counts whole.

        Whole numbers, which count steps, leave as they are.
        """
        if not leaves.keys() & start.keys():
            raise ValueError(
                'upload.clip and privacy.unit = "client" clip the change of what all share, and'
                " nothing of this upload is shared; leave them out"
            )
        floating = [name for name in sorted(leaves) if leaves[name].is_floating_point()]
        begun = {name: start.get(name, torch.zeros_like(leaves[name])) for name in floating}
        change = {name: leaves[name] - begun[name] for name in floating}
        length = math.hypot(*(float(value.norm()) for value in change.values()))
        shrink = min(1.0, self.clip / max(length, 1e-12))
        private = dict(leaves)
        for name, value in change.items():
            noise = self.noise * self.clip * normal(value.shape)
            private[name] = begun[name] + value * shrink + noise
        return private


def seal(leaves: dict[str, T], may: Collection[str], client: str) -> dict[str, T]:
    """`leaves`, if every name in it may leave; else ValueError before anything is sent."""
    if extra := sorted(leaves.keys() - may):
        raise ValueError(
            f"client {client} was about to send {extra}; its method lets only {sorted(may)} leave"
        )
    return leaves
