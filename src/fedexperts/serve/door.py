"""The door of the page: who stands at it, for how long, and how much is held of what they say.

Whoever reaches the door may be a stranger, who sends much, or slowly, or nothing. So everything has
a bound, and when one is met it is the slowest who goes, and not who comes: an honest page asks in
milliseconds, and is answered among hundreds of strangers. This room does not know what is asked.
"""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

VISITORS = 64  # connections at a time: a browser opens six
PATIENCE = 30.0  # seconds in which a question is asked, and its answer taken
TOGETHER = 2**27  # bytes of all questions that are being heard


def listen(host: str, port: int) -> socket.socket:
    """A socket at `host`, at any free port if `port` is 0; ValueError for an unknown address."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        why = f"{host}:{port}: {error.strerror}"
        raise ValueError(
            f"{why}; use a free --port, and an address of this machine as --host"
        ) from None


def server(application: Any) -> uvicorn.Server:
    """What runs an application at an open door, and says nothing of those who ask."""
    settings = uvicorn.Config(
        application,
        lifespan="off",
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        http=Visitor,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(settings)


class Visitor(H11Protocol):
    """One connection, dropped if it is slow to ask or to listen, or if others need room."""

    _numbers = itertools.count()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._number = next(self._numbers)
        self._watch = self.loop.call_later(PATIENCE, self._look)
        if len(self.connections) > VISITORS:
            self._slowest()._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what is no HTTP came while an answer was on its way
            self._drop()

    @property
    def _asks(self) -> bool:
        """Whether a question has begun and its answer has not; `Hearing` bounds its time."""
        return self.cycle is not None and not self.cycle.response_started

    @property
    def _waits(self) -> bool:
        """Whether it has asked, and now it is our turn."""
        return self._asks and not self.cycle.more_body

    def _look(self) -> None:
        if self._asks:
            self._watch = self.loop.call_later(PATIENCE, self._look)
        else:
            self._drop()

    def _slowest(self) -> "Visitor":
        """Who stands here longest and has not asked."""
        visitors = (visitor for visitor in self.connections if isinstance(visitor, Visitor))
        others = [visitor for visitor in visitors if not visitor._waits]
        return min(others, key=lambda visitor: visitor._number)

    def _drop(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


class Hearing:
    """What is held of unfinished questions: at most `TOGETHER` bytes, `PATIENCE` seconds each."""

    def __init__(self) -> None:
        self._held: dict[asyncio.Timeout, int] = {}  # the oldest first

    async def whole(self, pieces: AsyncIterator[bytes], most: int) -> bytes | None:
        """A question; None if it is more than `most` bytes, which are read but not kept.

        TimeoutError if it does not come to an end in time, or if it is the oldest where others need
        the room.
        """
        body, size = bytearray(), 0
        async with asyncio.timeout(PATIENCE) as limit:
            try:
                async for piece in pieces:
                    size += len(piece)
                    if size <= most:
                        body += piece
                    else:
                        body.clear()
                    self._hold(limit, len(body))
            finally:
                self._held.pop(limit, None)
        return bytes(body) if size <= most else None

    def _hold(self, limit: asyncio.Timeout, size: int) -> None:
        self._held[limit] = size
        while sum(self._held.values()) > TOGETHER:
            oldest = next(iter(self._held))
            del self._held[oldest]
            oldest.reschedule(0)
