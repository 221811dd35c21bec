"""What follows a study's runs elsewhere: TensorBoard, MLflow, Weights & Biases.

    track.json      in a study's folder: which trackers, and where
    tracked.json    in a run's folder: its name there, and the last round that each tracker knows

A tracker is told the figures of rounds that a checkpoint holds, read from the run's logs: a run is
the same with and without, and going on tells no round twice. This room does not know what a figure
means, nor how a run is made.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..disk import read_checked, write_checked
from ..metrics import figures
from ..options import Values
from ..rundir import LOGS, RunDir

PLACES = "track.json"
TOLD = "tracked.json"
_UNTOLD = "put a backup in its place, or delete it to stop logging to trackers"
_AGAIN = (
    "put a backup in its place, or delete it to log the run again from its beginning, under another"
    " name"
)


@dataclass(frozen=True)
class Followed:
    """A run as a tracker knows it."""

    study: str
    name: str  # in the study, as "pfedmoap/seed-0"
    id: str  # of no other run
    folder: Path
    settings: Mapping[str, object]


class Tracker(Protocol):
    """One run at one tracker, made by `begin(address, run, told)` of a file in this room."""

    def tell(self, round: int, figures: Mapping[str, float]) -> None: ...

    def end(self, finished: bool) -> None: ...


Begin = Callable[[str, Followed, int], Tracker]


def create(study: Path, name: str, addresses: Mapping[str, str]) -> None:
    """Write down who follows a study; ValueError if TensorBoard's folder exists already."""
    fixed = {kind: _absolute(kind, address) for kind, address in addresses.items()}
    if "tensorboard" in fixed:
        fixed["tensorboard"] = str(Path(fixed["tensorboard"]) / name)
        if Path(fixed["tensorboard"]).exists():
            raise ValueError(
                f"{fixed['tensorboard']} already exists; use another folder for TensorBoard"
            )
    if fixed:
        write_checked(study / PLACES, fixed)


def _absolute(kind: str, address: str) -> str:
    """A study may be resumed from another folder than it was begun in."""
    file = "sqlite:///"
    if kind == "mlflow" and address.startswith(file):
        return file + str(Path(address.removeprefix(file)).absolute())
    return str(Path(address).absolute()) if kind == "tensorboard" else address


def addresses(study: Path) -> dict[str, str]:
    """Who follows a study, and where."""
    file = study / PLACES
    return read_checked(file, _UNTOLD) if file.exists() else {}


@dataclass(frozen=True)
class Following:
    """The trackers of a study. A failing one is reported once and dropped; the runs continue."""

    study: Path
    trackers: dict[str, tuple[Begin, str]]  # by kind, with the address
    warn: Callable[[str], None]
    again: str  # the command that sends what a failed tracker was not told
    _begun: dict[tuple[str, Path], Tracker] = field(default_factory=dict)

    def __call__(self, folder: Path, name: str, settings: Mapping[str, object], last: int) -> None:
        """Tell every tracker of the rounds of a run, up to the `last`, that it has not heard of."""
        for kind in list(self.trackers):
            self._try(kind, self._tell, kind, folder, name, settings, last)

    def end(self) -> None:
        """No more will be told now: what has begun is unfinished."""
        for (kind, _), tracker in self._begun.items():
            if kind in self.trackers:
                self._try(kind, tracker.end, False)

    def _try(self, kind: str, act: Callable[..., None], *given: object) -> None:
        try:
            act(*given)
        # whatever a server, a disk or a library has: it is not the run's
        except Exception as error:
            del self.trackers[kind]
            self.warn(
                f"Stopped logging to {kind} ({error}). The runs continue; `{self.again}` sends the"
                " rest."
            )

    def _tell(
        self, kind: str, folder: Path, name: str, settings: Mapping[str, object], last: int
    ) -> None:
        run, told = RunDir(folder), _told(folder)
        newest, heard = run.done(), int(told["rounds"].get(kind, -1))
        if newest is None or newest <= heard:
            return
        if (kind, folder) not in self._begun:
            begin, address = self.trackers[kind]
            followed = Followed(self.study.name, name, told["id"], folder, settings)
            self._begun[kind, folder] = begin(address, followed, heard)
        for round, values in figures(*(run.rows(log) for log in LOGS)).items():
            if heard < round <= newest:  # a later one may just be written
                self._begun[kind, folder].tell(round, values)
        told["rounds"][kind] = newest
        write_checked(folder / TOLD, told)
        if newest >= last:
            self._begun.pop((kind, folder)).end(True)


def _told(folder: Path) -> Values:
    file = folder / TOLD
    return (
        read_checked(file, _AGAIN) if file.exists() else {"id": secrets.token_hex(4), "rounds": {}}
    )
