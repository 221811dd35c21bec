"""Image files become pixels as a person would see them, and what cannot be read is named with its
reason.
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from fedexperts.data.images import BYTES, Folder, _room, flat, read

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def one(folder: Path, name: str, side: int = 8) -> Tensor:
    """The pixels [3, side, side] of a file."""
    return read(Folder(folder), [name], side)[0][0]


def colour(pixels: Tensor) -> tuple[int, ...]:
    """The only colour in pixels [3, H, W]."""
    found = pixels.flatten(1).unique(dim=1)
    assert found.shape[1] == 1, found
    return tuple(found[:, 0].tolist())


def test_the_middle_square_of_an_image_is_what_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste(GREEN, (18, 0, 42, 20))
    wide.save(tmp_path / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "high.png")
    assert colour(one(tmp_path, "wide.png")) == colour(one(tmp_path, "high.png")) == GREEN


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (8, 8), (500, 400)])
def test_every_size_becomes_one_size(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, BLUE).save(tmp_path / "a.png")
    assert colour(one(tmp_path, "a.png")) == BLUE


@pytest.mark.parametrize(
    ("mode", "fill", "seen"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, WHITE),
        ("I;16", 32768, (128, 128, 128)),  # 16 bits: pillow itself would make this white
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("LA", (0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ],
)
def test_grey_has_three_channels_and_what_is_transparent_shows_white(
    tmp_path: Path, mode: str, fill: int, seen: tuple[int, ...]
) -> None:
    Image.new(mode, (9, 9), fill).save(tmp_path / "a.png")
    assert colour(one(tmp_path, "a.png")) == seen


def test_a_palette_with_a_transparent_colour_and_inks_of_print_are_read(tmp_path: Path) -> None:
    flat = Image.new("P", (9, 9), 3)
    flat.putpalette([0] * 9 + [255, 0, 0])
    flat.save(tmp_path / "clear.png", transparency=3)
    flat.save(tmp_path / "solid.gif")
    Image.new("CMYK", (9, 9), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert colour(one(tmp_path, "clear.png")) == WHITE
    assert colour(one(tmp_path, "solid.gif")) == RED
    assert colour(one(tmp_path, "print.jpg")) == WHITE


def test_a_photograph_is_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    lying = Image.new("RGB", (16, 16), RED)
    lying.paste(BLUE, (0, 0, 8, 16))  # blue on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: left comes up
    lying.save(tmp_path / "a.png", exif=exif)
    pixels = one(tmp_path, "a.png")
    assert colour(pixels[:, :3]) == BLUE
    assert colour(pixels[:, 5:]) == RED


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (9, 9), each) for each in (GREEN, RED))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "a.tiff", save_all=True, append_images=[second])
    assert colour(one(tmp_path, "a.gif")) == colour(one(tmp_path, "a.tiff")) == GREEN


def test_a_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path: Path) -> None:
    height, width = np.mgrid[:160, :200]
    waves = np.stack(
        [127 + 120 * np.sin(height / 4 + k) * np.cos(width / 5) for k in range(3)], axis=2
    )
    image = Image.fromarray(waves.astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    fast, whole = (one(tmp_path, name, 32).float() for name in ("a.jpg", "a.png"))
    assert (fast - whole).abs().max() < 6


def test_all_files_that_cannot_be_read_are_named_at_once_with_their_reasons(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), RED).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>not found</html>")
    Image.new("F", (9, 9), 0.5).save(tmp_path / "float.tiff")
    # what another program would have to run
    Image.new("RGB", (9, 9)).save(tmp_path / "program.eps")
    (tmp_path / "program.eps").rename(tmp_path / "program.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "vast.png")
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")
    names = [
        "whole.jpg",
        "half.jpg",
        "empty.png",
        "page.png",
        "float.tiff",
        "program.png",
        "vast.png",
        "bomb.png",
        "gone.png",
    ]
    with pytest.raises(ValueError, match="8 of 9 images in .* cannot be read") as caught:
        read(Folder(tmp_path), names, 8)
    said = str(caught.value)
    assert "whole.jpg" not in said
    assert "half.jpg (image file is truncated" in said
    assert "gone.png (no such file)" in said
    assert "float.tiff (its pixels have 32 bits" in said
    for name in ("empty", "page", "program"):
        assert f"{name}.png (not an image of a kind that is read here, AVIF, BMP" in said
    for name in ("vast", "bomb"):
        assert f"{name}.png (it has" in said


def test_of_many_broken_files_ten_are_named_and_the_others_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="13 of 13 .* 9.png .*; and 3 more. Repair them") as caught:
        read(Folder(tmp_path), [f"{i}.png" for i in range(13)], 8)
    assert "10.png" not in str(caught.value)


def test_more_images_than_fit_into_memory_are_refused_with_what_they_take() -> None:
    with pytest.raises(ValueError, match="150,528,000.0 GB of memory, .* use a smaller data.side"):
        _room(10**12, 224)


def test_files_are_hashed_and_decoded_once_until_one_changes(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), RED).save(tmp_path / "a.png")
    pixels, hashes = read(Folder(tmp_path), ["a.png"], 8)
    again, same = read(Folder(tmp_path), ["a.png"], 8)
    assert again is pixels
    assert same == hashes
    Image.new("RGB", (9, 10), BLUE).save(tmp_path / "a.png")
    changed, others = read(Folder(tmp_path), ["a.png"], 8)
    assert colour(changed[0]) == BLUE
    assert others != hashes
    assert not torch.equal(changed, pixels)


# ---- what would fill the memory


def bomb(path: Path, mode: str = "1", side: int = 8300, **options: object) -> Path:
    """A picture of many pixels and few bytes."""
    Image.new(mode, (side, side)).save(path, **options)  # type: ignore[arg-type]
    assert path.stat().st_size < 200_000
    return path


def tiled(path: Path, side: int) -> Path:
    """A small TIFF that says it is made of one tile of many pixels."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    return path


