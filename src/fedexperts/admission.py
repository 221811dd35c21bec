"""What the server accepts of a reply: its task's figures and no others, tensors within bounds, a
weight within reason.

A reply is a stranger's word. What does not fit becomes that client's error, in words that can be
shown anywhere, and the round goes on without it. This room does not know what tensors mean, how a
round goes, or where a reply came from.
"""

import math
import statistics
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from . import answers
from .declared import COUNT, Fact, Facts, Figure
from .message import Reply, Task
from .method import Upload
from .metrics import Row
from .options import option
from .tensors import Tensors, count, length, shapes

WORDS = 1000  # characters that are kept of what a client says in words
HITS = {
    "absorb": {"test": ("before_correct", "after_correct")},
    "predict": {part: (f"{part}_correct", f"{part}_global_correct") for part in ("valid", "test")},
}  # by part: figures that count some of its examples
SAYS: dict[Task, dict[str, Figure]] = {
    "train": {"parameters": COUNT, "bytes": COUNT},
    "absorb": {
        "test_examples": replace(COUNT, least=1),
        "before_correct": COUNT,
        "after_correct": COUNT,
    },
    "keys": {},
    "shares": {},
    "unmask": {},
    "predict": (
        {"valid_examples": COUNT, "test_examples": replace(COUNT, least=1)}
        | {hits: COUNT for part in HITS["predict"].values() for hits in part}
        | answers.SAYS_BINS
    ),
}
# only of data that changed, in numbers
CHANGED = dict.fromkeys(("data_new", "data_gone", "data_relabelled"), COUNT)
# of a training: how it went or, where that is not to be told, what is spent of its privacy
OPEN, PRIVATE = {"loss": Figure()}, {"epsilon": Figure(least=0), "delta": Figure(least=0, most=1)}
# what should be the same in every round
OF_ITSELF = ("examples", "valid_examples", "test_examples")
# how far an upload lies: what was trained of it, and what moves by itself
FAR = ("moved", "drifted")
_FEW = 3  # fewer clients than this have no median that means anything

N = TypeVar("N", int, float)
Known = dict[str, Row]  # by client: the newest of `OF_ITSELF`, and how far its last upload lay


@dataclass(frozen=True)
class Guard:
    """What the server takes of an upload, and what it refuses."""

    largest: float = option(
        1e4, says="size of a number beyond which an upload, or a merged state, is refused", gt=0
    )
    far: float = option(
        100.0,
        says="distance from the global tensors beyond which an upload is refused, in medians"
        " over clients",
        ge=1,
    )
    few: float = option(
        2.0,
        says="the same while fewer than 3 clients are known, in sizes of the global tensors:"
        " their norm, and 1 for each number",
        gt=0,
    )
    weight: float = option(
        10.0, says="examples of a client that count at most, in medians over clients", ge=1
    )


@dataclass(frozen=True)
class Terms:
    """What a run's replies are held to."""

    guard: Guard
    says: Mapping[str, Figure]  # what the method adds to its tasks' figures
    # tensors that move by themselves: training does not read them, and they may be larger
    moving: frozenset[str]
    classes: int
    private: bool = False  # whether clients tell what they spent, and no loss
    masked: bool = False  # whether an upload's numbers are any, as masks lie on them

    def must(self, task: Task) -> dict[str, Figure]:
        """What every reply to a task says."""
        if task != "train":
            return SAYS[task]
        return SAYS[task] | (PRIVATE if self.private else OPEN)

    def largest(self, name: str) -> float:
        return math.inf if name in self.moving else self.guard.largest


@dataclass(frozen=True)
class Admitted:
    """A round's uploads with weights that can be believed, and what there is to log of the
    others.
    """

    uploads: list[Upload]
    # how far each upload lies from the global tensors, by kind of tensor
    moved: dict[str, dict[str, float]]
    refused: dict[str, str]
    capped: dict[str, str]


# ---- one reply


def checked(reply: Reply, expected: Tensors, terms: Terms) -> Reply:
    """The reply; or, as its error, why it is not taken."""
    if reply.error:
        return replace(reply, error=cleaned(reply.error) or "it failed and does not say why")
    must = terms.must(reply.task)
    says = must | (CHANGED if reply.task in ("train", "predict") else {})
    says |= terms.says if reply.task == "predict" else {}
    why = _examples(reply) or _figures(reply, says, must)
    if reply.task == "predict":
        why = why or answers.unlike(reply.facts, terms.classes)
    why = why or unlike(reply.tensors, expected, terms)
    if why:
        return replace(reply, error=cleaned(why))
    return replace(reply, facts={name: _worded(value) for name, value in reply.facts.items()})


