"""Runs of a study, carried out: here or in processes, each from wherever it stands to its end.

Units that begin beside others take up their split, so that equal data and seed give every method
the same parts. This room does not know why a run is asked for: what is tuned, or what is chosen.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import config as door
from .config import Config
from .data.federation import Federation
from .data.manifest import sealed
from .loop import NobodyLeftError, run
from .metrics import Row, valid, validated
from .private import Private
from .provenance import differences
from .rundir import RunDir

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Beat:
    """How far a study is."""

    what: str  # what it does now
    done: int  # rounds, or examples that are encoded for them
    total: int
    clients: int  # that trained in the newest round
    unit: str = "round"
    run: str = ""  # which one goes on
    # its accuracy on validation data in percent, after the newest evaluation; None where unknown
    valid: float | None = None


Progress = Callable[[Beat], None]
Counted = Callable[[int, int], None]  # how many, of how many


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

    @property
    def seed(self) -> int:
        return int(self.config.values["run"]["seed"])

    def logs(self) -> tuple[list[Row], list[Row]]:
        """The client rows and the server's."""
        return self.run.rows("clients.jsonl"), self.run.rows("server.jsonl")

    def done(self) -> int:
        """Rounds that are finished, counted likewise."""
        newest = self.run.done()
        return 0 if newest is None else newest + 1

    def clients(self) -> int:
        """Clients that trained in the newest finished round."""
        rows = self.run.newest("rounds.jsonl")
        return len(rows[-1]["trained"]) if rows else 0

    def valid(self) -> float | None:
        """Accuracy on validation data in percent, after the newest evaluation."""
        rows, judged_by = self.run.newest("clients.jsonl"), self.config.values["run"]["judged_by"]
        if not rows or not validated(rows, judged_by):
            return None
        server = {row["round"]: row for row in self.run.newest("server.jsonl")}
        return valid(rows, server.get(rows[0]["round"], {}), judged_by)


def _silent() -> None:
    """Nobody hears of a round that is finished in another process: the folder says it."""


def work(
    unit: Unit,
    beat: Callable[[], None] = _silent,
    beside: Sequence[Unit] = (),
    changed_data: bool = False,
    encoded: Counted = lambda done, total: None,
) -> str:
    """Run a unit from wherever it stands, `beat` after each round; why it cannot go on, or "".

    A unit that begins has the data of those `beside` it. `encoded` hears of examples that are
    encoded before the first round.
    """
    if unit.folder.exists():
        Private(unit.folder / "private").check(unit.run.kept())
    split = _split(unit, beside, changed_data)
    opened = door.opened(unit.config, unit.folder / "private", split, changed_data, encoded)
    with opened as (job, engine, federation):
        folder = _folder(unit, federation)
        try:
            run(job, engine, unit.config.section("run"), folder, lambda _: beat())
        except NobodyLeftError as error:
            return str(error)
    return ""


def _split(unit: Unit, beside: Sequence[Unit], changed_data: bool) -> Path | None:
    """Where the split of a unit is, its own or one of equal data and seed; None: nowhere yet.

    ValueError if its folder holds a run of another config, or if the data are not those of a unit
    with another seed, unless that is allowed.
    """
    if unit.folder.exists():
        if door.parse(unit.run.text("config.toml"), str(unit.folder)).values != unit.config.values:
            raise ValueError(f"{unit.folder} holds a run of another config; use another folder")
        return unit.folder / "split.json"
    values = unit.config.values
    begun = [other for other in beside if other.folder.exists()]
    alike = [other for other in begun if other.config.values["data"] == values["data"]]
    same = [other for other in alike if other.seed == unit.seed]
    if same:
        return same[0].folder / "split.json"
    if alike and not changed_data:
        door.check_data(unit.config, alike[0].folder / "split.json")
    return None


def _folder(unit: Unit, federation: Federation) -> RunDir:
    """The unit's folder, new or as it stands."""
    if unit.folder.exists():
        unit.run.goes_on(door.origin(unit.config))
        return unit.run
    about = door.about(unit.config, federation)
    split = federation.manifest(unit.config.values["run"]["counts"])
    return RunDir.create(unit.folder, unit.config.toml(), about, sealed(split))


