"""A deployment's folder, or a site's, in one file, and back from it.

What Flower keeps is left out, as it is made again. A run may go on meanwhile: its checkpoints are
copied before its logs, which are cut back to a checkpoint when the run goes on. This room does not
know what the files mean.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ..disk import making
from .owner import owners_alone

_LEFT_OUT = ("flower", ".lock", ".turn")


def backup(folder: Path, file: Path) -> int:
    """Write the folder into a new file, its owner's alone; how many files are in it."""
    if not any((folder / name).exists() for name in ("deploy.toml", "site.toml")):
        raise ValueError(f"{folder} is no deployment and no site: it has no deploy.toml, site.toml")
    if file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} lies in {folder} itself: put a backup on another disk")
    count = 0
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ValueError(f"{file} is there already: use another name") from None
    with open(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path in _in_order(folder):
            try:
                archive.add(path, str(path.relative_to(folder)), recursive=False)
            except FileNotFoundError:  # a checkpoint that a newer one has replaced meanwhile
                continue
            count += path.is_file()
        out.flush()
    return count


def _in_order(folder: Path) -> Iterator[Path]:
    """What is copied: checkpoints first."""
    paths = sorted(folder.rglob("*"))
    kept = [path for path in paths if not _is_left_out(path.relative_to(folder))]
    yield from (path for path in kept if "checkpoints" in path.parts)
    yield from (path for path in kept if "checkpoints" not in path.parts)


def _is_left_out(inner: Path) -> bool:
    return inner.parts[0] in _LEFT_OUT or inner.name in _LEFT_OUT or inner.suffix == ".part"


def restore(file: Path, folder: Path) -> None:
    """A new folder from a backup; ValueError if something is there, or the file is none."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: restore into a new folder, and rename it")
    with making(folder) as part:
        try:
            with tarfile.open(file, "r:gz") as archive:
                archive.extractall(part, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"{file} is no whole backup of `fedexperts deploy backup`: {error}"
            ) from None
        if not any((part / name).exists() for name in ("deploy.toml", "site.toml")):
            raise ValueError(f"{file} is no backup of a deployment or a site")
        owners_alone(part)
