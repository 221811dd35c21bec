"""Folders and small files that outlive a crash: values with their own hash, folders that exactly
one process makes, and what killed processes left half written.

Nothing here knows what the values mean, or what a run is.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .options import Values
from .tensors import aside, write, writing

# what `aside` names; without a number, whoever holds the lock owns it
_PART = re.compile(r"\..+?(?:\.([0-9]+))?\.part")
_THERE = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


def write_checked(path: Path, values: Mapping[str, object]) -> None:
    """Plain values as JSON, with a hash of them: no bit of the file can change unseen."""
    write(path, _checked(values))


def read_checked(path: Path, remedy: str) -> Values:
    """What `write_checked` wrote; ValueError, with the `remedy`, if it is gone or damaged."""
    try:
        data = path.read_bytes()
        values: Values = json.loads(data)
        del values["check"]
    except FileNotFoundError:
        raise ValueError(f"{path} is gone: {remedy}") from None
    except KeyError:
        raise damaged(
            path, "it holds no hash of itself, which version 0.1 did not write", remedy
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, str(error), remedy) from None
    if data != _checked(values):
        raise damaged(path, "it is not what was written", remedy)
    return values


def damaged(path: Path, why: str, remedy: str) -> ValueError:
    """What to say of a file that is not what was written."""
    return ValueError(f"{path} is damaged ({why}): {remedy}")


def _checked(values: Mapping[str, object]) -> bytes:
    check = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**values, "check": check}, indent=1) + "\n").encode()


def link(file: Path, at: Path) -> None:
    """A second name for a file; a copy, on a disk where a file has one name."""
    try:
        os.link(file, at)
    except OSError:
        with open(file, "rb") as data, writing(at) as copy:
            shutil.copyfileobj(data, copy)


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """A folder that has its name once it is whole. Of all who make it, one does; others fail."""
    if path.exists():
        raise taken(path)
    sweep(path.parent.glob(f".{glob.escape(path.name)}.*.part"))
    part = aside(path)
    part.mkdir(parents=True)
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _THERE:
            raise taken(path) from None
        raise


def taken(path: Path) -> ValueError:
    """What to say of a folder that is there already."""
    return ValueError(
        f"{path} is there already: two runs never share a folder. Go on with it by `fedexperts"
        f" resume {path}`, or choose another folder with --out."
    )


def remove(folder: Path) -> None:
    """A whole folder at once: whoever is killed meanwhile leaves nothing that looks like one."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    os.replace(folder, part)
    shutil.rmtree(part)


def sweep(folders: Iterable[Path]) -> None:
    """Remove those files and folders that a process left half written and that lives no more."""
    for path in folders:
        part = _PART.fullmatch(path.name)
        if part and not (part[1] and _lives(int(part[1]))):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process has this number; one that had ours is gone."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return process != os.getpid()
