"""What a federation's data is: images or texts, labels, who holds which example in which part, and
the server's few.

Checked once, when it is built: after that nobody needs to ask whether two clients share an example.
This room does not know where the examples come from, how they were split, or what a model does with
them.
"""

import hashlib
import math
import statistics
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..options import Values
from .kept import Change
from .manifest import sha256

PARTS = ("train", "valid", "test")
LONGEST = 64  # characters of a name
_BYTES = 192  # that a folder's name may have, with room for what is put behind it
_JOINERS = "\u200c\u200d"  # which words of some scripts need, and nobody sees
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10)),
}


@dataclass(frozen=True, eq=False)
class Parts:
    """One client's examples: int64 positions [n] into the federation's inputs, for three uses."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def named(self) -> dict[str, Tensor]:
        """The three parts by name, in the order of `PARTS`."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True, eq=False)
class Federation:
    """Everybody's data. Building one raises ValueError if anything in it is wrong (see `check`)."""

    inputs: Tensor | tuple[str, ...]  # images uint8 [N, 3, H, W], or N texts
    labels: Tensor  # int64 [N], positions in `classes`
    classes: tuple[str, ...]  # words for a text encoder, in the order of the labels
    parts: dict[str, Parts]  # client name -> its examples; sorted by name, whatever the order given
    domains: dict[str, str]  # client name -> where its examples come from, e.g. which scanner
    reserve: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64)
    )  # the server's own, positions [n]
    # of files and rows: name -> sha256, in the inputs' order
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the source would have a person know, a line each
    # client -> its examples that `shots` left in no part
    spare: dict[str, list[int]] = field(default_factory=dict)
    # client -> what became of its examples since it was split
    changed: dict[str, Change] = field(default_factory=dict)
    # positions [n] to test on alone, of classes that nobody trains on
    unseen: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", dict(sorted(self.parts.items())))
        object.__setattr__(self, "domains", dict(sorted(self.domains.items())))
        self.check()

    def check(self) -> None:
        """Raise ValueError at the first thing that is wrong, with its client, part and index."""
        _check_inputs(self.inputs)
        _check_labels(self.labels, self.classes, len(self.inputs))
        _check_names(self)
        _check_indices(self)
        _check_reserve(self)
        _check_unseen(self)
        if self.files and len(self.files) != len(self.inputs):
            raise ValueError(
                f"{len(self.files)} files of {len(self.inputs)} inputs: it must be one each, or"
                " none"
            )

    @property
    def side(self) -> int | None:
        """Pixels of an image's side; None where inputs are texts."""
        return self.inputs.shape[-1] if isinstance(self.inputs, Tensor) else None

    def counts(self) -> dict[str, dict[str, list[int]]]:
        """Client -> part -> number of examples of each class, in the order of `classes`."""
        return {
            client: {part: self._count(index) for part, index in parts.named().items()}
            for client, parts in self.parts.items()
        }

    def by_class(self) -> dict[str, list[int]]:
        """Client -> number of examples of each class in all parts; the server's is named ""."""
        counted = {}
        for client, counts in self.counts().items():
            counted[client] = [sum(of_class) for of_class in zip(*counts.values(), strict=True)]
        if len(self.reserve):
            counted[""] = self.reserve_counts()
        return counted

    def reserve_counts(self) -> list[int]:
        """Number of examples of each class in the reserve, in the order of `classes`."""
        return self._count(self.reserve)

    def manifest(self, counts: bool = False) -> Values:
        """Plain values, equal for two runs that had the same examples in the same parts; with
        `counts`, those of each client's classes, too.
        """
        written: Values = {
            "classes": list(self.classes),
            "inputs": sha256(self.inputs),
            "labels": sha256(self.labels),
            "reserve": self.reserve.tolist(),
            "clients": {},
        }
        if len(self.unseen):
            written["unseen"] = self.unseen.tolist()
        for client, parts in self.parts.items():
            own: Values = {"domain": self.domains[client]}
            for part, index in parts.named().items():
                own[part] = index.tolist()
            if client in self.spare:
                own["spare"] = self.spare[client]
            if counts:
                own["counts"] = self.by_class()[client]
            written["clients"][client] = own
        if self.files:
            written |= {"files": self.files, "labelled": self.labels.tolist()}
        return written

    def holders(self) -> dict[int, tuple[str, str]]:
        """Example -> the client that has it, and in which part; the server's: ("", "reserve")."""
        holders = dict.fromkeys(self.reserve.tolist(), ("", "reserve"))
        return holders | {
            example: (client, part)
            for client, part, index in _held(self)
            for example in index.tolist()
        }

    def twins(self) -> list[tuple[int, int]]:
        """Pairs of equal examples at two clients or in two parts, as one may be trained on."""
        holders = self.holders()
        first: dict[str, int] = {}
        pairs = []
        for example, holder in sorted(holders.items()):
            other = first.setdefault(_key(self.inputs[example]), example)
            if holders[other] != holder:
                pairs.append((other, example))
        return pairs

    def commonest(self) -> dict[str, float]:
        """Accuracy in percent, on test parts, of always saying the commonest class of training.

        "clients": each its own, mean over clients; "server": the one of all, on all. Empty without
        clients.
        """
        trains = [self.labels[own.train] for own in self.parts.values()]
        tests = [self.labels[own.test] for own in self.parts.values()]
        if not trains:
            return {}
        alone = statistics.fmean(map(_guessed, trains, tests))
        return {"clients": alone, "server": _guessed(torch.cat(trains), torch.cat(tests))}

    def skew(self) -> dict[str, float]:
        """How unequal classes are among what clients train on, means over clients.

        "largest": share of a client's largest class; "entropy" of its classes, and the "most" that
        it could be, in nats; "single": clients of one class alone, of all "clients". Empty without
        clients.
        """
        if not self.parts:
            return {}
        counts = torch.tensor([self._count(own.train) for own in self.parts.values()]).double()
        shares = counts / counts.sum(1, keepdim=True)
        return {
            "largest": float(shares.amax(1).mean()),
            "entropy": float(torch.special.entr(shares).sum(1).mean()),
            "most": math.log(len(self.classes)),
            "single": int(((counts > 0).sum(1) == 1).sum()),
            "clients": len(self.parts),
        }

    def _count(self, index: Tensor) -> list[int]:
        counts: list[int] = self.labels[index].bincount(minlength=len(self.classes)).tolist()
        return counts


