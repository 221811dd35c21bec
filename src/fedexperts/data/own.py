"""Your own data: examples that are listed one by one, each with its class and client, become a
federation.

What is common to folders.py, table.py and hub.py: the options, the classes, and who gets which
example. A part that is given stays as it is; a part that is not given is drawn from the examples to
train on. Everything that can be wrong is found before the first image is read. This room does not
know how examples were found.
"""

import difflib
import hashlib
import json
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ..options import option
from ..tensors import rng
from . import images, kept, manifest, split
from .drawn import SHOTS, Drawn
from .federation import PARTS, Federation, Parts, check_name

# as it is written
PART = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Example:
    """An image's name in its store, or a text; its class in words; its client; its part and domain,
    if given.
    """

    what: str
    label: str
    site: str
    part: str = "train"  # not given: parts are drawn from those to train on
    domain: str = ""  # where the client's examples come from; not given: the client


@dataclass(frozen=True)
class Found:
    """What a source found: its examples, where their images lie (None: texts), and what a person
    should know of it.
    """

    examples: list[Example]
    # all that are there, also those without an example; None: cannot be seen
    classes: frozenset[str] | None = None
    store: images.Store | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listed(Drawn):
    """What is asked of every source that lists its examples one by one."""

    side: int = option(224, says="pixels of a side to which images are brought", ge=8, le=1024)
    shots: int = option(0, says=SHOTS, ge=0)
    split: str = option(
        "", says="a run's split.json, whose parts are taken; empty: parts given or drawn"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        draws = {
            f.name: f.default
            for f in fields(Listed)
            if f.name in ("shots", "valid", "test", "reserve")
        }
        odd = [name for name, default in draws.items() if getattr(self, name) != default]
        if self.split and odd:
            raise ValueError(
                f"split says who has what, so that nothing is drawn: leave out {', '.join(odd)}"
            )

    def build(self, found: Found, classes: tuple[str, ...], seed: int) -> Federation:
        """Found examples with their parts, given or drawn; ValueError, with what to do, if that
        cannot be.
        """
        _check_sites({example.site for example in found.examples})
        place = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor(
            [place[example.label] for example in found.examples], dtype=torch.int64
        )
        whats = [example.what for example in found.examples]
        if self.split:
            given = manifest.load(Path(self.split).expanduser())
            inputs, files = self._inputs(whats, found.store)
            manifest.check_same(given, inputs, labels, classes, files)
            return Federation(
                inputs, labels, classes, *_taken_up(given), files, found.notes, _left_out(given)
            )
        reserve = self._reserved(found.examples, labels, classes, seed)
        parts = self._parts(found.examples, labels, classes, reserve, seed)
        domains = {example.site: example.domain or example.site for example in found.examples}
        inputs, files = self._inputs(whats, found.store)
        spare = _spare(found.examples, parts, reserve) if self.shots else {}
        return Federation(
            inputs, labels, classes, parts, domains, reserve, files, found.notes, spare
        )

    def _inputs(
        self, whats: Sequence[str], store: images.Store | None
    ) -> tuple[Tensor | tuple[str, ...], dict[str, str]]:
        return (tuple(whats), {}) if store is None else images.read(store, whats, self.side)

    def _reserved(
        self, examples: Sequence[Example], labels: Tensor, classes: Sequence[str], seed: int
    ) -> Tensor:
        """The server's few, of what is there to train on."""
        free = _where(example.part == "train" for example in examples)
        counts = labels[free].bincount(minlength=len(classes)).tolist()
        if self.reserve and not self.reserve_alpha and min(counts) < self.reserve:
            name, count = classes[counts.index(min(counts))], min(counts)
            raise ValueError(
                f"data.reserve = {self.reserve}: class {name!r} has {count} examples to train on;"
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
        classes: Sequence[str],
        reserve: Tensor,
        seed: int,
    ) -> dict[str, Parts]:
        own: dict[str, dict[str, list[int]]] = {}
        for place, example in enumerate(examples):
            own.setdefault(example.site, {part: [] for part in PARTS})[example.part].append(place)
        server = {*reserve.tolist()}
        parts = {}
        for site, given in own.items():
            trained = [place for place in given["train"] if place not in server]
            try:
                parts[site] = self._cut(site, given | {"train": trained}, labels, seed)
            except ValueError:
                counts = Counter(classes[label] for label in labels[trained].tolist())
                there = (
                    ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
                )
                raise ValueError(
                    f"client {site!r} has too few examples to train, validate and test on: to train"
                    f" on, and to draw what is not given from, there are {len(trained)} ({there})."
                    " Add more, or take the site out"
                ) from None
        return parts

    def _cut(self, site: str, given: dict[str, list[int]], labels: Tensor, seed: int) -> Parts:
        """One site's parts; those that are not given are cut off what is there to train on."""
        train, valid, test = (torch.tensor(given[part], dtype=torch.int64) for part in PARTS)
        share = self._share({part for part in PARTS if given[part]})
        sizes = split.apportion(len(train), [1 - sum(share.values()), *share.values()], least=1)
        kept, validated, tested = (
            train[piece]
            for piece in split.deal(labels[train], sizes, rng(seed, "parts", client=site))
        )
        few = split.few(labels[kept], self.shots, rng(seed, "shots", client=site))
        return Parts(kept[few], torch.cat([valid, validated]), torch.cat([test, tested]))

    def _share(self, given: Set[str]) -> dict[str, float]:
        """What is validated and tested on, of what is there to train on: nothing, where a site
        gives the part.
        """
        return {part: 0 if part in given else getattr(self, part) for part in ("valid", "test")}


@dataclass(frozen=True, kw_only=True)
class Own(Listed, ABC):
    """What is asked of every source of your own data."""

    path: str = ""
    site: str = option(
        "", says="the name of the one client whose own data these are; empty: several clients"
    )
    classes: tuple[str, ...] = option(
        (), says="all classes, in their order; [] takes those that are there, sorted"
    )

    @abstractmethod
    def found(self) -> Found:
        """What lies at `path`; ValueError, with what to do, for whatever does not fit."""

    def load(self, seed: int) -> Federation:
        """What is found as a federation; ValueError, with what to do, if that cannot be."""
        if not self.path:
            raise ValueError(
                "data.path is missing: use --set data.path=PLACE, or --data PLACE at a site"
            )
        found = self.found()
        return self.build(found, self._classes(found), seed)

    def again(self, given: manifest.Manifest, seed: int) -> Federation:
        """What is found now, split as `given` says; ValueError if that cannot be.

        What is new moves nothing: its part is drawn from the seed, its client and its bytes alone.
        """
        if self.split:  # by which nothing is drawn, and which refuses other examples
            return self.load(seed)
        found = self.found()
        classes = self._classes(found) if self.classes else tuple(given.classes)
        _check_known(found.examples, classes, given)
        labels = torch.tensor(
            [classes.index(example.label) for example in found.examples], dtype=torch.int64
        )
        inputs, files = self._inputs([example.what for example in found.examples], found.store)
        domains = {example.site: example.domain or example.site for example in found.examples}
        if not given.labelled:  # of a run that did not write down which example has which class
            manifest.check_same(given, inputs, labels, classes, files)
            return Federation(
                inputs, labels, classes, *_taken_up(given), files, found.notes, _left_out(given)
            )
        now = [
            kept.Entry(e.site, *file, e.label)
            for e, file in zip(found.examples, files.items(), strict=True)
        ]
        seats, changed = kept.seats(
            given, now, self._chooser(found.examples, now, seed), self.shots
        )
        held = _held(seats)
        parts = {
            site: Parts(*(_places(held.get((site, part), [])) for part in PARTS))
            for site in domains
        }
        _check_left(parts)
        reserve = _places(held.get((kept.SERVER, kept.RESERVE), []))
        spare = {site: held[site, kept.SPARE] for site in domains if (site, kept.SPARE) in held}
        return Federation(
            inputs, labels, classes, parts, domains, reserve, files, found.notes, spare, changed
        )

    def _inputs(
        self, whats: Sequence[str], store: images.Store | None
    ) -> tuple[Tensor | tuple[str, ...], dict[str, str]]:
        """Texts have a hash each, as images' files have."""
        if store is not None:
            return super()._inputs(whats, store)
        hashes = (hashlib.sha256(text.encode()).hexdigest() for text in whats)
        return tuple(whats), {
            f"row {number}": sha256 for number, sha256 in enumerate(hashes, start=1)
        }

    def mark(self, seed: int) -> str:
        """The same for all that asks for the same split, wherever the data lie and however large
        they are shown.
        """
        asked = asdict(self) | dict.fromkeys(("path", "root", "side"))
        return hashlib.sha256(
            json.dumps([type(self).__name__, seed, asked], sort_keys=True).encode()
        ).hexdigest()[:16]

    def _chooser(
        self, examples: Sequence[Example], now: Sequence[kept.Entry], seed: int
    ) -> Callable[[int], str]:
        """Says the part of a new example: the one that is given or, of those that are not, one by
        the hash.
        """
        given: dict[str, set[str]] = {}
        for example in examples:
            given.setdefault(example.site, set()).add(example.part)

        def choose(place: int) -> str:
            example, key = examples[place], f"{seed} {now[place].owner} {now[place].sha256}"
            return (
                kept.drawn(key, **self._share(given[example.site]))
                if example.part == "train"
                else example.part
            )

        return choose

    def nothing(self) -> Tensor | tuple[str, ...]:
        """Inputs of no example: images, as a run writes down how large they are."""
        return torch.empty(0, 3, self.side, self.side, dtype=torch.uint8)

    def server(self) -> Federation:
        """What a server holds whose sites hold the data: the classes and, if a path is set there,
        its own reserve.
        """
        if not self.classes:
            raise ValueError(
                "data.classes is missing: sites and server must number them alike, and the server"
                " sees no site's data"
            )
        if not self.path:
            return Federation(
                self.nothing(),
                torch.empty(0, dtype=torch.int64),
                tuple(map(words, self.classes)),
                {},
                {},
            )
        found = replace(self, site="server").found()
        classes = self._classes(found)
        labels = torch.tensor(
            [classes.index(example.label) for example in found.examples], dtype=torch.int64
        )
        inputs, files = self._inputs([example.what for example in found.examples], found.store)
        return Federation(
            inputs, labels, classes, {}, {}, torch.arange(len(labels)), files, found.notes
        )

    def _classes(self, found: Found) -> tuple[str, ...]:
        """All classes: those that the config lists, or else those that are there."""
        used = {example.label for example in found.examples}
        seen = used if found.classes is None else found.classes
        if not self.classes:
            _check_found(self.site, seen, used)
            return tuple(sorted(used))
        listed = tuple(words(name) for name in self.classes)
        if strange := sorted(seen - {*listed}):
            near = difflib.get_close_matches(strange[0], listed, 1)
            raise ValueError(
                f"{_quoted(strange)}: not among data.classes, which are {', '.join(listed)}. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + "Rename it in the data, or add it to data.classes"
            )
        if found.classes is not None and (missing := [name for name in listed if name not in seen]):
            raise ValueError(
                f"{_quoted(missing)}: among data.classes, but there is no such folder. Make"
                " a folder of that name, empty if there are no images of it, or take it out"
                " of data.classes"
            )
        return listed


def words(name: str) -> str:
    """A class as a text encoder reads it: "golden_retriever" is "golden retriever", in whatever
    spelling of é.

    A dash that joins no two words is a sign: "-1" is not "1", nor "HER2-" "HER2".
    """
    return " ".join(re.sub(r"_|(?<=\w)-(?=\w)", " ", composed(name)).split())


def composed(name: str) -> str:
    """A name with each letter and its accents as one character: disks keep both spellings."""
    return unicodedata.normalize("NFC", name)


def below(root: Path, path: Path) -> str:
    """The name of `path` below `root`; ValueError if it, or what it links to, lies elsewhere."""
    if not (real := path.resolve()).is_relative_to(root.resolve()):
        raise ValueError(f"{path} leads out of {root}, to {real}: use a copy of it in there")
    return Path(os.path.relpath(path, root)).as_posix()


def _quoted(names: Iterable[str]) -> str:
    return images.several(map(repr, names))


def _check_found(site: str, seen: Set[str], used: Set[str]) -> None:
    """ValueError if classes cannot be taken as they are found."""
    if site:
        there = ", ".join(f'"{name}"' for name in sorted(seen))
        raise ValueError(
            f"{site!r} is one of several sites, which must number their classes alike: use"
            f" the same data.classes at each of them, for example data.classes = [{there}]"
        )
    folded = Counter(name.casefold() for name in seen)
    if alike := sorted(name for name in seen if folded[name.casefold()] > 1):
        raise ValueError(
            f"classes {_quoted(alike)} differ in capitals alone: expected one spelling at"
            " every site, or to list them all in data.classes"
        )
    if empty := sorted(seen - used):
        raise ValueError(
            f"class {_quoted(empty)} has no example anywhere: remove it, or"
            " list all classes in data.classes if there will be some"
        )


def _check_sites(sites: Iterable[str]) -> None:
    for site in sorted(sites):
        try:
            check_name(site)
        except ValueError as error:
            better = re.sub(r"[\s./\\]+", "-", site).strip("-") or "site-1"
            raise ValueError(f"{error}. Rename it, for example to {better!r}") from None


def _check_known(
    examples: Sequence[Example], classes: tuple[str, ...], given: manifest.Manifest
) -> None:
    """ValueError for a class or client that a split does not have: what was learned has no place
    for it.
    """
    if list(classes) != given.classes:
        raise ValueError(
            f"the classes are {', '.join(classes)}, and those of the split"
            f" {', '.join(given.classes)}"
        )
    wants = "what was learned has no place for it: take it out, or start another run"
    if strange := sorted({example.label for example in examples} - {*classes}):
        raise ValueError(f"class {_quoted(strange)} came after the split was written, and {wants}")
    if strange := sorted({example.site for example in examples} - given.clients.keys()):
        raise ValueError(f"client {_quoted(strange)} came after the split was written, and {wants}")


def _check_left(parts: Mapping[str, Parts]) -> None:
    """ValueError if too much of a split is gone."""
    for site, own in parts.items():
        for part in ("train", "test"):
            if not len(getattr(own, part)):
                raise ValueError(
                    f"client {site!r} has nothing left to {part} on of its split: "
                    "put back what is gone, or split anew, by another run or, at a site,"
                    " without the split that it kept"
                )


def _held(seats: Mapping[int, kept.Seat]) -> dict[tuple[str, str], list[int]]:
    """Client and part -> places, sorted."""
    held: dict[tuple[str, str], list[int]] = {}
    for place, seat in sorted(seats.items()):
        held.setdefault((seat.owner, seat.part), []).append(place)
    return held


def _spare(
    examples: Sequence[Example], parts: Mapping[str, Parts], reserve: Tensor
) -> dict[str, list[int]]:
    """Client -> its examples that nobody has."""
    held = {*reserve.tolist()}
    for own in parts.values():
        held.update(*(index.tolist() for index in own.named().values()))
    found: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        if place not in held:
            found.setdefault(example.site, []).append(place)
    return found


def _left_out(given: manifest.Manifest) -> dict[str, list[int]]:
    return {name: own.spare for name, own in given.clients.items() if own.spare}


def _places(of: Sequence[int]) -> Tensor:
    return torch.tensor(of, dtype=torch.int64)


def _taken_up(given: manifest.Manifest) -> tuple[dict[str, Parts], dict[str, str], Tensor]:
    """Parts, domains and reserve of a split."""
    parts = {
        name: Parts(_places(own.train), _places(own.valid), _places(own.test))
        for name, own in given.clients.items()
    }
    return parts, {name: own.domain for name, own in given.clients.items()}, _places(given.reserve)


def _where(marks: Iterable[bool]) -> Tensor:
    return torch.tensor(list(marks), dtype=torch.bool).nonzero().flatten()
