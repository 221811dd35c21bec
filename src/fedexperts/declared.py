"""What a method tells a report: with what to compare it, and which of its numbers to draw.

A run's folder holds it, so that no report knows a method by name. This room knows plain values
alone: no tensor, no method and no page.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Whose = Literal["clients", "server"]
Fact = float | int | str | list[float] | list[str]
Facts = dict[str, Fact]  # plain values beside the tensors: what a round's log says

_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Figure:
    """What a plain value beside the tensors may be: a number between two bounds, words, or a list
    of such.
    """

    kind: type = float  # int: whole numbers alone; str: words
    least: float = -_LARGEST
    most: float = _LARGEST
    longest: int = 0  # values of a list; 0: one value, and no list

    def allows(self, value: object) -> bool:
        """Whether a value is one of these; never for NaN, an infinite number, or True."""
        if not self.longest:
            return self._one(value)
        return isinstance(value, list) and len(value) <= self.longest and all(map(self._one, value))

    def _one(self, value: object) -> bool:
        if self.kind is str or isinstance(value, str):
            return self.kind is str and isinstance(value, str)
        kinds = (int,) if self.kind is int else (int, float)
        return type(value) in kinds and self.least <= value <= self.most  # type: ignore[operator]

    def __str__(self) -> str:
        one = {int: "a whole number", float: "a number", str: "words"}[self.kind]
        low, high = (
            f"{word} {bound:.16g}" for word, bound in (("from", self.least), ("to", self.most))
        )
        bounds = [
            *([low] if self.least > -_LARGEST else []),
            *([high] if self.most < _LARGEST else []),
        ]
        return " ".join(
            [f"at most {self.longest} times" if self.longest else "", one, *bounds]
        ).strip()


COUNT = Figure(int, 0, 2**53 - 1)  # whole numbers up to this are the same as floats


@dataclass(frozen=True)
class Metric:
    """A number that a method logs beside accuracy, and what a report says of it."""

    name: str  # its key in the log
    title: str  # of its picture
    unit: str
    says: str  # how it is computed, and what its ends mean
    # who logs it, in `facts` (as `says` allows) or in `shows`; the mean over clients is drawn
    of: Whose = "clients"


@dataclass(frozen=True)
class Control:
    """Another experiment that tells what one part of this method adds: the same, but for a few
    settings.
    """

    what: str  # a name for it: "gate alone"
    # dotted settings, each with the values that a control may have; None: unset
    having: Mapping[str, Sequence[Any]]
    # beginnings of the dotted settings that must be equal otherwise; "": all
    alike: Sequence[str] = ("",)
    free: Sequence[str] = ()  # dotted settings that may differ, as they mean nothing to the control
    of: Whose = "clients"  # whose accuracy is compared
    needed: str = ""  # what nobody can tell without it, for a report that lacks it


@dataclass(frozen=True)
class Declared:
    """All that a report must know of a method."""

    # whether there is a model that all share; without, the server has no accuracy
    shared: bool = True
    controls: Sequence[Control] = ()  # the first tells most: a report's first lines have it
    metrics: Sequence[Metric] = ()
    # whether routing is switched off on purpose: then nothing is said of its gate
    ablation: bool = False
    # how a client's experts are listed in its `weights`, after its own: "by nearness"
    listed: str = ""
