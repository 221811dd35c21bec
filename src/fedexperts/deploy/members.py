"""Who asks: the sites whose keys the operator listed, told by what they sign. What they ask is not
known here.

A site's program signs the time with its key and says so in three headers, so that a request is
known before it is read.
"""

import datetime
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

SHOWN = ("flwr-public-key", "flwr-timestamp", "flwr-signature")
# seconds that a site's clock may differ from the server's, as Flower bears them
_AHEAD, _BEHIND = 5.0, 305.0


@dataclass(frozen=True)
class Member:
    """A site that may take part: the operator's name for it, Flower's number of it, and its key."""

    name: str
    node: int
    key: ec.EllipticCurvePublicKey

    @property
    def shown(self) -> bytes:
        """The key as the site shows it."""
        return self.key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


class Roster:
    """The members of this moment: replaced as a whole while requests are answered."""

    def __init__(self) -> None:
        self._known: Mapping[bytes, Member] = {}

    def are(self, sites: Mapping[str, str], nodes: Mapping[str, tuple[str, str]]) -> None:
        """From now on, those of `sites` may take part whose key `nodes` has a number for."""
        members = []
        for name, key in sites.items():
            node, noted = nodes.get(name, ("", ""))
            if noted == key:
                members.append(Member(name, int(node), _public(name, key)))
        self._known = {member.shown: member for member in members}

    def who(self, headers: Mapping[str, str]) -> Member | None:
        """The member that signed these headers just now, if one did."""
        try:
            key, time, signed = (headers[name] for name in SHOWN)
            shown, signature = b64decode(key, validate=True), b64decode(signed, validate=True)
            member = self._known[shown]
            now = datetime.datetime.now(datetime.UTC)
            age = (now - datetime.datetime.fromisoformat(time)).total_seconds()
            member.key.verify(signature, time.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        except (KeyError, ValueError, TypeError, OverflowError, InvalidSignature):
            return None
        return member if -_AHEAD < age < _BEHIND else None


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
