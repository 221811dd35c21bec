"""A listening socket that bears a crowd: so many connections, so long without a key. It never sees
what is said.

It acts before TLS does, whose handshake alone costs memory. Who comes when all connections are
taken gets that of the stranger who has been there longest; a connection on which a site has shown
its key is not given away.
"""

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]


@dataclass
class _Caller:
    line: socket.socket
    until: float  # by the monotonic clock
    known: bool = False


class Entrance(socket.socket):
    """Bound at once; it listens when its server begins. ValueError for an address not to be had."""

    def __init__(self, address: str, port: int, connections: int, patience: float) -> None:
        super().__init__(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self._most, self._patience = connections, patience
        self._callers: dict[Address, _Caller] = {}  # the oldest first
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.bind((address, port))
        except OSError as error:
            self.close()
            raise ValueError(
                f"{address}, port {port}: {error.strerror or error}; another server may be running,"
                " or use another port in deploy.toml, or --bind with an address of this machine"
            ) from None

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; without room for it somebody is shut out, perhaps itself."""
        line, address = super().accept()
        self._callers[address[:2]] = _Caller(line, time.monotonic() + self._patience)
        self._forget_closed()
        if len(self._callers) > self._most:
            self._shut(
                next(
                    (who for who, caller in self._callers.items() if not caller.known), address[:2]
                )
            )
        return line, address

    def knows(self, who: Address, seconds: float) -> None:
        """This caller has shown a key: its connection is its own for some seconds."""
        if caller := self._callers.get(who):
            caller.known, caller.until = True, time.monotonic() + seconds

    async def watch(self) -> None:
        """Shut out, as time passes, whose time is up."""
        while True:
            await asyncio.sleep(min(1.0, self._patience / 4))
            self._forget_closed()
            for who in [
                who for who, caller in self._callers.items() if caller.until < time.monotonic()
            ]:
                self._shut(who)

    def _shut(self, who: Address) -> None:
        with suppress(OSError):  # it is gone already
            self._callers.pop(who).line.shutdown(socket.SHUT_RDWR)

    def _forget_closed(self) -> None:
        self._callers = {
            who: caller for who, caller in self._callers.items() if caller.line.fileno() >= 0
        }
