"""How long an experiment will take is said before it begins, and is about what it takes."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CASES, Case, TinyProbe, tiny
from torch import Tensor
from typer.testing import CliRunner

from fedexperts import config as door
from fedexperts.cli import app
from fedexperts.cli.look import lasting
from fedexperts.config import Config
from fedexperts.loop import run
from fedexperts.models.built import Built
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors

IMAGE, STEP = 0.004, 0.02  # seconds


class Slow(TinyProbe):
    """A probe that takes its time."""

    together = False

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        time.sleep(STEP)
        return super().logits(tensors, x)


@dataclass(frozen=True)
class SlowModel:
    """A probe behind an encoder that takes its time, too."""

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        def encode(images: Tensor) -> Tensor:
            time.sleep(IMAGE * len(images))
            return images.float().flatten(1)[:, :8] / 255

        return Built(Slow(classes), encode, "slow")


def slow(**sections: object) -> Config:
    model = {"name": "test_duration:SlowModel"}
    base = tiny(Case({"name": "fedavg"}), engine={"together": 1}).nested()
    return door.resolve([({**base, "model": model}, "test"), (sections, "test")])


def found(config: Config) -> door.Estimate:
    federation, built, model, method = door.parts(config)
    estimate = door.estimate(config, federation, built, model, method)
    assert estimate is not None
    return estimate


def test_it_is_about_what_the_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "cache"))
    config = slow()
    said = found(config)
    began = time.perf_counter()
    with door.opened(config, tmp_path / "private") as (job, engine, federation):
        encoded = time.perf_counter() - began
        folder = RunDir.create(tmp_path / "run", config.toml(), {}, {})
        began = time.perf_counter()
        run(job, engine, config.section("run"), folder)
        trained = time.perf_counter() - began
    assert said.examples == len(federation.inputs)
    # a busy machine wakes sleepers late, now the one and now the other
    assert 1 / 3 < said.encode * said.examples / encoded < 3
    assert 1 / 3 < said.run / trained < 3
    assert STEP <= said.step < 5 * STEP


def test_what_is_kept_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "cache"))
    config = slow()
    assert found(config).examples > 100
    with door.opened(config, tmp_path / "private"):
        pass
    assert found(config).examples == 0
    assert found(slow(learning={"views": 2})).examples > 200


def test_twice_the_rounds_take_twice_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "cache"))
    once, twice, none = (found(slow(run={"rounds": rounds})) for rounds in (3, 6, 0))
    assert 1.4 < twice.training / once.training < 2.8
    assert 1.2 < twice.evaluation / once.evaluation < 2.6  # the start is evaluated, too
    assert none.training == 0
    assert none.evaluation > 0
    rarely = found(slow(run={"rounds": 6, "evaluate_every": 6}))
    assert rarely.evaluation < 0.6 * twice.evaluation


@pytest.mark.parametrize("case", CASES)
def test_every_method_can_be_estimated_and_nothing_of_it_stays(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "cache"))
    said = found(tiny(CASES[case]))
    assert 0 < said.run < 600
    assert not list(tmp_path.iterdir())


def test_check_says_it() -> None:
    done = CliRunner().invoke(app, ["check", "configs/demo/linear-probe.toml"])
    line = next(line for line in done.output.splitlines() if line.startswith("It takes about"))
    assert "here, one run at a time: " in line
    assert "trials to tune, each half a run. Every further seed is a run more." in line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0312, "31.2 ms"),
        (3, "3 s"),
        (150, "2.5 minutes"),
        (9000, "2.5 hours"),
        (2e5, "2.31 days"),
    ],
)
def test_a_time_is_said_in_its_own_unit(seconds: float, words: str) -> None:
    assert lasting(seconds) == words
