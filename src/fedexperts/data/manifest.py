"""Who has which example, in plain values: what a run writes down as split.json, and what another
run can take up.

A manifest names its examples by their position, and says by hashes which examples those were. This
room does not know where examples come from.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from ..options import Values

# what a file must be, if it is to be read as one of these
_CLOSED = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class Held:
    """One client's examples, by their positions."""

    __pydantic_config__ = _CLOSED
    domain: str
    train: list[int]
    valid: list[int]
    test: list[int]
    spare: list[int] = field(default_factory=list)  # in no part, as `shots` left them out
    counts: list[int] = field(default_factory=list)  # of each class, all parts together


@dataclass(frozen=True)
class Manifest:
    """A split, and what it is a split of."""

    __pydantic_config__ = _CLOSED
    classes: list[str]
    inputs: str  # sha256 of all inputs, as a model's encoder is shown them
    labels: str  # sha256 of all labels
    reserve: list[int]
    clients: dict[str, Held]
    # each file's or row's sha256, in the order of the inputs
    files: dict[str, str] = field(default_factory=dict)
    labelled: list[int] = field(default_factory=list)  # the class of each of them
    unseen: list[int] = field(default_factory=list)  # of classes that nobody trains on
    # hash of all the rest: a position that is another by a flipped bit would move an example
    check: str = ""


def sha256(values: Tensor | Sequence[str]) -> str:
    """Hash of type, shape and values, or of texts."""
    if not isinstance(values, Tensor):
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()
    digest = hashlib.sha256(f"{values.dtype}{list(values.shape)}".encode())
    digest.update(values.contiguous().numpy().data)
    return digest.hexdigest()


def sealed(plain: Values) -> Values:
    """A manifest's values with the hash of them."""
    return plain | {"check": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def load(path: Path) -> Manifest:
    """The manifest in a file; ValueError, with the file's name, if it is none or damaged."""
    try:
        split = TypeAdapter(Manifest).validate_json(data := path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"{path}, a split: no such file; expected the split.json of a run"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise ValueError(
            f"{path} is not a split that a run wrote: {where}: {first['msg']}"
        ) from None
    plain = json.loads(data)
    unsealed = {name: value for name, value in plain.items() if name != "check"}
    if split.check and split.check != sealed(unsealed)["check"]:
        raise ValueError(f"{path} is damaged, its hash is another: put a backup in its place")
    return split


def check_same(
    split: Manifest,
    inputs: Tensor | tuple[str, ...],
    labels: Tensor,
    classes: Sequence[str],
    files: dict[str, str],
) -> None:
    """ValueError with the first thing in which these are not the examples of the split."""
    if why := difference(split, inputs, labels, classes, files):
        raise ValueError(
            f"data.split is a split of other examples: {why}. Expected the data that it was"
            " made of, or another split"
        )


def difference(
    split: Manifest,
    inputs: Tensor | tuple[str, ...],
    labels: Tensor,
    classes: Sequence[str],
    files: dict[str, str],
) -> str:
    """The first thing in which these examples are not those that the split is of, or "".

    Files are compared as they are, not as they were decoded, so that a split outlives pillow and
    the size of pixels.
    """
    if list(classes) != split.classes:
        return f"its classes are {', '.join(split.classes)}, and here they are {', '.join(classes)}"
    names = files if split.files else {}  # texts had none once
    for position, (then, now) in enumerate(zip_longest(split.files, names)):
        if then != now:
            return f"its file number {position} is {then or 'none'}, and here it is {now or 'none'}"
        if split.files[then] != files[now]:
            return f"{now} has changed since"
    if not names and sha256(inputs) != split.inputs:
        return "its inputs have another hash"
    if sha256(labels) != split.labels:
        return "its labels have another hash"
    return ""
