"""What successive halving of a study's trials would have chosen, and saved.

    python benchmarks/halving.py CONFIG [CONFIG ...] --out FOLDER     files or folders of configs

A trial that is stopped early has the bits of one that is not, so whole trials that are evaluated as
their config says, and not at their end alone, say it. They are carried out first, or gone on with.
Of the grid's trials the better half by validation accuracy goes on after a half of the rounds, or
after a quarter, or after both; the two trials behind the grid run to their end in either case. An
experiment counts if its trials were evaluated that early. "on test data" is what the other choice
gains or loses where it counts, with the trial's one seed.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from fedexperts import config as door
from fedexperts import study, tuning
from fedexperts.config import Config
from fedexperts.metrics import accuracy, served, valid
from fedexperts.provenance import program
from fedexperts.units import Unit, work

STOPS = {"a half": (0.5,), "a quarter": (0.25,), "a quarter, a half": (0.25, 0.5)}


@dataclass(frozen=True)
class Trial:
    """Accuracy in percent: on validation data by evaluated round, -1 where it came to no end; on
    test data after the last.
    """

    scores: dict[int, float]
    test: float

    def at(self, round: int) -> float:
        return self.scores.get(round, -1.0)


def trial(unit: Unit) -> Trial:
    if why := work(unit):
        print(why, file=sys.stderr)
    clients, server = unit.logs()
    judged_by = unit.config.values["run"]["judged_by"]
    of_server = {row["round"]: row for row in server}
    scores: dict[int, float] = {}
    test = 0.0
    for round in sorted({row["round"] for row in clients}):
        rows = [row for row in clients if row["round"] == round]
        scores[round] = valid(rows, of_server.get(round, {}), judged_by)
        test = fmean(accuracy(row, "test") for row in rows)
        if judged_by == "server":
            test = served(rows, of_server.get(round, {}), "test")
    return Trial(scores, test)


def evaluated(unit: Unit, config: Config) -> Unit:
    """The same as often evaluated on its way as the config says."""
    every = config.values["run"]["evaluate_every"]
    return replace(unit, config=unit.config.having({"run.evaluate_every": every}, "halving"))


def first(trials: Sequence[Trial], alive: Sequence[int], round: int) -> int:
    """The best of those that are left, the first of equals."""
    return max(alive, key=lambda position: (trials[position].at(round), -position))


def halved(trials: Sequence[Trial], shares: Sequence[float], rounds: int) -> tuple[int, int] | None:
    """Who wins, and how many rounds are run; None if nobody was evaluated so early."""
    alive, before, run = list(range(len(trials))), 0, 0
    evaluated = sorted(trials[0].scores)
    for share in shares:
        stop = next(round for round in evaluated if round >= share * rounds)
        if stop in (before, rounds):
            return None
        run += len(alive) * (stop - before)
        ranked = sorted(alive, key=lambda position: (-trials[position].at(stop), position))
        alive, before = sorted(ranked[: math.ceil(len(alive) / 2)]), stop
    return first(trials, alive, rounds), run + len(alive) * (rounds - before)


def tell(out: Path, configs: Sequence[Config]) -> None:
    for config in configs:
        points = tuning.grid(config.tune)
        if len(points) < 3:
            continue
        units = [evaluated(study.trial(out, config, n, p), config) for n, p in enumerate(points, 1)]
        trials = [trial(unit) for unit in units]
        rounds = units[0].rounds - 1
        best = first(trials, range(len(trials)), rounds)
        for said, shares in STOPS.items():
            if result := halved(trials, shares, rounds):
                winner, run = result
                less = trials[best].at(rounds) - trials[winner].at(rounds)
                whole = len(trials) * rounds
                with_more = (run + tuning.BEYOND * rounds) / (whole + tuning.BEYOND * rounds)
                gained = trials[winner].test - trials[best].test
                same = "the same" if winner == best else f"{less:.2f} points worse"
                told = (config.name, said, same, f"{gained:+.2f}", f"{with_more:.0%}")
                print(f"| {' | '.join(told)} |", flush=True)


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    reader.add_argument("configs", nargs="+", type=Path)
    reader.add_argument("--out", required=True, type=Path)
    asked = reader.parse_args()
    print(program())
    heads = ("experiment", "halved after", "chosen", "on test data", "of all trials' rounds")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    tell(asked.out, [door.load(file) for path in asked.configs for file in door.find(path)])


if __name__ == "__main__":
    main()
