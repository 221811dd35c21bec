"""A run's rounds on the server, carried through whatever happens meanwhile: too few sites, a full
disk, another run that goes first, an operator who stops it.

This room knows neither Flower nor what is learned; how a run is written down is `runs`' to know.
"""

import errno
import fcntl
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from .. import config as door
from ..config import FlowerSettings
from ..engine import Engine
from ..flower import silent
from ..loop import NobodyLeftError, run
from ..message import Order, Reply
from ..study import Failed, carried, read
from ..units import Unit
from .folder import Deployment
from .runs import Part, Run, Status

Nodes = Callable[[], Mapping[str, int]]
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM = 100_000_000  # bytes that are free again


class StoppedError(Exception):
    """The operator stopped the run."""


@dataclass(frozen=True)
class Around:
    """What an engine must know of the deployment around it."""

    names: Sequence[str]
    about: Mapping[str, str]
    deadline: float  # seconds
    alive: Callable[[], None]  # to be called whenever a loop comes round; StoppedError ends it
    removed: Callable[[], Collection[str]]


MakeEngine = Callable[[Around], Engine]


def carry_out(deployment: Deployment, name: str, nodes: Nodes, make: MakeEngine) -> None:
    """The run's rounds, or those of a study's runs one after the other, from wherever it stands,
    with the sites that are there.
    """
    deployed = Run(deployment.path / "runs" / name)
    stage = _Stage(deployment, deployed, nodes, make)
    try:
        with stage.turn():
            if deployed.status.over:
                return  # another process has carried it out
            stage.play()
        stage.stands("finished")
    except StoppedError:
        stage.stands("stopped", "the operator stopped it (`fedexperts deploy stop`)")
    # an end of this process alone is none of the run's: it goes on once the server is there again
    except Exception as error:
        stage.stands("failed", str(error) or type(error).__name__)
        raise


