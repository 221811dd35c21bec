"""A study on a deployment: its runs follow one after the other, and end where a simulation does."""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CASES, tiny

pytest.importorskip("flwr")
from federated import SITES, Federation, experiment
from test_track import SHOWN, expected, where

from fedexperts import config as door
from fedexperts import report, study
from fedexperts.config import Config
from fedexperts.deploy import consent, runs, watch
from fedexperts.deploy.carrying import Around, carry_out
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.following import following
from fedexperts.deploy.runs import Run
from fedexperts.engine import Engine, InProcess
from fedexperts.message import Order, Reply
from fedexperts.metrics import figures
from fedexperts.rundir import LOGS, RunDir

NAMES = ("a", "b", "c", "d", "e")  # of the tiny world's clients
SEEDS = [3, 4]
RATES = {"learning.rate": [0.05, 0.1]}
ROUNDS = {"rounds": 2, "evaluate_every": 2, "participation": 1.0}


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    return Deployment.create(tmp_path / "dep", "localhost", 9443, NAMES)


def asked(**tables: Any) -> Config:
    engine = {"name": "flower", "sites": [*NAMES], "wait": 0.0, "patience": 0.0}
    return tiny(CASES["nearest"], **({"engine": engine, "run": ROUNDS, "tune": RATES} | tables))


def begun(made: Deployment, config: Config, trackers: dict[str, str] | None = None) -> Run:
    fitted = runs.fitted(config, made)
    return Run.create_study(made, fitted, "digits", SEEDS, trackers or {})


@dataclass
class Sites:
    """The sites, in this process, each run's private states apart; what each run was told of."""

    path: Path
    heard: list[str] = field(default_factory=list)  # the runs' names at the sites
    away_in: str = ""  # the run, by a word of its name, in which nobody answers
    stop_in: str = ""  # and the one that the operator stops, after this round of it
    stop_after: int = 0
    study: Run | None = None

    def engine(self, around: Around) -> Engine:
        name = around.about["run"]
        self.heard.append(name)
        here = door.parse(around.about["config"], "the run").having(
            {"engine.name": "inprocess"}, "test"
        )
        job, clients = door.build(here, self.path / "private" / name)
        told = replace(job, confusion=False)  # what sites tell only if they are asked
        return _Site(InProcess(told, clients, 0, 1), self, name)


@dataclass
class _Site:
    inner: Engine
    sites: Sites
    name: str

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        sites = self.sites
        if sites.away_in and sites.away_in in self.name:
            return [Reply(o.client, o.round, o.task, error="it is not connected") for o in orders]
        if sites.study and sites.stop_in in self.name and sites.stop_after == orders[0].round:
            sites.study.stop("round")
        return self.inner.exchange(orders)


def carried(made: Deployment, run: Run, sites: Sites) -> None:
    carry_out(made, run.path.name, lambda: dict.fromkeys(NAMES, 1), sites.engine)


def server(folder: Path) -> bytes:
    newest = f"round-{RunDir(folder).done():06d}"
    return (folder / "checkpoints" / newest / "server.safetensors").read_bytes()


def test_a_study_on_sites_ends_where_one_in_a_simulation_does(
    made: Deployment, tmp_path: Path
) -> None:
    """The same values tried and chosen, the same bits for each seed; its page says so, too."""
    run = begun(made, asked())
    carried(made, run, Sites(tmp_path))
    assert run.status.state == "finished"
    alone = tmp_path / "alone"
    study.create(alone, [tiny(CASES["nearest"], run=ROUNDS, tune=RATES)], SEEDS)
    study.advance(alone)
    chosen = (alone / "tiny" / "tune.json").read_bytes()
    assert (run.path / "tiny" / "tune.json").read_bytes() == chosen
    folders = sorted(part.path.relative_to(run.path) for part in run.parts())
    assert [str(folder) for folder in folders[:2]] == ["tiny/seed-3", "tiny/seed-4"]
    assert len(folders) == run.size
    for folder in folders:
        assert server(run.path / folder) == server(alone / folder)
    (experiment,) = report.collect([run.path])
    assert list(experiment.runs) == SEEDS