def refusal(path: Path) -> str:
    """Why a file is not read."""
    with pytest.raises(ValueError, match="1 of 1 images in") as caught:
        read(Folder(path.parent), [path.name], 8)
    return str(caught.value)


def test_a_picture_is_refused_by_its_header_before_it_is_decoded(tmp_path: Path) -> None:
    at_most = "and at most 67,108,864 are decoded: save it smaller"
    assert f"it has 8,300 x 8,300 pixels, {at_most}" in refusal(bomb(tmp_path / "a.png"))
    assert f"it has 8,300 x 8,300 pixels, {at_most}" in refusal(
        bomb(tmp_path / "a.tiff", compression="group4")
    )
    assert f"it has far too many pixels, {at_most}" in refusal(
        bomb(tmp_path / "b.png", side=14_000)
    )
    assert f"a tile of it has 16,384 x 16,384 pixels, {at_most}" in refusal(
        tiled(tmp_path / "b.tiff", 16_384)
    )
    (tmp_path / "a.ppm").write_bytes(b"P5 9000 9000 255\n")
    assert f"it has 9,000 x 9,000 pixels, {at_most}" in refusal(tmp_path / "a.ppm")
    small = bomb(tmp_path / "a.webp", "RGB", 5800, lossless=True, method=0)
    assert "it has 5,800 x 5,800 pixels, and at most 33,554,432 are decoded" in refusal(small)


