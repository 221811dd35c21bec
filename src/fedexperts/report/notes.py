"""What a reader must know beside the figures: what is not counted, what is not alike, what was
refused, how values were chosen. This room makes sentences; it knows no table, page or picture.
"""

from collections.abc import Iterator, Mapping, Sequence

from ..membership import interval
from ..metrics import refusals, silent, spent
from ..models.seen import unfit
from ..options import Values
from ..privacy import HIDDEN, given_away
from .claims import plural, same_data, same_seeds, shown
from .collect import Experiment


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
        lines += [*_silent(e), *_spent(e), *_members(e), *_simulated(e), *_refused(e)]
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


def _spent(experiment: Experiment) -> Iterator[str]:
    """What a run's clients gave away, as far as it is counted."""
    for seed, run in experiment.finished.items():
        if total := spent(run.rounds):
            hidden = HIDDEN[experiment.values["privacy"]["unit"]]
            yield f"{shown(experiment.name)}, seed {seed}: {given_away(hidden, *total)}"


def _members(experiment: Experiment) -> Iterator[str]:
    """Whether a loss tells who was trained on, in runs that were asked."""
    for seed, run in experiment.finished.items():
        row = run.server[-1] if run.server else {}
        if "member_area" not in row:
            continue
        low, high = interval(row["member_area"], row["members"], row["others"])
        yield (
            f"{shown(experiment.name)}, seed {seed}: by its loss under what all share, a training"
            f" example is told from a test one with an area under the curve of"
            f" {row['member_area']:.3f} [{low:.3f}, {high:.3f}] (0.5: by chance);"
            f" {100 * row['member_caught']:.1f} % are found where 1 % of others are taken for one."
            " Attacks with models of their own find more."
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
