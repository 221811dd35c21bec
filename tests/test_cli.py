"""The command line as a person meets it: what it prints, what it refuses and how, what its exit codes say."""

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from fedexperts.cli import app

FAST = ["--set", "data.clients=4", "--set", "data.shots=2", "--set", "learning.epochs=1", "--set", "run.rounds=2"]
PROBE = "configs/demo/linear-probe.toml"


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that `run` made."""
    place = tmp_path_factory.mktemp("cli") / "runs"
    done = call("run", PROBE, "configs/demo/zero-shot.toml", *FAST, "--seeds", 2, "--out", place, "--jobs", 1)
    assert done.exit_code == 0, done.output
    return place, done.output


def test_alone_it_says_what_to_type_next():
    done = call()
    assert done.exit_code == 0
    assert "fedexperts run configs/demo" in done.output


def test_a_run_ends_in_a_table_a_report_and_the_next_command(finished):
    place, output = finished
    assert "linear-probe" in output
    assert "zero-shot" in output
    assert f"fedexperts compare {place}" in output.replace("\n", "")
    assert (place / "report.html").stat().st_size > 10_000


def test_compare_prints_the_tables_again(finished):
    place, output = finished
    table = call("compare", place).output
    assert "linear-probe" in table
    assert table.split("linear-probe")[1].split("\n")[0] in output


def test_report_writes_where_it_is_told(finished, tmp_path):
    done = call("report", finished[0], "--out", tmp_path / "page.html", "--pictures", tmp_path / "pictures")
    assert done.exit_code == 0
    assert "accuracy-over-rounds.svg" in [path.name for path in (tmp_path / "pictures").iterdir()]
    assert (tmp_path / "page.html").read_text().lstrip().lower().startswith("<!doctype html")


def test_resuming_a_finished_run_changes_nothing(finished):
    place, _ = finished
    before = sorted((p, p.stat().st_mtime_ns) for p in place.rglob("server.safetensors"))
    assert call("resume", place).exit_code == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in place.rglob("server.safetensors")) == before


@pytest.mark.parametrize("what", ["configs", "methods", "models", "data"])
def test_everything_listed_comes_with_a_line_of_meaning(what):
    lines = call("ls", what).output.strip().splitlines()
    assert len(lines) >= 2
    assert all(len(line.split()) > 3 for line in lines)


def test_check_prints_the_split_and_trains_nothing(tmp_path, monkeypatch):
    done = call("check", "configs/demo/pfedmoap.toml", "--set", "data.clients=4")
    assert done.exit_code == 0
    assert "as-scanned-0" in done.output
    assert "what may leave it: context." in done.output.replace("\n", " ")


def test_show_prints_a_config_that_can_be_run(tmp_path):
    text = call("show", "configs/demo/pfedmoap.toml").output
    (tmp_path / "again.toml").write_text('name = "again"\n' + text)
    again = call("show", tmp_path / "again.toml").output
    values = [line.split("  # ")[0] for line in text.splitlines()]
    assert [line.split("  # ")[0] for line in again.splitlines()] == values
    assert 'select = "nearest"' in values


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "configs/demo/pfedmaop.toml"], 2, "near it: pfedmoap.toml"),
        (["run", PROBE, "--set", "learning.rate=fast"], 2, "learning.rate = 'fast': input should be a valid number"),
        (["run", PROBE, "--set", "model.clip=nowhere"], 1, "nowhere"),
        (["compare", "docs"], 1, "docs"),
        (["resume", "docs"], 1, "holds no study and no run"),
        (["check", "configs/demo"], 2, "a folder with 8 configs"),
        (["ls", "everything"], 1, "right would be one of configs, methods, models, data"),
    ],
)
def test_wrong_input_is_explained_without_a_traceback(arguments, code, says, tmp_path):
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path / "runs"), "--jobs", "1"]
    done = call(*arguments)
    assert done.exit_code == code
    assert says in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


def test_two_runs_into_one_folder_are_refused(finished):
    done = call("run", PROBE, *FAST, "--out", finished[0])
    assert done.exit_code == 1
    assert "fedexperts resume" in done.output


def test_control_c_keeps_the_last_round_and_prints_the_line_to_resume(tmp_path):
    place = tmp_path / "runs"
    options = f"--set run.rounds=100000 --jobs 1 --out {place}".split()
    command = [sys.executable, "-m", "fedexperts", "run", PROBE, *options]
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )
    deadline = time.monotonic() + 120
    while not list(place.rglob("round-000003")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"go on with: fedexperts resume {place}" in said
    assert "Traceback" not in said
    assert len(list(place.rglob("server.safetensors"))) == 2
