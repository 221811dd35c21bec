"""Why a site cannot reach its server, step by step: name, port, certificate, clock, key, version.

Flower's program tries for ever and gives no reason, so a site looks for itself, before it starts
that program and whenever its line is cut. Every cause has a sentence, what to do, and an exit code.
This room goes the way that Flower's program goes, by the same proxy; it knows no folders.
"""

import datetime
import json
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from . import hello
from .address import called
from .members import AHEAD, BEHIND

_PATIENCE = 10.0  # seconds for a connection, and for an answer
_MOST = 2**17  # bytes of an answer

# the exit code of a site that gives up, by cause
CODES = {
    "name": 10,
    "port": 11,
    "proxy": 12,
    "authority": 13,
    "host": 14,
    "expired": 15,
    "tls": 16,
    "http": 17,
    "clock": 18,
    "key": 19,
    "removed": 20,
    "version": 21,
    "session": 22,
}


class UnreachableError(ConnectionError):
    """A site is not let in, or does not come as far: the cause, by a name of CODES, and words."""

    def __init__(self, cause: str, says: str) -> None:
        super().__init__(says)
        self.cause = cause

    @property
    def code(self) -> int:
        return CODES[self.cause]


@dataclass(frozen=True)
class Door:
    """Where a site's server is, whom the site trusts, and the proxy between them, "" if none."""

    host: str
    port: int
    authorities: bytes  # PEM
    proxy: str = ""  # as the environment has it: http://HOST:PORT
    proxy_named_by: str = ""  # the environment's variable

    @property
    def called(self) -> str:
        return called(self.host, self.port)


@dataclass(frozen=True)
class Welcome:
    """What the server answered to a site that it lets in."""

    version: str
    heard: float | None  # seconds since this site's key was used last, since the server started
    authorities: bytes  # PEM, if the server has others than the site trusts


def greet(door: Door, key: ec.EllipticCurvePrivateKey) -> Welcome:
    """Greet the server as the site with this key; UnreachableError with the cause if it fails."""
    with closing(_line(door)) as line:
        _connect(line, door)
        asked = time.time()
        try:
            line.request("POST", hello.PATH, headers=hello.shown(key, door.authorities))
            answer = line.getresponse()
            content = answer.read(_MOST)
        except (OSError, HTTPException) as error:
            raise UnreachableError(
                "http",
                f"{door.called} accepted the connection and gave no answer ({_words(error)}):"
                " another program may listen there, or the server is just starting or stopping",
            ) from None
    _check_clock(answer.headers.get("Date", ""), (asked + time.time()) / 2, door)
    return _understood(answer.status, content, door)


def _line(door: Door, trusting: ssl.SSLContext | None = None) -> HTTPSConnection:
    trusted = trusting or ssl.create_default_context(cadata=door.authorities.decode())
    if not door.proxy:
        return HTTPSConnection(door.host, door.port, timeout=_PATIENCE, context=trusted)
    proxy = urlsplit(door.proxy if "//" in door.proxy else f"//{door.proxy}")
    line = HTTPSConnection(
        proxy.hostname or "", proxy.port or 80, timeout=_PATIENCE, context=trusted
    )
    line.set_tunnel(door.host, door.port)
    return line


def _connect(line: HTTPSConnection, door: Door) -> None:
    try:
        line.connect()
    except ssl.SSLCertVerificationError as error:
        raise _distrusted(error, door) from None
    except ssl.SSLError as error:
        raise UnreachableError(
            "tls",
            f"{door.called} does not speak TLS as our server does ({error.reason or error}):"
            " another program listens at this port, or something on the way cuts the connection",
        ) from None
    except (OSError, HTTPException) as error:
        if door.proxy:
            raise _by_proxy(error, door) from None
        raise _not_reached(error, door) from None


