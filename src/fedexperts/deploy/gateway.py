"""The door to the outside: whoever reaches the server's port reaches what sites need of Flower, and nothing else.

Flower's server answers sites and operators at one port and asks operators for no password, so it listens on this
machine alone, and this small proxy passes on what sites ask, over TLS. What a request means is Flower's to know.
"""

import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

LARGEST = 2**26  # bytes of a request: Flower sends what is large in pieces of at most a third of this
_OURS = {"host", "content-length", "connection", "transfer-encoding", "content-encoding"}


def gateway(inside: str, authority: Path) -> Starlette:
    """An application that passes sites' requests on to the server at `inside` ("127.0.0.1:8000")."""

    @asynccontextmanager
    async def connected(app: Starlette) -> AsyncIterator[None]:
        trusted = ssl.create_default_context(cafile=str(authority))
        async with httpx.AsyncClient(base_url=f"https://{inside}", verify=trusted, timeout=None) as client:
            app.state.client = client
            yield

    return Starlette(routes=[Route("/v1/fleet/{what:path}", _pass_on, methods=["POST"])], lifespan=connected)


async def _pass_on(request: Request) -> Response:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST:
            return PlainTextResponse(f"more than {LARGEST} bytes", 413)
    client: httpx.AsyncClient = request.app.state.client
    try:
        answer = await client.post(request.url.path, content=bytes(body), headers=_kept(request.headers.items()))
    except httpx.TransportError:
        return PlainTextResponse("the server is not there", 503)
    return Response(answer.content, answer.status_code, _kept(answer.headers.items()))


def _kept(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _OURS}