def cleaned(words: str) -> str:
    """Words from outside, as they may be shown anywhere: at most `WORDS` characters, none that a
    terminal obeys.
    """
    shown = (
        " " if c.isspace() else c for c in words if c.isspace() or unicodedata.category(c)[0] != "C"
    )
    return "".join(shown)[:WORDS].strip()


def _worded(value: Fact) -> Fact:
    if isinstance(value, list):
        return [cleaned(each) if isinstance(each, str) else each for each in value]  # type: ignore[return-value]
    return cleaned(value) if isinstance(value, str) else value


def _examples(reply: Reply) -> str:
    if reply.task != "train" or 1 <= reply.examples <= COUNT.most:
        return ""
    return f"it trained on {reply.examples!s:.20} examples"


def _figures(reply: Reply, says: Mapping[str, Figure], must: Mapping[str, Figure]) -> str:
    """Why what it says beside its tensors cannot be believed, or ""."""
    if lacking := sorted(must.keys() - reply.facts.keys()):
        return f"it does not say its {', '.join(lacking)}"
    for name, value in reply.facts.items():
        if name not in says:
            return f"it says {name!r:.100}, for which nobody asked"
        if not says[name].allows(value):
            return f"its {name} is {_shown(value)}; expected is {says[name]}"
    for part, names in HITS.get(reply.task, {}).items():
        most = reply.facts[f"{part}_examples"]
        for name in names:
            if reply.facts[name] > most:  # type: ignore[operator]  # both are numbers by now
                return f"its {name} is {reply.facts[name]} of {most} examples"
    return ""


def _shown(value: object) -> str:
    """What stands in place of a figure; lists may hold lists without end."""
    return (
        f"{value!r:.100}" if isinstance(value, int | float | str) else f"a {type(value).__name__}"
    )


def unlike(tensors: Tensors, expected: Tensors, terms: Terms) -> str:
    """Why `tensors` cannot be taken for `expected`, or "": names, shapes, types, values."""
    if set(tensors) != set(expected):
        return f"its tensors are named {_listed(tensors)}; expected are {_listed(expected)}"
    have, want = shapes(tensors), shapes(expected)
    for name in sorted(want):
        if have[name] != want[name]:
            return f"its {name} is {have[name]}; expected is {want[name]}"
        if not terms.masked and (why := _beyond(tensors[name], terms.largest(name))):
            return f"its {name} has {why}"
        if name.endswith("running_var") and bool((tensors[name] < 0).any()):
            return f"its {name} has variances below 0"
    return ""


def _listed(names: Collection[str]) -> str:
    first, more = sorted(names)[:8], len(names) - 8
    return f"{first}{f' and {more} more' if more > 0 else ''}"


def _beyond(value: Tensor, largest: float) -> str:
    """What is too large in a tensor to be trained from, or "". The square of a number must be one
    of its own type.
    """
    if not value.numel() or value.dtype == torch.bool:
        return ""
    low, high = (one.item() for one in value.aminmax())
    floating = value.dtype.is_floating_point
    most = min(largest, math.sqrt(torch.finfo(value.dtype).max)) if floating else COUNT.most
    if -most <= low and high <= most:
        return ""
    if math.isfinite(low) and math.isfinite(high):
        return f"numbers up to {max(-low, high):.3g}; at most {most:.6g} is taken"
    return f"{int((~torch.isfinite(value)).sum())} values that are NaN or infinite"


# ---- a round's uploads beside each other


def admit(
    uploads: Sequence[Upload], expected: Mapping[str, Tensors], known: Known, terms: Terms
) -> Admitted:
    """What is taken of a round's uploads, each of which was `checked`.

    Every client that ever took part has one voice in a median: with what it brings now, or with
    what it brought last.
    """
    starts = {upload.client: _kinds(expected[upload.client], terms) for upload in uploads}
    moved: dict[str, dict[str, float]] = {
        upload.client: {
            kind: distance(upload.tensors, start) for kind, start in starts[upload.client].items()
        }
        for upload in uploads
    }
    refused: dict[str, str] = {}
    for kind in FAR:
        now = {client: far[kind] for client, far in moved.items() if kind in far}
        voices = [value for value in _voices(now, known, kind).values() if value > 0]
        middle = statistics.median(voices) if len(voices) >= _FEW else None
        for client, far in now.items():
            start = starts[client][kind]
            if (limit := _exceeded(far, kind, middle, start, terms.guard)) is not None:
                refused[client] = (
                    f"its upload lies {far:.3g} from the global tensors; at most {limit:.3g} is"
                    " taken"
                )
    taken = [upload for upload in uploads if upload.client not in refused]
    counts = _weights({upload.client: upload.examples for upload in taken}, known, terms.guard)
    capped = {
        u.client: f"of {u.examples} examples {n} count"
        for u in taken
        if (n := counts[u.client]) < u.examples
    }
    return Admitted([replace(u, examples=counts[u.client]) for u in taken], moved, refused, capped)


