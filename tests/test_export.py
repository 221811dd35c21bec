"""An exported folder predicts as the run does, by the lines in its own README and without this
package.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, GATE, Case, TinyData, digits, tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from test_clip import DIGITS
from test_folders import fill
from test_transformers import save
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from fedexperts import models
from fedexperts.cli import app
from fedexperts.config import Config, resolve
from fedexperts.data.digits import digits as scans
from fedexperts.export import export
from fedexperts.predict import Learned, predictions
from fedexperts.study import once

ALONE = """
import sys
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fedexperts", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
"""
WITH_TRANSFORMERS = ALONE.replace('("fedexperts", "transformers")', '("fedexperts",)')
PHOTOS = os.environ.get("FEDEXPERTS_DATA", "")
TEXTS = ["the soup was cold, again!", "good", "", "Très bien"]
REVIEWS: dict[str, Any] = {"name": "reviews", "clients": 2, "reviews": 40}
MOE = {"name": "fedmoe", "lam": 0.5, "lam_client": 0.5}
CNN: dict[str, Any] = {"model": {"name": "compact-cnn", "width": 2, "side": 8}}


def blocks(folder: Path) -> list[str]:
    """The code in a folder's README."""
    return re.findall(
        r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S
    )


def computed(folder: Path, code: str, alone: str = ALONE) -> Tensor:
    """What the code leaves in `found`, in a process of its own that stands in the folder."""
    lines = [
        alone,
        code,
        'from safetensors.torch import save_file; save_file({"found": found}, "found")',
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "found")["found"]


def exported(config: Config, client: str, place: Path) -> tuple[Learned, Path]:
    once(config, place / "run")
    predictor = Learned.of(place / "run", client)
    export(predictor, place / "out")
    return predictor, place / "out"


