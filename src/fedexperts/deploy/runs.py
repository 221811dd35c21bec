"""What an operator submits in a deployment, on the server's machine: a run, or a study of several;
what it was asked, and how it stands.

    RUN/flower.json    its own name for its sites, and Flower's number of it
    RUN/status.json    how it stands: waiting, running, finished, stopped, failed; who is connected
    RUN/asked.json     the sites that its newest orders went to
    RUN/stop           that it is to stop: "now", or "round", after the one that is going on
    RUN/alive          touched by the loop that carries it out, whenever it comes round
    (and what every run's folder holds)

A study's folder holds study.json and, below it, a folder for each run, as any study's does
(study.py); each run of it has an asked.json of its own.

The operator's terminal and the process that carries a run out share nothing but this folder.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from .. import config as door
from .. import study
from ..config import Config
from ..data.federation import check_folder
from ..disk import read_checked, write_checked
from ..metrics import Row
from ..options import Values
from ..post import About
from ..rundir import RunDir, is_run
from ..tensors import write
from ..units import Unit
from .folder import Deployment


@dataclass(frozen=True)
class Status:
    """How a run stands."""

    state: str = "submitted"  # then waiting, running, and at last finished, stopped or failed
    rounds: int = 0
    online: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    why: str = ""
    part: str = ""  # which run of a study goes on, as a path in it
    later: int = 0  # rounds of the study's runs that come after that one, as far as is known

    @property
    def over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Part:
    """The folder of one run that is carried out: of the one that was submitted, or one of a
    study's.
    """

    path: Path

    @property
    def folder(self) -> RunDir:
        return RunDir(self.path)

    @property
    def config(self) -> Config:
        return door.parse(self.folder.text("config.toml"), str(self.path / "config.toml"))

    def asks(self, sites: Sequence[str]) -> None:
        """Note to whom the newest orders go: a run that goes on waits for them."""
        if sorted(sites) != self.asked():
            write_checked(self.path / "asked.json", {"sites": sorted(sites)})

    def asked(self) -> list[str]:
        """The sites that the newest orders went to; none before the first."""
        if not (self.path / "asked.json").exists():
            return []
        remedy = "delete it: the run then waits as it does at its start"
        return list(read_checked(self.path / "asked.json", remedy)["sites"])

    def rows(self) -> list[Row]:
        """The rows of finished rounds, the newest perhaps not checkpointed yet."""
        return self.folder.latest()


@dataclass(frozen=True)
class Run(Part):
    """What was submitted, one run or a study, in a folder of a deployment."""

    @classmethod
    def create(cls, deployment: Deployment, config: Config, name: str) -> "Run":
        """A new run, checked as far as it can be without its sites; ValueError if it is unfit."""
        known_as = _known_as(name)
        job, federation = door.served(config, deployment.data)
        run = cls(deployment.path / "runs" / name)
        RunDir.create(run.path, config.toml(), door.about(config, federation))
        run._submitted(known_as, job.rounds)
        return run

    @classmethod
    def create_study(
        cls,
        deployment: Deployment,
        config: Config,
        name: str,
        seeds: Sequence[int],
        trackers: Mapping[str, str],
    ) -> "Run":
        """A new study: its values are tuned, if it has [tune], then a run follows for each seed."""
        known_as = _known_as(name)
        job, _ = door.served(replace(config, tune={}), deployment.data)
        run = cls(deployment.path / "runs" / name)
        study.create(run.path, [config], seeds, trackers)
        run._submitted(known_as, job.rounds)
        return run

    def _submitted(self, known_as: str, rounds: int) -> None:
        self.stands(Status(rounds=rounds))
        # last: from now on it is known
        write_checked(self.path / "flower.json", {"id": known_as, "run": 0})

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
    def is_study(self) -> bool:
        return (self.path / study.STUDY).exists()

    @property
    def config(self) -> Config:
        """The experiment; of a study the one that its runs come from."""
        if self.is_study:
            _, (experiment,) = study.read(self.path)
            return experiment
        return super().config

    @property
    def id(self) -> str:
        return str(self._flower["id"])

    @property
    def number(self) -> int:
        """Flower's number of the run, by which it is watched and stopped; 0 until the server has
        handed it over.
        """
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

    def waited(self) -> float:
        """Seconds since it was submitted, or handed to Flower."""
        return time.time() - (self.path / "flower.json").stat().st_mtime

    def begins_anew(self) -> None:
        """From its last finished round: whatever ended it before is over."""
        (self.path / "stop").unlink(missing_ok=True)
        self.numbered(0)
        self.stands(Status(rounds=int(self.config.values["run"]["rounds"])))

    def stands(self, status: Status) -> None:
        write_checked(self.path / "status.json", asdict(status))

    def stop(self, when: Literal["now", "round"]) -> None:
        """Ask the process that carries the run out to stop."""
        write(self.path / "stop", when.encode())

    def stops(self) -> str:
        """When the run is to stop: "now", "round", or "", not at all."""
        try:
            return (self.path / "stop").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def lives(self) -> None:
        """A sign of life of the loop that carries the run out, never of a thread beside it."""
        (self.path / "alive").touch()

    def quiet(self) -> float:
        """Seconds since the last one; infinite before the first."""
        sign = self.path / "alive"
        return time.time() - sign.stat().st_mtime if sign.exists() else float("inf")

    # ---- the runs of a study; a run that was submitted alone is its own only one

    @property
    def now(self) -> Part:
        """The run that goes on, or went on last."""
        return Part(self.path / self.status.part)

    def parts(self) -> list[Part]:
        """The runs that have begun."""
        if not self.is_study:
            return [self]
        folders = sorted(self.path.glob("*/tune/*")) + sorted(self.path.glob("*/seed-*"))
        return [Part(folder) for folder in folders if is_run(folder)]

    def part(self, unit: Unit, deployment: Deployment) -> Part:
        """The folder of one of the study's runs, new or as it stands."""
        if not unit.folder.exists():
            config = replace(unit.config, tune={})
            _, federation = door.served(config, deployment.data)
            RunDir.create(unit.folder, config.toml(), door.about(config, federation))
        return Part(unit.folder)

    def named(self, part: Part) -> str:
        """As the operator reads it: "seed-0", or "tune/003"; nothing, if it is the only one."""
        return "/".join(part.path.relative_to(self.path).parts[1:])

    def about(self, part: Part) -> About:
        """What sites are told of the run beside its orders, the name by which they keep what is
        theirs included.
        """
        text = {"config": part.config.toml(), "run": self.id}
        if not self.is_study:
            return text
        name, _, token = self.id.rpartition("-")
        inner = self.named(part).replace("/", "-")
        return text | {"run": f"{name}.{inner}-{token}", "study": name, "runs": str(self.size)}

    @property
    def size(self) -> int:
        """How many runs a study has, its trials included, at most."""
        seeds, _ = study.read(self.path)
        if not self.config.tune:
            return len(seeds)
        return study.budget([self.config]) + len(seeds)


def _known_as(name: str) -> str:
    """A run's name for its sites; ValueError for one that cannot name a folder."""
    # of no other run, at a site that takes part in several federations
    known_as = f"{name}-{secrets.token_hex(4)}"
    check_folder(f"the run's name {name!r:.200}", known_as)
    return known_as


def fitted(config: Config, deployment: Deployment) -> Config:
    """The experiment as named sites run it; ConfigError if they cannot."""
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
        [(config.nested() | {"engine": given | {"sites": sorted(asked)}}, config.name)]
    )


def all_runs(deployment: Deployment) -> list[Run]:
    """Every run of a deployment, by name."""
    return [Run(file.parent) for file in sorted(deployment.path.glob("runs/*/flower.json"))]


def under_way(deployment: Deployment) -> list[Run]:
    """Runs that have begun and are not over, whether anybody carries them out or not."""
    return [run for run in all_runs(deployment) if not run.status.over]


def waiting(deployment: Deployment) -> list[Run]:
    """Those that Flower has not been given yet."""
    return [run for run in all_runs(deployment) if not run.number and not run.status.over]
