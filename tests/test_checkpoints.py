"""What a checkpoint of a large state writes: what is new; and that nothing is lost by it."""

import multiprocessing
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import every_file, same_bits
from test_crash import Fuse, ended, started

from fedexperts.disk import link
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors, unpack

CLIENTS, NUMBERS = 12, 2**15  # 1.5 MB in all: more than is always written whole


def pool(round: int, *changed: int) -> Tensors:
    """Tensors of clients, those of `changed` as of a round."""
    state = {f"pool.{client}": torch.full((NUMBERS,), float(client)) for client in range(CLIENTS)}
    for client in changed:
        state[f"pool.{client}"] = torch.full((NUMBERS,), client + round / 10)
    return state


def grown(folder: RunDir, rounds: int) -> list[Tensors]:
    """The states of a run in which a client changes every round, each saved."""
    state, states = pool(0), []
    for round in range(rounds):
        if round:
            state = state | {f"pool.{round % CLIENTS}": torch.full((NUMBERS,), -float(round))}
        folder.save(round, state)
        states.append(state)
    return states


def tensors(folder: RunDir, round: int) -> dict[str, Path]:
    at = folder.path / "checkpoints" / f"round-{round:06d}"
    return {path.name: path for path in sorted(at.glob("*.safetensors"))}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", "", {})


def test_only_what_is_new_is_written(run: RunDir) -> None:
    states = grown(run, 3)
    before, now = tensors(run, 1), tensors(run, 2)
    assert now["server.safetensors"].samefile(before["server.safetensors"])
    (new,) = now.keys() - before.keys()
    assert unpack(now[new].read_bytes()).keys() == {"pool.2"}
    assert same_bits(RunDir(run.path).load()[1], states[2])  # type: ignore[index]


def test_every_round_is_read_as_it_was_saved(run: RunDir) -> None:
    """Also where a client's tensor is in several files, of which the last counts."""
    state = pool(0)
    for round in range(30):
        state = state | {f"pool.{round % 2}": torch.full((NUMBERS,), float(round))}
        run.save(round, state)
        assert same_bits(RunDir(run.path).look()[1], state)  # type: ignore[index]


def test_what_no_longer_counts_is_less_than_the_state(run: RunDir) -> None:
    """Otherwise it is written whole."""
    state_bytes = CLIENTS * NUMBERS * 4
    state = pool(0)
    for round in range(40):
        state = state | {f"pool.{round % CLIENTS}": torch.full((NUMBERS,), float(round))}
        run.save(round, state)
        files = tensors(run, round).values()
        assert sum(path.stat().st_size for path in files) < 2 * state_bytes + 2000
    run.save(40, {name: value + 1 for name, value in state.items()})
    assert tensors(run, 40).keys() == {"server.safetensors"}


def test_a_checkpoint_is_read_from_few_files(run: RunDir) -> None:
    state = pool(0)
    for round in range(100):
        run.save(round, state | {"global": torch.full((), float(round))})
        assert len(tensors(run, round)) <= 32


def test_a_small_state_is_written_whole_and_each_checkpoint_stands_alone(run: RunDir) -> None:
    state = {f"pool.{client}": torch.ones(2000) for client in range(CLIENTS)}
    for round in range(2):
        run.save(round, state | {"pool.0": torch.full((2000,), float(round))})
    assert not tensors(run, 1)["server.safetensors"].samefile(tensors(run, 0)["server.safetensors"])


def test_what_is_gone_from_a_state_is_gone_from_its_files(run: RunDir) -> None:
    run.save(0, pool(0))
    less = pool(0)
    run.save(1, less)
    del less["pool.3"]
    run.save(2, less)
    assert unpack(tensors(run, 2)["server.safetensors"].read_bytes()).keys() == less.keys()
    assert same_bits(RunDir(run.path).load()[1], less)  # type: ignore[index]


