"""What the split of the digits is, beside what is asked for: its skew, and the cost of writers that
nobody trained on.

    python benchmarks/splits.py            two minutes on two cores; goes on where it was stopped
    python benchmarks/splits.py --print    the tables alone

The first table: the share of a client's largest class among what it trains on, mean over 20 clients
and seeds 0 to 4, and what Dirichlet proportions alone would give. The second: classifiers of the
demos, each at the rate that its file names, tested on single scans and on whole sheets; test
accuracy after the last round in percent, mean over clients and seeds, and the difference by seed.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from grid import logs, minus, run, said, variant

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.data.digits import CLASSES, DigitsScanners
from fedexperts.metrics import last

SEEDS = (0, 1, 2, 3, 4)
ALPHAS = (0.1, 0.3, 1.0, 10.0)
METHODS = {
    "linear probe": "linear-probe",
    "linear probes averaged": "linear-probe-fedavg",
    "linear probe, all data in one place": "linear-probe-pooled",
    "small network, all data in one place": "fedmoe-digits/pooled",
}
POOLS = ("scans", "sheets")


def skews() -> Iterator[str]:
    yield "| Dirichlet | largest class of a client | by Dirichlet alone | one class alone |"
    yield "|---|---|---|---|"
    for alpha in ALPHAS:
        found = [DigitsScanners(alpha=alpha).load(seed).skew() for seed in SEEDS]
        drawn = np.random.default_rng(0).dirichlet([alpha] * len(CLASSES), 100_000)
        largest = statistics.fmean(skew["largest"] for skew in found)
        single = statistics.fmean(skew["single"] for skew in found)
        alone = drawn.max(1).mean()
        yield f"| {alpha:g} | {100 * largest:.0f} % | {100 * alone:.0f} % | {single:.1f} of 20 |"


def name(file: str, pool: str) -> str:
    return f"{file.replace('/', '-')}-{pool}"


def experiments() -> Iterator[Config]:
    for file in METHODS.values():
        base = door.load(f"configs/demo/{file}.toml")
        for pool in POOLS:
            yield variant(base, name(file, pool), {"data.pool": pool, "run.evaluate_every": 40})


def costs(out: Path) -> Iterator[str]:
    yield "| method | tested on single scans | on whole sheets | minus single scans |"
    yield "|---|---|---|---|"
    for method, file in METHODS.items():
        scans, sheets = (
            [last(*log).mean for log in logs(out, name(file, pool), SEEDS)] for pool in POOLS
        )
        cells = f"{statistics.fmean(scans):.1f} | {statistics.fmean(sheets):.1f}"
        yield f"| {method} | {cells} | {said(minus(sheets, scans))} |"


def main() -> None:
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/splits"))
    print("\n".join([*skews(), "", *costs(out)]))


if __name__ == "__main__":
    main()
