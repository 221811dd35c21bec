"""DICOM files are seen through their own window; what could not be shown rightly, or was made to
fill the memory, is refused by its header.
"""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from fedexperts.data.folders import ImageFolders
from fedexperts.data.pixels import decoded

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

STEPS = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64  # 0 .. 4032: twelve bits


def dicom(values: np.ndarray = STEPS, kind: str = ExplicitVRLittleEndian, **said: Any) -> bytes:
    """A DICOM file of these values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = kind
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored = (8 * values.itemsize,) * 2
    made.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in said.items():
        setattr(made, name, value)
    made.add_new(0x7FE00010, "OW", values.tobytes())
    made["PixelData"].is_undefined_length = kind == JPEG2000
    if kind == JPEG2000:
        made.PixelData = pydicom.encaps.encapsulate([bytes(8)])
    file = BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def seen(data: bytes) -> Tensor:
    """The grey of each pixel [8, 8]."""
    pixels = decoded(data, 8)
    assert pixels[0].equal(pixels[1])
    return pixels[0]


def linear(values: np.ndarray, black: float, white: float) -> list[list[int]]:
    """What is between black and white, from 0 to 255."""
    grey = ((values.astype(float) - black) / (white - black) * 255).clip(0, 255)
    rows: list[list[int]] = np.rint(grey).astype(int).tolist()
    return rows


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        decoded(data, 8)
    return str(caught.value)


@pytest.mark.parametrize("kind", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_without_a_window_is_seen_from_its_darkest_to_its_brightest(kind: str) -> None:
    assert seen(dicom(kind=kind)).tolist() == linear(STEPS, 0, 4032)


def test_a_window_says_what_is_black_and_white_after_the_rescale() -> None:
    """CT: stored 0 .. 4032 is -1024 .. 3008 Hounsfield units, seen from -160 to 240."""
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    data = dicom(WindowCenter=40, WindowWidth=400, **rescaled)
    values = STEPS.astype(float) - 1024
    assert seen(data).tolist() == linear(values, 39.5 - 199.5, 39.5 + 199.5)
    exact = dicom(WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT", **rescaled)
    assert seen(exact).tolist() == linear(values, -160, 240)
    steep = dicom(RescaleSlope=2, WindowCenter=[4000, 7], WindowWidth=[2001, 7])
    assert seen(steep).tolist() == linear(STEPS * 2.0, 2999.5, 4999.5)
    threshold = dicom(WindowCenter=2000, WindowWidth=1)
    assert seen(threshold).tolist() == np.where(STEPS < 2000, 0, 255).tolist()


def test_monochrome1_is_turned_into_its_negative() -> None:
    negative = dicom(PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=3000)
    positive = dicom(WindowCenter=2000, WindowWidth=3000)
    assert (255 - seen(negative)).equal(seen(positive))


def test_values_may_have_a_sign_and_other_things_in_bits_that_are_not_stored() -> None:
    signed = STEPS.astype(np.int16) - 2000
    assert seen(dicom(signed)).tolist() == linear(signed, -2000, 2032)
    dirty = STEPS.copy()
    dirty[::2] |= 0x8000
    assert seen(dicom(dirty, BitsStored=12)).tolist() == linear(STEPS, 0, 4032)
    assert seen(dicom((STEPS >> 4).astype(np.uint8))).tolist() == linear(STEPS >> 4, 0, 252)


@pytest.mark.parametrize("planes", [0, 1])
def test_colours_are_kept(planes: int) -> None:
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[..., 0], colours[:, 4:, 2] = 200, 90
    stored = colours.transpose(2, 0, 1) if planes else colours
    data = dicom(
        np.ascontiguousarray(stored),
        Rows=8,
        Columns=8,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=planes,
    )
    assert decoded(data, 8).permute(1, 2, 0).numpy().tolist() == colours.tolist()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            dicom(NumberOfFrames=20),
            "it holds 20 pictures .a multi-frame DICOM., and one is read",
        ),
        (dicom(Rows=60_000, Columns=60_000), "it has 60,000 x 60,000 pixels, and at most"),
        (dicom(Rows=900), "it is damaged: it ends before its pixels do"),
        (dicom(kind=JPEG2000), "are kept as JPEG 2000 Image Compression: save it uncompressed"),
        (dicom(kind=ExplicitVRBigEndian), "are kept as Explicit VR Big Endian: save it"),
        (dicom(PhotometricInterpretation="PALETTE COLOR"), "its colours are PALETTE COLOR"),
        (dicom(BitsAllocated=32), "its pixels have 32 bits"),
        (dicom(BitsStored=99), "more bits are stored than there are"),
        (dicom(WindowCenter=1, WindowWidth=-5), "its window has no width"),
        (dicom(VOILUTFunction="SIGMOID", WindowCenter=1, WindowWidth=5), "its window is a SIGMOID"),
        (dicom().replace(b"\x28\0\x10\0US", b"\x28\0\x0f\0US"), "does not say its Rows"),
        (dicom(Rows=0), "it has no pixels"),
        (dicom()[:150], "it does not say how its pixels are kept"),
        (dicom()[:300], "no picture begins"),
    ],
)
def test_what_cannot_be_shown_rightly_is_refused_with_its_reason(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decoded(data, 8)


def test_a_file_made_to_fill_the_memory_is_refused_before_it_is_unpacked() -> None:
    meta = dicom()[: dicom().index(b"\x28\x00")]
    syntax = b"1.2.840.10008.1.2.1"
    deflated = meta.replace(syntax + b"\0", syntax + b".99") + zlib.compress(bytes(2**20))
    assert refusal(deflated).startswith("it is deflated: save it uncompressed")
    many = struct.pack("<HH2sHL", 9, 1, b"OB", 0, 2**21) + bytes(2**21)
    begins = dicom().index(b"\x28\x00")
    late = dicom()[:begins] + many + dicom()[begins:]
    assert "no picture begins in the first 1,048,576 bytes" in refusal(late)


def test_folders_of_dicom_files_are_data_like_others(tmp_path: Path) -> None:
    for name, turn in (("ill", 0), ("well", 1)):
        (tmp_path / "ward" / name).mkdir(parents=True)
        for number in range(5):
            values = np.rot90(STEPS, turn) + np.uint16(number)
            data = dicom(np.ascontiguousarray(values), PatientID=str(number))
            (tmp_path / "ward" / name / f"{number}.dcm").write_bytes(data)
    made = ImageFolders(path=str(tmp_path), side=8).load(0)
    assert made.by_class() == {"ward": [5, 5]}
    assert isinstance(made.inputs, Tensor)
    assert made.inputs[0, 0, 0, 0] == 0
    assert made.inputs[-1, 0, 0, 0] > 10
