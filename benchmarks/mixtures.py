"""Where does a mixture pay? The server's accuracy on plain digits and on scanners, for small and smaller clients.

    python benchmarks/mixtures.py            about 15 minutes on two cores; goes on where it was stopped
    python benchmarks/mixtures.py --print    the table alone

The experiments of configs/demo/fedmoe-digits at the rates that their files name (chosen there, not anew in each row);
test accuracy after the last round in percent, one seed: read rows together, not one by one. Clients have 1, 4 and 16
thousand parameters.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

from grid import run, served, variant

from fedexperts import config as door
from fedexperts.config import Config

SEEDS = (0,)
EXPERIMENTS = ("cent-moe", "fedavg", "fedavg-tuned", "fedprox", "fedmix", "fedjets", "fedmoe-letter", "fedmoe")
WIDTHS = {3: "1 K", 8: "4 K", 22: "16 K"}
SETTINGS = [(scanners, clients, width) for scanners in (1, 4) for clients in (5, 20) for width in WIDTHS]


def name(experiment: str, setting: tuple[int, int, int]) -> str:
    scanners, clients, width = setting
    return f"{experiment}-{scanners}-scanners-{clients}-clients-width-{width}"


def experiments() -> Iterator[Config]:
    for experiment in EXPERIMENTS:
        base = door.load(f"configs/demo/fedmoe-digits/{experiment}.toml")
        for setting in SETTINGS:
            scanners, clients, width = setting
            data = {"data.scanners": scanners, "data.clients": clients, "model.width": width}
            yield variant(base, name(experiment, setting), data | {"run.evaluate_every": 40})


def main() -> None:
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/mixtures"))
    print(f"| digits | clients | weights | {' | '.join(EXPERIMENTS)} |\n|{'---|' * (3 + len(EXPERIMENTS))}")
    for setting in SETTINGS:
        scanners, clients, width = setting
        found = [statistics.fmean(test for _, test in served(out, name(e, setting), SEEDS)) for e in EXPERIMENTS]
        digits = "plain" if scanners == 1 else f"{scanners} scanners"
        cells = " | ".join(f"{value:.1f}" for value in found)
        print(f"| {digits} | {clients} | {WIDTHS[width]} | {cells} |")


if __name__ == "__main__":
    main()
