"""Checkpoints of a run: the newest two, from which it can go on.

    round-000012/server.safetensors    the server's state
    round-000012/expert.0.safetensors  a file for each numbered group of it
    round-000012/seconds.json          what differs between two runs that are the same
    round-000012/manifest.json         hashes of the files, and what the run notes; written last

A checkpoint is written aside and renamed into place, so that one that has its name is whole. This
room does not know what the tensors mean, what the logs are, or how a round goes.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .disk import read_checked, remove, write_checked
from .options import Values
from .tensors import Tensors, parts, unpack, writing

T = TypeVar("T")

VERSION = 2  # of a run's folder; 1, of fedexperts 0.1, had no hashes
BACKUP = "put a backup in its place, or start anew in another folder"
Length = tuple[int, str]  # of a log, and its hash
_KEPT = 2
_GROUP = re.compile(r"([a-z_]+\.[0-9]+)\.")  # in lower case, as some disks take A for a


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder; there must be one as soon as there is anything in the log."""

    folder: Path
    log: Path

    def save(
        self, round: int, server: Tensors, noted: Values, seconds: Mapping[str, Length]
    ) -> None:
        """Write the server's state after `round`, with what the run has `noted` by then."""
        part = self.folder / f".round-{round:06d}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            sha256 = {}
            for name, group in sorted(_files(server).items()):
                sha256[name] = _write(part / name, group)
            write_checked(part / "seconds.json", seconds)
            manifest = {"version": VERSION, "round": round, "sha256": sha256, **noted}
            self.note(part, manifest)
            os.replace(part, self.at(round))
        except OSError:
            # on a full disk, what is half written is in the way
            shutil.rmtree(part, ignore_errors=True)
            raise
        self.forget_old()

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
        """The round, and the server's state after it."""
        manifest, server = self.manifest(checkpoint), Tensors()
        for name, sha256 in manifest["sha256"].items():
            path = checkpoint / name
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self._damaged(path)
            server |= unpack(data)
        return int(manifest["round"]), server

    def seconds(self, checkpoint: Path) -> Values:
        """What was noted of time."""
        return self._read(checkpoint / "seconds.json")

    def _read(self, path: Path) -> Values:
        try:
            return read_checked(path, "")
        except ValueError:
            raise self._damaged(path) from None

    def _damaged(self, path: Path) -> ValueError:
        others = [folder.name for folder in self.whole() if folder != path.parent]
        then = "start anew in another folder"
        if others:
            then = f"delete {path.parent} to go on from {others[-1]}"
        return ValueError(f"a checkpoint is damaged: {path}. Put a backup in its place, or {then}.")


def _files(server: Tensors) -> dict[str, Tensors]:
    """What goes into which file: a large mixture is written, and read, expert by expert."""
    files: dict[str, Tensors] = {"server.safetensors": {}}
    for name, value in server.items():
        group = _GROUP.match(name)
        file = f"{group[1]}.safetensors" if group else "server.safetensors"
        files.setdefault(file, {})[name] = value
    return files


def _write(path: Path, tensors: Tensors) -> str:
    """The sha256 of what was written, taken on the way: no copy of the tensors is made."""
    sha256 = hashlib.sha256()
    with writing(path) as file:
        for part in parts(tensors):
            sha256.update(part)
            file.write(part)
    return sha256.hexdigest()
