"""The tables: one line an experiment, and what experts add.

A column is one value: its head, its cell, and the sentence that says how it is computed. Cells are made from metrics.py
and this room's neighbours and nothing else; the page shows the same tables as the terminal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from ..metrics import Score, mean_sd
from .claims import Claim, claims, has_experts, legend, notes, sentences, shown, signed, unknown
from .collect import Experiment, judged_by_server
from .paired import wilson
from .routing import lines, mean

_NONE = "-"
_SD = "standard deviation of it over seeds (their number)"
_LOCAL = "on a client's own test part by its own predictor after the last round, mean over all clients"


@dataclass(frozen=True)
class Column:
    """One value of an experiment; `says` is how it is computed, "" where the head says all."""

    head: str
    says: str
    cell: Callable[[Experiment], str]


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """The comparison, how clients differ, at what size; and, where there are experts, what they and routing add."""
    return [
        comparison(experiments),
        apart(experiments),
        held(experiments),
        *([added(experiments)] if any(map(has_experts, experiments)) else []),
        *([routed(experiments)] if any(e.routing for e in experiments) else []),
    ]


def comparison(experiments: Sequence[Experiment]) -> Table:
    """One row an experiment, in the order given; the server's accuracy leads where it is what they are judged by."""
    by_server = judged_by_server(experiments)
    columns = _by_server() if by_server else _by_clients()
    of = "server" if by_server else "clients"
    levels = sorted({f"{level:.3g} %" for e in experiments if (level := e.chance(of))})
    chance = " or ".join(levels) if levels else "not known from these runs"
    whose = "the" if by_server else "a client's"
    about = (
        f"Accuracies are top-1. Means over seeds. Always saying {whose} commonest class gives {chance}. Nothing "
        "here is from the round that is best on test data."
    )
    table = _table("Accuracy in percent", experiments, columns, about)
    table.caption = Text("\n".join([str(table.caption), *notes(experiments)]))
    return table


def apart(experiments: Sequence[Experiment]) -> Table:
    """How far clients are from each other, and the client that fares worst."""
    columns = [
        Column("clients", "all of them, sampled or not", _scored(lambda scores: str(len(scores[0].right)))),
        Column("sd", "standard deviation of local accuracy over clients", _averaged(lambda score: score.spread)),
        Column(
            "sampling",
            "the part of it that finite test parts alone would give, if all clients were as accurate as the mean",
            _averaged(lambda score: score.sampling),
        ),
        Column("lowest", "the lowest local accuracy of any client in any seed", _scored(_lowest)),
        Column("right", "its right answers of its test examples", _scored(_lowest_right)),
        Column("95 %", "Wilson's interval of them", _scored(_lowest_interval)),
        Column("seed", "the seed in which that was", _lowest_seed),
    ]
    return _table("How clients differ", experiments, columns, "Local accuracy in percent after the last round.")


def held(experiments: Sequence[Experiment]) -> Table:
    """How large clients, what travels, and the server are."""
    places = [(who, what) for who in ("client", "down", "up", "server") for what in ("parameters", "bytes")]

    def column(who: str, what: str) -> Column:
        head = f"{who}\n{what.replace('parameters', 'params')}"
        return Column(head, "", lambda e: _size(e.sizes[who, what]) if (who, what) in e.sizes else _NONE)

    about = (
        "params: the numbers in the tensors, parameters and buffers; k: 1000. client: what one client "
        "trains. down, up: what one client is sent and sends in a round. server: what it holds after the last round, "
        "its notes on clients too. Means over clients, rounds and seeds. Frozen weights are not counted."
    )
    return _table("What is held and sent", experiments, [column(*place) for place in places], about)


def added(experiments: Sequence[Experiment]) -> Table:
    """Paired differences of every experiment with experts to its controls."""
    heads = ("experiment", "against", "points", "low", "high", "better", "worse", "same")
    table = _empty("What do experts add?", heads, words=2)
    found = claims(experiments, "clients")
    for claim in found:
        table.add_row(*_added(claim))
    about = (
        "points: difference of local accuracy after the last round, paired by seed and client, mean over seeds. low, "
        "high: its 95 % interval. better, worse, same: pairs of client and seed."
    )
    said = [*([about, legend(found)] if found else []), *sentences(found), *unknown(experiments, "clients")]
    table.caption = Text("\n".join(said))
    return table


def _added(claim: Claim) -> list[Text | str]:
    found = claim.difference
    names = [Text(shown(claim.experiment.name)), Text(f"{claim.other} ({claim.what})")]
    interval = [_NONE if math.isnan(end) else signed(end) for end in found.interval]
    return [*names, signed(found.mean), *interval, *map(str, (found.better, found.worse, found.same))]


