"""A picture's bytes to pixels uint8 [3, side, side].

The middle of it, as large a square as fits, becomes `side` pixels wide: what CLIP would see of it.
Turned as its EXIF says, grey in three equal channels, transparency on white, the first picture of
several. pillow reads it, or pydicom the header of a DICOM file.

It may be a stranger's, made to fill the memory. So its size, which the first bytes say, is asked
before a pixel is decoded; large ones are decoded one at a time, and never held twice. This file
imports nothing of ours: an export takes it along, and so reads as a run does.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PpmImagePlugin, UnidentifiedImageError
from torch import Tensor

# pillow's others are rare, or run other programs
KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# of a picture: 67 million, more than a camera of the size of a full frame makes; 0.6 GB while
# decoded
PIXELS = 2**26
HALF = ("AVIF", "WEBP")  # of these half as many: their decoders hold a picture three times
LARGE = 2**24  # pixels: four phones' screens, seldom met, and decoded one at a time
BAND = 2**20  # pixels that are converted at once
TILE = (322, 323)  # TIFF's tags for the width and length of the pieces that it is decoded in
ORIENTATION = ExifTags.Base.Orientation
FULL = 2**16 - 1  # the largest value of 16 bits
_one_at_a_time = threading.Lock()

Span = tuple[float, float]  # the values that are black and white
Values = np.ndarray[Any, Any]


def decoded(data: bytes, side: int, bits: int = 0) -> Tensor:
    """Pixels of a picture's bytes; ValueError, in words, if it cannot be read.

    Grey of 16 bits is white at 2^bits - 1 or, with 0, at the picture's brightest pixel, and black
    at its darkest.
    """
    try:
        square = _dicom(data, side) if data[128:132] == b"DICM" else _picture(data, side, bits)
    except Exception as error:  # readers raise what they like
        raise ValueError(_reason(error)) from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def thumbnail(pixels: Tensor, most: int) -> bytes:
    """Pixels uint8 [3, side, side] as a PNG, at most so many pixels wide."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((most, most))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _picture(data: bytes, side: int, bits: int) -> Image.Image:
    with Image.open(BytesIO(data), formats=KINDS) as image:
        tags = getattr(image, "tag_v2", {})
        across, down = (int(tags.get(tag, 0)) for tag in TILE)
        most = PIXELS // 2 if image.format in HALF else PIXELS
        _check_size("it", *image.size, most)
        _check_size("a tile of it", across, down, most)
        with _turn(image.size):
            return _square(image, side, bits)


def _check_size(what: str, width: int, height: int, most: int = PIXELS) -> None:
    """ValueError if decoding would hold too many pixels, before it does."""
    if width * height > most:
        raise ValueError(f"{what} has {width:,} x {height:,} pixels, and {_at_most(most)}")


def _at_most(pixels: int) -> str:
    return f"at most {pixels:,} are decoded: save it smaller"


def _turn(size: tuple[int, int]) -> AbstractContextManager[object]:
    """The one turn that large pictures have between them."""
    if size[0] * size[1] > LARGE:
        return _one_at_a_time
    return nullcontext()


def _square(image: Image.Image, side: int, bits: int) -> Image.Image:
    # a large JPEG is decoded at an eighth, quarter or half: four times faster
    image.draft(None, (2 * side, 2 * side))
    span = _span(image, bits)
    middle = _middle(image, side, span)
    middle.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return ImageOps.fit(ImageOps.exif_transpose(middle), (side, side), Image.Resampling.BICUBIC)


