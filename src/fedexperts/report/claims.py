"""What may be said of experiments in words: one held against another, and how sure that is.

Every difference is paired by seed and printed with its interval; a verdict needs three seeds, and
holds for all comparisons of its table together. Experiments on different data, or with different
seeds, are not ranked. What a method is compared with is what it declared. This room makes
sentences; it knows no method, table, page or picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import paired
from .collect import Experiment
from .paired import Difference, Family

WHOSE = {"clients": "local", "server": "server"}  # accuracy


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


def sentences(claims: Sequence[Claim], judged: Family) -> list[str]:
    """Claims in words, judged together with all others of their family."""
    return [
        f"{shown(claim.experiment.name)} against {claim.against}:"
        f" {_verdict(claim.difference, judged)}{claim.beside}."
        for claim in claims
    ]


def legend(claims: Sequence[Claim], judged: Family) -> list[str]:
    """How the sentences of a table are judged; nothing without any."""
    if not claims:
        return []
    return [
        "Intervals are Student's t over seeds. A difference is called better or worse where zero"
        f" is ruled out{together(judged)}."
    ]


def together(judged: Family) -> str:
    """How many comparisons a verdict holds for; "" where there is one."""
    if judged.size < 2:
        return ""
    return f", for all {judged.size} comparisons together (Holm, 5 %)"


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


def _verdict(difference: Difference, judged: Family) -> str:
    """The same with a verdict."""
    says = estimate(difference)
    if not difference.judged:
        return says
    holds = judged.holds(difference)
    if holds and difference.mean > 0:
        return f"{says}, better"
    if holds:
        return f"{says}, worse"
    low, high = difference.interval
    if low <= 0 <= high:
        return f"{says}, no difference is established"
    return f"{says}, not established among {judged.size} comparisons"


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
    return [claim for claim, _ in _held(experiments)]


def added(experiments: Sequence[Experiment], judged: Family) -> list[str]:
    """Each experiment with experts against the strongest of its controls, as validation data have
    it; all data in one place are a bound, and no control.
    """
    by_experiment: dict[int, list[tuple[Claim, Experiment]]] = {}
    for claim, other in _held(experiments):
        if not other.pooled:
            by_experiment.setdefault(id(claim.experiment), []).append((claim, other))
    strongest = [_strongest(controls) for controls in by_experiment.values()]
    return [f"What experts add: {line}" for line in sentences(strongest, judged)]


def _strongest(controls: Sequence[tuple[Claim, Experiment]]) -> Claim:
    """The one best on validation data; without such data the first, which tells most."""
    first = controls[0][0]
    known = [(other.valid(first.of), claim) for claim, other in controls]
    ranked = [(valid, claim) for valid, claim in known if valid is not None]
    if len(controls) == 1 or len(ranked) < len(known):
        return first
    _, best = max(ranked, key=lambda pair: pair[0])
    return replace(
        best, what=f"{best.what}; the strongest of {len(controls)} controls on validation data"
    )


def _held(experiments: Sequence[Experiment]) -> Iterator[tuple[Claim, Experiment]]:
    """Every experiment against each control that is among the others."""
    for experiment in experiments:
        for control in experiment.controls:
            for other in experiments:
                if not fits(experiment, control, other):
                    continue
                of, beside = control["of"], _beside(experiment, other, control)
                if difference := compared(experiment, other, of):
                    name, what = shown(other.name), control["what"]
                    yield Claim(experiment, name, what, of, difference, beside), other


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
