"""Many runs: experiments side by side, each tuned alike on validation data, then repeated over
seeds.

    OUT/study.json            what was asked: experiments and seeds
    OUT/track.json            who follows the seeds' runs elsewhere, if anybody does; not the trials
    OUT/EXPERIMENT/tune/001/  a run for each combination of the values to tune, with the first seed
    OUT/EXPERIMENT/seed-0/    a run for each seed, with the values that were best on validation data

What is left to do is read off the folder, so running a study and resuming one are the same
function. Test data are not looked at here: a trial's score is its validation accuracy after its
last round, the clients' or the server's. How a run is carried out is in units.py.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import config as door
from . import track
from .config import Config, ConfigError
from .disk import making, read_checked, sweep, write_checked
from .loop import NobodyLeftError
from .metrics import Score, last, last_valid
from .options import Values
from .rundir import RunDir, is_run
from .units import Progress, Unit, run_all, work

STUDY = "study.json"


Warn = Callable[[str], None]


def create(
    path: Path,
    configs: Sequence[Config],
    seeds: Sequence[int],
    trackers: Mapping[str, str] | None = None,
) -> None:
    """A new study's folder; ValueError if something is there, or if two experiments have one name.

    `trackers` follow its runs: "tensorboard" and a folder, "mlflow" and an address, "wandb" and a
    project.
    """
    _check(configs)
    for kind in trackers or {}:
        door.tracker_room(kind)  # is it installed?
    with making(path) as part:
        track.create(part, path.name, trackers or {})
        _ask(part, configs, seeds)


def widen(path: Path, configs: Sequence[Config], seeds: Sequence[int]) -> None:
    """A study's folder, new or there already, asked for these experiments and seeds as well.

    ValueError if it holds another experiment of the same name.
    """
    _check(configs)
    path.mkdir(parents=True, exist_ok=True)
    with RunDir(path).locked():
        before: list[int] = []
        there: list[Config] = []
        if (path / STUDY).exists():
            before, there = read(path)
        known = {config.name: config for config in there}
        for config in configs:
            other = known.setdefault(config.name, config)
            if other.nested() != config.nested():
                raise ConfigError(
                    f"{path} holds {other.name} with other settings; use the same --set,"
                    " or another --out"
                )
        _ask(path, list(known.values()), list(dict.fromkeys([*before, *seeds])))


def _check(configs: Sequence[Config]) -> None:
    """ConfigError if experiments cannot stand beside each other, or one cannot be tuned."""
    names = [config.name for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two experiments are named {', '.join(twice)}; use a name for each")
    for config in configs:
        if config.tune and not config.values["data"].get("valid", 1):
            raise ConfigError(
                f"{config.name}: data.valid = 0 leaves nothing to tune by; use 0.2, say"
            )


def _ask(path: Path, configs: Sequence[Config], seeds: Sequence[int]) -> None:
    """Write down what a study is asked for."""
    asked = {
        "seeds": list(seeds),
        "experiments": {config.name: config.toml() for config in configs},
    }
    write_checked(path / STUDY, asked)


def free(path: Path) -> Path:
    """`path`, or `path-2`, `path-3` ... if it is there already."""
    if not path.exists():
        return path
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(name for name in names if not name.exists())


def advance(
    path: Path,
    jobs: int = 1,
    tell: Progress = lambda _: None,
    warn: Warn = lambda _: None,
    changed_data: bool = False,
) -> None:
    """Do what is left of a study: trials first, then every seed with the values chosen by them.

    Of a single run's folder, do the rounds that are left.

    `warn` hears of trackers that fail. With `changed_data`, it goes on though the data changed
    since it began.
    """
    if is_run(path):
        unit = Unit(door.parse(RunDir(path).text("config.toml"), str(path)), path)
        with _followed(path.absolute().parent.parent, warn) as follow:
            failed = run_all([unit], jobs, changed_data, tell, "running", follow)
    else:
        seeds, configs = read(path)
        with RunDir(path).locked(), _followed(path, warn) as follow:
            sweep([*path.glob(".*.part"), *path.glob("*/.*.part"), *path.glob("*/tune/.*.part")])
            tried = [unit for config in configs for unit in trials(path, config, seeds[0])]
            run_all(tried, jobs, changed_data, tell, "tuning")
            units = [unit for config in configs for unit in repeats(path, config, seeds)]
            failed = run_all(units, jobs, changed_data, tell, "running", follow)
    if failed:
        raise NobodyLeftError("\n".join(f"{unit.folder}: {why}" for unit, why in failed))


def forget(path: Path, client: str) -> None:
    """Go on without a client's private state, which is gone or damaged, in the run in `path`."""
    if not is_run(path):
        runs = ", ".join(str(folder.parent) for folder in sorted(path.glob("*/seed-*/hashes.json")))
        raise ValueError(
            f"--forget is for one run, and {path} is none; expected one of {runs or 'its runs'}"
        )
    RunDir(path).forget(client)


