"""The tables: one line an experiment, and what experts add.

What a column is stands in columns.py. Cells are made from metrics.py and this room's neighbours and
nothing else; the page shows the same tables as the terminal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ..metrics import spent
from .claims import (
    WHOSE,
    Claim,
    claims,
    legend,
    sentences,
    shown,
    signed,
    unknown,
)
from .collect import Experiment, judged_by
from .columns import (
    NAME,
    NONE,
    Column,
    Row,
    averaged,
    best,
    best_round,
    calibration_column,
    clients,
    hits,
    if_finished,
    if_shared,
    interval,
    local_column,
    of_lowest,
    over_seeds,
    percent,
    seeds_column,
    server_column,
    size,
    time_column,
)
from .decision import family
from .notes import notes, unequal
from .routing import lines, mean


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """All tables for which there is something to show."""
    made = [comparison(experiments), differing(experiments), held(experiments)]
    if any(score.reach for e in experiments for score in e.last.values()):
        made.insert(1, reaching(experiments))
    if any(e.search for e in experiments):
        made.append(chosen(experiments))
    if any(e.controls for e in experiments):
        made.append(added(experiments))
    if any(e.routing for e in experiments):
        made.append(routed(experiments))
    return made


def comparison(experiments: Sequence[Experiment]) -> Table:
    """One row an experiment; the server's accuracy leads where they are judged by it."""
    of = judged_by(experiments)
    columns = {"clients": _by_clients, "server": _by_server}[of]()
    if any(spent(run.rounds) for e in experiments for run in e.finished.values()):
        columns.append(_spent())
    about = (
        f"Accuracies are top-1, means over seeds. {_commonest(experiments, of)}None of them is"
        " from the round that is best on test data."
    )
    return table("Accuracy in percent", experiments, [NAME, *columns], about, notes(experiments))


def _spent() -> Column[Experiment]:
    def cell(experiment: Experiment) -> str:
        totals = [spent(run.rounds) for run in experiment.finished.values()]
        return f"{max(total[0] for total in totals if total):.3g}" if any(totals) else NONE

    return Column(
        "epsilon", "what uploads give away of whom [privacy] hides, the most of any", cell
    )


def _commonest(experiments: Sequence[Experiment], of: str) -> str:
    """What is reached without looking at an input; "" where runs do not know."""
    shares = [experiment.commonest(of) for experiment in experiments]
    levels = sorted({f"{level:.3g} %" for level in shares if level})
    if not levels:
        return ""
    whose = {"clients": "each client's", "server": "the"}[of]
    return f"Always predicting {whose} commonest class gives {' or '.join(levels)}. "


def differing(experiments: Sequence[Experiment]) -> Table:
    """How far clients are from each other, and the client that fares worst."""
    columns = [
        NAME,
        Column("clients", "all of them, sampled or not", if_finished(clients)),
        Column(
            "sd",
            "standard deviation of local accuracy over clients",
            averaged(lambda score: score.spread),
        ),
        Column(
            "sampling",
            "the standard deviation that the small test parts alone would give, if all clients"
            " were as accurate as the mean",
            averaged(lambda score: score.sampling),
        ),
        Column("lowest", "the lowest local accuracy of any client in any seed", of_lowest(percent)),
        Column("correct", "that client's correct answers of its test examples", of_lowest(hits)),
        Column(
            "95 %",
            "Wilson's interval of that client, as if it had not been picked as the lowest",
            of_lowest(interval),
        ),
        Column("seed", "the seed in which that was", of_lowest(lambda low: str(low.seed))),
    ]
    about = "Local accuracy in percent after the last round."
    return table("How clients differ", experiments, columns, about)


def reaching(experiments: Sequence[Experiment]) -> Table:
    """What clients know of classes that they did not train on."""
    columns = [
        NAME,
        _reach(
            "own\nclasses",
            "own",
            "on a client's own test part, where its own classes alone may be said",
        ),
        Column(
            "all\nclasses",
            "the same, where any class may be said",
            averaged(lambda score: score.mean),
        ),
        _reach("base", "base", "on test examples of the classes that others train on, among these"),
        _reach(
            "unseen",
            "unseen",
            "on test examples of the classes that nobody trains on, among these; of models whose"
            " classes are texts",
        ),
        _reach("HM", "harmonic", "harmonic mean of own classes, base and unseen, mean over seeds"),
    ]
    about = (
        "Accuracies in percent of clients' own predictors after the last round, means over clients"
        " and seeds."
    )
    return table("What clients know of other classes", experiments, columns, about)


