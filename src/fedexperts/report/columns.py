"""What a column is, and the columns and cells that tables share.

A column is one value of a row: its label, its unit, how it is computed, and its cell. This room
does not know which tables there are.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..answers import BINS, Bins
from ..metrics import Lowest, Score, lowest, mean_sd
from .claims import shown
from .collect import Experiment
from .paired import wilson

Row = TypeVar("Row")
Cell = Callable[[Experiment], str]
Value = Callable[[Score], float]

NONE = "-"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One value of a row; `says` is how it is computed, "" where the label says all.

    A label may have a line break where a head may break. Words are cut at their end where there is
    no room for them; numbers never are.
    """

    label: str
    says: str
    cell: Callable[[Row], str]
    unit: str = ""
    words: bool = False

    @property
    def head(self) -> str:
        """The label, and the unit below it."""
        if self.unit:
            return f"{self.label}\n({self.unit})"
        return self.label

    @property
    def legend(self) -> str:
        """What a reader must know of it; "" where the label says all."""
        if not self.says:
            return ""
        return f"{' '.join(self.head.split())}: {self.says}."


NAME: Column[Experiment] = Column("experiment", "", lambda e: shown(e.name), words=True)


def local_column() -> Column[Experiment]:
    says = "on a client's own test part by its own predictor after the last round, mean over all"
    return Column("local", f"{says} clients", averaged(lambda score: score.mean))


def server_column() -> Column[Experiment]:
    says = (
        "the server's own predictor, or the global model where it has none, on all test parts"
        " together"
    )
    return Column("server", says, if_shared(averaged(lambda score: score.server)))


def calibration_column(of: Callable[[Score], Bins | None], whose: str) -> Column[Experiment]:
    """How far from their accuracy `whose` answers' confidence is."""

    def cell(experiment: Experiment) -> str:
        every = [of(score) for score in experiment.last.values()]
        errors = [bins.error for bins in every if bins]
        if not errors or len(errors) < len(every):
            return NONE
        return f"{statistics.fmean(errors):.1f}"

    says = (
        f"expected calibration error in percent, of {whose} after the last round: the confidence of"
        f" answers apart from their accuracy, in {BINS} equal bins of confidence"
    )
    return Column("ece", says, cell)


def seeds_column(cell: Cell) -> Column[Experiment]:
    says = "standard deviation over seeds of the column before (number of seeds)"
    return Column("sd\nseeds", says, cell)


def time_column() -> Column[Experiment]:
    return Column("time", "training time, mean over runs", if_finished(_seconds), unit="s")


def if_finished(cell: Cell) -> Cell:
    """The cell, or "-" where no run is finished."""
    return _where(lambda experiment: bool(experiment.finished), cell)


def if_shared(cell: Cell) -> Cell:
    """The cell, or "-" where clients share no model."""
    return _where(lambda experiment: experiment.has_global, cell)


def _where(holds: Callable[[Experiment], bool], cell: Cell) -> Cell:
    def checked(experiment: Experiment) -> str:
        if holds(experiment):
            return cell(experiment)
        return NONE

    return checked


def averaged(value: Value) -> Cell:
    """The mean over seeds."""

    def cell(experiment: Experiment) -> str:
        return f"{statistics.fmean(map(value, experiment.last.values())):.1f}"

    return if_finished(cell)


def over_seeds(value: Value) -> Cell:
    """The standard deviation over seeds, with how many finished."""

    def cell(experiment: Experiment) -> str:
        scores, asked = list(experiment.last.values()), len(experiment.runs)
        if len(scores) == asked == 1:
            return "1 seed"
        seeds = str(asked)
        if len(scores) < asked:
            seeds = f"{len(scores)}/{asked}"
        if len(scores) < 2:
            return f"({seeds})"
        return f"{mean_sd([value(score) for score in scores])[1]:.1f} ({seeds})"

    return cell


def best(value: Value) -> Cell:
    """The mean over seeds after the round that is best on validation data."""

    def cell(experiment: Experiment) -> str:
        scores = experiment.best.values()
        if not scores:
            return NONE
        return f"{statistics.fmean(map(value, scores)):.1f}"

    return cell


def best_round(experiment: Experiment) -> str:
    rounds = [score.round for score in experiment.best.values()]
    if not rounds:
        return NONE
    if min(rounds) == max(rounds):
        return str(rounds[0])
    return f"{min(rounds)}-{max(rounds)}"


def _seconds(experiment: Experiment) -> str:
    runs = experiment.finished.values()
    seconds = statistics.fmean(sum(row["seconds"] for row in run.rounds) for run in runs)
    if seconds < 10:
        return f"{seconds:.1f}"
    return f"{seconds:.0f}"


def clients(experiment: Experiment) -> str:
    return str(len(experiment.clients))


def of_lowest(cell: Callable[[Lowest], str]) -> Cell:
    """A cell about the client with the lowest accuracy in any seed."""
    return if_finished(lambda experiment: cell(lowest(experiment.last)))


def percent(low: Lowest) -> str:
    return f"{100 * low.correct / low.examples:.1f}"


def hits(low: Lowest) -> str:
    return f"{low.correct}/{low.examples}"


def interval(low: Lowest) -> str:
    return "{:.0f}-{:.0f}".format(*wilson(low.correct, low.examples))


def size(count: float) -> str:
    """A number of parameters or bytes, three digits of it."""
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}G"


# ---- setting
