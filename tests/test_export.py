"""An exported folder predicts as the run does, by the lines in its own README and without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CASES, GATE, Case, TinyData, digits, tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from fedexperts.cli import app
from fedexperts.config import Config
from fedexperts.data.digits import digits as scans
from fedexperts.export import export
from fedexperts.predict import Predictor
from fedexperts.study import once

ALONE = """
import sys
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fedexperts", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
"""
CNN = {"model": {"name": "compact-cnn", "width": 2, "side": 8}}


def blocks(folder: Path) -> list[str]:
    """The code in a folder's README."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)


def computed(folder: Path, code: str) -> Tensor:
    """What the code leaves in `found`, in a process of its own that stands in the folder."""
    lines = [ALONE, code, 'from safetensors.torch import save_file; save_file({"found": found}, "found")']
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "found")["found"]


def exported(config: Config, client: str, place: Path) -> tuple[Predictor, Path]:
    once(config, place / "run")
    predictor = Predictor.of(place / "run", client)
    export(predictor, place / "out")
    return predictor, place / "out"


@pytest.mark.parametrize(
    "case",
    [
        CASES["nearest"],
        Case(GATE | {"pooling": "random", "bias": False, "attention_scale": 0.0, "normalised": True, "lam": 1.3}),
        CASES["linear"],
        Case(GATE | {"gate": "linear", "normalised": True}),
        CASES["gate-alone"],
        Case({"name": "alone"}),
        Case({"name": "fedavg"}),
    ],
    ids=["attention", "options", "linear", "linear-cosine", "gate-alone", "alone", "fedavg"],
)
def test_the_lines_in_the_readme_compute_the_prompts_logits(case: Case, tmp_path: Path) -> None:
    config = digits(case, data={"clients": 3}, run={"rounds": 2})
    predictor, folder = exported(config, "as-scanned-0", tmp_path)
    x = predictor.built.encode(scans()[0][:9])
    save_file({"x": x}, folder / "x")
    found = computed(folder, blocks(folder)[0] + '\nfound = logits(load_file("x")["x"])')
    with torch.no_grad():
        torch.testing.assert_close(found, predictor.logits(x), rtol=1e-5, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["classes"] == list(predictor.model.classes)


@pytest.mark.parametrize("method", ["fedavg", "fedmoe"])
def test_a_network_is_rebuilt_by_its_readme_from_an_image_file_to_the_same_logits(method: str, tmp_path: Path) -> None:
    case = Case({"name": method}, reserve=8, mixture={"experts": 2} if method == "fedmoe" else None)
    predictor, folder = exported(tiny(case, **CNN), "c", tmp_path)
    images = TinyData().load(0).inputs[:1]
    assert isinstance(images, Tensor)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(folder / "image.png")
    found = computed(folder, "\n".join(blocks(folder)) + '\nfound = logits(inputs(pixels("image.png")))')
    with torch.no_grad():
        torch.testing.assert_close(found, predictor.logits(predictor.built.encode(images)), rtol=1e-5, atol=1e-5)


def test_the_image_feature_of_the_readme_is_the_runs_own(tmp_path: Path) -> None:
    predictor, folder = exported(digits(Case({"name": "fedavg"}), data={"clients": 3}, run={"rounds": 0}), "", tmp_path)
    images = scans()[0][3:4]
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(folder / "image.png")
    tinyclip = Path(__file__).parents[1] / "src/fedexperts/models/tinyclip"
    code = blocks(folder)[1].replace('CLIP = "tinyclip"', f"CLIP = {str(tinyclip)!r}")
    lines = [
        "import torch",
        code,
        'found = inputs(pixels("image.png")).detach()',
        "from safetensors.torch import save_file",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join([*lines, 'save_file({"x": found}, "x")'])], cwd=folder)
    assert done.returncode == 0
    torch.testing.assert_close(load_file(folder / "x")["x"], predictor.built.encode(images), rtol=1e-5, atol=1e-6)


def test_the_card_says_what_the_run_logged_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    config = digits(Case({"name": "alone"}), data={"clients": 3}, run={"rounds": 1}, model={"clip": "tinyclip"})
    predictor, folder = exported(config, "inverted-1", tmp_path)
    text = (folder / "README.md").read_text()
    row = next(r for r in reversed(predictor.folder.rows("clients.jsonl")) if r["client"] == "inverted-1")
    assert f"{100 * row['test_correct'] / row['test_examples']:.1f} %" in text
    assert "Clients of the run: 3. Rounds: 1 of 1." in text
    held = json.loads((tmp_path / "run" / "split.json").read_text())["clients"]["inverted-1"]
    assert f"{len(held['train'])} train, {len(held['valid'])} valid, {len(held['test'])} test" in text
    assert "no tensor left any client" in text
    assert str(tmp_path) not in text


def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    once(tiny(CASES["fedmix"], run={"rounds": 0}), tmp_path / "mixture")
    once(tiny(CASES["fedmoe"], run={"rounds": 0}), tmp_path / "fedmoe")
    once(tiny(CASES["fedavg"], run={"rounds": 0}), tmp_path / "foreign")
    once(tiny(Case({"name": "fedavg"}), **CNN, run={"rounds": 0}), tmp_path / "cnn")
    (tmp_path / "there").mkdir()
    for run, out, message in [
        ("mixture", "new", "Mixture cannot be written down"),
        ("fedmoe", "new", "right would be one client's, --client NAME"),
        ("foreign", "new", "TinyPrompted cannot be written down"),
        ("cnn", "there", "there is there already; right would be another folder"),
    ]:
        done = CliRunner().invoke(app, ["export", str(tmp_path / run), "--out", str(tmp_path / out)])
        assert done.exit_code == 1
        assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "new").exists()
    done = CliRunner().invoke(app, ["export", str(tmp_path / "cnn"), "--out", str(tmp_path / "new")])
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
