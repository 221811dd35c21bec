"""A site's own part of a deployment's folder, on the site's machine.

    PART/site.toml     its name, the server's address, where its data lie, what a run may name here
    PART/node.key      with which it signs what it asks of the server
    PART/ca.crt        who signs the server's certificate
    PART/app.pub       whose app may run here
    PART/private/RUN/  what the site keeps of a run, and sends to nobody
    PART/flower/       what Flower keeps
    PART/site.log      what the site said, and when

This room knows no other site, and nothing of the server beside its address.
"""

import hashlib
import os
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import tomlkit
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from ..config import proxy_to
from ..data.federation import check_name
from ..options import Values, typed_path
from ..private import Private
from ..tensors import write
from .owner import unseen
from .probe import Door
from .signing import read_public

_SITE = """\
# The site {name}. Carry this folder to the site's machine, keep it there, and delete it here.
name = "{name}"
server = "{address}"

# Where this site's data lie. What stands here is laid over [data] of a run's config, on this site alone:
#   path = "/data/images"    folders named like the classes; or train/, valid/ and test/ with such folders in them
#   valid = 0.2              otherwise these shares are validated on, and tested on; the rest is trained on
#   test = 0.3
# `fedexperts deploy site FOLDER --name {name} --data PATH` writes the path here.
[data]

# What a run's config may name on this machine beside these data, and ask of it; nothing, as long as nothing stands here.
#   modules = ["our_methods"]      code that is installed here: method.name = "our_methods:Ours"
#   paths = ["/models/clip"]       files, or folders with all that is in them: model.clip = "/models/clip"
#   figures = ["confusion"]        told if asked for (run.confusion): how many test examples of each class were taken for which
# What a run may be at all; anything, as long as nothing stands here. What is outside is refused here, and the run's log says so.
#   runs = ["digits"]              names of runs
#   methods = ["pfedmoap"]         method.name
#   classes = ["cat", "dog"]       data.classes, or fewer
#   upload = 1000000               bytes of tensors that one reply may bring to the server
#   noise = 0.5                    upload.noise at least (with upload.clip)
#   threads = 4                    run.threads at most; the machine's cores, if nothing stands here
[allow]
"""  # noqa: E501


def unasked(name: str, address: str) -> str:
    """The text of site.toml for a new site, with nothing filled in that is the site's to say."""
    return _SITE.format(name=name, address=address)


@dataclass(frozen=True)
class SiteFolder:
    """A site's own part of the folder, on the site's machine."""

    path: Path

    @classmethod
    def at(cls, path: Path, name: str) -> "SiteFolder":
        """The part of the site `name`: the folder itself, or sites/NAME in it."""
        for folder in (path / "sites" / name, path):
            if (folder / "site.toml").exists():
                site = cls(folder.absolute())
                if site.name != name:
                    raise ValueError(
                        f"{folder} is the site {site.name}, not {name}; use --name {site.name}"
                    )
                return site
        raise ValueError(
            f"{path} holds no site {name}: carry FOLDER/sites/{name} of the server's deployment"
            " here"
        )

    @property
    def name(self) -> str:
        return str(self._asked()["name"])

    @property
    def server(self) -> str:
        """HOST:PORT"""
        return str(self._asked()["server"])

    @property
    def door(self) -> Door:
        """The server, as this machine reaches it; ValueError if the folder is damaged."""
        asked = urlsplit(f"//{self.server}")
        try:
            host, port = asked.hostname, asked.port
        except ValueError:
            host, port = None, None
        if not (host and port):
            raise ValueError(
                f'{self.path / "site.toml"}: server = "{self.server}": expected NAME:PORT, and an'
                " IPv6 address in brackets, [2001:db8::1]:9443"
            )
        return Door(host, port, self._authorities(), *proxy_to(host))

    def _authorities(self) -> bytes:
        file = self.path / "ca.crt"
        try:
            authorities = file.read_bytes()
            x509.load_pem_x509_certificates(authorities)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{file} holds no certificate ({error}): carry ca.crt of the server's folder here"
            ) from None
        return authorities

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """With which the site signs what it asks; ValueError if the file holds none."""
        file = self.path / "node.key"
        try:
            key = load_ssh_private_key(file.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{file} holds no key ({error}): put a backup in its place, or ask for a new folder"
                " (`fedexperts deploy remove`, then `add`, on the server)"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{file} holds a key of another kind: put a backup in its place")
        return key

    @unseen()
    def trust(self, authorities: bytes) -> None:
        """From now on these sign the server's certificate; ValueError if they are none."""
        x509.load_pem_x509_certificates(authorities)
        write(self.path / "ca.crt", authorities)

    @property
    def data(self) -> Values:
        """What is laid over [data] of a run's config."""
        return dict(self._asked().get("data", {}))

    def files_seen(self) -> str:
        """How the files of the site's data look from outside: something else once one has come, is
        gone or was written.
        """
        seen = hashlib.sha256()
        given = self.data
        for key in ("path", "root"):
            for file in _files(typed_path(str(given.get(key, "")))):
                with suppress(FileNotFoundError):  # it has just gone
                    now = file.stat()
                    said = f"{file} {now.st_size} {now.st_mtime_ns}\n"
                    seen.update(said.encode(errors="surrogateescape"))
        return seen.hexdigest()

    @property
    def allowed(self) -> Values:
        """What a run's config may name on this machine: modules and paths."""
        return dict(self._asked().get("allow", {}))

    @property
    def signer(self) -> str:
        """The public key of the one whose app may run here; ValueError if none is known."""
        file = self.path / "app.pub"
        if not file.exists():
            raise ValueError(
                f"{file} is missing, by which a site knows the app that it may run; it is in the"
                " server's folder, as app/app.pub (if not, `fedexperts deploy app` makes it"
                " there): carry it here, in a way that nobody can change it"
            )
        return read_public(file)

    @unseen()
    def point_at(self, data: Path) -> None:
        """Write down where the site's data lie; ValueError if there is nothing."""
        if not data.exists():
            raise ValueError(f"--data {data}: nothing is there")
        asked = tomlkit.parse((self.path / "site.toml").read_text(encoding="utf-8"))
        asked.setdefault("data", tomlkit.table())["path"] = str(data.absolute())
        write(self.path / "site.toml", tomlkit.dumps(asked).encode())

    def forget(self, run: str) -> None:
        """Let the site begin afresh in a run; ValueError if it has kept nothing for it."""
        states = self.path / "private"
        known = sorted(path.name for path in states.glob("*/"))
        if run not in known:
            raise ValueError(f"--forget {run}: {states} holds {', '.join(known) or 'nothing'}")
        Private(states / run).forget(self.name)

    def _asked(self) -> Values:
        file = self.path / "site.toml"
        try:
            asked = tomllib.loads(file.read_text(encoding="utf-8"))
            check_name(str(asked["name"]))
            _ = asked["server"]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
            raise ValueError(
                f"{file} is damaged ({error}): expected name, server and [data]"
            ) from None
        return asked


def _files(path: Path) -> Iterator[Path]:
    """A file, or those below a folder, in an order of their own."""
    if path.is_file():
        yield path
    elif path != Path():  # which no data are
        for folder, folders, files in os.walk(path):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(files))
