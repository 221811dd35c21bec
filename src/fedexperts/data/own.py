"""Your own data: examples that are listed one by one, each with its class and client, become a
federation.

What is common to folders.py, table.py and hub.py: the options, and who gets which example. A part
that is given stays as it is; a part that is not given is drawn from the examples to train on. This
room does not know how examples were listed.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor

from ..options import Outside, option, typed_path
from ..tensors import rng
from . import images, kept, manifest, split
from .drawn import SHOTS, Drawn
from .examples import Example, Listing, check_clients, classes_of, quoted, words
from .federation import PARTS, Federation, Parts

SIDE = 224  # pixels of a side, where a model does not say: as most see them
LEAST = 8


@dataclass(frozen=True, kw_only=True)
class Listed(Drawn):
    """What is asked of every source that lists its examples one by one."""

    side: int = option(
        0,
        says=f"pixels of a side to which images are brought; 0: as the model sees them, or {SIDE}",
        ge=0,
        le=1024,
    )
    bits: int = option(
        0,
        says="bits that grey files of 16 bits use, as 12: the largest is white; 0: each picture"
        " from its darkest to its brightest pixel",
        ge=0,
        le=16,
    )
    shots: int = option(0, says=SHOTS, ge=0)
    split: str = option(
        "", says="a run's split.json, whose parts are taken; empty: parts given or drawn"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.side < LEAST:
            raise ValueError(f"side = {self.side}; expected 0, or at least {LEAST}")
        if not self.split:
            return
        defaults = {asked.name: asked.default for asked in fields(Listed)}
        drawing = ("valid", "test", "reserve", "shots")
        odd = [name for name in drawing if getattr(self, name) != defaults[name]]
        if odd:
            raise ValueError(
                f"split says who has what, so that nothing is drawn: leave out {', '.join(odd)}"
            )

    def build(self, listing: Listing, classes: tuple[str, ...], seed: int) -> Federation:
        """Listing examples with their parts; ValueError, with what to do, if that cannot be."""
        check_clients({example.client for example in listing.examples})
        labels = _labels(listing.examples, classes)
        if self.split:
            given = manifest.load(typed_path(self.split))
            return self._as_given(given, listing, labels, classes)
        reserve = self._reserved(listing.examples, labels, classes, seed)
        parts = self._parts(listing.examples, labels, reserve, seed)
        domains = _domains(listing.examples)
        inputs, files = self._inputs(listing)
        spare = {}
        if self.shots:
            spare = _spare(listing.examples, parts, reserve)
        return Federation(
            inputs, labels, classes, parts, domains, reserve, files, listing.notes, spare
        )

    def _as_given(
        self, given: manifest.Manifest, listing: Listing, labels: Tensor, classes: tuple[str, ...]
    ) -> Federation:
        """A split of these very examples, taken up; ValueError if they are others."""
        inputs, files = self._inputs(listing)
        manifest.check_same(given, inputs, labels, classes, files)
        parts, domains, spare = {}, {}, {}
        for name, own in given.clients.items():
            parts[name] = Parts(_positions(own.train), _positions(own.valid), _positions(own.test))
            domains[name] = own.domain
            if own.spare:
                spare[name] = own.spare
        reserve = _positions(given.reserve)
        return Federation(
            inputs, labels, classes, parts, domains, reserve, files, listing.notes, spare
        )

    def _inputs(self, listing: Listing) -> tuple[Tensor | tuple[str, ...], dict[str, str]]:
        """What a model is shown, and the hash of each file by its name."""
        whats = tuple(example.what for example in listing.examples)
        if listing.store is None:
            return whats, {}
        return images.read(listing.store, whats, self.side or SIDE, self.bits)

    def _reserved(
        self, examples: Sequence[Example], labels: Tensor, classes: Sequence[str], seed: int
    ) -> Tensor:
        """The server's few, of what is there to train on."""
        free = _positions(
            [position for position, example in enumerate(examples) if example.part == "train"]
        )
        counts = labels[free].bincount(minlength=len(classes)).tolist()
        if self.reserve and not self.reserve_alpha and min(counts) < self.reserve:
            name = classes[counts.index(min(counts))]
            raise ValueError(
                f"data.reserve = {self.reserve}: class {name!r} has {min(counts)} examples to"
                " train on;"
                " expected at most that, or a reserve_alpha, which draws some classes more"
                " often than others"
            )
        return free[
            split.reserve(labels[free], self.reserve, self.reserve_alpha, rng(seed, "reserve"))
        ]

    def _parts(
        self,
        examples: Sequence[Example],
        labels: Tensor,
        reserve: Tensor,
        seed: int,
    ) -> dict[str, Parts]:
        own: dict[str, dict[str, list[int]]] = {}
        for position, example in enumerate(examples):
            own.setdefault(example.client, {part: [] for part in PARTS})[example.part].append(
                position
            )
        server = {*reserve.tolist()}
        parts = {}
        for client, given in own.items():
            trained = [position for position in given["train"] if position not in server]
            try:
                parts[client] = self._cut(client, given | {"train": trained}, labels, seed)
            except ValueError:
                raise ValueError(  # without counts by class: a site's server hears it
                    f"client {client!r} has too few examples to train, validate and test on: to"
                    f" train on, and to draw what is not given from, there are {len(trained)}."
                    " Add more, or take the client out"
                ) from None
        return parts

    def _cut(self, client: str, given: dict[str, list[int]], labels: Tensor, seed: int) -> Parts:
        """One client's parts; those that are not given are cut off what is there to train on."""
        train, valid, test = (_positions(given[part]) for part in PARTS)
        share = self._share({part for part in PARTS if given[part]})
        sizes = split.apportion(len(train), [1 - sum(share.values()), *share.values()], least=1)
        pieces = split.deal(labels[train], sizes, rng(seed, "parts", client=client))
        trained, validated, tested = (train[piece] for piece in pieces)
        few = split.few(labels[trained], self.shots, rng(seed, "shots", client=client))
        return Parts(trained[few], torch.cat([valid, validated]), torch.cat([test, tested]))

    def _share(self, given: Set[str]) -> dict[str, float]:
        """The share to cut off for validation and for testing; 0 of a part that is given."""
        wanted = {"valid": self.valid, "test": self.test}
        return wanted | dict.fromkeys(wanted.keys() & given, 0.0)


