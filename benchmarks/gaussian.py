"""Do Gaussian experts help, and where? Local accuracy beside the controls that could explain them
away; and what each number costs in bytes and seconds.

    python benchmarks/gaussian.py            an hour on two cores; goes on where it was stopped
    python benchmarks/gaussian.py --print    the tables alone

Twenty clients of the digits with four scanners: all images, or 8 of a client; the same with two
numberings of the classes, with pages that lie otherwise in each scanner, with a test of everybody's
pages, and without scanners. Local test accuracy in percent, mean over clients and seeds, and what
Gaussian experts are ahead of each control, paired by seed, with its 95 % interval (Student's t over
seeds). Controls that are trained choose their learning rate in each setting by trials with a seed
of their own; Gaussian experts and what is like them have the defaults everywhere.
gaussian_photos.py asks the same of photographs.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grid import minus, rows, said

from fedexperts import config as door
from fedexperts import study
from fedexperts.config import Config
from fedexperts.metrics import score
from fedexperts.report import paired
from fedexperts.rundir import RunDir

SEEDS = (0, 1, 2, 3, 4)
Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Data, and what is known of them: two label numberings are not in any client's name."""

    config: str
    data: Values = field(default_factory=dict)
    ours: Values = field(default_factory=dict)  # of our method, where a client meets others' images
    lacks: Sequence[str] = ()  # methods that make no sense here
    # whose features a linear probe reads
    probe: Values = field(default_factory=lambda: {"name": "linear-probe"})


@dataclass(frozen=True)
class Way:
    """A method, with the sections of a config that are its own."""

    method: Values
    run: Values = field(default_factory=dict)
    probe: bool = False  # whether it is a linear probe
    rates: Sequence[float] = ()  # learning rates to try; none: nothing is trained

    def sections(self, setting: Setting) -> Values:
        sections: Values = {"method": self.method, "tune": {}}
        if self.method["name"] == OURS:
            sections["method"] = self.method | setting.ours
        if self.probe:
            sections["model"] = setting.probe
        if self.rates:
            sections["tune"] = {"learning.rate": list(self.rates)}
        return sections


OURS = "gaussian-experts"
NAMES, GATE = "true groups", "pFedMoAP's gate alone"
WIDE: Values = {
    "eta": 0.0,
    "classes": "alike",
    "shrink": 1.0,
    "kappa": 0.5,
    "guard": False,
    "regimes": 1,
}
DEMO = "configs/demo/gaussian-experts.toml"
FEW: Values = {"images": 8}
NO_GROUPS = (NAMES, GATE)  # that names tell
ONE_MODEL = (
    "FedAvg of class vectors",
    "FedAvg on whitened features",
)  # behind, where clients differ
SETTINGS = {
    "8 images a client": Setting(DEMO, FEW),
    "all images": Setting(DEMO, lacks=[GATE]),
    "two numberings, 8 images a client": Setting(
        DEMO, FEW | {"numberings": 2}, lacks=[*NO_GROUPS, *ONE_MODEL]
    ),
    "pages that lie otherwise, 8 images a client": Setting(
        DEMO, FEW | {"differ": "pages"}, lacks=[GATE, *ONE_MODEL]
    ),
    "pages that lie otherwise, tested on everybody's": Setting(
        DEMO, {"differ": "pages", "meets": "everybody"}, WIDE, lacks=NO_GROUPS
    ),
    "two numberings": Setting(DEMO, {"numberings": 2}, lacks=[*NO_GROUPS, *ONE_MODEL]),
    "one scanner": Setting(DEMO, {"scanners": 1}, lacks=NO_GROUPS),
}
CHOOSING: Values = {"name": OURS, "regimes": 0}
TRAINED: Values = {"rounds": 20, "participation": 1.0}
PLAIN, WHITE = (0.01, 0.03, 0.1, 0.3), (0.3, 1.0, 3.0, 10.0)
METHODS = {
    OURS: Way(CHOOSING, {"rounds": 2}),
    "own expert alone": Way({"name": OURS, "experts": 0}),
    "sums alone, all weighed alike": Way({"name": OURS, "select": "none"}),
    NAMES: Way({"name": OURS, "groups": "names"}),
    "placebo: classes renamed": Way(CHOOSING | {"placebo": "classes"}, {"rounds": 2}),
    ONE_MODEL[0]: Way({"name": "class-vectors"}, TRAINED, rates=PLAIN),
    "the same, fine-tuned": Way({"name": "class-vectors", "personal": True}, TRAINED, rates=PLAIN),
    ONE_MODEL[1]: Way({"name": "class-vectors", "whiten": True}, TRAINED, rates=WHITE),
    "on whitened features, fine-tuned": Way(
        {"name": "class-vectors", "whiten": True, "personal": True}, TRAINED, rates=WHITE
    ),
    "linear probe alone": Way(
        {"name": "alone"}, TRAINED, probe=True, rates=(0.003, 0.01, 0.03, 0.1)
    ),
    GATE: Way(
        {"name": "pfedmoap", "experts": 0, "gate_rate": 0.15}, TRAINED, rates=(0.01, 0.03, 0.1, 0.3)
    ),
}
# what an expert may say less of, or a client may get less of: bytes beside accuracy
SMALLER: dict[str, Values] = {
    "full scatter": {},
    "low-rank scatter": {"scatter": "low-rank"},
    "diagonal scatter": {"scatter": "diagonal"},
    "linear head": {"head": "linear"},
    "4 experts that add most": {"experts": 4},
    "4 nearest experts": {"experts": 4, "select": "nearest"},
    "4 experts by chance": {"experts": 4, "select": "random"},
}


