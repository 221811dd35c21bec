"""What may be said of experiments in words, and what must be said beside their figures.

Every difference is paired by seed and printed with its interval; a verdict needs three seeds, and
holds for all comparisons of its table together. Experiments on different data, or with different
seeds, are not ranked. What a method is compared with is what it declared. This room makes
sentences; it knows no method, table, page or picture.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import refusals, silent
from ..models.seen import unfit
from ..options import Values
from . import paired
from .collect import Experiment, judged_by
from .paired import Difference


@dataclass(frozen=True)
class Claim:
    """One experiment against another that lacks one thing, `what`."""

    experiment: Experiment
    other: str  # its name, or what else the experiment is held against
    what: str
    of: str  # whose accuracy is compared: "clients" or "server"
    difference: Difference
    beside: str = ""  # settings that differ too, though they should not

    @property
    def against(self) -> str:
        if not self.what:
            return self.other
        return f"{self.other} ({self.what})"


def sentences(claims: Sequence[Claim]) -> list[str]:
    """All claims of a table in words, judged together."""
    differences = [claim.difference for claim in claims]
    count = sum(difference.judged for difference in differences)
    return [
        f"{shown(claim.experiment.name)} against {claim.against}:"
        f" {_verdict(claim.difference, holds, count)}{claim.beside}."
        for claim, holds in zip(claims, paired.established(differences), strict=True)
    ]


def legend(claims: Sequence[Claim]) -> list[str]:
    """How the sentences of a table are judged; nothing without any."""
    if not claims:
        return []
    count = sum(claim.difference.judged for claim in claims)
    together = ""
    if count > 1:
        together = f", for all {count} comparisons of this table together (Holm, 5 %)"
    return [
        "Intervals are Student's t over seeds. A difference is called better or worse where zero"
        f" is ruled out{together}."
    ]


def estimate(difference: Difference) -> str:
    """A difference in numbers: with its interval, or else seed by seed."""
    seeds = plural(len(difference.by_seed), "seed")
    if difference.nothing:
        return f"no difference at all in {seeds}"
    if len(difference.by_seed) < paired.SEEDS:
        values = ", ".join(
            f"{signed(value)} (seed {seed})" for seed, value in difference.by_seed.items()
        )
        return f"{values} points; an interval needs {paired.SEEDS} seeds"
    if not difference.judged:
        return (
            f"{signed(difference.mean)} points in each of {seeds};"
            " an interval needs seeds that differ"
        )
    low, high = difference.interval
    return (
        f"{signed(difference.mean)} points"
        f" (between {signed(low)} and {signed(high)}, 95 %, {seeds})"
    )


def _verdict(difference: Difference, holds: bool, comparisons: int) -> str:
    """The same with a verdict; `holds` if zero is ruled out among all comparisons."""
    says = estimate(difference)
    if not difference.judged:
        return says
    if holds and difference.mean > 0:
        return f"{says}, better"
    if holds:
        return f"{says}, worse"
    low, high = difference.interval
    if low <= 0 <= high:
        return f"{says}, no difference is established"
    return f"{says}, not established among {comparisons} comparisons"


def local(experiment: Experiment) -> float:
    """Mean over seeds of the mean over clients, after the last round."""
    return statistics.fmean(score.mean for score in experiment.last.values())


def server(experiment: Experiment) -> float:
    """Mean over seeds of the server's accuracy, after the last round."""
    return statistics.fmean(score.server for score in experiment.last.values())


def served(experiment: Experiment) -> dict[int, float]:
    """The server's accuracy after the last round, by seed; none where there is no global model."""
    return {seed: score.server for seed, score in experiment.last.items() if experiment.has_global}


def compared(one: Experiment, other: Experiment, of: str) -> Difference | None:
    """Accuracy of one's clients, or server, minus the other's; None without a common seed."""
    if of == "server":
        return paired.server(served(one), served(other))
    return paired.local(one.rows, other.rows)


def claims(experiments: Sequence[Experiment]) -> list[Claim]:
    """Every experiment against the controls that its method declared."""
    return [
        Claim(
            experiment,
            shown(other.name),
            control["what"],
            control["of"],
            difference,
            _beside(experiment, other, control),
        )
        for experiment in experiments
        for control in experiment.controls
        for other in experiments
        if fits(experiment, control, other)
        and (difference := compared(experiment, other, control["of"]))
    ]


def fits(experiment: Experiment, control: dict[str, Any], other: Experiment) -> bool:
    """Whether another experiment is this one's control: alike in all but what is asked for."""
    first, second = experiment.first.settings, other.first.settings
    asked = control["having"]
    if any(second.get(key) not in values for key, values in asked.items()):
        return False
    if all(first.get(key) in values for key, values in asked.items()):
        return False  # the experiment is what its control should be
    differ = set(different(experiment, other)) - set(asked) - set(control["free"])
    return not any(
        key.startswith(tuple(control["alike"])) for key in differ if not key.startswith("run.")
    )


