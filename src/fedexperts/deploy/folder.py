"""A deployment's folder, on the server's machine: certificates, keys, and who may take part.

    FOLDER/deploy.toml     the server's address, the key of every site that may take part, [limits]
    FOLDER/ca.crt          who signs the certificates, and who will next; FOLDER/secret/ca.key,
                           with which, and FOLDER/secret/next.key
    FOLDER/server.crt      the server's certificate; FOLDER/secret/server.key, its key
    FOLDER/app/app.json    the app that Flower carries, and its signature
    FOLDER/app/app.pub     the key that it is signed by
    FOLDER-signing/app.key with which it is signed: to be kept elsewhere, off the server
    FOLDER/sites/NAME/     all that the site NAME needs, to be carried there (sitefolder.py)
    FOLDER/flower/         what Flower keeps: its database and logs
    FOLDER/runs/NAME/      a run

All of it is readable by its owner only. This room starts nothing and knows no Flower.
"""

import datetime
import fcntl
import os
import shutil
import tomllib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import PrivateFormat

from ..data.federation import check_apart, check_name
from ..options import Values
from ..tensors import write
from . import certificates
from .address import called, checked
from .certificates import keep_key, new_key
from .limits import Limits, limits
from .owner import unseen
from .signing import Signed, built, public_half, read_key, read_public
from .sitefolder import unasked

