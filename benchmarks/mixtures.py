"""Where does a mixture pay? The server's accuracy on plain digits and on scanners, for small and
smaller clients.

    python benchmarks/mixtures.py            30 minutes on two cores; goes on where it was stopped
    python benchmarks/mixtures.py --print    the tables alone

Every experiment of configs/demo/fedmoe-digits at the rates that its file names (chosen there, not
anew in each row; fedavg-random at fedavg's); test accuracy after the last round in percent, mean
over two seeds; of `alone`, where no server learns, the clients' own on their own parts. Clients
have 1, 4 and 16 thousand parameters. The second table asks the two presets how far their routed
experts are apart, and how much better their server is than with a flat gate over the experts it
ends with, and than the control whose gate was uniform all along; two seeds allow no interval, so
differences stand seed by seed.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

from grid import logs, minus, run, said, variant

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.metrics import last
from fedexperts.report.experts import Routing, routing

SEEDS = (0, 1)
EXPERIMENTS = (
    "alone",
    "cent-moe",
    "fedavg-random",
    "fedavg",
    "fedavg-tuned",
    "fedprox",
    "fedmix",
    "fedjets",
    "copies",
    "uniform-gate",
    "fedmoe-letter",
    "fedmoe",
)
# as fedavg: at its own, 0.1, networks of 4 K do not learn
OTHER = {"fedavg-random": ["learning.rate=0.01"]}
WIDTHS = {3: "1 K", 8: "4 K", 22: "16 K"}
Setting = tuple[int, int, int]  # scanners, clients, width
SETTINGS = [
    (scanners, clients, width) for scanners in (4, 1) for clients in (5, 20) for width in WIDTHS
]


def name(experiment: str, setting: Setting) -> str:
    scanners, clients, width = setting
    return f"{experiment}-{scanners}-scanners-{clients}-clients-width-{width}"


def experiments() -> Iterator[Config]:
    bases = {
        e: door.load(f"configs/demo/fedmoe-digits/{e}.toml", OTHER.get(e, ())) for e in EXPERIMENTS
    }
    for setting in SETTINGS:
        scanners, clients, width = setting
        data = {
            "data.scanners": scanners,
            "data.clients": clients,
            "model.width": width,
            "run.evaluate_every": 40,
        }
        for experiment, base in bases.items():
            yield variant(base, name(experiment, setting), data)


def accuracy(out: Path, experiment: str, setting: Setting) -> list[float]:
    """A value a seed."""
    scores = [last(*log) for log in logs(out, name(experiment, setting), SEEDS)]
    return [score.mean if experiment == "alone" else score.server for score in scores]


def parts(out: Path, experiment: str, setting: Setting) -> list[Routing]:
    """What the server's mixture does without its parts, a value a seed."""
    each = [routing(server) for _, server in logs(out, name(experiment, setting), SEEDS)]
    return [one for one in each if one]


def routed(out: Path, setting: Setting) -> Iterator[str]:
    """Of each preset: experts apart, and what routing adds over a flat gate and over the
    control.
    """
    control = accuracy(out, "uniform-gate", setting)
    for preset in ("fedmoe-letter", "fedmoe"):
        each = parts(out, preset, setting)
        yield f"{statistics.fmean(one.apart for one in each):.4f}"
        yield said(minus([one.top for one in each], [one.uniform for one in each]))
        yield said(minus(accuracy(out, preset, setting), control))


def tables(out: Path) -> Iterator[str]:
    yield (
        f"| digits | clients | weights | {' | '.join(EXPERIMENTS)}"
        f" |\n|{'---|' * (3 + len(EXPERIMENTS))}"
    )
    for setting in SETTINGS:
        means = (statistics.fmean(accuracy(out, one, setting)) for one in EXPERIMENTS)
        yield row(setting, (f"{mean:.1f}" for mean in means))
    shown = ("experts apart", "over a flat gate", "over uniform-gate")
    heads = [f"{preset}: {what}" for preset in ("letter", "strong") for what in shown]
    yield f"\n| digits | clients | weights | {' | '.join(heads)} |\n|{'---|' * (3 + len(heads))}"
    for setting in SETTINGS:
        yield row(setting, routed(out, setting))


def row(setting: Setting, cells: Iterator[str]) -> str:
    scanners, clients, width = setting
    digits = "plain" if scanners == 1 else f"{scanners} scanners"
    return f"| {digits} | {clients} | {WIDTHS[width]} | {' | '.join(cells)} |"


def main() -> None:
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/mixtures"))
    print("\n".join(tables(out)))


if __name__ == "__main__":
    main()
