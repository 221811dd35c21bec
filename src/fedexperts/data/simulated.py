"""Clients for a data set that comes without: its examples are dealt out to simulated ones.

What is tested on is the same for all seeds: what the set itself gives to test on or, where it gives
nothing or is pooled, a share of its examples that the seed has no say in; seeds deal it out to
clients. This room does not know where a set comes from.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..options import option
from ..tensors import rng
from . import conflict, split
from .drawn import POOL, Unseen
from .examples import Example, Listing
from .federation import Federation
from .own import Listed

Partition = Literal["pathological", "dirichlet", "dirichlet-in-domains", "dominant", "natural"]
IN_GROUPS = ("dirichlet-in-domains", "natural")  # those that ask whose an example is


@dataclass(frozen=True, kw_only=True)
class Simulated(Listed, Unseen):
    """What is asked of every source whose clients are simulated."""

    partition: Partition = option(
        "pathological",
        says="what makes a client: classes of its own; shares of classes; the same inside its"
        " domain; one class above all others; whom its examples are of",
    )
    clients: int = option(
        10,
        says="number of clients; 0, where they are natural: each domain, writer or user is one",
        ge=0,
    )
    alpha: float = option(0.5, says="Dirichlet over labels; small: skewed", gt=0)
    share: float = option(
        0.8, says="what one class has of a client's examples, where it is dominant", gt=0, le=1
    )
    per_class: int = option(
        0, says="at most so many examples a class, drawn before all else; 0: all", ge=0
    )
    least: int = option(10, says="writers or users with fewer examples are left out", ge=1)
    pages: int = option(
        1,
        says="ways in which clients' pictures lie: upright, upside-down, mirrored, negative; the"
        " n-th client has the n-th, and again from the first",
        ge=1,
        le=len(conflict.PAGES),
    )
    numberings: int = option(
        1,
        says="ways to number the C classes: each next one, for every `pages` clients, calls a class"
        " by the name of that C / n further on",
        ge=1,
    )
    meets: Literal["own", "everybody"] = option(
        "own",
        says="what a client is tested on: its own kind, or everybody's tests dealt out anew, a test"
        " wider than its training; what it validates on stays its own",
    )
    given: bool = option(
        True, says="keep the set's own parts; false: pool them, and draw parts for every client"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clients and self.partition != "natural":
            raise ValueError(
                f"clients = 0 with partition = {self.partition!r}; expected at least 1"
            )
        self.check_unseen(pages=self.pages, numberings=self.numberings)
        if self.unseen and self.split:
            raise ValueError(
                "data.unseen with data.split: a split that is taken up says who has what; leave"
                " out one of them"
            )

    def simulate(
        self,
        listing: Listing,
        classes: tuple[str, ...],
        seed: int,
        shown: Callable[[list[str]], list[str]] = list,
    ) -> Federation:
        """The examples dealt out to clients; whose a listing says they are is their domain, writer
        or user. `shown` says what a model is to see of those that some client has.
        """
        listed = listing.examples
        number = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor([number[example.label] for example in listed], dtype=torch.int64)
        groups = [example.client for example in listed]
        parts = [example.part if self.given else "train" for example in listed]
        kept = split.few(labels, self.per_class, rng(POOL, "per-class"))
        withheld = torch.isin(labels[kept], self.withheld(len(classes)))
        kept, rest = kept[~withheld], kept[withheld]
        hands = self._hands(labels[kept], [groups[position] for position in kept.tolist()], seed)
        pool = self._pool(kept.tolist(), labels, groups, parts)
        owners: dict[int, str] = {}
        for client, hand in hands.items():
            owners |= dict.fromkeys(kept[hand].tolist(), client)
        positions = sorted(owners)
        whats = shown([listed[position].what for position in positions])
        examples = []
        for position, what in zip(positions, whats, strict=True):
            part = parts[position]
            if position in pool:
                part = "test"
            example = Example(what, listed[position].label, owners[position], part)
            if self.partition == "dirichlet-in-domains":
                example = replace(example, domain=groups[position])
            examples.append(example)
        notes = listing.notes
        if left := len(listed) - len(examples) - len(rest):
            notes += (f"Left out, by per_class or least: {left} of {len(listed)} examples.",)
        asked = self
        if pool and not self.split:  # what is left to draw from is without the pool
            asked = replace(self, valid=self.valid / (1 - self.test))
        whole = asked.build(replace(listing, examples=examples, notes=notes), classes, seed)
        if len(rest):
            tested = self._pool(rest.tolist(), labels, groups, parts)
            tested |= {position for position in rest.tolist() if parts[position] == "test"}
            others = [listed[position] for position in sorted(tested)]
            whats = shown([example.what for example in others])
            others = [replace(e, what=what) for e, what in zip(others, whats, strict=True)]
            inputs, files = self._inputs(replace(listing, examples=others))
            whole = _with_unseen(whole, inputs, labels[sorted(tested)], files)
        return self._conflicting(whole, list(hands), seed)

    def _reserved(
        self, examples: Sequence[Example], labels: Tensor, classes: Sequence[str], seed: int
    ) -> Tensor:
        """Of the classes that are trained on."""
        if not self.unseen:
            return super()._reserved(examples, labels, classes, seed)
        there = labels.unique()
        names = [classes[label] for label in there.tolist()]
        return super()._reserved(examples, torch.searchsorted(there, labels), names, seed)

    def _conflicting(self, whole: Federation, clients: Sequence[str], seed: int) -> Federation:
        """Clients that see or name things otherwise, if that is asked for."""
        if self.numberings > len(whole.classes):
            raise ValueError(
                f"data.numberings = {self.numberings} of {len(whole.classes)} classes; expected at"
                " most as many as there are classes"
            )
        if self.pages > 1:
            whole = conflict.turned(whole, clients, self.pages)
        if self.meets == "everybody":
            whole = conflict.tested_on_everybody(whole, seed)
        return conflict.renumbered(whole, clients, self.numberings, apart=self.pages)

    def _pool(
        self, kept: Sequence[int], labels: Tensor, groups: Sequence[str], parts: Sequence[str]
    ) -> set[int]:
        """Positions to test on, where the set says none: of each domain, writer or user the same
        share, if that is what a client is made of.
        """
        whole = self.partition not in IN_GROUPS
        owned: dict[str, list[int]] = {}
        for position in kept:
            owned.setdefault("" if whole else groups[position], []).append(position)
        pool: set[int] = set()
        for group, own in sorted(owned.items()):
            if any(parts[position] == "test" for position in own):
                continue
            free = torch.tensor([i for i in own if parts[i] == "train"], dtype=torch.int64)
            sizes = split.apportion(len(free), [1 - self.test, self.test])
            _, tested = split.deal(labels[free], sizes, rng(POOL, "pool", client=group))
            pool |= {*free[tested].tolist()}
        return pool

    def _share(self, given: Set[str]) -> dict[str, float]:
        """Nothing to test on is drawn by a seed."""
        return super()._share({*given, "test"})

    def _hands(self, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Client -> its positions in labels [n]."""
        try:
            return PARTITIONS[self.partition](self, labels, groups, seed)
        except ValueError as error:
            raise ValueError(
                f"data.partition = {self.partition!r}: {error}; use another data.clients or"
                ' data.partition, as "dirichlet"'
            ) from None


