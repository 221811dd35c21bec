"""Image files become pixels as a person would see them, and what cannot be read is named with its reason."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedexperts.data.images import Folder, _room, read

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
    waves = np.stack([127 + 120 * np.sin(height / 4 + k) * np.cos(width / 5) for k in range(3)], axis=2)
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
    Image.new("RGB", (9, 9)).save(tmp_path / "program.eps")  # what another program would have to run
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
        assert f"{name}.png (Image size" in said


def test_of_many_broken_files_ten_are_named_and_the_others_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="13 of 13 .* 9.png .*; and 3 more. Right would be to mend them") as caught:
        read(Folder(tmp_path), [f"{i}.png" for i in range(13)], 8)
    assert "10.png" not in str(caught.value)


def test_more_images_than_fit_into_memory_are_refused_with_what_they_take() -> None:
    with pytest.raises(ValueError, match="150,528,000.0 GB of memory, .* right would be a smaller data.side"):
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
