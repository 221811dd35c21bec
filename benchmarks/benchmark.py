"""The grid of docs/benchmark.md: every method in every setting, as one table with ranks.

    export FEDEXPERTS_DATA=FOLDER
    python benchmarks/benchmark.py                      # all that is here, three seeds
    python benchmarks/benchmark.py --only digits-unseen --seeds 1
    python benchmarks/benchmark.py --print              # of what is finished, and nothing run
    python benchmarks/benchmark.py --minutes            # how long each setting will take here

Each setting is a study in its own folder of --out, which `fedexperts report` makes a page of. Typed
again, it goes on where it stopped. A setting whose pictures or models are not on this machine is
listed with what to type. Accuracy is the clients' own or the server's, as run.judged_by of the
setting says; HM is of own classes, those of others and those of nobody. In brackets the rank among
a setting's methods.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grid import minus, said, tell

from fedexperts import config as door
from fedexperts import report, study
from fedexperts.config import Config
from fedexperts.report import Experiment, paired


@dataclass(frozen=True)
class Setting:
    """Folders of experiments, and data on which all of them run in place of their own."""

    folders: tuple[str, ...]
    data: tuple[str, ...] = ()


DEMO = ("demo", "demo/rivals")
FEW = "data.images=8"
SETTINGS = {
    "digits": Setting(DEMO),
    "digits-unseen": Setting(("demo/unseen",)),
    "digits-numberings": Setting((*DEMO, "groups"), (FEW, "data.numberings=2")),
    "digits-pages": Setting((*DEMO, "groups"), (FEW, "data.differ=pages", "data.numberings=1")),
    "digits-wide": Setting((*DEMO, "wide"), ("data.differ=pages", "data.meets=everybody")),
    "digits-networks": Setting(("demo/fedmoe-digits",)),
    "numberings-networks": Setting(("demo/fedmoe-numberings",)),
    "reviews-networks": Setting(("demo/fedmoe-reviews",)),
    "pacs-few": Setting(("benchmark/pacs-few", "benchmark/pacs-few-rivals")),
    "pacs": Setting(("benchmark/pacs", "benchmark/pacs-rivals")),
    "pacs-networks": Setting(("benchmark/fedmoe-pacs",)),
    "flowers": Setting(("benchmark/flowers", "benchmark/flowers-rivals")),
    "cifar10": Setting(("benchmark/cifar10", "benchmark/cifar10-rivals")),
    "omniglot": Setting(("benchmark/omniglot", "benchmark/omniglot-rivals")),
    "yelp-networks": Setting(("benchmark/fedmoe-yelp",)),
    "yelp": Setting(("fedmoe/yelp/10",)),
}
# what each method is compared with, the first of them that a setting has
PLAINEST = ("linear-probe-fedavg", "fedavg", "fedprox")
Column = dict[str, list[float]]  # by method: one accuracy a seed


def configs(setting: str) -> list[Config]:
    """The experiments of a setting, sorted by their files."""
    asked = SETTINGS[setting]
    folders = [door.shipped_folder() / name for name in asked.folders]
    files = [file for folder in folders for file in sorted(folder.glob("[!_]*.toml"))]
    return [door.load(file, asked.data) for file in files]


def carry_out(setting: str, out: Path, seeds: int, tune: bool) -> list[str]:
    """Do what is left of a setting; what is lacking for it, with what to type."""
    asked = configs(setting)
    lacking = list(dict.fromkeys(str(why) for config in asked for why in door.lacking(config)))
    if lacking:
        return lacking
    if not tune:
        asked = [replace(config, tune={}) for config in asked]
    study.widen(out / setting, asked, range(seeds))
    study.advance(out / setting, door.cores(), tell)
    return []


def minutes(setting: str, seeds: int, tune: bool) -> Iterator[str]:
    """A row: its experiments, and the minutes of all their trials and runs, one after another."""
    asked = configs(setting)
    lacking = [why for config in asked for why in door.lacking(config)]
    if lacking:
        yield f"| {setting} | {len(asked)} | not here |"
        return
    trials = study.budget([config for config in asked if config.tune]) if tune else 0
    seconds = 0.0
    for config in asked:
        estimate = door.estimate(config, *door.parts(config))
        if estimate:
            runs = seeds + (trials / 2 if config.tune else 0)  # a trial has half the rounds
            seconds += runs * estimate.run
    yield f"| {setting} | {len(asked)} | {seconds / 60:.0f} |"


def columns(setting: str, out: Path) -> dict[str, Column]:
    """Accuracies of a setting's finished runs, and their harmonic mean with unseen classes."""
    if not any((out / setting).glob("*/seed-*/environment.json")):
        return {}
    made: dict[str, Column] = {setting: {}, f"{setting} HM": {}}
    for experiment in report.collect([out / setting]):
        if experiment.finished:
            made[setting][experiment.first.name] = _accuracies(experiment)
        reached = [score.reach.harmonic for score in experiment.last.values() if score.reach]
        known = [value for value in reached if value is not None]
        if known:
            made[f"{setting} HM"][experiment.first.name] = known
    return {label: column for label, column in made.items() if column}