def routed(experiments: Sequence[Experiment]) -> Table:
    """What every server's mixture does, whole and without its parts."""

    def column(head: str, fact: str, says: str, digits: int = 1) -> Column:
        def cell(experiment: Experiment) -> str:
            value = mean(experiment, fact)
            return _NONE if math.isnan(value) else f"{value:.{digits}f}"

        return Column(head, says, cell)

    columns = [
        column("server", "top", "as it predicts, with its few best experts"),
        column("dense", "dense", "all experts, weighed by the gate"),
        column("flat\ngate", "uniform", "all experts alike"),
        column("no\nmain", "routed", "without the main experts"),
        column("main\nalone", "main", "the main experts alone"),
        column("best\nexpert", "best", "the best of the routed experts alone"),
        column("worst\nexpert", "worst", "the worst of them alone"),
        column("apart", "apart", "distance of the routed experts from their mean, as a share of the mean's norm", 3),
        column("entropy", "entropy", "of the gate's weights, in nats", 2),
        column("alpha", "alpha", "weight of the routed experts against the main ones", 2),
    ]
    about = "Test accuracy in percent of the server's mixture after the last round, means over seeds."
    shown_here = [e for e in experiments if e.routing]
    table = _table("What does routing add?", shown_here, columns, about)
    table.caption = Text("\n".join([str(table.caption), *lines(shown_here)]))
    return table


# ---- columns


def _by_clients() -> list[Column]:
    return [
        Column("local", _LOCAL, _averaged(lambda score: score.mean)),
        Column("sd\nseeds", _SD, _over_seeds(lambda s: s.mean)),
        Column(
            "best\nvalid", "the same after the round that is best on validation data", _best(lambda score: score.mean)
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
            "the server's accuracy after the round that is best on validation data (whose, run.judged_by says)",
            _best(lambda score: score.server, True),
        ),
        _seconds_column(),
    ]


def _server_column() -> Column:
    says = "the server's own predictor, or the global model where it has none, on all test parts together"
    return Column("server", says, _averaged(lambda score: score.server, True))


def _seconds_column() -> Column:
    return Column("time\n(s)", "seconds of training, mean over runs", _scored_experiment(_seconds))


Value = Callable[[Score], float]


def _scored(cell: Callable[[Sequence[Score]], str]) -> Callable[[Experiment], str]:
    """A cell made of the scores after the last round; "-" without any."""
    return _scored_experiment(lambda experiment: cell(list(experiment.last.values())))


def _scored_experiment(cell: Callable[[Experiment], str]) -> Callable[[Experiment], str]:
    return lambda experiment: cell(experiment) if experiment.last else _NONE


def _averaged(value: Value, shared: bool = False) -> Callable[[Experiment], str]:
    """The mean over seeds; of what all share, where there is such a model."""

    def cell(experiment: Experiment) -> str:
        if shared and not experiment.has_global:
            return _NONE
        return f"{statistics.fmean(map(value, experiment.last.values())):.1f}"

    return _scored_experiment(cell)


def _over_seeds(value: Value, shared: bool = False) -> Callable[[Experiment], str]:
    """The standard deviation over seeds, with their number and, where some are not finished, how many there are."""

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


def _best(value: Value, shared: bool = False) -> Callable[[Experiment], str]:
    """The mean over seeds after the round that is best on validation data."""

    def cell(experiment: Experiment) -> str:
        scores = experiment.best.values()
        if not scores or (shared and not experiment.has_global):
            return _NONE
        return f"{statistics.fmean(map(value, scores)):.1f}"

    return _scored_experiment(cell)


def _best_round(experiment: Experiment) -> str:
    rounds = sorted({score.round for score in experiment.best.values()}) if experiment.last else []
    if not rounds:
        return _NONE
    return str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}-{rounds[-1]}"


def _seconds(experiment: Experiment) -> str:
    seconds = statistics.fmean(sum(row["seconds"] for row in run.rounds) for run in experiment.finished.values())
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _worst(scores: Sequence[Score]) -> tuple[int, int]:
    """Right answers and examples of the client with the lowest accuracy in any seed."""
    return min((counts for score in scores for counts in score.right.values()), key=lambda c: (c[0] / c[1], -c[1]))


def _lowest(scores: Sequence[Score]) -> str:
    right, examples = _worst(scores)
    return f"{100 * right / examples:.1f}"


def _lowest_right(scores: Sequence[Score]) -> str:
    right, examples = _worst(scores)
    return f"{right}/{examples}"


def _lowest_interval(scores: Sequence[Score]) -> str:
    low, high = wilson(*_worst(scores))
    return f"{low:.0f}-{high:.0f}"


def _lowest_seed(experiment: Experiment) -> str:
    if not experiment.last:
        return _NONE
    worst = _worst(list(experiment.last.values()))
    return str(next(seed for seed, score in experiment.last.items() if worst in score.right.values()))


def _size(count: float) -> str:
    """A number of parameters or bytes, three digits of it."""
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}G"


# ---- setting


def _table(title: str, experiments: Iterable[Experiment], columns: Sequence[Column], about: str) -> Table:
    """A row an experiment, and below it what its columns are."""
    table = _empty(title, ("experiment", *(column.head for column in columns)))
    for experiment in experiments:
        name = Text(shown(experiment.name), overflow="ellipsis", no_wrap=True)  # a long one is cut at its end
        table.add_row(name, *(column.cell(experiment) for column in columns))
    told = [f"{' '.join(column.head.split())}: {column.says}." for column in columns if column.says]
    table.caption = Text(" ".join([about, *told]))
    return table


def _empty(title: str, heads: Sequence[str], words: int = 1) -> Table:
    """The first `words` columns hold words, the others numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", padding=0)
    for place, head in enumerate(heads):
        if place < words:
            table.add_column(head, overflow="fold", min_width=8)
        else:
            table.add_column(head, justify="right", no_wrap=True)
    return table
