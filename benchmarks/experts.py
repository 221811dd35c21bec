"""What do experts add? Local accuracy of pFedMoAP's variants for few and many images, few and many
clients.

    python benchmarks/experts.py            about 40 minutes on two cores; goes on if stopped
    python benchmarks/experts.py --print    the tables alone

Every variant of a row has the same clients, split, seeds, steps and rates; what differs is whose
prompts a client receives and whether gates are averaged. Accuracies are local test accuracies in
percent after the last round, means over clients and seeds; differences are paired by seed, with
their 95 % interval (Student's t over seeds), each row's by itself.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

from grid import minus, rows, run, said, variant

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.metrics import score

SHOTS, CLIENTS, SEEDS = (2, 4, 8, 16, 0), (5, 20), (0, 1, 2)
FIXED: dict[str, object] = {
    "run.evaluate_every": 20,
    "learning.rate": 0.1,
    "method.gate_rate": 0.15,
}
EXPERTS = {5: 2, 20: 4}  # K for so many clients: few enough that who is chosen can matter
VARIANTS: dict[str, dict[str, object]] = {
    "gate alone": {"method.experts": 0},
    "nearest": {"method.select": "nearest"},
    "random": {"method.select": "random"},
    "farthest": {"method.select": "farthest"},
}
GATES = ("local", "averaged")


def name(shots: int, clients: int, variant: str, gates: str) -> str:
    return f"{shots or 'all'}-images-{clients}-clients-{variant.replace(' ', '-')}-{gates}"


def experiments() -> Iterator[Config]:
    base = door.load("configs/demo/pfedmoap.toml")
    for clients in CLIENTS:
        for shots in SHOTS:
            for kind, change in VARIANTS.items():
                for gates in GATES:
                    data = {"data.shots": shots, "data.clients": clients, "method.gates": gates}
                    changes = FIXED | {"method.experts": EXPERTS[clients]} | data | change
                    yield variant(base, name(shots, clients, kind, gates), changes)


def accuracy(out: Path, experiment: str) -> list[float]:
    """Mean over clients of local test accuracy, a value a seed."""
    return [score(last).mean for last in rows(out, experiment, SEEDS)]


def added(out: Path, with_experts: str, without: str) -> str:
    """Difference in points, paired by seed, with its interval."""
    return said(minus(accuracy(out, with_experts), accuracy(out, without)))


def spread(out: Path, experiment: str, fact: str) -> float:
    """Mean over seeds and clients of a logged fact."""
    values = [row[fact] for last in rows(out, experiment, SEEDS) for row in last if fact in row]
    return statistics.fmean(values)


def table(out: Path) -> Iterator[str]:
    for clients in CLIENTS:
        for gates in GATES:
            yield f"\n{clients} clients, gates {gates}\n"
            yield (
                "| images a class | gate alone | nearest | random | farthest | nearest - gate alone"
                " | experts apart |"
            )
            yield "|---|---|---|---|---|---|---|"
            for shots in SHOTS:
                names = {kind: name(shots, clients, kind, gates) for kind in VARIANTS}
                means = " | ".join(
                    f"{statistics.fmean(accuracy(out, n)):.1f}" for n in names.values()
                )
                gain = added(out, names["nearest"], names["gate alone"])
                apart = spread(out, names["nearest"], "experts_apart")
                yield f"| {shots or 'all'} | {means} | {gain} | {apart:.4f} |"


def main() -> None:
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/experts"))
    print("\n".join(table(out)))


if __name__ == "__main__":
    main()
