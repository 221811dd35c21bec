"""Keys, their files, and the certificates by which sites and server know each other.

One authority, made with a deployment, signs them all. This room does not know where the files lie,
nor who takes part.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

YEARS = 5  # that a certificate holds


def new_key() -> ec.EllipticCurvePrivateKey:
    """Of the kind that certificates and Flower's sites have."""
    return ec.generate_private_key(ec.SECP384R1())


def keep_key(
    path: Path,
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey,
    kind: form.PrivateFormat = form.PrivateFormat.PKCS8,
) -> None:
    """A private key's file, which nobody but its owner could read at any time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(form.Encoding.PEM, kind, form.NoEncryption()))


def as_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half, in a line as OpenSSH writes it."""
    kind = form.PublicFormat.OpenSSH
    return key.public_key().public_bytes(form.Encoding.OpenSSH, kind).decode()


def authority(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate, as PEM, of one who signs those of others, for a new deployment."""
    made = (
        _certificate("fedexperts deployment", _named("fedexperts deployment"), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs(), critical=True)
        .sign(key, hashes.SHA384())
    )
    return made.public_bytes(form.Encoding.PEM)


def certificate(
    hosts: Sequence[str], key: ec.EllipticCurvePrivateKey, signer_key: bytes, signer: bytes
) -> bytes:
    """A certificate, as PEM, that the key's holder is one of `hosts`; the authority's are PEM."""
    signing = form.load_pem_private_key(signer_key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(signer)
    names = list(dict.fromkeys(_general(host) for host in hosts))
    from_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    made = (
        _certificate(hosts[0], issuer.subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(from_issuer, critical=False)
        .sign(signing, hashes.SHA384())
    )
    return made.public_bytes(form.Encoding.PEM)


def each(certificates: bytes) -> list[bytes]:
    """Certificates, PEM, one by one."""
    loaded = x509.load_pem_x509_certificates(certificates)
    return [one.public_bytes(form.Encoding.PEM) for one in loaded]


def ends(certificates: bytes) -> datetime.datetime:
    """When the first of these certificates, PEM, ends; ValueError if there is none."""
    return x509.load_pem_x509_certificate(certificates).not_valid_after_utc


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
