"""Checkpoints of a run: the newest two, from which it can go on.

    round-000012/server.safetensors  the server's state
    round-000012/expert.0.safetensors  a file for each numbered group of it
    round-000012/server.since-round-000011.safetensors  of a large state, what is new
    round-000012/seconds.json  what differs between two runs that are the same
    round-000012/manifest.json  hashes of the files, and what the run notes; written last

A checkpoint is written aside and renamed into place, so that one that has its name is whole. What a
large state has in common with the checkpoint before, a pool of many clients, say, is not written
again: the files before are linked into the new folder, and of a tensor that is in several files the
last counts. So a folder has all that it needs, and a file is gone with the last folder it is in.

This room does not know what the tensors mean, what the logs are, or how a round goes.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from weakref import ReferenceType, ref

from torch import Tensor

from .disk import link, read_checked, remove, write_checked
from .options import Values
from .tensors import Tensors, parts, size, unpack, writing

T = TypeVar("T")

VERSION = 2  # of a run's folder; 1, of fedexperts 0.1, had no hashes
BACKUP = "put a backup in its place, or start anew in another folder"
Length = tuple[int, str]  # of a log, and its hash
_KEPT = 2
_SMALL = 2**20  # bytes: a smaller state is written whole, as this takes no time
_FILES = 32  # from so many a state is written whole, so that few are linked and read
_GROUP = re.compile(r"([a-z_]+\.[0-9]+)\.")  # in lower case, as some disks take A for a


@dataclass
class Held:
    """What the newest checkpoint holds: as soon as this process has written it, or gone on from
    it.
    """

    folder: Path = Path()
    sha256: dict[str, str] = field(default_factory=dict)  # of its files, the newest last
    tensors: dict[str, tuple[ReferenceType[Tensor], int]] = field(default_factory=dict)

    def note(self, folder: Path, sha256: dict[str, str], server: Tensors) -> None:
        self.folder, self.sha256 = folder, sha256
        self.tensors = {name: (ref(value), _writes(value)) for name, value in server.items()}

    def new(self, server: Tensors) -> Tensors:
        """What of a state it does not hold."""
        return {name: value for name, value in server.items() if not self._holds(name, value)}

    def _holds(self, name: str, value: Tensor) -> bool:
        """Whether it is the very tensor, and nobody has written to it."""
        known, writes = self.tensors.get(name, (None, 0))
        return known is not None and known() is value and writes == _writes(value) >= 0

    def serves(self, server: Tensors, new: Tensors) -> bool:
        """Whether its files and the new are the state: nothing is gone, and less of them counts no
        more than the state is large.
        """
        files = [self.folder / name for name in self.sha256]
        if not 0 < len(files) < _FILES:
            return False
        read = sum(file.stat().st_size for file in files) + size(new)
        whole = size(server)
        return whole >= _SMALL and read < 2 * whole and self.tensors.keys() <= server.keys()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder; there must be one as soon as there is anything in the log."""

    folder: Path
    log: Path
    held: Held

    def save(
        self, round: int, server: Tensors, noted: Values, seconds: Mapping[str, Length]
    ) -> None:
        """Write the server's state after `round`, with what the run has `noted` by then."""
        part = self.folder / f".round-{round:06d}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            sha256 = self._write(part, server)
            write_checked(part / "seconds.json", seconds)
            manifest = {"version": VERSION, "round": round, "sha256": sha256, **noted}
            self.note(part, manifest)
            os.replace(part, self.at(round))
        except OSError:
            # on a full disk, what is half written is in the way
            shutil.rmtree(part, ignore_errors=True)
            raise
        self.held.note(self.at(round), sha256, server)
        self.forget_old()

    def _write(self, part: Path, server: Tensors) -> dict[str, str]:
        """A state in files: their hashes, in the order in which they are read."""
        new, before = self.held.new(server), self.held.folder
        if not self.held.serves(server, new):
            return _written(part, server)
        for name in self.held.sha256:
            link(before / name, part / name)
        return self.held.sha256 | _written(part, new, f".since-{before.name}")

    def note(self, checkpoint: Path, manifest: Values) -> None:
        """Write a checkpoint's manifest."""
        write_checked(checkpoint / "manifest.json", manifest)

    def forget_old(self) -> None:
        for old in self.whole()[:-_KEPT]:
            remove(old)

    def check(self) -> None:
        """ValueError, naming the file, if one is not what was written."""
        for checkpoint in self.whole():
            self._unless_gone(checkpoint, self.server)
            self._unless_gone(checkpoint, self.seconds)

    def whole(self) -> list[Path]:
        """Those that are there, the oldest first."""
        return sorted(self.folder.glob("round-*"))

    def at(self, round: int) -> Path:
        """Where the checkpoint of a round is, if it is there."""
        return self.folder / f"round-{round:06d}"

    def newest(self) -> Path | None:
        """The newest there is; ValueError if they were removed."""
        whole = self.whole()
        if whole:
            return whole[-1]
        if self.log.exists() and self.log.stat().st_size:
            raise ValueError(
                f"{self.folder} has no checkpoint, yet rounds were logged: they were"
                " removed. Restore them, or start anew in another folder."
            )
        return None

    def at_newest(self, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of the newest; another process may be writing the next meanwhile."""
        while newest := self.newest():
            value = self._unless_gone(newest, read)
            if value is not None:
                return value
        return None

    def _unless_gone(self, checkpoint: Path, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of a checkpoint; None if it was a newer one's turn meanwhile."""
        try:
            return read(checkpoint)
        except (ValueError, FileNotFoundError):
            if checkpoint.exists():
                raise
            return None

    def manifest(self, checkpoint: Path) -> Values:
        """What was noted; ValueError, naming the file, if it is damaged or another version's."""
        path = checkpoint / "manifest.json"
        manifest = self._read(path)
        if manifest.get("version") != VERSION:
            raise ValueError(
                f"{path} was not written by this version of fedexperts: run anew in another folder"
            )
        return manifest

    def server(self, checkpoint: Path) -> tuple[int, Tensors]:
        """The round, and the server's state after it: of what is in two files the last counts."""
        manifest, server = self.manifest(checkpoint), Tensors()
        for name, sha256 in manifest["sha256"].items():
            path = checkpoint / name
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self._damaged(path)
            server |= unpack(data)
        return int(manifest["round"]), server

    def go_on(self) -> tuple[int, Tensors] | None:
        """The newest, beside which the next will be put."""
        loaded = self.at_newest(self.server)
        if loaded:
            newest = self.at(loaded[0])
            self.held.note(newest, self.manifest(newest)["sha256"], loaded[1])
        return loaded

    def seconds(self, checkpoint: Path) -> Values:
        """What was noted of time."""
        return self._read(checkpoint / "seconds.json")

    def _read(self, path: Path) -> Values:
        try:
            return read_checked(path, "")
        except ValueError:
            raise self._damaged(path) from None

    def _damaged(self, path: Path) -> ValueError:
        others = [folder.name for folder in self.whole() if not _in_both(path, folder / path.name)]
        then = "start anew in another folder"
        if others:
            then = f"delete {path.parent} to go on from {others[-1]}"
        return ValueError(f"a checkpoint is damaged: {path}. Put a backup in its place, or {then}.")


def _in_both(file: Path, other: Path) -> bool:
    """Whether a file has two names, and so is damaged under both."""
    return file.parent == other.parent or (
        file.exists() and other.exists() and file.samefile(other)
    )


def _writes(value: Tensor) -> int:
    """How often a tensor was written to, as torch counts it; -1 where it does not count."""
    return -1 if value.is_inference() else value._version


def _written(folder: Path, tensors: Tensors, since: str = "") -> dict[str, str]:
    """Tensors in files of a folder; their hashes."""
    groups = sorted(_groups(tensors).items())
    return {
        f"{name}{since}.safetensors": _write(folder / f"{name}{since}.safetensors", group)
        for name, group in groups
    }


def _groups(tensors: Tensors) -> dict[str, Tensors]:
    """What goes into which file: a large mixture is written, and read, expert by expert."""
    groups: dict[str, Tensors] = {"server": {}}
    for name, value in tensors.items():
        group = _GROUP.match(name)
        groups.setdefault(group[1] if group else "server", {})[name] = value
    return groups


def _write(path: Path, tensors: Tensors) -> str:
    """The sha256 of what was written, taken on the way: no copy of the tensors is made."""
    sha256 = hashlib.sha256()
    with writing(path) as file:
        for part in parts(tensors):
            sha256.update(part)
            file.write(part)
    return sha256.hexdigest()
