"""What the server's door bears of whoever knocks: [limits] in deploy.toml. This room counts nothing
itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError


@dataclass(frozen=True)
class Limits:
    """Bounds that no honest site meets; docs/deploy.md shows by how much."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    connections: Annotated[
        int,
        Field(
            ge=4,
            le=16384,
            description="connections at a time; the oldest that has shown no key gives way",
        ),
    ] = 512
    patience: Annotated[
        float, Field(gt=0, description="seconds that a connection has to show a site's key")
    ] = 10.0
    arrival: Annotated[
        float, Field(gt=0, description="seconds in which a site's request must have arrived")
    ] = 120.0
    at_once: Annotated[int, Field(ge=2, description="requests of one site at a time")] = 16
    request: Annotated[
        int,
        Field(
            ge=2**20, description="bytes of one request; Flower cuts uploads into pieces of 5 MiB"
        ),
    ] = 2**23
    memory: Annotated[
        int,
        Field(
            ge=2**23, description="bytes of requests that are held at a time, of all sites together"
        ),
    ] = 2**29
    upload: Annotated[
        int,
        Field(ge=2**20, description="bytes of one reply, which the server stores and reads whole"),
    ] = 2**30


def limits(given: Mapping[str, Any], where: str) -> Limits:
    """The limits that an operator wrote down; ValueError, with all that is wrong, for what cannot
    be one.
    """
    try:
        # as JSON: a strict dataclass takes no mapping
        return TypeAdapter(Limits).validate_json(json.dumps(given))
    except ValidationError as error:
        said = [
            f"limits.{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}"
            for e in error.errors()
        ]
        known = ", ".join(f"{name} = {value:g}" for name, value in vars(Limits()).items())
        raise ValueError(f"{where}: {'; '.join(said)}. The defaults are {known}") from None
