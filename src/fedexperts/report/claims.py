"""What may be said of experiments in words, and what must be said beside their figures.

Every difference is paired by seed and printed with its interval; a verdict needs three seeds, and holds for all
comparisons of its table together. Experiments on different data, or with different seeds, are not ranked. What a method
is compared with is what it declared. This room makes sentences; it knows no method, table, page or picture.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import refusals, silent
from . import paired
from .collect import Experiment, judged_by_server
from .paired import Difference


@dataclass(frozen=True)
class Claim:
    """One experiment against another that lacks one thing, `what`."""

    experiment: Experiment
    other: str  # its name, or what else the experiment is held against
    what: str
    difference: Difference
    beside: str = ""  # settings that differ too, though they should not


def sentence(claim: Claim, says: str) -> str:
    """A claim in words; `says` is its verdict."""
    against = f"{claim.other} ({claim.what})" if claim.what else claim.other
    return f"{shown(claim.experiment.name)} against {against}: {says}{claim.beside}."


def sentences(claims: Sequence[Claim]) -> list[str]:
    """All claims of a table in words, judged together."""
    verdicts = judged([claim.difference for claim in claims])
    return [sentence(claim, says) for claim, says in zip(claims, verdicts, strict=True)]


def judged(found: Sequence[Difference]) -> list[str]:
    """What differences say, each with its interval, if they are judged together."""
    count = sum(difference.judged for difference in found)
    return [
        verdict(difference, holds, count) for difference, holds in zip(found, paired.established(found), strict=True)
    ]


def verdict(found: Difference, holds: bool, comparisons: int = 1) -> str:
    """One difference in words and numbers; `holds` if it is established among so many comparisons."""
    if not found.judged:
        values = ", ".join(f"{signed(value)} (seed {seed})" for seed, value in found.by_seed.items())
        return f"{values} points; an interval needs {paired.SEEDS} seeds"
    if not any(found.by_seed.values()):
        return f"no difference at all in {plural(len(found.by_seed), 'seed')}"
    low, high = found.interval
    says = f"{signed(found.mean)} points (between {signed(low)} and {signed(high)}, 95 %, "
    says += f"{plural(len(found.by_seed), 'seed')})"
    if holds:
        return f"{says}, {'better' if found.mean > 0 else 'worse'}"
    if low <= 0 <= high:
        return f"{says}, no difference is established"
    return f"{says}, not established among {comparisons} comparisons"


def legend(claims: Sequence[Claim]) -> str:
    """How the sentences of a table are judged."""
    count = sum(claim.difference.judged for claim in claims)
    together = f", and hold for all {count} comparisons of this table together (Holm, 5 %)" if count > 1 else ""
    return f"Intervals are Student's t over seeds. Better and worse are said where zero is outside{together}."


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
    """The accuracy of one's clients, or of its server, minus the other's; None without a seed in common."""
    if of == "server":
        return paired.server(served(one), served(other))
    return paired.local(one.rows, other.rows)


def claims(experiments: Sequence[Experiment], of: str) -> list[Claim]:
    """Every experiment against the controls that its method declared, as far as both have finished runs."""
    return [
        Claim(experiment, shown(other.name), control["what"], found, _beside(experiment, other))
        for experiment in experiments
        for control in experiment.controls
        if control["of"] == of
        for other in experiments
        if fits(experiment, control, other) and (found := compared(experiment, other, of))
    ]


def fits(experiment: Experiment, control: dict[str, Any], other: Experiment) -> bool:
    """Whether another experiment is this one's control: it has the settings asked for, and differs in nothing else."""
    first, second = experiment.first.settings, other.first.settings
    asked = control["having"]
    if any(second.get(key) not in values for key, values in asked.items()):
        return False
    if all(first.get(key) in values for key, values in asked.items()):
        return False  # the experiment is what its control should be
    differ = set(different(experiment, other)) - set(asked) - set(control["free"])
    return not any(key.startswith(tuple(control["alike"])) for key in differ if not key.startswith("run."))


def _beside(one: Experiment, other: Experiment) -> str:
    differ = [key for key in different(one, other) if key.startswith("run.")]
    return f"; {', '.join(differ)} differ too" if differ else ""


def unknown(experiments: Sequence[Experiment], of: str) -> list[str]:
    """What cannot be said for want of a control, and what run would tell."""
    told = {(id(claim.experiment), claim.what) for claim in claims(experiments, of)}
    return [
        f"{shown(e.name)}: {control['needed']}."
        for e in experiments
        for control in e.controls
        if control["of"] == of and control["needed"] and (id(e), control["what"]) not in told
    ]