class Source(Protocol):
    """Where a federation comes from: its fields are the options, the seed decides every draw."""

    def load(self, seed: int) -> Federation:
        """The same federation for the same options and seed."""
        ...


def _guessed(train: Tensor, test: Tensor) -> float:
    """Percent of test labels that are the commonest among those of training."""
    return 100 * float((test == train.bincount().argmax()).double().mean())


def _key(example: Tensor | str) -> str:
    """Equal for equal examples."""
    if isinstance(example, str):
        return example
    return hashlib.sha256(example.contiguous().numpy().data).hexdigest()


def _check_inputs(inputs: Tensor | tuple[str, ...]) -> None:
    if isinstance(inputs, Tensor):
        if inputs.dtype != torch.uint8 or inputs.ndim != 4 or inputs.shape[1] != 3:
            raise ValueError(
                f"images are {inputs.dtype} {list(inputs.shape)}: they must be uint8 [N, 3, H, W]"
            )
        return
    if not isinstance(inputs, tuple):
        raise ValueError(
            f"inputs are a {type(inputs).__name__}: they must be images in a tensor, or a tuple of"
            " texts"
        )
    for position, text in enumerate(inputs):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"example {position} is {text!r}: it must be a text with at least one word"
            )


def _check_labels(labels: Tensor, classes: tuple[str, ...], count: int) -> None:
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels are a {type(labels).__name__}: they must be a tensor, int64 [{count}]"
        )
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}: they must be int64 [{count}], one an"
            " example"
        )
    twice = [name for position, name in enumerate(classes) if name in classes[:position]]
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes are {classes!r:.200}: they must be a tuple of names")
    if not classes or not all(classes) or twice:
        raise ValueError(
            f"classes are {classes}: they must be at least one, not empty, and each only once"
        )
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero().flatten().tolist()
    if wrong:
        label = int(labels[wrong[0]])
        raise ValueError(
            f"example {wrong[0]} has label {label}: it must be 0 to {len(classes) - 1}, one of the"
            " classes"
        )


