"""The papers' data sets, a row of `SETS` each, and their rows as Hugging Face's `datasets` reads
them.

Nothing is downloaded here: a set is a folder that is given, or what `fedexperts fetch` put on this
machine before. This room does not know clients.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..fetch import NotHereError, Repository, here
from ..options import typed_path
from .examples import PART

HUB = "https://huggingface.co/datasets/"
# the ten of FedBN
DOMAINNET = "bird feather headphones ice_cream teapot tiger whale windmill wine_glass zebra"
OFFICE = "back_pack bike calculator headphones keyboard laptop_computer monitor mouse mug projector"


@dataclass(frozen=True)
class Set:
    """A data set as its page documents it; what is not said is as most sets have it."""

    page: str  # where these columns are documented; on the hub, its name there too
    shown: str = "image"  # the column of images, or of texts
    label: str = "label"
    group: str = ""  # the column of what examples have in common: their domain, writer or user
    classes: str = ""  # those that the papers take, as the set names them; none: all
    # other than the set's name; "": the papers leave it out
    words: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=lambda: PART)  # the set's splits, as parts
    revision: str | None = None  # other than the newest

    @property
    def hub(self) -> str:
        """The name on the hub; empty if it is not there."""
        if not self.page.startswith(HUB):
            return ""
        return self.page.removeprefix(HUB)


SETS = {
    "flowers102": Set(
        HUB + "dpdl-benchmark/oxford_flowers102",
        words={"pink-yellow dahlia?": "pink-yellow dahlia"},
    ),
    "oxford-pets": Set(HUB + "timm/oxford-iiit-pet"),
    "food101": Set(HUB + "ethz/food101", parts={"train": "train", "validation": "test"}),
    "caltech101": Set(
        HUB + "flwrlabs/caltech101",  # CoOp leaves one class out, and says four in the singular
        words={"faces_easy": "", "airplanes": "airplane", "faces": "face", "leopards": "leopard"}
        | {"motorbikes": "motorbike"},
    ),
    "dtd": Set(HUB + "tanganke/dtd"),
    "cifar10": Set(HUB + "uoft-cs/cifar10", shown="img"),
    "cifar100": Set(
        HUB + "uoft-cs/cifar100", shown="img", label="fine_label", words={"cra": "crab"}
    ),
    "domainnet": Set(HUB + "wltjr1007/DomainNet", group="domain", classes=DOMAINNET),
    "office-caltech10": Set("https://github.com/med-air/FedBN", group="domain", classes=OFFICE),
    "femnist": Set(HUB + "flwrlabs/femnist", label="character", group="writer_id"),
    "sentiment140": Set(
        HUB
        # the newest is a script, which is not run; the revision is the same in parquet
        + "stanfordnlp/sentiment140",
        shown="text",
        label="sentiment",
        group="user",
        classes="0 4",
        words={"0": "negative", "4": "positive"},
        revision="refs/pr/6",
    ),
    "yelp": Set(HUB + "Yelp/yelp_review_full", shown="text", words={"2 star": "2 stars"}),
}


@dataclass(frozen=True)
class Rows:
    """The rows of a set's splits, each by its split and position: "train/17"."""

    folder: Path
    prints: tuple[str, ...]  # of the splits: other rows, other prints
    known: Set = field(compare=False)
    # datasets.Dataset, without its columns that are not used
    splits: dict[str, Any] = field(compare=False)
    texts: bool = field(compare=False)

    @classmethod
    def opened(cls, folder: Path, known: Set) -> "Rows":
        """ValueError if the columns or splits in `folder` are not those that are known."""
        datasets = reader()
        there = _load(datasets, folder)
        columns = [name for name in (known.shown, known.label, known.group) if name]
        for name, rows in there.items():
            if missing := [column for column in columns if column not in rows.column_names]:
                raise _other(
                    folder,
                    known,
                    f"{name} has the columns {', '.join(rows.column_names)}, not {missing[0]}",
                )
            if name not in known.parts:
                raise _other(
                    folder, known, f"it has a split {name!r}, beside {', '.join(known.parts)}"
                )
        order = [name for name in known.parts if name in there]
        prints = tuple(there[name]._fingerprint for name in order)
        splits = {name: there[name].select_columns(columns) for name in order}
        texts = getattr(splits[order[0]].features[known.shown], "dtype", "") == "string"
        if not texts:
            whole = datasets.Image(decode=False)
            splits = {name: rows.cast_column(known.shown, whole) for name, rows in splits.items()}
        return cls(folder, prints, known, splits, texts)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def count(self) -> int:
        return sum(map(len, self.splits.values()))

    def names(self) -> list[str]:
        """All classes, as the set names them, in its order."""
        first = next(iter(self.splits.values()))
        names: list[str] | None = getattr(first.features[self.known.label], "names", None)
        if names is None and not self.known.classes:
            why = f"{self.known.label} is a column of numbers without class names"
            raise _other(self.folder, self.known, why)
        return names or self.known.classes.split()

    def listed(self, names: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
        """Every row of these classes: its name, its class as a position in `names`, its group."""
        number = {name: label for label, name in enumerate(names)}
        whats, labels, groups = [], [], []
        for split_name, rows in self.splits.items():
            named = self._column(rows, self.known.label)
            owners = [""] * len(named)
            if self.known.group:
                owners = self._column(rows, self.known.group)
            for row, (name, owner) in enumerate(zip(named, owners, strict=True)):
                if name in number:
                    whats.append(f"{split_name}/{row}")
                    labels.append(number[name])
                    groups.append(owner)
        return whats, labels, groups

    def shown(self, whats: Sequence[str]) -> list[str]:
        """What a model is to be shown of these rows: texts, or names of images in this store."""
        if self.texts:
            return [self._cell(what) for what in whats]
        return list(whats)

    def data(self, name: str) -> bytes:
        cell = self._cell(name)
        if not cell:
            raise ValueError("the row holds no image")
        data: bytes | None = cell["bytes"]
        return data or Path(cell["path"]).read_bytes()

    def stamp(self, name: str) -> Hashable:
        return None  # the prints say it of all

    def _cell(self, name: str) -> Any:
        split_name, _, row = name.partition("/")
        return self.splits[split_name][int(row)][self.known.shown]

    def _column(self, rows: Any, column: str) -> list[str]:
        """The cells in words, also where the set numbers them."""
        names = getattr(rows.features[column], "names", None)
        cells = rows.select_columns([column]).to_dict()[column]
        return [names[cell] if names and cell >= 0 else str(cell) for cell in cells]


def folder(dataset: str, path: str) -> Path:
    """Where the set lies on this machine; ValueError, with what to type, if it does not."""
    if path:
        if (copy := typed_path(path)).is_dir():
            return copy
        raise ValueError(
            f"data.path = {path!r}: no such folder, seen from {Path.cwd()}; use a copy of {dataset}"
        )
    if lies := here(repository(dataset)):
        return lies
    raise NotHereError(
        f"{dataset} is not on this machine. Type: fedexperts fetch {dataset}, or give a copy of it"
        " as data.path",
        names=[dataset],
    )


def repository(dataset: str) -> Repository:
    """A set on the hub; ValueError, with what to do, if it is not there."""
    known = SETS[dataset]
    if not known.hub:
        raise ValueError(
            f"{dataset} is not on the hub with its {known.group}s: use data.path = a"
            f" folder of parquet files with columns {known.shown}, {known.label}, {known.group};"
            f" docs/data.md says how, from {known.page}"
        )
    return Repository(known.hub, "dataset", known.revision)


def reader() -> Any:
    """Hugging Face's datasets; NotHereError, with what to type, if it is not installed."""
    try:
        import datasets  # only for who needs it
    except ImportError:
        raise NotHereError(
            "data.name = \"hub\" needs the package datasets; type: pip install 'fedexperts[hub]'",
            extras=["hub"],
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _load(datasets: Any, folder: Path) -> dict[str, Any]:
    """The splits in a folder, by name."""
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        load = datasets.load_from_disk if saved else datasets.load_dataset
        loaded = load(str(folder))
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{folder} cannot be read as a data set ({str(error).splitlines()[0]}); expected"
            " a folder of parquet files or what save_to_disk wrote"
        ) from None
    if isinstance(loaded, dict):
        return dict(loaded)
    return {"train": loaded}


def _other(folder: Path, known: Set, why: str) -> ValueError:
    columns = ", ".join(name for name in (known.shown, known.label, known.group) if name)
    return ValueError(
        f"{folder} is not the set that {known.page} documents: {why}. Expected the columns"
        f" {columns}"
    )