def _not_reached(error: Exception, door: Door) -> UnreachableError:
    if isinstance(error, socket.gaierror):
        return UnreachableError(
            "name",
            f"this machine does not know the name {door.host} ({error.strerror}): ask for the"
            " server's name, correct `server` in site.toml, or see to this machine's DNS",
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(
            "port",
            f"nothing listens at {door.called}: the server is not up (`fedexperts deploy server`"
            " there), or it has another port, which `server` in site.toml has to name",
        )
    if isinstance(error, TimeoutError):
        return UnreachableError(
            "port",
            f"{door.called} did not answer within {_PATIENCE:g} s: a firewall drops what we send,"
            f" or that machine is down. Port {door.port} has to be open to this site",
        )
    return UnreachableError(
        "port",
        f"{door.called} cannot be reached ({_words(error)}): see to this machine's network, or to"
        " a firewall between",
    )


def _by_proxy(error: Exception, door: Door) -> UnreachableError:
    return UnreachableError(
        "proxy",
        f"the proxy {_without_password(door.proxy)}, which {door.proxy_named_by} in the environment"
        f" names, does not lead to {door.called} ({_words(error)}): unset {door.proxy_named_by}, or"
        f" add {door.host} to NO_PROXY, or let the proxy admit it",
    )


def _without_password(proxy: str) -> str:
    return proxy.rpartition("@")[2].removeprefix("http://")


def _distrusted(error: ssl.SSLCertVerificationError, door: Door) -> UnreachableError:
    """What is wrong with the certificate that the server showed."""
    shown = _shown(door)
    if error.verify_code in (9, 10):  # OpenSSL's: not yet valid, expired
        return _out_of_date(shown, door)
    if error.verify_code in (62, 64):  # OpenSSL's: another name, another address
        return UnreachableError(
            "host",
            f"the server's certificate is for {_names(shown)} and not for {door.host}: let `server`"
            " in site.toml name one of these. Or a new certificate has to name it: `fedexperts"
            f" deploy renew FOLDER --server {door.host}` on the server",
        )
    signer = "one that cannot be read"
    if shown:
        signer = f'"{shown.issuer.rfc4514_string()[:200]}"'
    through = ""
    if door.proxy:
        through = f" (the way goes through the proxy {_without_password(door.proxy)})"
    return UnreachableError(
        "authority",
        f"what answers at {door.called} shows a certificate of {signer}, which is not the authority"
        f" of this site's ca.crt{through}: either ca.crt is another deployment's, and the server's"
        " ca.crt belongs in its place, or a firewall or proxy opens the connection and shows a"
        " certificate of its own, and has to let this connection pass unopened",
    )


def _out_of_date(shown: x509.Certificate | None, door: Door) -> UnreachableError:
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = "?", "?"
    if shown:
        begins = f"{shown.not_valid_before_utc:%Y-%m-%d %H:%M}"
        ends = f"{shown.not_valid_after_utc:%Y-%m-%d %H:%M}"
    return UnreachableError(
        "expired",
        f"the certificate of {door.called}, or its authority's, is not valid now: it holds from"
        f" {begins} to {ends} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC. Set the"
        " clock if it is wrong; otherwise `fedexperts deploy renew FOLDER` on the server",
    )


def _shown(door: Door) -> x509.Certificate | None:
    """The certificate that the server shows, believed or not."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with closing(_line(door, context)) as line:
            line.connect()
            der = line.sock.getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(der or b"")
    except (OSError, HTTPException, ValueError, TypeError):
        return None


def _names(shown: x509.Certificate | None) -> str:
    if shown is None:
        return "another name"
    try:
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no name"
    return ", ".join(str(name.value) for name in names)


def _check_clock(date: str, here: float, door: Door) -> None:
    """UnreachableError if the server's time, which its answer says to the second, is too far."""
    try:
        behind = parsedate_to_datetime(date).timestamp() + 0.5 - here
    except (ValueError, TypeError):
        return
    # a second is the answer's own coarseness
    if behind > BEHIND + 1 or -behind > AHEAD + 1:
        raise _clock(behind, door)


def _clock(behind: float, door: Door) -> UnreachableError:
    way = "behind"
    if behind < 0:
        way = "ahead of"
    return UnreachableError(
        "clock",
        f"this machine's clock is {abs(behind):.0f} s {way} the server's ({door.called}), and a key"
        f" counts only up to {AHEAD:g} s ahead and {BEHIND:g} s behind: set it, best by NTP"
        " (`timedatectl set-ntp true`)",
    )


def _understood(status: int, content: bytes, door: Door) -> Welcome:
    """What the server's answer means; UnreachableError unless it lets the site in."""
    said = _json(content)
    if said is None or status not in (200, 401, 403, 409):
        raise UnreachableError(
            "http",
            f"{door.called} answered with HTTP status {status}, as our server does not: its"
            " fedexperts may be of an older version, or something on the way answers for it",
        )
    theirs = str(said.get("version"))[:100]
    if said.get("why") == "clock":
        raise _clock(float(said.get("seconds") or 0), door)
    if status == 403:
        raise UnreachableError(
            "removed",
            "you were removed: the operator of the federation took this site's key off the list"
            " (`fedexperts deploy remove`). To take part again, a new folder is needed from there"
            " (`fedexperts deploy add`)",
        )
    if status == 409:
        raise UnreachableError(
            "version",
            f"the versions do not fit: this site has {hello.version()}, and the server has"
            f" {theirs}. The first two numbers have to be the same: install the server's version"
            " here, or ours there",
        )
    if status != 200:
        raise UnreachableError(
            "key",
            f"the server at {door.called} does not know this site's key: this folder is another"
            " deployment's, or an older one of a site that was added anew (`fedexperts deploy sites"
            " FOLDER` there lists who may take part)",
        )
    heard = said.get("heard")
    return Welcome(
        theirs,
        float(heard) if isinstance(heard, int | float) else None,
        str(said.get("authorities", "")).encode(),
    )


def _json(content: bytes) -> Mapping[str, Any] | None:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not str(said.get("version", "")).startswith("fedexperts "):
        return None
    return said


def _words(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return "".join(mark for mark in text if mark.isprintable())[:200]


def session(door: Door) -> UnreachableError:
    """Flower's server refused a site that the door lets in."""
    return UnreachableError(
        "session",
        f"{door.called} knows this site, and holds a session of it open: after a crash the last one"
        " ends within a minute. If it does not, the same folder is in use on another machine, too",
    )
