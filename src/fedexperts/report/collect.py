"""Which runs lie in a folder, and which of them are one experiment.

A run is a folder that `rundir` made. Runs of one name and one config are an experiment, whatever
their seeds. What a run may be used for is decided here: one that is not finished is kept, and
counted nowhere.
"""

import json
import os
import statistics
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..disk import read_checked
from ..metrics import Row, Score, best_valid, by_round, last, last_valid, sizes, validated
from ..options import Values
from ..rundir import EVENTS, LOGS, RunDir, is_run
from .experts import Routing, routing

Sections = dict[str, Values]  # of a config

# beside the engine: where, how fast, what is told, and not what is learned
_HARMLESS = {"run.seed", "run.threads", "run.confusion"}


@dataclass(frozen=True)
class Run:
    """One run as it lies in its folder, with its logs; `done` is its last round."""

    path: Path
    name: str
    text: str
    values: Sections
    tuned: frozenset[str]
    environment: Values
    done: int | None
    rounds: list[Row]
    clients: list[Row]
    server: list[Row]
    events: list[Row] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.values["run"]["seed"])

    @property
    def asked(self) -> int:
        """Rounds that it was asked for."""
        return int(self.values["run"]["rounds"])

    @cached_property
    def settings(self) -> Values:
        """Dotted keys that decide what comes out, but for the seed."""
        return {key: value for key, value in dotted(self.values).items() if key not in _HARMLESS}

    @cached_property
    def unfinished(self) -> str:
        """Why none of its figures count, or ""."""
        if self.done is None or self.done < self.asked:
            return f"unfinished, {self.done or 0} of {self.asked} rounds done"
        if max(by_round(self.clients), default=-1) != self.asked:
            return f"no client answered the evaluation after its last round, {self.asked}"
        return ""


@dataclass(frozen=True)
class Experiment:
    """Runs of one config by seed."""

    name: str
    runs: dict[int, Run]

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    @property
    def values(self) -> Sections:
        """Its config; the seed is the first run's."""
        return self.first.values

    @cached_property
    def finished(self) -> dict[int, Run]:
        """The runs that count."""
        return {seed: run for seed, run in self.runs.items() if not run.unfinished}

    @cached_property
    def rows(self) -> dict[int, list[Row]]:
        """Client rows of the runs that count, by seed."""
        return {seed: run.clients for seed, run in self.finished.items()}

    @cached_property
    def last(self) -> dict[int, Score]:
        """After the last round of the runs that count, by seed."""
        return {seed: last(run.clients, run.server) for seed, run in self.finished.items()}

    @cached_property
    def best(self) -> dict[int, Score]:
        """After the round best on validation data (`run.judged_by`); none without such data."""
        if not all(validated(rows, self.judged_by) for rows in self.rows.values()):
            return {}
        return {
            seed: best_valid(run.clients, run.server, self.judged_by)
            for seed, run in self.finished.items()
        }

    def valid(self, of: str) -> float | None:
        """Validation accuracy after the last round, the clients' or the server's, mean over seeds;
        None without such data.
        """
        if not all(validated(rows, of) for rows in self.rows.values()):
            return None
        runs = self.finished.values()
        return statistics.fmean(last_valid(run.clients, run.server, of) for run in runs)

    @cached_property
    def search(self) -> Values:
        """What was tried to choose its values, as a study writes it down; empty without that."""
        file = self.first.path.parent / "tune.json"
        if not self.first.tuned or not file.exists():
            return {}
        return read_checked(file, "put a backup in its place")

    @property
    def pooled(self) -> bool:
        """Whether all data were in one place: a bound, and no federation."""
        return bool(self.values["run"].get("pooled", False))

    @cached_property
    def routing(self) -> dict[int, Routing]:
        """The server's mixture and its parts after the last round, by seed."""
        return {
            seed: routed for seed, run in self.finished.items() if (routed := routing(run.server))
        }

    @cached_property
    def sizes(self) -> dict[tuple[str, str], float]:
        """What is held and sent, as `metrics.sizes` names it: means over the runs that count."""
        each_run = [sizes(run.rounds, run.server) for run in self.finished.values()]
        return {
            key: statistics.fmean(each[key] for each in each_run if key in each)
            for key in set().union(*each_run)
        }

    @cached_property
    def clients(self) -> list[str]:
        return sorted({row["client"] for rows in self.rows.values() for row in rows})

    @property
    def declared(self) -> Values:
        """What its method declared (`declared.Declared`); nothing where a run does not say."""
        return dict(self.first.environment.get("declared") or {})

    @property
    def has_global(self) -> bool:
        """Whether there is a global model to speak of."""
        return bool(self.declared.get("shared", True))

    @property
    def controls(self) -> list[Values]:
        """What its method is compared with."""
        return list(self.declared.get("controls", ()))

    @property
    def metrics(self) -> list[Values]:
        """The numbers that its method logs beside accuracy."""
        return list(self.declared.get("metrics", ()))

    @property
    def listed(self) -> str:
        """How a client's experts are listed in its row, after its own."""
        return str(self.declared.get("listed", ""))

    @property
    def ablation(self) -> bool:
        """Whether its server's routing is switched off on purpose."""
        return bool(self.declared.get("ablation", False))

    @property
    def judged_by(self) -> str:
        """Whose validation accuracy chooses: "clients" or "server"."""
        return str(self.values["run"]["judged_by"])

    @property
    def classes(self) -> list[str]:
        """Names of the classes; numbers if its runs only say how many there are."""
        classes = self.first.environment.get("classes") or ()
        if isinstance(classes, int):
            classes = range(classes)
        return [str(name) for name in classes]

    @property
    def skew(self) -> dict[str, float]:
        """How clients' classes differ, as `Federation.skew` says it, mean over seeds; empty where
        runs do not know.
        """
        every = [run.environment.get("skew") for run in self.runs.values()]
        known = [skew for skew in every if skew]
        if not known:
            return {}
        return {key: statistics.fmean(skew[key] for skew in known) for key in known[0]}

    def commonest(self, of: str) -> float | None:
        """Accuracy in percent of always saying the commonest class: of "clients" or "server".

        None if its runs do not know what classes their clients have.
        """
        logged = [run.environment.get("commonest") for run in self.runs.values()]
        levels = [float(shares[of]) for shares in logged if shares]
        if not levels:
            return None
        return statistics.fmean(levels)