@dataclass(frozen=True, kw_only=True)
class Own(Listed, Outside, ABC):
    """What is asked of every source of your own data."""

    path: str = ""
    site: str = option(
        "", says="the name of the one client whose own data these are; empty: several clients"
    )
    classes: tuple[str, ...] = option(
        (), says="all classes, in their order; [] takes those that are there, sorted"
    )

    @abstractmethod
    def listing(self) -> Listing:
        """What lies at `path`; ValueError, with what to do, for whatever does not fit."""

    def at_hand(self) -> None:
        """ValueError, with what to do, for what does not fit at `path`; no picture is read."""
        self._named()

    def _named(self) -> tuple[Listing, tuple[str, ...]]:
        """What is listed, and all classes."""
        if not self.path:
            raise ValueError(
                "data.path is missing: use --set data.path=FOLDER, or --data FOLDER at a site"
            )
        listing = self.listing()
        return listing, classes_of(listing, self.classes, self.site)

    def load(self, seed: int) -> Federation:
        """What lies at `path` as a federation; ValueError, with what to do, if that cannot be."""
        return self.build(*self._named(), seed)

    def again(self, given: manifest.Manifest, seed: int) -> Federation:
        """What lies there now, split as `given` says; ValueError if that cannot be.

        What is new moves nothing: its part is drawn from the seed, its client and its bytes alone.
        """
        if self.split:  # by which nothing is drawn, and which refuses other examples
            return self.load(seed)
        listing = self.listing()
        classes = tuple(given.classes)
        if self.classes:
            classes = classes_of(listing, self.classes, self.site)
        _check_known(listing.examples, classes, given)
        labels = _labels(listing.examples, classes)
        if not given.labelled:  # of a run that did not write down which example has which class
            return self._as_given(given, listing, labels, classes)
        inputs, files = self._inputs(listing)
        now = [
            kept.Entry(example.client, *file, example.label)
            for example, file in zip(listing.examples, files.items(), strict=True)
        ]
        choose = self._chooser(listing.examples, now, seed)
        seats, changed = kept.seats(given, now, choose, self.shots)
        owned = _owned(seats)
        domains = _domains(listing.examples)
        parts, spare = {}, {}
        for client in domains:
            parts[client] = Parts(*(_positions(owned.get((client, part), [])) for part in PARTS))
            if (client, kept.SPARE) in owned:
                spare[client] = owned[client, kept.SPARE]
        _check_left(parts)
        reserve = _positions(owned.get((kept.SERVER, kept.RESERVE), []))
        return Federation(
            inputs, labels, classes, parts, domains, reserve, files, listing.notes, spare, changed
        )

    def _inputs(self, listing: Listing) -> tuple[Tensor | tuple[str, ...], dict[str, str]]:
        """Texts have a hash each, as images' files have."""
        inputs, files = super()._inputs(listing)
        if isinstance(inputs, tuple):
            for number, text in enumerate(inputs, start=1):
                files[f"row {number}"] = hashlib.sha256(text.encode()).hexdigest()
        return inputs, files

    def mark(self, seed: int) -> str:
        """Equal for all that ask for the same split; where data lie, and how pictures are read,
        do not matter.
        """
        asked = asdict(self) | dict.fromkeys(("path", "root", "side"))
        del asked["bits"]  # which splits of before did not know
        text = json.dumps([type(self).__name__, seed, asked], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _chooser(
        self, examples: Sequence[Example], now: Sequence[kept.Entry], seed: int
    ) -> Callable[[int], str]:
        """Says the part of a new example: the one that is given, or else one drawn by its hash."""
        given: dict[str, set[str]] = {}
        for example in examples:
            given.setdefault(example.client, set()).add(example.part)

        def choose(position: int) -> str:
            example, entry = examples[position], now[position]
            if example.part != "train":
                return example.part
            key = f"{seed} {entry.owner} {entry.sha256}"
            return kept.drawn(key, **self._share(given[example.client]))

        return choose

    def nothing(self) -> Tensor | tuple[str, ...]:
        """Inputs of no example: images, as a run writes down how large they are."""
        side = self.side or SIDE
        return torch.empty(0, 3, side, side, dtype=torch.uint8)

    def server(self) -> Federation:
        """What a server holds whose sites hold the data: classes and, with a path, a reserve."""
        if not self.classes:
            raise ValueError(
                "data.classes is missing: sites and server must number them alike, and the server"
                " sees no site's data"
            )
        if not self.path:
            none = torch.empty(0, dtype=torch.int64)
            return Federation(self.nothing(), none, tuple(map(words, self.classes)), {}, {})
        listing = replace(self, site="server").listing()
        classes = classes_of(listing, self.classes, self.site)
        labels = _labels(listing.examples, classes)
        inputs, files = self._inputs(listing)
        reserve = torch.arange(len(labels))
        return Federation(inputs, labels, classes, {}, {}, reserve, files, listing.notes)


def _check_known(
    examples: Sequence[Example], classes: tuple[str, ...], given: manifest.Manifest
) -> None:
    """ValueError for a class or client that a split, and what was learned of it, does not have."""
    if list(classes) != given.classes:
        raise ValueError(
            f"the classes are {', '.join(classes)}, and those of the split"
            f" {', '.join(given.classes)}"
        )
    wants = "what was learned has no room for it: take it out, or start another run"
    if strange := sorted({example.label for example in examples} - {*classes}):
        raise ValueError(f"class {quoted(strange)} came after the split was written, and {wants}")
    if strange := sorted({example.client for example in examples} - given.clients.keys()):
        raise ValueError(f"client {quoted(strange)} came after the split was written, and {wants}")


def _check_left(parts: Mapping[str, Parts]) -> None:
    """ValueError if too much of a split is gone."""
    for client, own in parts.items():
        for part in ("train", "test"):
            if not len(getattr(own, part)):
                raise ValueError(
                    f"client {client!r} has nothing left to {part} on of its split: "
                    "put back what is gone, or split anew, by another run or, at a site,"
                    " without the split that it kept"
                )


def _owned(seats: Mapping[int, kept.Seat]) -> dict[tuple[str, str], list[int]]:
    """Client and part -> positions, sorted."""
    owned: dict[tuple[str, str], list[int]] = {}
    for position, seat in sorted(seats.items()):
        owned.setdefault((seat.owner, seat.part), []).append(position)
    return owned


def _spare(
    examples: Sequence[Example], parts: Mapping[str, Parts], reserve: Tensor
) -> dict[str, list[int]]:
    """Client -> its examples that nobody has."""
    owned = {*reserve.tolist()}
    for own in parts.values():
        owned.update(*(index.tolist() for index in own.named().values()))
    spare: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        if position not in owned:
            spare.setdefault(example.client, []).append(position)
    return spare


def _labels(examples: Sequence[Example], classes: Sequence[str]) -> Tensor:
    """Each example's class, as its position in `classes`: int64 [N]."""
    position = {name: label for label, name in enumerate(classes)}
    return _positions([position[example.label] for example in examples])


def _domains(examples: Sequence[Example]) -> dict[str, str]:
    """Client -> where its examples come from."""
    return {example.client: example.domain or example.client for example in examples}


def _positions(of: Sequence[int]) -> Tensor:
    return torch.tensor(of, dtype=torch.int64)
