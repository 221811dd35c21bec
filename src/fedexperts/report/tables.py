"""The tables: one line an experiment, and what experts add.

A column is one value of a row: its label, its unit, how it is computed, and its cell. Cells are
made from metrics.py and this room's neighbours and nothing else; the page shows the same tables as
the terminal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from ..metrics import Lowest, Score, lowest, mean_sd
from .claims import WHOSE, Claim, claims, legend, notes, sentences, shown, signed, unknown
from .collect import Experiment, judged_by
from .paired import wilson
from .routing import lines, mean

Row = TypeVar("Row")
Cell = Callable[[Experiment], str]
Value = Callable[[Score], float]

_NONE = "-"


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


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """All tables for which there is something to show."""
    found = [comparison(experiments), differing(experiments), held(experiments)]
    if any(e.controls for e in experiments):
        found.append(added(experiments))
    if any(e.routing for e in experiments):
        found.append(routed(experiments))
    return found


def comparison(experiments: Sequence[Experiment]) -> Table:
    """One row an experiment; the server's accuracy leads where they are judged by it."""
    of = judged_by(experiments)
    columns = {"clients": _by_clients, "server": _by_server}[of]()
    about = (
        f"Accuracies are top-1, means over seeds. {_commonest(experiments, of)}None of them is"
        " from the round that is best on test data."
    )
    return _table("Accuracy in percent", experiments, [_NAME, *columns], about, notes(experiments))


def _commonest(experiments: Sequence[Experiment], of: str) -> str:
    """What is reached without looking at an input; "" where runs do not know."""
    found = [experiment.commonest(of) for experiment in experiments]
    levels = sorted({f"{level:.3g} %" for level in found if level})
    if not levels:
        return ""
    whose = {"clients": "each client's", "server": "the"}[of]
    return f"Always predicting {whose} commonest class gives {' or '.join(levels)}. "


def differing(experiments: Sequence[Experiment]) -> Table:
    """How far clients are from each other, and the client that fares worst."""
    columns = [
        _NAME,
        Column("clients", "all of them, sampled or not", _if_finished(_clients)),
        Column(
            "sd",
            "standard deviation of local accuracy over clients",
            _averaged(lambda score: score.spread),
        ),
        Column(
            "sampling",
            "the standard deviation that the small test parts alone would give, if all clients"
            " were as accurate as the mean",
            _averaged(lambda score: score.sampling),
        ),
        Column(
            "lowest", "the lowest local accuracy of any client in any seed", _of_lowest(_percent)
        ),
        Column("correct", "that client's correct answers of its test examples", _of_lowest(_hits)),
        Column(
            "95 %",
            "Wilson's interval of that client, as if it had not been picked as the lowest",
            _of_lowest(_wilson),
        ),
        Column("seed", "the seed in which that was", _of_lowest(lambda low: str(low.seed))),
    ]
    about = "Local accuracy in percent after the last round."
    return _table("How clients differ", experiments, columns, about)


def held(experiments: Sequence[Experiment]) -> Table:
    """How large clients, what travels, and the server are."""
    columns = [
        _held(who, what) for who in ("client", "down", "up", "server") for what in _QUANTITIES
    ]
    about = (
        "params: the numbers in the tensors, parameters and buffers; k: 1000. client: what one"
        " client trains. down, up: what one client receives and sends in a round. server: what it"
        " holds after the last round, including what it keeps about clients. Means over clients,"
        " rounds and seeds. Frozen weights are not counted."
    )
    return _table("What is held and sent", experiments, [_NAME, *columns], about)


_QUANTITIES = {"parameters": "params", "bytes": "bytes"}


def _held(who: str, what: str) -> Column[Experiment]:
    def cell(experiment: Experiment) -> str:
        if (who, what) not in experiment.sizes:
            return _NONE
        return _size(experiment.sizes[who, what])

    return Column(f"{who}\n{_QUANTITIES[what]}", "", cell)


