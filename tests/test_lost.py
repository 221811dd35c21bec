"""What is lost, damaged or in the way on a disk: it is named with what to do, and never taken for a
fresh start.
"""

import builtins
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, Remembered, carry_out, every_file, job_and_engine, tiny
from typer.testing import CliRunner

from fedexperts import study, track
from fedexperts.cli import app
from fedexperts.disk import making, read_checked, sweep, write_checked
from fedexperts.loop import Ledger
from fedexperts.message import Order
from fedexperts.private import Private
from fedexperts.report import collect, write_html
from fedexperts.rundir import RunDir
from fedexperts.tensors import write

FULL = {"rounds": 3, "participation": 1.0}
MOAP = tiny(CASES["nearest"], run=FULL)
LONGER = tiny(CASES["nearest"], run={"rounds": 4, "participation": 1.0})


@pytest.fixture
def folder(tmp_path: Path, remembered: Remembered) -> RunDir:
    """A finished run that may be damaged: its own copy."""
    shutil.copytree(remembered(MOAP).path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


# ---- private states


LOSSES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a client's newest": (lambda private: (private / "c" / "round-000003.private").unlink(), "c"),
    "a client's": (lambda private: shutil.rmtree(private / "c"), "c"),
    "a client's list": (lambda private: (private / "c" / "kept.json").unlink(), "c"),
    "all": (lambda private: shutil.rmtree(private), "a"),
}
every_loss = pytest.mark.parametrize(("lose", "client"), LOSSES.values(), ids=LOSSES)


@every_loss
def test_a_private_state_that_is_gone_is_named_and_nobody_begins_afresh(
    lose: Callable[[Path], Any], client: str, folder: RunDir
) -> None:
    before = {path: data for path, data in every_file(folder.path).items() if "checkpoints" in path}
    lose(folder.path / "private")
    with pytest.raises(
        ValueError, match=rf"private state of client {client} is gone.*backup.*--forget {client}"
    ):
        carry_out(LONGER, folder.path)
    assert {
        path: data for path, data in every_file(folder.path).items() if "checkpoints" in path
    } == before


@every_loss
@pytest.mark.parametrize("engine", ["inprocess", "flower-simulation"])
def test_a_study_says_so_before_it_asks_anybody(
    engine: str, lose: Callable[[Path], Any], client: str, folder: RunDir, tmp_path: Path
) -> None:
    """Also where clients live in other processes, whose errors are their own: here the disk is the
    run's.
    """
    longer = tiny(
        CASES["nearest"], run={"rounds": 4, "participation": 1.0}, engine={"name": engine}
    )
    run = RunDir.create(tmp_path / "longer", longer.toml(), {})
    for part in ("checkpoints", "private"):
        shutil.copytree(folder.path / part, run.path / part)
    for log in folder.path.glob("*.jsonl"):
        shutil.copy(log, run.path)
    lose(run.path / "private")
    with pytest.raises(ValueError, match=f"private state of client {client} is gone"):
        study.advance(run.path)


def test_an_older_backup_is_no_newest_state(folder: RunDir) -> None:
    states = Private(folder.path / "private")
    older = states.load("c", before=3)
    assert older is not None
    states.forget("c")
    states.save("c", 2, older)
    with pytest.raises(
        ValueError, match="it kept one in round 3, and the newest there is of round 2"
    ):
        carry_out(LONGER, folder.path)


def test_a_site_that_lost_its_state_answers_so_until_the_operator_forgets_it(
    tmp_path: Path,
) -> None:
    """In a deployment: the reply is an error that names it, and without the server's knowledge it
    begins afresh.
    """
    pytest.importorskip("flwr")
    from fedexperts.flower import answered
    from fedexperts.message import decode_reply, encode

    job, engine = job_and_engine(MOAP, tmp_path)
    sent = job.method.send(job.method.open(job.given), ["b"], 1, job.seed)["b"].tensors

    def reply(round: int, kept: int) -> Any:
        data, _ = answered(
            lambda name: (job, engine.members[name]),
            encode(Order("b", round, "train", sent, 2**20, kept)),
        )
        return decode_reply(data, 2**20)

    assert reply(1, 0).kept
    shutil.rmtree(tmp_path / "b")
    assert "the private state of client b is gone" in reply(2, 1).error
    assert not reply(2, 0).error


def test_only_a_client_s_own_answer_says_what_it_kept(tmp_path: Path) -> None:
    job, engine = job_and_engine(MOAP, tmp_path)
    ledger, state = Ledger(engine, {}), job.method.open(job.given)
    sent = job.method.send(state, ["a", "b"], 1, job.seed)
    ledger.exchange([Order("b", 1, "train", sent["b"].tensors)])
    assert ledger.kept == {"b": 1}
    ledger.exchange(
        [Order(client, 1, "predict", job.method.publish(state)) for client in ("a", "b")]
    )
    assert ledger.kept == {"b": 1}


