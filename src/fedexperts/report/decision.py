"""Which of several experiments to use for these sites, and how sure that is.

The choice is made on validation data, what is claimed of it comes from test data, and of those that
are as good as far as one can tell, the cheapest is named. This room makes sentences; it knows no
table, page or picture.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from . import paired
from .claims import (
    WHOSE,
    added,
    claims,
    compared,
    estimate,
    plural,
    same_data,
    same_seeds,
    shown,
    together,
)
from .collect import Experiment, judged_by
from .columns import size
from .paired import Difference, Family

NAMED = 3  # others that are listed one by one
MARGIN = 1.0  # points of validation accuracy: whoever lies farther below the best is no equal


@dataclass(frozen=True)
class Choice:
    """An experiment beside what decides about it."""

    experiment: Experiment
    valid: float  # accuracy in percent on validation data after the last round, mean over seeds

    @property
    def name(self) -> str:
        return shown(self.experiment.name)

    @property
    def bytes(self) -> float:
        """What one client is sent and sends in a round."""
        sizes = self.experiment.sizes
        return sizes.get(("down", "bytes"), 0.0) + sizes.get(("up", "bytes"), 0.0)

    @cached_property
    def seconds(self) -> float:
        """Training time of a run."""
        runs = self.experiment.finished.values()
        return statistics.fmean(sum(row["seconds"] for row in run.rounds) for run in runs)

    @property
    def cost(self) -> tuple[float, float]:
        """The fewer bytes, the cheaper; of equals, the faster."""
        return self.bytes, self.seconds


Pair = tuple[Choice, Difference]  # another experiment, and the best minus it, on test data


def decision(experiments: Sequence[Experiment]) -> list[str]:
    """Sentences: the first says what to use or, where there is no choice, the result; the last ones
    what experts add.
    """
    of = judged_by(experiments)
    finished = [experiment for experiment in experiments if experiment.finished]
    if not finished:
        return ["No run is finished yet, so there is no result."]
    counted = _counted(experiments, of)
    if not counted:
        return []
    if not same_data(counted):
        return ["These experiments have different data, so they are listed but not ranked."]
    judged = family(experiments)
    return [*_first(counted, of, judged), *added(finished, judged)]


def family(experiments: Sequence[Experiment]) -> Family:
    """All that is compared of these experiments, in sentences and in the table of what experts add,
    each pair once. It is judged together, so that a difference has one verdict wherever it stands.
    """
    of = judged_by(experiments)
    pairs = {
        (frozenset((shown(claim.experiment.name), claim.other)), claim.of): claim.difference
        for claim in claims(experiments)
    }
    counted = _counted(experiments, of)
    if same_data(counted) and same_seeds(counted):
        ranked = _ranked(counted, of)
        for other, difference in _pairs(ranked, of):
            pairs.setdefault((frozenset((ranked[0].name, other.name)), of), difference)
    return Family(list(pairs.values()))


def _counted(experiments: Sequence[Experiment], of: str) -> list[Experiment]:
    """Those among which there is a choice; data in one place are a bound, and none."""
    return [
        experiment
        for experiment in experiments
        if experiment.finished
        and not experiment.pooled
        and (experiment.has_global or of == "clients")
    ]


def _ranked(counted: Sequence[Experiment], of: str) -> list[Choice]:
    """The best on validation data first; nobody where one of them has no such data."""
    valids = [(experiment, experiment.valid(of)) for experiment in counted]
    choices = [Choice(experiment, valid) for experiment, valid in valids if valid is not None]
    if len(choices) < len(counted):
        return []
    return sorted(choices, key=lambda choice: -choice.valid)


def _pairs(ranked: Sequence[Choice], of: str) -> list[Pair]:
    """The best against each of the others."""
    pairs = []
    for other in ranked[1:]:
        if difference := compared(ranked[0].experiment, other.experiment, of):
            pairs.append((other, difference))
    return pairs


def _first(counted: Sequence[Experiment], of: str, judged: Family) -> list[str]:
    if not same_seeds(counted):
        return ["These experiments have different seeds, so they are listed but not ranked."]
    if len(counted) == 1:
        return [f"{shown(counted[0].name)}, {_average(counted[0], of)}."]
    ranked = _ranked(counted, of)
    if not ranked:
        return [
            "Which to use cannot be said: there are no validation examples to choose by, and test"
            " data are not for choosing. Use data.valid = 0.2, say."
        ]
    return _said(ranked[0], _pairs(ranked, of), of, judged)


def _said(best: Choice, pairs: Sequence[Pair], of: str, judged: Family) -> list[str]:
    told: dict[str, list[Pair]] = {"better": [], "worse": [], "open": []}
    for pair in pairs:
        verdict = "open"
        if judged.holds(pair[1]):
            verdict = "better" if pair[1].mean > 0 else "worse"
        told[verdict].append(pair)
    as_good = [other for other, _ in (*told["worse"], *told["open"])]
    equals = [best, *(other for other in as_good if best.valid - other.valid <= MARGIN)]
    use = min(equals, key=lambda choice: choice.cost)
    return [_use(best, use, equals, of), *_sure(best, told, judged)]


def _use(best: Choice, use: Choice, equals: Sequence[Choice], of: str) -> str:
    says = (
        f"For these sites, use {use.name}. Highest {WHOSE[of]} accuracy on validation data:"
        f" {best.name}, {best.valid:.1f} %; on test data {_average(best.experiment, of)}."
    )
    if len(equals) == 1:
        return says
    names = ", ".join(choice.name for choice in equals if choice is not best)
    return (
        f"{says} Within {MARGIN:g} point of it, and not established to be worse: {names}. The"
        f" cheapest of these is {use.name}, with {size(use.bytes)} bytes a client and round (which"
        f" count first) and {use.seconds:.0f} s of training."
    )


def _average(experiment: Experiment, of: str) -> str:
    """An experiment's accuracy, over how many it is a mean, and what is reached without looking."""
    scores = experiment.last.values()
    over = plural(len(scores), "seed")
    if of == "clients":
        over = f"{plural(len(experiment.clients), 'client')} and {over}"
        accuracy = statistics.fmean(score.mean for score in scores)
    else:
        accuracy = statistics.fmean(score.server for score in scores)
    text = f"{accuracy:.1f} % on average over {over}"
    if level := experiment.commonest(of):
        text += f"; the commonest class alone gives {level:.0f} %"
    return text


