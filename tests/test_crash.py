"""Law 3: a crash changes nothing. Real processes are killed with SIGKILL, and others go on with
what they left.

Between two touches of the disk it is the same, so before each touch, and in the middle of each
flush, are all the instants that there are in a run of three rounds. At some of them a child kills
itself; at every one, in the slow suite, a copy is taken of what a kill would leave.
"""

import builtins
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import CASES, Remembered, carry_out, every_file, left_behind, tiny

from fedexperts.config import Config
from fedexperts.engine import Engine
from fedexperts.message import Order, Reply
from fedexperts.rundir import RunDir

# of the os module; and open to write
TOUCHES = ("replace", "link", "fsync", "unlink", "rmdir", "mkdir", "truncate")
SOME = {
    "nearest": 3,
    "averaged": 11,
    "alone": 11,
    "fedavg": 11,
    "fedmoe": 23,
}  # every third, .. instant is one of a kill


def short(name: str) -> Config:
    """Three clients a round, one step each: all that a crash can hit, in little time."""
    return tiny(CASES[name], learning={"epochs": 1, "batch": 16}, run={"participation": 0.6})


# ---- in the children


class Fuse:
    """Counts touches of the disk, and kills this very process at the n-th one."""

    def __init__(self, fatal: int = 0, torn: bool = False) -> None:
        self.seen: list[str] = []
        self.fatal, self.torn = fatal, torn
        for name in TOUCHES:
            setattr(os, name, self.fused(name, getattr(os, name)))
        builtins.open = self.opening(builtins.open)  # type: ignore[assignment]

    def touch(self, name: str, file: int = 0) -> None:
        self.seen.append(name)
        if len(self.seen) == self.fatal:
            if self.torn:
                os.ftruncate(
                    file, max(os.fstat(file).st_size - 9, 0)
                )  # the end of what is flushed never reached the disk
            os.kill(os.getpid(), signal.SIGKILL)

    def fused(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*where: Any, **how: Any) -> Any:
            self.touch(name, *where[:1] if name == "fsync" else ())
            # flushing takes long, and a kill needs it not
            return act(*where, **how) if name != "fsync" else None

        return acting

    def opening(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(path: Any, mode: str = "r", *rest: Any, **how: Any) -> Any:
            if set(mode) & set("wax+"):
                self.touch("open")
            return act(path, mode, *rest, **how)

        return acting


class Camera(Fuse):
    """Copies a run's place to an album at every instant, with what lies beside it."""

    def __init__(self, place: Path, album: Path) -> None:
        self.place, self.album, self.taking = place, album, False
        super().__init__()

    def touch(self, name: str, file: int = 0) -> None:
        if self.taking:  # the copy touches the disk, too
            return
        super().touch(name, file)
        self.taking = True
        whole = self.album / f"{len(self.seen):04d}"
        shutil.copytree(self.place, whole)
        if name == "fsync":
            torn = self.album / f"{whole.name}-torn"
            shutil.copytree(self.place, torn)
            flushed = torn / Path(os.readlink(f"/proc/self/fd/{file}")).relative_to(self.place)
            os.truncate(flushed, max(flushed.stat().st_size - 9, 0))
        self.taking = False


def photographed(config: Config, path: Path, album: Path) -> None:
    """A whole run of which there is a copy for every instant."""
    Camera(path.parent, album)
    carry_out(config, path)


def live(config: Config, path: Path, fatal: int, torn: bool, seen: Any = None) -> None:
    """A whole run, unless it is killed on the way; `seen` gets the touches of one that is not."""
    fuse = Fuse(fatal, torn)
    carry_out(config, path)
    if seen:
        seen.put(fuse.seen)


def go_on(config: Config, path: Path) -> None:
    """What another process does with the folder, after the crash."""
    Fuse()
    carry_out(config, path)


def announced(config: Config, path: Path, begun: Any) -> None:
    """A run whose parent knows when it begins."""
    begun.put(True)
    carry_out(config, path)


@dataclass(frozen=True)
class Stuck:
    """An engine that asks a round's clients for something, to train say, and then never answers."""

    inner: Engine
    round: int
    trained: Any
    task: str = "train"

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        replies = self.inner.exchange(orders)
        if (orders[0].round, orders[0].task) == (self.round, self.task):
            self.trained.put(True)
            signal.pause()
        return replies


def get_stuck(config: Config, path: Path, round: int, trained: Any, task: str = "train") -> None:
    """A run that stands still when the clients of a round have trained, and the server has heard
    nothing.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    carry_out(config, path, lambda engine: Stuck(engine, round, trained, task))


# ---- their parent


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children fork from a server that imported everything once, so that a process costs
    milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "fedexperts.config.building", "pytest"])
    return context


def started(processes: Any, act: Callable[..., None], *arguments: Any) -> Any:
    # ends with the tests, whatever they find
    child = processes.Process(target=act, args=arguments, daemon=True)
    child.start()
    return child


def ended(child: Any) -> int:
    """Its exit status."""
    child.join(120)
    return int(child.exitcode)


def stopped_in_round(
    processes: Any, round: int, config: Config, path: Path, by: signal.Signals, task: str = "train"
) -> int:
    """The exit status of a run that gets a signal when the clients of a round have trained."""
    trained = processes.SimpleQueue()
    child = started(processes, get_stuck, config, path, round, trained, task)
    assert trained.get()
    time.sleep(0.1)
    os.kill(child.pid, by)
    return ended(child)


@pytest.mark.parametrize(("name", "stride"), SOME.items())
def test_a_crash_changes_nothing(
    name: str, stride: int, processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """Law 3: every file of the folder is byte for byte as if nobody had been killed, and there is
    none beside them. And what a kill leaves is what is copied for the slow suite.
    """
    config, whole = short(name), every_file(remembered(short(name)).path)
    copies = instants(processes, config, tmp_path)
    points, abreast, wrong = list(copies)[::stride], os.cpu_count() or 1, []
    for i in range(0, len(points), abreast):
        paths = {point: tmp_path / "{}-{}".format(*point) / "run" for point in points[i:][:abreast]}
        for path in paths.values():
            path.parent.mkdir()
        killed = [started(processes, live, config, path, *point) for point, path in paths.items()]
        assert [ended(child) for child in killed] == [-signal.SIGKILL] * len(paths)
        for point, path in paths.items():
            assert left(path.parent) == left(copies[point]), point
        resumed = [started(processes, go_on, config, path) for path in paths.values()]
        assert [ended(child) for child in resumed] == [0] * len(paths)
        wrong += [point for point, path in paths.items() if not unhurt(path, whole)]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_from_every_instant_a_run_goes_on_as_if_nothing_was(
    name: str, processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """Law 3, without a kill for each: this process goes on with copies of what it would leave."""
    config, whole = short(name), every_file(remembered(short(name)).path)
    wrong = []
    for point, place in instants(processes, config, tmp_path).items():
        carry_out(config, place / "run")
        if not unhurt(place / "run", whole):
            wrong.append(point)
    assert not wrong


def left(place: Path) -> dict[str, bytes]:
    """Every file that is left there but a clock's, named without the process that wrote it."""
    found = {}
    for name, data in every_file(place).items():
        if ".seconds.json." not in name:
            found[re.sub(r"\.\d+\.part", ".part", name)] = data
    return found


def unhurt(run: Path, whole: dict[str, bytes]) -> bool:
    """Whether its files are those of a whole run, with nothing half written beside them."""
    return every_file(run) == whole and not list(run.parent.rglob("*.part"))


def instants(processes: Any, config: Config, path: Path) -> dict[tuple[int, bool], Path]:
    """Before every touch of the disk in a whole run, and in the middle of every flush: its number,
    whether a flush is torn, and a copy of what a kill would leave.
    """
    place, album = path / "place", path / "album"
    place.mkdir()
    album.mkdir()
    assert ended(started(processes, photographed, config, place / "run", album)) == 0
    copies = sorted(album.iterdir())
    return {(int(copy.name[:4]), copy.name.endswith("torn")): copy for copy in copies}


def touches(processes: Any, config: Config, path: Path) -> list[str]:
    """All touches of the disk in a whole run."""
    seen = processes.SimpleQueue()
    assert ended(started(processes, live, config, path, 0, False, seen)) == 0
    found: list[str] = seen.get()
    return found


def test_what_gets_its_name_was_flushed_before(processes: Any, tmp_path: Path) -> None:
    """A power cut is not tried here; this is what makes it harmless: no file is renamed into place
    unflushed.
    """
    seen = touches(processes, short("nearest"), tmp_path / "run")
    files = [
        place for place, name in enumerate(seen) if name == "open" and seen[place + 1] == "fsync"
    ]
    assert seen.count("fsync") == len(files)
    assert all(
        seen[place - 1] in ("fsync", "replace")
        for place, name in enumerate(seen)
        if name == "replace"
    )


def test_a_folder_that_is_there_is_a_run(processes: Any, tmp_path: Path) -> None:
    """Killed at any of its first touches, a run has no folder, or one with its config and its
    environment.
    """
    there = []
    for fatal in range(1, 20):
        path = tmp_path / str(fatal) / "run"
        assert (
            ended(started(processes, live, short("nearest"), path, fatal, False)) == -signal.SIGKILL
        )
        there.append(path.exists())
        names = {file.name for file in path.iterdir()} if path.exists() else set()
        assert not names or {"config.toml", "environment.json", "hashes.json"} <= names
    assert there == sorted(there)
    assert {*there} == {True, False}


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(
    processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """Law 3, at whatever instants a clock hits."""
    config = tiny(CASES["nearest"], run={"rounds": 6, "participation": 0.6})
    path, whole, kills, clock = (
        tmp_path / "run",
        left_behind(remembered(config)),
        0,
        random.Random(0),
    )
    while kills < 12:
        begun = processes.SimpleQueue()
        child = started(processes, announced, config, path, begun)
        assert begun.get()
        time.sleep(clock.uniform(0, 0.05 * (kills + 2)))
        child.kill()
        kills += 1
        if ended(child) == 0:
            break
    assert ended(started(processes, go_on, config, path)) == 0
    assert left_behind(RunDir(path)) == whole


def test_ctrl_c_keeps_the_last_finished_round(
    processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """The interrupt of a terminal is a crash like any other: nothing is half done, nothing finished
    is lost.
    """
    config, folder = short("nearest"), RunDir(tmp_path / "run")
    assert stopped_in_round(processes, 3, config, folder.path, signal.SIGINT) == 1
    assert folder.done() == 2
    assert [row["round"] for row in folder.rows("rounds.jsonl")] == [1, 2]
    carry_out(config, folder.path)
    assert left_behind(folder) == left_behind(remembered(config))


def test_two_processes_are_never_in_one_run(
    processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """The second is refused at once; when the first is killed, its lock is gone with it."""
    config, folder, trained = short("nearest"), RunDir(tmp_path / "run"), processes.SimpleQueue()
    child = started(processes, get_stuck, config, folder.path, 2, trained)
    assert trained.get()
    with pytest.raises(
        ValueError, match="run is being run by another process: wait for it, or stop it first"
    ):
        carry_out(config, folder.path)
    child.kill()
    assert ended(child) == -signal.SIGKILL
    carry_out(config, folder.path)
    assert left_behind(folder) == left_behind(remembered(config))


@pytest.mark.parametrize("task", ["train", "absorb"])
def test_a_round_of_two_exchanges_is_done_whole_or_again(
    task: str, processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """Law 3: killed between the exchanges, or when clients have absorbed and the round was not yet
    saved.
    """
    config, folder = short("fedmoe"), RunDir(tmp_path / "run")
    assert (
        stopped_in_round(processes, 2, config, folder.path, signal.SIGKILL, task) == -signal.SIGKILL
    )
    assert folder.done() == 1
    carry_out(config, folder.path)
    assert left_behind(folder) == left_behind(remembered(config))


@pytest.mark.parametrize("name", ["nearest", "alone", "fedmoe"])
def test_a_crash_and_a_damaged_checkpoint_together_change_nothing(
    name: str, processes: Any, remembered: Remembered, tmp_path: Path
) -> None:
    """Killed when round 4 has trained, and round 3's checkpoint is lost: what round 3 began from is
    still there.
    """
    config, folder = (
        tiny(CASES[name], run={"rounds": 4, "participation": 1.0}),
        RunDir(tmp_path / "run"),
    )
    assert stopped_in_round(processes, 4, config, folder.path, signal.SIGKILL) == -signal.SIGKILL
    shutil.rmtree(folder.path / "checkpoints" / "round-000003")
    carry_out(config, folder.path)
    assert left_behind(folder) == left_behind(remembered(config))
