"""What may be said of experiments in words, and what must be said beside their figures.

Differences are paired by seed and client, and a difference within two standard errors is called none. Experiments on
different data are not ranked. This room makes sentences; it knows no table, page or picture.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import Gain, Lead, gain, lead, refusals, silent
from .collect import Experiment, judged_by_server

ALONE = "gate alone"
_UNUSED = {ALONE: {"method.experts", "method.select"}, "random experts": {"method.select"}}  # free to differ


@dataclass(frozen=True)
class Claim:
    """One experiment against a control that lacks one thing, `what`."""

    experiment: Experiment
    control: Experiment
    what: str
    gain: Gain

    def sentence(self) -> str:
        return against(self.experiment, self.control, self.what, verdict(self.gain))


def against(experiment: Experiment, control: Experiment, what: str, says: str) -> str:
    """A sentence on two experiments, and the settings of the run in which they should not differ, yet do."""
    differ = [key for key in different(experiment, control) if key.startswith("run.")]
    beside = f"; {', '.join(differ)} differ too" if differ else ""
    return f"{shown(experiment.name)} against {shown(control.name)} ({what}): {says}{beside}."


def local(experiment: Experiment) -> float:
    """Mean over seeds of the mean over clients, after the last round."""
    return statistics.fmean(score.mean for score in experiment.last.values())


def server(experiment: Experiment) -> float:
    """Mean over seeds of the server's accuracy, after the last round."""
    return statistics.fmean(score.server for score in experiment.last.values())


def served(experiment: Experiment) -> dict[int, float]:
    """The server's accuracy after the last round, by seed; none where there is no global model."""
    return {seed: score.server for seed, score in experiment.last.items() if experiment.has_global}


def verdict(found: Gain) -> str:
    """What a paired difference says, in words and numbers."""
    pairs = found.better + found.worse + found.same
    of = f"{plural(pairs, 'pair')} of client and seed, {plural(found.seeds, 'seed')}"
    if pairs == 1:
        return f"{signed(found.mean)} points in a single pair, which says nothing about the noise"
    if not (found.better or found.worse):
        return f"no difference at all, every client scores the same ({of})"
    says = _noise(found)
    if found.seeds == 1:
        says += " between clients, which one seed alone does not settle"
    return f"{signed(found.mean)} points, {says} (two standard errors: {2 * found.error:.1f}; {of})"


def leads(found: Lead) -> str:
    """What a difference of the server's accuracy says, in words and numbers."""
    if found.seeds == 1:
        return f"{signed(found.mean)} points of the server's accuracy, which one seed does not settle"
    if found.mean == found.over_seeds == 0:
        return f"no difference at all in the server's accuracy ({plural(found.seeds, 'seed')})"
    of = f"two standard errors: {2 * found.error:.1f}; {plural(found.seeds, 'seed')}"
    return f"{signed(found.mean)} points of the server's accuracy, {_noise(found)} ({of})"


def _noise(found: Gain | Lead) -> str:
    if not found.beyond_noise:
        return "no difference beyond the noise"
    return "better beyond the noise" if found.mean > 0 else "worse beyond the noise"


def claims(experiments: Sequence[Experiment]) -> list[Claim]:
    """What experts add: every experiment with experts against its controls, as far as both have finished runs."""
    return [
        Claim(experiment, control, what, found)
        for experiment in filter(has_experts, experiments)
        for control, what in controls(experiment, experiments)
        if (found := gain(experiment.rows, control.rows))
    ]


def controls(experiment: Experiment, experiments: Sequence[Experiment]) -> Iterator[tuple[Experiment, str]]:
    """The same without experts, the same with experts by chance, and a linear probe on the same data."""
    kinds: dict[str, Callable[[Experiment], bool]] = {
        ALONE: lambda other: is_pfedmoap(other) and not has_experts(other),
        "random experts": lambda other: has_experts(other) and _select(other) == "random" != _select(experiment),
        "linear probe": lambda other: other.values["model"]["name"] == "linear-probe",
    }
    for what, fits in kinds.items():
        for other in filter(fits, experiments):
            differ = set(different(experiment, other)) - _UNUSED.get(what, set())
            if not differ or (what not in _UNUSED and not any(key.startswith("data.") for key in differ)):
                yield other, what


