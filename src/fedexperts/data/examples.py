"""Examples as a source lists them, one by one, and what can be wrong with their names.

Classes and clients are named by people, in several spellings, on disks that keep accents in two
ways. Here each name gets one spelling, and what does not fit is refused, with what to do about it,
before the first image is read. This room does not know parts, splits or seeds.
"""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from . import images
from .federation import check_name

# how a part may be written -> the part
PART = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Example:
    """One example as a source lists it: what it is, whose it is, and the part it is given to."""

    what: str  # an image's name in its store, or a text
    label: str  # its class, in words
    client: str  # whose it is
    part: str = "train"  # not given: parts are drawn from those to train on
    domain: str = ""  # where the client's examples come from; not given: the client


@dataclass(frozen=True)
class Listing:
    """What a source lists, with notes that a person should read."""

    examples: list[Example]
    # all that are there, also those without an example; None: cannot be seen
    classes: frozenset[str] | None = None
    store: images.Store | None = None  # where the images lie; None: texts
    notes: tuple[str, ...] = ()


def words(name: str) -> str:
    """A class as a text encoder reads it: "golden_retriever" is "golden retriever".

    An accent is in one spelling, however it was typed. A dash stays, as it does in the papers' own
    class names ("polka-dotted").
    """
    return " ".join(composed(name).replace("_", " ").split())


def merged(names: Iterable[str]) -> tuple[str, ...]:
    """A note for each class that was named in several ways."""
    spellings: dict[str, set[str]] = {}
    for name in names:
        spellings.setdefault(words(name), set()).add(composed(name))
    return tuple(
        f"One class, {label!r}, of several names: {quoted(sorted(ways))}."
        for label, ways in sorted(spellings.items())
        if len(ways) > 1
    )


def composed(name: str) -> str:
    """A name with each letter and its accents as one character: disks keep both spellings."""
    return unicodedata.normalize("NFC", name)


def below(root: Path, path: Path) -> str:
    """The name of `path` below `root`; ValueError if it, or what it links to, lies elsewhere."""
    if not (real := path.resolve()).is_relative_to(root.resolve()):
        raise ValueError(f"{path} leads out of {root}, to {real}: use a copy of it in there")
    return Path(os.path.relpath(path, root)).as_posix()


def quoted(names: Iterable[str]) -> str:
    """A few of the names, as text in quotes."""
    return images.several(map(repr, names))


def classes_of(listing: Listing, listed: Sequence[str], site: str) -> tuple[str, ...]:
    """All classes: those that the config lists or, if it lists none, those that are there.

    ValueError, with what to do, if the two do not fit each other.
    """
    used = {example.label for example in listing.examples}
    seen = used if listing.classes is None else listing.classes
    if "" in seen:
        raise ValueError("a class has a name without a letter or a sign, as '_': rename it")
    if not listed:
        _check_unlisted(site, seen, used)
        return tuple(sorted(used))
    classes = tuple(words(name) for name in listed)
    if strange := sorted(seen - {*classes}):
        near = difflib.get_close_matches(strange[0], classes, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{quoted(strange)}: not among data.classes, which are {', '.join(classes)}. {hint}"
            "Rename it in the data, or add it to data.classes"
        )
    missing = [name for name in classes if name not in seen]
    if missing and listing.classes is not None:
        raise ValueError(
            f"{quoted(missing)}: among data.classes, but there is no such folder. Make"
            " a folder of that name, empty if there are no images of it, or take it out"
            " of data.classes"
        )
    return classes


def _check_unlisted(site: str, seen: Set[str], used: Set[str]) -> None:
    """ValueError if classes cannot be taken as they are."""
    if site:
        there = ", ".join(f'"{name}"' for name in sorted(seen))
        raise ValueError(
            f"{site!r} is one of several sites, which must number their classes alike: use"
            f" the same data.classes at each of them, for example data.classes = [{there}]"
        )
    folded = Counter(name.casefold() for name in seen)
    if alike := sorted(name for name in seen if folded[name.casefold()] > 1):
        raise ValueError(
            f"classes {quoted(alike)} differ in capitals alone: expected one spelling at"
            " every site, or to list them all in data.classes"
        )
    if empty := sorted(seen - used):
        raise ValueError(
            f"class {quoted(empty)} has no example anywhere: remove it, or"
            " list all classes in data.classes if there will be some"
        )


def check_clients(clients: Iterable[str]) -> None:
    """ValueError, with a better name for each, for clients whose names cannot name a folder."""
    wrong, better = [], []
    for client in sorted(clients):
        try:
            check_name(client)
        except ValueError as error:
            wrong.append(str(error))
            fitting = re.sub(r"[\s./\\]+", "-", client).strip("-") or "client-1"
            better.append(f"{client!r} to {fitting!r}")
    if wrong:
        raise ValueError(f"{wrong[0]}. Rename {images.several(better)}")
