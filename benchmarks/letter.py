"""Fed-MoE by the letter: does a sum or a mean make its experts collapse, and at which temperature?

    python benchmarks/letter.py            6 minutes on two cores; goes on where it was stopped
    python benchmarks/letter.py --print    the table alone

configs/demo/fedmoe-digits/fedmoe-letter.toml, untuned. The paper's algorithm takes a softmax of
Q P', which is a sum over the reserve set; `mean` divides it by the set's size R, here 100. Both
temperatures, of the softmax over clients (fusing) and of the softmax over experts (blending), are
1, as printed, or such that the other reduction's scale is met. Server's test accuracy in percent
after the last round; *apart* is how far the routed experts are from one another, in parts of their
norm; *busiest* the share of test inputs that prefer the busiest expert. Means over seeds.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

from grid import SEEDS, logs, minus, run, said, served, variant

from fedexperts import config as door
from fedexperts.report.experts import Routing, routing

R = 100
TEMPERATURES = {"sum": (1.0, R), "mean": (1.0, 1 / R)}
SETTINGS = [
    (relevance, fusing, blending)
    for relevance, scales in TEMPERATURES.items()
    for fusing in scales
    for blending in scales
]


def name(setting: tuple[str, float, float]) -> str:
    return "letter-{}-{:g}-{:g}".format(*setting)


def _routings(out: Path, setting: tuple[str, float, float]) -> Iterator[Routing]:
    for _, server_rows in logs(out, name(setting), SEEDS):
        found = routing(server_rows)
        assert found
        yield found


def main() -> None:
    base = door.load("configs/demo/fedmoe-digits/fedmoe-letter.toml")
    experiments = []
    for setting in SETTINGS:
        relevance, fusing, blending = setting
        changes = {
            "run.evaluate_every": 40,
            "method.relevance": relevance,
            "method.temperature": fusing,
            "method.blend_temperature": blending,
        }
        experiments.append(variant(base, name(setting), changes))
    out = run(experiments, SEEDS, __doc__ or "", Path("runs/letter"))
    tests = {s: [test for _, test in served(out, name(s), SEEDS)] for s in SETTINGS}
    printed = tests[SETTINGS[0]]
    print(
        "| relevance | fusing at | blending at | server | minus the first row | apart | busiest |"
    )
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        relevance, fusing, blending = setting
        each = list(_routings(out, setting))
        apart = statistics.fmean(one.apart for one in each)
        busiest = 100 * statistics.fmean(one.busiest for one in each)
        difference = "" if setting == SETTINGS[0] else said(minus(tests[setting], printed))
        print(
            f"| {relevance} | {fusing:g} | {blending:g} | {statistics.fmean(tests[setting]):.1f}"
            f" | {difference} | {apart:.4f} | {busiest:.0f} % |"
        )


if __name__ == "__main__":
    main()
