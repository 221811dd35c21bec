"""Images as they are kept to pixels: of many files, one tensor of uint8 [N, 3, side, side].

How one picture is read is in pixels.py. A file may be a stranger's, so its size is asked before it
is read. This room does not know classes, clients or folders' meaning.
"""

import hashlib
import stat
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from . import pixels as picture

SUFFIXES = (
    ".avif",
    ".bmp",
    ".dcm",
    ".dicom",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
BYTES = 2**29  # of a picture's file: as many pixels in 64 bits each, not compressed
BATCH = 64  # images that are measured at once
FLAT = 5  # of 255: the standard deviation below which a picture is nearly of one colour


class Store(Protocol):
    """Where images lie, each by a name; `str` says where. Equal stores have the same images."""

    def __hash__(self) -> int: ...

    def data(self, name: str) -> bytes:
        """An image, as JPEG, PNG or the like; OSError or ValueError if there is none."""
        ...

    def stamp(self, name: str) -> Hashable:
        """What would change if the image did."""
        ...


@dataclass(frozen=True)
class Folder:
    """Files below a folder, named by their paths in there."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def data(self, name: str) -> bytes:
        about = (path := self.root / name).stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no file")  # a pipe would never end
        if about.st_size > BYTES:
            raise ValueError(
                f"it has {about.st_size:,} bytes, and at most {BYTES:,} are read: save it smaller"
            )
        return path.read_bytes()

    def stamp(self, name: str) -> Hashable:
        """A file's size and time of change; None for a file that is not there."""
        if not (path := self.root / name).is_file():
            return None
        about = path.stat()
        return about.st_size, about.st_mtime_ns


def read(
    store: Store, names: Sequence[str], side: int, bits: int = 0
) -> tuple[Tensor, dict[str, str]]:
    """Pixels uint8 [N, 3, side, side] of images in a store, and each file's sha256 by its name.

    All are held in memory, 3 side² bytes each: 150 KB at 224. ValueError with all files that cannot
    be read, or if there is no such memory. The newest answer is kept, so that the runs of a study
    do not decode the same files again.
    """
    pixels, hashes, broken = _read(
        store, side, bits, tuple((name, store.stamp(name)) for name in names)
    )
    if broken:
        whole = (
            f"{len(broken)} of {len(names)} images in {store} cannot be read:"
            f" {several(said(broken))}"
        )
        raise ValueError(f"{whole}. Repair them, or take them out")
    return pixels, hashes


def readable(files: Sequence[Path], side: int, bits: int = 0) -> tuple[Tensor, dict[str, str]]:
    """Pixels uint8 [n, 3, side, side] of the files that can be read, and why others cannot."""
    here = Folder(Path())
    pixels, hashes, broken = _read(
        here, side, bits, tuple((str(file), here.stamp(str(file))) for file in files)
    )
    return pixels[[str(file) in hashes for file in files]], broken


def decoded(data: bytes, side: int, bits: int = 0) -> Tensor:
    """Pixels uint8 [1, 3, side, side] of an image's bytes; ValueError if it cannot be read."""
    with _quiet():
        return picture.decoded(data, side, bits)[None]


def flat(pixels: Tensor) -> list[int]:
    """Which of the images uint8 [N, 3, H, W] are nearly of one colour."""
    spread = [batch.flatten(2).float().std(-1).amax(-1) for batch in pixels.split(BATCH)]
    return torch.cat(spread).lt(FLAT).nonzero()[:, 0].tolist()


def said(broken: Mapping[str, str]) -> list[str]:
    """Files, each with its reason."""
    return [f"{file} ({why})" for file, why in broken.items()]


def several(names: Iterable[str], most: int = 10) -> str:
    """The first of many names, and how many more there are."""
    listed = list(names)
    shown = listed[:most]
    if len(listed) > most:
        shown.append(f"and {len(listed) - most} more")
    return "; ".join(shown)


@lru_cache(maxsize=1)
def _read(
    store: Store, side: int, bits: int, stamped: tuple[tuple[str, Hashable], ...]
) -> tuple[Tensor, dict[str, str], dict[str, str]]:
    """Pixels, the hashes of the images that could be read, the reasons of those that could not."""
    files = [file for file, _ in stamped]
    pixels, hashes, broken = _room(len(files), side), {}, {}
    with _quiet(), ThreadPoolExecutor() as pool:
        filled = [
            pool.submit(_fill, pixels[position], store, file, bits)
            for position, file in enumerate(files)
        ]
        for file, done in zip(files, filled, strict=True):
            if error := done.exception():
                broken[file] = _reason(error)
            else:
                hashes[file] = done.result()
    return pixels, hashes, broken


@contextmanager
def _quiet() -> Iterator[None]:
    """pillow's remarks are not heard; what is too large is refused before it is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _room(count: int, side: int) -> Tensor:
    try:
        return torch.empty(count, 3, side, side, dtype=torch.uint8)
    except RuntimeError:
        size = 3 * side**2 * count / 1e9
        raise ValueError(
            f"{count:,} images of {side} x {side} pixels take {size:,.1f} GB of memory, which this"
            " machine does not give: use a smaller data.side, or fewer images"
        ) from None


def _fill(into: Tensor, store: Store, name: str, bits: int) -> str:
    """Write an image's pixels into uint8 [3, side, side]; its file's sha256."""
    data = store.data(name)
    into.copy_(picture.decoded(data, into.shape[-1], bits))
    return hashlib.sha256(data).hexdigest()


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error) or type(error).__name__
