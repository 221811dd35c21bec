"""Every config that ships is run for a round: on its own data made small, or on a copy of a few
rows of its set.

What a copy cannot give is set otherwise, and nothing else: fewer clients, examples, passes and
rounds, and tiny models in place of checkpoints. Some run by default, so that each set, method and
model is there; the others are slow.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from papersets import png

from fedexperts import config as door
from fedexperts import study
from fedexperts.config import Config

SHIPPED = [path for path, _ in door.shipped()]
TINY = {"google-bert/bert-base-uncased": "tiny-bert", "openai-community/gpt2-medium": "tiny-gpt2"}
TINY |= {"openai-community/gpt2": "tiny-gpt2"}
LARGE = ("leaf-cnn", "resnet18")
WIDE = 128  # features of the tiny CLIP
QUICK = {
    *Path("configs").glob("pfedmoap/*/pfedmoap.toml"),
    *Path("configs").glob("pfedmoap/dtd/[!_]*.toml"),
    Path("configs/fedmoe/yelp/10/fedmoe.toml"),
    *Path("configs").glob("fedmoe/sentiment140/10/[!_]*.toml"),
    Path("configs/fedmoe/cifar10/10/fedavg.toml"),
    *Path("configs").glob("fedmoe/*/100/fedavg.toml"),
    *Path("configs").glob("*/rivals/[!_]*.toml"),
    *Path("configs").glob("own/images/[!_]*.toml"),
    *Path("configs").glob("benchmark/pacs/[!_]*.toml"),
    *Path("configs").glob("benchmark/*/pfedmoap.toml"),
}
PHOTOS = os.environ.get("FEDEXPERTS_DATA", "")
BENCHMARKS = [path for path in SHIPPED if path.is_relative_to("configs/benchmark")]


def small(file: Path, config: Config, copies: Path, images: Path) -> dict[str, Any]:
    """The settings that make an experiment tiny."""
    values, run = config.values, config.values["run"]
    data, model, method = values["data"], values["model"], values["method"]
    settings = {"run.rounds": min(1, run["rounds"]), "run.participation": 1.0, "learning.epochs": 1}
    settings |= {"engine.name": "inprocess", "start.epochs": min(1, values["start"]["epochs"])}
    if data["name"] == "hub":
        side = 16 if model["name"] == "resnet18" else min(32, data["side"])
        settings |= {"data.path": str(copies / data["dataset"]), "data.side": side}
        settings |= {
            "data.clients": (
                {"yelp": 5, "domainnet": 6, "office-caltech10": 4}.get(data["dataset"], 2)
            ),
            "data.per_class": 12,
        }
    elif data["name"] == "image-folders":
        settings |= {"data.path": str(images), "data.side": 32}
    elif data["name"] == "simulated-folders":
        in_domains = data["partition"] in ("dirichlet-in-domains", "natural")
        settings |= {"data.path": str(images if in_domains else images / "north")}
        settings |= {"data.side": 32, "data.test": 0.3, "data.valid": 0.2}
        # of two, each could take its own off a secure sum
        settings |= {"data.clients": 4 if values["upload"]["secure"] else 2}
    elif data["name"] == "table":
        settings |= {"data.path": str(images / "reviews.csv")}
    else:
        settings |= {"data.shots": 2} if "shots" in data else {"data.reviews": 200}
        settings |= (
            {"data.clients": 4} if data["name"] == "digits-scanners" and data["clients"] > 4 else {}
        )
    if data.get("reserve"):
        settings |= {"data.reserve": 3}  # of ten classes: one image for each of thirty experts
    if model["name"] == "prompted-dual":
        settings |= {"model.name": "prompted-clip", "model.context": 4}
    elif model.get("classifier"):
        settings |= {"model.classifier": ""}
    elif model["name"] == "sentence-network":
        settings |= {"model.name": "transformer", "model.tokens": 8}
    if "clip" in model:
        drawn = model.get("init") == "random"  # words are as many tokens as the file says
        settings |= {"model.clip": "tinyclip"} | ({"model.context": 4} if drawn else {})
    settings |= {
        f"{part}.model": TINY[m]
        for part in ("model", "gate")
        if (m := values.get(part, {}).get("model")) in TINY
    }
    if model["name"] == "adapted-clip":
        settings |= {"model.layers": 2}
    if "width" in method:
        settings |= {"method.width": min(WIDE, method["width"])}
    settings |= {
        f"method.{key}": 1 for key in ("epochs", "warmup", "gate_epochs") if method.get(key)
    }
    # the rows of ten clients, and those that cut a network, have them themselves
    if model["name"] in LARGE and not {"10", "rivals"} & {*file.parts}:
        settings |= {"model.name": "compact-cnn"}
    return settings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites with images of four classes in folders, and two shops with reviews in a table."""
    home = tmp_path_factory.mktemp("images")
    for site, name, i in (
        (s, n, i)
        for s in ("north", "south")
        for n in ("cat", "cow", "dog", "hen")
        for i in range(6)
    ):
        (home / site / name).mkdir(parents=True, exist_ok=True)
        (home / site / name / f"{i}.png").write_bytes(png(9 * i))
    rows = [f"{s},{n},{n} stars from {s}" for s in ("north", "south") for n in range(5)] * 6
    (home / "reviews.csv").write_text("\n".join(["business,stars,text", *rows]))
    return home