def _beside(one: Experiment, other: Experiment, control: dict[str, Any]) -> str:
    meant = {*control["having"], *control["free"]}
    differ = [key for key in different(one, other) if key.startswith("run.") and key not in meant]
    if not differ:
        return ""
    return f"; {', '.join(differ)} differ too"


def unknown(experiments: Sequence[Experiment]) -> list[str]:
    """What cannot be said for want of a control, and what run would tell."""
    told = {(id(claim.experiment), claim.what) for claim in claims(experiments)}
    return [
        f"{shown(e.name)}: {control['needed']}."
        for e in experiments
        for control in e.controls
        if control["needed"] and (id(e), control["what"]) not in told
    ]


def different(one: Experiment, other: Experiment) -> list[str]:
    """Settings in which two experiments differ; what either of them tuned is free to.

    What is off, 0 or empty does not differ from what an earlier version did not have.
    """
    first, second = one.first.settings, other.first.settings
    free = one.first.tuned | other.first.tuned
    return [
        key
        for key in first | second
        if (first.get(key) or None) != (second.get(key) or None) and key not in free
    ]


def same_data(experiments: Sequence[Experiment]) -> bool:
    return not any(
        key.startswith("data.")
        for other in experiments[1:]
        for key in different(experiments[0], other)
    )


def same_seeds(experiments: Sequence[Experiment]) -> bool:
    return len({tuple(experiment.finished) for experiment in experiments}) < 2


def headline(experiments: Sequence[Experiment]) -> list[str]:
    """The result in words and numbers, a sentence or two a line.

    Who comes first is chosen on validation data, and what is claimed of it comes from test data.
    """
    of = judged_by(experiments)
    counted = [e for e in experiments if e.finished and (e.has_global or of == "clients")]
    ranked, by = _ranked([e for e in counted if not e.pooled], of)
    if not ranked:
        return ["No run is finished yet, so there is no result."]
    if not same_data(ranked):
        return ["These experiments have different data, so they are listed but not ranked."]
    if not same_seeds(ranked):
        return [
            "These experiments have different seeds, so they are listed but not ranked.",
            *_about_experts(ranked),
        ]
    if len(ranked) == 1:
        return [f"{_average(ranked[0], of)}.", *_about_experts(experiments)]
    return [*_first_and_next(ranked[0], ranked[1], of, by), *_about_experts(experiments)]


def _ranked(experiments: Sequence[Experiment], of: str) -> tuple[list[Experiment], str]:
    """The best first, and the part of the data that says so."""
    valid = [(e.valid(of), e) for e in experiments]
    chosen = [(accuracy, e) for accuracy, e in valid if accuracy is not None]
    if len(chosen) == len(valid):
        return [e for _, e in sorted(chosen, key=lambda pair: -pair[0])], "validation"
    return sorted(experiments, key=_ACCURACY[of], reverse=True), "test"


WHOSE = {"clients": "local", "server": "server"}  # accuracy
_ACCURACY = {"clients": local, "server": server}


def _average(experiment: Experiment, of: str) -> str:
    """An experiment's accuracy, over how many it is a mean, and what is reached without looking."""
    over = plural(len(experiment.finished), "seed")
    if of == "clients":
        over = f"{plural(len(experiment.clients), 'client')} and {over}"
    text = f"{shown(experiment.name)}, {_ACCURACY[of](experiment):.1f} % on average over {over}"
    if level := experiment.commonest(of):
        text += f"; the commonest class alone gives {level:.0f} %"
    return text


def _first_and_next(best: Experiment, second: Experiment, of: str, by: str) -> list[str]:
    says = "no client in common, so the two cannot be compared"
    if difference := compared(best, second, of):
        says = estimate(difference)
    return [
        f"Highest {WHOSE[of]} accuracy on {by} data: {shown(best.name)}. On test data:"
        f" {_average(best, of)}.",
        f"Next on {by} data: {shown(second.name)}, on test data {_ACCURACY[of](second):.1f} %."
        f" The first minus the next, on test data: {says}.",
    ]


def _about_experts(experiments: Sequence[Experiment]) -> list[str]:
    """Each experiment with experts against the control that its method names first."""
    made = claims(experiments)
    return [
        f"What experts add: {line}"
        for claim, line in zip(made, sentences(made), strict=True)
        if claim.what == claim.experiment.controls[0]["what"]
    ]


