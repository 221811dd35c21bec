"""What the server's door bears of whoever knocks: [limits] in deploy.toml. This room counts nothing
itself.
"""

from dataclasses import dataclass

from ..config.checking import checked
from ..options import option


@dataclass(frozen=True)
class Limits:
    """Bounds that no honest site meets; docs/deploy.md shows by how much."""

    connections: int = option(
        512,
        says="connections at a time; the oldest that has shown no key gives way",
        ge=4,
        le=16384,
    )
    patience: float = option(10.0, says="seconds that a connection has to show a site's key", gt=0)
    arrival: float = option(120.0, says="seconds in which a site's request must have arrived", gt=0)
    at_once: int = option(16, says="requests of one site at a time", ge=2)
    request: int = option(
        2**23, says="bytes of one request; Flower cuts uploads into pieces of 5 MiB", ge=2**20
    )
    memory: int = option(
        2**29, says="bytes of requests that are held at a time, of all sites together", ge=2**23
    )
    upload: int = option(
        2**30, says="bytes of one reply, which the server stores and reads whole", ge=2**20
    )


def limits(given: object, where: str) -> Limits:
    """The limits that an operator wrote down; ValueError with all that is wrong."""
    if not isinstance(given, dict):
        raise ValueError(f"{where}: limits = {given!r}: expected a table, [limits]")
    values, wrong = checked(Limits, "limits", given)
    if wrong:
        known = ", ".join(f"{name} = {value:g}" for name, value in vars(Limits()).items())
        raise ValueError(f"{where}: {'; '.join(wrong)}. The defaults are {known}")
    return Limits(**values)