def _kinds(tensors: Tensors, terms: Terms) -> dict[str, Tensors]:
    """What is trained, and what moves by itself, if anything does: a batch norm's means may be of
    any size.
    """
    trained = {name: value for name, value in tensors.items() if name not in terms.moving}
    beside = {name: value for name, value in tensors.items() if name in terms.moving}
    return {"moved": trained} | ({"drifted": beside} if beside else {})


def _weights(said: Mapping[str, int], known: Known, guard: Guard) -> dict[str, int]:
    """How many of its examples count for each client: so many medians, and never more than all
    others' together.
    """
    voices = _voices(said, known, "examples")
    if len(voices) < 2:
        return dict(said)
    most = max(1, int(guard.weight * statistics.median_low(voices.values())))
    everybody = sum(min(n, most) for n in voices.values())
    return {client: min(n, most, everybody - min(n, most)) for client, n in said.items()}


def _exceeded(
    far: float, kind: str, middle: float | None, start: Tensors, guard: Guard
) -> float | None:
    """How far from the global tensors an upload may lie, if this one lies farther: many times the
    `middle`, the median over those who moved at all, or as far as 0.

    Where they are too few to have a median, what is trained may lie where training can go on,
    whoever lies alone. The global tensors are seldom measured, as few lie so far.
    """
    limit = math.inf
    if middle is not None:
        limit = guard.far * middle
        if far > limit:
            limit = max(limit, distance(start, {}))
    elif kind == "moved":
        limit = guard.few * math.sqrt(count(start))
        if far > limit:
            limit = guard.few * (distance(start, {}) + math.sqrt(count(start)))
    return limit if far > limit else None


def _voices(now: Mapping[str, N], known: Known, key: str) -> dict[str, N]:
    """What each client brings now, or brought last."""
    return {client: row[key] for client, row in known.items() if key in row} | dict(now)


def distance(tensors: Tensors, start: Tensors) -> float:
    """l2 distance of the tensors that `start` names from it, or of all from 0; whole numbers, which
    count steps, have none.
    """
    floating = [name for name in sorted(start or tensors) if tensors[name].is_floating_point()]
    apart = (length(tensors[n], start[n]) if start else length(tensors[n]) for n in floating)
    return math.hypot(*apart)


def unsound(state: Tensors, sent: Tensors, terms: Terms) -> str:
    """Why nobody could go on from a server's state, of which `sent` is what clients get; or "".

    What they get is half as large as an upload may be at most: training moves it.
    """
    bounds = [(name, value, math.inf) for name, value in state.items()]
    bounds += [
        (name, value, terms.largest(name.removeprefix("global.")) / 2)
        for name, value in sent.items()
    ]
    for name, value, largest in bounds:
        if value.is_floating_point() and (why := _beyond(value, largest)):
            return f"{name} has {why}"
    return ""


# ---- over the rounds


def known_from(round_rows: Iterable[Row], client_rows: Iterable[Row]) -> Known:
    """What a run's logs know of its clients."""
    known: Known = {}
    for row in round_rows:
        note(known, row["trained"])
    for row in client_rows:
        note(known, {row["client"]: row})
    return known


def note(known: Known, said: Mapping[str, Facts]) -> dict[str, str]:
    """Keep what clients said of themselves; what they had said otherwise before, in words."""
    changed = {}
    for client, facts in said.items():
        before = known.setdefault(client, {})
        now = {key: facts[key] for key in (*OF_ITSELF, *FAR) if key in facts}
        other = [key for key in OF_ITSELF if key in now and before.get(key, now[key]) != now[key]]
        if other:
            changed[client] = ", ".join(f"{key} {before[key]} -> {now[key]}" for key in other)
        before |= now
    return changed
