"""What routing adds: a server's mixture against itself without its parts.

A server has one accuracy a seed. This room makes sentences and cells; it knows no method, table,
page or picture.
"""

import statistics
from collections.abc import Iterator, Sequence

from . import paired
from .claims import Claim, legend, plural, sentences, shown
from .collect import Experiment
from .experts import Routing
from .paired import Family

# experts nearer than the one are copies; with more of the use than the other, one is all
CLOSE, CROWDED = 0.01, 0.95


def mean(experiment: Experiment, fact: str) -> float:
    """A number of `experts.Routing`, mean over seeds."""
    return statistics.fmean(getattr(routing, fact) for routing in experiment.routing.values())


def lines(experiments: Sequence[Experiment]) -> list[str]:
    """What can be said of every experiment whose gate is meant to tell its experts apart."""
    routing = [e for e in experiments if e.routing and not e.ablation]
    claims = [claim for e in routing for claim in _own_gate(e)]
    collapsed = [line for e in routing for line in _collapse(e)]
    judged = Family([claim.difference for claim in claims])
    return [*legend(claims, judged), *sentences(claims, judged), *collapsed]


def _own_gate(experiment: Experiment) -> Iterator[Claim]:
    """The gate against none, with the same experts."""
    routing = experiment.routing.items()
    difference = paired.server(
        {seed: r.top for seed, r in routing}, {seed: r.uniform for seed, r in routing}
    )
    if difference:
        yield Claim(experiment, "its own experts under a uniform gate", "", "server", difference)


def _collapse(experiment: Experiment) -> Iterator[str]:
    """A note on experts that are copies of each other, or of which one does all."""
    collapsed = [r for r in experiment.routing.values() if _is_one(r)]
    if collapsed:
        apart, busiest = (
            statistics.fmean(values)
            for values in zip(*((r.apart, r.busiest) for r in collapsed), strict=True)
        )
        yield (
            f"The routed experts of {shown(experiment.name)} collapsed into one: in"
            f" {len(collapsed)} of {plural(len(experiment.routing), 'seed')} they are {apart:.2g}"
            f" apart, and one is the first choice for {100 * busiest:.0f} % of the test inputs."
        )


def _is_one(routing: Routing) -> bool:
    return len(routing.experts) > 1 and (routing.apart < CLOSE or routing.busiest > CROWDED)
