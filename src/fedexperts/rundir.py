"""A run's folder: what it was asked, where it ran, what it logged, and checkpoints to go on from.

    config.toml        the resolved experiment
    environment.json   where it comes from (provenance.py), and what else it says of itself
    split.json         who has which example, where one process knew it; data.split takes it up
    hashes.json        of these three, which are written once
    rounds.jsonl       a line a round: who trained, who was refused, bytes
    clients.jsonl      a line a client and evaluated round
    server.jsonl       a line an evaluated round: what the server holds, and how well it does
    events.jsonl       a line for each private state that somebody said to go on without, and for
                       each time that it went on elsewhere, or with another program
    seconds.jsonl      a line a round: what differs between two runs that are the same
    checkpoints/       the newest two (checkpoints.py)
    private/           the private states of clients that live in this process

A checkpoint holds the lengths and hashes of the logs at its time: whatever instant a crash hits,
the newest checkpoint and the logs up to it are whole, and no bit of them changes unseen. It says
who has kept a private state, too, and when. Nothing here knows what the tensors mean.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoints import BACKUP, VERSION, Checkpoints, Held, Length
from .disk import damaged, making, read_checked, sweep, write_checked
from .metrics import Row
from .options import Values
from .private import Private
from .provenance import differences
from .tensors import Tensors, naming, write

LOGS = ("rounds.jsonl", "clients.jsonl", "server.jsonl")
EVENTS, SECONDS = "events.jsonl", "seconds.jsonl"
BLOCK = 2**14  # bytes at the end of a log that are read first
ONCE = ("config.toml", "environment.json", "split.json")


@dataclass
class Tally:
    """How long a log is, and its hash so far: what is added is hashed as it is written."""

    length: int = 0
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.length += len(data)
        self.sha256.update(data)

    def said(self) -> Length:
        """As a checkpoint says it."""
        return self.length, self.sha256.hexdigest()


@dataclass(frozen=True)
class RunDir:
    """One run's folder."""

    path: Path
    _tallies: dict[str, Tally] = field(default_factory=dict, init=False, repr=False, compare=False)
    _held: Held = field(default_factory=Held, init=False, repr=False, compare=False)

    @classmethod
    def create(
        cls,
        path: Path,
        config: str,
        environment: Values,
        split: Values | None = None,
    ) -> "RunDir":
        """A new run's folder; ValueError if something is there already."""
        texts = {
            "config.toml": config,
            "environment.json": json.dumps(environment, indent=1) + "\n",
        }
        if split is not None:
            texts["split.json"] = json.dumps(split, separators=(",", ":"))
        with making(path) as part:
            for name, text in texts.items():
                write(part / name, text.encode())
            hashes = {name: _sha256(text.encode()) for name, text in texts.items()}
            write_checked(part / "hashes.json", {"version": VERSION, "sha256": hashes})
        return cls(path)

    @property
    def _saved(self) -> Checkpoints:
        """A run whose rounds were logged has had a checkpoint: the first is written before."""
        return Checkpoints(self.path / "checkpoints", self.path / LOGS[0], self._held)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of this run; ValueError if one is in it.

        A crash releases the lock.
        """
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path} is being run by another process: wait for it, or stop it first."
                ) from None
            yield

    def text(self, name: str) -> str:
        """A file that was written once; ValueError, naming it, if it is gone or damaged."""
        path = self.path / name
        if not path.exists():
            raise ValueError(f"{path} is gone: {BACKUP}")
        data = path.read_bytes()
        if _sha256(data) != self._hashes().get(name):
            raise damaged(path, "it is not what was written", BACKUP)
        return data.decode()

    def _hashes(self) -> dict[str, str]:
        path = self.path / "hashes.json"
        if not path.exists():
            raise ValueError(
                f"{path} is not there: the run was made by fedexperts 0.1, which wrote none, or the"
                " file is gone. Run anew in another folder, go on with version 0.1, or put a"
                " backup in its place."
            )
        return dict(read_checked(path, BACKUP)["sha256"])

    def log(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to a log, keys sorted, so that equal rows are equal bytes."""
        tally = self._tally(name)
        data = b"".join(map(_line, rows))
        path = self.path / name
        with naming(path), open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        tally.add(data)

    def _tally(self, name: str) -> Tally:
        """Of a log as it stands; read once."""
        if name not in self._tallies:
            tally = Tally()
            tally.add(self._bytes(name))
            self._tallies[name] = tally
        return self._tallies[name]

    def _bytes(self, name: str) -> bytes:
        """A log as it stands; nothing, if nothing was logged yet."""
        path = self.path / name
        return path.read_bytes() if path.exists() else b""

    def rows(self, name: str) -> list[Row]:
        """The rows of a log up to the newest checkpoint; what a crash left after it does not count.

        Those of the rounds come with their seconds.
        """
        rows: list[Row] = [json.loads(line) for line in self._at_newest(name).splitlines()]
        if name == LOGS[0]:
            return _timed(rows, self.rows(SECONDS))
        return rows

    def _at_newest(self, name: str) -> bytes:
        """A log up to the newest checkpoint. Events are no round's: without any, they count."""
        counted = self._saved.at_newest(lambda checkpoint: self._counted(checkpoint, name))
        if counted is None:
            return self._bytes(name) if name == EVENTS else b""
        return counted

    def latest(self) -> list[Row]:
        """The rows of finished rounds, the newest perhaps not checkpointed yet.

        Another process may be writing them.
        """
        return _timed(self._whole_lines(LOGS[0]), self._whole_lines(SECONDS))

    def newest(self, name: str) -> list[Row]:
        """The rows of the newest round in a log, read from its end, however long it is."""
        path, block = self.path / name, BLOCK
        while True:
            lines, whole = _tail(path, block)
            rows = list(map(json.loads, lines))
            newest = [row for row in rows if row["round"] == rows[-1]["round"]]
            if whole or len(newest) < len(rows):
                return newest
            block *= 4

    def _whole_lines(self, name: str) -> list[Row]:
        lines = self._bytes(name).split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise damaged(self.path / name, str(error), BACKUP) from None

    def done(self) -> int | None:
        """The last finished round; None before the first checkpoint."""
        newest = self._saved.newest()
        if newest is None:
            return None
        return int(newest.name.removeprefix("round-"))

    def kept(self) -> dict[str, int]:
        """In which round each client kept its private state last, up to the newest checkpoint."""
        manifest = self._saved.at_newest(self._saved.manifest)
        return dict(manifest["kept"]) if manifest else {}

    def save(self, round: int, server: Tensors, kept: Mapping[str, int] | None = None) -> None:
        """Checkpoint the server's state after `round`, the logs so far, and who `kept` what."""
        logs = {name: self._tally(name).said() for name in (*LOGS, EVENTS)}
        noted = dict(sorted((kept or {}).items()))  # whatever the order in which replies came
        seconds = {SECONDS: self._tally(SECONDS).said()}
        self._saved.save(round, server, {"logs": logs, "kept": noted}, seconds)

    def load(self) -> tuple[int, Tensors] | None:
        """The newest checkpoint, if any; logs are cut back to its time, and leftovers swept.

        Raises ValueError, naming the file, if one is damaged or gone: it is never taken for a fresh
        start.
        """
        sweep(list(self.path.rglob(".*.part")))
        self.check()
        self._cut()
        self._saved.forget_old()  # whoever was killed in time had still to do it
        return self._saved.go_on()

    def look(self) -> tuple[int, Tensors] | None:
        """The newest checkpoint, for those who do not go on with the run: nothing is changed."""
        return self._saved.at_newest(self._saved.server)

    def check(self) -> None:
        """ValueError, naming the file, if one is not as written up to the newest checkpoint."""
        there = {name for name in ONCE if (self.path / name).exists()}
        for name in {*self._hashes(), *there}:
            self.text(name)
        self._saved.check()
        for name in (*LOGS, EVENTS, SECONDS):
            self.rows(name)
        Private(self.path / "private").check()

    def forget(self, client: str) -> None:
        """Go on without a client's private state, gone or damaged; the log says so."""
        private = Private(self.path / "private")
        known = sorted({*self.kept(), *private.clients()})
        if client not in known:
            raise ValueError(
                f"--forget {client}: no such client has kept anything in {self.path}; there are "
                f"{', '.join(known) or 'none'}"
            )
        with self.locked():
            private.forget(client)
            self._happened({"forgot": client})

    def checkpoints(self) -> list[int]:
        """Rounds from which the run can go on."""
        return [int(folder.name.removeprefix("round-")) for folder in self._saved.whole()]

    def copy(self, path: Path, round: int | None) -> "RunDir":
        """A copy of the run as its checkpoint of a round has it; None: before its first round."""
        path.mkdir()
        names = [*ONCE, "hashes.json"]
        if round is not None:
            names += [*LOGS, EVENTS, SECONDS]
            folders = [self._saved.at(round), self.path / "private"]
            for folder in folders:
                if folder.exists():
                    shutil.copytree(folder, path / folder.relative_to(self.path))
        for name in names:
            if (self.path / name).exists():
                shutil.copy(self.path / name, path)
        return RunDir(path)

    def left(self, round: int) -> dict[str, str]:
        """Hashes of what there is of a round: the logs up to it, the server's state after it, the
        private states that were kept in it.
        """
        hashes = {}
        for name in LOGS:
            lines = self._at_newest(name).splitlines()
            until = [line for line in lines if json.loads(line)["round"] <= round]
            hashes[name] = _sha256(b"\n".join(until))
        if (checkpoint := self._saved.at(round)).exists():
            hashes |= self._saved.manifest(checkpoint)["sha256"]
        return hashes | Private(self.path / "private").hashes(round)

    def goes_on(self, origin: Values) -> None:
        """The log says so if the run goes on elsewhere, or with another program."""
        if differences(self.origin(), origin):
            with self.locked():
                self._happened({"continued": origin})

    def origin(self) -> Values:
        """Where the run comes from; of one that went on elsewhere, the newest."""
        began: Values = json.loads(self.text("environment.json"))
        later = [row["continued"] for row in self.rows(EVENTS) if "continued" in row]
        origins: list[Values] = [began, *later]
        return origins[-1]

    def _happened(self, event: Row) -> None:
        """Log what was no round's doing: every checkpoint counts it, so no crash takes it back."""
        self._cut()
        rows = [*self.rows(EVENTS), {"round": self.done(), **event}]
        write(self.path / EVENTS, b"".join(map(_line, rows)))
        for checkpoint in self._saved.whole():
            manifest = self._saved.manifest(checkpoint)
            manifest["logs"][EVENTS] = self._tally(EVENTS).said()
            manifest["kept"].pop(event.get("forgot"), None)
            self._saved.note(checkpoint, manifest)

    def _length(self, checkpoint: Path, name: str) -> Length:
        """The length and the hash of a log at a checkpoint's time."""
        if name == SECONDS:
            noted = self._saved.seconds(checkpoint)
        else:
            noted = self._saved.manifest(checkpoint)["logs"]
        length, sha256 = noted[name]
        return length, sha256

    def _counted(self, checkpoint: Path, name: str) -> bytes:
        """A log up to a checkpoint."""
        length, sha256 = self._length(checkpoint, name)
        path = self.path / name
        data = b""
        if length:
            data = self._bytes(name)[:length]
        if len(data) < length:
            raise ValueError(
                f"{path} has {len(data)} bytes, yet the checkpoint was written when it had"
                f" {length}: restore it."
            )
        if _sha256(data) != sha256:
            raise damaged(path, "it is not what was written", BACKUP)
        return data

    def _cut(self) -> None:
        """Logs as they were at the newest checkpoint."""
        newest = self._saved.newest()
        self._tallies.clear()
        for name in (*LOGS, EVENTS, SECONDS):
            path, length = self.path / name, 0
            if newest:
                length, _ = self._length(newest, name)
            elif name == EVENTS:
                continue
            if path.exists() and path.stat().st_size > length:
                os.truncate(path, length)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, of this version or of the one that wrote no hashes."""
    return (path / "hashes.json").is_file() or all((path / name).is_file() for name in ONCE[:2])


def _line(row: Row) -> bytes:
    return (json.dumps(row, sort_keys=True) + "\n").encode()


def _tail(path: Path, size: int) -> tuple[list[bytes], bool]:
    """The whole lines in the last bytes of a file, and whether these are all of it."""
    if not path.exists():
        return [], True
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]  # after the last break there is no whole line
    return lines[start > 0 :], start == 0


def _timed(rows: list[Row], seconds: list[Row]) -> list[Row]:
    """Rounds with what they took."""
    took = {row["round"]: row for row in seconds}
    return [row | took.get(row["round"], {}) for row in rows]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