def _middle(image: Image.Image, side: int, span: Span | None) -> Image.Image:
    """The middle square and some more, for the filter, in RGB; large images by a whole factor less.

    It is converted band by band, so that a large image is not held a second time.
    """
    edge = min(image.size)
    left, top = (max(0, (length - edge) // 2 - edge // 2 - 4) for length in image.size)
    right, bottom = image.width - left, image.height - top
    factor = max(1, edge // (4 * side))
    smaller = Image.new("RGB", (-((left - right) // factor), -((top - bottom) // factor)))
    for first, last in _bands(top, bottom, right - left, factor):
        band = _rgb(image.crop((left, first, right, last)), span)
        smaller.paste(band.reduce(factor), (0, (first - top) // factor))
    return smaller


def _bands(top: int, bottom: int, width: int, factor: int = 1) -> Iterator[tuple[int, int]]:
    """The first and last row of each band, whose rows are a multiple of `factor`."""
    rows = factor * max(1, BAND // (factor * width))
    for first in range(top, bottom, rows):
        yield first, min(first + rows, bottom)


def _span(image: Image.Image, bits: int) -> Span | None:
    """The values that are black and white in grey of 16 bits; None: it is not."""
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.mode == "I":
        if image.tile[0].codec_name != "raw":
            return 0, FULL  # its header says what is white, and pillow obeys
    elif not image.mode.startswith("I;16"):
        return None
    if bits:
        return 0, 2**bits - 1

    def band(rows: tuple[int, int]) -> Values:
        return np.asarray(image.crop((0, rows[0], image.width, rows[1])))

    return _extremes(band, image.size)


def _extremes(band: Callable[[tuple[int, int]], Values], size: tuple[int, int]) -> Span:
    """The darkest and the brightest value; of a picture of one value, what 16 bits can have."""
    width, height = size
    extremes = [(values.min(), values.max()) for values in map(band, _bands(0, height, width))]
    darkest = float(min(low for low, _ in extremes))
    brightest = float(max(high for _, high in extremes))
    if darkest == brightest:
        return 0, FULL
    return darkest, brightest


def _grey(values: Values, span: Span) -> Values:
    """Values as uint8, 0 at black and below, 255 at white and above."""
    black, white = span
    steps = 255 / max(white - black, 1e-6)  # black and white may be one: a threshold
    grey: Values = np.rint(((values.astype(np.float32) - black) * steps).clip(0, 255))
    return grey.astype(np.uint8)


def _rgb(image: Image.Image, span: Span | None) -> Image.Image:
    if span:
        return Image.fromarray(_grey(np.asarray(image), span)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels have 32 bits or a sign, and nothing says which is white: save it with 8 or"
            " 16 bits"
        )
    if image.has_transparency_data:
        seen = Image.new("RGBA", image.size, "white")
        seen.alpha_composite(image.convert("RGBA"))
        image = seen
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a kind that is read here, {', '.join(KINDS)} or DICOM"
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
    ours = type(error) in (ValueError, OSError)  # and pillow's, in words
    if "decoder error" in said or not ours:
        return f"it is damaged: {said}"
    return said


# DICOM

HEADER = 2**20  # bytes in which a DICOM file must have said all but its pixels
PIXEL_DATA = b"\xe0\x7f\x10\x00"  # the tag
# of kinds whose pixels lie as they are: the bytes between that tag's beginning and the pixels
PLAIN = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12}
NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated")
UNPACKED = "save it uncompressed (Explicit VR Little Endian)"
DEFLATED = b"1.2.840.10008.1.2.1.99"


def _dicom(data: bytes, side: int) -> Image.Image:
    """The middle square of a DICOM file, through its own window."""
    header, start = _header(data)
    size = int(header.Columns), int(header.Rows)
    _check_size("it", *size)
    if min(size) < 1:
        raise ValueError("it has no pixels")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(
            f"it holds {frames:,} pictures (a multi-frame DICOM), and one is read: save the one"
            " that counts as a file of its own"
        )
    colours = str(header.PhotometricInterpretation)
    samples = {"MONOCHROME1": 1, "MONOCHROME2": 1, "RGB": 3}.get(colours)
    if samples is None:
        raise ValueError(f"its colours are {colours}: save it as MONOCHROME2 or RGB")
    with _turn(size):
        values = _stored(header, data, start, (size[1], size[0], samples))
        if samples == 3:
            return _square(Image.fromarray(values), side, 0)
        return _square(Image.fromarray(_windowed(header, values[..., 0])), side, 0)


def _header(data: bytes) -> tuple[Any, int]:
    """What a DICOM file says before its pixels, and where these begin."""
    try:
        from pydicom.filereader import read_partial  # few have such files
    except ImportError:
        raise ValueError(
            "it is a DICOM file, which needs pydicom; type: pip install 'fedexperts[dicom]'"
        ) from None
    if DEFLATED in data[:HEADER]:  # pydicom would unpack it, however large
        raise ValueError(f"it is deflated: {UNPACKED}")
    head = BytesIO(data[:HEADER])
    header = read_partial(head, stop_when=lambda tag, _, length: tag >= 0x7FE00008)
    start = head.tell()
    kind = header.file_meta.get("TransferSyntaxUID", "")
    if not kind:
        raise ValueError("it is damaged: it does not say how its pixels are kept")
    if kind not in PLAIN:
        raise ValueError(f"its pixels are kept as {kind.name}: {UNPACKED}")
    if data[start : start + 4] != PIXEL_DATA:
        raise ValueError(f"no picture begins in the first {HEADER:,} bytes of this DICOM file")
    if lacking := [name for name in NEEDED if name not in header]:
        raise ValueError(f"it is damaged: it does not say its {', '.join(lacking)}")
    return header, start + PLAIN[kind]


def _stored(header: Any, data: bytes, start: int, shape: tuple[int, int, int]) -> Values:
    """The values of the pixels [H, W, samples], as they were stored."""
    allocated, signed = int(header.BitsAllocated), bool(header.get("PixelRepresentation"))
    if allocated not in ((8,) if shape[2] == 3 else (8, 16)):
        raise ValueError(f"its pixels have {allocated} bits: save it with 8, or 16 if it is grey")
    kind = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    count = math.prod(shape)
    if len(data) < start + count * kind.itemsize:
        raise ValueError("it is damaged: it ends before its pixels do")
    values = np.frombuffer(data, kind, count, start)
    if shape[2] > 1 and header.get("PlanarConfiguration"):
        return values.reshape(shape[2], *shape[:2]).transpose(1, 2, 0).copy()
    return values.reshape(shape)


def _windowed(header: Any, values: Values) -> Values:
    """Stored values [H, W] as they are to be seen: uint8."""
    slope = float(header.get("RescaleSlope") or 1)
    intercept = float(header.get("RescaleIntercept") or 0)
    unused = int(header.BitsAllocated) - int(header.get("BitsStored") or header.BitsAllocated)
    if not 0 <= unused < values.itemsize * 8:
        raise ValueError("it says that more bits are stored than there are")

    def band(rows: tuple[int, int]) -> Values:
        stored = values[slice(*rows)] << unused >> unused  # other things may lie in the upper bits
        return stored.astype(np.float32) * slope + intercept

    height, width = values.shape
    span = _window(header) or _extremes(band, (width, height))
    if not all(map(math.isfinite, (slope, intercept, *span))):
        raise ValueError("its rescale or its window is no number")
    seen = np.empty(values.shape, np.uint8)
    for rows in _bands(0, height, width):
        seen[slice(*rows)] = _grey(band(rows), span)
    if header.PhotometricInterpretation == "MONOCHROME1":
        return 255 - seen
    return seen


def _window(header: Any) -> Span | None:
    """Black and white as the first window of a DICOM file has them; None: it has none."""
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    curve = str(header.get("VOILUTFunction") or "LINEAR")
    if curve == "LINEAR":  # DICOM PS3.3 C.11.2.1.2
        centre, width = centre - 0.5, width - 1
    elif curve != "LINEAR_EXACT":
        raise ValueError(f"its window is a {curve}, expected LINEAR")
    if width < 0:
        raise ValueError("its window has no width")
    return centre - width / 2, centre + width / 2


def _first(value: Any) -> float | None:
    """The first of several numbers; None: there is none."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float)) else np.ravel(value)[0])
