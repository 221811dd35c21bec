"""Images as they are kept to pixels: whatever the files are, one tensor of uint8 [N, 3, side,
side].

pillow reads them. The middle of each image, as large a square as fits, becomes `side` pixels wide:
what CLIP would see of it. Turned as its EXIF says, grey in three equal channels, transparency on
white, the first picture of several.

A file may be a stranger's, made to fill the memory. So its size is asked before it is read, and the
picture's, which the first bytes say, before a pixel is decoded; large ones are decoded one at a
time, and never held twice. This room does not know classes, clients or folders' meaning.
"""

import hashlib
import stat
import threading
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (
    ".avif",
    ".bmp",
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
# pillow's others are rare, or run other programs
KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# of a picture: 67 million, more than a camera of the size of a full frame makes; 0.6 GB while
# decoded
PIXELS = 2**26
HALF = ("AVIF", "WEBP")  # of these half as many: their decoders hold a picture three times
BYTES = 2**29  # of a picture's file: as many pixels in 64 bits each, not compressed
LARGE = 2**24  # pixels: four phones' screens, seldom met, and decoded one at a time
BAND = 2**20  # pixels that are converted at once
TILE = (322, 323)  # TIFF's tags for the width and length of the pieces that it is decoded in
ORIENTATION = ExifTags.Base.Orientation
_one_at_a_time = threading.Lock()


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


def read(store: Store, names: Sequence[str], side: int) -> tuple[Tensor, dict[str, str]]:
    """Pixels uint8 [N, 3, side, side] of images in a store, and each file's sha256 by its name.

    All are held in memory, 3 side² bytes each: 150 KB at 224. ValueError with all files that cannot
    be read, or if there is no such memory. The newest answer is kept, so that the runs of a study
    do not decode the same files again.
    """
    pixels, hashes, broken = _read(store, side, tuple((name, store.stamp(name)) for name in names))
    if broken:
        whole = (
            f"{len(broken)} of {len(names)} images in {store} cannot be read:"
            f" {several(said(broken))}"
        )
        raise ValueError(f"{whole}. Repair them, or take them out")
    return pixels, hashes


def readable(files: Sequence[Path], side: int) -> tuple[Tensor, dict[str, str]]:
    """Pixels uint8 [n, 3, side, side] of the files that can be read, and why others cannot."""
    here = Folder(Path())
    pixels, hashes, broken = _read(
        here, side, tuple((str(file), here.stamp(str(file))) for file in files)
    )
    return pixels[[str(file) in hashes for file in files]], broken


def decoded(data: bytes, side: int) -> Tensor:
    """Pixels uint8 [1, 3, side, side] of an image's bytes; ValueError if it cannot be read."""
    pixels = _room(1, side)
    try:
        with _quiet():
            _paint(pixels[0], data)
    except Exception as error:  # pillow's readers raise what they like
        raise ValueError(_reason(error)) from None
    return pixels


def thumbnail(pixels: Tensor, most: int) -> bytes:
    """Pixels uint8 [3, side, side] as a PNG, at most so many pixels wide."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((most, most))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


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
    store: Store, side: int, stamped: tuple[tuple[str, Hashable], ...]
) -> tuple[Tensor, dict[str, str], dict[str, str]]:
    """Pixels, the hashes of the images that could be read, the reasons of those that could not."""
    files = [file for file, _ in stamped]
    pixels, hashes, broken = _room(len(files), side), {}, {}
    with _quiet(), ThreadPoolExecutor() as pool:
        filled = [
            pool.submit(_fill, pixels[position], store, file) for position, file in enumerate(files)
        ]
        for file, done in zip(files, filled, strict=True):
            if error := done.exception():
                broken[file] = _reason(error)
            else:
                hashes[file] = done.result()
    return pixels, hashes, broken


@contextmanager
def _quiet() -> Iterator[None]:
    """pillow's remarks are not heard; what is too large is refused in `_paint`."""
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


def _fill(into: Tensor, store: Store, name: str) -> str:
    """Write an image's pixels into uint8 [3, side, side]; its file's sha256."""
    data = store.data(name)
    _paint(into, data)
    return hashlib.sha256(data).hexdigest()


def _paint(into: Tensor, data: bytes) -> None:
    with Image.open(BytesIO(data), formats=KINDS) as image:
        pixels = _check_size(image)
        with _one_at_a_time if pixels > LARGE else nullcontext():
            into.copy_(torch.from_numpy(np.array(_square(image, into.shape[-1]))).permute(2, 0, 1))


def _check_size(image: Image.Image) -> int:
    """The pixels that decoding will hold, before it does; ValueError if they are too many."""
    tags = getattr(image, "tag_v2", {})
    tile = tuple(int(tags.get(tag, 0)) for tag in TILE)
    most = PIXELS // 2 if image.format in HALF else PIXELS
    for what, (across, down) in {"it": image.size, "a tile of it": tile}.items():
        if across * down > most:
            raise ValueError(f"{what} has {across:,} x {down:,} pixels, and {_at_most(most)}")
    return image.width * image.height


def _at_most(pixels: int) -> str:
    return f"at most {pixels:,} are decoded: save it smaller"


def _square(image: Image.Image, side: int) -> Image.Image:
    # a large JPEG is decoded at an eighth, quarter or half: four times faster
    image.draft(None, (2 * side, 2 * side))
    middle = _middle(image, side)
    middle.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return ImageOps.fit(ImageOps.exif_transpose(middle), (side, side), Image.Resampling.BICUBIC)


def _middle(image: Image.Image, side: int) -> Image.Image:
    """The middle square and some more, for the filter, in RGB; large images by a whole factor less.

    It is converted band by band, so that a large image is not held a second time.
    """
    edge = min(image.size)
    left, top = (max(0, (length - edge) // 2 - edge // 2 - 4) for length in image.size)
    right, bottom = image.width - left, image.height - top
    factor = max(1, edge // (4 * side))
    rows = factor * max(1, BAND // (factor * (right - left)))
    smaller = Image.new("RGB", (-((left - right) // factor), -((top - bottom) // factor)))
    for first in range(top, bottom, rows):
        band = _rgb(image.crop((left, first, right, min(first + rows, bottom))))
        smaller.paste(band.reduce(factor), (0, (first - top) // factor))
    return smaller


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # pillow itself would show all but the darkest as white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels have 32 bits, and nothing says which is white: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        seen = Image.new("RGBA", image.size, "white")
        seen.alpha_composite(image.convert("RGBA"))
        image = seen
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a kind that is read here, {', '.join(KINDS)}"
    if isinstance(error, Image.DecompressionBombError):  # pillow's own limit, above ours
        return f"it has far too many pixels, and {_at_most(PIXELS)}"
    if isinstance(error, MemoryError):
        return "this machine has no memory for it: save it smaller"
    said = str(error)
    if "MAX_TEXT" in said:
        return (
            "its comments or its profile of colours unpack to more than is read: save it without"
            " them"
        )
    if "decoder error" in said:
        return f"it is damaged: {said}"
    return said or type(error).__name__
