"""The command line as a person meets it: what it prints, what it refuses and how, what its exit
codes say.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from typer.testing import CliRunner

import fedexperts
from fedexperts import config as door
from fedexperts.cli import app, studies
from fedexperts.cli.terminal import answer_signals

FAST = [
    "--set",
    "data.clients=4",
    "--set",
    "data.shots=2",
    "--set",
    "learning.epochs=1",
    "--set",
    "run.rounds=2",
]
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
    done = call(
        "run",
        PROBE,
        "configs/demo/zero-shot.toml",
        *FAST,
        "--seeds",
        2,
        "--out",
        place,
        "--jobs",
        1,
    )
    assert done.exit_code == 0, done.output
    return place, done.output


def test_alone_it_says_what_to_type_next():
    done = call()
    assert done.exit_code == 0
    assert "fedexperts demo" in done.output


def test_it_says_its_version_and_h_is_help():
    assert call("--version").output == f"fedexperts {fedexperts.__version__}\n"
    assert call("run", "-h").output == call("run", "--help").output


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
    done = call(
        "report", finished[0], "--out", tmp_path / "page.html", "--pictures", tmp_path / "pictures"
    )
    assert done.exit_code == 0
    assert "accuracy-over-rounds.svg" in [path.name for path in (tmp_path / "pictures").iterdir()]
    assert (tmp_path / "page.html").read_text().lstrip().lower().startswith("<!doctype html")


def test_resuming_a_finished_run_changes_nothing(finished):
    place, _ = finished
    before = sorted((p, p.stat().st_mtime_ns) for p in place.rglob("server.safetensors"))
    assert call("resume", place).exit_code == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in place.rglob("server.safetensors")) == before


def test_a_section_named_in_a_help_text_is_printed():
    assert "those in [tune] of a config" in " ".join(call("run", "--help").output.split())


@pytest.mark.parametrize("what", ["configs", "methods", "models", "data"])
def test_everything_listed_comes_with_a_line_of_meaning(what):
    lines = call("ls", what).output.strip().splitlines()
    assert len(lines) >= 2
    assert all(len(line.split()) > 3 for line in lines)


def test_names_are_listed_and_help_is_given_without_waiting_for_torch_or_pydantic():
    commands = (
        ["--help"],
        *(["ls", what] for what in ("configs", "methods", "models", "data", "nonsense")),
    )
    program = f"""
import sys
from typer.testing import CliRunner
from fedexperts.cli import app
for command in {commands!r}:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == ("nonsense" in command), (command, done.output, done.exception)
    assert "torch" not in sys.modules, command
    assert "pydantic" not in sys.modules or "nonsense" in command, command
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_listed_of_a_class_is_what_it_says_itself():
    for kind in ("method", "model", "data", "engine"):
        named = door.known(kind)
        assert {name: named.meaning(name) for name in named} == {
            name: (each.__doc__ or "").split("\n")[0] for name, each in named.items()
        }


def test_check_prints_the_split_and_trains_nothing(tmp_path, monkeypatch):
    done = call("check", "configs/demo/pfedmoap.toml", "--set", "data.clients=4")
    assert done.exit_code == 0
    assert "as-scanned-0" in done.output
    assert "only these tensors may leave it: context." in done.output.replace("\n", " ")


@pytest.fixture
def sites(tmp_path):
    """A folder of two sites with images of two classes, one image at both, and a file that is no
    image.
    """
    for place, (site, name, i) in enumerate(
        itertools.product(("north", "south"), ("cat", "guide_dog"), range(8))
    ):
        path = tmp_path / "sites" / site / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (place if (name, i) != ("cat", 0) else 99, 0, 0)).save(path)
    (tmp_path / "sites" / "north" / "cat" / "about [b].txt").write_text("cats")
    return tmp_path / "sites"


def own(sites):
    settings = (
        f"data.path={sites}",
        "data.side=32",
        "model.name=prompted-clip",
        "model.context=4",
        "run.rounds=1",
    )
    return ["configs/own/images/pfedmoap.toml", *(f"--set={text}" for text in settings)]