@contextmanager
def _followed(study: Path, warn: Warn) -> Iterator[Callable[[Unit], None]]:
    """Tells the study's trackers what is new in a unit's run."""
    addresses = track.addresses(study)
    rooms = {kind: (door.tracker_room(kind).begin, address) for kind, address in addresses.items()}
    following = track.Following(study, rooms, warn)

    def follow(unit: Unit) -> None:
        name = f"{unit.config.name}/{unit.folder.name}"
        following(unit.folder, name, unit.config.shareable(), unit.rounds - 1)

    try:
        yield follow
    finally:
        following.end()


def read(path: Path) -> tuple[list[int], list[Config]]:
    """Seeds and experiments of a study; ValueError if its file is missing or damaged."""
    file = path / STUDY
    if not file.exists():
        raise ValueError(
            f"{path} holds no study and no run; expected a folder that `fedexperts run` made"
        )
    asked = read_checked(file, "put a backup in its place, or run anew with another --out")
    configs = [door.parse(text, str(file)) for text in asked["experiments"].values()]
    return list(asked["seeds"]), configs


def trials(path: Path, config: Config, seed: int) -> list[Unit]:
    """A run for every combination of the values to tune; none where there is nothing to choose."""
    if not config.tune:
        return []
    units = []
    for number, choice in enumerate(itertools.product(*config.tune.values()), start=1):
        chosen = dict(zip(config.tune, choice, strict=True)) | {"run.seed": seed}
        folder = path / config.name / "tune" / f"{number:03d}"
        units.append(Unit(config.having(chosen, "tune"), folder))
    return units


def choose(path: Path, config: Config, seed: int) -> Values:
    """The tuned keys, with the values of the trial that is best on validation data.

    Of equals, it is the first.
    """
    scored = [(trial_score(unit), unit) for unit in trials(path, config, seed)]
    finished = [(score, unit) for score, unit in scored if score is not None]
    if not config.tune:
        return {}
    if not finished:
        raise NobodyLeftError(f"{config.name}: every trial diverged; use lower values in [tune]")
    _, best = max(finished, key=lambda pair: pair[0])
    chosen = {}
    for key in config.tune:
        section, option = key.split(".", 1)
        chosen[key] = best.config.values[section][option]
    return chosen


def repeats(path: Path, config: Config, seeds: Sequence[int]) -> list[Unit]:
    """A run for every seed with the chosen values; the first seed's is its best trial, copied."""
    chosen = choose(path, config, seeds[0])
    units = []
    for seed in seeds:
        repeated = config.having({**chosen, "run.seed": seed}, "tuned")
        units.append(Unit(repeated, path / config.name / f"seed-{seed}"))
    first = units[0]
    tried = trials(path, config, seeds[0])
    won = [unit for unit in tried if unit.config.values == first.config.values]
    if won and not first.folder.exists():
        with making(first.folder) as part:
            shutil.copytree(won[0].folder, part, dirs_exist_ok=True)
    return units


def trial_score(unit: Unit) -> float | None:
    """Validation accuracy in percent after the last round; None if the trial never got there.

    `run.judged_by` says whether it is the clients' or the server's.
    """
    if unit.done() < unit.rounds:
        return None
    return last_valid(*unit.logs(), unit.config.values["run"]["judged_by"])


def once(config: Config, folder: Path | str) -> Score:
    """One experiment in a new folder, as configured and untuned; its score after the last round."""
    unit = Unit(config, Path(folder))
    if why := work(unit):
        raise NobodyLeftError(why)
    return last(*unit.logs())
