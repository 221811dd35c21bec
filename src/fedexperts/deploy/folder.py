"""What a deployment's folder holds: certificates, keys, who may take part, the app that Flower
carries, a site's part.

    FOLDER/deploy.toml     the server's address, the public key of every site that may take part,
    [limits] FOLDER/ca.crt          who signs the certificates; FOLDER/secret/ca.key, with which
    FOLDER/server.crt      the server's certificate; FOLDER/secret/server.key, its key
    FOLDER/app/app.json    the app that Flower carries, and its signature; FOLDER/app/app.pub, the
    key it is signed by FOLDER-signing/app.key with which it is signed: to be kept elsewhere, so
    that nobody finds it on the server FOLDER/sites/NAME/     all that the site NAME needs, to be
    carried there: its key, its certificate, site.toml FOLDER/flower/         what Flower keeps: its
    database and logs FOLDER/runs/NAME/      a run

All of it is readable by its owner only. This room starts nothing and knows no Flower.
"""

import datetime
import ipaddress
import os
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..data.federation import check_apart, check_name
from ..private import Private
from ..tensors import write
from .limits import Limits, limits
from .owner import unseen
from .signing import Signed, built, public_half, read_key, read_public

YEARS = 5  # that a certificate holds
_LOCAL = ("localhost", "127.0.0.1")
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