_LOCAL = ("localhost", "127.0.0.1")
_SOON = 60  # days before a certificate's end, from which on it is said


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder, on the server's machine."""

    path: Path

    @classmethod
    @unseen()
    def create(cls, path: Path, server: str, port: int, sites: Sequence[str]) -> "Deployment":
        """A new folder, and its signing key apart; ValueError if one of them is there."""
        server, signing_key = checked(server), signing_key_of(path)
        _check_sites(sites)
        for folder in (path, signing_key.parent):
            if folder.exists():
                raise ValueError(
                    f"{folder} is there already; use a new folder, or `fedexperts deploy"
                    f" add {path} SITE`"
                )
        made = cls(path.with_name(f".{path.name}.{os.getpid()}.part"))
        try:
            made._begin(server, port)
            made.sign(signing_key)
            made.renew()
            for name in sites:
                made.add(name)
            os.replace(made.path, path)
        except BaseException:
            for folder in (made.path, signing_key.parent):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(path)

    def _begin(self, server: str, port: int) -> None:
        """An authority of its own, and a list of no sites."""
        key = new_key()
        keep_key(self.secret / "ca.key", key)
        write(self.path / "ca.crt", certificates.authority(key))
        asked = tomlkit.document()
        what = "The server's address and who may take part; the server looks here while it runs."
        asked.add(tomlkit.comment(what))
        asked |= {"server": server, "port": port, "sites": {}}
        write(self.path / "deploy.toml", tomlkit.dumps(asked).encode())

    @classmethod
    def at(cls, path: Path) -> "Deployment":
        """The folder that is there; ValueError, with what to type, if it is none."""
        if not (path / "deploy.toml").exists():
            raise ValueError(
                f"{path} is no deployment: type `fedexperts deploy init {path} --server HOST"
                " --sites a,b,c`"
            )
        return cls(path.absolute())

    @property
    def secret(self) -> Path:
        return self.path / "secret"

    @property
    def address(self) -> tuple[str, int]:
        """Where sites find the server."""
        asked = self._asked()
        return str(asked["server"]), int(asked["port"])

    @property
    def sites(self) -> dict[str, str]:
        """The public key of every site that may take part, by name."""
        return {str(name): str(key) for name, key in sorted(self._asked()["sites"].items())}

    @property
    def removed(self) -> dict[str, str]:
        """Whose each public key was that may not take part any more: its site is told so."""
        return {str(key): str(name) for key, name in self._asked().get("removed", {}).items()}

    @property
    def data(self) -> Values:
        """What is laid over [data] of a run's config on the server: a reserve set's path, say."""
        return dict(self._asked().get("data", {}))

    @property
    def limits(self) -> Limits:
        """What the server bears of whoever knocks; ValueError if [limits] cannot be read."""
        return limits(self._asked().get("limits", {}), str(self.path / "deploy.toml"))

    @unseen()
    def add(self, name: str) -> Path:
        """A new site: its keys, its part of the folder, its place in the list."""
        check_name(name)
        with self._changing() as asked:
            check_apart([*self.sites, name])
            signer = self._signer()  # before anything is written
            if name in self.sites:
                raise ValueError(
                    f"a site {name} is there already; remove it first: fedexperts deploy remove"
                    f" {self.path} {name}"
                )
            folder = self.path / "sites" / name
            node = new_key()
            keep_key(folder / "node.key", node, PrivateFormat.OpenSSH)
            write(folder / "ca.crt", (self.path / "ca.crt").read_bytes())
            write(folder / "app.pub", signer.encode())
            host, port = self.address
            write(folder / "site.toml", unasked(name, called(host, port)).encode())
            asked["sites"][name] = certificates.public_line(node)
        return folder

    @unseen()
    def remove(self, name: str) -> None:
        """A site that may not take part any more."""
        with self._changing() as asked:
            if name not in self.sites:
                raise ValueError(f"no site {name}; there are {', '.join(self.sites) or 'none'}")
            key = str(asked["sites"].pop(name))
            asked.setdefault("removed", tomlkit.table())[key] = name
            shutil.rmtree(self.path / "sites" / name, ignore_errors=True)

    @unseen()
    def renew(self, server: str | None = None) -> None:
        """A new certificate for the server, from the same authority: sites notice nothing.

        With `server`, for another name, which stands in the list and in new sites' folders, too.
        """
        if server:
            host = checked(server)
            with self._changing() as asked:
                asked["server"] = host
        host, _ = self.address
        self._certify(self.secret / "server.key", self.path / "server.crt", (host, *_LOCAL))

    @unseen()
    def renew_authority(self, moved: Collection[str]) -> bool:
        """The first call makes the next authority, which sites learn to trust when they connect;
        the second, once all have `moved`, puts it in the old one's place.

        Whether the old one is out; ValueError while sites would be left behind.
        """
        next_key, bundle = self.secret / "next.key", self.path / "ca.crt"
        if not next_key.exists():
            key = new_key()
            write(bundle, bundle.read_bytes() + certificates.authority(key))
            keep_key(next_key, key)
            return False
        old, new = certificates.each(bundle.read_bytes())
        behind = sorted(self.sites.keys() - set(moved))
        if behind and certificates.ends(old) > _now():
            raise ValueError(
                f"these sites do not trust the new authority yet: {', '.join(behind)}. A site"
                " learns of it when it connects to the running server, and within an hour if it"
                " is connected; or carry ca.crt into its folder and start it. Remove a site that"
                " does not come back, then type this again"
            )
        write(bundle, new)
        os.replace(next_key, self.secret / "ca.key")
        self.renew()
        return True

    def lasts(self) -> list[str]:
        """What is to be said of certificates that end soon; ValueError for one that has ended."""
        renewing = f"type `fedexperts deploy renew {self.path}`"
        ends = {
            "server.crt": (f"{renewing}, and start the server again; sites notice nothing"),
            "ca.crt": f"{renewing} --authority, and read docs/deploy.md on a new authority",
        }
        said = []
        for name, remedy in ends.items():
            end = certificates.ends((self.path / name).read_bytes())
            if end < _now():
                raise ValueError(
                    f"{self.path / name} ended on {end:%Y-%m-%d}, so no site would connect:"
                    f" {remedy}"
                )
            if end < _now() + datetime.timedelta(days=_SOON):
                said.append(f"{self.path / name} ends on {end:%Y-%m-%d}: {remedy}.")
        return said

    @unseen()
    def sign(self, key_file: Path) -> list[str]:
        """Build this version's app and sign it; the names of sites that lack the public key.

        A deployment without a public key, as version 0.1 made them, gets a key, in `key_file` if
        nothing is there.
        """
        public = self.path / "app" / "app.pub"
        if not public.exists() and not key_file.exists():
            keep_key(key_file, Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH)
        key = read_key(key_file)
        if public.exists() and public_half(key) != read_public(public):
            raise ValueError(
                f"--key {key_file}: its public half is not {public}, which sites trust; use the key"
                " of that"
            )
        write(self.path / "app" / "app.json", Signed.by(key, built()).written())
        if public.exists():
            return []
        write(public, public_half(key).encode())
        here = {file.parent.name for file in self.path.glob("sites/*/site.toml")}
        for name in here:
            write(self.path / "sites" / name / "app.pub", public.read_bytes())
        return [name for name in self.sites if name not in here]

    def signed(self) -> Signed:
        """The signed app; ValueError, with what to type, if it is damaged or another version's."""
        file, again = self.path / "app" / "app.json", self._sign_it()
        public = self._signer()
        if not file.exists():
            raise ValueError(f"{file} is missing, so that no site would run the app: {again}")
        try:
            signed = Signed.read(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}: {again}") from None
        if not signed.holds(public):
            raise ValueError(
                f"{file} is not signed by the key that sites trust, so that none would run it:"
                f" {again}"
            )
        if signed.app != built():
            raise ValueError(f"{file} is the app of another version of fedexperts: {again}")
        return signed

    def _signer(self) -> str:
        """The public key of the app; ValueError, with what to type, if the deployment has none."""
        file = self.path / "app" / "app.pub"
        if not file.exists():
            raise ValueError(
                f"{self.path} was made by a version that did not sign its app: {self._sign_it()}"
            )
        return read_public(file)

    def _sign_it(self) -> str:
        return f"type `fedexperts deploy app {self.path} --key {signing_key_of(self.path)}`"

    def _certify(self, key_file: Path, certificate: Path, hosts: Sequence[str]) -> None:
        """A key, and a certificate of this deployment's authority that it is one of `hosts`."""
        key, signer = new_key(), self.path / "ca.crt"
        signer_key = self.secret / "ca.key"
        made = certificates.certificate(hosts, key, signer_key.read_bytes(), signer.read_bytes())
        keep_key(key_file, key)
        write(certificate, made)

    def _asked(self) -> Values:
        return self._document().unwrap()

    def _document(self) -> tomlkit.TOMLDocument:
        file = self.path / "deploy.toml"
        try:
            document = tomlkit.parse(file.read_text(encoding="utf-8"))
            host, port, sites = document["server"], document["port"], document["sites"]
        except (tomllib.TOMLDecodeError, ValueError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({error}): put a backup in its place") from None
        if not (isinstance(host, str) and isinstance(port, int) and isinstance(sites, dict)):
            raise ValueError(
                f"{file}: expected server = a name, port = a number, and [sites] with a key"
                " for each"
            )
        for name in sites:
            check_name(str(name))
        return document

    @contextmanager
    def _changing(self) -> Iterator[Any]:
        """What stands in deploy.toml, to be changed; others who change it wait meanwhile."""
        with open(self.path / ".changing", "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            asked = self._document()
            yield asked
            write(self.path / "deploy.toml", tomlkit.dumps(asked).encode())


def _check_sites(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("--sites: it names no site; expected names with commas between: a,b,c")
    for name in names:
        check_name(name)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--sites: {', '.join(twice)} stands there twice; a site has one name")
    check_apart(names)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def signing_key_of(path: Path) -> Path:
    """Where a deployment's signing key is written: beside its folder, not carried with it."""
    return path.with_name(f"{path.name}-signing") / "app.key"
