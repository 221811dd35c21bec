"""Do experts of others help on photographs? The tables of docs/photographs.md, of finished studies.

    export FEDEXPERTS_DATA=FOLDER
    fedexperts run configs/benchmark/pacs --seeds 3 --out runs/pacs    # and so on, one a setting
    python benchmarks/photographs.py runs/pacs runs/flowers ...

Local test accuracy in percent, mean over clients and seeds, a column a study. Below it what two
methods with experts are ahead of their controls in points, paired by seed, with its 95 % interval
(Student's t over seeds); what a study lacks is left empty.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from grid import minus, rows, said

from fedexperts import study
from fedexperts.metrics import score
from fedexperts.report import paired

METHODS = (
    "zero-shot",
    "promptfl",
    "coop-alone",
    "gate-alone",
    "pfedmoap-random",
    "pfedmoap",
    "linear-probe",
    "linear-probe-fedavg",
    "linear-probe-personal",
    "linear-probe-pooled",
    "gaussian-alone",
    "gaussian-experts",
)
AGAINST = (
    ("pfedmoap", "gate-alone"),
    ("pfedmoap", "pfedmoap-random"),
    ("pfedmoap", "coop-alone"),
    ("pfedmoap", "linear-probe"),
    ("pfedmoap", "linear-probe-personal"),
    ("gaussian-experts", "gaussian-alone"),
    ("gaussian-experts", "linear-probe"),
    ("gaussian-experts", "linear-probe-fedavg"),
    ("gaussian-experts", "linear-probe-personal"),
    ("gaussian-experts", "linear-probe-pooled"),
)
Accuracies = dict[str, list[float]]  # by method: one a seed


def accuracies(folder: Path) -> Accuracies:
    """Local test accuracy after the last round, of the methods that a study has."""
    seeds, configs = study.read(folder)
    names = {config.name for config in configs}
    return {
        method: [score(last).mean for last in rows(folder, method, seeds)]
        for method in METHODS
        if method in names
    }


def table(folders: Sequence[Path]) -> Iterator[str]:
    studies = [accuracies(folder) for folder in folders]
    head = " | ".join(folder.name for folder in folders)
    rule = "|---" * (1 + len(folders)) + "|"
    yield f"| local accuracy | {head} |\n{rule}"
    for method in METHODS:
        cells = [_mean(every.get(method)) for every in studies]
        yield f"| {method} | {' | '.join(cells)} |"
    columns = [_ahead(every) for every in studies]
    yield f"\n| minus | {head} |\n{rule}"
    for pair in AGAINST:
        cells = [column.get(pair, "") for column in columns]
        yield f"| {pair[0]} minus {pair[1]} | {' | '.join(cells)} |"
    yield "\n*: not zero, for all comparisons of its column together (Holm, 5 %)."


def _ahead(every: Accuracies) -> dict[tuple[str, str], str]:
    """A study's differences, in words."""
    pairs = [(ours, control) for ours, control in AGAINST if ours in every and control in every]
    ahead = [minus(every[ours], every[control]) for ours, control in pairs]
    cells = {}
    for pair, difference, holds in zip(pairs, ahead, paired.established(ahead), strict=True):
        star = "*" if holds else ""
        cells[pair] = said(difference) + star
    return cells


def _mean(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.1f}"


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        raise SystemExit(__doc__)
    print("\n".join(table(folders)))


if __name__ == "__main__":
    main()