def test_sites_are_told_of_which_study_a_run_is_and_keep_each_runs_states_apart(
    made: Deployment, tmp_path: Path
) -> None:
    run, sites = begun(made, asked()), Sites(tmp_path)
    carried(made, run, sites)
    token = run.id.rpartition("-")[2]
    names = [f"digits.tune-00{number}-{token}" for number in (1, 2, 3, 4)]
    assert sites.heard == [*names, *(f"digits.seed-{seed}-{token}" for seed in SEEDS)]
    about = run.about(run.now)
    assert (about["study"], about["runs"]) == ("digits", "6")
    assert "one of 6 runs, at most, of the study digits" in consent.of_study(about)
    assert "tune" not in about["config"].replace("tuned", "").split("[run]")[0]


def test_a_study_that_is_stopped_goes_on_from_there(made: Deployment, tmp_path: Path) -> None:
    run = begun(made, asked())
    carried(made, run, Sites(tmp_path, stop_in="tune-002", study=run))
    assert run.status.state == "stopped"
    before = [part.path.name for part in run.parts()]
    assert before == ["001", "002"]
    run.begins_anew()
    sites = Sites(tmp_path)
    carried(made, run, sites)
    assert run.status.state == "finished"
    assert not any("tune-001" in name for name in sites.heard), "it was over"
    assert any("tune-002" in name for name in sites.heard), "it was not"


def test_values_are_not_to_blame_where_nobody_answers(made: Deployment, tmp_path: Path) -> None:
    """A trial that no site answered is tried again, not passed over as one that diverged."""
    run = begun(made, asked())
    with pytest.raises(RuntimeError, match="no client is left"):
        carried(made, run, Sites(tmp_path, away_in="tune-002"))
    assert run.status.state == "failed"
    assert not (run.path / "tiny" / "tune.json").exists()
    run.begins_anew()
    carried(made, run, Sites(tmp_path))
    assert run.status.state == "finished"


def test_who_watches_reads_of_each_run_and_of_what_was_chosen(
    made: Deployment, tmp_path: Path
) -> None:
    run, said = begun(made, asked()), list[str]()
    watching = threading.Thread(target=lambda: said.extend(watch.lines(made, run)))
    watching.start()
    time.sleep(0.2)
    carried(made, run, Sites(tmp_path))
    watching.join(60)
    text = "\n".join(said)
    assert "tune/001, round 1 of 2: 5 of 5 sites" in text
    assert "seed-3, round 2 of 2: 5 of 5 sites" in text
    assert "seed-4, after round 2: accuracy" in text
    chosen = study.choose(run.path, run.config)["learning.rate"]
    assert f"with learning.rate = {chosen}, the best on validation data" in text
    now = watch.snapshot(made, run)
    assert (now["run"], now["part"], now["round"], now["rounds"]) == ("digits", "seed-4", 2, 2)


def test_the_time_that_is_left_counts_the_runs_that_come_later(
    made: Deployment, tmp_path: Path
) -> None:
    run = begun(made, asked(tune={}))
    carried(made, run, Sites(tmp_path, stop_in="seed-3", stop_after=1, study=run))
    now = watch.snapshot(made, run)
    (row,) = [row for row in run.now.rows() if row["round"]]
    assert now["seconds_left"] == pytest.approx(3 * row["seconds"]), "one round, and two of seed 4"