def test_who_never_trained_and_who_keeps_nothing_miss_nothing(
    tmp_path: Path, remembered: Remembered
) -> None:
    for name, few in (("nearest", 0.2), ("fedavg", 1.0)):
        config = tiny(CASES[name], run={"rounds": 2, "participation": few})
        folder = RunDir(tmp_path / name)
        shutil.copytree(remembered(config).path, folder.path)
        assert set(folder.kept()) == {row["client"] for row in kept_by(folder)} != set("abcde")
        carry_out(tiny(CASES[name], run={"rounds": 3, "participation": few}), folder.path)
        assert folder.done() == 3


def kept_by(folder: RunDir) -> list[dict[str, str]]:
    return [{"client": client} for client in Private(folder.path / "private").clients()]


def test_a_client_that_is_forgotten_begins_afresh_alone_and_the_run_says_so(
    tmp_path: Path, folder: RunDir, remembered: Remembered
) -> None:
    (folder.path / "private" / "c" / "round-000003.private").unlink()
    folder.forget("c")
    carry_out(LONGER, folder.path)
    rounds = {
        c: read_checked(folder.path / "private" / c / "kept.json", "")["rounds"] for c in "abcde"
    }
    assert rounds == {c: [4] if c == "c" else [2, 3, 4] for c in "abcde"}
    assert folder.rows("events.jsonl") == [{"round": 3, "forgot": "c"}]
    assert folder.kept() == dict.fromkeys("abcde", 4)
    write_html(collect([folder.path]), tmp_path / "page.html")
    assert "Lost private states" in (tmp_path / "page.html").read_text()
    write_html(collect([remembered(MOAP).path]), tmp_path / "page.html")
    assert "Lost private states" not in (tmp_path / "page.html").read_text()


def test_forget_is_said_on_the_command_line_and_of_one_run_alone(tmp_path: Path) -> None:
    study.create(tmp_path / "runs", [MOAP], [0])
    study.advance(tmp_path / "runs")
    run = tmp_path / "runs" / "tiny" / "seed-0"
    done = call("resume", run, "--forget", "z")
    assert (done.exit_code, "no such client has kept anything" in done.output) == (1, True)
    done = call("resume", tmp_path / "runs", "--forget", "c")
    assert done.exit_code == 1
    assert f"expected one of {run}" in done.output
    (run / "private" / "c" / "round-000003.private").unlink()
    done = call("resume", run)
    assert done.exit_code == 1
    assert "go on with --forget c" in done.output
    assert f"continue with: fedexperts resume {run}" in done.output
    assert call("resume", run, "--forget", "c").exit_code == 0
    assert RunDir(run).rows("events.jsonl") == [{"round": 3, "forgot": "c"}]
    done = call("predict", run, tmp_path, "--client", "c")
    assert "is gone" not in done.output


def test_a_run_that_goes_on_somewhere_is_told_to_forget_by_nobody_else(folder: RunDir) -> None:
    with folder.locked(), pytest.raises(ValueError, match="being run by another process"):
        RunDir(folder.path).forget("c")
    assert (folder.path / "private" / "c").exists()


# ---- bits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one run."""
    path = tmp_path_factory.mktemp("bits") / "runs"
    study.create(path, [MOAP], [0])
    study.advance(path)
    return path


def test_a_flipped_bit_in_any_file_is_named_by_resume_compare_and_report(finished: Path) -> None:
    files = [file for file in sorted(finished.rglob("*")) if file.is_file() and file.stat().st_size]
    assert len(files) > 25
    for file in files:
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            # compare and report are of what is collected
            for ask in (study.advance, lambda path: collect([path])):
                with pytest.raises(ValueError, match=str(file)):
                    ask(finished)
        file.write_bytes(whole)
    study.advance(finished)


def test_a_file_that_is_gone_is_named(finished: Path, tmp_path: Path) -> None:
    run = finished / "tiny" / "seed-0"
    for name in ("config.toml", "environment.json", "split.json"):
        os.replace(run / name, tmp_path / name)
        for ask in (study.advance, lambda path: collect([path])):
            with pytest.raises(
                ValueError, match=f"{run / name} is gone: put a backup in its place"
            ):
                ask(finished)
        os.replace(tmp_path / name, run / name)


def test_what_version_0_1_wrote_says_so(folder: RunDir) -> None:
    manifest = folder.path / "checkpoints" / "round-000003" / "manifest.json"
    said = read_checked(manifest, "")
    del said["version"]
    write_checked(manifest, said)
    with pytest.raises(
        ValueError,
        match=r"manifest.json was not written by this version.*run anew in another folder",
    ):
        folder.load()
    (folder.path / "hashes.json").unlink()
    with pytest.raises(ValueError, match=r"made by fedexperts 0\.1.*Run anew in another folder"):
        folder.load()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"3", b"[]", b"null", b'{"id": 3}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_small_file_that_is_damaged_is_named_whatever_it_holds(
    text: bytes, tmp_path: Path
) -> None:
    """Study, trackers, a deployment's runs: one way of reading them all."""
    from fedexperts.deploy.runs import Run

    for name, ask in {
        "study.json": study.read,
        "track.json": track.addresses,
        "tracked.json": track._told,
        "flower.json": lambda path: Run(path).id,
        "status.json": lambda path: Run(path).status,
    }.items():
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match=rf"{tmp_path / name} is damaged .*(backup|delete it)"):
            ask(tmp_path)


