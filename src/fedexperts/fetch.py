"""Models and data sets of Hugging Face's hub: which files of one are read here, whether they are on
this machine, and what to type where they are not.

Nothing is downloaded here; download.py does that, where `fedexperts fetch` asks for it. This room
does not know what a model is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    constants,
    get_cached_repo_tree,
    snapshot_download,
)
from huggingface_hub import errors as refused
from huggingface_hub.file_download import repo_folder_name

SMALL = ("*.json", "*.txt", "*.model", "*_Pooling/config.json")  # a model's, beside its weights
WEIGHTS, SHARDS = "model.safetensors", "model-*-of-*.safetensors"
OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors")
ROWS = ("*.parquet", "README.md")  # a data set's; its page says which files are which split
SIZES = {  # GB by what is typed, as the hub had them when the papers' configs were written
    "openai/clip-vit-base-patch32": 0.61,
    "timm/resnet50_clip.openai": 0.41,
    "google-bert/bert-base-uncased": 0.44,
    "openai-community/gpt2": 0.55,
    "openai-community/gpt2-medium": 1.5,
    "flowers102": 3.4,
    "oxford-pets": 0.8,
    "food101": 5.0,
    "caltech101": 0.12,
    "dtd": 0.6,
    "cifar10": 0.15,
    "cifar100": 0.15,
    "femnist": 0.2,
    "sentiment140": 0.15,
    "yelp": 0.3,
}


@dataclass(frozen=True)
class Repository:
    """A model or a data set on the hub."""

    name: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None  # other than the newest

    @property
    def folder(self) -> Path:
        """Where the hub's library keeps it on this machine."""
        named = repo_folder_name(repo_id=self.name, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE) / named

    @property
    def page(self) -> str:
        kind = "datasets/" if self.kind == "dataset" else ""
        return f"{constants.ENDPOINT}/{kind}{self.name}"


class NotHereError(ValueError):
    """Something from outside this package is not on this machine; extras of the package bring it,
    or names for `fedexperts fetch`.
    """

    def __init__(self, says: str, extras: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        super().__init__(says)
        self.extras, self.names = tuple(extras), tuple(names)


def all_here(*looks: Callable[[], object]) -> None:
    """NotHereError with all that is not here, if anything is not."""
    lacking = []
    for look in looks:
        try:
            look()
        except NotHereError as error:
            lacking.append(error)
    if lacking:
        raise NotHereError(
            "; ".join(map(str, lacking)),
            [extra for error in lacking for extra in error.extras],
            [name for error in lacking for name in error.names],
        )


def to_paste(errors: Iterable[Exception]) -> list[str]:
    """What to type for all that is not here, one block, with sizes where they are known."""
    lacking = [error for error in errors if isinstance(error, NotHereError)]
    extras = dict.fromkeys(extra for error in lacking for extra in error.extras)
    names = dict.fromkeys(name for error in lacking for name in error.names)
    lines = []
    if extras:
        lines.append(f"pip install 'fedexperts[{','.join(extras)}]'")
    if names:
        lines.append(f"fedexperts fetch {' '.join(names)}")
        sizes = [f"{name} {SIZES[name]} GB" for name in names if name in SIZES]
        if sizes:
            lines.append(f"# to download, about: {', '.join(sizes)}")
    return lines


def needed(kind: str, paths: Sequence[str]) -> list[str]:
    """Of a repository's files, those that are read here: no weights twice, no other framework's."""
    if kind == "dataset":
        return [path for path in paths if any(fnmatch(path, rows) for rows in ROWS)]
    small = [path for path in paths if any(_fits(path, pattern) for pattern in SMALL)]
    if OPEN_CLIP[0] in paths and "preprocessor_config.json" not in paths:
        return small + [path for path in paths if path == OPEN_CLIP[1]]
    whole = [path for path in paths if path == WEIGHTS]
    return small + (whole or [path for path in paths if _fits(path, SHARDS)])


def _fits(path: str, pattern: str) -> bool:
    """As a shell sees it: a star is no slash."""
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def snapshot(repository: Repository) -> Path | None:
    """Where a repository lies on this machine, whole or not; None: nowhere."""
    try:
        return Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision,
                local_files_only=True,
                allow_patterns=[],
            )
        )
    except (OSError, ValueError):
        return None


def here(repository: Repository) -> Path | None:
    """Where a repository lies on this machine with all that is read of it; None: nowhere."""
    folder = snapshot(repository)
    if folder is None:
        return None
    name, kind, revision = repository.name, repository.kind, repository.revision
    try:
        listed = get_cached_repo_tree(name, repo_type=kind, revision=revision)
    except refused.CachedRepoTreeNotFoundError:  # as older libraries leave it: nothing to compare
        return folder
    wanted = needed(kind, [file.path for file in listed])
    if all((folder / path).is_file() for path in wanted):
        return folder
    return None
