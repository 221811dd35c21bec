"""Whether a run is what was written, whether a round of it comes out again bit by bit, and what it
can be compared with.

Nothing in a run's folder is changed: the round is run in a temporary folder, from a copy. This room
does not know how a round goes, or what the tensors mean.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from . import config as door
from .loop import NobodyLeftError, run
from .private import Private
from .provenance import differences, flat, follows
from .report import Run, collect
from .rundir import EVENTS, LOGS, RunDir
from .tensors import Tensors

NAMED = 4  # so many are named of a list


@dataclass(frozen=True)
class Checked:
    """Whether something holds, in words."""

    holds: bool
    says: str


def files(folder: RunDir) -> Checked:
    """Whether every file is what was written."""
    try:
        folder.check()
    except ValueError as error:
        return Checked(False, f"Files: {error}")
    rounds = ", ".join(map(str, folder.checkpoints())) or "none yet"
    return Checked(True, f"Files: all are as they were written. Checkpoints of rounds: {rounds}.")


def made(folder: RunDir) -> str:
    """With what a run was made, in a line; its report has all of it."""
    origin = flat(folder.origin())
    names = ("fedexperts", "python", "torch", "transformers", "numpy")
    versions = [(name, origin.get(f"versions.{name}")) for name in names]
    others = ("commit.fedexperts", "processor", "device", "threads")
    noted = [*versions, *((name.partition(".")[0], origin.get(name)) for name in others)]
    return "Made with: " + ", ".join(f"{name} {value}" for name, value in noted if value) + "."


def since(folder: RunDir) -> list[str]:
    """What of program, machine and weights is not what the run had, and what follows, a line each.

    ValueError if its config cannot be read here, or a model is not here.
    """
    config = door.parse(folder.text("config.toml"), str(folder.path))
    changed = differences(folder.origin(), door.origin(config))
    return [
        f"Since the run, {name} changed from {was} to {now}: {follows(name)}."
        for name, (was, now) in changed.items()
    ]


def again(folder: RunDir, changed: Sequence[str]) -> Checked:
    """Whether a round comes out again: the last, or the first where there is nothing to begin the
    last with. `changed` is what `since` said.
    """
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "run"
        try:
            reason, last = _beginning(folder), folder.checkpoints()[-1]
            if not reason:
                before = folder.checkpoints()[-2]
                what = f"Round {last} again, from the checkpoint of round {before}"
                repeated = _repeated(folder.copy(copy, before), last)
            else:
                last = min(last, 1)
                what = f"From the start to round {last} again, as {reason}"
                repeated = _repeated(folder.copy(copy, None), last)
        except (ValueError, OSError, NobodyLeftError) as error:
            return Checked(False, f"No round could be run again: {error}")
        then, now = folder.left(last), repeated.left(last)
        other = [name for name in then if now.get(name) != then[name]]
        if not other:
            return Checked(True, f"{what}: the same bits in {_kinds(then)}.")
        why = (
            "Nothing that the run notes of program, machine and weights has changed, so this is a"
            " fault: of the run, the program or the machine."
        )
        if changed:
            why = "What changed since the run, above, may be the whole reason."
        says = f"{what}: other bits in {_few(other)}{_apart(folder, repeated)}. {why}"
        return Checked(False, says)


def _beginning(folder: RunDir) -> str:
    """Why the last round cannot be run again from the checkpoint before it; "" if it can.

    ValueError if no round can be.
    """
    config = door.parse(folder.text("config.toml"), str(folder.path))
    if config.values["engine"]["name"] == "flower":
        raise ValueError("it is a deployment's, whose data and private states are at its sites")
    if not (rounds := folder.checkpoints()):
        raise ValueError("none is finished yet")
    if len(rounds) == 1:
        return "there is no checkpoint before the newest"
    events = folder.rows(EVENTS)
    forgot = [row["forgot"] for row in events if "forgot" in row and row["round"] == rounds[-1]]
    if forgot:
        return f"the private state of {_few(forgot)} was given up after the last round"
    states = Private(folder.path / "private")
    try:
        states.check(folder.kept())
        for client in states.clients():
            states.load(client, before=rounds[-1])
    except ValueError:
        return "not all private states that the last round began with are here"
    return ""


def _repeated(copy: RunDir, until: int) -> RunDir:
    """A copy of a run, with its rounds up to one."""
    config = door.parse(copy.text("config.toml"), str(copy.path))
    with door.opened(config, copy.path / "private", copy.path / "split.json") as (job, engine, _):
        run(job, engine, config.section("run"), copy, until=until)
    return copy


def _kinds(files: Iterable[str]) -> str:
    """How many of each kind there are."""
    kinds = {"logs": 0, "files of the server's state": 0, "private states": 0}
    for file in files:
        if file in LOGS:
            kinds["logs"] += 1
        elif file.endswith(".private"):
            kinds["private states"] += 1
        else:
            kinds["files of the server's state"] += 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)


def _apart(one: RunDir, other: RunDir) -> str:
    """How far apart the server's states are, where both are of one round."""
    then, now = one.look(), other.look()
    if not then or not now or then[0] != now[0] or then[1].keys() != now[1].keys():
        return ""
    return f"; the server's tensors differ by up to {_most(then[1], now[1]):.1g} of their norm"


