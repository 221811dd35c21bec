"""How far a study is: a line now and then without a terminal, from the end of a log alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CASES, tiny

from fedexperts.cli.progress import Lines
from fedexperts.metrics import last_valid
from fedexperts.rundir import RunDir
from fedexperts.units import Beat, Unit, run_all


def lines(*beats: tuple[float, str, int, int]) -> list[str]:
    """What is written of beats: when, what, rounds done of how many."""
    written: list[str] = []
    times = iter([when for when, *_ in beats])
    hear = Lines(written.append, lambda: next(times))
    for _, what, done, total in beats:
        hear(Beat(what, done, total, 3, run="one/seed-0", valid=81.25))
    return written


def test_a_line_comes_at_a_rounds_end_and_at_most_every_thirty_seconds() -> None:
    written = lines(
        (0, "running", 1, 9),
        (10, "running", 2, 9),
        (29, "running", 3, 9),
        (31, "running", 4, 9),
        (90, "running", 4, 9),  # the same round
        (91, "running", 5, 9),
    )
    assert [line.split(",")[0] for line in written] == [
        "running: round 1 of 9",
        "running: round 4 of 9",
        "running: round 5 of 9",
    ]


def test_the_last_round_of_each_stage_is_always_told_and_once() -> None:
    written = lines(
        (0, "tuning", 1, 2), (1, "tuning", 2, 2), (2, "tuning", 2, 2), (3, "running", 2, 2)
    )
    assert [line.split(",")[0] for line in written] == [
        "tuning: round 1 of 2",
        "tuning: round 2 of 2",
        "running: round 2 of 2",
    ]


def test_a_line_says_accuracy_and_the_time_left_from_where_it_began() -> None:
    """Resumed at round 10: two rounds took 60 s, so eight more take 240 s."""
    *_, last = lines((0, "running", 10, 20), (60, "running", 12, 20))
    assert last == "running: round 12 of 20, one/seed-0 has 81.2 % on validation data, 0:04:00 left"


def test_images_that_are_encoded_are_counted_as_images() -> None:
    written: list[str] = []
    hear = Lines(written.append, lambda: 0.0)
    hear(Beat("encoding", 64, 180, 0, "example"))
    assert written == ["encoding: example 64 of 180"]


def test_the_newest_round_is_read_from_the_end_of_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDir.create(tmp_path / "run", "", {})
    assert folder.newest("clients.jsonl") == []
    for round in range(40):
        rows = [{"round": round, "client": f"c{i}", "said": "x" * 50} for i in range(5)]
        folder.log("clients.jsonl", rows)
    with open(folder.path / "clients.jsonl", "a") as file:
        file.write('{"round": 40, "cl')  # is being written
    for block in (1, 100, 1000, 2**20):
        monkeypatch.setattr("fedexperts.rundir.BLOCK", block)
        assert folder.newest("clients.jsonl") == rows


def test_no_more_than_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    """What stands before it may be anything: a hole of a terabyte takes no time."""
    folder = RunDir.create(tmp_path / "run", "", {})
    with open(folder.path / "rounds.jsonl", "wb") as file:
        os.truncate(file.name, 2**40)
        file.seek(2**40)
        file.write(b'\n{"round": 1}\n{"round": 2}\n')
    assert folder.newest("rounds.jsonl") == [{"round": 2}]


@pytest.mark.parametrize("judged_by", ["clients", "server"])
def test_a_beat_says_which_run_and_its_validation_accuracy(judged_by: str, tmp_path: Path) -> None:
    case = CASES["fedmoe-strong"]
    unit = Unit(tiny(case, run={"rounds": 1, "judged_by": judged_by}), tmp_path / "seed-0")
    beats: list[Beat] = []
    assert not run_all([unit], 1, False, False, beats.append, "running")
    rounds = [beat for beat in beats if beat.unit == "round"]
    assert [(beat.done, beat.run) for beat in rounds] == [(n, "tiny/seed-0") for n in (1, 2, 2)]
    assert beats[-1].valid == pytest.approx(last_valid(*unit.logs(), judged_by))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    """As the shell itself asks, in a process of its own."""
    asked = {
        "_FEDEXPERTS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "fedexperts ev",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "fedexperts ev",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    program = Path(sys.executable).parent / "fedexperts"
    done = subprocess.run(
        [program], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert "evaluate" in done.stdout