def test_own_images_are_checked_with_what_a_person_should_know(sites):
    done = call("check", *own(sites), "--set", 'data.classes=["guide dog", "cat"]')
    assert done.exit_code == 0, done.output
    north = next(line for line in done.output.splitlines() if line.startswith("north"))
    assert north.split() == ["north", "8", "3", "5", "8", "8"]
    assert re.search(r"Zero-shot, \d+ % of 32 images are right; always naming", done.output)
    assert "Note: The tiny CLIP has seen written characters and nothing else." in done.output
    assert "Note: Passed over, as no images: north/cat/about [b].txt." in done.output
    assert "Note: 1 example equal to one at another client or in another part" in done.output
    assert "north/cat/0.png (north, " in done.output
    assert " = south/cat/0.png (south, " in done.output
    assert (
        f"Next: fedexperts run configs/own/images/pfedmoap.toml --set=data.path={sites}"
        in done.output
    )
    assert """'--set=data.classes=["guide dog", "cat"]'""" in done.output


@pytest.mark.parametrize(("name", "begins"), [("s.svg", b"<?xml"), ("s.PNG", b"\x89PNG")])
def test_check_draws_the_split_as_its_file_is_named(tmp_path, name, begins):
    done = call("check", PROBE, "--set=data.reserve=2", "--picture", tmp_path / name)
    assert done.exit_code == 0
    assert f"Wrote {tmp_path / name}" in done.output
    assert "(the server)" in done.output
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_of_many_classes_check_prints_the_extremes(tmp_path):
    rows = [f"{i % 40}-{i},{i % 40},{'ab'[i > 160]}" for i in range(210)]
    (tmp_path / "t.csv").write_text("text,label,site\n" + "\n".join(rows))
    words = [
        "--set=data.name=table",
        f"--set=data.path={tmp_path / 't.csv'}",
        "--set=start.epochs=0",
    ]
    done = call(
        "check", "configs/demo/fedmoe-reviews/fedavg.toml", *words, "--picture", tmp_path / "s.svg"
    )
    assert done.exit_code == 0, done.output
    lines = {
        line.split()[0]: line.split()[1:]
        for line in done.output.splitlines()
        if line[:2] in ("cl", "a ", "b ")
    }
    assert lines["client"][3:] == ["classes", "fewest", "most"]
    assert lines["a"][3:] == ["40", "4", "5"]
    assert lines["b"][3:] == ["40", "1", "2"]


def test_a_run_on_own_images_writes_its_split_and_another_takes_it_up(sites, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--set=learning.rate=0.1", "--set=method.gate_rate=0.1", "--jobs=1"]
    done = call("run", *own(sites), *options, "--out", first)
    assert done.exit_code == 0
    unfit = "The tiny CLIP has seen written characters and nothing else."
    assert f"Note: {unfit}" in done.output
    assert unfit in (first / "report.html").read_text(encoding="utf-8")
    split = first / "pfedmoap" / "seed-0" / "split.json"
    files = list(json.loads(split.read_text())["files"])
    assert len(files) == 32
    assert files[0] == "north/cat/0.png"
    again = call(
        "run",
        *own(sites),
        *options,
        "--out",
        second,
        f"--set=data.split={split}",
        "--set=run.seed=5",
    )
    assert again.exit_code == 0, again.output
    assert (second / "pfedmoap" / "seed-5" / "split.json").read_bytes() == split.read_bytes()


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
        (["run", "configs/demo/pfedmaop.toml"], 2, "did you mean pfedmoap.toml"),
        (
            ["run", PROBE, "--set", "learning.rate=fast"],
            2,
            "learning.rate = 'fast': input should be a valid number",
        ),
        (["run", PROBE, "--set", "model.clip=nowhere"], 1, "nowhere"),
        (["compare", "docs"], 1, "docs"),
        (["resume", "docs"], 1, "holds no study and no run"),
        (["check", "configs/demo"], 2, "configs; expected one of them"),
        (["check", PROBE, "--picture", "split.gif"], 1, "ending in .svg or .png"),
        (
            ["check", "configs/own/images/pfedmoap.toml", "--set", "data.path=nowhere"],
            1,
            "data.path = 'nowhere': no such folder",
        ),
        (
            ["check", PROBE, "--set", "data.name=image-folders"],
            1,
            "data.path is missing: use --set data.path",
        ),
        (["ls", "everything"], 1, "expected one of configs, methods, models, data"),
    ],
)
def test_wrong_input_is_explained_without_a_traceback(arguments, code, says, tmp_path):
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path / "runs"), "--jobs", "1"]
    done = call(*arguments)
    assert done.exit_code == code
    assert says in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


