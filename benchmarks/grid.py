"""Variants of one experiment as a study, and what came out; other benchmarks use it. No benchmark
itself.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedexperts import config as door
from fedexperts import study, units
from fedexperts.config import Config
from fedexperts.metrics import Row, by_round, last, last_valid
from fedexperts.report import paired
from fedexperts.report.paired import Difference
from fedexperts.rundir import RunDir
from fedexperts.verify import made

SEEDS = (100, 101, 102, 103, 104)  # of choices; what is reported of them is measured on others


def variant(base: Config, name: str, changes: Mapping[str, object]) -> Config:
    """`base` under another name, with other values and nothing to tune."""
    plain = base.nested() | {"name": name, "tune": {}}
    return door.resolve([(plain, str(base.name))]).having(changes, "benchmark")


def tell(beat: units.Beat) -> None:
    if sys.stderr.isatty():
        print(f"\rround {beat.done} of {beat.total}", end="", file=sys.stderr)


def run(experiments: Sequence[Config], seeds: Sequence[int], about: str, out: Path) -> Path:
    """Run what is left of the experiments, unless only the table is asked for, and print with what
    they were made; the study's folder.
    """
    reader = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--out", type=Path, default=out)
    reader.add_argument("--print", action="store_true", help="the table alone")
    asked = reader.parse_args()
    if not asked.print:
        if not asked.out.exists():
            study.create(asked.out, experiments, seeds)
        study.advance(asked.out, door.cores(), tell)
    for path in sorted(asked.out.glob("*/seed-*"))[:1]:
        print(made(RunDir(path)), end="\n\n")
    return Path(asked.out)


def rows(out: Path, name: str, seeds: Sequence[int]) -> list[list[Row]]:
    """The last client rows of an experiment, a list a seed."""
    runs = [RunDir(out / name / f"seed-{seed}").rows("clients.jsonl") for seed in seeds]
    return [(rounds := by_round(run))[max(rounds)] for run in runs]


def logs(out: Path, name: str, seeds: Sequence[int]) -> list[tuple[list[Row], list[Row]]]:
    """The client rows of an experiment and its server's, a pair a seed that was run."""
    folders = [RunDir(path) for seed in seeds if (path := out / name / f"seed-{seed}").exists()]
    return [(folder.rows("clients.jsonl"), folder.rows("server.jsonl")) for folder in folders]


def served(out: Path, name: str, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """The server's accuracy in percent after the last round, on validation and on test examples, a
    pair a seed.
    """
    return [(last_valid(*log, "server"), last(*log).server) for log in logs(out, name, seeds)]


def minus(these: Sequence[float], those: Sequence[float]) -> Difference:
    """Paired by seed; the values are in the order of the seeds."""
    return Difference(dict(enumerate(a - b for a, b in zip(these, those, strict=True))))


def said(difference: Difference) -> str:
    """The mean difference in points with its 95 % interval, or seed by seed where there is none."""
    if not difference.judged:
        each = ", ".join(f"{value:+.1f}" for value in difference.by_seed.values())
        return f"{difference.mean:+.1f} (by seed {each})"
    low, high = difference.interval
    return f"{difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def choices(accuracies: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[str]:
    """A table of choices, each with its validation and test accuracy, a pair a seed; the first is
    the default.

    What is established among all of them together (Holm, 5 %) is marked with a star.
    """
    default, *others = accuracies
    valid = {choice: [valid for valid, _ in pairs] for choice, pairs in accuracies.items()}
    test = {
        choice: statistics.fmean(test for _, test in pairs) for choice, pairs in accuracies.items()
    }
    differences = [minus(valid[choice], valid[default]) for choice in others]
    stars = ["*" if holds else "" for holds in paired.established(differences)]
    yield "| choice | validation | minus the default | test |\n|---|---|---|---|"
    yield f"| {default} | {statistics.fmean(valid[default]):.1f} | | {test[default]:.1f} |"
    for choice, difference, star in zip(others, differences, stars, strict=True):
        mean = statistics.fmean(valid[choice])
        yield f"| {choice} | {mean:.1f} | {said(difference)}{star} | {test[choice]:.1f} |"
    yield (
        f"\n{len(valid)} choices, {len(valid[default])} seeds each. In brackets the 95 % interval"
        " of the paired difference (Student's t over seeds)."
    )
    yield f"*: not zero, for all {len(others)} choices together (Holm, 5 %)."
