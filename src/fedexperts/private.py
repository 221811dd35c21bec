"""A client's own state on the client's own disk: one file for each round in which it was kept.

`load(client, before=round)` never sees what the round itself wrote, so asking twice gives the same answer and a crash
anywhere is harmless. Kept are the newest file and what the two rounds before it read: a run may go on from the
checkpoint before the newest, too.
Nothing here knows what the tensors mean, and nothing here is ever sent.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .tensors import Tensors, pack, unpack, write

_DIGEST = 32  # bytes of sha256 in front of the tensors


@dataclass(frozen=True)
class Private:
    """The private states of the clients whose disk this is; `folder/client/round-000012.private`."""

    folder: Path

    def save(self, client: str, round: int, tensors: Tensors) -> None:
        """Keep `tensors` as the client's state after `round`, and forget what no repeated round can need."""
        data = pack(tensors)
        write(self._path(client, round), hashlib.sha256(data).digest() + data)
        for older in self._rounds(client, before=round - 1)[:-1]:
            self._path(client, older).unlink()

    def load(self, client: str, before: int) -> Tensors | None:
        """The newest state from a round below `before`; None if there is none.

        Raises ValueError, naming the file, if that state is damaged: it is never taken for a fresh start.
        """
        newest = self.newest(client, before)
        if newest is None:
            return None
        path = self._path(client, newest)
        data = path.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            raise ValueError(
                f"the private state of client {client} is damaged: {path}. Put a backup in its place; or delete "
                f"{path.parent} to let this client, and this client alone, begin afresh."
            )
        return unpack(data[_DIGEST:])

    def newest(self, client: str, before: int) -> int | None:
        """The round, below `before`, whose state `load` reads."""
        rounds = self._rounds(client, before)
        return rounds[-1] if rounds else None

    def _path(self, client: str, round: int) -> Path:
        return self.folder / client / f"round-{round:06d}.private"

    def _rounds(self, client: str, before: int) -> list[int]:
        found = (self.folder / client).glob("round-*.private")
        return sorted(r for r in (int(path.stem.removeprefix("round-")) for path in found) if r < before)