def _most(one: Tensors, other: Tensors) -> float:
    def share(name: str) -> float:
        then, now = one[name].double(), other[name].double()
        return float((then - now).norm() / then.norm().clamp_min(1e-30))

    return max(map(share, one), default=0.0)


# ---- several runs


def compared(paths: Sequence[Path]) -> list[str]:
    """What can be compared with what, and which figures may differ for another reason than the
    settings, a line each.
    """
    runs = [each for experiment in collect(paths) for each in experiment.runs.values()]
    names = _names(runs)
    return [*_settings(runs), *_splits(runs, names), *_twins(runs, names), *_origins(runs, names)]


def _names(runs: Sequence[Run]) -> dict[Path, str]:
    paths = [each.path.resolve() for each in runs]
    above = Path(os.path.commonpath([path.parent for path in paths]))
    return {each.path: str(path.relative_to(above)) for each, path in zip(runs, paths, strict=True)}


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    settings = [flat(each.settings) for each in runs]
    keys = dict.fromkeys(key for values in settings for key in values)
    other = [key for key in keys if len({values.get(key) for values in settings}) > 1]
    if other:
        yield f"Settings that differ, and so are what is compared: {', '.join(other)}."
    else:
        yield "The settings are the same, seeds apart: the runs repeat one experiment."


def _splits(runs: Sequence[Run], names: dict[Path, str]) -> Iterator[str]:
    """Whether runs of one seed have the same data in the same parts."""
    alone = []
    for seed in sorted({each.seed for each in runs}):
        splits: dict[str, list[str]] = {}
        for each in runs:
            if each.seed == seed and (each.path / "split.json").exists():
                text = RunDir(each.path).text("split.json")
                splits.setdefault(text, []).append(names[each.path])
        if len(splits) > 1:
            groups = "; ".join(map(_few, splits.values()))
            yield (
                f"Seed {seed}: not the same data, or not the same split: {groups}. Between these,"
                " no client and no difference of one seed can be compared."
            )
        elif sum(map(len, splits.values())) > 1:
            yield (
                f"Seed {seed}: the same data in the same parts, so these runs can be compared"
                " client by client."
            )
        else:
            alone.append(str(seed))
    if alone:
        yield (
            f"Seeds of one run alone: {', '.join(alone)}. Other seeds draw other splits and starts,"
            " so compare means over seeds."
        )


def _twins(runs: Sequence[Run], names: dict[Path, str]) -> Iterator[str]:
    """Runs of equal settings and seed should have equal bits."""
    for position, one in enumerate(runs):
        for other in runs[:position]:
            last = min(one.done or 0, other.done or 0)
            if (one.seed, one.settings) == (other.seed, other.settings):
                then, now = RunDir(other.path).left(last), RunDir(one.path).left(last)
                unlike = [name for name in then.keys() & now.keys() if then[name] != now[name]]
                bits = "the same bits"
                if unlike:
                    bits = f"other bits in {_few(sorted(unlike))}"
                yield (
                    f"{names[other.path]} and {names[one.path]} have equal settings and seed, and"
                    f" {bits} up to round {last}."
                )


def _origins(runs: Sequence[Run], names: dict[Path, str]) -> Iterator[str]:
    origins = {names[each.path]: flat(RunDir(each.path).origin()) for each in runs}
    keys = dict.fromkeys(key for origin in origins.values() for key in origin if follows(key))
    same = True
    for key in keys:
        groups: dict[str, list[str]] = {}
        for name, origin in origins.items():
            if key in origin:
                groups.setdefault(origin[key], []).append(name)
        if len(groups) > 1:
            same = False
            said = "; ".join(f"{value} ({_few(whose)})" for value, whose in groups.items())
            yield f"{key} differs: {said}: {follows(key)}."
    if same:
        yield "Program, packages, processor, threads and weights are the same."


def _few(names: Iterable[str]) -> str:
    """The first few of many."""
    all_names = list(names)
    text = ", ".join(all_names[:NAMED])
    if len(all_names) > NAMED:
        text += f" and {len(all_names) - NAMED} more"
    return text
