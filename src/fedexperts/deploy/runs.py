"""A run of a deployment, on the server's machine: what it was asked, how it stands, and its rounds.

    RUN/flower.json    the run's own name for its sites, and Flower's number of it
    RUN/status.json    how it stands: waiting, running, finished, failed; who is connected
    RUN/alive          touched every second by the process that carries it out
    (and what every run's folder holds)

The operator's terminal and the process that carries the run out share nothing but this folder.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .. import config as door
from ..config import Config, FlowerSettings
from ..data.federation import check_folder
from ..disk import read_checked, write_checked
from ..engine import Engine
from ..loop import run
from ..metrics import Row
from ..options import Values
from ..rundir import RunDir
from .folder import Deployment

Nodes = Callable[[], Mapping[str, int]]
# names, about the run, deadline
MakeEngine = Callable[[Sequence[str], Mapping[str, str], float], Engine]


@dataclass(frozen=True)
class Status:
    """How a run stands."""

    state: str = "submitted"  # then waiting, running, and at last finished or failed
    rounds: int = 0
    online: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    why: str = ""

    @property
    def over(self) -> bool:
        return self.state in ("finished", "failed")


@dataclass(frozen=True)
class Run:
    """One run's folder in a deployment."""

    path: Path

    @classmethod
    def create(cls, deployment: Deployment, config: Config, name: str) -> "Run":
        """A new run, checked as far as it can be without its sites; ValueError if it is unfit."""
        # of no other run, at a site that takes part in several federations
        known_as = f"{name}-{secrets.token_hex(4)}"
        check_folder(f"the run's name {name!r:.200}", known_as)
        job, federation = door.served(config, deployment.data)
        run = cls(
            RunDir.create(
                deployment.path / "runs" / name, config.toml(), door.about(config, federation)
            ).path
        )
        write_checked(run.path / "flower.json", {"id": known_as, "run": 0})
        run.stands(Status(rounds=job.rounds))
        return run

    @classmethod
    def at(cls, deployment: Deployment, name: str) -> "Run":
        """The run of this name; ValueError if there is none."""
        run = cls(deployment.path / "runs" / name)
        if not (run.path / "flower.json").exists():
            known = sorted(path.parent.name for path in run.path.parent.glob("*/flower.json"))
            raise ValueError(
                f"no run {name} in {deployment.path}; there are {', '.join(known) or 'none yet'}"
            )
        return run

    @property
    def folder(self) -> RunDir:
        return RunDir(self.path)

    @property
    def config(self) -> Config:
        return door.parse(self.folder.text("config.toml"), str(self.path / "config.toml"))

    @property
    def id(self) -> str:
        return str(self._flower["id"])

    @property
    def number(self) -> int:
        """Flower's number of the run, by which it is watched and stopped."""
        return int(self._flower["run"])

    @property
    def _flower(self) -> Values:
        remedy = (
            "put a backup in its place: without the run's name, its sites do not find what they"
            " kept for it"
        )
        return read_checked(self.path / "flower.json", remedy)

    def numbered(self, number: int) -> None:
        write_checked(self.path / "flower.json", {"id": self.id, "run": number})

    @property
    def status(self) -> Status:
        remedy = (
            "delete it, and go on with the run by `fedexperts deploy resume FOLDER"
            f" {self.path.name}`"
        )
        return Status(**read_checked(self.path / "status.json", remedy))

    def begins_anew(self) -> None:
        """From its last finished round: whatever ended it before is over."""
        self.stands(Status(rounds=int(self.config.values["run"]["rounds"])))

    def stands(self, status: Status) -> None:
        write_checked(self.path / "status.json", asdict(status))

    def lives(self) -> None:
        """A sign of life of the process that carries the run out."""
        (self.path / "alive").touch()

    def quiet(self) -> float:
        """Seconds since the last one; infinite before the first."""
        sign = self.path / "alive"
        return time.time() - sign.stat().st_mtime if sign.exists() else float("inf")

    def rows(self) -> list[Row]:
        """The rows of finished rounds, the newest perhaps not checkpointed yet."""
        return self.folder.latest()


def fitted(config: Config, deployment: Deployment) -> Config:
    """The experiment as named sites run it, nothing searched for; ConfigError if they cannot."""
    engine = config.values["engine"]
    given = {key: value for key, value in engine.items() if engine["name"] == "flower"} | {
        "name": "flower"
    }
    known = list(deployment.sites)
    asked = given.get("sites") or known
    if strange := sorted(set(asked) - set(known)):
        raise door.ConfigError(
            f"engine.sites: {', '.join(strange)} may not take part here; known are"
            f" {', '.join(known) or 'none'}, and `fedexperts deploy add {deployment.path}"
            f" {strange[0]}` adds one"
        )
    if not asked:
        raise door.ConfigError(
            f"no site may take part yet: type `fedexperts deploy add {deployment.path} NAME`"
        )
    return door.resolve(
        [(config.nested() | {"engine": given | {"sites": sorted(asked)}, "tune": {}}, config.name)]
    )


def carry_out(deployment: Deployment, name: str, nodes: Nodes, make: MakeEngine) -> None:
    """The run's rounds, from wherever it stands, with the sites that are there."""
    deployed = Run(deployment.path / "runs" / name)
    config = deployed.config
    settings: FlowerSettings = config.section("engine")
    rounds = config.values["run"]["rounds"]

    def stands(state: str, why: str = "") -> None:
        online = sorted(nodes().keys() & set(settings.sites))
        deployed.stands(
            Status(state, rounds, online, sorted(set(settings.sites) - set(online)), why)
        )

    over = threading.Event()
    threading.Thread(target=_beat, args=(deployed, over), daemon=True).start()
    try:
        job, _ = door.served(config, deployment.data)
        engine = make(
            settings.sites, {"config": config.toml(), "run": deployed.id}, settings.deadline
        )
        _wait(settings, nodes, stands)
        stands("running")
        run(job, engine, config.section("run"), deployed.folder, lambda _: stands("running"))
        stands("finished")
    except BaseException as error:
        deployed.stands(Status("failed", rounds, why=str(error) or type(error).__name__))
        raise
    finally:
        over.set()


def _beat(run: Run, over: threading.Event) -> None:
    while not over.wait(1):
        run.lives()


def _wait(settings: FlowerSettings, nodes: Nodes, stands: Callable[[str], None]) -> None:
    """Until all sites are there, or time is up and enough are; RuntimeError otherwise."""
    until = time.monotonic() + settings.wait
    while True:
        missing = sorted(set(settings.sites) - nodes().keys())
        there = len(settings.sites) - len(missing)
        if not missing or (time.monotonic() > until and there >= settings.minimum):
            return
        if time.monotonic() > until:
            raise RuntimeError(
                f"{there} of {len(settings.sites)} sites came within {settings.wait:g} s, and"
                f" engine.minimum is {settings.minimum}; missing: {', '.join(missing)}. Start them,"
                " then go on with the run."
            )
        stands("waiting")
        time.sleep(1)
