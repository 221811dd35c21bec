"""The tables: one line an experiment, and what experts add.

A column is one value: its head, its cell, and the sentence that says how it is computed. Cells are
made from metrics.py and this room's neighbours and nothing else; the page shows the same tables as
the terminal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from ..metrics import Lowest, Score, lowest, mean_sd
from .claims import Claim, claims, legend, notes, sentences, shown, signed, unknown
from .collect import Experiment, judged_by_server
from .paired import wilson
from .routing import lines, mean

Cell = Callable[[Experiment], str]
Value = Callable[[Score], float]

_NONE = "-"
_SD = "standard deviation of it over seeds (their number)"
_LOCAL = (
    "on a client's own test part by its own predictor after the last round, mean over all clients"
)


@dataclass(frozen=True)
class Column:
    """One value of an experiment; `says` is how it is computed, "" where the head says all."""

    head: str
    says: str
    cell: Cell


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """All tables for which there is something to show."""
    return [
        comparison(experiments),
        differing(experiments),
        held(experiments),
        *([added(experiments)] if any(e.controls for e in experiments) else []),
        *([routed(experiments)] if any(e.routing for e in experiments) else []),
    ]


def comparison(experiments: Sequence[Experiment]) -> Table:
    """One row an experiment; the server's accuracy leads where they are judged by it."""
    by_server = judged_by_server(experiments)
    about = (
        f"Accuracies are top-1, means over seeds. {_commonest(experiments, by_server)}Nothing here"
        " is from the round that is best on test data."
    )
    columns = _by_server() if by_server else _by_clients()
    return _table("Accuracy in percent", experiments, columns, about, notes(experiments))


def _commonest(experiments: Sequence[Experiment], by_server: bool) -> str:
    """What is reached without looking at an input; "" where runs do not know."""
    levels = {
        f"{level:.3g} %"
        for e in experiments
        if (level := e.commonest("server" if by_server else "clients"))
    }
    whose = "the" if by_server else "each client's"
    return (
        f"Always saying {whose} commonest class gives {' or '.join(sorted(levels))}. "
        if levels
        else ""
    )


def differing(experiments: Sequence[Experiment]) -> Table:
    """How far clients are from each other, and the client that fares worst."""
    columns = [
        Column(
            "clients", "all of them, sampled or not", _if_finished(lambda e: str(len(e.clients)))
        ),
        Column(
            "sd",
            "standard deviation of local accuracy over clients",
            _averaged(lambda score: score.spread),
        ),
        Column(
            "sampling",
            "the part of it that finite test parts alone would give, if all clients were as"
            " accurate as the mean",
            _averaged(lambda score: score.sampling),
        ),
        Column(
            "lowest", "the lowest local accuracy of any client in any seed", _of_lowest(_percent)
        ),
        Column(
            "right",
            "its right answers of its test examples",
            _of_lowest(lambda low: f"{low.right}/{low.examples}"),
        ),
        Column(
            "95 %",
            "Wilson's interval of that client, as if it had not been picked as the lowest",
            _of_lowest(_wilson),
        ),
        Column("seed", "the seed in which that was", _of_lowest(lambda low: str(low.seed))),
    ]
    return _table(
        "How clients differ",
        experiments,
        columns,
        "Local accuracy in percent after the last round.",
    )


def held(experiments: Sequence[Experiment]) -> Table:
    """How large clients, what travels, and the server are."""
    places = [
        (who, what)
        for who in ("client", "down", "up", "server")
        for what in ("parameters", "bytes")
    ]

    def column(who: str, what: str) -> Column:
        head = f"{who}\n{what.replace('parameters', 'params')}"
        return Column(
            head, "", lambda e: _size(e.sizes[who, what]) if (who, what) in e.sizes else _NONE
        )

    about = (
        "params: the numbers in the tensors, parameters and buffers; k: 1000. client: what one"
        " client trains. down, up: what one client is sent and sends in a round. server: what it"
        " holds after the last round, its notes on clients too. Means over clients, rounds and"
        " seeds. Frozen weights are not counted."
    )
    return _table("What is held and sent", experiments, [column(*place) for place in places], about)


def added(experiments: Sequence[Experiment]) -> Table:
    """Paired differences of every experiment to the controls that its method names."""
    found = claims(experiments)
    about = (
        "points: difference of accuracy after the last round, paired by seed, mean over seeds: of"
        " local accuracy, mean over clients, or of the server's. low, high: its 95 % interval."
        " better, worse, same: pairs of client and seed."
    )
    below = [*([about] if found else []), *legend(found), *sentences(found), *unknown(experiments)]
    heads = ("experiment", "against", "of", "points", "low", "high", "better", "worse", "same")
    table = _empty("What do experts add?", heads, "\n".join(below), words=3)
    for claim in found:
        table.add_row(*_added(claim))
    return table


def _added(claim: Claim) -> list[Text | str]:
    found = claim.difference
    names = [
        Text(shown(claim.experiment.name)),
        Text(claim.against),
        "local" if claim.of == "clients" else "server",
    ]
    interval = [_NONE if math.isnan(end) else signed(end) for end in found.interval]
    pairs = (found.better, found.worse, found.same)
    return [
        *names,
        signed(found.mean),
        *interval,
        *(map(str, pairs) if any(pairs) else [_NONE] * 3),
    ]


