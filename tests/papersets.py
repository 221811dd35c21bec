"""Copies of the papers' sets: a few rows with the columns of their pages, each split a parquet
file, as on the hub.
"""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedexperts.data.sets import DOMAINNET, OFFICE

EACH = 20  # rows of a class
NAMES: dict[str, list[str]] = {  # classes of the copies, as the sets name them: a few of theirs
    "flowers102": [
        "pink primrose",
        "hard-leaved pocket orchid",
        "colt's foot",
        "pink-yellow dahlia?",
    ],
    "oxford-pets": ["abyssinian", "american_bulldog", "basset_hound", "beagle"],
    "food101": ["apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio"],
    "caltech101": ["airplanes", "car_side", "faces", "faces_easy", "leopards", "motorbikes"],
    "dtd": ["banded", "blotchy", "polka-dotted", "zigzagged"],
    "cifar10": ["airplane", "automobile", "bird", "cat"],
    "cifar100": ["apple", "aquarium_fish", "couch", "cra"],
    "domainnet": ["axe", *DOMAINNET.split()],
    "office-caltech10": OFFICE.split(),
    "femnist": ["0", "9", "A", "a"],
    "sentiment140": ["0", "2", "4"],
    "yelp": ["1 star", "2 star", "3 stars", "4 stars", "5 stars"],
}
WORDS = {  # what CLIP is to read, where it is not the name with spaces for underscores
    "pink-yellow dahlia?": "pink-yellow dahlia",
    "airplanes": "airplane",
    "faces": "face",
    "leopards": "leopard",
    "motorbikes": "motorbike",
    "cra": "crab",
    "2 star": "2 stars",
}
SENTIMENT = {"0": "negative", "4": "positive"}
OUT = {"faces_easy", "axe", "2"}  # classes that the papers leave out
ONE = ("caltech101", "office-caltech10", "femnist")  # sets of one split
SPLITS = dict.fromkeys(ONE, ("train",)) | {
    "food101": ("train", "validation"),
    "flowers102": ("train", "validation", "test"),
}
GROUPS = {
    "domainnet": ("domain", ["clipart", "real"]),
    "office-caltech10": ("domain", ["amazon", "dslr", "webcam"]),
    "femnist": ("writer_id", [f"f{i:04}_14" for i in range(4)]),
    "sentiment140": ("user", ["ann", "bob"]),
}
OTHERS = {  # columns that are there as well
    "oxford-pets": ("image_id", "x"),
    "cifar100": ("coarse_label", 3),
    "femnist": ("hsf_id", 7),
    "sentiment140": ("query", "NO_QUERY"),
}
COLUMNS = {
    "cifar10": ("img", "label"),
    "cifar100": ("img", "fine_label"),
    "femnist": ("image", "character"),
} | {
    "sentiment140": ("text", "sentiment"),
    "yelp": ("text", "label"),
}


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (12, 9), shade).save(file, "PNG")
    return file.getvalue()


def sight(number: int, row: int) -> int:
    """The class that a row's image or text is of: its own or, in every fifth row, the one
    before.
    """
    return number - (row % 5 == 0 and number > 0)


def written(dataset: str, folder: Path) -> Path:
    """A copy of a set."""
    datasets = pytest.importorskip("datasets")
    names, (shown, label) = NAMES[dataset], COLUMNS.get(dataset, ("image", "label"))
    rows = [(number, row) for row in range(EACH) for number in range(len(names))]
    if shown == "text":
        whats: list[Any] = [f"so {names[sight(n, row)]}, said {row} of {n}" for n, row in rows]
    else:
        whats = [{"bytes": png(9 * sight(n, row)), "path": None} for n, row in rows]
    features = {shown: datasets.Value("string") if shown == "text" else datasets.Image()}
    columns: dict[str, list[Any]] = {shown: whats, label: [number for number, _ in rows]}
    features[label] = datasets.ClassLabel(names=names)
    if dataset == "sentiment140":
        columns[label], features[label] = (
            [int(names[number]) for number, _ in rows],
            datasets.Value("int32"),
        )
    if dataset in GROUPS:
        group, groups = GROUPS[dataset]
        columns[group] = [groups[row % len(groups)] for _, row in rows]
        features[group] = datasets.Value("string")
    if dataset == "domainnet":
        features["domain"] = datasets.ClassLabel(names=["clipart", "real"])
    if dataset in OTHERS:
        other, cell = OTHERS[dataset]
        columns[other], features[other] = (
            [cell] * len(rows),
            datasets.Value("string" if isinstance(cell, str) else "int64"),
        )
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    (folder / "data").mkdir(parents=True)
    splits = SPLITS.get(dataset, ("train", "test"))
    for place, part in enumerate(splits):
        own = whole.select(
            [i for i, (_, row) in enumerate(rows) if row // 2 % len(splits) == place]
        )
        own.to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
    return folder
