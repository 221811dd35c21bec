"""The app that Flower carries from the server to the sites, signed: a site runs this app and no
other.

The signing key (Ed25519) is kept off the server. The server holds the app with its signature, each
site the public key, and a site's Flower looks at both before it runs anything: so whoever takes the
server cannot run code at a site. The app imports the installed library and does nothing else. This
room knows how Flower reads apps and signatures, and imports no Flower.
"""

import base64
import hashlib
import io
import json
import struct
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNER = "fedexperts"  # what sites call the key
VERSION = "1.0.0"
NAME = f"@fedexperts/fedexperts-app=={VERSION}"  # as Flower asks for it
_FILES = {
    "pyproject.toml": (
        f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedexperts-app"
version = "{VERSION}"
description = "Carries fedexperts' orders; the library itself is installed on every machine."
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedexperts"

[tool.flwr.app.components]
serverapp = "fedexperts_app.server:app"
clientapp = "fedexperts_app.site:app"

[tool.flwr.app.config]
folder = ""
run = ""
"""
    ),
    "fedexperts_app/__init__.py": (
        '"""What Flower carries: two names of the installed library."""\n'
    ),
    "fedexperts_app/server.py": "from fedexperts.deploy import app as room\n\napp = room.app\n",
    "fedexperts_app/site.py": "from fedexperts.deploy import courier as room\n\napp = room.app\n",
}


@dataclass(frozen=True)
class Signed:
    """An app with its signature, as the server keeps it."""

    app: bytes
    at: int  # seconds since 1970
    signature: bytes

    @classmethod
    def by(cls, key: Ed25519PrivateKey, app: bytes) -> "Signed":
        now = int(time.time())
        return cls(app, now, key.sign(_said(app, now)))

    @classmethod
    def read(cls, data: bytes) -> "Signed":
        """ValueError if these are not the bytes of one."""
        try:
            fields = json.loads(data)
            return cls(
                base64.b64decode(fields["app"]),
                int(fields["at"]),
                base64.b64decode(fields["signature"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"it holds no signed app ({type(error).__name__}: {error})") from None

    def written(self) -> bytes:
        app, signature = (base64.b64encode(data).decode() for data in (self.app, self.signature))
        return json.dumps({"at": self.at, "signature": signature, "app": app}, indent=1).encode()

    def holds(self, public: str) -> bool:
        """Whether the key whose public half this is signed the app."""
        try:
            _public(public).verify(self.signature, _said(self.app, self.at))
        except InvalidSignature:
            return False
        return True

    def told(self) -> dict[str, str | int]:
        """The signature as Flower's hub tells it."""
        signature = base64.urlsafe_b64encode(self.signature).decode()
        return {"public_key_id": SIGNER, "signed_at": self.at, "signature": signature}


def built() -> bytes:
    """This version's app: the same bytes on every machine, as nothing in it is compressed."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for name, text in {**_FILES, ".info/CONTENT": "\n".join(map(_listed, _FILES))}.items():
            entry = zipfile.ZipInfo(name)  # with the date 1980-01-01
            entry.create_system = 3  # else the operating system's
            archive.writestr(entry, text)
    return data.getvalue()


def _listed(name: str) -> str:
    """A line of an app's table of contents: name, hash, bits."""
    data = _FILES[name].encode()
    return f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}"


def _said(app: bytes, at: int) -> bytes:
    """What is signed."""
    return struct.pack(">Q", at) + hashlib.sha256(app).digest()


def public_half(key: Ed25519PrivateKey) -> str:
    """As it stands in a site's folder, a line of OpenSSH's."""
    return key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()


def read_key(file: Path) -> Ed25519PrivateKey:
    """A signing key; ValueError if the file holds none."""
    try:
        key = form.load_ssh_private_key(file.read_bytes(), None)
    except FileNotFoundError:
        raise ValueError(
            f"--key {file}: no such file; expected the signing key that `init` wrote"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"--key {file}: it cannot be read as a signing key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(
            f"--key {file}: a key of another kind; expected the signing key that `init` wrote"
        )
    return key


def read_public(file: Path) -> str:
    """A public key's line; ValueError if the file holds none."""
    try:
        line = file.read_text(encoding="utf-8").strip()
        _public(line)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{file} holds no public key of the app ({error}): expected a line ssh-ed25519 ..."
        ) from None
    return line


def _public(line: str) -> Ed25519PublicKey:
    key = form.load_ssh_public_key(line.encode())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a key of another kind")
    return key


def trusting(public: str) -> bytes:
    """The file by which Flower is told at a site whose apps may run there."""
    return f"{SIGNER}: '{public}'\n".encode()