def added(experiments: Sequence[Experiment]) -> Table:
    """Paired differences of every experiment to the controls that its method names."""
    found = claims(experiments)
    below = [*legend(found), *sentences(found), *unknown(experiments)]
    return _table("What do experts add?", found, _added(), "", below)


def _added() -> list[Column[Claim]]:
    columns: list[Column[Claim]] = [
        Column("experiment", "", lambda claim: shown(claim.experiment.name), words=True),
        Column("against", "", lambda claim: claim.against, words=True),
        Column(
            "of",
            "whose accuracy is compared: local is the mean over clients",
            lambda claim: WHOSE[claim.of],
        ),
        Column(
            "points",
            "difference of accuracy after the last round, paired by seed, mean over seeds",
            lambda claim: signed(claim.difference.mean),
        ),
        Column("low", "lower end of its 95 % interval", lambda claim: _end(claim, 0)),
        Column("high", "upper end of it", lambda claim: _end(claim, 1)),
    ]
    says = {
        "better": "pairs of client and seed in which it is better",
        "worse": "those in which it is worse",
        "same": "those in which both are equal",
    }
    return columns + [Column(name, text, _pairs(name)) for name, text in says.items()]


def _end(claim: Claim, which: int) -> str:
    end = claim.difference.interval[which]
    if math.isnan(end):
        return _NONE
    return signed(end)


def _pairs(which: str) -> Callable[[Claim], str]:
    def cell(claim: Claim) -> str:
        found = claim.difference
        if not (found.better or found.worse or found.same):  # the server's accuracy has no pairs
            return _NONE
        return str(getattr(found, which))

    return cell


def routed(experiments: Sequence[Experiment]) -> Table:
    """What every server's mixture does, whole and without its parts."""
    columns = [
        _routed("server", "top", "as it predicts, with as many experts as it is meant to use"),
        _routed("dense", "dense", "all experts, weighted by the gate"),
        _routed("flat\ngate", "uniform", "all experts with equal shares"),
        _routed("no\nmain", "routed", "without the main experts"),
        _routed("main\nalone", "main", "the main experts alone"),
        _routed("best\nexpert", "best", "the best of the routed experts alone"),
        _routed("worst\nexpert", "worst", "the worst of them alone"),
        _routed(
            "apart",
            "apart",
            "distance of the routed experts from their mean, divided by the mean's norm",
            digits=3,
        ),
        _routed("entropy", "entropy", "of the gate's shares, in nats", digits=2),
        _routed("alpha", "alpha", "share of the routed experts against the main ones", digits=2),
    ]
    about = (
        "Test accuracy in percent of the server's mixture after the last round, means over seeds."
    )
    with_mixture = [e for e in experiments if e.routing]
    below = lines(with_mixture)
    return _table("What does routing add?", with_mixture, [_NAME, *columns], about, below)


def _routed(label: str, fact: str, says: str, digits: int = 1) -> Column[Experiment]:
    def cell(experiment: Experiment) -> str:
        value = mean(experiment, fact)
        if math.isnan(value):
            return _NONE
        return f"{value:.{digits}f}"

    return Column(label, says, cell)


# ---- columns


def _by_clients() -> list[Column[Experiment]]:
    return [
        _local_column(),
        _seeds_column(_over_seeds(lambda score: score.mean)),
        Column(
            "best\nvalid",
            "local accuracy after the round that is best on validation data",
            _best(lambda score: score.mean),
        ),
        Column("at\nround", "that round", _best_round),
        _server_column(),
        _time_column(),
    ]


def _by_server() -> list[Column[Experiment]]:
    return [
        _server_column(),
        _seeds_column(_if_shared(_over_seeds(lambda score: score.server))),
        _local_column(),
        Column(
            "best\nvalid",
            "the server's accuracy after the round that is best on validation data (whose,"
            " run.judged_by says)",
            _if_shared(_best(lambda score: score.server)),
        ),
        _time_column(),
    ]