# ---- disks


def test_no_space_left_names_the_file(folder: RunDir, tmp_path: Path) -> None:
    """/dev/full takes no byte, and does not say what it is."""
    folder.log("events.jsonl", [{"round": 3}])
    (folder.path / "events.jsonl").unlink()
    (folder.path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device.*events.jsonl"):
        folder.log("events.jsonl", [{"round": 3}])
    (tmp_path / f".note.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device.*{tmp_path / 'note'}'"):
        write(tmp_path / "note", b"x")
    assert not list(tmp_path.glob(".*.part"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a few files."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no disk of one's own can be had here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_run_on_a_disk_that_fills_up_goes_on_once_there_is_room(
    small: Path, remembered: Remembered
) -> None:
    """To the same bytes."""
    with pytest.raises(OSError, match="No space left on device") as full:
        carry_out(MOAP, small / "run")
    assert str(full.value.filename).startswith(str(small / "run"))
    subprocess.run(["mount", "-o", "remount,size=10m", small], check=True)
    carry_out(MOAP, small / "run")
    assert every_file(small / "run") == every_file(remembered(MOAP).path)


@pytest.mark.parametrize(
    ("number", "what"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_the_command_line_says_file_first_and_what_to_do(
    number: int, what: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a folder that may not be written into, for a user who is not root, likewise."""
    real = builtins.open

    def refuse(path: Any, mode: str = "r", *rest: Any, **how: Any) -> Any:
        if "report.html" in str(path) and "w" in mode:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *rest, **how)

    monkeypatch.setattr(builtins, "open", refuse)
    done = call("report", finished)
    assert done.exit_code == 1
    assert f"{finished / 'report.html'}: {os.strerror(number)}; " in done.output
    assert what in done.output


# ---- leftovers, and two at once


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f".a.json.{gone.pid}.part", f".b.{os.getppid()}.part", ".c.part", ".d.json"):
        (tmp_path / name).write_text("")
    (tmp_path / f".folder.{gone.pid}.part" / "inner").mkdir(parents=True)
    sweep(list(tmp_path.iterdir()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f".b.{os.getppid()}.part", ".d.json"]
    )


def test_a_half_deleted_checkpoint_and_what_lies_beside_it_are_swept_by_the_next_run(
    folder: RunDir, remembered: Remembered
) -> None:
    shutil.copytree(
        folder.path / "checkpoints" / "round-000002",
        folder.path / "checkpoints" / ".round-000001.part",
    )
    (folder.path / "checkpoints" / ".round-000001.part" / "manifest.json").unlink()
    (folder.path / "private" / "c" / ".round-000009.private.1234567.part").write_bytes(b"half")
    carry_out(MOAP, folder.path)
    assert every_file(folder.path) == every_file(remembered(MOAP).path)


def test_a_study_sweeps_what_was_left_of_its_runs(finished: Path) -> None:
    left = [
        finished / ".study.json.1234567.part",
        finished / "tiny" / ".seed-0.1234567.part" / "config.toml",
    ]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    study.advance(finished)
    assert not list(finished.rglob("*.part"))


def test_whoever_comes_second_to_a_folder_is_told_so_and_leaves_nothing(tmp_path: Path) -> None:
    def overtaken() -> None:
        with making(tmp_path / "x") as part:
            (part / "mine").touch()
            (tmp_path / "x" / "theirs").mkdir(parents=True)

    with pytest.raises(ValueError, match="is there already: two runs never share a folder"):
        overtaken()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "theirs"]


def create_at_once(path: Path, start: Any, said: Any) -> None:
    start.wait()
    try:
        study.create(path, [MOAP], [0])
        said.put("made")
    except ValueError as error:
        said.put(str(error))


def test_of_many_who_make_one_folder_at_the_same_instant_exactly_one_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, said = context.Barrier(6), context.SimpleQueue()
    children = [
        context.Process(target=create_at_once, args=(tmp_path / "runs", start, said))
        for _ in range(6)
    ]
    for child in children:
        child.start()
    words = [said.get() for _ in children]
    for child in children:
        child.join()
    assert words.count("made") == 1
    assert sum("two runs never share a folder" in word for word in words) == 5
    assert json.loads((tmp_path / "runs" / "study.json").read_text())["seeds"] == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_state_that_a_kill_left_undeleted_goes_with_the_next_one(tmp_path: Path) -> None:
    """Killed between the list, which no longer names a round, and the deletion of its file."""
    states = Private(tmp_path)
    for round in (1, 2, 3):
        states.save("a", round, {"x": torch.ones(2)})
    left = tmp_path / "a" / "round-000000.private"
    left.write_bytes(b"of a round that the list does not name")
    states.save("a", 4, {"x": torch.ones(2)})
    assert not left.exists()
    assert states.load("a", before=5) is not None
