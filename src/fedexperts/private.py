"""A client's own state on the client's own disk: one file for each round in which it was kept, and
a list of them.

    folder/client/round-000012.private    a hash, and the tensors
    folder/client/kept.json               the rounds that are kept here: a file that is gone is
    missed

`load(client, before=round)` never sees what the round itself wrote, so asking twice gives the same
answer and a crash anywhere is harmless. Kept are the newest file and what the two rounds before it
read: a run may go on from the checkpoint before the newest, too. A state that is damaged or gone is
an error, never a fresh start, until somebody says `forget`. Beside a state its file can hold a
ledger, `ledger.*`, which the method never sees, and which outlives a state that is given up.
Nothing here knows what the tensors mean, and nothing here is ever sent.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .disk import damaged, read_checked, remove, sweep, write_checked
from .tensors import Tensors, named, pack, under, unpack, write

_DIGEST = 32  # bytes of sha256 in front of the tensors
_LIST = "kept.json"
_LEDGER = "ledger"


@dataclass(frozen=True)
class Private:
    """The private states of the clients whose disk this is."""

    folder: Path

    def save(
        self, client: str, round: int, tensors: Tensors, ledger: Tensors | None = None
    ) -> None:
        """Keep `tensors` as the client's state after `round`; forget what nobody can need."""
        data = pack(tensors | named(_LEDGER, ledger or {}))
        write(self._path(client, round), hashlib.sha256(data).digest() + data)
        rounds = sorted({*self._rounds(client), round})
        older = [r for r in rounds if r < round - 1][:-1]
        kept = [r for r in rounds if r not in older]
        write_checked(self._list(client), {"rounds": kept})
        wanted = {self._path(client, r) for r in kept}
        for path in (self.folder / client).glob("*.private"):
            if path not in wanted:  # an older one, also where a kill came before it was deleted
                path.unlink(missing_ok=True)
        sweep((self.folder / client).iterdir())

    def load(self, client: str, before: int, kept: int = 0) -> Tensors | None:
        """The newest state from a round below `before`; None if there is none.

        Raises ValueError, naming the file, if that state is damaged or gone, or older than the
        round in which the server knows that the client `kept` one: it is never taken for a fresh
        start.
        """
        newest = self.newest(client, before)
        self._expect(client, newest, kept)
        if newest is None:
            return None
        state = self._read(client, newest)
        return {name: state[name] for name in state if not name.startswith(f"{_LEDGER}.")} or None

    def ledger(self, client: str, round: int | None = None, kept: int = 0) -> Tensors:
        """The newest ledger, or that of one round; empty if there is none. ValueError as `load`."""
        rounds = self._rounds(client)
        newest = max(rounds, default=None)
        self._expect(client, newest, kept)
        wanted = newest if round is None else round
        if wanted is None or wanted not in rounds:
            return {}
        return under(self._read(client, wanted), _LEDGER)

    def newest(self, client: str, before: int) -> int | None:
        """The round, below `before`, whose state `load` reads."""
        return max((r for r in self._rounds(client) if r < before), default=None)

    def clients(self) -> list[str]:
        """Who has kept something here."""
        names = (path.parent.name for path in self.folder.glob(f"*/{_LIST}"))
        return sorted(name for name in names if name[0] != ".")

    def hashes(self, round: int) -> dict[str, str]:
        """Of the states of a round, by file."""
        files = sorted(self.folder.glob(f"*/{self._path('', round).name}"))
        return {
            str(file.relative_to(self.folder)): file.read_bytes()[:_DIGEST].hex() for file in files
        }

    def check(self, kept: Mapping[str, int] | None = None) -> None:
        """ValueError, naming the file, if a newest state, or one that was `kept`, is not whole."""
        for client, round in (kept or {}).items():
            self._expect(client, max(self._rounds(client), default=None), round)
        for client in self.clients():
            *older, newest = self._rounds(client)
            self._read(client, newest)
            for path in [self._path(client, r) for r in older]:
                if path.exists() and not _whole(path.read_bytes()):
                    raise damaged(
                        path, "it is not what was written", "delete it, as newer ones are there"
                    )

    def forget(self, client: str) -> None:
        """Let a client begin afresh; a ledger that can be read is kept, for what is spent is
        spent.
        """
        if not (self.folder / client).exists():
            return
        newest = max(self._rounds(client), default=0)
        try:
            ledger = self.ledger(client)
        except ValueError:
            ledger = {}
        remove(self.folder / client)
        if ledger:
            self.save(client, newest, {}, ledger)

    def _expect(self, client: str, newest: int | None, kept: int) -> None:
        """ValueError if a client's newest state is older than what it is known to have `kept`."""
        if (newest or 0) < kept:
            here = f"the newest there is of round {newest}" if newest else "there is none"
            raise self._lost(
                client,
                f"is gone from {self.folder / client}: it kept one in round {kept}, and {here}",
            )

    def _read(self, client: str, round: int) -> Tensors:
        path = self._path(client, round)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise self._lost(client, f"is gone: {path} is not there") from None
        if not _whole(data):
            raise self._lost(client, f"is damaged: {path}")
        return unpack(data[_DIGEST:])

    def _lost(self, client: str, how: str) -> ValueError:
        return ValueError(f"the private state of client {client} {how}. {_remedy(client)}")

    def _path(self, client: str, round: int) -> Path:
        return self.folder / client / f"round-{round:06d}.private"

    def _list(self, client: str) -> Path:
        return self.folder / client / _LIST

    def _rounds(self, client: str) -> list[int]:
        """What the list says, sorted; a file that is not on it was left by a crash."""
        if not self._list(client).exists():
            return []
        return [int(r) for r in read_checked(self._list(client), _remedy(client))["rounds"]]


def _whole(data: bytes) -> bool:
    return hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]


def _remedy(client: str) -> str:
    return (
        "Put a backup in its place; or let this client, and this client alone, begin afresh: go on"
        f" with --forget {client} (docs/deploy.md says where, if its disk is another machine's)."
    )
