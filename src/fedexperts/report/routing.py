"""What routing adds: a server's mixture against itself without its parts, and against experiments without any.

A server has one accuracy a seed, so differences are paired by seed, and one seed settles nothing. This room makes
sentences and cells; it knows no table, page or picture.
"""

import math
import statistics
from collections.abc import Iterator, Sequence

from ..metrics import Lead, Routing, lead
from .claims import against, different, leads, plural, served, shown
from .collect import Experiment

ROUTING = (
    "server", "dense", "flat\ngate", "no\nmain", "main\nalone", "best\nexpert", "worst\nexpert", "apart",
    "entropy", "alpha",
)  # fmt: skip
AVERAGED = "one averaged model"
CLOSE, CROWDED = 0.01, 0.95  # experts nearer than the one are copies; with more of the use than the other, one is all


def has_routing(experiment: Experiment) -> bool:
    return bool(experiment.routing)


def columns(experiment: Experiment) -> list[str]:
    """The cells of `ROUTING`: means over seeds, "-" for what the mixture has not."""

    def facts(r: Routing) -> tuple[float, ...]:
        best, worst = max(r.experts), min(r.experts)
        return r.top, r.dense, r.uniform, r.routed, r.main, best, worst, r.apart, r.entropy, r.alpha

    means = [statistics.fmean(values) for values in zip(*map(facts, experiment.routing.values()), strict=True)]
    digits = (1, 1, 1, 1, 1, 1, 1, 3, 2, 2)
    return ["-" if math.isnan(mean) else f"{mean:.{d}f}" for mean, d in zip(means, digits, strict=True)]


def sentences(experiments: Sequence[Experiment]) -> list[str]:
    """What can be said of every experiment with a mixture, and what cannot."""
    routing = [e for e in experiments if has_routing(e) and not _is_control(e)]
    return [line for e in routing for line in (*_own(e), *_others(e, experiments), *_collapse(e))]


def controls(experiment: Experiment, experiments: Sequence[Experiment]) -> Iterator[tuple[Experiment, str, Lead]]:
    """The same without relevance, and averaging from the same data and start, as far as both have finished seeds."""
    for other in experiments:
        differ = set(different(experiment, other))
        if has_routing(other) and differ and differ <= {"method.relevance", "method.temperature"}:
            fits, what = other.values["method"].get("relevance") == "uniform", "uniform relevance"
        else:
            same = not any(key.startswith(("data.", "model.", "start.")) for key in differ)
            fits, what = same and str(other.values["method"]["name"]).startswith("fedavg"), AVERAGED
        if fits and (found := lead(served(experiment), served(other))):
            yield other, what, found


def _own(experiment: Experiment) -> list[str]:
    """The gate against none, with the same experts."""
    routing = experiment.routing.items()
    found = lead({seed: r.top for seed, r in routing}, {seed: r.uniform for seed, r in routing})
    if not found:
        return []
    return [f"{shown(experiment.name)} against its own experts under a uniform gate: {leads(found)}."]


def _others(experiment: Experiment, experiments: Sequence[Experiment]) -> list[str]:
    found = list(controls(experiment, experiments))
    lines = [against(experiment, other, what, leads(difference)) for other, what, difference in found]
    if AVERAGED not in {what for _, what, _ in found}:
        lines.append(
            f"{shown(experiment.name)}: no finished run of fedavg on the same data and from the same start is among "
            f"these, so they do not tell whether a mixture adds anything to {AVERAGED}."
        )
    return lines


def _collapse(experiment: Experiment) -> list[str]:
    """A note on experts that are copies of each other, or of which one does all."""
    found = [
        (r.apart, r.busiest)
        for r in experiment.routing.values()
        if len(r.experts) > 1 and (r.apart < CLOSE or r.busiest > CROWDED)
    ]
    if not found:
        return []
    apart, busiest = (statistics.fmean(values) for values in zip(*found, strict=True))
    return [
        f"The routed experts of {shown(experiment.name)} collapsed into one: in {len(found)} of "
        f"{plural(len(experiment.routing), 'seed')} they are {apart:.2g} apart, and one is the first choice "
        f"for {100 * busiest:.0f} % of the test inputs."
    ]


def _is_control(experiment: Experiment) -> bool:
    """Whether its gate or its relevance is switched off on purpose: it routes nothing, and nothing is said of it."""
    return "uniform" in (experiment.values["method"].get("gate"), experiment.values["method"].get("relevance"))