_NAME: Column[Experiment] = Column("experiment", "", lambda e: shown(e.name), words=True)


def _local_column() -> Column[Experiment]:
    says = "on a client's own test part by its own predictor after the last round, mean over all"
    return Column("local", f"{says} clients", _averaged(lambda score: score.mean))


def _server_column() -> Column[Experiment]:
    says = (
        "the server's own predictor, or the global model where it has none, on all test parts"
        " together"
    )
    return Column("server", says, _if_shared(_averaged(lambda score: score.server)))


def _seeds_column(cell: Cell) -> Column[Experiment]:
    says = "standard deviation over seeds of the column before (number of seeds)"
    return Column("sd\nseeds", says, cell)


def _time_column() -> Column[Experiment]:
    return Column("time", "training time, mean over runs", _if_finished(_seconds), unit="s")


def _if_finished(cell: Cell) -> Cell:
    """The cell, or "-" where no run is finished."""

    def checked(experiment: Experiment) -> str:
        if not experiment.finished:
            return _NONE
        return cell(experiment)

    return checked


def _if_shared(cell: Cell) -> Cell:
    """The cell, or "-" where clients share no model."""

    def checked(experiment: Experiment) -> str:
        if not experiment.has_global:
            return _NONE
        return cell(experiment)

    return checked


def _averaged(value: Value) -> Cell:
    """The mean over seeds."""

    def cell(experiment: Experiment) -> str:
        return f"{statistics.fmean(map(value, experiment.last.values())):.1f}"

    return _if_finished(cell)


def _over_seeds(value: Value) -> Cell:
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


def _best(value: Value) -> Cell:
    """The mean over seeds after the round that is best on validation data."""

    def cell(experiment: Experiment) -> str:
        scores = experiment.best.values()
        if not scores:
            return _NONE
        return f"{statistics.fmean(map(value, scores)):.1f}"

    return cell


def _best_round(experiment: Experiment) -> str:
    rounds = [score.round for score in experiment.best.values()]
    if not rounds:
        return _NONE
    if min(rounds) == max(rounds):
        return str(rounds[0])
    return f"{min(rounds)}-{max(rounds)}"


def _seconds(experiment: Experiment) -> str:
    runs = experiment.finished.values()
    seconds = statistics.fmean(sum(row["seconds"] for row in run.rounds) for run in runs)
    if seconds < 10:
        return f"{seconds:.1f}"
    return f"{seconds:.0f}"


def _clients(experiment: Experiment) -> str:
    return str(len(experiment.clients))


def _of_lowest(cell: Callable[[Lowest], str]) -> Cell:
    """A cell about the client with the lowest accuracy in any seed."""
    return _if_finished(lambda experiment: cell(lowest(experiment.last)))


def _percent(low: Lowest) -> str:
    return f"{100 * low.right / low.examples:.1f}"


def _hits(low: Lowest) -> str:
    return f"{low.right}/{low.examples}"


def _wilson(low: Lowest) -> str:
    return "{:.0f}-{:.0f}".format(*wilson(low.right, low.examples))


def _size(count: float) -> str:
    """A number of parameters or bytes, three digits of it."""
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}G"


# ---- setting


def _table(
    title: str,
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    about: str,
    below: Iterable[str] = (),
) -> Table:
    """The rows; under them what the columns are, if there are rows, and lines of its own."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", padding=0
    )
    for column in columns:
        if column.words:
            table.add_column(column.head, overflow="ellipsis", min_width=8)
        else:
            table.add_column(column.head, justify="right", no_wrap=True)
    for row in rows:
        name, *others = (column.cell(row) for column in columns)
        # a row's own name stands on one line
        table.add_row(Text(name, no_wrap=True), *map(Text, others))
    legends = [column.legend for column in columns if column.legend and rows]
    table.caption = Text("\n".join(line for line in (about, *legends, *below) if line))
    return table
