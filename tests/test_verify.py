"""A run is what was written, a round of it comes out again, and what it can be compared with is
said; a module of one's own that changed is refused where a run goes on.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import torch
from conftest import CASES, carry_out, every_file, rewrite, tiny
from typer.testing import CliRunner

from fedexperts import study, verify
from fedexperts.cli import app
from fedexperts.config import Config, about, origin
from fedexperts.disk import read_checked, write_checked
from fedexperts.report import collect, write_html
from fedexperts.rundir import EVENTS, RunDir
from fedexperts.tensors import pack, write

FULL = {"rounds": 3, "participation": 1.0}
MOAP = tiny(CASES["nearest"], run=FULL)


def begun(config: Config, path: Path) -> RunDir:
    """A run's folder as a study makes it."""
    federation = config.section("data").load(config.values["run"]["seed"])
    return RunDir.create(path, config.toml(), about(config, federation), federation.manifest())


def finished(config: Config, path: Path) -> RunDir:
    begun(config, path)
    return carry_out(config, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for those who only look at it."""
    return finished(MOAP, tmp_path_factory.mktemp("made") / "run").path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> RunDir:
    """One that may be spoilt."""
    shutil.copytree(made, tmp_path / "run")
    return RunDir(tmp_path / "run")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


# ---- one run


def test_a_run_is_whole_and_its_last_round_comes_out_again(folder: RunDir) -> None:
    before = every_file(folder.path)
    done = call("verify", folder.path)
    assert done.exit_code == 0, done.output
    assert "all are as they were written" in done.output
    assert "Round 3 again, from the checkpoint of round 2: the same bits in 3 logs" in done.output
    assert "5 private states" in done.output
    assert every_file(folder.path) == before


def test_an_order_for_the_files_alone_repeats_nothing(folder: RunDir) -> None:
    shutil.rmtree(folder.path / "checkpoints" / "round-000002")
    done = call("verify", "--no-rerun", folder.path)
    assert done.exit_code == 0
    assert "again" not in done.output


FILES = [
    "config.toml",
    "environment.json",
    "clients.jsonl",
    "checkpoints/round-000003/server.safetensors",
    "private/c/round-000003.private",
]


def test_one_bad_run_of_several_is_enough(made: Path, folder: RunDir) -> None:
    (folder.path / "private" / "c" / "round-000003.private").write_bytes(b"")
    assert call("verify", "--no-rerun", made, folder.path).exit_code == 1


@pytest.mark.parametrize("name", FILES)
def test_a_bit_that_changed_is_named_by_its_file(name: str, folder: RunDir) -> None:
    data = bytearray((folder.path / name).read_bytes())
    data[-3] ^= 1
    (folder.path / name).write_bytes(data)
    done = call("verify", folder.path)
    assert done.exit_code == 1
    assert Path(name).name in done.output


def forge(folder: RunDir, name: str, data: bytes) -> None:
    """Other bytes in a log or the server's newest state, and hashes that fit them."""
    newest = folder.path / "checkpoints" / "round-000003"
    manifest = read_checked(newest / "manifest.json", "")
    if name in manifest["logs"]:
        manifest["logs"][name] = [len(data), hashlib.sha256(data).hexdigest()]
        write(folder.path / name, data)
    else:
        manifest["sha256"][name] = hashlib.sha256(data).hexdigest()
        write(newest / name, data)
    write_checked(newest / "manifest.json", manifest)


def test_a_state_that_this_program_does_not_make_is_found_though_its_hash_fits(
    folder: RunDir,
) -> None:
    state = folder.look()
    assert state is not None
    forge(folder, "server.safetensors", pack(state[1] | {"global.context": torch.ones(2, 4)}))
    done = call("verify", folder.path)
    assert done.exit_code == 1
    assert "other bits in server.safetensors; the server's tensors differ by up to" in done.output
    assert "so this is a fault" in done.output


def test_a_figure_that_this_program_does_not_make_is_found_though_its_hash_fits(
    folder: RunDir,
) -> None:
    rows = folder.rows("clients.jsonl")
    rows[-1]["test_correct"] += 1
    lines = [json.dumps(row, sort_keys=True) + "\n" for row in rows]
    forge(folder, "clients.jsonl", "".join(lines).encode())
    done = call("verify", folder.path)
    assert done.exit_code == 1
    assert "other bits in clients.jsonl" in done.output


def test_other_bits_on_another_machine_are_explained(folder: RunDir) -> None:
    then = json.loads(folder.text("environment.json"))
    then["versions"]["torch"], then["threads"] = "2.0", 8
    rewrite(folder.path, "environment.json", json.dumps(then))
    done = call("verify", folder.path)
    assert done.exit_code == 0, "the bits are the same all the same"
    assert f"versions.torch changed from 2.0 to {version('torch')}: sums may round" in done.output
    assert "threads changed from 8 to 1" in done.output
    state = folder.look()
    assert state is not None
    forge(folder, "server.safetensors", pack(state[1] | {"global.context": torch.ones(2, 4)}))
    done = call("verify", folder.path)
    assert done.exit_code == 1
    assert "may be the whole reason" in done.output


LOST: dict[str, Callable[[RunDir], Any]] = {
    "all": lambda folder: shutil.rmtree(folder.path / "private"),
    "one that the last round read": lambda folder: (
        folder.path / "private" / "c" / "round-000002.private"
    ).unlink(),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_without_private_states_the_first_round_is_repeated(
    lose: Callable[[RunDir], Any], folder: RunDir
) -> None:
    lose(folder)
    done = call("verify", folder.path)
    assert done.exit_code == 0, done.output
    assert (
        "From the start to round 1 again, as not all private states that the last round began with"
        in done.output
    )
    assert "the same bits in 3 logs" in done.output


def test_where_a_state_was_given_up_after_the_last_round_the_first_is_repeated(
    folder: RunDir,
) -> None:
    folder.forget("c")
    done = call("verify", folder.path)
    assert done.exit_code == 0, done.output
    assert "From the start to round 1 again, as the private state of c was given up" in done.output


def test_a_run_of_no_rounds_is_its_start(tmp_path: Path) -> None:
    finished(tiny(CASES["fedavg"], run={"rounds": 0}), tmp_path / "run")
    done = call("verify", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "From the start to round 0 again" in done.output


def test_a_round_between_evaluations_is_repeated_without_one(tmp_path: Path) -> None:
    """Of a run that was stopped there: the last round alone is always evaluated."""
    config = tiny(CASES["fedavg"], run={"rounds": 4, "evaluate_every": 2})
    folder = begun(config, tmp_path / "run")

    def stop(round: int) -> None:
        if round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(config, folder.path, tell=stop)
    assert verify.again(folder, []).says.startswith("Round 3 again")
    assert verify.again(folder, []).holds


def test_what_was_deployed_cannot_be_repeated_here(folder: RunDir) -> None:
    deployed = MOAP.nested() | {"engine": {"name": "flower"}}
    rewrite(folder.path, "config.toml", tomlkit.dumps(deployed))
    done = call("verify", folder.path)
    assert done.exit_code == 1
    assert "No round could be run again: it is a deployment's" in done.output
    assert call("verify", "--no-rerun", folder.path).exit_code == 0


def test_data_that_are_not_those_of_the_run_are_said(folder: RunDir) -> None:
    split = json.loads(folder.text("split.json"))
    rewrite(folder.path, "split.json", json.dumps(split | {"inputs": "0" * 64}))
    done = call("verify", folder.path)
    assert done.exit_code == 1
    assert "No round could be run again: the data are not those of" in done.output


# ---- several runs


def compared(*paths: Path) -> str:
    return "\n".join(verify.compared(paths))


def test_runs_of_one_seed_and_split_can_be_compared_client_by_client(
    made: Path, tmp_path: Path
) -> None:
    other = finished(tiny(CASES["fedavg"], run=FULL), tmp_path / "other")
    said = compared(made, other.path)
    assert "Seed 0: the same data in the same parts" in said
    assert "equal settings and seed" not in said
    assert "Settings that differ, and so are what is compared:" in said
    assert "method.name" in said
    assert "Program, packages, processor, threads and weights are the same." in said
    assert "What can be compared" in call("verify", "--no-rerun", made, other.path).output


def test_runs_of_other_data_are_not_compared_client_by_client(made: Path, tmp_path: Path) -> None:
    other = finished(tiny(CASES["fedavg"], run=FULL, data={"reserve": 2}), tmp_path / "other")
    assert "Seed 0: not the same data, or not the same split: run; other" in compared(
        *(shutil.copytree(path, tmp_path / "both" / path.name) for path in (made, other.path))
    )


def test_of_runs_with_other_seeds_means_are_compared(made: Path, tmp_path: Path) -> None:
    other = finished(tiny(CASES["nearest"], run=FULL | {"seed": 1}), tmp_path / "other")
    said = compared(made, other.path)
    assert "The settings are the same, seeds apart" in said
    assert "Seeds of one run alone: 0, 1." in said


def test_runs_of_equal_settings_and_seed_are_held_against_each_other(
    made: Path, folder: RunDir
) -> None:
    assert "equal settings and seed, and the same bits up to round 3" in compared(made, folder.path)
    state = folder.look()
    assert state is not None
    forge(folder, "server.safetensors", pack(state[1] | {"global.context": torch.ones(2, 4)}))
    assert "and other bits in server.safetensors up to round 3" in compared(made, folder.path)


def test_what_else_may_be_why_figures_differ_is_named(made: Path, folder: RunDir) -> None:
    other = json.loads(folder.text("environment.json"))
    other["weights"], other["processor"] = {"model": "f" * 64}, "another"
    rewrite(folder.path, "environment.json", json.dumps(other))
    said = compared(made, folder.path)
    assert "processor differs:" in said
    assert "sums may round differently" in said
    assert "Program, packages" not in said
    assert "weights.model" not in said, "the other run read none"


# ---- a module of one's own


OWN = """
from conftest import TinyData
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine(TinyData):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module with data of one's own, which may be edited."""
    file = tmp_path / "of_my_own.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("of_my_own", None)


def interrupted(config: Config, path: Path) -> Path:
    """A study that was stopped after a round of its one run; the run's folder."""

    def stop(beat: Any) -> None:
        if beat.done == 2:
            raise KeyboardInterrupt

    study.create(path, [config], [0])
    with pytest.raises(KeyboardInterrupt):
        study.advance(path, tell=stop)
    return path / config.name / "seed-0"


def test_an_edited_module_is_refused_by_its_name_until_it_is_told_to_go_on(
    own: Path, tmp_path: Path
) -> None:
    config = tiny(CASES["fedavg"], data={"name": "of_my_own:Mine"})
    path = interrupted(config, tmp_path / "runs")
    own.write_text(OWN + "# another\n")
    for folder in (tmp_path / "runs", path):
        done = call("resume", folder)
        assert done.exit_code == 1
        assert "of_my_own.py changed since" in done.output
        assert "--changed-code" in done.output
    assert RunDir(path).done() == 1
    done = call("resume", path, "--changed-code")
    assert done.exit_code == 0, done.output
    (event,) = RunDir(path).rows(EVENTS)
    assert event["round"] == 1
    write_html(collect([path]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Continued elsewhere" in page
    assert "<td>modules.of_my_own.py</td>" in page
    assert call("resume", path).exit_code == 0, "it went on with this module"
    assert call("verify", path).exit_code == 0


def test_an_edit_before_a_runs_first_round_is_noted_too(own: Path, tmp_path: Path) -> None:
    config = tiny(CASES["fedavg"], data={"name": "of_my_own:Mine"})
    study.create(tmp_path / "runs", [config], [0])
    path = tmp_path / "runs" / config.name / "seed-0"
    begun(config, path)
    own.write_text(OWN + "# another\n")
    with pytest.raises(ValueError, match=r"of_my_own\.py changed since"):
        study.advance(tmp_path / "runs")
    RunDir(path).goes_on(origin(config))
    assert RunDir(path).origin() == origin(config)
    study.advance(tmp_path / "runs")
    assert [event["round"] for event in RunDir(path).rows(EVENTS)] == [None]


def test_a_run_that_goes_on_with_other_packages_says_so(tmp_path: Path) -> None:
    path = interrupted(tiny(CASES["fedavg"]), tmp_path / "runs")
    then = json.loads(RunDir(path).text("environment.json"))
    then["versions"]["torch"] = "2.0"
    rewrite(path, "environment.json", json.dumps(then))
    study.advance(tmp_path / "runs")
    (event,) = RunDir(path).rows(EVENTS)
    assert event["continued"]["versions"]["torch"] == version("torch")
    write_html(collect([path]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<td>versions.torch</td><td>2.0</td>" in page


def test_a_run_that_goes_on_as_it_began_has_nothing_to_say(tmp_path: Path) -> None:
    path = interrupted(tiny(CASES["fedavg"]), tmp_path / "runs")
    study.advance(tmp_path / "runs")
    assert not RunDir(path).rows(EVENTS)


def test_the_page_tells_where_figures_come_from_in_a_folded_block(
    made: Path, tmp_path: Path
) -> None:
    write_html(collect([made]), tmp_path / "report.html")
    _, _, block = (tmp_path / "report.html").read_text().partition("Where the figures of all runs")
    assert f"<td>versions.torch</td><td>{version('torch')}</td>" in block.partition("</details>")[0]