def has_experts(experiment: Experiment) -> bool:
    """Whether its clients have experts to be compared with their controls."""
    return any(control["of"] == "clients" for control in experiment.controls)


def different(one: Experiment, other: Experiment) -> list[str]:
    """Settings in which two experiments differ; what either of them tuned is free to.

    What is off, 0 or empty does not differ from what an earlier version did not have.
    """
    first, second = one.first.settings, other.first.settings
    free = one.first.tuned | other.first.tuned
    return [key for key in first | second if (first.get(key) or None) != (second.get(key) or None) and key not in free]


def same_data(experiments: Sequence[Experiment]) -> bool:
    return not any(key.startswith("data.") for other in experiments[1:] for key in different(experiments[0], other))


def same_seeds(experiments: Sequence[Experiment]) -> bool:
    return len({tuple(experiment.finished) for experiment in experiments}) < 2


def headline(experiments: Sequence[Experiment]) -> list[str]:
    """The result in words and numbers, a sentence or two a line."""
    by_server = judged_by_server(experiments)
    value, whose = (server, "server") if by_server else (local, "local")
    counted = [e for e in experiments if e.finished and (e.has_global or not by_server)]
    ranked = sorted(counted, key=value, reverse=True)
    if not ranked:
        return ["No run is finished yet, so there is no result."]
    if not same_data(ranked):
        return ["These experiments have different data, so they are listed and not ranked."]
    if not same_seeds(ranked):
        return ["These experiments have different seeds, so they are listed and not ranked.", *_about_experts(ranked)]
    best = ranked[0]
    level = best.chance("server" if by_server else "clients")
    chance = f"; the commonest class alone gives {level:.0f} %" if level else ""
    over = "" if by_server else f"{plural(len(best.clients), 'client')} and "
    text = [
        f"{f'Highest {whose} accuracy: ' if ranked[1:] else ''}{shown(best.name)}, {value(best):.1f} % on average over "
        f"{over}{plural(len(best.finished), 'seed')}{chance}."
    ]
    if ranked[1:]:
        second = ranked[1]
        found = compared(best, second, "server" if by_server else "clients")
        says = judged([found])[0] if found else "no client in common, so the two cannot be compared"
        text.append(f"Next: {shown(second.name)}, {value(second):.1f} %. The first minus the next: {says}.")
    return text + _about_experts(experiments)


def _about_experts(experiments: Sequence[Experiment]) -> list[str]:
    """The first control of each experiment with experts: the one that its method names first."""
    found = claims(experiments, "clients")
    first = {id(e): e.controls[0]["what"] for e in experiments if e.controls}
    lines = zip(found, sentences(found), strict=True)
    return [f"What experts add: {line}" for claim, line in lines if claim.what == first[id(claim.experiment)]]


def notes(experiments: Sequence[Experiment]) -> list[str]:
    """What a reader must know beside the figures: what is not counted, and what is not alike."""
    found = [
        f"Not counted: {shown(e.name)}, seed {seed}: {run.unfinished}."
        for e in experiments
        for seed, run in e.runs.items()
        if run.unfinished
    ]
    counted = [e for e in experiments if e.finished]
    for e in counted:
        for seed, run in e.finished.items():
            if quiet := silent(run.clients):
                names = ", ".join(map(shown, quiet))
                found.append(f"{shown(e.name)}, seed {seed}: the last evaluation lacks {names}, who did not answer.")
        found += _refused(e)
    if not same_data(counted):
        found.append("The experiments do not have the same data: their figures cannot be compared with each other.")
    if not same_seeds(counted):
        found.append("The experiments do not have the same seeds: compare the paired differences, not the means.")
    return found


def _refused(experiment: Experiment) -> Iterator[str]:
    """Uploads that were not taken; a client of whom none was ever taken is named."""
    every = [refusal for run in experiment.finished.values() for refusal in refusals(run.rounds)]
    if not every:
        return
    yield f"{shown(experiment.name)}: {plural(len(every), 'upload')} refused; the report lists the reasons."
    for seed, run in experiment.finished.items():
        trained = {client for row in run.rounds for client in row["trained"]}
        for client in sorted({client for _, client, _ in refusals(run.rounds)} - trained):
            yield (
                f"WARNING: {shown(experiment.name)}, seed {seed}: {shown(client)} was refused in every round; "
                "this result is without it."
            )


def shown(text: object) -> str:
    """A name or reason from outside, with what a terminal might take for a command made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def signed(value: float) -> str:
    """With its sign, and no minus before a zero."""
    return f"{round(value, 1) + 0.0:+.1f}"
