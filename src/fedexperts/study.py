"""Many runs: experiments side by side, each tuned alike on validation data, then repeated over
seeds.

    OUT/study.json                 what was asked: experiments and seeds
    OUT/track.json                 who follows the seeds' runs elsewhere, if anybody does; trials
    are not followed OUT/EXPERIMENT/tune/001/       a run for each combination of the values to
    tune, with the first seed OUT/EXPERIMENT/seed-0/         a run for each seed, with the values
    that were best on validation data

What is left to do is read off the folder, so running a study and resuming one are the same
function. Test data are not looked at here: a trial's score is its validation accuracy after its
last round, the clients' or the server's.
"""

import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config as door
from . import track
from .config import Config, ConfigError
from .data.federation import Federation
from .data.manifest import sealed
from .disk import making, read_checked, sweep, write_checked
from .loop import NobodyLeftError, run
from .metrics import Row, Score, last, last_valid
from .private import Private
from .rundir import RunDir, is_run

STUDY = "study.json"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Beat:
    """How far a study is: what it does now, rounds done and in all, clients that trained in the
    newest round.
    """

    what: str
    done: int
    total: int
    clients: int


Progress = Callable[[Beat], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Unit:
    """One run of a study."""

    config: Config
    folder: Path

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder)

    @property
    def rounds(self) -> int:
        """Rounds in all, the evaluation of the start counted as one."""
        return int(self.config.values["run"]["rounds"]) + 1

    def done(self) -> int:
        """Rounds that are finished, counted likewise."""
        newest = self.run.done()
        return 0 if newest is None else newest + 1

    def clients(self) -> int:
        """Clients that trained in the newest finished round."""
        rows = self.run.latest()
        return len(rows[-1]["trained"]) if rows else 0


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
    """A study's folder, new or asked for these experiments and seeds beside what it was asked for
    before.

    ValueError if it holds another experiment of the same name.
    """
    _check(configs)
    path.mkdir(parents=True, exist_ok=True)
    with RunDir(path).locked():
        before, there = read(path) if (path / STUDY).exists() else ([], [])
        known = {config.name: config for config in there}
        for config in configs:
            if (other := known.setdefault(config.name, config)).nested() != config.nested():
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
    names = itertools.chain(
        [path], (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    )
    return next(name for name in names if not name.exists())


def advance(
    path: Path,
    jobs: int = 1,
    tell: Progress = lambda _: None,
    warn: Warn = lambda _: None,
    changed_data: bool = False,
) -> None:
    """Do what is left of a study: trials first, then every seed with the chosen values. Of a single
    run: its rounds.

    `warn` hears of trackers that fail. With `changed_data`, it goes on though the data changed
    since it began.
    """
    if is_run(path):
        unit = Unit(door.parse(RunDir(path).text("config.toml"), str(path)), path)
        with _followed(path.absolute().parent.parent, warn) as follow:
            failed = _run_all([unit], jobs, changed_data, tell, "running", follow)
    else:
        seeds, configs = read(path)
        with RunDir(path).locked(), _followed(path, warn) as follow:
            sweep([*path.glob(".*.part"), *path.glob("*/.*.part"), *path.glob("*/tune/.*.part")])
            tried = [unit for config in configs for unit in trials(path, config, seeds[0])]
            _run_all(tried, jobs, changed_data, tell, "tuning")
            units = [unit for config in configs for unit in repeats(path, config, seeds)]
            failed = _run_all(units, jobs, changed_data, tell, "running", follow)
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
    rooms = {
        kind: (door.tracker_room(kind).begin, place) for kind, place in track.places(study).items()
    }
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
    return list(asked["seeds"]), [
        door.parse(text, str(file)) for text in asked["experiments"].values()
    ]


def trials(path: Path, config: Config, seed: int) -> list[Unit]:
    """A run for every combination of the values to tune; none where there is nothing to choose."""
    keys = list(config.tune)
    choices = list(itertools.product(*config.tune.values())) if keys else []
    return [
        Unit(
            config.having(dict(zip(keys, choice, strict=True)) | {"run.seed": seed}, "tune"),
            path / config.name / "tune" / f"{i:03d}",
        )
        for i, choice in enumerate(choices, 1)
    ]


def choose(path: Path, config: Config, seed: int) -> dict[str, Any]:
    """The tuned keys with the values of the trial that is best on validation data (the first of
    equals).
    """
    scored = [
        (unit, score)
        for unit in trials(path, config, seed)
        if (score := trial_score(unit)) is not None
    ]
    if not scored:
        if config.tune:
            raise NobodyLeftError(
                f"{config.name}: every trial diverged; use lower values in [tune]"
            )
        return {}
    best, _ = max(scored, key=lambda pair: pair[1])
    return {key: best.config.values[key.split(".")[0]][key.split(".", 1)[1]] for key in config.tune}


def repeats(path: Path, config: Config, seeds: Sequence[int]) -> list[Unit]:
    """A run for every seed with the chosen values. The first seed's is the winning trial itself,
    copied.
    """
    chosen = choose(path, config, seeds[0])
    units = [
        Unit(
            config.having({**chosen, "run.seed": seed}, "tuned"),
            path / config.name / f"seed-{seed}",
        )
        for seed in seeds
    ]
    won = [
        unit
        for unit in trials(path, config, seeds[0])
        if unit.config.values == units[0].config.values
    ]
    if won and not units[0].folder.exists():
        with making(units[0].folder) as part:
            shutil.copytree(won[0].folder, part, dirs_exist_ok=True)
    return units


def trial_score(unit: Unit) -> float | None:
    """Validation accuracy in percent after the last round, whose `run.judged_by` says; None if it
    never got there.
    """
    if unit.done() < unit.rounds:
        return None
    return last_valid(*_logs(unit), unit.config.values["run"]["judged_by"])


def once(config: Config, folder: Path | str) -> Score:
    """One experiment in a new folder, as configured and untuned; its score after the last round."""
    unit = Unit(config, Path(folder))
    if why := work(unit):
        raise NobodyLeftError(why)
    return last(*_logs(unit))


def _logs(unit: Unit) -> tuple[list[Row], list[Row]]:
    """The client rows and the server's."""
    return unit.run.rows("clients.jsonl"), unit.run.rows("server.jsonl")


def _silent() -> None:
    """Nobody hears of a round that is finished in another process: the folder says it."""


def work(
    unit: Unit,
    beat: Callable[[], None] = _silent,
    beside: Sequence[Unit] = (),
    changed_data: bool = False,
) -> str:
    """Run a unit from wherever it stands, `beat` after each round; why it cannot go on, or "".

    A unit that begins has the data of those `beside` it.
    """
    if unit.folder.exists():
        Private(unit.folder / "private").check(unit.run.kept())
    split = _split(unit, beside, changed_data)
    with door.opened(unit.config, unit.folder / "private", split, changed_data) as (
        job,
        engine,
        federation,
    ):
        folder = _folder(unit, federation)
        try:
            run(job, engine, unit.config.section("run"), folder, lambda _: beat())
        except NobodyLeftError as error:
            return str(error)
    return ""


def _split(unit: Unit, beside: Sequence[Unit], changed_data: bool) -> Path | None:
    """Where the split of a unit was written, by itself or by another with these data and this seed;
    None: nowhere yet.

    ValueError if its folder holds a run of another config, or if the data are not those of a unit
    with another seed, unless that is allowed.
    """
    if unit.folder.exists():
        if door.parse(unit.run.text("config.toml"), str(unit.folder)).values != unit.config.values:
            raise ValueError(f"{unit.folder} holds a run of another config; use another folder")
        return unit.folder / "split.json"
    alike = [
        u
        for u in beside
        if u.folder.exists() and u.config.values["data"] == unit.config.values["data"]
    ]
    same = [u for u in alike if u.config.values["run"]["seed"] == unit.config.values["run"]["seed"]]
    if alike and not same and not changed_data:
        door.check_data(unit.config, alike[0].folder / "split.json")
    return same[0].folder / "split.json" if same else None


def _folder(unit: Unit, federation: Federation) -> RunDir:
    """The unit's folder, new or as it stands."""
    if not unit.folder.exists():
        return RunDir.create(
            unit.folder,
            unit.config.toml(),
            door.about(unit.config, federation),
            sealed(federation.manifest()),
        )
    return unit.run


def _run_all(
    units: Sequence[Unit],
    jobs: int,
    changed_data: bool,
    tell: Progress,
    what: str,
    follow: Callable[[Unit], None] = lambda _: None,
) -> list[tuple[Unit, str]]:
    """Run what is left of the units, `jobs` at a time, and let each be followed; those that failed,
    and why.
    """
    left = [unit for unit in units if unit.done() < unit.rounds]
    for unit in units:
        if unit not in left:  # the crash that the study is resumed from may have hit its last step
            with unit.run.locked():
                unit.run.load()

    def beat() -> None:
        done = [unit.done() for unit in units]
        active = next(
            (unit for unit, d in zip(units, done, strict=True) if 0 < d < unit.rounds), units[-1]
        )
        for unit in units:
            follow(unit)
        tell(Beat(what, sum(done), sum(unit.rounds for unit in units), active.clients()))

    if jobs == 1 or len(left) < 2:
        results = [(unit, work(unit, beat, units, changed_data)) for unit in left]
    else:
        results = _in_processes(left, units, changed_data, min(jobs, len(left)), beat)
    if units:
        beat()
    return [(unit, why) for unit, why in results if why]


def _in_processes(
    units: Sequence[Unit],
    beside: Sequence[Unit],
    changed_data: bool,
    jobs: int,
    beat: Callable[[], None],
) -> list[tuple[Unit, str]]:
    """Units and why each could not go on, or ""; `beat` twice a second."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_obey, initargs=(os.getpid(),)) as pool:
        with _unheard():  # a child is begun as deaf as its parent is now
            futures = {
                pool.submit(work, unit, _silent, beside, changed_data): unit for unit in units
            }
        try:
            while wait(futures, timeout=0.5).not_done:
                beat()
        except BaseException:  # a stopped study leaves nobody running
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise
        try:
            return [(unit, future.result()) for future, unit in futures.items()]
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process was killed; where memory is short, --jobs 1 takes the least"
            ) from None


@contextmanager
def _unheard() -> Iterator[None]:
    """Signals that end a program wait until this is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey(parent: int) -> None:
    """A worker ends when its parent says so, whatever signal a terminal sends to both; or when its
    parent was killed: the study may be resumed by another process.
    """
    for number in ENDING:
        # unlike one that is ignored, it is not passed on to programs begun here
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