def _pathological(
    asked: Simulated, labels: Tensor, groups: Sequence[str], seed: int
) -> dict[str, Tensor]:
    return _numbered("site", split.pathological(labels, asked.clients, rng(seed, "pathological")))


def _dirichlet(
    asked: Simulated, labels: Tensor, groups: Sequence[str], seed: int
) -> dict[str, Tensor]:
    return _numbered(
        "site", split.dirichlet(labels, asked.clients, asked.alpha, rng(seed, "dirichlet"))
    )


def _in_domains(
    asked: Simulated, labels: Tensor, groups: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """As many clients in one domain as in another, to within one."""
    domains = split.natural(groups)
    hands: dict[str, Tensor] = {}
    for number, (domain, own) in enumerate(domains.items()):
        if clients := len(range(number, asked.clients, len(domains))):
            draw = rng(seed, "dirichlet", client=domain)
            dealt = split.dirichlet(labels[own], clients, asked.alpha, draw)
            hands |= _numbered(domain, [own[hand] for hand in dealt])
    return hands


def _dominant(
    asked: Simulated, labels: Tensor, groups: Sequence[str], seed: int
) -> dict[str, Tensor]:
    return _numbered(
        "site", split.dominant(labels, asked.clients, asked.share, rng(seed, "dominant"))
    )


def _natural(
    asked: Simulated, labels: Tensor, groups: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """Every domain, writer or user whole: one a client or, with `clients`, dealt out to so many."""
    whole = {name: own for name, own in split.natural(groups).items() if len(own) >= asked.least}
    if len(whole) < max(asked.clients, 1):
        raise ValueError(
            f"{len(whole)} have {asked.least} examples, for {asked.clients or 'some'} clients: it"
            " must be as many or more; use fewer clients, or a smaller least"
        )
    if not asked.clients:
        return whole
    names = list(whole)
    order = torch.randperm(len(names), generator=rng(seed, "natural"))
    hands = torch.tensor_split(order, asked.clients)
    return _numbered(
        "site", [torch.cat([whole[names[i]] for i in sorted(hand.tolist())]) for hand in hands]
    )


PARTITIONS: dict[str, Callable[[Simulated, Tensor, Sequence[str], int], dict[str, Tensor]]] = {
    "pathological": _pathological,
    "dirichlet": _dirichlet,
    "dirichlet-in-domains": _in_domains,
    "dominant": _dominant,
    "natural": _natural,
}


def _with_unseen(
    whole: Federation, inputs: Tensor | tuple[str, ...], labels: Tensor, files: dict[str, str]
) -> Federation:
    """The same with further examples, which are at nobody and tested on alone."""
    together: Tensor | tuple[str, ...]
    if isinstance(whole.inputs, Tensor) and isinstance(inputs, Tensor):
        together = torch.cat([whole.inputs, inputs])
    else:
        together = (*whole.inputs, *inputs)
    return replace(
        whole,
        inputs=together,
        labels=torch.cat([whole.labels, labels]),
        files=whole.files | files,
        unseen=torch.arange(len(whole.labels), len(together)),
    )


def _numbered(name: str, hands: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{name}-{i}": hand for i, hand in enumerate(hands)}
