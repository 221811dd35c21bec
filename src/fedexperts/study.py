"""Many runs: experiments side by side, each tuned alike on validation data, then repeated over
seeds.

    OUT/study.json            what was asked: experiments and seeds
    OUT/track.json            who follows the seeds' runs elsewhere, if anybody does; not the trials
    OUT/EXPERIMENT/tune/001/  a trial: a shorter run, with a seed that no other run has
    OUT/EXPERIMENT/tune.json  what was tried, and what was chosen
    OUT/EXPERIMENT/seed-0/    a run for each seed, with the values that were best on validation data

What is left to do is read off the folder, so running a study and resuming one are the same
function. Test data are not looked at here: a trial's score is its validation accuracy after its
last round, the clients' or the server's. What to try is decided in tuning.py, how a run is carried
out in units.py.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import config as door
from . import track, tuning
from .config import Config, ConfigError
from .disk import making, read_checked, sweep, write_checked
from .loop import NobodyLeftError
from .metrics import Score, last, last_valid
from .options import Values
from .rundir import RunDir, is_run
from .units import Counted, Progress, Unit, run_all, work

STUDY, TUNE = "study.json", "tune.json"
TUNING_SEED = 1_000_000  # of all trials, and of no run that is reported
# rounds that a trial has at least, as far as its run has them: what trains nothing needs one, two
# or three, and says nothing after half of them
LEAST = 4

Warn = Callable[[str], None]
Failed = list[tuple[Unit, str]]  # units, and why each could not go on
Carry = Callable[[list[Unit], str], Failed]


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
    _check(configs, seeds)
    for kind in trackers or {}:
        door.tracker_room(kind)  # is it installed?
    with making(path) as part:
        track.create(part, path.name, trackers or {})
        _ask(part, configs, seeds)


def widen(path: Path, configs: Sequence[Config], seeds: Sequence[int]) -> None:
    """A study's folder, new or there already, asked for these experiments and seeds as well.

    ValueError if it holds another experiment of the same name.
    """
    _check(configs, seeds)
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


def _check(configs: Sequence[Config], seeds: Sequence[int]) -> None:
    """ConfigError if experiments cannot stand beside each other, or one cannot be tuned."""
    if TUNING_SEED in seeds:
        raise ConfigError(
            f"run.seed = {TUNING_SEED}: values are chosen with this seed, so no result may come"
            " from it; use another"
        )
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
    changed_code: bool = False,
) -> None:
    """Do what is left of a study: trials first, then every seed with the values chosen by them.

    Of a single run's folder, do the rounds that are left.

    `warn` hears of trackers that fail. With `changed_data`, it goes on though the data changed
    since it began; with `changed_code`, though modules of one's own did.
    """
    if is_run(path):
        unit = Unit(door.parse(RunDir(path).text("config.toml"), str(path)), path)
        with followed(path.absolute().parent.parent, warn) as follow:
            failed = run_all([unit], jobs, changed_data, changed_code, tell, "running", follow)
    else:
        seeds, configs = read(path)
        with RunDir(path).locked(), followed(path, warn) as follow:

            def carry(units: list[Unit], what: str) -> Failed:
                if what == "tuning":
                    return run_all(units, jobs, changed_data, changed_code, tell, what)
                return run_all(units, jobs, changed_data, changed_code, tell, what, follow)

            failed = carried(path, configs, seeds, carry)
    if failed:
        raise NobodyLeftError("\n".join(f"{unit.folder}: {why}" for unit, why in failed))


def carried(path: Path, configs: Sequence[Config], seeds: Sequence[int], carry: Carry) -> Failed:
    """What is left of a study, by way of `carry`: "tuning" first, then "running" every seed with
    the values chosen; those that failed, and why.
    """
    sweep([*path.glob(".*.part"), *path.glob("*/.*.part"), *path.glob("*/tune/.*.part")])
    _tune(path, configs, lambda tried: carry(tried, "tuning"))
    return carry([unit for config in configs for unit in repeats(path, config, seeds)], "running")


def forget(path: Path, client: str) -> None:
    """Go on without a client's private state, which is gone or damaged, in the run in `path`."""
    if not is_run(path):
        runs = ", ".join(str(folder.parent) for folder in sorted(path.glob("*/seed-*/hashes.json")))
        raise ValueError(
            f"--forget is for one run, and {path} is none; expected one of {runs or 'its runs'}"
        )
    RunDir(path).forget(client)


@contextmanager
def followed(
    study: Path, warn: Warn, again: str = "fedexperts resume"
) -> Iterator[Callable[[Unit], None]]:
    """Tells the study's trackers what is new in a unit's run; `again` sends what failed."""
    addresses = track.addresses(study)
    rooms = {kind: (door.tracker_room(kind).begin, address) for kind, address in addresses.items()}
    following = track.Following(study, rooms, warn, again)

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


