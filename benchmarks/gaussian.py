"""Do Gaussian experts help, and where? Local accuracy beside the controls that could explain them
away.

    python benchmarks/gaussian.py            15 minutes on two cores; goes on where it was stopped
    python benchmarks/gaussian.py --print    the table alone

Twenty clients of the digits with four scanners, all images or one a class; the same with two
numberings of the classes, with pages that lie otherwise in each scanner, and without scanners.
Local test accuracy in percent, mean over clients and seeds, and what Gaussian experts are ahead of
each control, paired by seed, with its 95 % interval (Student's t over seeds). Controls that are
trained choose their learning rate in each setting by trials with a seed of their own; Gaussian
experts and what is like them have the defaults everywhere, and nothing is chosen.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

from grid import minus, rows, run, said

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.metrics import score
from fedexperts.report import paired

SEEDS = (0, 1, 2, 3, 4)
Changes = dict[str, object]
SETTINGS: dict[str, Changes] = {
    "all images": {},
    "1 image a class": {"data.shots": 1},
    "two numberings": {"data.numberings": 2},
    "two numberings, 1 image a class": {"data.numberings": 2, "data.shots": 1},
    "pages that lie otherwise, 1 image a class": {"data.differ": "pages", "data.shots": 1},
    "one scanner": {"data.scanners": 1},
}
OURS = "gaussian-experts"
METHODS: dict[str, tuple[str, Changes]] = {
    OURS: (OURS, {"method.regimes": 0, "run.rounds": 2}),
    "own expert alone": ("gaussian-alone", {}),
    "all weighed alike": (OURS, {"method.eta": 0.0, "method.rho": 0.0}),
    "FedAvg of a linear probe": ("linear-probe-fedavg", {}),
    "the same, fine-tuned": ("linear-probe-fedavg", {"method.personal": True}),
    "linear probe alone": ("linear-probe", {}),
}


def name(setting: str, method: str) -> str:
    return f"{list(SETTINGS).index(setting)}-{method.replace(' ', '-').replace(',', '')}"


def experiments() -> Iterator[Config]:
    for setting, data in SETTINGS.items():
        for method, (file, change) in METHODS.items():
            changes = data | change | {"run.evaluate_every": 20}
            config = door.load(f"configs/demo/{file}.toml").having(changes, "benchmark")
            named = config.nested() | {"name": name(setting, method)}
            yield door.resolve([(named, "benchmark")])


def table(out: Path) -> Iterator[str]:
    values = {
        (setting, method): [score(last).mean for last in rows(out, name(setting, method), SEEDS)]
        for setting in SETTINGS
        for method in METHODS
    }
    pairs = [(setting, method) for setting, method in values if method != OURS]
    ahead = [minus(values[setting, OURS], values[setting, method]) for setting, method in pairs]
    stars = dict(zip(pairs, paired.established(ahead), strict=True))
    ahead_of = dict(zip(pairs, ahead, strict=True))
    for setting in SETTINGS:
        ours = statistics.fmean(values[setting, OURS])
        yield f"\n{setting}: Gaussian experts {ours:.1f}\n"
        yield "| control | accuracy | Gaussian experts minus it |\n|---|---|---|"
        for method in list(METHODS)[1:]:
            level = statistics.fmean(values[setting, method])
            star = "*" if stars[setting, method] else ""
            yield f"| {method} | {level:.1f} | {said(ahead_of[setting, method])}{star} |"
    yield f"\n*: not zero, for all {len(pairs)} comparisons together (Holm, 5 %)."


def main() -> None:
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/gaussian"))
    print("\n".join(table(out)))


if __name__ == "__main__":
    main()
