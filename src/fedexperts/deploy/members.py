"""Who asks: the sites whose keys the operator listed, told by what they sign. What they ask is not
known here.

A site's program signs the time with its key and says so in three headers, so that a request is
known before it is read.
"""

import datetime
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

SHOWN = ("flwr-public-key", "flwr-timestamp", "flwr-signature")
# seconds that a site's clock may differ from the server's, as Flower bears them
AHEAD, BEHIND = 5.0, 305.0


@dataclass(frozen=True)
class Member:
    """A site that may take part: the operator's name for it, Flower's number of it, and its key."""

    name: str
    node: int
    key: ec.EllipticCurvePublicKey

    @property
    def shown(self) -> bytes:
        """The key as the site shows it."""
        return _as_shown(self.key)


@dataclass(frozen=True)
class Stranger:
    """Who is not let in, and why: "unknown", "removed", or "clock" and by how many seconds."""

    why: str
    site: str = ""
    seconds: float = 0.0  # that its clock is behind ours; below 0: ahead


class Roster:
    """The members of this moment: replaced as a whole while requests are answered."""

    def __init__(self) -> None:
        self._known: Mapping[bytes, Member] = {}
        self._removed: Mapping[bytes, Member] = {}

    def are(
        self,
        sites: Mapping[str, str],
        nodes: Mapping[str, tuple[str, str]],
        removed: Mapping[str, str] = {},
    ) -> None:
        """From now on, those of `sites` may take part whose key `nodes` has a number for.

        Who shows a key of `removed`, which says whose it was, is told so.
        """
        members = []
        for name, key in sites.items():
            node, noted = nodes.get(name, ("", ""))
            if noted == key:
                members.append(Member(name, int(node), _public(name, key)))
        former = [Member(name, 0, _public(name, key)) for key, name in removed.items()]
        self._known = {member.shown: member for member in members}
        self._removed = {member.shown: member for member in former}

    def who(self, headers: Mapping[str, str]) -> Member | None:
        """The member that signed these headers just now, if one did."""
        caller = self.tells(headers)
        return caller if isinstance(caller, Member) else None

    def tells(self, headers: Mapping[str, str]) -> Member | Stranger:
        """Who signed these headers, or why that is nobody who may take part.

        Only who holds a key that is, or was, a site's is told more than that it is unknown.
        """
        for known in (self._known, self._removed):
            signed = _signed(known, headers)
            if signed is None:
                continue
            member, age = signed
            if known is self._removed:
                return Stranger("removed", member.name)
            if not -AHEAD < age < BEHIND:
                return Stranger("clock", member.name, age)
            return member
        return Stranger("unknown")


def _signed(
    known: Mapping[bytes, Member], headers: Mapping[str, str]
) -> tuple[Member, float] | None:
    """Who of these signed the headers, and how many seconds ago."""
    try:
        key, time, signed = (headers[name] for name in SHOWN)
        shown, signature = b64decode(key, validate=True), b64decode(signed, validate=True)
        member = known[shown]
        now = datetime.datetime.now(datetime.UTC)
        age = (now - datetime.datetime.fromisoformat(time)).total_seconds()
        member.key.verify(signature, time.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    except (KeyError, ValueError, TypeError, OverflowError, InvalidSignature):
        return None
    return member, age


def signed_headers(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """What a site shows of its key, as Flower's program does."""
    public = _as_shown(key.public_key())
    time = datetime.datetime.now(datetime.UTC).isoformat()
    signature = key.sign(time.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    shown = b64encode(public).decode(), time, b64encode(signature).decode()
    return dict(zip(SHOWN, shown, strict=True))


def shown(name: str, key: str) -> bytes:
    """A site's key, which stands in deploy.toml as a line, as the site shows it."""
    return _as_shown(_public(name, key))


def _as_shown(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def _public(name: str, key: str) -> ec.EllipticCurvePublicKey:
    """A site's key as it stands in deploy.toml; ValueError if it is none."""
    try:
        public = form.load_ssh_public_key(key.encode())
    except ValueError:
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ValueError(
            f"the key of the site {name} is {key[:40]!r}: expected the line that `deploy add` wrote"
        )
    return public
