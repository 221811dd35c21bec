"""A paper's published figures beside ours: which can be run here, and what came of them.

    configs/PAPER/_published.toml    the figures, what they measure, what is known to differ
    configs/PAPER/GROUP/NAME.toml    how each is reproduced
    OUT/GROUP/                       a study of each group, as `fedexperts run` makes it

A figure that cannot be reproduced is a result, too, with its reason. This room trains nothing
itself, and prints nothing.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import config as door
from . import study
from .config import Config, ConfigError
from .loop import NobodyLeftError
from .report import Experiment, collect
from .units import Progress

PUBLISHED = "_published.toml"


@dataclass(frozen=True)
class Figure:
    """One published figure, in percent, and what reproduces it."""

    group: str
    name: str
    percent: float
    config: Config
    lacking: tuple[ValueError, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Paper:
    """What a paper publishes: where, of whom ("local" clients or "server"), each figure."""

    source: str
    column: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Result:
    """A published figure and ours, one for each finished seed; and why some or all are lacking."""

    figure: Figure
    ours: tuple[float, ...]
    why: tuple[str, ...]


def papers() -> list[str]:
    """Names of the papers whose figures ship with the package."""
    return sorted(file.parent.name for file in door.shipped_folder().glob(f"*/{PUBLISHED}"))


def read(paper: str, only: Sequence[str] = (), settings: Sequence[str] = ()) -> Paper:
    """A paper's figures, or `only` some of them; ConfigError for an unknown name."""
    if paper not in papers():
        raise ConfigError(f"{paper}: no such paper; expected one of {', '.join(papers())}")
    folder = door.shipped_folder() / paper
    document = tomllib.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
    chosen = _chosen(
        [(group, name) for group, row in document["published"].items() for name in row], only
    )
    figures = tuple(
        _figure(
            folder, group, name, document["published"][group][name], document["differs"], settings
        )
        for group, name in chosen
    )
    return Paper(document["source"], document["column"], figures)


def run(
    paper: Paper, folder: Path, seeds: int, jobs: int = 1, tell: Progress = lambda _: None
) -> dict[str, str]:
    """Do what is left of every figure; by group, why not all could be done.

    ValueError, before anything is run, if the folder holds other experiments of these names.
    """
    groups: dict[str, list[Config]] = {}
    for figure in paper.figures:
        if not figure.lacking:
            groups.setdefault(figure.group, []).append(figure.config)
    for group, configs in groups.items():
        first = int(configs[0].values["run"]["seed"])
        study.widen(folder / group, configs, range(first, first + seeds))
    failed = {group: _advance(group, folder, jobs, tell) for group in groups}
    return {group: why for group, why in failed.items() if why}


def _advance(group: str, folder: Path, jobs: int, tell: Progress) -> str:
    """Do what is left of a group; why not all could be done, or "". Other groups go on."""
    try:
        study.advance(folder / group, jobs, lambda beat: tell(replace(beat, what=group)))
    except (NobodyLeftError, ValueError) as error:
        return str(error)
    return ""


def results(paper: Paper, folder: Path, failed: Mapping[str, str]) -> list[Result]:
    """Every figure with ours, from the studies in `folder`; `failed` is what `run` said."""
    ours: dict[str, dict[str, Experiment]] = {}
    for group in {figure.group for figure in paper.figures}:
        if any((folder / group).glob("*/seed-*/environment.json")):
            ours[group] = {
                experiment.first.name: experiment for experiment in collect([folder / group])
            }
    return [
        _result(figure, ours.get(figure.group, {}), paper.column, failed)
        for figure in paper.figures
    ]


def _result(
    figure: Figure, ours: Mapping[str, Experiment], column: str, failed: Mapping[str, str]
) -> Result:
    experiment, said = ours.get(figure.name), failed.get(figure.group, "").splitlines()
    scores = list(experiment.last.values()) if experiment else []
    accuracies = tuple(score.server if column == "server" else score.mean for score in scores)
    # a run that failed is named by its folder
    own = tuple(line for line in said if f"/{figure.name}/" in line)
    if not own and not accuracies:
        own = tuple(map(str, figure.lacking)) or tuple(said)
    return Result(figure, accuracies, own)


def _figure(
    folder: Path,
    group: str,
    name: str,
    percent: float,
    differs: Mapping[str, Any],
    settings: Sequence[str],
) -> Figure:
    file = folder / group / f"{name}.toml"
    known = {"*", name, *group.split("/")}
    notes = [text for key, text in differs.items() if key in known]
    notes += [" ".join(f"--set {text}" for text in settings)] if settings else []
    config = door.load(file, settings)
    return Figure(group, name, percent, config, tuple(door.lacking(config)), tuple(notes))


def _chosen(there: Sequence[tuple[str, str]], only: Sequence[str]) -> list[tuple[str, str]]:
    """Those of the groups and experiments that are asked for, in the order of the paper."""
    words = {pair: {*_words(*pair)} for pair in there}
    known = set().union(*words.values())
    for word in only:
        if word not in known:
            near = difflib.get_close_matches(word, sorted(known), 1)
            hint = f"expected one of {', '.join(sorted(known))}"
            if near:
                hint = f"did you mean {near[0]}?"
            raise ConfigError(f"--only {word}: the paper has no such data set or method; {hint}")
    return [pair for pair in there if not only or words[pair] & {*only}]


def _words(group: str, name: str) -> Iterator[str]:
    """What a figure is asked for by: its method, its set, what is in the set, itself."""
    yield name
    parts = [*group.split("/"), name]
    yield from ("/".join(parts[: end + 1]) for end in range(len(parts)))
