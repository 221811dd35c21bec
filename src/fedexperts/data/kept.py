"""A split that was written down, beside the examples as they are now: who stays where, what is new,
what is gone.

An example is known by the hash of its bytes and by whose it is: another name changes nothing. What
is known stays in its part, a copy of it joins it there, and what is new moves nothing else. This
room does not know where examples come from, nor how a split was drawn.
"""

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .images import several
from .manifest import Manifest

SERVER, RESERVE = "", "reserve"  # whose the reserve is, and what its part is called
SPARE = "spare"  # the part of training examples that `shots` left out
_NAMED = 5  # so many files are named, of each kind of change


class Entry(NamedTuple):
    """An example: whose it is, its file or row, the hash of its bytes, its class in words."""

    owner: str
    name: str
    sha256: str
    label: str


class Seat(NamedTuple):
    """Where an example belongs: to whom, in which part."""

    owner: str
    part: str


@dataclass(frozen=True)
class Change:
    """What became of one client's examples since its split was written: files or rows, by name."""

    new: Mapping[str, str]  # with the part of each
    gone: tuple[str, ...]
    relabelled: tuple[str, ...]  # their class is another than it was

    def counts(self) -> dict[str, int]:
        """What the server hears of it: numbers, and no names."""
        sizes = {
            "data_new": len(self.new),
            "data_gone": len(self.gone),
            "data_relabelled": len(self.relabelled),
        }
        return {name: size for name, size in sizes.items() if size}

    def __str__(self) -> str:
        counts = sorted(Counter(self.new.values()).items())
        to = ", ".join(f"{count} to {part}" for part, count in counts)
        kinds = {
            f"new, {to}": self.new,
            "gone": self.gone,
            "of another class than before": self.relabelled,
        }
        return "; ".join(
            f"{len(names)} {kind} ({several(names, _NAMED)})"
            for kind, names in kinds.items()
            if names
        )


def said(changed: Mapping[str, Change]) -> str:
    """What became of every client's examples, in a line."""
    return ". ".join(
        f"{client or 'the reserve'}: {change}" for client, change in sorted(changed.items())
    )


def seats(
    given: Manifest, now: Sequence[Entry], choose: Callable[[int], str], shots: int
) -> tuple[dict[int, Seat], dict[str, Change]]:
    """Where each example of now belongs, by its position, and what changed since.

    `choose` says the part of a new one. Of those to train on, no more are taken than `shots` leaves
    room for in their class.
    """
    then = _entries(given)
    was = _matched([entry for entry, _ in then], now)
    placed = {position: then[old][1] for position, old in was.items()}
    known = {(entry.owner, entry.sha256): seat for entry, seat in then}
    trained = Counter(
        (now[position].owner, now[position].label)
        for position, seat in placed.items()
        if seat.part == "train"
    )
    new = [position for position in range(len(now)) if position not in was]
    for position in sorted(new, key=lambda position: now[position].sha256):
        owner, _, sha256, label = now[position]
        seat = (
            known.get((SERVER, sha256))
            or known.get((owner, sha256))
            or Seat(owner, choose(position))
        )
        if seat.part == "train":
            trained[owner, label] += 1
            if shots and trained[owner, label] > shots:
                seat = Seat(owner, SPARE)
        placed[position] = seat
    return placed, _changed(then, now, was, placed)


def drawn(key: str, valid: float, test: float) -> str:
    """The part of an example with this key, drawn so that no other example has a say in it."""
    luck = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    if luck < test:
        return "test"
    if luck < test + valid:
        return "valid"
    return "train"


def _entries(given: Manifest) -> list[tuple[Entry, Seat]]:
    """Every example of a split, with where it belongs."""
    seats = dict.fromkeys(given.reserve, Seat(SERVER, RESERVE))
    for client, own in given.clients.items():
        for part in ("train", "valid", "test", SPARE):
            seats |= dict.fromkeys(getattr(own, part), Seat(client, part))
    files = list(given.files.items())
    return [
        (Entry(seat.owner, *files[position], given.classes[given.labelled[position]]), seat)
        for position, seat in sorted(seats.items())
    ]


def _matched(then: Sequence[Entry], now: Sequence[Entry]) -> dict[int, int]:
    """Position now -> position then: by owner and hash, then by name or by class."""
    keys: list[Callable[[Entry], Hashable]] = [
        lambda entry: (entry.owner, entry.sha256, entry.name),
        lambda entry: (entry.owner, entry.sha256, entry.label),
        lambda entry: (entry.owner, entry.sha256),
    ]
    matched: dict[int, int] = {}
    for key in keys:
        taken = {*matched.values()}
        left: dict[Hashable, deque[int]] = defaultdict(deque)
        for old, entry in enumerate(then):
            if old not in taken:
                left[key(entry)].append(old)
        for position, entry in enumerate(now):
            for owner in (entry.owner, SERVER):  # what the server holds still lies at somebody's
                if position not in matched and left.get(key(entry._replace(owner=owner))):
                    matched[position] = left[key(entry._replace(owner=owner))].popleft()
    return matched


def _changed(
    then: Sequence[tuple[Entry, Seat]],
    now: Sequence[Entry],
    was: Mapping[int, int],
    seats: Mapping[int, Seat],
) -> dict[str, Change]:
    """Whose examples changed, and how."""
    there = {*was.values()}
    new = [
        (seat.owner, now[position].name, seat.part)
        for position, seat in sorted(seats.items())
        if position not in was
    ]
    gone = [entry for old, (entry, _) in enumerate(then) if old not in there]
    other = [
        now[position]._replace(owner=seats[position].owner)
        for position, old in sorted(was.items())
        if now[position].label != then[old][0].label
    ]

    def names(client: str, entries: Iterable[Entry]) -> tuple[str, ...]:
        return tuple(entry.name for entry in entries if entry.owner == client)

    def change(client: str) -> Change:
        to = {name: part for owner, name, part in new if owner == client}
        return Change(to, names(client, gone), names(client, other))

    clients = {owner for owner, _, _ in new} | {entry.owner for entry in [*gone, *other]}
    return {client: change(client) for client in sorted(clients)}
