"""Real handwritten digits that come with scikit-learn, as two federations; and four kinds of scanner.

1,797 scans of 8 x 8 pixels, drawn here at 32 x 32, bright ink on dark. All pixel arithmetic is in whole
numbers, so a seed gives the same images on every machine. This room does not know models or methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..tensors import rng
from . import split
from .federation import Federation, Parts

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32  # pixels


def digits() -> tuple[Tensor, Tensor]:
    """All digits as uint8 [1797, 3, 32, 32], three equal channels, and their labels int64 [1797]."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    raw = load_digits()
    small = torch.from_numpy(raw.images).to(torch.int64) * 255 // 16  # [N, 8, 8], 0..16 to 0..255
    large = interpolate(small[:, None].float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(raw.target).to(torch.int64)


def as_scanned(images: Tensor, seed: int) -> Tensor:
    """uint8 [N, 3, H, W] as they are."""
    return images


def inverted(images: Tensor, seed: int) -> Tensor:
    """Dark ink on bright paper, uint8 [N, 3, H, W]."""
    return 255 - images


def faint(images: Tensor, seed: int) -> Tensor:
    """A third of the contrast on mid grey, under noise of up to 36 levels, uint8 [N, 3, H, W]."""
    shape = (4, len(images), 1, *images.shape[2:])
    noise = torch.randint(-9, 10, shape, generator=rng(seed, "faint")).sum(0)  # the same in three channels
    return (images.to(torch.int64) // 3 + 85 + noise).clamp(0, 255).to(torch.uint8)


def slanted(images: Tensor, seed: int) -> Tensor:
    """Each image sheared by its own 14 to 24 degrees about its middle row, uint8 [N, 3, H, W]."""
    count, _, height, width = images.shape
    slope_N = torch.randint(4, 8, (count,), generator=rng(seed, "slanted"))  # sixteenths of a pixel a row
    offset_NH = slope_N[:, None] * (height - 1 - 2 * torch.arange(height))  # 32nds of a pixel
    place_NHW = 32 * torch.arange(width) - offset_NH[:, :, None]
    left = (place_NHW // 32 + 2).clamp(0, width + 2)[:, None].expand_as(images)  # in the padded row
    part = (place_NHW % 32)[:, None]
    dark = pad(images.to(torch.int64), (2, 2))  # what comes in from outside is dark, and so is its neighbour
    mixed = dark.gather(3, left) * (32 - part) + dark.gather(3, left + 1) * part
    return ((mixed + 16) // 32).to(torch.uint8)


SCANNERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "as-scanned": as_scanned,
    "inverted": inverted,
    "faint": faint,
    "slanted": slanted,
}

Clients = Annotated[int, Field(description="number of clients; client i has scanner i mod scanners", ge=1)]
Scanners = Annotated[int, Field(description="number of scanners; 1: plain digits", ge=1, le=len(SCANNERS))]
Alpha = Annotated[
    float, Field(description="Dirichlet over labels inside a scanner; small: skewed", gt=0, allow_inf_nan=False)
]
Groups = Annotated[int, Field(description="number of clients, who divide the ten classes", ge=1, le=len(CLASSES) // 2)]
Shots = Annotated[int, Field(description="at most so many training images a class and client; 0: all", ge=0)]
Valid = Annotated[float, Field(description="share of a client's images to validate on", ge=0, lt=1)]
Test = Annotated[float, Field(description="share of a client's images to test on", gt=0, lt=1)]


@dataclass(frozen=True)
class DigitsScanners:
    """Sites that read the same digits with different scanners, and see some digits more than others.

    The protocol of DomainNet in arXiv:2410.10114: several clients a domain, Dirichlet(0.3) inside it.
    """

    clients: Clients = 20
    scanners: Scanners = 4
    alpha: Alpha = 0.3
    shots: Shots = 0
    valid: Valid = 0.2
    test: Test = 0.3

    def __post_init__(self) -> None:
        split.shares(self.valid, self.test)

    def load(self, seed: int) -> Federation:
        """ValueError if a client would get too few images to fill its parts."""
        images, labels = digits()
        names = list(SCANNERS)[: self.scanners]
        scans = images.clone()
        held: dict[str, Tensor] = {}
        for scanner, own in zip(names, self._scanned(labels, seed), strict=True):
            scans[own] = SCANNERS[scanner](images[own], seed)
            sites = [f"{scanner}-{i}" for i in range(self.clients) if names[i % len(names)] == scanner]
            if sites:
                draw = rng(seed, "dirichlet", client=scanner)
                hands = split.dirichlet(labels[own], len(sites), self.alpha, draw)
                held |= {site: own[hand] for site, hand in zip(sites, hands, strict=True)}
        return _federation(self, seed, scans, labels, held, {site: site.rpartition("-")[0] for site in held})

    def _scanned(self, labels: Tensor, seed: int) -> list[Tensor]:
        """Each scanner's images, in proportion to its number of clients."""
        sites = [len(range(first, self.clients, self.scanners)) for first in range(self.scanners)]
        return split.deal(labels, split.apportion(len(labels), sites), rng(seed, "scanners"))


@dataclass(frozen=True)
class DigitsPathological:
    """Sites that see different digits: the 'pathological' protocol of arXiv:2410.10114, few-shot."""

    clients: Groups = 5
    shots: Shots = 16
    valid: Valid = 0.2
    test: Test = 0.3

    def __post_init__(self) -> None:
        split.shares(self.valid, self.test)

    def load(self, seed: int) -> Federation:
        """ValueError if a client would get fewer than two classes."""
        images, labels = digits()
        hands = split.pathological(labels, self.clients, rng(seed, "pathological"))
        held = {f"site-{i}": hand for i, hand in enumerate(hands)}
        return _federation(self, seed, images, labels, held, dict.fromkeys(held, "as-scanned"))


Spec = DigitsScanners | DigitsPathological


def _federation(
    spec: Spec,
    seed: int,
    images: Tensor,
    labels: Tensor,
    held: dict[str, Tensor],
    domains: dict[str, str],
) -> Federation:
    parts = {site: _parts(spec, seed, site, own, labels[own]) for site, own in held.items()}
    return Federation(images=images, labels=labels, classes=CLASSES, parts=parts, domains=domains)


def _parts(spec: Spec, seed: int, site: str, own: Tensor, labels: Tensor) -> Parts:
    """One site's examples `own` [n], with labels [n], cut into parts; the few-shot draw is from train alone."""
    try:
        parts = split.cut(labels, spec.valid, spec.test, rng(seed, "parts", client=site))
    except ValueError as error:
        raise ValueError(f"client {site!r} with {len(own)} images: {error}; use fewer clients") from None
    kept = split.few(labels[parts.train], spec.shots, rng(seed, "shots", client=site))
    return Parts(train=own[parts.train][kept], valid=own[parts.valid], test=own[parts.test])