def few_reviews(table: Path, place: Path) -> Path:
    """Eight of each number of stars of two shops."""
    kept, counts = [], Counter[tuple[str, str]]()
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            whose = row["business"], row["stars"]
            counts[whose] += 1
            if row["business"] in ("shop-22", "shop-26") and counts[whose] <= 8:
                kept.append(row)
    with open(place, "w", encoding="utf-8", newline="") as file:
        written = csv.DictWriter(file, kept[0])
        written.writeheader()
        written.writerows(kept)
    return place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards: a mixture of large experts is some hundred megabytes."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, id=str(f), marks=() if f in QUICK else pytest.mark.slow) for f in SHIPPED],
)
def test_a_shipped_config_runs(file: Path, copies: Path, images: Path, place: Path) -> None:
    config = door.load(file)
    done = study.once(config.having(small(file, config, copies, images), "here"), place)
    assert done.round == min(1, config.values["run"]["rounds"])
    assert len(done.clients) >= 2
    assert 0 <= done.mean <= 100


def test_the_quick_ones_are_of_every_set_and_every_method() -> None:
    published = [door.load(file) for file in SHIPPED if file.parts[1] in ("pfedmoap", "fedmoe")]
    quick = [door.load(file) for file in SHIPPED if file in QUICK]
    for section, key in (("data", "dataset"), ("method", "name"), ("model", "name")):
        assert {c.values[section][key] for c in published} <= {
            c.values[section].get(key) for c in quick
        }


@pytest.mark.skipif(not PHOTOS, reason="needs real pictures: FEDEXPERTS_DATA=FOLDER")
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(f, id=str(f), marks=() if f.stem == "pfedmoap" else pytest.mark.slow)
        for f in BENCHMARKS
    ],
)
def test_a_benchmark_runs_on_a_few_of_the_real_pictures_or_texts(
    file: Path, place: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    config = door.load(file)
    rounds = min(1, config.values["run"]["rounds"])
    few: dict[str, Any] = {"data.per_class": 24, "data.clients": 4, "data.least": 1}
    if config.values["data"]["name"] == "table":
        table = Path(PHOTOS) / "yelp" / "reviews.csv"
        few = {"data.path": str(few_reviews(table, tmp_path / "few.csv"))}
    short = {"run.rounds": rounds, "learning.epochs": 1}
    if "precision" in config.values["model"]:
        short["model.precision"] = "fp32"
    if config.values["data"]["reserve"]:
        short |= {"data.reserve": 2, "start.epochs": 1}
    done = study.once(config.having(few | short, "here"), place)
    assert done.round == rounds
    assert done.mean > 0.0
