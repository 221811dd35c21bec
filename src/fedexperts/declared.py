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

ROUNDING = 0.01  # of a cosine or a share, in the precision of any device
_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Figure:
    """What a plain value beside the tensors may be: a number between two bounds, words, or a list
    of such.
    """

    kind: Literal["number", "count", "words"] = "number"  # count: whole numbers alone
    least: float = -_LARGEST
    most: float = _LARGEST
    longest: int = 0  # values of a list; 0: one value, and no list

    def allows(self, value: object) -> bool:
        """Whether a value is one of these; never for NaN, an infinite number, or True."""
        if not self.longest:
            return self._one(value)
        return isinstance(value, list) and len(value) <= self.longest and all(map(self._one, value))

    def _one(self, value: object) -> bool:
        if isinstance(value, str):
            return self.kind == "words"
        if self.kind == "words" or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.kind == "count" and not isinstance(value, int):
            return False
        return self.least <= value <= self.most

    def __str__(self) -> str:
        said = {"count": "a whole number", "number": "a number", "words": "words"}[self.kind]
        if self.longest:
            said = f"at most {self.longest} times {said}"
        if self.least > -_LARGEST:
            said += f" from {self.least:.16g}"
        if self.most < _LARGEST:
            said += f" to {self.most:.16g}"
        return said


COUNT = Figure("count", 0, 2**53 - 1)  # whole numbers up to this are the same as floats


@dataclass(frozen=True)
class Metric:
    """A number that a method logs beside accuracy, and what a report says of it."""

    name: str  # its key in the log
    title: str  # of its picture
    unit: str
    says: str  # how it is computed, and what its ends mean
    # whose predictor says it, among its `metrics`; the mean over clients is drawn
    of: Whose = "clients"
    # what a client may say; all else is refused, at the client and at the server
    allowed: Figure = Figure()


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
    # how many experts a client mixes at most, its own first; its log says each one's mean share
    experts: int = 0
    listed: str = ""  # in which order they come, after its own: "by nearness"

    def says(self) -> dict[str, Figure]:
        """What each of a client's facts may be."""
        bounds = {one.name: one.allowed for one in self.metrics if one.of == "clients"}
        if self.experts:
            bounds["shares"] = Figure(least=-ROUNDING, most=1 + ROUNDING, longest=self.experts)
        return bounds
