"""What a method tells a report: with what to compare it, and which of its numbers to draw.

A run's folder holds it, so that no report knows a method by name. This room knows plain values
alone: no tensor, no method and no page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Whose = Literal["clients", "server"]


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
