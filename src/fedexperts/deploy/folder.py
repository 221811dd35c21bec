"""What a deployment's folder holds: certificates, keys, who may take part, the app that Flower carries, a site's part.

    FOLDER/deploy.toml     the server's address, and the public key of every site that may take part
    FOLDER/ca.crt          who signs the certificates; FOLDER/secret/ca.key, with which
    FOLDER/server.crt      the server's certificate; FOLDER/secret/server.key, its key
    FOLDER/app/            the Flower app, which imports the installed library and nothing else
    FOLDER/sites/NAME/     all that the site NAME needs, to be carried there: its key, its certificate, site.toml
    FOLDER/flower/         what Flower keeps: its database and logs
    FOLDER/runs/NAME/      a run

Private keys are readable by their owner only. This room starts nothing and knows no Flower.
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
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..data.federation import check_apart, check_name
from ..tensors import write

YEARS = 5  # that a certificate holds
_LOCAL = ("localhost", "127.0.0.1")
_APP = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedexperts-app"
version = "1.0.0"
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
""",
    "fedexperts_app/__init__.py": '"""What Flower carries: two names of the installed library."""\n',
    "fedexperts_app/server.py": "from fedexperts.deploy import app as room\n\napp = room.app\n",
    "fedexperts_app/site.py": "from fedexperts.deploy import courier as room\n\napp = room.app\n",
}
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
"""


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder, on the server's machine."""

    path: Path

    @classmethod
    def create(cls, path: Path, server: str, port: int, sites: Sequence[str]) -> "Deployment":
        """A new folder; ValueError if one is there, or if a site's name cannot name a folder."""
        if path.exists():
            raise ValueError(
                f"{path} is there already; right would be a new folder, or `fedexperts deploy add {path} SITE`"
            )
        found = cls(path.with_name(f".{path.name}.{os.getpid()}.part"))
        try:
            _keep_key(found.secret / "ca.key", key := _new_key())
            write(found.path / "ca.crt", _pem(_authority(key)))
            asked = tomlkit.document()
            asked.add(
                tomlkit.comment("The server's address and who may take part; the server looks here while it runs.")
            )
            asked |= {"server": server, "port": port, "sites": {}}
            write(found.path / "deploy.toml", tomlkit.dumps(asked).encode())
            for name, text in _APP.items():
                write(found.path / "app" / name, text.encode())
            found.renew()
            for name in sites:
                found.add(name)
            os.replace(found.path, path)
        except BaseException:
            shutil.rmtree(found.path, ignore_errors=True)
            raise
        return cls(path)

    @classmethod
    def at(cls, path: Path) -> "Deployment":
        """The folder that is there; ValueError, with what to type, if it is none."""
        if not (path / "deploy.toml").exists():
            raise ValueError(
                f"{path} is no deployment: type `fedexperts deploy init {path} --server HOST --sites a,b,c`"
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
        """What is laid over [data] of a run's config on the server: where its own reserve set lies, say."""
        return dict(self._asked().get("data", {}))

    def add(self, name: str) -> Path:
        """A new site: its keys, its part of the folder, its place in the list. ValueError if the name is taken."""
        check_name(name)
        check_apart([*self.sites, name])
        if name in self.sites:
            raise ValueError(
                f"a site {name} is there already; remove it first: fedexperts deploy remove {self.path} {name}"
            )
        place = self.path / "sites" / name
        _keep_key(place / "node.key", node := _new_key(), form.PrivateFormat.OpenSSH)
        self._certify(place / "tls.key", place / "tls.crt", _LOCAL)
        write(place / "ca.crt", (self.path / "ca.crt").read_bytes())
        host, port = self.address
        write(place / "site.toml", _SITE.format(name=name, address=f"{host}:{port}").encode())
        public = node.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()
        self._change(lambda asked: asked["sites"].add(name, public))
        return place

    def remove(self, name: str) -> None:
        """A site that may not take part any more."""
        if name not in self.sites:
            raise ValueError(f"no site {name}; there are {', '.join(self.sites) or 'none'}")
        self._change(lambda asked: asked["sites"].remove(name))
        shutil.rmtree(self.path / "sites" / name, ignore_errors=True)

    def renew(self) -> None:
        """A new certificate for the server, from the same authority: sites notice nothing."""
        host, _ = self.address
        self._certify(self.secret / "server.key", self.path / "server.crt", (host, *_LOCAL))

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
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
            .sign(authority, hashes.SHA384())
        )
        _keep_key(key_file, key)
        write(certificate, _pem(built))

    def _asked(self) -> dict[str, Any]:
        return dict(self._document())

    def _document(self) -> tomlkit.TOMLDocument:
        file = self.path / "deploy.toml"
        try:
            found = tomlkit.parse(file.read_text())
            host, port, sites = found["server"], found["port"], found["sites"]
        except (tomllib.TOMLDecodeError, ValueError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({error}): put a backup in its place") from None
        if not (isinstance(host, str) and isinstance(port, int) and isinstance(sites, dict)):
            raise ValueError(
                f"{file}: right would be server = a name, port = a number, and [sites] with a key for each"
            )
        for name in sites:
            check_name(str(name))
        return found

    def _change(self, change: Any) -> None:
        asked = self._document()
        change(asked)
        write(self.path / "deploy.toml", tomlkit.dumps(asked).encode())


@dataclass(frozen=True)
class SiteFolder:
    """A site's own part of the folder, on the site's machine."""

    path: Path

    @classmethod
    def at(cls, path: Path, name: str) -> "SiteFolder":
        """The part of the site `name`: the folder itself, or sites/NAME in it. ValueError if it is not there."""
        for place in (path / "sites" / name, path):
            if (place / "site.toml").exists():
                found = cls(place.absolute())
                if found.name != name:
                    raise ValueError(
                        f"{place} is the site {found.name}, not {name}; right would be --name {found.name}"
                    )
                return found
        raise ValueError(f"{path} holds no site {name}: carry FOLDER/sites/{name} of the server's deployment here")

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

    def point_at(self, data: Path) -> None:
        """Write down where the site's data lie; ValueError if there is nothing."""
        if not data.exists():
            raise ValueError(f"--data {data}: nothing is there")
        asked = tomlkit.parse((self.path / "site.toml").read_text())
        asked.setdefault("data", tomlkit.table())["path"] = str(data.absolute())
        write(self.path / "site.toml", tomlkit.dumps(asked).encode())

    def _asked(self) -> dict[str, Any]:
        file = self.path / "site.toml"
        try:
            found = tomllib.loads(file.read_text())
            check_name(str(found["name"]))
            _ = found["server"]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({error}): right would be name, server and [data]") from None
        return found


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _keep_key(path: Path, key: ec.EllipticCurvePrivateKey, kind: form.PrivateFormat = form.PrivateFormat.PKCS8) -> None:
    """A private key's file, which nobody but its owner could read at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(form.Encoding.PEM, kind, form.NoEncryption()))


def _certificate(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
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