class _Stage:
    """A run or a study, and what its rounds wait for."""

    def __init__(self, deployment: Deployment, deployed: Run, nodes: Nodes, make: MakeEngine):
        self._deployment, self._run, self._nodes, self._make = deployment, deployed, nodes, make
        self._part: Part = deployed  # the run whose rounds go on
        self._settings: FlowerSettings = deployed.config.section("engine")
        self._rounds = int(deployed.config.values["run"]["rounds"])
        self._later = 0  # rounds of a study's runs that come after this one
        self._members = set(self._settings.sites)
        self.silence = False  # nobody answered the newest orders

    # ---- how it stands

    def stands(self, state: str, why: str = "") -> None:
        asked = set(self._settings.sites) - set(self._removed())
        online = sorted(self._nodes().keys() & asked)
        missing = sorted(asked - set(online))
        part = str(self._part.path.relative_to(self._run.path))
        self._run.stands(Status(state, self._rounds, online, missing, why, part, self._later))

    def alive(self) -> None:
        """A sign of life; StoppedError if the run is to stop at once."""
        self._run.lives()
        if self._run.stops() == "now":
            raise StoppedError

    def _finished(self, round: int) -> None:
        self._run.lives()
        self.stands("running")
        if self._run.stops():
            raise StoppedError

    def _wait(self, until: float, done: Callable[[], bool], why: str) -> bool:
        """Until it is done: True; or until the time, by the monotonic clock."""
        while not done():
            if time.monotonic() > until:
                return False
            self.alive()
            if self._run.stops():  # no round is going on
                raise StoppedError
            with suppress(OSError):  # the disk may be what is waited for
                self.stands("waiting", why)
            time.sleep(1)
        return True

    # ---- what it waits for

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While no other run of the deployment goes on: sites answer one order at a time."""
        with open(self._run.path.parent / ".turn", "a+", encoding="utf-8") as file:

            def mine() -> bool:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            file.seek(0)
            other = file.read() or "another run"
            while other == self._run.path.name and not mine():
                time.sleep(1)  # on a machine that is too busy Flower starts a run twice: in silence
            self._wait(float("inf"), mine, f"it comes after {other}, which goes on")
            file.truncate(0)
            file.write(self._run.path.name)
            file.flush()
            yield

    def play(self) -> None:
        """All that is left."""
        while True:
            try:
                if self._run.is_study:
                    return self._play_study()
                return self._play(self._run)
            except OSError as error:
                if error.errno not in _FULL or not self._for_room(error):
                    raise

    def _play_study(self) -> None:
        """Every run of a study that is left: trials first, then its seeds."""
        seeds, configs = read(self._run.path)
        failed = carried(self._run.path, configs, seeds, self._each)
        if failed:
            raise NobodyLeftError("\n".join(f"{unit.folder.name}: {why}" for unit, why in failed))

    def _each(self, units: list[Unit], what: str) -> Failed:
        """One run after the other, as sites answer one order at a time."""
        failed = []
        for number, unit in enumerate(units):
            if unit.done() == unit.rounds:
                continue
            self._later = self._after(units[number + 1 :], what)
            try:
                self._play(self._run.part(unit, self._deployment))
            except NobodyLeftError as error:
                if self.silence:
                    raise  # the values that were tried are not to blame
                failed.append((unit, str(error)))
        return failed

    def _after(self, units: Sequence[Unit], what: str) -> int:
        """Rounds of the runs that come later, as far as they are known."""
        later = sum(unit.rounds - 1 for unit in units)
        if what == "tuning":
            seeds, (config,) = read(self._run.path)
            rounds = int(config.values["run"]["rounds"])
            later += len(seeds) * rounds
        return later

    def _play(self, part: Part) -> None:
        """Every round of a run that is left."""
        self._part, config = part, part.config
        self._settings = config.section("engine")
        self._rounds = int(config.values["run"]["rounds"])
        job, _ = door.served(config, self._deployment.data)
        about, settings = self._run.about(part), self._settings
        around = Around(settings.sites, about, settings.deadline, self.alive, self._removed)
        engine = _Patient(self._make(around), self)
        self._for_sites()
        self.stands("running")
        run(job, engine, config.section("run"), part.folder, self._finished)

    def _for_sites(self) -> None:
        """Until all sites are there, or time is up and enough are; RuntimeError once patience is
        out.

        A run that goes on waits, as long as it has patience, for those that its newest orders went
        to: the round that was interrupted is then the same as if it had not been.
        """
        began, settings = time.monotonic(), self._settings
        interrupted = set(self._part.asked())

        def ready() -> bool:
            missing = self._missing()
            if not missing:
                return True
            waited = time.monotonic() - began
            return waited > settings.wait and self._enough() and not interrupted & missing

        patience = max(settings.wait, settings.patience)
        if (
            not self._wait(began + patience, ready, "not all sites are there")
            and not self._enough()
        ):
            missing = self._missing()
            there = len(settings.sites) - len(missing)
            raise RuntimeError(
                f"{there} of {len(settings.sites)} sites came within {patience:g} s, and"
                f" engine.minimum is {settings.minimum}; missing: {', '.join(sorted(missing))}."
                " Start them, then go on with the run."
            )

    def somebody(self, orders: Sequence[Order], until: float) -> bool:
        """Until a site of these orders is there; False once the time is up, or none of them takes
        part any more.
        """
        asked = {order.client for order in orders} - set(self._removed())
        if not asked or time.monotonic() > until:
            return False
        time.sleep(1)
        why = "nobody answered; it goes on by itself once a site of this round is connected"
        return self._wait(until, lambda: bool(asked & self._nodes().keys()), why)

    def patience(self) -> float:
        """Until when a round waits for its first answer, by the monotonic clock."""
        return time.monotonic() + self._settings.patience

    def _for_room(self, error: OSError) -> bool:
        """Until the server's disk has room again; False once patience is out."""

        def room() -> bool:
            return shutil.disk_usage(self._run.path).free > _ROOM

        why = f"{error.filename}: {error.strerror}: free some space; it goes on by itself"
        return self._wait(self.patience(), room, why)

    def _missing(self) -> set[str]:
        return set(self._settings.sites) - self._nodes().keys() - set(self._removed())

    def _enough(self) -> bool:
        there = self._nodes().keys() & (set(self._settings.sites) - set(self._removed()))
        return len(there) >= self._settings.minimum

    def _removed(self) -> Collection[str]:
        with suppress(ValueError, OSError):  # it may be in the midst of being written by hand
            self._members = set(self._deployment.sites)
        return set(self._settings.sites) - self._members

    def asks(self, orders: Sequence[Order]) -> None:
        there = self._nodes().keys()
        self._part.asks([order.client for order in orders if order.client in there])


@dataclass(frozen=True)
class _Patient:
    """An engine that asks again where nobody at all answered."""

    engine: Engine
    stage: _Stage

    def clients(self) -> list[str]:
        return self.engine.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        until = self.stage.patience()
        while True:
            self.stage.asks(orders)
            replies = self.engine.exchange(orders)
            self.stage.silence = all(map(silent, replies))
            if not self.stage.silence or not self.stage.somebody(orders, until):
                return replies
            self.stage.stands("running")