def is_pfedmoap(experiment: Experiment) -> bool:
    return bool(experiment.values["method"]["name"] == "pfedmoap")


def has_experts(experiment: Experiment) -> bool:
    return is_pfedmoap(experiment) and int(experiment.values["method"]["experts"]) > 0


def different(one: Experiment, other: Experiment) -> list[str]:
    """Settings in which two experiments differ; what either of them tuned is free to.

    What is off, 0 or empty does not differ from what an earlier version did not have.
    """
    first, second = one.first.settings, other.first.settings
    free = one.first.tuned | other.first.tuned
    return [key for key in first | second if (first.get(key) or None) != (second.get(key) or None) and key not in free]


def same_data(experiments: Sequence[Experiment]) -> bool:
    return not any(key.startswith("data.") for other in experiments[1:] for key in different(experiments[0], other))


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
    best = ranked[0]
    chance = f", where guessing gives {best.chance:.0f} %" if best.chance else ""
    over = "" if by_server else f"{plural(len(best.clients), 'client')} and "
    text = [
        f"{f'Highest {whose} accuracy: ' if ranked[1:] else ''}{shown(best.name)}, {value(best):.1f} % on average over "
        f"{over}{plural(len(best.finished), 'seed')}{chance}."
    ]
    if ranked[1:]:
        second = ranked[1]
        between = _leads(best, second) if by_server else _gains(best, second)
        says = between or "no seed in common, so the two cannot be compared"
        text.append(f"Next: {shown(second.name)}, {value(second):.1f} %. The first against the next: {says}.")
    about = [c for c in claims(experiments) if c.what == ALONE]
    seen = {id(e) for e in ranked[:2]} if not by_server else set()  # said already
    text += [f"What experts add: {c.sentence()}" for c in about if {id(c.experiment), id(c.control)} != seen]
    return text


def _gains(one: Experiment, other: Experiment) -> str:
    found = gain(one.rows, other.rows)
    return verdict(found) if found else ""


def _leads(one: Experiment, other: Experiment) -> str:
    found = lead(served(one), served(other))
    return leads(found) if found else ""


def unknown(experiments: Sequence[Experiment]) -> list[str]:
    """What cannot be said of experts, and what run would tell."""
    told = {id(claim.experiment) for claim in claims(experiments) if claim.what == ALONE}
    return [
        f"{shown(e.name)}: no finished run of the same with method.experts = 0 is among these, so they do not tell "
        f"whether the experts add anything or the gate does it alone."
        for e in experiments
        if has_experts(e) and id(e) not in told
    ]


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
            if quiet := silent(run.clients, run.server):
                names = ", ".join(
                    shown(f"{client}, who did not answer{why and f' ({why})'}") for client, why in quiet.items()
                )
                found.append(f"{shown(e.name)}, seed {seed}: the last evaluation lacks {names}.")
            if what := run.environment.get("simulated"):
                says = f"{shown(what)} is simulated: it follows from the seed and protects nobody"
                found.append(f"{shown(e.name)}, seed {seed}: {says}.")
        if refused := sum(len(refusals(run.rounds)) for run in e.finished.values()):
            found.append(f"{shown(e.name)}: {plural(refused, 'upload')} refused; the report lists the reasons.")
    if not same_data(counted):
        found.append("The experiments do not have the same data: their figures cannot be compared with each other.")
    if len({tuple(e.finished) for e in counted}) > 1:
        found.append("The experiments do not have the same seeds: compare the paired differences, not the means.")
    return found


def shown(text: object) -> str:
    """A name or reason from outside, with what a terminal might take for a command made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def signed(value: float) -> str:
    """With its sign, and no minus before a zero."""
    return f"{round(value, 1) + 0.0:+.1f}"


def _select(experiment: Experiment) -> Any:
    return experiment.values["method"]["select"]
