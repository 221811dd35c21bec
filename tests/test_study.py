"""Many runs: trials are chosen on validation data, seeds repeat the chosen, and what is left is
read off the folder.
"""

import json

import pytest

from fedexperts import study, units
from fedexperts.config import ConfigError, load
from fedexperts.metrics import by_round, valid
from fedexperts.rundir import RunDir

RATES = (1.0, 0.001)
SMALL = [
    "data.clients=4",
    "run.rounds=2",
    "run.participation=1.0",
    "learning.epochs=1",
    "data.shots=2",
]


def experiment(*settings):
    config = load("configs/demo/linear-probe.toml", [*SMALL, *settings])
    return study.door.resolve(
        [(config.nested() | {"tune": {"learning.rate": list(RATES)}}, "test")]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "runs"
    study.create(path, [experiment()], [0, 1])
    study.advance(path)
    return path


def validation(folder):
    rounds = by_round(RunDir(folder).rows("clients.jsonl"))
    return valid(rounds[max(rounds)])


def config_of(folder):
    return study.door.parse((folder / "config.toml").read_text(), "run").values


def trials(finished):
    """Rate -> validation accuracy, in the order in which they were tried."""
    return {
        config_of(folder)["learning"]["rate"]: validation(folder)
        for folder in sorted((finished / "linear-probe" / "tune").iterdir())
    }


def test_the_values_that_are_best_on_validation_data_are_used_for_every_seed(finished):
    tried = trials(finished)
    best = max(tried, key=tried.__getitem__)
    assert len(set(tried.values())) > 1
    for seed in (0, 1):
        used = config_of(finished / "linear-probe" / f"seed-{seed}")
        assert used["learning"]["rate"] == best
        assert used["run"]["seed"] == seed


def test_trials_have_a_seed_of_their_own(finished):
    for folder in (finished / "linear-probe" / "tune").iterdir():
        assert config_of(folder)["run"]["seed"] == study.TUNING_SEED
    with pytest.raises(ConfigError, match="values are chosen with this seed"):
        study.create(finished / "other", [experiment()], [study.TUNING_SEED])


@pytest.mark.parametrize(
    ("rounds", "tried"), [(0, 0), (1, 1), (2, 2), (4, 4), (5, 4), (8, 4), (9, 5), (20, 10)]
)
def test_a_trial_has_half_the_rounds_and_a_short_one_all(tmp_path, rounds, tried):
    config = experiment().having({"run.rounds": rounds}, "test")
    unit = study.trial(tmp_path, config, 1, {"learning.rate": 0.1})
    assert unit.config.values["run"]["rounds"] == tried


def test_trials_of_what_takes_two_rounds_differ(tmp_path):
    """The first finds what is sent, features being wide; nobody is blended before the second."""
    config = load(
        "configs/demo/gaussian-experts.toml",
        [*SMALL, "data.images=8", "method.width=8"],
    )
    hits = set()
    for number, kappa in enumerate((0.001, 10.0)):
        unit = study.trial(tmp_path, config, number, {"method.kappa": kappa, "method.guard": False})
        assert not study.work(unit)
        hits.add(validation(unit.folder))
    assert len(hits) == 2


def test_a_trial_is_evaluated_at_its_end_alone(tmp_path):
    config = experiment().having({"run.rounds": 5, "run.evaluate_every": 1}, "test")
    unit = study.trial(tmp_path, config, 1, {"learning.rate": 0.1})
    assert not study.work(unit)
    assert [*by_round(unit.logs()[0])] == [0, 4]


def test_what_was_tried_is_written_beside_the_runs(finished):
    found = json.loads((finished / "linear-probe" / "tune.json").read_text())
    tried = trials(finished)
    assert [point["learning.rate"] for point in found["trials"]] == list(tried)
    assert found["valid"] == list(tried.values())
    assert found["rounds"] == [2] * len(tried)
    assert found["chosen"] == {"learning.rate": max(tried, key=tried.__getitem__)}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture at the server, judged by the server."""
    path = tmp_path_factory.mktemp("mixture") / "run"
    config = load(
        "configs/demo/fedmoe-digits/fedmoe-letter.toml",
        [*SMALL[:2], "start.epochs=1", "learning.rate=0.01"],
    )
    study.once(config, path)
    return units.Unit(config, path)


@pytest.mark.parametrize("judged_by", ["clients", "server"])
def test_a_trial_is_scored_on_the_validation_data_of_whom_the_experiment_says(mixture, judged_by):
    unit = units.Unit(mixture.config.having({"run.judged_by": judged_by}, "test"), mixture.folder)
    (server,) = (row for row in RunDir(mixture.folder).rows("server.jsonl") if row["round"] == 2)
    servers = 100 * server["valid_correct"] / server["valid_examples"]
    assert servers != validation(mixture.folder)
    assert study.trial_score(unit) == (
        servers if judged_by == "server" else validation(mixture.folder)
    )


def test_the_score_of_a_run_has_the_servers_accuracy(mixture):
    (server,) = (row for row in RunDir(mixture.folder).rows("server.jsonl") if row["round"] == 2)
    score = study.once(mixture.config, mixture.folder)
    assert score.server == 100 * server["test_correct"] / server["test_examples"] != score.mean


def test_a_finished_study_has_nothing_left_to_do(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.jsonl")}
    study.advance(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.jsonl")} == before


def test_a_study_that_was_stopped_ends_like_one_that_was_not(finished, tmp_path):
    class StopError(Exception):
        pass

    def stop(beat):
        if beat.done == 7:
            raise StopError

    path = tmp_path / "runs"
    study.create(path, [experiment()], [0, 1])
    with pytest.raises(StopError):
        study.advance(path, tell=stop)
    assert not (path / "linear-probe" / "seed-0").exists()
    study.advance(path)
    for seed in ("seed-0", "seed-1"):
        there, here = (
            RunDir(p / "linear-probe" / seed).rows("clients.jsonl") for p in (finished, path)
        )
        assert there == here


def test_processes_give_what_one_process_gives(finished, tmp_path):
    path = tmp_path / "runs"
    study.create(path, [experiment()], [0, 1])
    beats = []
    study.advance(path, jobs=2, tell=beats.append)
    assert beats[-1].done == beats[-1].total == 6
    for place in ("tune/001", "tune/004", "seed-0", "seed-1"):
        there, here = (
            RunDir(p / "linear-probe" / place).rows("clients.jsonl") for p in (finished, path)
        )
        assert there == here


def test_a_rate_that_diverges_loses_and_does_not_end_the_study(tmp_path):
    config = load("configs/demo/promptfl.toml", SMALL)
    config = study.door.resolve(
        [(config.nested() | {"tune": {"learning.rate": [1e38, 0.1]}}, "test")]
    )
    study.create(tmp_path / "runs", [config], [0])
    study.advance(tmp_path / "runs")
    assert study.choose(tmp_path / "runs", config) == {"learning.rate": 0.1}


def test_a_folder_is_never_shared_and_names_are_never_twice(finished, tmp_path):
    with pytest.raises(ValueError, match=r"two runs never share a folder.*fedexperts resume"):
        study.create(finished, [experiment()], [0])
    with pytest.raises(ConfigError, match="two experiments are named linear-probe"):
        study.create(tmp_path / "new", [experiment(), experiment()], [0])
    assert study.free(finished).name == "runs-2"
    assert study.free(tmp_path / "new") == tmp_path / "new"


def test_one_run_never_answers_for_another(tmp_path):
    study.once(load("configs/demo/linear-probe.toml", [*SMALL, "run.rounds=1"]), tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run of another config"):
        study.once(
            load("configs/demo/linear-probe.toml", [*SMALL, "run.rounds=1", "run.seed=3"]),
            tmp_path / "run",
        )


def test_a_single_run_goes_on_too(tmp_path):
    config = load("configs/demo/linear-probe.toml", [*SMALL, "run.rounds=1"])
    score = study.once(config, tmp_path / "run")
    study.advance(tmp_path / "run")
    assert study.once(config, tmp_path / "run") == score


def test_two_processes_never_run_one_study(finished):
    with RunDir(finished).locked(), pytest.raises(ValueError, match="being run by another process"):
        study.advance(finished)


def test_nothing_is_tuned_without_validation_data(tmp_path):
    with pytest.raises(ConfigError, match="data.valid = 0 leaves nothing to tune by"):
        study.create(tmp_path / "new", [experiment("data.valid=0.0")], [0])


def test_a_folder_that_is_no_study_and_a_damaged_one_are_told_apart(finished, tmp_path):
    with pytest.raises(ValueError, match="holds no study"):
        study.read(tmp_path)
    asked = json.loads((finished / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(asked)[:50])
    with pytest.raises(ValueError, match=r"study\.json is damaged"):
        study.read(tmp_path)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_how_far_the_encoding_is_is_told_before_the_first_round(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "cache"))
    config = load("configs/demo/zero-shot.toml", ["data.clients=4"])
    beats = []
    study.create(tmp_path / "runs", [config], range(jobs))
    study.advance(tmp_path / "runs", jobs, beats.append)
    told = [beat for beat in beats if beat.unit == "example"]
    total = told[0].total
    assert total > 1000
    assert any(0 < beat.done < total for beat in told)
    assert beats[-1].unit == "round"
    if jobs == 1:
        assert beats[0] == units.Beat("encoding", 0, total, 0, "example")
        assert [beat.done for beat in told] == sorted(beat.done for beat in told)
        assert told[-1].done == total