def _sure(best: Choice, told: Mapping[str, Sequence[Pair]], judged: Family) -> list[str]:
    """What test data establish about the best on validation data, held against the others."""
    seeds = len(best.experiment.finished)
    if seeds < paired.SEEDS:
        return [
            f"How sure that is: nothing is established by {plural(seeds, 'seed')}; repeat with"
            f" --seeds {paired.SEEDS} or more."
        ]
    where = f"on test data{together(judged)}"
    lines = [
        f"How sure that is: {best.name} is {verdict} than {_listed(told[verdict])}; established"
        f" {where}."
        for verdict in ("better", "worse")
        if told[verdict]
    ]
    if not lines:
        lines = [f"How sure that is: no difference to {best.name} is established {where}."]
    if told["open"]:
        lines.append(f"Not established: {best.name} minus {_listed(told['open'])}.")
    return lines


def _listed(pairs: Sequence[Pair]) -> str:
    """The nearest of them, and how many lie farther away: the table of all stands below."""
    nearest = sorted(pairs, key=lambda pair: abs(pair[1].mean))
    listed = "; ".join(
        f"{other.name}, {estimate(difference)}" for other, difference in nearest[:NAMED]
    )
    if len(pairs) > NAMED:
        listed += f"; and {plural(len(pairs) - NAMED, 'other')}, by more"
    return listed