def _accuracies(experiment: Experiment) -> list[float]:
    """One a seed, of whom the setting judges."""
    scores = experiment.last.values()
    if experiment.judged_by == "server":
        return [score.server for score in scores]
    return [score.mean for score in scores]


def table(grid: Mapping[str, Column]) -> Iterator[str]:
    """A row a method, a column a setting, the mean rank last; best mean rank first."""
    ranks = {label: _ranks(column) for label, column in grid.items()}
    methods = {method for column in grid.values() for method in column}
    mean = {
        method: statistics.fmean(r[method] for r in ranks.values() if method in r)
        for method in methods
    }
    yield f"| method | {' | '.join(grid)} | mean rank |\n|{'---|' * (len(grid) + 2)}"
    for method in sorted(methods, key=lambda name: (mean[name], name)):
        cells = [_cell(column, ranks[label], method) for label, column in grid.items()]
        yield f"| {method} | {' | '.join(cells)} | {100 * mean[method]:.0f} % |"
    yield "\nMean rank: the share of a setting's other methods that are ahead, mean over settings."


def _ranks(column: Column) -> dict[str, float]:
    """The share of the other methods that are ahead."""
    means = {method: statistics.fmean(values) for method, values in column.items()}
    others = max(1, len(means) - 1)
    return {m: sum(value > means[m] for value in means.values()) / others for m in means}


def _cell(column: Column, ranks: Mapping[str, float], method: str) -> str:
    if method not in column:
        return ""
    place = 1 + round(ranks[method] * max(1, len(column) - 1))
    return f"{statistics.fmean(column[method]):.1f} ({place})"


def ahead(grid: Mapping[str, Column]) -> Iterator[str]:
    """What every method is ahead of a setting's linear head or plain average, paired by seed: a
    table for each of these, a column a setting.
    """
    for control in PLAINEST:
        with_it = {label: column for label, column in grid.items() if _control(column) == control}
        if not with_it:
            continue
        cells = {label: _differences(column, control) for label, column in with_it.items()}
        methods = sorted({method for column in cells.values() for method in column})
        yield f"\n| minus {control} | {' | '.join(cells)} |\n|{'---|' * (len(cells) + 1)}"
        for method in methods:
            row = [column.get(method, "") for column in cells.values()]
            yield f"| {method} | {' | '.join(row)} |"
    yield "\n*: not zero, for all methods of its setting together (Holm, 5 %)."


def _control(column: Column) -> str | None:
    return next((name for name in PLAINEST if name in column), None)


def _differences(column: Column, control: str) -> dict[str, str]:
    """By method, a cell for each that has as many seeds as the control."""
    others = {
        method: values
        for method, values in column.items()
        if method != control and len(values) == len(column[control])
    }
    differences = [minus(values, column[control]) for values in others.values()]
    stars = paired.established(differences)
    return {
        method: f"{said(difference)}{'*' if holds else ''}"
        for method, difference, holds in zip(others, differences, stars, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    reader.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    reader.add_argument("--seeds", type=int, default=3)
    reader.add_argument("--no-tune", action="store_true", help="the values in the files are used")
    reader.add_argument("--print", action="store_true", help="the tables of what is finished")
    reader.add_argument("--minutes", action="store_true", help="how long they will take")
    asked = reader.parse_args(arguments)
    if asked.minutes:
        print("| setting | methods | minutes |\n|---|---|---|")
        for setting in asked.only:
            print("\n".join(minutes(setting, asked.seeds, not asked.no_tune)), flush=True)
        return
    lacking: dict[str, list[str]] = {}
    for setting in asked.only:
        if not asked.print:
            lacking[setting] = carry_out(setting, asked.out, asked.seeds, not asked.no_tune)
    grid = {
        label: column
        for setting in asked.only
        for label, column in columns(setting, asked.out).items()
    }
    if grid:
        print("\n".join([*table(grid), *ahead(grid)]))
    for setting, reasons in lacking.items():
        for why in reasons:
            print(f"\n{setting} was not run: {why}")


if __name__ == "__main__":
    main()
