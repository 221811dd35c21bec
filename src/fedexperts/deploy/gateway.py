"""The door to the outside: whoever reaches the server's port reaches what sites need of Flower, and
nothing else.

Flower's server answers sites and operators at one port and asks operators for no password, so it
listens on this machine alone. This small proxy, over TLS, knows ten calls of Flower's by name, and
the greeting of ours (`hello`). It looks at the name, then at the key, and only then at what is
sent; what a request means is `fleet`'s to know, and who may ask `members`'.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import httpx

from .entrance import Address
from .fleet import CALLS, Fleet, NotAllowedError
from .hello import PATH, greeted
from .limits import Limits
from .members import SHOWN, Member, Roster
from .presence import Presence

Scope = MutableMapping[str, Any]  # of ASGI, as are its messages
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]

_HELLO = "hello"  # the one call that is ours
_PATHS = {f"/v1/fleet/{call}".encode(): call for call in CALLS} | {PATH.encode(): _HELLO}
_KIND = "application/protobuf"
_PASSED_ON = (*SHOWN, "flwr-package-name", "flwr-package-version", "flwr-component-name")
_STRANGER = json.dumps(
    {"code": 2004, "detail": "The server does not know this key, or its clock is another."}
)
# at 401 Flower's program ends, and is started again; at the others it asks again
_HEEDED = (401, 502, 503, 504)
_AGAIN = 60.0  # seconds before the same is said of the same site


class _RefusedError(Exception):
    """An answer of our own, with its status."""

    def __init__(self, status: int, why: str, kind: str = "text/plain") -> None:
        super().__init__(why)
        self.status, self.kind = status, kind


class Gateway:
    """The application: `inside` asks Flower's server, `knows` is told of members' connections."""

    def __init__(
        self,
        inside: httpx.AsyncClient,
        roster: Roster,
        limits: Limits,
        knows: Callable[[Address, float], None],
        tell: Callable[[str], None],
        presence: Presence,
        authorities: Callable[[], bytes],
    ) -> None:
        self._inside, self._roster, self._limits, self._knows, self._tell = (
            inside,
            roster,
            limits,
            knows,
            tell,
        )
        self._presence, self._authorities = presence, authorities
        self._fleet, self._held = Fleet(limits.upload), _Held(limits)
        self._said: dict[tuple[str, str], float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        try:
            status, kind, content = await self._answer(scope, receive)
        except _RefusedError as no:
            status, kind, content = no.status, no.kind, str(no).encode()
        closing = [(b"connection", b"close")] if status >= 400 else []
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", b"%d" % len(content)),
            *closing,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        call, headers = _call(scope), _headers(scope)
        if call == _HELLO:
            return self._greeted(headers)
        member = self._member(call, headers)
        self._knows(scope["client"], self._limits.patience + self._limits.arrival)
        length = self._length(headers)
        with self._held.for_site(member.name, length):
            try:
                async with asyncio.timeout(self._limits.arrival):
                    body = await _read(receive, length)
            except TimeoutError:
                raise _RefusedError(
                    408, f"not all of it came in {self._limits.arrival:g} s"
                ) from None
            return await self._pass_on(call, member, headers, body)

    def _greeted(self, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        """What a site is told before it starts; nothing of what it sends is read."""
        status, content = greeted(self._roster, self._presence, headers, self._authorities())
        member = self._roster.who(headers)
        if member:
            self._log(member.name, "hello", self._presence.of(member.name).refused)
        return status, "application/json", content

    def _member(self, call: str, headers: Mapping[str, str]) -> Member:
        """Who asks, before anything is read. Flower's program tries on if a site is refused."""
        if member := self._roster.who(headers):
            return member
        if call == "activate-node":
            raise _RefusedError(412, _STRANGER, "application/json")
        raise _RefusedError(401, "no key of a site that may take part")

    def _length(self, headers: Mapping[str, str]) -> int:
        said = headers.get("content-length", "")
        if "transfer-encoding" in headers or not (said.isascii() and said.isdigit()):
            raise _RefusedError(411, "a request says how long it is")
        if len(said) > 18 or int(said) > self._limits.request:
            raise _RefusedError(413, f"more than {self._limits.request} bytes")
        return int(said)

    async def _pass_on(
        self, call: str, member: Member, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        """Flower's answer, or a refusal that Flower's program at a site survives."""
        try:
            return await self._asked_inside(call, member, headers, body)
        except _RefusedError as no:
            if no.status in _HEEDED:
                raise
            # Without its receipt the program drops an order that it answers all the same, and from
            # then on sends each answer an order late.
            if call == "confirm-message-received":
                return 200, _KIND, b""
            # At 403 it would keep the order, and a process that waits two hours for the rest.
            if call == "pull-object" and no.status == 403:
                raise _RefusedError(410, str(no)) from None
            # It gives no further sign of life after one that failed otherwise.
            if call == "send-node-heartbeat":
                raise _RefusedError(503, str(no)) from None
            raise

    async def _asked_inside(
        self, call: str, member: Member, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        try:
            request = self._fleet.asked(call, member, body)
        except NotAllowedError as no:
            self._presence.of(member.name).refused = f"{call}: {no}"
            self._log(member.name, call, str(no))
            raise _RefusedError(no.status, str(no)) from None
        kept = {name: headers[name] for name in _PASSED_ON if name in headers} | {
            "content-type": _KIND
        }
        try:
            response = await self._inside.post(f"/v1/fleet/{call}", content=body, headers=kept)
        except httpx.TransportError:
            raise _RefusedError(503, "the server is not there") from None
        if response.status_code != 200:
            kind = response.headers.get("content-type", "text/plain")
            raise _RefusedError(response.status_code, response.text, kind)
        self._presence.heard(member.name, len(body), len(response.content))
        return 200, _KIND, self._fleet.answered(call, member, request, response.content)

    def _log(self, site: str, call: str, why: str) -> None:
        """Say why a site was refused, if it was: the same once a minute."""
        if not why:
            return
        now = time.monotonic()
        if now > self._said.get((site, why), -_AGAIN) + _AGAIN:
            self._said[site, why] = now
            self._tell(f"The site {site}: {call} was refused: {why}.")


class _Held:
    """What is held of requests at this moment, by site."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._requests, self._bytes = limits, dict[str, int](), 0

    @contextmanager
    def for_site(self, name: str, length: int) -> Iterator[None]:
        """Room for one request; if there is none, _RefusedError: Flower's program tries again."""
        requests = self._requests.get(name, 0)
        if requests >= self._limits.at_once or self._bytes + length > self._limits.memory:
            raise _RefusedError(503, "too much at once; again in a moment")
        self._requests[name], self._bytes = requests + 1, self._bytes + length
        try:
            yield
        finally:
            self._requests[name] -= 1
            self._bytes -= length


def _call(scope: Scope) -> str:
    """The call by whose name, letter by letter as it was sent, the request goes."""
    call = _PATHS.get(scope.get("raw_path") or b"")
    if call is None or scope["method"] != "POST" or scope.get("query_string"):
        raise _RefusedError(404, "nothing is here")
    return call


def _headers(scope: Scope) -> dict[str, str]:
    """The headers; one that is there twice could be read in two ways."""
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }
    if len(headers) != len(scope["headers"]):
        raise _RefusedError(400, "a header is there twice")
    return headers


async def _read(receive: Receive, length: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _RefusedError(400, "the connection is gone")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > length:
            raise _RefusedError(400, "it is longer than it says")
    if len(body) != length:
        raise _RefusedError(400, "it is shorter than it says")
    return bytes(body)