def routed(experiments: Sequence[Experiment]) -> Table:
    """What every server's mixture does, whole and without its parts."""

    def column(head: str, fact: str, says: str, digits: int = 1) -> Column:
        def cell(experiment: Experiment) -> str:
            value = mean(experiment, fact)
            return _NONE if math.isnan(value) else f"{value:.{digits}f}"

        return Column(head, says, cell)

    columns = [
        column("server", "top", "as it predicts, with as many experts as it is meant to"),
        column("dense", "dense", "all experts, weighed by the gate"),
        column("flat\ngate", "uniform", "all experts alike"),
        column("no\nmain", "routed", "without the main experts"),
        column("main\nalone", "main", "the main experts alone"),
        column("best\nexpert", "best", "the best of the routed experts alone"),
        column("worst\nexpert", "worst", "the worst of them alone"),
        column(
            "apart",
            "apart",
            "distance of the routed experts from their mean, as a share of the mean's norm",
            3,
        ),
        column("entropy", "entropy", "of the gate's weights, in nats", 2),
        column("alpha", "alpha", "weight of the routed experts against the main ones", 2),
    ]
    about = (
        "Test accuracy in percent of the server's mixture after the last round, means over seeds."
    )
    with_mixture = [e for e in experiments if e.routing]
    return _table("What does routing add?", with_mixture, columns, about, lines(with_mixture))


# ---- columns


def _by_clients() -> list[Column]:
    return [
        Column("local", _LOCAL, _averaged(lambda score: score.mean)),
        Column("sd\nseeds", _SD, _over_seeds(lambda s: s.mean)),
        Column(
            "best\nvalid",
            "the same after the round that is best on validation data",
            _best(lambda score: score.mean),
        ),
        Column("at\nround", "which round that is", _best_round),
        _server_column(),
        _seconds_column(),
    ]


def _by_server() -> list[Column]:
    return [
        _server_column(),
        Column("sd\nseeds", _SD, _over_seeds(lambda s: s.server, True)),
        Column("local", _LOCAL, _averaged(lambda score: score.mean)),
        Column(
            "best\nvalid",
            "the server's accuracy after the round that is best on validation data (whose,"
            " run.judged_by says)",
            _best(lambda score: score.server, True),
        ),
        _seconds_column(),
    ]


def _server_column() -> Column:
    says = (
        "the server's own predictor, or the global model where it has none, on all test parts"
        " together"
    )
    return Column("server", says, _averaged(lambda score: score.server, True))


def _seconds_column() -> Column:
    return Column("time\n(s)", "seconds of training, mean over runs", _if_finished(_seconds))


def _if_finished(cell: Cell) -> Cell:
    """The cell, or "-" where no run is finished."""
    return lambda experiment: cell(experiment) if experiment.finished else _NONE


def _averaged(value: Value, shared: bool = False) -> Cell:
    """The mean over seeds; of what all share, where there is such a model."""

    def cell(experiment: Experiment) -> str:
        if shared and not experiment.has_global:
            return _NONE
        return f"{statistics.fmean(map(value, experiment.last.values())):.1f}"

    return _if_finished(cell)


def _over_seeds(value: Value, shared: bool = False) -> Cell:
    """The standard deviation over seeds, with how many finished."""

    def cell(experiment: Experiment) -> str:
        count, asked = len(experiment.finished), len(experiment.runs)
        of = f"{count}/{asked}" if count < asked else str(count)
        if not experiment.last:
            return f"({of})"
        if shared and not experiment.has_global:
            return _NONE
        sd = mean_sd([value(score) for score in experiment.last.values()])[1]
        if math.isnan(sd):
            return "1 seed" if count == asked else f"({of})"
        return f"{sd:.1f} ({of})"

    return cell


def _best(value: Value, shared: bool = False) -> Cell:
    """The mean over seeds after the round that is best on validation data."""

    def cell(experiment: Experiment) -> str:
        scores = experiment.best.values()
        if not scores or (shared and not experiment.has_global):
            return _NONE
        return f"{statistics.fmean(map(value, scores)):.1f}"

    return _if_finished(cell)


def _best_round(experiment: Experiment) -> str:
    rounds = sorted({score.round for score in experiment.best.values()}) if experiment.last else []
    if not rounds:
        return _NONE
    return str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}-{rounds[-1]}"


def _seconds(experiment: Experiment) -> str:
    seconds = statistics.fmean(
        sum(row["seconds"] for row in run.rounds) for run in experiment.finished.values()
    )
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _of_lowest(cell: Callable[[Lowest], str]) -> Cell:
    """A cell about the client with the lowest accuracy in any seed."""
    return _if_finished(lambda experiment: cell(lowest(experiment.last)))


def _percent(low: Lowest) -> str:
    return f"{100 * low.right / low.examples:.1f}"


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
    experiments: Iterable[Experiment],
    columns: Sequence[Column],
    about: str,
    below: Iterable[str] = (),
) -> Table:
    """A row an experiment; under it what its columns are, and lines of its own."""
    told = [f"{' '.join(column.head.split())}: {column.says}." for column in columns if column.says]
    caption = "\n".join([" ".join([about, *told]), *below])
    table = _empty(title, ("experiment", *(column.head for column in columns)), caption)
    for experiment in experiments:
        name = Text(shown(experiment.name), no_wrap=True)
        table.add_row(name, *(column.cell(experiment) for column in columns))
    return table


def _empty(title: str, heads: Sequence[str], caption: str, words: int = 1) -> Table:
    """Its first `words` columns hold words, cut at the end if need be; the others, numbers."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", padding=0
    )
    table.caption = Text(caption)
    for place, head in enumerate(heads):
        if place < words:
            table.add_column(head, overflow="ellipsis", min_width=8 if place < 2 else None)
        else:
            table.add_column(head, justify="right", no_wrap=True)
    return table