def test_a_tracker_is_told_by_one_terminal_and_another_time_of_the_rest(
    made: Deployment, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = begun(made, asked(), {"tensorboard": str(tmp_path / "curves")})
    warned = list[str]()
    carried(made, run, Sites(tmp_path, stop_in="seed-4", study=run))
    with following(run, warned.append) as tell, following(run, warned.append) as second:
        second()
        assert not (tmp_path / "curves").exists(), "the first terminal tells"
        tell()
    run.begins_anew()
    carried(made, run, Sites(tmp_path))
    with following(run, warned.append) as tell:
        tell()
    assert not warned
    assert {path.name for path in (tmp_path / "curves" / "digits" / "tiny").iterdir()} == {
        "seed-3",
        "seed-4",
    }
    for seed in SEEDS:
        events = accumulator.EventAccumulator(str(tmp_path / f"curves/digits/tiny/seed-{seed}"))
        events.Reload()
        told = [(each.step, each.value) for each in events.Scalars("accuracy/local")]
        logged = figures(*(RunDir(run.path / f"tiny/seed-{seed}").rows(log) for log in LOGS))
        assert told == [
            (round, pytest.approx(values["accuracy/local"]))
            for round, values in logged.items()
            if "accuracy/local" in values
        ]


def test_a_tracker_that_fails_is_said_with_what_sends_the_rest(
    made: Deployment, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = begun(made, asked(tune={}), {"tensorboard": str(tmp_path / "curves")})
    carried(made, run, Sites(tmp_path))
    (tmp_path / "curves").write_text("in the way")
    warned = list[str]()
    with following(run, warned.append) as tell:
        tell()
    assert "Stopped logging to tensorboard" in warned[0]
    assert "`fedexperts deploy watch FOLDER digits` sends the rest" in warned[0]
    shutil.rmtree(tmp_path / "private")


# ---- on sites that are processes

STUDY = "runs"  # as the readers of what trackers were told expect it
TUNED: dict[str, Any] = {
    "run": {"rounds": 1},
    "tune": {"learning.optimizer": ["sgd", "adam"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trackers write, beside the study."""
    return tmp_path_factory.mktemp("trackers")


@pytest.fixture(scope="module")
def tuned(federation: Federation, place: Path) -> Run:
    """A study whose server was killed in the midst of its second trial."""
    options = ["--seeds", "2", "--tune", "config"]
    for kind in SHOWN:
        options += [f"--{kind}", where(kind, place)[kind]]
    federation.kill("server")
    federation.serve_until("confirm-message-received")
    run = federation.submit(STUDY, options, **TUNED)
    (place / STUDY).symlink_to(run.path)
    first = RunDir(run.path / STUDY / "tune" / "001")
    federation.until(lambda: first.path.exists() and first.done() == 1, "the end of a trial")
    federation.dies()
    federation.serve()
    assert federation.finished(STUDY) == 0, federation.words()
    return run


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_tunes_goes_on_to_the_same_choice_and_bits(
    tuned: Run, tmp_path: Path
) -> None:
    one_by_one = {"together": 1}  # as sites train, each on its own machine
    config = door.resolve([(experiment(**TUNED, name=STUDY, engine=one_by_one), "test")])
    study.create(tmp_path / "alone", [config], [0, 1])
    study.advance(tmp_path / "alone")
    chosen = (tmp_path / "alone" / STUDY / "tune.json").read_bytes()
    assert (tuned.path / STUDY / "tune.json").read_bytes() == chosen
    folders = [part.path.relative_to(tuned.path) for part in tuned.parts()]
    assert [folder.name for folder in folders] == ["001", "002", "seed-0", "seed-1"]
    for folder in folders:
        assert server(tuned.path / folder) == server(tmp_path / "alone" / folder)


@pytest.mark.slow
def test_on_real_sites_seeds_follow_one_another_and_both_ends_say_so(
    federation: Federation, tuned: Run
) -> None:
    said = federation.said(STUDY)
    assert "1 experiment, 2 seeds, 2 runs, after " in said
    assert "each seed runs with learning.optimizer = " in said
    for name in ("tune/002", "seed-0", "seed-1"):
        assert f"{name}, round 1 of 1: 3 of 3 sites" in said
    site = federation.said(SITES[0])
    assert f"The run {STUDY}.seed-1-" in site
    assert f"It is one of {tuned.size} runs, at most, of the study {STUDY}" in site
    assert f"{STUDY}.seed-1, round 1: train" in site
    assert (tuned.path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in the trackers' own packages
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("kind", SHOWN)
@pytest.mark.usefixtures("tuned")
def test_the_terminal_tells_every_tracker_what_the_sites_did(kind: str, place: Path) -> None:
    for seed in (0, 1):
        run = f"{STUDY}/seed-{seed}"
        told = SHOWN[kind](place, run)
        assert told == expected(place, run)
        assert [round for round, _ in told["accuracy/local"]] == [0, 1]
