"""A run in Python: what `fx.run` gives, and what the public face of the package holds."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import CASES, CLASSES, Case, tiny

import fedexperts as fx
from fedexperts.metrics import accuracy
from fedexperts.private import Private

ROOT = Path(__file__).parents[1]
FACE = ROOT / "src" / "fedexperts" / "__init__.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> fx.Results:
    return fx.run(tiny(CASES["nearest"]), tmp_path_factory.mktemp("results") / "run")


# ---- the face


def test_dir_shows_every_public_name_and_a_type_checker_sees_the_same() -> None:
    assert dir(fx) == sorted([*fx.__all__, "__version__"])
    (typed,) = [node for node in ast.parse(FACE.read_text()).body if isinstance(node, ast.If)]
    froms = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.name for node in froms for alias in node.names) == fx.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fx.nothing


def test_no_public_name_is_that_of_a_room() -> None:
    """A room that is imported would take the name's place."""
    rooms = {path.stem for path in FACE.parent.iterdir()}
    assert not rooms & {*fx.__all__}


def test_examples_import_the_public_face_alone() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert "from fedexperts" not in path.read_text(), path
        used = set(re.findall(r"\bfx\.(\w+)", path.read_text()))
        assert used <= {*fx.__all__}, path


# ---- a run


def test_scores_are_those_of_the_tables(results: fx.Results) -> None:
    scores = results.scores
    assert scores.index.tolist() == [0, 1, 2, 3]
    assert list(scores) == ["local", "worst-client", "server", "local-valid", "ece"]
    last = scores.loc[3]
    assert last["local"] == results.score.mean
    assert (last["worst-client"], last["server"]) == (results.score.worst, results.score.server)


def test_clients_are_a_row_for_each_round_and_client(results: fx.Results) -> None:
    clients = results.clients
    assert clients.index.names == ["round", "client"]
    assert clients.accuracy.loc[3].mean() == pytest.approx(results.score.mean)
    rows = results.folder.rows("clients.jsonl")
    assert clients.accuracy.tolist() == [accuracy(row, "test") for row in rows]


def test_rounds_and_the_server(results: fx.Results) -> None:
    assert results.rounds.index.tolist() == [1, 2, 3]
    assert {"loss", "clients", "refused", "seconds", "bytes_up", "bytes_down"} == {*results.rounds}
    assert "server_bytes" in results.server
    assert isinstance(results.server, pandas.DataFrame)


def test_tensors_are_found_by_name(results: fx.Results) -> None:
    server = results.tensors()
    assert server["global.context"].shape == (2, 4)
    for client in Private(results.folder.path / "private").clients():
        assert results.tensors(client)["trained.context"].shape == (2, 4)
    with pytest.raises(ValueError, match="no client 'z'"):
        results.tensors("z")


def test_predictions_on_pixels_and_on_files(results: fx.Results, tmp_path: Path) -> None:
    from PIL import Image

    pixels = torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8)
    told = results.predict(pixels)
    assert [one.label in CLASSES for one in told] == [True] * 3
    assert results.predict(pixels.numpy()) == told
    for place, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{place}.png")
    files = sorted(tmp_path.iterdir())
    for what in (tmp_path, str(tmp_path), files, [str(file) for file in files]):
        assert [one.classes for one in results.predict(what)] == [one.classes for one in told]
    client = results.clients.index[0][1]
    assert results.predict(pixels, client=client)[0].probability != told[0].probability
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[B, 3, 4, 4\]"):
        results.predict(pixels.float())
    files[0].write_text("no image")
    with pytest.raises(ValueError, match=r"cannot be read: .*0.png"):
        results.predict(tmp_path)


def test_predictions_on_texts_and_on_files_of_them(tmp_path: Path) -> None:
    words: dict[str, Any] = {
        "data": {"name": "reviews", "clients": 2, "reviews": 40},
        "model": {"name": "transformer", "tokens": 12},
    }
    results = fx.run(tiny(CASES["fedavg"], **words, run={"rounds": 1}), tmp_path / "run")
    file = tmp_path / "new.txt"
    file.write_text("the soup was cold\nnever again\n")
    told = results.predict(["the soup was cold", "never again"])
    assert [one.input for one in told] == ["the soup was cold", "never again"]
    assert results.predict(file) == told
    assert results.predict("never again")[0].input == "never again"
    with pytest.raises(ValueError, match="learned from texts; expected texts, or files of them"):
        results.predict(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_where_nothing_is_shared_the_server_has_no_score(tmp_path: Path) -> None:
    results = fx.run(tiny(CASES["alone"], run={"rounds": 1}), tmp_path / "run")
    assert "server" not in results.scores
    assert results.tensors() == {}


def test_predictions_of_who_never_trained(results: fx.Results, tmp_path: Path) -> None:
    from PIL import Image

    for name in CLASSES:
        (tmp_path / name).mkdir()
        for place in range(2):
            Image.new("RGB", (4, 4), (80 * place,) * 3).save(tmp_path / name / f"{place}.png")
    told = results.predict(tmp_path, like=tmp_path)
    assert len(told) == 2 * len(CLASSES)


def test_the_page(results: fx.Results, tmp_path: Path) -> None:
    assert results.report() == results.folder.path / "report.html"
    page = results.report(tmp_path / "page.html")
    assert f"{results.score.mean:.1f}" in page.read_text()


def test_a_run_that_is_there_goes_on_and_is_opened(tmp_path: Path) -> None:
    config = tiny(CASES["fedavg"], run={"rounds": 1})
    first = fx.run(config, tmp_path / "run")
    again = fx.run(config, str(tmp_path / "run"))
    assert again.score == first.score
    assert again.config.values == config.values
    assert fx.Results(tmp_path).score == first.score, "the one run in a folder"
    with pytest.raises(ValueError, match="holds a run of another config"):
        fx.run(tiny(CASES["fedavg"], run={"rounds": 2}), tmp_path / "run")


def test_a_run_of_no_round_has_empty_tables(tmp_path: Path) -> None:
    results = fx.run(tiny(Case({"name": "fedavg"}), run={"rounds": 0}), tmp_path / "run")
    assert len(results.rounds) == 0
    assert results.scores.index.tolist() == [0]


def test_a_folder_without_a_run_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder made by `fedexperts run`"):
        _ = fx.Results(tmp_path).scores


def test_without_pandas_it_is_said_what_to_type(
    results: fx.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = builtins.__import__

    def importing(name: str, *more: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return there(name, *more)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fedexperts\[pandas\]'"):
        _ = results.scores


def test_opening_a_run_waits_for_no_pandas() -> None:
    light = "import fedexperts.results, sys; assert 'pandas' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", light], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len([line for line in code.splitlines() if line]) == 5
    monkeypatch.chdir(tmp_path)
    exec(code.replace("data.clients=8", "data.clients=4"), {})
    assert (tmp_path / "runs" / "first" / "report.html").exists()