def run_all(
    units: Sequence[Unit],
    jobs: int,
    changed_data: bool,
    changed_code: bool,
    tell: Progress,
    what: str,
    follow: Callable[[Unit], None] = lambda _: None,
) -> list[tuple[Unit, str]]:
    """Run what is left of the units, `jobs` at a time; those that failed, and why."""
    if not changed_code:
        check_code(units)
    left = [unit for unit in units if unit.done() < unit.rounds]
    for unit in units:
        if unit not in left:  # the crash that the study is resumed from may have hit its last step
            with unit.run.locked():
                unit.run.load()

    @lru_cache(maxsize=1)  # a round of many clients is read once
    def standing(position: int, done: int) -> tuple[int, float | None]:
        return units[position].clients(), units[position].valid()

    def beat() -> None:
        done = [unit.done() for unit in units]
        begun = [unit for unit in left if 0 < unit.done() < unit.rounds]
        active = units.index([*begun, units[-1]][0])
        for unit in units:
            follow(unit)
        total = sum(unit.rounds for unit in units)
        name = f"{units[active].config.name}/{units[active].folder.name}"
        clients, valid_now = standing(active, done[active])
        tell(Beat(what, sum(done), total, clients, run=name, valid=valid_now))

    def encoded(done: int, total: int) -> None:
        tell(Beat("encoding", done, total, 0, "example"))

    if jobs == 1 or len(left) < 2:
        results = [(unit, work(unit, beat, units, changed_data, encoded)) for unit in left]
    else:
        results = _in_processes(left, units, changed_data, min(jobs, len(left)), beat, encoded)
    if units:
        beat()
    return [(unit, why) for unit, why in results if why]


def check_code(units: Sequence[Unit]) -> None:
    """ValueError if a module of one's own is not what it was when a unit was run."""
    for unit in units:
        modules = door.modules(unit.config)
        if not modules or not unit.folder.exists():
            continue
        if changed := differences(unit.run.origin(), {"modules": modules}):
            files = ", ".join(name.removeprefix("modules.") for name in changed)
            raise ValueError(
                f"{files} changed since {unit.folder} was run with it. Put it back as it was, or"
                " start another run; or use `fedexperts resume RUN --changed-code`: the run's log"
                " and report say what changed"
            )


def _in_processes(
    units: Sequence[Unit],
    beside: Sequence[Unit],
    changed_data: bool,
    jobs: int,
    beat: Callable[[], None],
    encoded: Counted,
) -> list[tuple[Unit, str]]:
    """Units and why each could not go on, or ""; `beat` twice a second, `encoded` as they say."""
    context = multiprocessing.get_context("spawn")
    counts = context.Array("q", 2)  # that are encoded, of how many: the newest word of any process
    begin = (_obey, (os.getpid(), counts))
    with ProcessPoolExecutor(jobs, context, *begin) as pool:
        with _unheard():  # a child is begun as deaf as its parent is now
            futures = {pool.submit(_work_apart, unit, beside, changed_data): unit for unit in units}
        try:
            while wait(futures, timeout=0.5).not_done:
                done, total = counts[:]
                if total:
                    encoded(done, total)
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


_encoded: list[Any] = []  # in a worker: where it says how many examples are encoded


def _work_apart(unit: Unit, beside: Sequence[Unit], changed_data: bool) -> str:
    """`work` in a worker: the rounds that are finished are read off its folder."""

    def encoded(done: int, total: int) -> None:
        _encoded[0][:] = [done, total]

    return work(unit, _silent, beside, changed_data, encoded)


def _obey(parent: int, counts: Any) -> None:
    """A worker ends when its parent says so, or was killed: another process may resume the study.

    Signals that a terminal sends to both are the parent's to act on.
    """
    _encoded.append(counts)
    for number in ENDING:
        # unlike one that is ignored, it is not passed on to programs begun here
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
