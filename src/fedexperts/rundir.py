"""A run's folder: what it was asked, where it ran, what it logged, and checkpoints to go on from.

    config.toml        the resolved experiment
    environment.json   versions and machine
    split.json         who has which example, where one process knew it: another run can take it up (data.split)
    rounds.jsonl       a line a round: who trained, who was refused, bytes, seconds
    clients.jsonl      a line a client and evaluated round
    server.jsonl       a line an evaluated round: what the server holds, and how well it does
    checkpoints/       the newest two: server.safetensors, a file for each numbered group of tensors (expert.0.*), and,
                       written last, manifest.json
    private/           the private states of clients that live in this process

A checkpoint is written aside and renamed into place, and holds the lengths of the logs at its time: whatever instant a
crash hits, the newest checkpoint and the logs up to it are whole. Nothing here knows what the tensors mean.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metrics import Row
from .tensors import Tensors, parts, unpack, write, writing

LOGS = ("rounds.jsonl", "clients.jsonl", "server.jsonl")
_KEPT = 2
_GROUP = re.compile(r"([a-z_]+\.[0-9]+)\.")  # in lower case, as some disks take A for a


@dataclass(frozen=True)
class RunDir:
    """One run's folder."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, config: str, environment: dict[str, Any], split: dict[str, Any] | None = None
    ) -> "RunDir":
        """A new run's folder; ValueError if something is there already."""
        if path.exists():
            raise taken(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        write(aside / "environment.json", (json.dumps(environment, indent=1) + "\n").encode())
        write(aside / "config.toml", config.encode())
        if split is not None:
            write(aside / "split.json", json.dumps(split, separators=(",", ":")).encode())
        os.replace(aside, path)  # a folder that is there is whole
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of this run; ValueError if one is in it. A crash releases the lock."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path} is being run by another process: wait for it, or stop it first."
                ) from None
            yield

    def log(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to a log."""
        with open(self.path / name, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self, name: str) -> list[Row]:
        """The rows of a log up to the newest checkpoint; what a crash left behind it does not count."""
        newest = self._newest()
        if newest is None:
            return []
        length = self._manifest(newest)["logs"].get(name, 0)
        if not length:
            return []
        path = self.path / name
        data = path.read_bytes()[:length] if path.exists() else b""
        if len(data) < length:
            raise _short(path, len(data), length)
        try:
            return [json.loads(line) for line in data.splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): put a backup in its place.") from None

    def done(self) -> int | None:
        """The last finished round; None before the first checkpoint."""
        newest = self._newest()
        return None if newest is None else int(newest.name.removeprefix("round-"))

    def save(self, round: int, server: Tensors) -> None:
        """Checkpoint the server's state after `round`, together with the logs written so far."""
        aside = self.path / "checkpoints" / f".round-{round:06d}.part"
        shutil.rmtree(aside, ignore_errors=True)
        sha256 = {file: _save(aside / file, group) for file, group in _files(server).items()}
        logs = {name: size.stat().st_size if (size := self.path / name).exists() else 0 for name in LOGS}
        manifest = {"round": round, "sha256": sha256, "logs": logs}
        write(aside / "manifest.json", json.dumps(manifest | {"check": _check(manifest)}, indent=1).encode())
        os.replace(aside, aside.with_name(f"round-{round:06d}"))
        for old in self._checkpoints()[:-_KEPT]:
            shutil.rmtree(old)

    def load(self) -> tuple[int, Tensors] | None:
        """The newest checkpoint, with the logs cut back to its time; None before the first.

        Raises ValueError, naming the file, if it is damaged: it is never taken for a fresh start.
        """
        found, newest = self.look(), self._newest()
        logs = self._manifest(newest)["logs"] if newest else dict.fromkeys(LOGS, 0)
        for name, length in logs.items():
            self._cut(name, length)
        return found

    def look(self) -> tuple[int, Tensors] | None:
        """The newest checkpoint, and nothing is changed: for those who do not go on with the run."""
        newest = self._newest()
        if newest is None:
            return None
        manifest = self._manifest(newest)
        return int(manifest["round"]), self._server(newest, manifest)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*"))

    def _newest(self) -> Path | None:
        whole = self._checkpoints()
        rounds = self.path / "rounds.jsonl"  # its first line is written after the first checkpoint
        if not whole and rounds.exists() and rounds.stat().st_size:
            raise ValueError(
                f"{self.path / 'checkpoints'} has no checkpoint, yet rounds were logged: they were removed. "
                f"Restore them, or start anew in another folder."
            )
        return whole[-1] if whole else None

    def _manifest(self, checkpoint: Path) -> dict[str, Any]:
        path = checkpoint / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            check = manifest.pop("check")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise self._damaged(path) from None
        if check != _check(manifest):
            raise self._damaged(path)
        return manifest

    def _server(self, checkpoint: Path, manifest: dict[str, Any]) -> Tensors:
        server: Tensors = {}
        for name, sha256 in manifest["sha256"].items():
            path = checkpoint / name
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self._damaged(path)
            server |= unpack(data)
        return server

    def _damaged(self, path: Path) -> ValueError:
        others = [c.name for c in self._checkpoints() if c != path.parent]
        then = f"delete {path.parent} to go on from {others[-1]}" if others else "start anew in another folder"
        return ValueError(f"a checkpoint is damaged: {path}. Put a backup in its place, or {then}.")

    def _cut(self, name: str, length: int) -> None:
        path = self.path / name
        have = path.stat().st_size if path.exists() else 0
        if have < length:
            raise _short(path, have, length)
        if have > length:
            os.truncate(path, length)


def taken(path: Path) -> ValueError:
    """What to say of a folder that is there already."""
    return ValueError(
        f"{path} is there already: two runs never share a folder. Go on with it by `fedexperts resume {path}`, "
        f"or choose another folder with --out."
    )


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


def _short(path: Path, have: int, length: int) -> ValueError:
    return ValueError(f"{path} has {have} bytes, yet the checkpoint was written when it had {length}: restore it.")


def _check(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's values: a changed length would cut a log, a changed round would skip one."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
