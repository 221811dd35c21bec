"""A data set of the papers as a federation: five ways to make clients of it.

What is tested on is the same for all seeds: the set's own test part or, where it has none or is
pooled, a share of its examples that the seed has no say in; seeds deal it out to clients.
This room does not know how a set is kept or read.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..fetch import all_here
from ..options import REQUIRED, Outside, option
from ..tensors import rng
from . import split
from .drawn import POOL
from .examples import Example, Listing, words
from .federation import Federation
from .images import several
from .own import Listed
from .sets import SETS, Rows, folder, reader

Partition = Literal["pathological", "dirichlet", "dirichlet-in-domains", "dominant", "natural"]


@dataclass(frozen=True, kw_only=True)
class Hub(Listed, Outside):
    """A data set of the papers, from a local copy or the hub's download, split as papers do."""

    dataset: str = option(REQUIRED, says=f"one of {', '.join(SETS)}")
    path: str = option(
        "", says="a copy of the set: a folder of parquet files, or of save_to_disk; empty: hub's"
    )
    classes: tuple[str, ...] = option(
        (), says="classes to keep, in their order; [] takes those of the papers, mostly all"
    )
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
    given: bool = option(
        True, says="keep the set's own parts; false: pool them, and draw parts for every client"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset not in SETS:
            near = difflib.get_close_matches(self.dataset, SETS, 1) or [", ".join(SETS)]
            raise ValueError(f"dataset = {self.dataset!r}: no such set; use {near[0]}")
        if not self.clients and self.partition != "natural":
            raise ValueError(
                f"clients = 0 with partition = {self.partition!r}; expected at least 1"
            )
        if self.partition in ("natural", "dirichlet-in-domains") and not SETS[self.dataset].group:
            groups = ", ".join(name for name, known in SETS.items() if known.group)
            raise ValueError(
                f"partition = {self.partition!r}: {self.dataset} does not say whose an example is;"
                " expected "
                f'"pathological", "dirichlet" or "dominant", or one of {groups}'
            )

    def at_hand(self) -> None:
        """ValueError, with what to type, if the set or what reads it is not on this machine."""
        all_here(reader, lambda: folder(self.dataset, self.path))

    def load(self, seed: int) -> Federation:
        """ValueError, with what to type, if the set is not there or not what its page says."""
        known = SETS[self.dataset]
        rows = Rows.opened(folder(self.dataset, self.path), known)
        said = self._words(rows.names())
        whats, labels, groups = rows.listed(list(said))
        kept = split.few(labels, self.per_class, rng(POOL, "per-class"))
        hands = self._hands(labels[kept], [groups[position] for position in kept.tolist()], seed)
        parts = self._given(whats)
        pool = self._pool(kept.tolist(), labels, groups, parts)
        own = {client: kept[hand] for client, hand in hands.items()}
        positions = torch.cat(list(own.values())).sort().values.tolist()
        owners = {position: client for client, index in own.items() for position in index.tolist()}
        shown = rows.shown([whats[position] for position in positions])
        named = list(said.values())
        examples = []
        for position, what in zip(positions, shown, strict=True):
            part = parts[position]
            if position in pool:
                part = "test"
            example = Example(what, named[int(labels[position])], owners[position], part)
            if self.partition == "dirichlet-in-domains":
                example = replace(example, domain=groups[position])
            examples.append(example)
        left = rows.count - len(positions)
        notes = []
        if left:
            notes.append(
                f"Left out, by classes, per_class or least: {left} of {rows.count} examples."
            )
        store = None if rows.texts else rows
        asked = self
        if pool and not self.split:  # what is left to draw from is without the pool
            asked = replace(self, valid=self.valid / (1 - self.test))
        return asked.build(Listing(examples, store=store, notes=tuple(notes)), tuple(named), seed)

    def _given(self, whats: Sequence[str]) -> list[str]:
        """Each row's part, as the set gives it; of a pooled set, all are to train on."""
        if not self.given:
            return ["train"] * len(whats)
        parts = SETS[self.dataset].parts
        return [parts[what.partition("/")[0]] for what in whats]

    def _pool(
        self, kept: Sequence[int], labels: Tensor, groups: Sequence[str], parts: Sequence[str]
    ) -> set[int]:
        """Positions to test on, where the set says none: of each domain, writer or user the same
        share, if that is what a client is made of.
        """
        whole = self.partition not in ("natural", "dirichlet-in-domains")
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

    def _words(self, names: Sequence[str]) -> dict[str, str]:
        """The classes to keep, as the set names them, with the words for each."""
        known = SETS[self.dataset]
        says = {name: known.words.get(name, words(name)) for name in names}
        left = tuple(name for name, word in says.items() if word)
        wanted = self.classes or tuple(known.classes.split()) or left
        spelled = {name: name for name in says} | {says[name]: name for name in left}
        for name in wanted:
            if name not in spelled:
                near = difflib.get_close_matches(name, spelled, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"they are {several(says)}"
                raise ValueError(f"{name!r} is no class of {self.dataset}; {hint}")
        return {spelled[name]: says[spelled[name]] or words(spelled[name]) for name in wanted}

    def _hands(self, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Client -> its positions in labels [n]."""
        try:
            return PARTITIONS[self.partition](self, labels, groups, seed)
        except ValueError as error:
            raise ValueError(f"{self.dataset}, partition = {self.partition!r}: {error}") from None


def _pathological(hub: Hub, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    return _numbered("site", split.pathological(labels, hub.clients, rng(seed, "pathological")))


def _dirichlet(hub: Hub, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    return _numbered(
        "site", split.dirichlet(labels, hub.clients, hub.alpha, rng(seed, "dirichlet"))
    )


def _in_domains(hub: Hub, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    """As many clients in one domain as in another, to within one."""
    domains = split.natural(groups)
    hands: dict[str, Tensor] = {}
    for number, (domain, own) in enumerate(domains.items()):
        if clients := len(range(number, hub.clients, len(domains))):
            draw = rng(seed, "dirichlet", client=domain)
            dealt = split.dirichlet(labels[own], clients, hub.alpha, draw)
            hands |= _numbered(domain, [own[hand] for hand in dealt])
    return hands


def _dominant(hub: Hub, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    return _numbered("site", split.dominant(labels, hub.clients, hub.share, rng(seed, "dominant")))


def _natural(hub: Hub, labels: Tensor, groups: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Every domain, writer or user whole: one a client or, with `clients`, dealt out to so many."""
    whole = {name: own for name, own in split.natural(groups).items() if len(own) >= hub.least}
    if len(whole) < max(hub.clients, 1):
        raise ValueError(
            f"{len(whole)} have {hub.least} examples, for {hub.clients or 'some'} clients: it must"
            " be as many or more; use fewer clients, or a smaller least"
        )
    if not hub.clients:
        return whole
    names = list(whole)
    order = torch.randperm(len(names), generator=rng(seed, "natural"))
    hands = torch.tensor_split(order, hub.clients)
    return _numbered(
        "site", [torch.cat([whole[names[i]] for i in sorted(hand.tolist())]) for hand in hands]
    )


PARTITIONS: dict[str, Callable[[Hub, Tensor, Sequence[str], int], dict[str, Tensor]]] = {
    "pathological": _pathological,
    "dirichlet": _dirichlet,
    "dirichlet-in-domains": _in_domains,
    "dominant": _dominant,
    "natural": _natural,
}


def _numbered(name: str, hands: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{name}-{i}": hand for i, hand in enumerate(hands)}
