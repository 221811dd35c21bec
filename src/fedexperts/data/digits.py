"""Real handwritten digits that come with scikit-learn, as two federations; and four kinds of
scanner.

1,797 scans of 8 x 8 pixels, drawn here at 32 x 32, bright ink on dark. All pixel arithmetic is in
whole numbers, so a seed gives the same images on every machine. This room does not know models or
methods.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad

from ..options import option
from ..tensors import rng
from . import split
from .drawn import SHOTS, Drawn
from .federation import Federation, Parts

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32  # pixels


def digits() -> tuple[Tensor, Tensor]:
    """All digits, uint8 [1797, 3, 32, 32] in three equal channels, and labels int64 [1797]."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    raw = load_digits()
    small = torch.from_numpy(raw.images).to(torch.int64) * 255 // 16  # [N, 8, 8], 0..16 to 0..255
    large = interpolate(
        small[:, None].float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
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
    # the same in three channels
    noise = torch.randint(-9, 10, shape, generator=rng(seed, "faint")).sum(0)
    return (images.to(torch.int64) // 3 + 85 + noise).clamp(0, 255).to(torch.uint8)


def slanted(images: Tensor, seed: int) -> Tensor:
    """Each image sheared by its own 14 to 24 degrees about its middle row, uint8 [N, 3, H, W]."""
    count, _, height, width = images.shape
    # sixteenths of a pixel a row
    slope_N = torch.randint(4, 8, (count,), generator=rng(seed, "slanted"))
    offset_NH = slope_N[:, None] * (height - 1 - 2 * torch.arange(height))  # 32nds of a pixel
    place_NHW = 32 * torch.arange(width) - offset_NH[:, :, None]
    left = (place_NHW // 32 + 2).clamp(0, width + 2)[:, None].expand_as(images)  # in the padded row
    part = (place_NHW % 32)[:, None]
    # what comes in from outside is dark, and so is its neighbour
    dark = pad(images.to(torch.int64), (2, 2))
    mixed = dark.gather(3, left) * (32 - part) + dark.gather(3, left + 1) * part
    return ((mixed + 16) // 32).to(torch.uint8)


SCANNERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "as-scanned": as_scanned,
    "inverted": inverted,
    "faint": faint,
    "slanted": slanted,
}


@dataclass(frozen=True)
class DigitsScanners(Drawn):
    """Sites that read the same digits with different scanners, and some digits more than others.

    The protocol of DomainNet in arXiv:2410.10114: several clients a domain, Dirichlet(0.3) inside
    it.
    """

    clients: int = option(20, says="number of clients; client i has scanner i mod scanners", ge=1)
    scanners: int = option(4, says="number of scanners; 1: plain digits", ge=1, le=len(SCANNERS))
    alpha: float = option(0.3, says="Dirichlet over labels inside a scanner; small: skewed", gt=0)
    shots: int = option(0, says=SHOTS, ge=0)

    def load(self, seed: int) -> Federation:
        """ValueError if a client would get too few images to fill its parts."""
        images, labels = digits()
        server, free = _reserved(self, labels, seed)
        names = list(SCANNERS)[: self.scanners]
        scans = images.clone()
        owned: dict[str, Tensor] = {}
        piles, reserves = (
            self._scanned(labels, free, seed),
            self._reserve_scanned(labels, server, seed),
        )
        for scanner, own, reserve in zip(names, piles, reserves, strict=True):
            seen = torch.cat([own, reserve])  # in one go, so that no two images share their noise
            scans[seen] = SCANNERS[scanner](images[seen], seed)
            clients = [
                f"{scanner}-{i}" for i in range(self.clients) if names[i % len(names)] == scanner
            ]
            if clients:
                draw = rng(seed, "dirichlet", client=scanner)
                hands = split.dirichlet(labels[own], len(clients), self.alpha, draw)
                owned |= {client: own[hand] for client, hand in zip(clients, hands, strict=True)}
        domains = {client: client.rpartition("-")[0] for client in owned}
        return _federation(self, seed, scans, labels, owned, domains, server)

    def _scanned(self, labels: Tensor, free: Tensor, seed: int) -> list[Tensor]:
        """Each scanner's images for clients, in proportion to its number of clients."""
        clients = [len(range(first, self.clients, self.scanners)) for first in range(self.scanners)]
        return _deal(labels, free, clients, rng(seed, "scanners"))

    def _reserve_scanned(self, labels: Tensor, server: Tensor, seed: int) -> list[Tensor]:
        """Each scanner's images for the server, in equal shares."""
        return _deal(labels, server, [1] * self.scanners, rng(seed, "reserve-scanners"))


@dataclass(frozen=True)
class DigitsPathological(Drawn):
    """Sites that see different digits, few of each: 'pathological' in arXiv:2410.10114."""

    clients: int = option(
        5, says="number of clients, who divide the ten classes", ge=1, le=len(CLASSES) // 2
    )
    shots: int = option(16, says=SHOTS, ge=0)

    def load(self, seed: int) -> Federation:
        """ValueError if a client would get fewer than two classes."""
        images, labels = digits()
        server, free = _reserved(self, labels, seed)
        hands = split.pathological(labels[free], self.clients, rng(seed, "pathological"))
        owned = {f"site-{i}": free[hand] for i, hand in enumerate(hands)}
        return _federation(
            self, seed, images, labels, owned, dict.fromkeys(owned, "as-scanned"), server
        )


Spec = DigitsScanners | DigitsPathological


def _reserved(spec: Spec, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the server's images, and of those that are left for clients."""
    server = split.reserve(labels, spec.reserve, spec.reserve_alpha, rng(seed, "reserve"))
    free = torch.ones(len(labels), dtype=torch.bool)
    free[server] = False
    return server, free.nonzero().flatten()


def _deal(labels: Tensor, own: Tensor, weights: list[int], generator: Generator) -> list[Tensor]:
    """The examples `own` [n] in pieces by weight, each with the class distribution of the whole."""
    return [
        own[piece]
        for piece in split.deal(labels[own], split.apportion(len(own), weights), generator)
    ]


def _federation(
    spec: Spec,
    seed: int,
    images: Tensor,
    labels: Tensor,
    owned: dict[str, Tensor],
    domains: dict[str, str],
    server: Tensor,
) -> Federation:
    parts = {client: _parts(spec, seed, client, own, labels[own]) for client, own in owned.items()}
    return Federation(
        inputs=images, labels=labels, classes=CLASSES, parts=parts, domains=domains, reserve=server
    )


def _parts(spec: Spec, seed: int, client: str, own: Tensor, labels: Tensor) -> Parts:
    """One client's examples `own` [n], with labels [n], in parts; few of those to train on."""
    try:
        parts = split.cut(labels, spec.valid, spec.test, rng(seed, "parts", client=client))
    except ValueError as error:
        raise ValueError(
            f"client {client!r} with {len(own)} images: {error}; use fewer clients"
        ) from None
    kept = split.few(labels[parts.train], spec.shots, rng(seed, "shots", client=client))
    return Parts(train=own[parts.train][kept], valid=own[parts.valid], test=own[parts.test])