def _check_names(federation: Federation) -> None:
    # else it is a server's
    if not federation.parts and len(federation.reserve) < len(federation.inputs):
        raise ValueError("a federation has 0 clients: it must have at least 1")
    for client, parts in federation.parts.items():
        check_name(client)
        if not isinstance(parts, Parts):
            raise ValueError(
                f"client {client!r} has a {type(parts).__name__}: it must be"
                " Parts(train=..., valid=..., test=...)"
            )
    check_apart(federation.parts)
    if federation.domains.keys() != federation.parts.keys():
        odd = sorted(federation.domains.keys() ^ federation.parts.keys())
        raise ValueError(
            f"clients {odd} are in only one of parts and domains: every client must be in both"
        )


def check_name(client: str) -> None:
    """ValueError for what cannot be a client's name: part of a tensor's name, and a folder's."""
    check_folder(f"client name {client!r:.200}", client)
    if "." in client or " " in client:
        raise ValueError(
            f"client name {client!r} cannot name a tensor and a folder: it must not hold a dot or a"
            " space"
        )


def check_folder(what: str, name: str) -> None:
    """ValueError for what cannot name a folder on every system, or looks like something else."""
    marks = [
        mark
        for mark in name
        if not (mark.isprintable() or mark in _JOINERS) or mark in '/\\<>:"|?*'
    ]
    edges = {name[:1], name[-1:]} & {".", " "} or name.startswith("-")
    device = unicodedata.normalize("NFKC", name).split(".")[0].strip().upper() in _DEVICES
    if not name or marks or edges or device or len(name) > LONGEST or len(name.encode()) > _BYTES:
        raise ValueError(
            f"{what} cannot name a tensor and a folder: expected are 1 to {LONGEST} printable"
            f" characters ({_BYTES} bytes), none of /\\<>:\"|?*, no dot, space or '-' in front, no"
            " dot or space behind, and no word that a system takes for a device, as CON"
        )


def check_apart(names: Iterable[str]) -> None:
    """ValueError for two names that some system takes for one, by capitals or by form."""
    seen = dict[str, str]()
    for name in names:
        bare = "".join(mark for mark in name if mark not in _JOINERS)
        other = seen.setdefault(unicodedata.normalize("NFKC", bare).casefold(), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} are one name where upper and lower case are the same:"
                " change one"
            )


def _held(federation: Federation) -> Iterator[tuple[str, str, Tensor]]:
    for client, parts in federation.parts.items():
        for part, index in parts.named().items():
            yield client, part, index


def _check_indices(federation: Federation) -> None:
    count = len(federation.inputs)
    holder: dict[int, tuple[str, str]] = {}
    for client, part, index in _held(federation):
        _check_index(f"client {client!r}, {part}", index, count)
        if part != "valid" and not len(index):
            raise ValueError(f"client {client!r} has no example in {part}: it must have at least 1")
        for example in index.tolist():
            if example in holder:
                other, use = holder[example]
                raise ValueError(
                    f"client {client!r} has example {example} in {part}, and client {other!r} has"
                    f" it in {use}: an example must be at one client, in one part, once"
                )
            holder[example] = client, part


def _check_reserve(federation: Federation) -> None:
    _check_index("the reserve", federation.reserve, len(federation.inputs))
    examples, times = federation.reserve.unique(return_counts=True)
    for example in examples[times > 1].tolist():
        raise ValueError(f"the reserve has example {example} more than once: it must have it once")
    for client, part, index in _held(federation):
        for example in index[torch.isin(index, examples)].tolist():
            raise ValueError(
                f"the reserve has example {example}, and client {client!r} has it in {part}: "
                "what the server holds must be at no client"
            )


def _check_unseen(federation: Federation) -> None:
    _check_index("unseen", federation.unseen, len(federation.inputs))
    labels = federation.labels
    kept = labels[federation.unseen].unique()
    held = [("the reserve", federation.reserve)]
    held += [(f"client {client!r}, {part}", index) for client, part, index in _held(federation)]
    for where, index in held:
        for label in labels[index][torch.isin(labels[index], kept)].tolist():
            raise ValueError(
                f"{where} has an example of class {federation.classes[label]!r}, which is kept from"
                " training: such classes must be at nobody"
            )


def _check_index(where: str, index: Tensor, count: int) -> None:
    if not isinstance(index, Tensor):
        raise ValueError(f"{where}: indices are a {type(index).__name__}, not a tensor, int64 [n]")
    if index.dtype != torch.int64 or index.ndim != 1:
        raise ValueError(f"{where}: indices are {index.dtype} {list(index.shape)}, not int64 [n]")
    for example in index[(index < 0) | (index >= count)].tolist():
        raise ValueError(f"{where}: index {example} is out of range, it must be 0 to {count - 1}")
