"""TensorBoard, MLflow and Weights & Biases are told what a run logged: each round once, of no
client by name.
"""

import json
import platform
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CASES, left_behind, tiny
from typer.testing import CliRunner

from fedexperts import study, track, units
from fedexperts.cli import app
from fedexperts.config import Config
from fedexperts.disk import read_checked, write_checked
from fedexperts.metrics import figures, last
from fedexperts.rundir import LOGS, RunDir

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # in the trackers' own packages
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
Curves = dict[str, list[tuple[int, float]]]
CONFIG = tiny(CASES["nearest"])


def tensorboard(place: Path, run: str) -> Curves:
    """What TensorBoard shows of a run of the study "runs"."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(place / "events" / "runs" / run))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def mlflow(place: Path, run: str) -> Curves:
    """What MLflow's database holds of it."""
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("runs")
    (found,) = [
        each for each in client.search_runs([experiment.experiment_id]) if each.info.run_name == run
    ]
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }


def wandb(place: Path, run: str) -> Curves:
    """What wandb keeps on this machine, to be sent later."""
    curves: Curves = {}
    for file in sorted((place / "runs" / run / "wandb").glob("offline-run-*/*.wandb")):
        until = time.monotonic() + 20
        while not (found := records(file)) or found[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < until, "its own process writes the file to its end"
            time.sleep(0.05)
        for record in found:
            for item in record.history.item:
                name = item.key or item.nested_key[0]
                if not name.startswith("_"):
                    curves.setdefault(name, []).append(
                        (record.history.step.num, json.loads(item.value_json))
                    )
    return curves


def records(file: Path) -> list[Any]:
    """Of a file of one block, in which each has a frame of 7 bytes in front, as the file itself
    has.
    """
    kind = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    data, at, found = file.read_bytes(), 7, []
    assert len(data) < 2**15
    while at < len(data):
        length = struct.unpack_from("<IHB", data, at)[1]
        found.append(kind.FromString(data[at + 7 : at + 7 + length]))
        at += 7 + length
    return found


SHOWN: dict[str, Callable[[Path, str], Curves]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}
LONG = ("mlflow", "wandb")  # to import, and to begin
every_tracker = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in LONG else []) for kind in SHOWN]
)


def where(kind: str, place: Path) -> dict[str, str]:
    at = {
        "tensorboard": f"{place}/events",
        "mlflow": f"sqlite:///{place}/mlflow.db",
        "wandb": "project",
    }
    return {kind: at[kind]}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def expected(place: Path, run: str) -> Curves:
    """What the run logged."""
    folder, curves = RunDir(place / "runs" / run), Curves()
    for round, values in figures(*(folder.rows(log) for log in LOGS)).items():
        for name, value in values.items():
            curves.setdefault(name, []).append((round, pytest.approx(value, rel=1e-6)))
    return curves


def carried_out(place: Path, config: Config = CONFIG, **trackers: str) -> Path:
    study.create(place / "runs", [config], [0], trackers)
    study.advance(place / "runs", warn=pytest.fail)
    return place / "runs" / "tiny" / "seed-0"


@every_tracker
def test_every_round_is_told_once_as_it_was_logged_and_the_run_is_the_same(
    kind: str, tmp_path: Path
) -> None:
    run = carried_out(tmp_path, **where(kind, tmp_path))
    found = SHOWN[kind](tmp_path, "tiny/seed-0")
    assert found == expected(tmp_path, "tiny/seed-0")
    assert [round for round, _ in found["accuracy/local"]] == [0, 1, 2, 3]
    assert found["accuracy/local"][-1][1] == pytest.approx(
        last(RunDir(run).rows("clients.jsonl")).mean
    )
    own = {
        name: data
        for name, data in left_behind(RunDir(run)).items()
        if not name.startswith("wandb/")
    }
    assert own == left_behind(RunDir(carried_out(tmp_path / "without")))


@every_tracker
def test_what_goes_on_after_a_stop_or_a_crash_is_told_once(kind: str, tmp_path: Path) -> None:
    study.create(tmp_path / "runs", [CONFIG], [0], where(kind, tmp_path))

    def stop(beat: units.Beat) -> None:
        if beat.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.advance(tmp_path / "runs", tell=stop)
    if kind != "wandb":  # which drops twice told steps on its server
        note = tmp_path / "runs" / "tiny" / "seed-0" / track.TOLD
        told = read_checked(note, "")
        assert told["rounds"] == {kind: 1}
        write_checked(note, told | {"rounds": {kind: 0}})  # as if killed before it was noted
    # a single run of the study is followed, too
    study.advance(tmp_path / "runs" / "tiny" / "seed-0")
    assert SHOWN[kind](tmp_path, "tiny/seed-0") == expected(tmp_path, "tiny/seed-0")