OPTIONS = {
    "pooling": "random",
    "bias": False,
    "attention_scale": 0.0,
    "normalised": True,
    "lam": 1.3,
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(CASES["nearest"], id="attention"),
        pytest.param(Case(GATE | OPTIONS), id="options", marks=pytest.mark.slow),
        pytest.param(CASES["linear"], id="linear", marks=pytest.mark.slow),
        pytest.param(Case(GATE | {"gate": "linear", "normalised": True}), id="linear-cosine"),
        pytest.param(CASES["gate-alone"], id="gate-alone", marks=pytest.mark.slow),
        pytest.param(Case({"name": "alone"}), id="alone", marks=pytest.mark.slow),
        pytest.param(Case({"name": "fedavg"}), id="fedavg"),
    ],
)
def test_the_lines_in_the_readme_compute_the_prompts_logits(case: Case, tmp_path: Path) -> None:
    config = digits(case, data={"clients": 3}, run={"rounds": 2})
    predictor, folder = exported(config, "as-scanned-0", tmp_path)
    x = predictor.built.encode(scans()[0][:9])
    save_file({"x": x}, folder / "x")
    found = computed(folder, blocks(folder)[0] + '\nfound = logits(load_file("x")["x"])')
    with torch.no_grad():
        torch.testing.assert_close(found, predictor.logits(x), rtol=1e-5, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["classes"] == list(
        predictor.model.classes
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(MOE, reserve=8, mixture={"experts": 3, "top": 2, "mains": 2}),
        pytest.param(Case(MOE, reserve=8, mixture={"experts": 3}), marks=pytest.mark.slow),
        pytest.param(
            Case(MOE | {"gate": "uniform"}, reserve=8, mixture={"experts": 3}),
            marks=pytest.mark.slow,
        ),
        pytest.param(Case({"name": "fedavg"}, mixture={"experts": 2}), marks=pytest.mark.slow),
    ],
    ids=["two-of-three", "best", "uniform", "all"],
)
def test_a_mixture_is_rebuilt_by_its_readme_to_what_the_server_answers(
    case: Case, tmp_path: Path
) -> None:
    once(tiny(case, **CNN), tmp_path / "run")
    predictor, folder = Learned.of(tmp_path / "run", ""), tmp_path / "out"
    draw = torch.Generator().manual_seed(0)  # so that it matters which expert speaks
    apart = {
        name: value + 0.3 * torch.randn(value.shape, generator=draw)
        for name, value in predictor.server.items()
    }
    predictor = replace(predictor, server=apart | {"alpha": torch.tensor(0.7)})
    export(predictor, folder)
    x = predictor.built.encode(torch.as_tensor(TinyData().load(0).inputs[:9]))
    save_file({"x": x}, folder / "x")
    found = computed(folder, blocks(folder)[0] + '\nfound = logits(load_file("x")["x"])')
    with torch.no_grad():
        torch.testing.assert_close(found, predictor.logits(x), rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in found.tolist()}) == 9, "it looks at the image"
    if predictor.serves:
        text = (folder / "README.md").read_text()
        assert "server's own predictor" in text
        row = predictor.folder.rows("server.jsonl")[-1]
        assert f"Accuracy on all clients' 100 test examples: {row['test_correct']:.1f} %" in text


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=pytest.mark.slow)])
def test_a_residual_network_is_rebuilt_by_its_readme(norm: str, tmp_path: Path) -> None:
    config = tiny(
        Case({"name": "fedavg"}), model={"name": "resnet18", "norm": norm}, run={"rounds": 1}
    )
    predictor, folder = exported(config, "c", tmp_path)
    images = torch.as_tensor(TinyData().load(0).inputs[:2])
    save_file({"pixels": images}, folder / "x")
    found = computed(
        folder, "\n".join(blocks(folder)) + '\nfound = logits(inputs(load_file("x")["pixels"]))'
    )
    with torch.no_grad():
        torch.testing.assert_close(
            found, predictor.logits(predictor.built.encode(images)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("case", ["own", "mean", "tiny", "mixture"])
def test_a_transformer_is_rebuilt_by_its_readme_from_texts(
    case: str, kind: str, tmp_path: Path
) -> None:
    model = f"tiny-{kind}" if case == "tiny" else str(save(tmp_path / "checkpoint", kind))
    shape = {
        "name": "transformer",
        "model": model,
        "tokens": 12,
        "pooling": "mean" if case == "mean" else "own",
    }
    moe = Case({"name": "fedmoe"}, mixture={"experts": 2, "mains": 0})
    data = REVIEWS | ({"reserve": 4} if case == "mixture" else {})
    config = tiny(
        moe if case == "mixture" else Case({"name": "fedavg"}),
        data=data,
        model=shape,
        run={"rounds": 1},
    )
    predictor, folder = exported(config, "", tmp_path)
    code = "\n".join(blocks(folder))
    shutil.rmtree(tmp_path / "checkpoint", ignore_errors=True)
    found = computed(folder, f"{code}\nfound = logits(inputs({TEXTS!r}))", WITH_TRANSFORMERS)
    with torch.no_grad():
        torch.testing.assert_close(
            found, predictor.logits(predictor.built.encode(TEXTS)), rtol=1e-5, atol=1e-5
        )
    assert not any(str(tmp_path) in file.read_text(errors="replace") for file in folder.iterdir())


def test_a_clients_transformer_is_a_folder_that_hugging_face_loads(tmp_path: Path) -> None:
    model = {
        "name": "transformer",
        "model": str(save(tmp_path / "checkpoint", "bert")),
        "tokens": 12,
    }
    case = Case({"name": "fedmoe"}, mixture={"experts": 2})
    config = tiny(
        case, data=REVIEWS | {"reserve": 4}, model=model, run={"rounds": 1, "participation": 1.0}
    )
    predictor, folder = exported(config, "restaurant-0", tmp_path)
    assert predictor.kept == 1
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert tuple(network.config.id2label.values()) == predictor.model.classes
    given = AutoTokenizer.from_pretrained(folder)(
        TEXTS[:2], padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        expected = predictor.logits(predictor.built.encode(TEXTS[:2]))
        found = network(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["prompts", "mixture", "transformer"])
def test_the_same_lines_are_a_graph_in_onnx_for_a_batch_of_any_size(
    case: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    moe = Case(MOE, reserve=8, mixture={"experts": 3})
    texts = {"data": REVIEWS, "model": {"name": "transformer", "tokens": 12}, "run": {"rounds": 1}}
    config, client = {
        "prompts": (
            digits(CASES["nearest"], data={"clients": 3}, run={"rounds": 2}),
            "as-scanned-0",
        ),
        "mixture": (tiny(moe, **CNN), ""),
        "transformer": (tiny(Case({"name": "fedavg"}), **texts), ""),
    }[case]
    once(config, tmp_path / "run")
    predictor = Learned.of(tmp_path / "run", client)
    export(predictor, tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    given: Any = [*TEXTS, "so so"] if predictor.side is None else scans()[0][:5]
    if case == "mixture":
        given = torch.as_tensor(TinyData().load(0).inputs[:5])
    for count in (1, 5):
        x = predictor.built.encode(given[:count])
        with torch.no_grad():
            found = torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])
            torch.testing.assert_close(found, predictor.logits(x), rtol=1e-5, atol=1e-5)
    assert "model.onnx" in (tmp_path / "out" / "README.md").read_text()


def test_without_the_packages_for_onnx_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(tiny(Case({"name": "fedavg"}), **CNN, run={"rounds": 0}), tmp_path / "run")
    monkeypatch.setattr("fedexperts.export.ONNX_NEEDS", ("no_such_package",))
    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--onnx"]
    )
    assert done.exit_code == 1
    assert "pip install 'fedexperts[onnx]'" in " ".join(done.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_lines_that_have_no_form_in_onnx_are_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(tiny(Case({"name": "fedavg"}), **CNN, run={"rounds": 0}), tmp_path / "run")
    monkeypatch.setattr("fedexperts.export.ONNX_NEEDS", ())
    monkeypatch.setattr("fedexperts.export.TO_ONNX", "\nraise SystemExit('no such operator')")
    with pytest.raises(ValueError, match="no form in ONNX \\(no such operator\\); use"):
        export(Learned.of(tmp_path / "run", ""), tmp_path / "out", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("method", ["fedavg", "fedmoe"])
def test_a_network_is_rebuilt_by_its_readme_from_an_image_file_to_the_same_logits(
    method: str, tmp_path: Path
) -> None:
    case = Case({"name": method}, reserve=8, mixture={"experts": 2} if method == "fedmoe" else None)
    predictor, folder = exported(tiny(case, **CNN), "c", tmp_path)
    images = TinyData().load(0).inputs[:1]
    assert isinstance(images, Tensor)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(folder / "image.png")
    found = computed(
        folder, "\n".join(blocks(folder)) + '\nfound = logits(inputs(pixels("image.png")))'
    )
    with torch.no_grad():
        torch.testing.assert_close(
            found, predictor.logits(predictor.built.encode(images)), rtol=1e-5, atol=1e-5
        )


def kinds(folder: Path, scan: Image.Image) -> list[Path]:
    """A picture of 60 x 40 as files of all kinds that one could read differently."""
    grey = np.asarray(scan.convert("L")).astype(np.uint16)
    clear = scan.convert("RGBA")
    clear.putalpha(scan.convert("L").point(lambda level: 255 - level))
    clear.save(folder / "rgba.png")
    scan.quantize(8).save(folder / "palette.png", transparency=2)
    Image.fromarray(grey * 16).save(folder / "bits12.png")
    Image.fromarray((grey * 16).astype(">u2")).save(folder / "bits12.tiff")
    (folder / "bits12.pgm").write_bytes(b"P5 60 40 4095\n" + (grey * 16).astype(">u2").tobytes())
    scan.convert("CMYK").save(folder / "print.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    scan.save(folder / "turned.jpg", exif=exif)
    scan.save(folder / "moving.gif", save_all=True, append_images=[scan.rotate(180)])
    scan.resize((3000, 2000)).save(folder / "large.jpg")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("bits", [0, 12])
def test_pictures_of_all_kinds_get_the_classes_of_predict_without_this_package(
    bits: int, tmp_path: Path
) -> None:
    fill(tmp_path / "data" / "a", dict.fromkeys(DIGITS, 4))
    data = {"name": "image-folders", "path": str(tmp_path / "data"), "side": 32, "bits": bits}
    config = digits(Case({"name": "fedavg"}), data=data, run={"rounds": 0})
    predictor, folder = exported(config, "", tmp_path)
    assert predictor.bits == bits
    scan = Image.fromarray(scans()[0][3].permute(1, 2, 0).numpy())
    same_as_predict(predictor, folder, kinds(made(tmp_path / "pictures"), scan.resize((60, 40))))


@pytest.mark.skipif(not PHOTOS, reason="needs real pictures: FEDEXPERTS_DATA=FOLDER")
def test_photographs_of_all_kinds_get_the_classes_of_predict_from_a_dual_model(
    tmp_path: Path,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    for name in ("dog", "guitar", "house"):
        files = sorted((Path(PHOTOS) / "pacs" / "photo" / name).iterdir())[:6]
        for file in files:
            shutil.copy(file, made(tmp_path / "data" / "a" / name))
    data = {"name": "image-folders", "path": str(tmp_path / "data")}
    model = {"name": "prompted-dual"}
    base = {"name": "photographs", "data": data, "model": model, "method": {"name": "fedavg"}}
    predictor, folder = exported(resolve([(base | {"run": {"rounds": 0}}, "test")]), "", tmp_path)
    photograph = Image.open(files[0]).convert("RGB").resize((60, 40))
    same_as_predict(predictor, folder, kinds(made(tmp_path / "pictures"), photograph))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def same_as_predict(predictor: Learned, folder: Path, files: list[Path]) -> None:
    """The lines of an exported folder's README give the classes that the product gives."""
    said, broken = next(predictions(predictor, [str(file) for file in files]))
    assert not broken
    named = ", ".join(f"pixels({str(file)!r})" for file in files)
    code = f"found = torch.stack([logits(inputs(shown)).softmax(-1)[0] for shown in ({named})])"
    rows = computed(folder, "\n".join([*blocks(folder), code]), WITH_TRANSFORMERS)
    classes = json.loads((folder / "config.json").read_text())["classes"]
    assert [classes[row.argmax()] for row in rows] == [each.label for each in said]
    assert rows.amax(1).tolist() == pytest.approx([each.probability for each in said], abs=1e-5)
    assert len({tuple(row.tolist()) for row in rows}) > 5, "it looks at the picture"


def test_a_large_backbone_is_named_with_its_hash_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedexperts.export.SMALL", 10**6)
    _, folder = exported(
        digits(Case({"name": "fedavg"}), data={"clients": 3}, run={"rounds": 0}), "", tmp_path
    )
    text = (folder / "README.md").read_text()
    weights = Path(models.__file__).parent / "tinyclip" / "model.safetensors"
    assert f"`model.safetensors`: {hashlib.sha256(weights.read_bytes()).hexdigest()}" in text
    assert "hf download tinyclip --local-dir backbone" in text
    assert not (folder / "backbone").exists()


def test_the_card_says_what_the_run_logged_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    config = digits(
        Case({"name": "alone"}), data={"clients": 3}, run={"rounds": 1}, model={"clip": "tinyclip"}
    )
    predictor, folder = exported(config, "inverted-1", tmp_path)
    text = (folder / "README.md").read_text()
    row = next(
        r for r in reversed(predictor.folder.rows("clients.jsonl")) if r["client"] == "inverted-1"
    )
    assert f"{100 * row['test_correct'] / row['test_examples']:.1f} %" in text
    assert "Clients of the run: 3. Rounds: 1 of 1." in text
    held = json.loads((tmp_path / "run" / "split.json").read_text())["clients"]["inverted-1"]
    assert (
        f"{len(held['train'])} train, {len(held['valid'])} valid, {len(held['test'])} test" in text
    )
    assert "no tensor left any client" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("asked", [False, True])
def test_split_and_card_say_counts_by_class_if_they_are_asked_for(
    asked: bool, tmp_path: Path
) -> None:
    config = digits(
        Case({"name": "alone"}), data={"clients": 3}, run={"rounds": 0, "counts": asked}
    )
    predictor, folder = exported(config, "inverted-1", tmp_path)
    counts = config.section("data").load(0).by_class()["inverted-1"]
    named = zip(counts, predictor.model.classes, strict=True)
    line = f"By class: {', '.join(f'{count} {name}' for count, name in named if count)}."
    held = json.loads((tmp_path / "run" / "split.json").read_text())["clients"]["inverted-1"]
    assert held.get("counts") == (counts if asked else None)
    assert (line in (folder / "README.md").read_text()) == asked


def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    once(tiny(CASES["fedmix"], model={"kind": "probe"}, run={"rounds": 0}), tmp_path / "mixture")
    once(tiny(CASES["fedavg-probe"], run={"rounds": 0}), tmp_path / "foreign")
    once(tiny(Case({"name": "fedavg"}), **CNN, run={"rounds": 0}), tmp_path / "cnn")
    (tmp_path / "there").mkdir()
    for run, out, message in [
        ("mixture", "new", "TinyProbe cannot be written down"),
        ("foreign", "new", "TinyProbe cannot be written down"),
        ("cnn", "there", "there is there already; use another folder"),
    ]:
        done = CliRunner().invoke(
            app, ["export", str(tmp_path / run), "--out", str(tmp_path / out)]
        )
        assert done.exit_code == 1
        assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "new").exists()
    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "cnn"), "--out", str(tmp_path / "new")]
    )
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pixels.py",
    ]