def budget(configs: Sequence[Config]) -> int:
    """Trials of each experiment with something to choose: the same number for all of a study."""
    return max(len(tuning.grid(config.tune)) for config in configs) + tuning.BEYOND


def trial(path: Path, config: Config, number: int, point: Values) -> Unit:
    """A run with these values, half as long and with the tuning seed; a short one is whole. Only
    its end is evaluated, as nothing before counts.
    """
    chosen = config.having(point, "tune")
    whole = chosen.values["run"]["rounds"]
    rounds = max((whole + 1) // 2, min(whole, LEAST))
    asked = chosen.having(
        {
            "run.seed": TUNING_SEED,
            "run.rounds": rounds,
            "run.evaluate_every": max(rounds, 1),
        },
        "tune",
    )
    return Unit(asked, path / config.name / "tune" / f"{number:03d}")


def _tune(path: Path, configs: Sequence[Config], carry_out: Callable[[list[Unit]], object]) -> None:
    """Try values until every experiment has spent its budget; write down what was found.

    What to try next follows from the scores so far, so that a study that was stopped tries the
    same.
    """
    tuned = [config for config in configs if config.tune]
    points = {config.name: tuning.grid(config.tune) for config in tuned}
    while True:
        carry_out([unit for config in tuned for unit in _units(path, config, points[config.name])])
        more = {}
        for config in tuned:
            tried = _tried(path, config, points[config.name])
            if len(tried) < budget(tuned) and (point := _next(config, tried)):
                more[config.name] = point
        if not more:
            break
        for name, point in more.items():
            points[name].append(point)
    for config in tuned:
        _note(path, config, _tried(path, config, points[config.name]))


def _units(path: Path, config: Config, points: Sequence[Values]) -> list[Unit]:
    return [trial(path, config, number, point) for number, point in enumerate(points, start=1)]


def _tried(path: Path, config: Config, points: Sequence[Values]) -> list[tuning.Tried]:
    units = _units(path, config, points)
    return [
        tuning.Tried(point, trial_score(unit)) for point, unit in zip(points, units, strict=True)
    ]


def _next(config: Config, tried: Sequence[tuning.Tried]) -> Values | None:
    return tuning.following(config.tune, tried, lambda point: _allowed(config, point))


def _allowed(config: Config, point: Values) -> bool:
    """Whether an experiment can have these values."""
    try:
        config.having(point, "tune")
    except ConfigError:
        return False
    return True


def _note(path: Path, config: Config, tried: Sequence[tuning.Tried]) -> None:
    """Write down what was tried and chosen."""
    top = tuning.best(tried)
    if top is None:
        raise NobodyLeftError(f"{config.name}: every trial diverged; use lower values in [tune]")
    units = _units(path, config, [each.point for each in tried])
    noted: Values = {
        "seed": TUNING_SEED,
        "rounds": [unit.rounds - 1 for unit in units],
        "trials": [each.point for each in tried],
        "valid": [each.score for each in tried],
        "chosen": top.point,
        "edges": tuning.edges(config.tune, tried, lambda point: _allowed(config, point)),
    }
    write_checked(path / config.name / TUNE, noted)


def choose(path: Path, config: Config) -> Values:
    """The tuned keys, with the values that were best on validation data."""
    if not config.tune:
        return {}
    noted = read_checked(path / config.name / TUNE, "run the study again")
    chosen: Values = noted["chosen"]
    return chosen


def repeats(path: Path, config: Config, seeds: Sequence[int]) -> list[Unit]:
    """A run for every seed with the chosen values."""
    chosen = choose(path, config)
    units = []
    for seed in seeds:
        repeated = config.having({**chosen, "run.seed": seed}, "tuned")
        units.append(Unit(repeated, path / config.name / f"seed-{seed}"))
    return units


def trial_score(unit: Unit) -> float | None:
    """Validation accuracy in percent after the last round; None if the trial never got there.

    `run.judged_by` says whether it is the clients' or the server's.
    """
    if unit.done() < unit.rounds:
        return None
    return last_valid(*unit.logs(), unit.config.values["run"]["judged_by"])


def once(config: Config, folder: Path | str, tell: Counted = lambda done, total: None) -> Score:
    """One experiment in a new folder, as configured and untuned; its score after the last round.
    `tell` hears how many rounds are done.
    """
    unit = Unit(config, Path(folder))
    if why := work(unit, lambda: tell(unit.done() - 1, unit.rounds - 1)):
        raise NobodyLeftError(why)
    return last(*unit.logs())