def test_comments_and_profiles_that_unpack_to_much_are_refused_and_other_kinds_are_not_tried(
    tmp_path: Path,
) -> None:
    comments = PngImagePlugin.PngInfo()
    comments.add_text("a", "x" * 2**24, zip=True)
    Image.new("L", (9, 9)).save(tmp_path / "text.png", pnginfo=comments)
    Image.new("L", (9, 9)).save(tmp_path / "profile.png", icc_profile=bytes(2**24))
    for name in ("text.png", "profile.png"):
        assert (
            f"{name} (its comments or its profile of colours unpack to more than is read"
            in refusal(tmp_path / name)
        )
    (tmp_path / "drawing.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert "not an image of a kind that is read here" in refusal(tmp_path / "drawing.png")


def test_a_file_of_many_bytes_and_one_without_end_are_not_opened(tmp_path: Path) -> None:
    with open(tmp_path / "vast.png", "wb") as file:
        file.truncate(BYTES + 1)  # no byte of it is on the disk
    assert "it has 536,870,913 bytes, and at most 536,870,912 are read: save it smaller" in refusal(
        tmp_path / "vast.png"
    )
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png (it is no file)" in refusal(tmp_path / "pipe.png")


MEASURE = """
import resource, sys
from pathlib import Path
from fedexperts.data.images import Folder, readable

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB

Folder(Path())
readable([Path(sys.argv[1])], 224)
before = peak()
_, broken = readable([Path(name) for name in sys.argv[2:]], 224)
print(peak() - before, len(broken))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="counts memory in KiB, as Linux does"
)
def test_the_largest_pictures_cost_little_memory_and_are_decoded_one_at_a_time(
    tmp_path: Path,
) -> None:
    """33 million pixels each: 34 MB in grey, 134 MB in colour. In the plain way it is 400 MB each,
    all at once.
    """
    Image.new("L", (9, 9)).save(tmp_path / "first.png")
    names = [
        bomb(tmp_path / f"{i}.png", mode, 5792) for i, mode in enumerate(("1", "P", "RGB", "RGB"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "first.png"), *map(str, names)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    mebibytes, broken = map(int, done.stdout.split())
    assert broken == 0
    assert mebibytes < 200


def test_a_large_picture_looks_as_it_does_when_it_is_shrunk_in_one_go(tmp_path: Path) -> None:
    """Band by band and by a whole factor first, for all kinds of pixels, and of a long picture the
    middle.
    """
    height, width = np.mgrid[:1500, :4000]
    waves = np.stack(
        [127 + 120 * np.sin(height / 40 + k) * np.cos(width / 50) for k in range(4)], axis=2
    )
    whole = Image.fromarray(waves.astype(np.uint8), "RGBA")
    for mode in ("RGB", "L", "RGBA"):
        whole.convert(mode).save(tmp_path / f"{mode}.png", compress_level=1)
        white = Image.new("RGBA", whole.size, "white")
        white.alpha_composite(whole.convert(mode).convert("RGBA"))
        expected = ImageOps.fit(white.convert("RGB"), (64, 64), Image.Resampling.BICUBIC)
        found = one(tmp_path, f"{mode}.png", 64).permute(1, 2, 0).float()
        assert (found - torch.from_numpy(np.array(expected)).float()).abs().max() <= 4


# ---- grey of 16 bits


def ramp(most: int, least: int = 0) -> np.ndarray:
    """Grey values [9, 9] from the least to the most."""
    return np.linspace(least, most, 81).round().astype(np.uint16).reshape(9, 9)


def pgm(path: Path, values: np.ndarray, most: int) -> Path:
    """A PGM that says which value is white."""
    path.write_bytes(f"P5 9 9 {most}\n".encode() + values.astype(">u2").tobytes())
    return path


def ends(pixels: Tensor) -> tuple[int, int]:
    return int(pixels.min()), int(pixels.max())


@pytest.mark.parametrize("name", ["a.png", "little.tiff", "big.tiff", "a.pgm"])
def test_twelve_bits_in_sixteen_are_seen_from_their_darkest_to_their_brightest(
    tmp_path: Path, name: str
) -> None:
    values = ramp(4000, least=100)
    if name == "a.pgm":
        pgm(tmp_path / name, values, 65535)
    else:
        order = ">u2" if name.startswith("big") else "<u2"
        Image.fromarray(values.astype(order)).save(tmp_path / name)
    assert ends(one(tmp_path, name, side=9)) == (0, 255)
    known = read(Folder(tmp_path), [name], 9, bits=12)[0][0]
    assert ends(known) == (round(100 * 255 / 4095), round(4000 * 255 / 4095))
    whole = read(Folder(tmp_path), [name], 9, bits=16)[0][0]
    assert ends(whole) == (0, round(4000 * 255 / 65535))


def test_a_pgm_that_says_what_is_white_is_believed(tmp_path: Path) -> None:
    pgm(tmp_path / "a.pgm", ramp(2000), 4095)
    plain = " ".join(map(str, ramp(2000).flatten()))
    (tmp_path / "b.pgm").write_text(f"P2 9 9 4095\n{plain}\n")
    for name in ("a.pgm", "b.pgm"):
        assert ends(one(tmp_path, name, side=9)) == (0, round(2000 * 255 / 4095))


def test_the_range_of_a_large_picture_is_that_of_all_its_bands(tmp_path: Path) -> None:
    values = np.full((2100, 1100), 2000, np.uint16)
    values[:9], values[-9:] = 0, 4000
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert colour(one(tmp_path, "a.tiff")[:, 3:5]) == (128, 128, 128)


def test_pictures_in_which_there_is_next_to_nothing_to_see_are_known(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), RED).save(tmp_path / "plain.png")
    Image.fromarray(ramp(4000)).save(tmp_path / "black.png")
    half = Image.new("RGB", (40, 40), RED)
    half.paste(BLUE, (0, 0, 20, 40))
    half.save(tmp_path / "half.png")
    names = ["half.png", "plain.png", "black.png"]
    assert flat(read(Folder(tmp_path), names, 8, bits=16)[0]) == [1, 2]
    assert flat(read(Folder(tmp_path), names, 8)[0]) == [1]