@pytest.mark.parametrize("wrong", ["data.path=nowhere", "data.path=supply", "model.clip=nowhere"])
def test_what_is_not_there_is_said_before_a_folder_is_made(wrong, tmp_path):
    done = call(
        "run", "configs/own/images-clip/pfedmoap.toml", f"--set={wrong}", "--out", tmp_path / "runs"
    )
    assert done.exit_code == 1
    assert "nowhere" in done.output or "holds no folder" in done.output
    assert not (tmp_path / "runs").exists()


def test_nothing_is_tried_where_nothing_is_to_be_tuned(tmp_path):
    settings = [*FAST, "--set=run.rounds=0", "--jobs=1", "--out", tmp_path / "runs"]
    done = call("run", PROBE, "--tune", "none", *settings)
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "runs").glob("*/tune"))
    assert "1 seed, 1 run, in" in " ".join(done.output.split())


def test_two_runs_into_one_folder_are_refused(finished):
    done = call("run", PROBE, *FAST, "--out", finished[0])
    assert done.exit_code == 1
    assert "fedexperts resume" in done.output


@pytest.mark.parametrize(
    ("number", "code", "jobs"),
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2), (signal.SIGHUP, 129, 1)],
)
def test_what_ends_a_program_keeps_the_last_round_and_prints_the_line_to_resume(
    number, code, jobs, tmp_path
):
    """Ctrl-C, a service manager, a terminal that is closed; and nobody goes on behind its back."""
    place = tmp_path / "runs"
    options = (
        f"--set run.rounds=100000 --set learning.rate=0.1 --seeds {jobs} --jobs {jobs} --out"
        f" {place}".split()
    )
    command = [sys.executable, "-m", "fedexperts", "run", PROBE, *options]
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        start_new_session=True,
        preexec_fn=heeding,
    )
    try:
        deadline = time.monotonic() + 240
        while checkpoints(place) < 2 * jobs:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(child.pid, number)  # a terminal tells the whole group
        _, said = child.communicate(timeout=120)
        while living(child.pid):
            assert time.monotonic() < deadline + 120
            time.sleep(0.1)
    finally:
        child.kill()
    assert child.returncode == code
    assert f"continue with: fedexperts resume {place}" in said
    assert "Traceback" not in said
    assert checkpoints(place) >= 2 * jobs  # a third, if it ended in the midst of deleting


def heeding():
    """A job in the background ignores Ctrl-C, one under nohup a closed terminal."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def checkpoints(place):
    """How many there are; none, if one was deleted while they were counted."""
    try:
        return len(list(place.glob("*/seed-*/checkpoints/round-*/manifest.json")))
    except FileNotFoundError:
        return 0


def living(group):
    """Processes of a group that do something still; who was killed waits for its parent to take
    notice.
    """
    asked = ["ps", "-e", "-o", "pgid=,stat=,pid="]
    lines = [
        line.split()
        for line in subprocess.run(
            asked, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    ]
    return [pid for pgid, stat, pid in lines if int(pgid) == group and stat[0] != "Z"]


def test_under_nohup_a_closed_terminal_ends_nothing():
    for number, expected in ((signal.SIGHUP, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
        before = signal.signal(number, expected)
        try:
            answer_signals()
            assert (signal.getsignal(number) is signal.SIG_IGN) == (number == signal.SIGHUP)
        finally:
            signal.signal(number, before)


def test_the_demo_compares_five_methods_in_a_folder_that_is_free(tmp_path, monkeypatch):
    """Untuned, one seed; cut to what trains nothing, as the whole is minutes."""
    monkeypatch.setattr(studies, "DEMO", ("zero-shot", "gaussian-alone"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    done = call("demo", "--jobs", "1")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "demo-2" / "report.html").exists()
    assert {path.name for path in (tmp_path / "runs" / "demo-2").iterdir() if path.is_dir()} == {
        "zero-shot",
        "gaussian-alone",
    }
    assert done.output.rstrip().endswith("fedexperts run configs/demo")