def notes(experiments: Sequence[Experiment]) -> list[str]:
    """What a reader must know beside the figures: what is not counted, and what is not alike."""
    lines = [
        f"Not counted: {shown(e.name)}, seed {seed}: {run.unfinished}."
        for e in experiments
        for seed, run in e.runs.items()
        if run.unfinished
    ]
    counted = [e for e in experiments if e.finished]
    lines += sorted({unfit(e.values) for e in counted} - {""})
    for e in counted:
        lines += [*_silent(e), *_simulated(e), *_refused(e)]
    if not same_data(counted):
        lines.append(
            "The experiments do not have the same data, so their figures cannot be compared."
        )
    if not same_seeds(counted):
        lines.append(
            "The experiments do not have the same seeds: compare the paired differences, not the"
            " means."
        )
    return [*lines, *_at_edges(counted), *_skews(counted)]


def _at_edges(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Values that were taken though they are the lowest or highest of what was tried."""
    for e in experiments:
        for key, end in e.search.get("edges", {}).items():
            further = {"lowest": "lower", "highest": "higher"}[end]
            yield (
                f"{shown(e.name)}: {shown(key)} = {e.search['chosen'][key]} is the {end} value that"
                f" was tried; a {further} one may be better."
            )


def unequal(experiments: Sequence[Experiment]) -> list[str]:
    """Whether all had as many trials, and those that train by rounds as many rounds in them."""
    trials = {len(e.search["trials"]) for e in experiments}
    rounds = {sum(e.search["rounds"]) for e in experiments} - {0}
    if len(trials) < 2 and len(rounds) < 2:
        return [
            "All had the same number of trials, with the same number of rounds in them, if any."
        ]
    return ["They did NOT have the same number of trials, or of rounds in them."]


def _skews(experiments: Sequence[Experiment]) -> Iterator[str]:
    """How differently classes are spread over clients, said once for equal data."""
    yield from dict.fromkeys(skewed(e.skew, e.values["data"]) for e in experiments if e.skew)


def skewed(skew: Mapping[str, float], data: Values) -> str:
    """The skew of a split in words, with what was asked for, among the options of its data."""
    asked = ""
    if "alpha" in data and "dirichlet" in data.get("partition", "dirichlet"):
        asked = f" (Dirichlet({data['alpha']:g}) was asked for)"
    return (
        "A client's largest class has"
        f" {100 * skew['largest']:.0f} % of its training data on average{asked}; entropy of its"
        f" classes {skew['entropy']:.2f} of {skew['most']:.2f} nats; one class alone:"
        f" {skew['single']:.3g} of {skew['clients']:.3g} clients."
    )


def _silent(experiment: Experiment) -> Iterator[str]:
    """Clients whom the last evaluation lacks, and why, as far as that is known."""
    for seed, run in experiment.finished.items():
        names = []
        for client, why in silent(run.clients, run.server).items():
            reason = why and f" ({why})"
            names.append(shown(f"{client}, which did not answer{reason}"))
        if names:
            yield (
                f"{shown(experiment.name)}, seed {seed}: missing from the last evaluation:"
                f" {', '.join(names)}."
            )


def _simulated(experiment: Experiment) -> Iterator[str]:
    """What would protect clients if they were deployed, and does not."""
    for seed, run in experiment.finished.items():
        if what := run.environment.get("simulated"):
            says = f"{shown(what)} is simulated: it follows from the seed and protects nobody"
            yield f"{shown(experiment.name)}, seed {seed}: {says}."


def _refused(experiment: Experiment) -> Iterator[str]:
    """Uploads that were not taken; a client of whom none was ever taken is named."""
    count = 0
    for seed, run in experiment.finished.items():
        refused = refusals(run.rounds)
        count += len(refused)
        trained = {client for row in run.rounds for client in row["trained"]}
        for client in sorted({client for _, client, _ in refused} - trained):
            yield (
                f"WARNING: {shown(experiment.name)}, seed {seed}: every upload from"
                f" {shown(client)} was refused, so it contributed nothing to this result."
            )
    if count:
        yield (
            f"{shown(experiment.name)}: {plural(count, 'upload')} refused; the report lists the"
            " reasons."
        )


def shown(text: object) -> str:
    """A name or reason from outside, with what a terminal might take for a command made visible."""
    return "".join(map(_visible, str(text)))


def _visible(letter: str) -> str:
    if letter.isprintable():
        return letter
    return "\N{REPLACEMENT CHARACTER}"


def plural(count: int, word: str) -> str:
    if count == 1:
        return f"1 {word}"
    return f"{count} {word}s"


def signed(value: float) -> str:
    """With its sign, and no minus before a zero."""
    return f"{round(value, 1) + 0.0:+.1f}"
