"""Real handwritten digits that come with scikit-learn, as two federations; and four kinds of
scanner.

1,797 scans of 8 x 8 pixels, drawn here at 32 x 32, bright ink on dark. All pixel arithmetic is in
whole numbers, so a seed gives the same images on every machine. Which scans are tested on is fixed
once, for all seeds; each scanner reads all of them. This room does not know models or methods.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad

from ..options import option
from ..tensors import rng
from . import conflict, split
from .drawn import POOL, SHOTS, Drawn, Unseen
from .federation import Federation, Parts

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32  # pixels
SHEETS = 14  # runs of the scans that repeat one order of digits, each by one hand


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All digits, uint8 [1797, 3, 32, 32] in three equal channels, and labels int64 [1797]; read
    once, so nobody writes into them.
    """
    rows = torch.from_numpy(np.loadtxt(_scans(), dtype=np.int64, delimiter=","))
    small = rows[:, :-1].reshape(-1, 8, 8) * 255 // 16  # 0..16 to 0..255
    large = interpolate(
        small[:, None].float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return images, rows[:, -1].contiguous()


def _scans() -> Path:
    """The file of scikit-learn's digits. Its own reader, which needs all of scikit-learn, takes two
    seconds to import.
    """
    package = find_spec("sklearn")
    assert package  # this package depends on it
    assert package.origin
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


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


Scanner = Callable[[Tensor, int], Tensor]
SCANNERS: dict[str, Scanner] = {
    "as-scanned": as_scanned,
    "inverted": inverted,
    "faint": faint,
    "slanted": slanted,
}


def _seedless(turn: Callable[[Tensor], Tensor]) -> Scanner:
    return lambda images, seed: turn(images)


PAGES: dict[str, Scanner] = {name: _seedless(turn) for name, turn in conflict.PAGES.items()}
DIFFER = {"scanners": SCANNERS, "pages": PAGES}


@dataclass(frozen=True, kw_only=True)
class Digits(Drawn, Unseen):
    """What is asked of both federations: what is tested on, for all seeds, and what is not."""

    valid: float = option(0.2, says="share of all scans to validate on", ge=0, lt=1)
    test: float = option(
        0.3, says="share of all scans to test on, the same ones for every seed", gt=0, lt=1
    )
    pool: Literal["scans", "sheets"] = option(
        "scans",
        says="what is kept to test on: single scans, or whole sheets, so that their writers are"
        " not trained on",
    )


@dataclass(frozen=True)
class DigitsScanners(Digits):
    """Clients that read digits with different scanners, and some digits more than others.

    The protocol of DomainNet in arXiv:2410.10114: several clients a domain, Dirichlet(0.3) inside
    it.
    """

    clients: int = option(20, says="number of clients; client i has scanner i mod scanners", ge=1)
    scanners: int = option(4, says="number of scanners; 1: plain digits", ge=1, le=len(SCANNERS))
    differ: Literal["scanners", "pages"] = option(
        "scanners",
        says="how scanners differ: in ink and slant, or in how pages lie in them, so that one"
        " scanner's 6 is another's 9",
    )
    numberings: int = option(
        1,
        says="ways to number the classes: every n-th client of a scanner calls digit d by the name"
        " of d + 10 / n",
        ge=1,
        le=len(CLASSES) // 2,
    )
    numbered_by: Literal["clients", "scanners"] = option(
        "clients",
        says="whose numberings differ: clients of one scanner, or scanners; then the server's"
        " images are named as their scanner's clients name them",
    )
    alpha: float = option(0.3, says="Dirichlet over labels inside a scanner; small: skewed", gt=0)
    shots: int = option(0, says=SHOTS, ge=0)
    images: int = option(
        0, says="at most so many training examples a client, of all classes together; 0: all", ge=0
    )
    meets: Literal["own", "everybody"] = option(
        "own",
        says="what a client is tested on: its own kind, or all scanners and all digits alike, a"
        " test wider than its training",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_unseen(numberings=self.numberings)

    def load(self, seed: int) -> Federation:
        """ValueError if a client would get too few images to fill its parts."""
        images, labels = digits()
        pool = _pool(self.test, self.pool)
        server, free = _reserved(self, labels, pool, seed)
        kinds = DIFFER[self.differ]
        scanners = list(kinds)[: self.scanners]
        scans, read = _scanned_exams(self, scanners)
        seen = _seen(self, labels)[pool]  # of what is tested on, what somebody trains on
        tests, exams = pool[seen], [exam[seen] for exam in read]
        owned: dict[str, Tensor] = {}
        tested: dict[str, Tensor] = {}
        piles, reserves = (
            self._scanned(labels, free, seed),
            self._reserve_scanned(labels, server, seed),
        )
        for scanner, own, reserve, exam in zip(scanners, piles, reserves, exams, strict=True):
            all_own = torch.cat([own, reserve])  # in one go: no two images share their noise
            scans[all_own] = kinds[scanner](images[all_own], seed)
            clients = [
                f"{scanner}-{i}"
                for i in range(self.clients)
                if scanners[i % len(scanners)] == scanner
            ]
            if clients:
                draw = rng(seed, "dirichlet", client=scanner)
                hands = split.dirichlet(labels[own], len(clients), self.alpha, draw)
                has = {name: own[hand] for name, hand in zip(clients, hands, strict=True)}
                draw = rng(seed, "tests", client=scanner)
                owned |= has
                tested |= _tested(labels, has, tests, exam, draw)
        if self.meets == "everybody":
            sizes = split.apportion(len(tests) * len(scanners), [1] * len(owned), least=1)
            hands = split.deal(labels[tests].repeat(len(scanners)), sizes, rng(seed, "tests"))
            tested = {
                client: torch.cat(exams)[hand] for client, hand in zip(owned, hands, strict=True)
            }
        domains = {client: client.rpartition("-")[0] for client in owned}
        labels = torch.cat([labels, labels[pool].repeat(len(scanners) - 1)])
        notes: tuple[str, ...] = ()
        if len(scanners) > 1:
            notes = (
                f"All {len(scanners)} scanners read the same {len(pool)} test scans: tests of"
                " clients with different scanners are not independent.",
            )
        whole = _federation(self, seed, scans, labels, owned, tested, domains, server, notes)
        unseen = torch.cat([exam[~seen] for exam in read])
        return replace(whole, labels=self._numbered(whole, reserves), unseen=unseen)

    def _numbered(self, whole: Federation, reserves: list[Tensor]) -> Tensor:
        """Labels as each client calls its digits; the reserve's, as its scanner's clients do."""
        labels = whole.labels.clone()
        by_scanner = self.numbered_by == "scanners"
        named = []
        for client, parts in whole.parts.items():
            number = int(client.rpartition("-")[2])
            way = number % self.scanners if by_scanner else number // self.scanners
            named.append((way, torch.cat(list(parts.named().values()))))
        if by_scanner:
            named += enumerate(reserves)
        for way, own in named:
            step = way % self.numberings * len(CLASSES) // self.numberings
            labels[own] = (labels[own] + step) % len(CLASSES)
        return labels

    def _scanned(self, labels: Tensor, free: Tensor, seed: int) -> list[Tensor]:
        """Each scanner's images for clients, in proportion to its number of clients."""
        clients = [len(range(first, self.clients, self.scanners)) for first in range(self.scanners)]
        return _deal(labels, free, clients, rng(seed, "scanners"))

    def _reserve_scanned(self, labels: Tensor, server: Tensor, seed: int) -> list[Tensor]:
        """Each scanner's images for the server, in equal shares."""
        return _deal(labels, server, [1] * self.scanners, rng(seed, "reserve-scanners"))


@dataclass(frozen=True)
class DigitsPathological(Digits):
    """Clients that see different digits, few of each: 'pathological' in arXiv:2410.10114."""

    clients: int = option(
        5, says="number of clients, who divide the ten classes", ge=1, le=len(CLASSES) // 2
    )
    shots: int = option(16, says=SHOTS, ge=0)

    def load(self, seed: int) -> Federation:
        """ValueError if a client would get fewer than two classes."""
        images, labels = digits()
        pool = _pool(self.test, self.pool)
        server, free = _reserved(self, labels, pool, seed)
        hands = split.pathological(labels[free], self.clients, rng(seed, "pathological"))
        owned = {f"site-{i}": free[hand] for i, hand in enumerate(hands)}
        seen = _seen(self, labels)[pool]
        tested = _tested(labels, owned, pool[seen], pool[seen], rng(seed, "tests"))
        domains = dict.fromkeys(owned, "as-scanned")
        whole = _federation(self, seed, images, labels, owned, tested, domains, server)
        return replace(whole, unseen=pool[~seen])


@cache
def _pool(share: float, of: str) -> Tensor:
    """Positions of the scans to test on; the seed has no say in it."""
    _, labels = digits()
    weights = [1 - share, share]
    if of == "sheets":
        _, count = split.apportion(SHEETS, weights, least=1)
        chosen = torch.randperm(SHEETS, generator=rng(POOL, "sheets"))[:count]
        sheets = torch.arange(len(labels)).tensor_split(SHEETS)
        return torch.cat([sheets[number] for number in sorted(chosen.tolist())])
    sizes = split.apportion(len(labels), weights, least=1)
    return split.deal(labels, sizes, rng(POOL, "pool"))[1]


def _seen(spec: Digits, labels: Tensor) -> Tensor:
    """[N]: which scans are of a class that somebody trains on."""
    return ~torch.isin(labels, spec.withheld(len(CLASSES)))


def _scanned_exams(spec: DigitsScanners, scanners: list[str]) -> tuple[Tensor, list[Tensor]]:
    """All images and, behind them, the pool as each scanner but the first reads it; and where each
    one's lies.

    The first reads scans as they are.
    """
    images, pool = digits()[0], _pool(spec.test, spec.pool)
    exams = [pool]
    read = [images]
    for number, scanner in enumerate(scanners[1:]):
        exams.append(torch.arange(len(pool)) + len(images) + number * len(pool))
        read.append(_exam(spec.differ, scanner, spec.test, spec.pool))
    return torch.cat(read), exams


@cache
def _exam(differ: str, scanner: str, share: float, of: str) -> Tensor:
    """The pool as a scanner reads it: the same for every seed, and so for every run of a study."""
    return DIFFER[differ][scanner](digits()[0][_pool(share, of)], POOL)


def _tested(
    labels: Tensor, owned: dict[str, Tensor], pool: Tensor, exam: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """Client -> its part of an exam [P], which shows the pool [P], with its own classes' shares."""
    hands = split.alike(labels[pool], [labels[own] for own in owned.values()], generator)
    return {client: exam[hand] for client, hand in zip(owned, hands, strict=True)}


def _reserved(spec: Digits, labels: Tensor, pool: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the server's images, and of those that are left for clients to learn from."""
    free = _seen(spec, labels)
    free[pool] = False
    rest = free.nonzero().flatten()
    drawn = split.reserve(labels[rest], spec.reserve, spec.reserve_alpha, rng(seed, "reserve"))
    free[rest[drawn]] = False
    return rest[drawn], free.nonzero().flatten()


def _deal(labels: Tensor, own: Tensor, weights: list[int], generator: Generator) -> list[Tensor]:
    """The examples `own` [n] in pieces by weight, each with the class distribution of the whole."""
    return [
        own[piece]
        for piece in split.deal(labels[own], split.apportion(len(own), weights), generator)
    ]


def _federation(
    spec: DigitsScanners | DigitsPathological,
    seed: int,
    images: Tensor,
    labels: Tensor,
    owned: dict[str, Tensor],
    tested: dict[str, Tensor],
    domains: dict[str, str],
    server: Tensor,
    notes: tuple[str, ...] = (),
) -> Federation:
    parts = {}
    for client, own in owned.items():
        trained, validated = _learned(spec, seed, client, own, labels[own], len(tested[client]))
        parts[client] = Parts(train=trained, valid=validated, test=tested[client])
    return Federation(
        inputs=images,
        labels=labels,
        classes=CLASSES,
        parts=parts,
        domains=domains,
        reserve=server,
        notes=notes,
    )


def _learned(
    spec: DigitsScanners | DigitsPathological,
    seed: int,
    client: str,
    own: Tensor,
    labels: Tensor,
    tested: int,
) -> tuple[Tensor, Tensor]:
    """What one client trains on, few if so asked, and validates on: `own` [n], with labels [n]."""
    train, valid, _ = split.shares(spec.valid, spec.test)
    needed = 1 + (valid > 0)
    if len(own) < needed or not tested:
        raise ValueError(
            f"client {client!r} with {len(own)} images, and {tested} to test on: it must have"
            f" {needed} and 1; use fewer clients"
        )
    sizes = split.apportion(len(own), [train, valid], least=1)
    trained, validated = split.deal(labels, sizes, rng(seed, "parts", client=client))
    kept = split.few(labels[trained], spec.shots, rng(seed, "shots", client=client))
    if isinstance(spec, DigitsScanners) and spec.images:
        order = torch.randperm(len(kept), generator=rng(seed, "images", client=client))
        kept = kept[order[: spec.images].sort().values]
    return own[trained][kept], own[validated]
