"""An option: a field of a settings dataclass that says what it means and what it may be.

This room checks no option; `config` does, when a section of a config becomes such a dataclass.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, TypeVar, cast

Value = TypeVar("Value")
Values = dict[str, Any]  # plain values by name, as TOML and JSON have them
REQUIRED: Any = MISSING  # in place of a default, where there can be none


def option(
    default: Value,
    *,
    says: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Value:
    """A field with its default, its meaning, and its bounds; choices are a `Literal` type."""
    given = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    metadata = {"says": says, "bounds": bounds}
    if isinstance(default, list | dict):  # every object has one of its own
        return cast("Value", field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


def typed_path(text: str) -> Path:
    """A path as a person types it: "~" is a home, and $NAME in front what the environment says.

    ValueError if nobody knows that home, or the environment has no such name.
    """
    if text.startswith("$"):
        given = os.path.expandvars(text)
        if given == text:
            name = text[1:].partition("/")[0]
            raise ValueError(
                f"{text!r}: {name} is not set in the environment; type: export {name}=FOLDER, or"
                " use the whole path"
            )
        return Path(given)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{text!r}: this machine knows no such home folder; use the whole path"
        ) from None


class Outside(ABC):
    """Settings that name a thing outside this package, which may not be on this machine."""

    @abstractmethod
    def at_hand(self) -> None:
        """ValueError, with what to type, if it is not."""

    def reads(self) -> list[Path]:
        """Files and folders whose content decides what comes out, to be hashed; ValueError if they
        are not on this machine.
        """
        return []