def ways(setting: str, settings: Mapping[str, Setting]) -> dict[str, Way]:
    """What is compared in a setting; in the first two, smaller experts, too."""
    chosen = {name: way for name, way in METHODS.items() if name not in settings[setting].lacks}
    if setting in list(settings)[:2]:
        chosen |= {name: Way({"name": OURS} | less) for name, less in SMALLER.items()}
    return chosen


def name(what: str) -> str:
    """As a folder may be called."""
    return "".join(letter if letter.isalnum() else "-" for letter in what)


def experiments(setting: str, settings: Mapping[str, Setting]) -> Iterator[Config]:
    about = settings[setting]
    base = door.load(about.config).having(
        {f"data.{key}": value for key, value in about.data.items()}, "benchmark"
    )
    for method, way in ways(setting, settings).items():
        sections: Values = base.nested() | way.sections(about)
        rounds = {"rounds": _rounds(base, way), "evaluate_every": 20}
        sections["run"] = sections["run"] | way.run | rounds
        if way.rates:
            sections["learning"] = sections["learning"] | {"rate": way.rates[1]}
        sections["name"] = name(method)
        yield door.resolve([(sections, "benchmark")])


def _rounds(base: Config, way: Way) -> int:
    """As many as the setting's own config has: features may be wide, which takes one more."""
    wide = int(base.values["run"]["rounds"])
    return wide if not way.run else wide - 1 + int(way.run["rounds"])


def finished(out: Path, settings: Mapping[str, Setting]) -> list[str]:
    """Settings of which every run has ended."""
    return [
        setting
        for setting in settings
        if all(
            (out / name(setting) / name(method) / f"seed-{seed}" / "clients.jsonl").exists()
            for method in ways(setting, settings)
            for seed in SEEDS
        )
    ]


def table(out: Path, settings: Mapping[str, Setting]) -> Iterator[str]:
    values = {
        (setting, method): [
            score(last).mean for last in rows(out / name(setting), name(method), SEEDS)
        ]
        for setting in finished(out, settings)
        for method in ways(setting, settings)
    }
    pairs = [(s, m) for s, m in values if m != OURS and m not in SMALLER]
    ahead = [minus(values[setting, OURS], values[setting, method]) for setting, method in pairs]
    stars = dict(zip(pairs, paired.established(ahead), strict=True))
    ahead_of = dict(zip(pairs, ahead, strict=True))
    for setting in dict.fromkeys(setting for setting, _ in pairs):
        ours = statistics.fmean(values[setting, OURS])
        yield f"\n{setting}: Gaussian experts {ours:.1f}\n"
        yield "| control | accuracy | Gaussian experts minus it |\n|---|---|---|"
        for method in [m for s, m in pairs if s == setting]:
            level = statistics.fmean(values[setting, method])
            star = "*" if stars[setting, method] else ""
            yield f"| {method} | {level:.1f} | {said(ahead_of[setting, method])}{star} |"
    yield f"\n*: not zero, for all {len(pairs)} comparisons together (Holm, 5 %)."
    for setting in list(settings)[:2]:
        costs = {method: values[s, method] for s, method in values if s == setting}
        yield from _costs(out / name(setting), setting, costs)


def _costs(out: Path, setting: str, values: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """What a client sends and gets in all rounds together, and how long these take the clients and
    the server together.
    """
    if not values:
        return
    yield f"\n{setting}: bytes of a client and seconds of all, in all rounds\n"
    yield "| method | accuracy | kB up | kB down | seconds |\n|---|---|---|---|---|"
    for method, accuracies in values.items():
        folders = [RunDir(out / name(method) / f"seed-{seed}") for seed in SEEDS]
        logged = [row for folder in folders for row in folder.rows("rounds.jsonl")]
        up, down, seconds = (
            sum(row[key] for row in logged) / len(SEEDS)
            for key in ("bytes_up", "bytes_down", "seconds")
        )
        level = statistics.fmean(accuracies)
        yield f"| {method} | {level:.1f} | {up / 1e3:.0f} | {down / 1e3:.0f} | {seconds:.1f} |"


def main(settings: Mapping[str, Setting], about: str, folder: str) -> None:
    reader = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--out", type=Path, default=Path("runs") / folder)
    reader.add_argument("--print", action="store_true", help="the tables alone")
    reader.add_argument("--only", choices=list(settings), help="one setting")
    asked = reader.parse_args()
    for setting in settings:
        study_of = asked.out / name(setting)
        if asked.print or asked.only not in (None, setting):
            continue
        if not study_of.exists():
            study.create(study_of, list(experiments(setting, settings)), SEEDS)
        study.advance(study_of, door.cores())
    print("\n".join(table(asked.out, settings)))


if __name__ == "__main__":
    main(SETTINGS, __doc__ or "", "gaussian")