def _reach(label: str, name: str, says: str) -> Column[Experiment]:
    def cell(experiment: Experiment) -> str:
        scores = experiment.last.values()
        values = [getattr(score.reach, name) for score in scores if score.reach]
        if not values or None in values:
            return NONE
        return f"{statistics.fmean(values):.1f}"

    return Column(label, says, cell)


def chosen(experiments: Sequence[Experiment]) -> Table:
    """What was tried for each experiment, and which values were taken."""
    rows = [experiment for experiment in experiments if experiment.search]
    columns = [
        NAME,
        Column("trials", "", lambda e: str(len(e.search["trials"]))),
        Column(
            "passes",
            "epochs of whoever trains in a round, in all trials together",
            _passes,
        ),
        Column("seed", "of all trials; no result comes from it", lambda e: str(e.search["seed"])),
        Column("chosen", "", _choice, words=True),
    ]
    about = "Values are chosen by validation accuracy after a trial's last round."
    return table("How values were chosen", rows, columns, about, unequal(rows))


def _passes(experiment: Experiment) -> str:
    return str(sum(experiment.search["rounds"]) * int(experiment.values["learning"]["epochs"]))


def _choice(experiment: Experiment) -> str:
    """Each tuned key with its value; one at the end of what was tried is marked."""
    said = []
    for key, value in experiment.search["chosen"].items():
        says = f"{key} = {value}"
        if end := experiment.search["edges"].get(key):
            says += f" ({end} tried)"
        said.append(says)
    return shown(", ".join(said))


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
    return table("What is held and sent", experiments, [NAME, *columns], about)


_QUANTITIES = {"parameters": "params", "bytes": "bytes"}


def _held(who: str, what: str) -> Column[Experiment]:
    def cell(experiment: Experiment) -> str:
        if (who, what) not in experiment.sizes:
            return NONE
        return size(experiment.sizes[who, what])

    return Column(f"{who}\n{_QUANTITIES[what]}", "", cell)


def added(experiments: Sequence[Experiment]) -> Table:
    """Paired differences of every experiment to the controls that its method names."""
    compared = claims(experiments)
    judged = family(experiments)
    below = [*legend(compared, judged), *sentences(compared, judged), *unknown(experiments)]
    return table("What do experts add?", compared, _added(), "", below)


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
        return NONE
    return signed(end)


def _pairs(which: str) -> Callable[[Claim], str]:
    def cell(claim: Claim) -> str:
        difference = claim.difference
        if not (
            difference.better or difference.worse or difference.same
        ):  # the server's accuracy has no pairs
            return NONE
        return str(getattr(difference, which))

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
    return table("What does routing add?", with_mixture, [NAME, *columns], about, below)


def _routed(label: str, fact: str, says: str, digits: int = 1) -> Column[Experiment]:
    def cell(experiment: Experiment) -> str:
        value = mean(experiment, fact)
        if math.isnan(value):
            return NONE
        return f"{value:.{digits}f}"

    return Column(label, says, cell)


# ---- columns


def _by_clients() -> list[Column[Experiment]]:
    return [
        local_column(),
        seeds_column(over_seeds(lambda score: score.mean)),
        Column(
            "best\nvalid",
            "local accuracy after the round that is best on validation data",
            best(lambda score: score.mean),
        ),
        Column("at\nround", "that round", best_round),
        calibration_column(lambda score: score.bins, "all clients' answers together"),
        server_column(),
        time_column(),
    ]


def _by_server() -> list[Column[Experiment]]:
    return [
        server_column(),
        seeds_column(if_shared(over_seeds(lambda score: score.server))),
        local_column(),
        Column(
            "best\nvalid",
            "the server's accuracy after the round that is best on validation data (whose,"
            " run.judged_by says)",
            if_shared(best(lambda score: score.server)),
        ),
        calibration_column(lambda score: score.server_bins, "the server's own predictor"),
        time_column(),
    ]


def table(
    title: str,
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    about: str,
    below: Iterable[str] = (),
) -> Table:
    """The rows; under them what the columns are, if there are rows, and lines of its own."""
    made = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", padding=0
    )
    for column in columns:
        if column.words:
            made.add_column(column.head, overflow="ellipsis", min_width=8)
        else:
            made.add_column(column.head, justify="right", no_wrap=True)
    for row in rows:
        name, *others = (column.cell(row) for column in columns)
        # a row's own name stands on one line
        made.add_row(Text(name, no_wrap=True), *map(Text, others))
    legends = [column.legend for column in columns if column.legend and rows]
    made.caption = Text("\n".join(line for line in (about, *legends, *below) if line))
    return made
