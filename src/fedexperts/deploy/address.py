"""The name or address by which sites reach a server: checked before it stands in a certificate.

This room asks nobody; whether a name is known, and somebody listens there, is `probe`'s to know.
"""

import ipaddress
import re

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def checked(server: str) -> str:
    """A server's name or address as a certificate has it; ValueError, with what to type, if it is
    neither.
    """
    name = server.strip()
    if "://" in name:
        scheme, _, rest = name.partition("://")
        raise _wrong(server, f"it is a name, not a web address; leave {scheme}:// out, as {rest!r}")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if address := _address(name):
        if address.is_unspecified:
            raise _wrong(server, "sites cannot reach that; use the address that they dial")
        return str(address)
    host, _, port = name.rpartition(":")
    if host and port.isdigit():
        raise _wrong(server, f"the port is an option of its own: --server {host} --port {port}")
    if ":" in name or "/" in name:
        raise _wrong(server, "expected a name as fed.example.org, or an address as 10.0.0.5 or ::1")
    _check_name(server, name)
    return name.rstrip(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _check_name(server: str, name: str) -> None:
    if not name.isascii():
        try:
            plain = name.encode("idna").decode()
        except UnicodeError:
            raise _wrong(server, "no such name can be; expected one as fed.example.org") from None
        raise _wrong(
            server,
            f"names with letters beyond a to z stand in certificates in another form; use {plain}",
        )
    labels = name.rstrip(".").split(".")
    if labels[-1].isdigit():
        raise _wrong(server, "it has only numbers and dots, and is no address: each is 0 to 255")
    if "_" in name:
        raise _wrong(server, "a name in a certificate has no underscore; use another name")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _wrong(
            server,
            "expected letters, digits, dots and dashes, as fed.example.org, or an address",
        )


def _wrong(server: str, why: str) -> ValueError:
    return ValueError(f"--server {server}: {why}")


def called(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{port}"