# What a run's config may name on this machine beside these data; nothing, as long as nothing stands here.
#   modules = ["our_methods"]      code that is installed here: method.name = "our_methods:Ours"
#   paths = ["/models/clip"]       files, or folders with all that is in them: model.clip = "/models/clip"
[allow]
"""  # noqa: E501


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder, on the server's machine."""

    path: Path

    @classmethod
    @unseen()
    def create(cls, path: Path, server: str, port: int, sites: Sequence[str]) -> "Deployment":
        """A new folder, and its signing key apart; ValueError if one is there, or a site's name can
        name no folder.
        """
        signing_key = signing_key_of(path)
        for place in (path, signing_key.parent):
            if place.exists():
                raise ValueError(
                    f"{place} is there already; use a new folder, or `fedexperts deploy"
                    f" add {path} SITE`"
                )
        found = cls(path.with_name(f".{path.name}.{os.getpid()}.part"))
        try:
            _keep_key(found.secret / "ca.key", key := _new_key())
            write(found.path / "ca.crt", _pem(_authority(key)))
            asked = tomlkit.document()
            asked.add(
                tomlkit.comment(
                    "The server's address and who may take part; the server looks here while it"
                    " runs."
                )
            )
            asked |= {"server": server, "port": port, "sites": {}}
            write(found.path / "deploy.toml", tomlkit.dumps(asked).encode())
            found.sign(signing_key)
            found.renew()
            for name in sites:
                found.add(name)
            os.replace(found.path, path)
        except BaseException:
            for place in (found.path, signing_key.parent):
                shutil.rmtree(place, ignore_errors=True)
            raise
        return cls(path)

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
    def data(self) -> dict[str, Any]:
        """What is laid over [data] of a run's config on the server: where its own reserve set lies,
        say.
        """
        return dict(self._asked().get("data", {}))

    @property
    def limits(self) -> Limits:
        """What the server bears of whoever knocks; ValueError if [limits] cannot be read."""
        return limits(self._asked().get("limits", {}), str(self.path / "deploy.toml"))

    @unseen()
    def add(self, name: str) -> Path:
        """A new site: its keys, its part of the folder, its place in the list. ValueError if the
        name is taken.
        """
        check_name(name)
        check_apart([*self.sites, name])
        self._signer()  # before anything is written
        if name in self.sites:
            raise ValueError(
                f"a site {name} is there already; remove it first: fedexperts deploy remove"
                f" {self.path} {name}"
            )
        place = self.path / "sites" / name
        _keep_key(place / "node.key", node := _new_key(), form.PrivateFormat.OpenSSH)
        self._certify(place / "tls.key", place / "tls.crt", _LOCAL)
        write(place / "ca.crt", (self.path / "ca.crt").read_bytes())
        write(place / "app.pub", self._signer().encode())
        host, port = self.address
        write(place / "site.toml", _SITE.format(name=name, address=f"{host}:{port}").encode())
        public = (
            node.public_key()
            .public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
            .decode()
        )
        self._change(lambda asked: asked["sites"].add(name, public))
        return place

    @unseen()
    def remove(self, name: str) -> None:
        """A site that may not take part any more."""
        if name not in self.sites:
            raise ValueError(f"no site {name}; there are {', '.join(self.sites) or 'none'}")
        self._change(lambda asked: asked["sites"].remove(name))
        shutil.rmtree(self.path / "sites" / name, ignore_errors=True)

    @unseen()
    def renew(self) -> None:
        """A new certificate for the server, from the same authority: sites notice nothing."""
        host, _ = self.address
        self._certify(self.secret / "server.key", self.path / "server.crt", (host, *_LOCAL))

    @unseen()
    def sign(self, key_file: Path) -> list[str]:
        """Build the app of this version of the library, and sign it; the names of sites that lack
        the public key.

        A deployment without a public key, as version 0.1 made them, gets a key, in `key_file` if
        nothing is there.
        """
        public = self.path / "app" / "app.pub"
        if not public.exists() and not key_file.exists():
            _keep_key(key_file, Ed25519PrivateKey.generate(), form.PrivateFormat.OpenSSH)
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
        here = {place.parent.name for place in self.path.glob("sites/*/site.toml")}
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
            found = Signed.read(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}: {again}") from None
        if not found.holds(public):
            raise ValueError(
                f"{file} is not signed by the key that sites trust, so that none would run it:"
                f" {again}"
            )
        if found.app != built():
            raise ValueError(f"{file} is the app of another version of fedexperts: {again}")
        return found

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
        authority = form.load_pem_private_key((self.secret / "ca.key").read_bytes(), None)
        issuer = x509.load_pem_x509_certificate((self.path / "ca.crt").read_bytes())
        assert isinstance(authority, ec.EllipticCurvePrivateKey)
        key = _new_key()
        names = list(dict.fromkeys(_general(host) for host in hosts))
        built = (
            _certificate(hosts[0], issuer.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
                critical=False,
            )
            .sign(authority, hashes.SHA384())
        )
        _keep_key(key_file, key)
        write(certificate, _pem(built))

    def _asked(self) -> dict[str, Any]:
        return self._document().unwrap()

    def _document(self) -> tomlkit.TOMLDocument:
        file = self.path / "deploy.toml"
        try:
            found = tomlkit.parse(file.read_text())
            host, port, sites = found["server"], found["port"], found["sites"]
        except (tomllib.TOMLDecodeError, ValueError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({error}): put a backup in its place") from None
        if not (isinstance(host, str) and isinstance(port, int) and isinstance(sites, dict)):
            raise ValueError(
                f"{file}: expected server = a name, port = a number, and [sites] with a key"
                " for each"
            )
        for name in sites:
            check_name(str(name))
        return found

    def _change(self, change: Any) -> None:
        asked = self._document()
        change(asked)
        write(self.path / "deploy.toml", tomlkit.dumps(asked).encode())


def signing_key_of(path: Path) -> Path:
    """Where a deployment's signing key is written: beside its folder, so that it is not carried
    along with it.
    """
    return path.with_name(f"{path.name}-signing") / "app.key"


@dataclass(frozen=True)
class SiteFolder:
    """A site's own part of the folder, on the site's machine."""

    path: Path

    @classmethod
    def at(cls, path: Path, name: str) -> "SiteFolder":
        """The part of the site `name`: the folder itself, or sites/NAME in it. ValueError if it is
        not there.
        """
        for place in (path / "sites" / name, path):
            if (place / "site.toml").exists():
                found = cls(place.absolute())
                if found.name != name:
                    raise ValueError(
                        f"{place} is the site {found.name}, not {name}; use --name {found.name}"
                    )
                return found
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
    def data(self) -> dict[str, Any]:
        """What is laid over [data] of a run's config."""
        return dict(self._asked().get("data", {}))

    @property
    def allowed(self) -> dict[str, Any]:
        """What a run's config may name on this machine: modules and paths."""
        return dict(self._asked().get("allow", {}))

    @property
    def signer(self) -> str:
        """The public key of the one whose app may run here; ValueError, with what to do, if none is
        known.
        """
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
        asked = tomlkit.parse((self.path / "site.toml").read_text())
        asked.setdefault("data", tomlkit.table())["path"] = str(data.absolute())
        write(self.path / "site.toml", tomlkit.dumps(asked).encode())

    def forget(self, run: str) -> None:
        """Let the site begin afresh in a run; ValueError if it has kept nothing for it."""
        states = self.path / "private"
        known = sorted(path.name for path in states.glob("*/"))
        if run not in known:
            raise ValueError(f"--forget {run}: {states} holds {', '.join(known) or 'nothing'}")
        Private(states / run).forget(self.name)

    def _asked(self) -> dict[str, Any]:
        file = self.path / "site.toml"
        try:
            found = tomllib.loads(file.read_text())
            check_name(str(found["name"]))
            _ = found["server"]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
            raise ValueError(
                f"{file} is damaged ({error}): expected name, server and [data]"
            ) from None
        return found


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _keep_key(
    path: Path,
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey,
    kind: form.PrivateFormat = form.PrivateFormat.PKCS8,
) -> None:
    """A private key's file, which nobody but its owner could read at any time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(form.Encoding.PEM, kind, form.NoEncryption()))


def _certificate(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return (
        _certificate("fedexperts deployment", _named("fedexperts deployment"), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs(), critical=True)
        .sign(key, hashes.SHA384())
    )


def _signs() -> x509.KeyUsage:
    never = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **never)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(form.Encoding.PEM)
