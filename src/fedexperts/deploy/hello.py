"""How a site and the server greet each other, before Flower's program starts at the site.

The site shows its key, its version and whom it trusts; the server answers with its own version, or
why it does not let the site in. This room is read at both ends. It opens no connection, and knows
neither folders nor Flower.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from importlib.metadata import version as installed

from cryptography.hazmat.primitives.asymmetric import ec

from .. import __version__
from .members import Member, Roster, Stranger, signed_headers
from .presence import Presence

PATH = "/v1/site/hello"
_VERSION, _TRUSTS = "fedexperts-version", "fedexperts-trusts"
_LONGEST = 100  # characters of a version or a hash that are believed


def version() -> str:
    """Of this program, and of the Flower that it runs on."""
    return f"fedexperts {__version__} with flwr {installed('flwr')}"


def fits(one: str, other: str) -> bool:
    """Whether two programs understand each other: the first two numbers of fedexperts are equal."""
    return _generation(one) == _generation(other)


def _generation(version: str) -> list[str]:
    name, _, rest = version.partition(" ")
    return [name, *rest.split(" ")[0].split(".")[:2]]


def shown(key: ec.EllipticCurvePrivateKey, authorities: bytes) -> dict[str, str]:
    """The headers of a site's greeting."""
    said = {_VERSION: version(), _TRUSTS: hash_of(authorities), "Content-Length": "0"}
    return signed_headers(key) | said


def hash_of(authorities: bytes) -> str:
    return hashlib.sha256(authorities).hexdigest()


def greeted(
    roster: Roster, presence: Presence, headers: Mapping[str, str], authorities: bytes
) -> tuple[int, bytes]:
    """The server's answer to a greeting: its status, and JSON."""
    caller = roster.tells(headers)
    if isinstance(caller, Stranger):
        status = 403 if caller.why == "removed" else 401
        return status, _said(why=caller.why, site=caller.site, seconds=caller.seconds)
    theirs = headers.get(_VERSION, "one that does not say its version")[:_LONGEST]
    heard = presence.of(caller.name)
    heard.version = theirs
    if not fits(theirs, version()):
        heard.refused = f"its version does not fit: {theirs}"
        return 409, _said(why="version", site=caller.name)
    heard.refused, heard.trusts = "", headers.get(_TRUSTS, "")[:_LONGEST]
    return 200, _said(**_welcome(caller, heard.at, heard.trusts, authorities))


def _welcome(
    member: Member, heard_at: float, trusts: str, authorities: bytes
) -> dict[str, str | float]:
    said: dict[str, str | float] = {"site": member.name}
    if heard_at:
        said["heard"] = time.time() - heard_at
    if trusts != hash_of(authorities):
        said["authorities"] = authorities.decode()
    return said


def _said(**facts: str | float) -> bytes:
    return json.dumps({"version": version(), **facts}).encode()
