"""The tables: one line an experiment, and what experts add.

A cell is made from metrics.py and nothing else; the page shows the same tables as the terminal. Whoever reads a figure
finds below the table what it is a figure of.
"""

import math
import statistics
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ..metrics import Score, mean_sd
from .claims import claims, has_experts, notes, shown, signed, unknown
from .collect import Experiment, judged_by_server
from .routing import ROUTING, columns, has_routing, sentences

_NONE = "-"
_BY_CLIENTS = (
    "local", "sd\nseeds", "sd\nclients", "worst\nclient", "best\nvalid", "at\nround", "server", "sec-\nonds",
)  # fmt: skip
_BY_SERVER = ("server", "sd\nseeds", "local", "worst\nclient", "best\nvalid", "sec-\nonds")


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """The comparison, at what size; and, where experiments have experts, what they and routing between them add."""
    return [
        comparison(experiments),
        held(experiments),
        *([added(experiments)] if any(map(has_experts, experiments)) else []),
        *([routed(experiments)] if any(map(has_routing, experiments)) else []),
    ]


def comparison(experiments: Sequence[Experiment]) -> Table:
    """One row an experiment, in the order given; the server's accuracy leads where it is what they are judged by."""
    by_server = judged_by_server(experiments)
    columns = _BY_SERVER if by_server else _BY_CLIENTS
    table = _table("Accuracy in percent", ("experiment", *columns))
    for experiment in experiments:
        cells = _cells(experiment, by_server)
        table.add_row(Text(shown(experiment.name)), *(cells.get(column, _NONE) for column in columns))
    table.caption = Text("\n".join([_legend(experiments, by_server), *notes(experiments)]))
    return table


def held(experiments: Sequence[Experiment]) -> Table:
    """How large clients, what travels, and the server are."""
    places = [(who, what) for who in ("client", "down", "up", "server") for what in ("parameters", "bytes")]
    names = (f"{who}\n{what.replace('parameters', 'params')}" for who, what in places)
    table = _table("What is held and sent", ("experiment", *names))
    for experiment in experiments:
        cells = (_size(experiment.sizes[place]) if place in experiment.sizes else _NONE for place in places)
        table.add_row(Text(shown(experiment.name)), *cells)
    table.caption = Text(
        "params: the numbers in the tensors, parameters and what moves with them; k: 1000. client: what one client "
        "trains. down, up: what one client is sent and sends in a round. server: what it holds after the last round, "
        "its notes on clients too. Means over clients, rounds and seeds. What is frozen is nobody's and not counted."
    )
    return table


def added(experiments: Sequence[Experiment]) -> Table:
    """Paired differences of every experiment with experts to its controls."""
    columns = ("experiment", "against", "points", "sd\nseeds", "sd\nclients", "gain", "lose", "same")
    table = _table("What do experts add?", columns, words=2)
    found = claims(experiments)
    for c in found:
        names = (Text(shown(c.experiment.name)), Text(f"{shown(c.control.name)} ({c.what})"))
        counts = (str(count) for count in (c.gain.better, c.gain.worse, c.gain.same))
        seeds = _over_seeds(c.gain.over_seeds, c.gain.seeds, c.gain.seeds)
        table.add_row(*names, signed(c.gain.mean), seeds, f"{c.gain.over_clients:.1f}", *counts)
    legend = (
        "points: difference of local accuracy after the last round, paired by seed and client. gain, lose, same: pairs "
        "of client and seed. Noise: two standard errors of the paired differences."
    )
    lines = [*([legend] if found else []), *(c.sentence() for c in found), *unknown(experiments)]
    table.caption = Text("\n".join(lines))
    return table


def routed(experiments: Sequence[Experiment]) -> Table:
    """What every server's mixture does, whole and without its parts."""
    table = _table("What does routing add?", ("experiment", *ROUTING))
    for experiment in filter(has_routing, experiments):
        table.add_row(Text(shown(experiment.name)), *columns(experiment))
    legend = (
        "Test accuracy in percent of the server's mixture after the last round, means over seeds. server: as it "
        "predicts, with its few best experts. dense: all experts, weighed by the gate. flat gate: all alike. no main: "
        "without the main experts. main: they alone. best, worst: single routed experts. apart: distance of the routed "
        "experts from their mean, as a share of the mean's norm. entropy: of the gate's weights, in nats. alpha: "
        "weight of the routed experts against the main ones."
    )
    table.caption = Text("\n".join([legend, *sentences(experiments)]))
    return table


def _table(title: str, columns: Sequence[str], words: int = 1) -> Table:
    """The first `words` columns may be folded, the others hold numbers."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", padding=0,
    )  # fmt: skip
    for i, name in enumerate(columns):
        if i < words:
            table.add_column(name, overflow="fold", min_width=8)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(experiment: Experiment, by_server: bool) -> dict[str, str]:
    """By column; one that is missing has nothing to show."""
    count, asked = len(experiment.finished), len(experiment.runs)
    scores = list(experiment.last.values())
    if not scores:
        return {"sd\nseeds": f"(0/{asked})"}
    cells = {
        "local": _mean([score.mean for score in scores]),
        "sd\nclients": _mean([score.spread for score in scores]),
        "worst\nclient": _mean([score.worst for score in scores]),
        "sec-\nonds": _seconds(experiment),
    }
    if experiment.has_global:
        cells["server"] = _mean([score.server for score in scores])
    if experiment.has_global or not by_server:
        sd = mean_sd([_leading(score, by_server) for score in scores])[1]
        cells |= {"sd\nseeds": _over_seeds(sd, count, asked)} | _by_validation(experiment, by_server)
    return cells


def _leading(score: Score, by_server: bool) -> float:
    return score.server if by_server else score.mean


def _over_seeds(sd: float, count: int, asked: int) -> str:
    of = f"{count}/{asked}" if count < asked else str(count)
    if math.isnan(sd):
        return "1 seed" if count == asked else f"({of})"
    return f"{sd:.1f} ({of})"


def _by_validation(experiment: Experiment, by_server: bool) -> dict[str, str]:
    """The leading accuracy after the round that is best on validation data, and which round that is for each seed."""
    scores = list(experiment.best.values())
    if not scores:
        return {}
    rounds = sorted({score.round for score in scores})
    which = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}-{rounds[-1]}"
    return {"best\nvalid": _mean([_leading(score, by_server) for score in scores]), "at\nround": which}


def _seconds(experiment: Experiment) -> str:
    """Of training, mean over runs."""
    seconds = statistics.fmean(sum(row["seconds"] for row in run.rounds) for run in experiment.finished.values())
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _size(count: float) -> str:
    """A number of parameters or bytes, three digits of it."""
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}G"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}"


def _legend(experiments: Sequence[Experiment], by_server: bool) -> str:
    levels = sorted({e.chance for e in experiments if e.chance})
    chance = " or ".join(f"{level:.3g} %" for level in levels) if levels else "not known from these runs"
    clients = max((len(e.clients) for e in experiments), default=0)
    best = "the server's accuracy" if by_server else "the same"
    which = "" if by_server else " (at round)"
    chosen = " (the server's or the clients', as run.judged_by says)" if by_server else ""
    return (
        "local: top-1 accuracy on a client's own test part by its own predictor after the last round, mean over "
        f"all clients, sampled or not ({clients}). worst client: the lowest. best valid: {best} after the round "
        f"that is best on validation data{which}{chosen}. server: the server's own predictor, or the global model "
        "where it has none, on all test parts together. seconds: training of a run. Means over seeds; sd: standard "
        f"deviation (number of seeds). The chance level is {chance}. Nothing here is from the round that is best on "
        "test data."
    )