def test_a_tensor_that_was_written_to_is_new(run: RunDir) -> None:
    state = pool(0)
    run.save(0, state)
    state["pool.5"][7] = 100.0
    run.save(1, state)
    assert same_bits(RunDir(run.path).load()[1], state)  # type: ignore[index]
    with torch.inference_mode():
        state = state | {"pool.6": torch.ones(NUMBERS)}
        run.save(2, state)
        state["pool.6"][7] = 100.0
        run.save(3, state)
    assert same_bits(RunDir(run.path).load()[1], state)  # type: ignore[index]


def test_a_run_that_went_on_leaves_the_same_files(run: RunDir, tmp_path: Path) -> None:
    """Wherever it was stopped."""
    grown(run, 9)
    other = RunDir.create(tmp_path / "other", "", {})
    state = grown(other, 4)[-1]
    for round in range(4, 9):
        other = RunDir(other.path)
        loaded = other.load()
        assert loaded
        state = loaded[1] | {f"pool.{round % CLIENTS}": torch.full((NUMBERS,), -float(round))}
        other.save(round, state)
    assert every_file(other.path / "checkpoints") == every_file(run.path / "checkpoints")


@pytest.mark.parametrize("kind", ["flipped", "gone"])
def test_a_damaged_file_that_both_checkpoints_have_is_said_to_be_in_both(
    kind: str, run: RunDir
) -> None:
    """To delete one of them would not help; to delete a folder whose file is gone does."""
    grown(run, 3)
    file = tensors(run, 2)["server.safetensors"]
    remedy = "start anew in another folder"
    if kind == "gone":
        file.unlink()
        remedy = f"delete {file.parent} to go on from round-000001"
    else:
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    with pytest.raises(ValueError, match=f"damaged: .*server.safetensors.*{remedy}"):
        RunDir(run.path).load()


def test_a_disk_without_links_gets_copies(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"data")
    other = next((disk for disk in map(Path, ("/dev/shm", "/tmp")) if apart(disk, tmp_path)), None)
    if other is None:
        pytest.skip("there is one disk, and a link needs no more")
    at = other / f"fedexperts-{os.getpid()}"
    try:
        link(file, at)
        assert at.read_bytes() == b"data"
    finally:
        at.unlink(missing_ok=True)


def apart(disk: Path, other: Path) -> bool:
    return disk.exists() and disk.stat().st_dev != other.stat().st_dev


def test_a_backup_holds_files_that_two_checkpoints_share(run: RunDir, tmp_path: Path) -> None:
    states = grown(run, 3)
    with tarfile.open(tmp_path / "backup.tar", "w") as archive:
        archive.add(run.path, "run")
    with tarfile.open(tmp_path / "backup.tar") as archive:
        archive.extractall(tmp_path / "back", filter="data")
    back = RunDir(tmp_path / "back" / "run")
    assert every_file(back.path) == every_file(run.path)
    assert same_bits(back.load()[1], states[2])  # type: ignore[index]


def saved(path: Path) -> None:
    """Six checkpoints, from wherever a run stands: the first and the fourth are written whole."""
    folder = RunDir(path)
    done, state = folder.load() or (-1, pool(0))
    for round in range(done + 1, 6):
        some = [f"pool.{4 * (round % 3) + i}" for i in range(4)]
        state = state | {name: torch.full((NUMBERS,), -float(round)) for name in some}
        folder.save(round, state)


def live(path: Path, fatal: int, seen: Any = None) -> None:
    """The same, unless it is killed at a touch of the disk; `seen` gets their number."""
    fuse = Fuse(fatal)
    saved(path)
    if seen:
        seen.put(len(fuse.seen))


def test_after_a_kill_at_any_touch_of_the_disk_a_run_ends_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    processes = multiprocessing.get_context("fork")
    whole = RunDir.create(tmp_path / "whole", "", {}).path
    touches = processes.SimpleQueue()
    assert ended(started(processes, live, whole, 0, touches)) == 0
    assert len(tensors(RunDir(whole), 5)) == 3
    for fatal in range(1, touches.get() + 1, 2):
        path = RunDir.create(tmp_path / f"{fatal}" / "run", "", {}).path
        assert ended(started(processes, live, path, fatal)) == -signal.SIGKILL
        saved(path)
        assert every_file(path) == every_file(whole), fatal
        assert not list(path.parent.rglob("*.part"))