def judged_by(experiments: Sequence[Experiment]) -> str:
    """Whose accuracy a comparison is about: "server" if it is for any of them, else "clients"."""
    if any(experiment.judged_by == "server" for experiment in experiments):
        return "server"
    return "clients"


def dotted(values: Sections) -> Values:
    """A config's dotted keys, without its engine."""
    return {
        f"{section}.{key}": value
        for section, keys in values.items()
        if section != "engine"
        for key, value in keys.items()
    }


def collect(paths: Sequence[Path]) -> list[Experiment]:
    """The experiments in folders, in the order given; trials below a folder `tune` are left out.

    Raises ValueError for a folder without runs, or a damaged one.
    """
    if not paths:
        raise ValueError("no folder was given; expected a folder made by `fedexperts run`")
    folders = {folder.resolve(): folder for path in paths for folder in runs(path)}
    return _grouped([_read(folder) for folder in folders.values()])


def runs(path: Path) -> list[Path]:
    """Folders of runs in `path`: those of a study in the order in which it names them."""
    expected = "expected a folder made by `fedexperts run`: a study, an experiment in it, or a run"
    if path.is_file():
        raise ValueError(f"{path}: this is a file; {expected}")
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; {expected}")
    below = list(_walk(path))
    folders = [folder for folder in below if "tune" not in folder.relative_to(path).parts[:-1]]
    if not below:
        raise ValueError(f"{path} holds no run (no folder with config.toml in it); {expected}")
    if not folders:
        raise ValueError(f"{path} holds only trials (in folders called tune); {expected}")
    return folders


def _walk(path: Path) -> Iterator[Path]:
    if is_run(path):
        yield path
        return  # what a run keeps is no run
    below = [
        Path(entry.path)
        for entry in os.scandir(path)
        if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."
    ]
    position = {name: number for number, name in enumerate(_asked(path))}
    for folder in sorted(
        below, key=lambda each: (position.get(each.name, len(position)), each.name)
    ):
        yield from _walk(folder)


def _asked(path: Path) -> list[str]:
    """Names of experiments in the order in which a study was asked for them."""
    file = path / "study.json"
    if not file.exists():
        return []
    return list(read_checked(file, "put a backup in its place")["experiments"])


def _read(path: Path) -> Run:
    folder = RunDir(path)
    folder.check()
    try:
        text = folder.text("config.toml")
        values = tomllib.loads(text)
        name, tune = str(values.pop("name")), values.pop("tune", {})
        _ = values["method"]["name"], values["model"]["name"], values["data"]["name"]
        _ = int(values["run"]["seed"]), int(values["run"]["rounds"])
        environment = json.loads(folder.text("environment.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: config.toml or environment.json ({type(error).__name__}: {error});"
            " expected the files written by `fedexperts run`"
        ) from None
    rounds, clients, server, events = (folder.rows(log) for log in (*LOGS, EVENTS))
    return Run(
        path,
        name,
        text,
        values,
        frozenset(tune),
        environment,
        folder.done(),
        rounds,
        clients,
        server,
        events,
    )


def _grouped(runs: Sequence[Run]) -> list[Experiment]:
    """Runs of one name and equal settings; where a seed comes twice, those of one folder."""
    groups: list[list[Run]] = []
    for alike in _by(runs, lambda run: (run.name, json.dumps(run.settings, sort_keys=True))):
        for key in (lambda _: None, lambda run: run.path.parent, lambda run: run.path):
            parts = _by(alike, key)
            if all(len({run.seed for run in part}) == len(part) for part in parts):
                break
        groups += parts
    return [
        Experiment(name, {run.seed: run for run in sorted(group, key=lambda run: run.seed)})
        for name, group in zip(_names(groups), groups, strict=True)
    ]


def _by(runs: Sequence[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The config's name; where several experiments have it, with the settings in which they differ;
    where that does not tell them apart, with the folder of the first run, too.
    """
    firsts = [group[0] for group in groups]
    names = [_with_settings(run, [one for one in firsts if one.name == run.name]) for run in firsts]
    if len(set(names)) == len(names):
        return names
    folders = [run.path.resolve() for run in firsts]
    base = os.path.commonpath(folders)
    distinct = []
    for name, folder in zip(names, folders, strict=True):
        if names.count(name) > 1:
            name = f"{name} ({folder.relative_to(base)})"
        distinct.append(name)
    return distinct


def _with_settings(run: Run, alike: Sequence[Run]) -> str:
    """A run's name, with what distinguishes it from others of this name: not what tuning chose, and
    not what only some of them can be asked.
    """
    differing = [
        f"{key}={as_set(value)}"
        for key, value in run.settings.items()
        if all(key in other.settings and key not in other.tuned for other in alike)
        and any(other.settings[key] != value for other in alike)
    ]
    if not differing:
        return run.name
    return f"{run.name} ({', '.join(differing)})"


def as_set(value: object) -> str:
    """A setting's value as one types it."""
    if isinstance(value, str):
        return value
    return json.dumps(value)