def test_trials_are_not_followed_and_a_run_that_is_the_winning_trial_is_told_whole(
    tmp_path: Path,
) -> None:
    tuned = tiny(CASES["fedavg"], tune={"learning.rate": [0.1, 0.2]})
    carried_out(tmp_path, tuned, **where("tensorboard", tmp_path))
    assert tensorboard(tmp_path, "tiny/seed-0") == expected(tmp_path, "tiny/seed-0")
    assert [path.name for path in (tmp_path / "events" / "runs" / "tiny").iterdir()] == ["seed-0"]


@pytest.mark.slow
def test_runs_in_several_processes_are_followed(tmp_path: Path) -> None:
    study.create(tmp_path / "runs", [CONFIG], [0, 1], where("tensorboard", tmp_path))
    study.advance(tmp_path / "runs", jobs=2, warn=pytest.fail)
    for run in ("tiny/seed-0", "tiny/seed-1"):
        assert tensorboard(tmp_path, run) == expected(tmp_path, run)


@pytest.mark.slow
def test_a_tracker_that_fails_is_said_once_and_told_later(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    said: list[str] = []
    study.create(tmp_path / "runs", [CONFIG], [0, 1], {"mlflow": "http://127.0.0.1:9"})
    study.advance(tmp_path / "runs", warn=said.append)
    assert [RunDir(tmp_path / "runs" / "tiny" / f"seed-{seed}").done() for seed in (0, 1)] == [3, 3]
    assert len(said) == 1
    assert said[0].startswith("Stopped logging to mlflow (")
    write_checked(tmp_path / "runs" / track.PLACES, where("mlflow", tmp_path))
    study.advance(tmp_path / "runs", warn=pytest.fail)
    for run in ("tiny/seed-0", "tiny/seed-1"):
        assert mlflow(tmp_path, run) == expected(tmp_path, run)


@pytest.mark.slow
def test_nobody_is_asked_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {
        "WANDB_MODE": "online",
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads its settings once
    said: list[str] = []
    study.create(tmp_path / "runs", [CONFIG], [0], {"wandb": "project"})
    study.advance(tmp_path / "runs", warn=said.append)
    wandb.teardown()
    assert ["you are not logged in; use `wandb login`" in line for line in said] == [True]


@every_tracker
def test_no_client_no_folder_and_no_machine_is_named(kind: str, tmp_path: Path) -> None:
    words = {
        "data": {"name": "reviews", "clients": 2, "reviews": 40},
        "model": {"name": "transformer", "tokens": 12},
    }
    run = carried_out(
        tmp_path, tiny(CASES["fedavg"], **words, run={"rounds": 1}), **where(kind, tmp_path)
    )
    names = {str(row["client"]) for row in RunDir(run).rows("clients.jsonl")}
    places = {"tensorboard": "events", "mlflow": "mlflow.db", "wandb": "runs/tiny/seed-0/wandb"}
    assert SHOWN[kind](tmp_path, "tiny/seed-0")
    at = tmp_path / places[kind]
    files = (
        [at] if at.is_file() else [f for f in at.rglob("*") if f.suffix != ".log" and f.is_file()]
    )
    told = b"".join(file.read_bytes() for file in files)
    assert b"accuracy/local" in told
    assert b"learning.rate" in told
    for name in names:
        assert name.encode() not in told
    assert kind == "mlflow" or str(tmp_path).encode() not in told  # it has a place for artefacts
    for machines in (platform.node(), sys.executable, "requirements.txt"):
        assert machines.encode() not in told


def test_settings_that_are_told_name_no_folder_and_no_data() -> None:
    told = tiny(
        CASES["fedavg"], model={"name": "prompted-clip", "clip": "/home/me/clip"}
    ).shareable()
    assert told["model.context"] == 16
    assert not [key for key in told if key == "model.clip" or key.startswith("data.")]


# ---- on the command line


@every_tracker
def test_what_to_install_is_said_before_anything_is_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, f"fedexperts.track.{kind}", raising=False)
    done = CliRunner().invoke(
        app, ["run", "configs/demo/zero-shot.toml", "--out", str(tmp_path / "o"), f"--{kind}", "x"]
    )
    assert done.exit_code == 2
    assert f"--{kind} needs a package" in done.stderr
    assert f"pip install 'fedexperts[{kind}]'" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "o").exists()


def test_a_place_of_tensorboard_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events" / "runs").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"events/runs already exists; use another folder"):
        study.create(tmp_path / "runs", [CONFIG], [0], where("tensorboard", tmp_path))
    assert not (tmp_path / "runs").exists()


def test_places_are_kept_as_they_are_seen_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    track.create(
        tmp_path / "runs",
        "runs",
        {"tensorboard": "events", "mlflow": "sqlite:///db", "wandb": "events"},
    )
    assert track.addresses(tmp_path / "runs") == {
        "tensorboard": f"{tmp_path}/events/runs",
        "mlflow": f"sqlite:///{tmp_path}/db",
        "wandb": "events",
    }
