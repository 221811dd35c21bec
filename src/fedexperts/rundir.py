"""A run's folder: what it was asked, where it ran, what it logged, and checkpoints to go on from.

    config.toml        the resolved experiment
    environment.json   versions and machine
    split.json         who has which example, where one process knew it: another run can take it up
    (data.split) hashes.json        of these three, which are written once rounds.jsonl       a line
    a round: who trained, who was refused, bytes clients.jsonl      a line a client and evaluated
    round server.jsonl       a line an evaluated round: what the server holds, and how well it does
    events.jsonl       a line for each private state that somebody said to go on without
    seconds.jsonl      a line a round: what differs between two runs that are the same checkpoints/
    the newest two: server.safetensors, a file for each numbered group of tensors (expert.0.*), and,
                       written last, manifest.json; seconds.json for the log of seconds
    private/           the private states of clients that live in this process

A checkpoint is written aside and renamed into place, and holds the lengths and hashes of the logs
at its time: whatever instant a crash hits, the newest checkpoint and the logs up to it are whole,
and no bit of them changes unseen. It says who has kept a private state, too, and when. Nothing here
knows what the tensors mean.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .disk import damaged, making, read_checked, remove, sweep, write_checked
from .metrics import Row
from .private import Private
from .tensors import Tensors, naming, parts, unpack, write, writing

T = TypeVar("T")

LOGS = ("rounds.jsonl", "clients.jsonl", "server.jsonl")
EVENTS, SECONDS = "events.jsonl", "seconds.jsonl"
ONCE = ("config.toml", "environment.json", "split.json")
VERSION = 2  # of a run's folder; 1, of fedexperts 0.1, had no hashes
_KEPT = 2
_GROUP = re.compile(r"([a-z_]+\.[0-9]+)\.")  # in lower case, as some disks take A for a
_BACKUP = "put a backup in its place, or start anew in another folder"


@dataclass
class Tally:
    """How long a log is, and its hash so far: what is added is hashed as it is written, and nothing
    is read again.
    """

    length: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.length += len(data)
        self.sha256.update(data)

    def said(self) -> list[Any]:
        """As a checkpoint says it."""
        return [self.length, self.sha256.hexdigest()]


@dataclass(frozen=True)
class RunDir:
    """One run's folder."""

    path: Path
    _tallies: dict[str, Tally] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def create(
        cls,
        path: Path,
        config: str,
        environment: dict[str, Any],
        split: dict[str, Any] | None = None,
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
            hashes = {
                name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()
            }
            write_checked(part / "hashes.json", {"version": VERSION, "sha256": hashes})
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of this run; ValueError if one is in it. A crash releases
        the lock.
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
        """A file that was written once; ValueError, naming it, if it is gone or is not what was
        written.
        """
        path = self.path / name
        if not path.exists():
            raise ValueError(f"{path} is gone: {_BACKUP}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self._hashes().get(name):
            raise damaged(path, "it is not what was written", _BACKUP)
        return data.decode()

    def _hashes(self) -> dict[str, str]:
        path = self.path / "hashes.json"
        if not path.exists():
            raise ValueError(
                f"{path} is not there: the run was made by fedexperts 0.1, which wrote none, or the"
                " file is gone. Run anew in another folder, go on with version 0.1, or put a"
                " backup in its place."
            )
        return dict(read_checked(path, _BACKUP)["sha256"])

    def log(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to a log, keys sorted: a row that was computed from what lay on a disk reads
        the same.
        """
        tally = self._tally(name)
        data = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
        path = self.path / name
        with naming(path), open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        tally.add(data)

    def _tally(self, name: str) -> Tally:
        """Of a log as it stands; read once."""
        if name not in self._tallies:
            path, tally = self.path / name, Tally()
            tally.add(path.read_bytes() if path.exists() else b"")
            self._tallies[name] = tally
        return self._tallies[name]

    def rows(self, name: str) -> list[Row]:
        """The rows of a log up to the newest checkpoint; what a crash left behind it does not
        count.

        Those of the rounds come with their seconds.
        """
        data = self._at_newest(lambda checkpoint: self._counted(checkpoint, name))
        rows: list[Row] = [json.loads(line) for line in (data or b"").splitlines()]
        return self._timed(rows, self.rows(SECONDS)) if name == LOGS[0] else rows

    def latest(self) -> list[Row]:
        """The rows of finished rounds, the newest perhaps not checkpointed yet; another process may
        be writing them.
        """
        rows, seconds = (self._whole_lines(name) for name in (LOGS[0], SECONDS))
        return self._timed(rows, seconds)

    def _whole_lines(self, name: str) -> list[Row]:
        log = self.path / name
        lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise damaged(log, str(error), _BACKUP) from None

    @staticmethod
    def _timed(rows: list[Row], seconds: list[Row]) -> list[Row]:
        took = {row["round"]: row for row in seconds}
        return [row | took.get(row["round"], {}) for row in rows]

    def done(self) -> int | None:
        """The last finished round; None before the first checkpoint."""
        newest = self._newest()
        return None if newest is None else int(newest.name.removeprefix("round-"))

    def kept(self) -> dict[str, int]:
        """In which round each client kept its private state last, as far as the newest checkpoint
        knows.
        """
        manifest = self._at_newest(self._manifest)
        return dict(manifest["kept"]) if manifest else {}

    def save(self, round: int, server: Tensors, kept: Mapping[str, int] | None = None) -> None:
        """Checkpoint the server's state after `round`, together with the logs so far, and who
        `kept` what.
        """
        part = self.path / "checkpoints" / f".round-{round:06d}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            sha256 = {
                file: _save(part / file, group) for file, group in sorted(_files(server).items())
            }
            logs = {name: self._tally(name).said() for name in (*LOGS, EVENTS)}
            write_checked(part / "seconds.json", {SECONDS: self._tally(SECONDS).said()})
            noted = dict(sorted((kept or {}).items()))  # whatever the order in which replies came
            manifest = {
                "version": VERSION,
                "round": round,
                "sha256": sha256,
                "logs": logs,
                "kept": noted,
            }
            write_checked(part / "manifest.json", manifest)
            os.replace(part, part.with_name(f"round-{round:06d}"))
        except OSError:
            # on a full disk, what is half written is in the way
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._forget_old()

    def _forget_old(self) -> None:
        for old in self._checkpoints()[:-_KEPT]:
            remove(old)

    def load(self) -> tuple[int, Tensors] | None:
        """The newest checkpoint, with the logs cut back to its time and crashes' leftovers gone;
        None if none.

        Raises ValueError, naming the file, if one is damaged or gone: it is never taken for a fresh
        start.
        """
        sweep(list(self.path.rglob(".*.part")))
        self.check()
        self._cut()
        self._forget_old()  # whoever was killed in time had still to do it
        return self.look()

    def look(self) -> tuple[int, Tensors] | None:
        """The newest checkpoint, and nothing is changed: for those who do not go on with the
        run.
        """
        return self._at_newest(self._server)

    def check(self) -> None:
        """Every file of the run as it was written up to the newest checkpoint; ValueError naming
        one that is not.
        """
        for name in {*self._hashes(), *(name for name in ONCE if (self.path / name).exists())}:
            self.text(name)
        for checkpoint in self._checkpoints():
            self._unless_gone(
                checkpoint, lambda whole: (self._server(whole), self._tallied(whole, SECONDS))
            )
        for name in (*LOGS, EVENTS, SECONDS):
            self.rows(name)
        Private(self.path / "private").check()

    def forget(self, client: str) -> None:
        """Go on without a client's private state, which is gone or damaged: it begins afresh, and
        the log says so.
        """
        private = Private(self.path / "private")
        known = sorted({*self.kept(), *private.clients()})
        if client not in known:
            raise ValueError(
                f"--forget {client}: no such client has kept anything in {self.path}; there are "
                f"{', '.join(known) or 'none'}"
            )
        with self.locked():
            private.forget(client)
            self._cut()
            self.log(EVENTS, [{"round": self.done(), "forgot": client}])
            for checkpoint in self._checkpoints():
                manifest = self._manifest(checkpoint)
                manifest["kept"].pop(client, None)
                manifest["logs"][EVENTS] = self._tally(EVENTS).said()
                write_checked(checkpoint / "manifest.json", manifest)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*"))

    def _newest(self) -> Path | None:
        whole = self._checkpoints()
        rounds = self.path / LOGS[0]  # its first line is written after the first checkpoint
        if not whole and rounds.exists() and rounds.stat().st_size:
            raise ValueError(
                f"{self.path / 'checkpoints'} has no checkpoint, yet rounds were logged: they were"
                " removed. Restore them, or start anew in another folder."
            )
        return whole[-1] if whole else None

    def _at_newest(self, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of the newest checkpoint, whichever that is: another process may be
        writing the next.
        """
        while newest := self._newest():
            if (found := self._unless_gone(newest, read)) is not None:
                return found
        return None

    def _unless_gone(self, checkpoint: Path, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of a checkpoint; None if it was a newer one's turn meanwhile."""
        try:
            return read(checkpoint)
        except (ValueError, FileNotFoundError):
            if checkpoint.exists():
                raise
            return None

    def _manifest(self, checkpoint: Path) -> dict[str, Any]:
        path = checkpoint / "manifest.json"
        try:
            manifest = read_checked(path, "")
        except ValueError:
            raise self._damaged(path) from None
        if manifest.get("version") != VERSION:
            raise ValueError(
                f"{path} was not written by this version of fedexperts: run anew in another folder"
            )
        return manifest

    def _server(self, checkpoint: Path) -> tuple[int, Tensors]:
        manifest, server = self._manifest(checkpoint), Tensors()
        for name, sha256 in manifest["sha256"].items():
            path = checkpoint / name
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self._damaged(path)
            server |= unpack(data)
        return int(manifest["round"]), server

    def _damaged(self, path: Path) -> ValueError:
        others = [c.name for c in self._checkpoints() if c != path.parent]
        then = (
            f"delete {path.parent} to go on from {others[-1]}"
            if others
            else "start anew in another folder"
        )
        return ValueError(f"a checkpoint is damaged: {path}. Put a backup in its place, or {then}.")

    def _tallied(self, checkpoint: Path, name: str) -> tuple[int, str]:
        """The length and the hash of a log at a checkpoint's time."""
        path = checkpoint / "seconds.json"
        if name != SECONDS:
            length, sha256 = self._manifest(checkpoint)["logs"][name]
            return length, sha256
        try:
            length, sha256 = read_checked(path, "")[name]
        except ValueError:
            raise self._damaged(path) from None
        return length, sha256

    def _counted(self, checkpoint: Path, name: str) -> bytes:
        """A log up to a checkpoint."""
        (length, sha256), path = self._tallied(checkpoint, name), self.path / name
        data = path.read_bytes()[:length] if length and path.exists() else b""
        if len(data) < length:
            raise ValueError(
                f"{path} has {len(data)} bytes, yet the checkpoint was written when it had"
                f" {length}: restore it."
            )
        if hashlib.sha256(data).hexdigest() != sha256:
            raise damaged(path, "it is not what was written", _BACKUP)
        return data

    def _cut(self) -> None:
        """Logs as they were at the newest checkpoint."""
        newest = self._newest()
        self._tallies.clear()
        for name in (*LOGS, EVENTS, SECONDS):
            length, path = self._tallied(newest, name)[0] if newest else 0, self.path / name
            if path.exists() and path.stat().st_size > length:
                os.truncate(path, length)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, of this version or of the one that wrote no hashes."""
    return (path / "hashes.json").is_file() or all((path / name).is_file() for name in ONCE[:2])


def _files(server: Tensors) -> dict[str, Tensors]:
    """What goes into which file: a large mixture is written, and read, expert by expert."""
    files: dict[str, Tensors] = {"server.safetensors": {}}
    for name, value in server.items():
        group = _GROUP.match(name)
        files.setdefault(f"{group[1] if group else 'server'}.safetensors", {})[name] = value
    return files


def _save(path: Path, tensors: Tensors) -> str:
    """The sha256 of what was written, taken on the way: no copy of the tensors is made."""
    sha256 = hashlib.sha256()
    with writing(path) as file:
        for part in parts(tensors):
            sha256.update(part)
            file.write(part)
    return sha256.hexdigest()
