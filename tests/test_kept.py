"""A split that was written down is kept: whatever comes to the data or goes, nothing else changes
its part.
"""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from PIL import Image
from test_table import SHOPS
from test_table import csv as table
from typer.testing import CliRunner

from fedexperts import config as door
from fedexperts import report, study, units
from fedexperts.cli import app
from fedexperts.client import Client
from fedexperts.data.federation import Federation
from fedexperts.data.folders import ImageFolders
from fedexperts.data.manifest import Manifest, sealed
from fedexperts.data.manifest import load as manifest
from fedexperts.data.table import Table
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.site import _here
from fedexperts.deploy.sitefolder import SiteFolder
from fedexperts.metrics import changes
from fedexperts.rundir import RunDir

CLASSES = ("dog", "horse", "house")
MANY = 20  # pictures of a class: 60 in all, of which 18 are tested on


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One site's pictures: photographs, if FEDEXPERTS_DATA says where some are, or else plain
    colours.
    """
    real = Path(os.environ.get("FEDEXPERTS_DATA", "nowhere")) / "pacs" / "photo"
    for place, name in enumerate(CLASSES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        photographs = sorted((real / name).glob("*.jpg"))[:MANY] if real.exists() else []
        for number in range(MANY):
            if photographs:
                shutil.copy(photographs[number], folder / f"{number:02}.jpg")
            else:
                picture(folder / f"{number:02}.jpg", 50 * place + number)
    return tmp_path / "images"


def picture(path: Path, number: int) -> None:
    """Other numbers, other pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (4 * number % 256, 7, number // 64)).save(path, "PNG")


def source(images: Path, **options: object) -> ImageFolders:
    return ImageFolders(
        path=str(images), **({"side": 8, "site": "a", "classes": CLASSES} | options)
    )  # type: ignore[arg-type]


def written(federation: Federation, path: Path) -> Manifest:
    """The split as it is read from a file."""
    path.write_text(json.dumps(sealed(federation.manifest())))
    return manifest(path)


def held(federation: Federation) -> dict[str, str]:
    """File -> client and part."""
    files = list(federation.files)
    found = {
        files[place]: f"{client} {part}" for place, (client, part) in federation.holders().items()
    }
    return found | {files[place]: "a spare" for place in federation.spare.get("a", [])}


@pytest.mark.parametrize("options", [{}, {"shots": 3}, {"reserve": 2}, {"valid": 0.0, "test": 0.5}])
def test_nothing_moves_when_a_picture_goes_comes_is_copied_or_gets_another_name(
    images: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    asked = source(images, **options)
    before = asked.load(0)
    then, split = held(before), written(before, tmp_path / "split.json")
    assert held(asked.again(split, 0)) == then
    assert asked.again(split, 0).manifest() == before.manifest()
    (images / "dog" / "00.jpg").unlink()
    (images / "horse" / "03.jpg").rename(images / "horse" / "zebra.jpg")
    shutil.copy(images / "house" / "04.jpg", images / "house" / "copy.jpg")
    for number in range(12):
        picture(images / "house" / f"new-{number:02}.png", 1000 + number)
    now = held(asked.again(split, 0))
    assert {file: now[file] for file in then if file in now} == {
        file: then[file] for file in then if file in now
    }
    assert then.keys() - now.keys() == {"dog/00.jpg", "horse/03.jpg"}
    assert now["horse/zebra.jpg"] == then["horse/03.jpg"]
    assert now["house/copy.jpg"] == then["house/04.jpg"]
    parts = {now[f"house/new-{number:02}.png"] for number in range(12)}
    assert parts >= {"a test", "a spare" if asked.shots else "a train"}
    assert parts <= {"a train", "a valid", "a test", "a spare"}


def test_a_picture_less_moves_others_where_no_split_is_kept(images: Path) -> None:
    """What the rest of this file is for."""
    tested = {file for file, seat in held(source(images).load(0)).items() if seat == "a test"}
    (images / "dog" / "00.jpg").unlink()
    now = held(source(images).load(0))
    assert len(tested) == 18
    assert sum(now.get(file) == "a train" for file in tested) > 5


def test_what_changed_is_said_by_name_and_counted(images: Path, tmp_path: Path) -> None:
    split = written(source(images).load(0), tmp_path / "split.json")
    (images / "dog" / "07.jpg").unlink()
    (images / "dog" / "08.jpg").rename(images / "horse" / "was-a-dog.jpg")
    picture(images / "house" / "new.png", 1000)
    after = source(images).again(split, 0)
    part = held(after)["house/new.png"].removeprefix("a ")
    assert (
        str(after.changed["a"])
        == f"1 new, 1 to {part} (house/new.png); 1 gone (dog/07.jpg); 1 of another class than"
        " before (horse/was-a-dog.jpg)"
    )
    assert after.changed["a"].counts() == {"data_new": 1, "data_gone": 1, "data_relabelled": 1}
    label = after.labels[list(after.files).index("horse/was-a-dog.jpg")]
    assert after.classes[label] == "horse"


def test_a_new_picture_has_the_same_part_whatever_else_is_new(images: Path, tmp_path: Path) -> None:
    split = written(source(images).load(0), tmp_path / "split.json")
    for number in range(6):
        picture(images / "dog" / f"new-{number}.png", 1000 + number)
    whole = held(source(images).again(split, 0))
    for number in (0, 2, 5):
        (images / "dog" / f"new-{number}.png").unlink()
    fewer = held(source(images).again(split, 0))
    assert fewer == {file: seat for file, seat in whole.items() if file in fewer}


def test_what_comes_back_is_where_it_was(images: Path, tmp_path: Path) -> None:
    before = source(images).load(0)
    split = written(before, tmp_path / "split.json")
    (images / "dog").rename(tmp_path / "aside")
    (images / "dog").mkdir()
    assert source(images).again(split, 0).changed["a"].counts() == {"data_gone": MANY}
    (images / "dog").rmdir()
    (tmp_path / "aside").rename(images / "dog")
    assert source(images).again(split, 0).manifest() == before.manifest()


def test_equal_pictures_in_two_classes_keep_their_class_and_part(
    images: Path, tmp_path: Path
) -> None:
    shutil.copy(images / "dog" / "05.jpg", images / "house" / "zz.jpg")
    before = source(images).load(0)
    split, then = written(before, tmp_path / "split.json"), held(before)
    (images / "dog" / "05.jpg").rename(images / "dog" / "other.jpg")
    (images / "house" / "zz.jpg").rename(images / "house" / "another.jpg")
    after = source(images).again(split, 0)
    assert not after.changed
    assert held(after)["dog/other.jpg"] == then["dog/05.jpg"]
    assert held(after)["house/another.jpg"] == then["house/zz.jpg"]
    (images / "dog" / "other.jpg").unlink()
    last = source(images).again(split, 0)
    assert str(last.changed["a"]) == "1 gone (dog/05.jpg)"
    assert held(last)["house/another.jpg"] == then["house/zz.jpg"]


def test_new_pictures_take_the_places_that_shots_leave_and_no_more(
    images: Path, tmp_path: Path
) -> None:
    asked = source(images, shots=3)
    before = asked.load(0)
    split = written(before, tmp_path / "split.json")
    gone = next(
        file for file, seat in held(before).items() if seat == "a train" and file.startswith("dog")
    )
    (images / gone).unlink()
    for number in range(8):
        picture(images / "dog" / f"new-{number}.png", 1000 + number)
    after = asked.again(split, 0)
    assert before.counts()["a"]["train"] == after.counts()["a"]["train"] == [3, 3, 3]


def test_parts_that_are_given_are_those_of_what_is_new(tmp_path: Path) -> None:
    for place, part in enumerate(("train", "test")):
        for number in range(10):
            picture(tmp_path / "images" / part / "dog" / f"{number}.png", 100 * place + number)
    asked = source(tmp_path / "images", classes=("dog",))
    split = written(asked.load(0), tmp_path / "split.json")
    for number in range(8):
        picture(tmp_path / "images" / "test" / "dog" / f"new-{number}.png", 1000 + number)
        picture(tmp_path / "images" / "train" / "dog" / f"new-{number}.png", 2000 + number)
    after = held(asked.again(split, 0))
    assert {after[f"test/dog/new-{number}.png"] for number in range(8)} == {"a test"}
    assert {after[f"train/dog/new-{number}.png"] for number in range(8)} == {"a train", "a valid"}


def test_rows_of_a_table_are_known_by_what_they_say(tmp_path: Path) -> None:
    file = table(tmp_path / "shops.csv", [("text", "label", "site"), *SHOPS])
    before = Table(path=str(file)).load(0)
    split = written(before, tmp_path / "split.json")
    then = {before.inputs[place]: seat for place, seat in before.holders().items()}
    table(file, [("text", "label", "site"), ("quite new", "good", "b"), *SHOPS[1:]])
    after = Table(path=str(file)).again(split, 0)
    now = {after.inputs[place]: seat for place, seat in after.holders().items()}
    assert {text: seat for text, seat in now.items() if text in then} == {
        text: seat for text, seat in then.items() if text != SHOPS[0][0]
    }
    assert {client: change.counts() for client, change in after.changed.items()} == {
        SHOPS[0][2]: {"data_gone": 1},
        "b": {"data_new": 1},
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: picture(images / "eel" / "0.png", 7), "'eel': not among data.classes"),
        (lambda images: [file.unlink() for file in images.rglob("*.jpg")], "no image in 'a'"),
    ],
)
def test_what_a_split_cannot_be_kept_for_is_said(
    images: Path, tmp_path: Path, change, says: str
) -> None:  # type: ignore[no-untyped-def]
    split = written(source(images).load(0), tmp_path / "split.json")
    change(images)
    with pytest.raises(ValueError, match=says):
        source(images).again(split, 0)


def test_a_site_whose_every_test_picture_is_gone_is_told(images: Path, tmp_path: Path) -> None:
    before = source(images).load(0)
    split = written(before, tmp_path / "split.json")
    for file, seat in held(before).items():
        if seat == "a test":
            (images / file).unlink()
    with pytest.raises(
        ValueError,
        match="client 'a' has nothing left to test on of its split: put",
    ):
        source(images).again(split, 0)


# ---- a site


EXPERIMENT = {
    "name": "own",
    "data": {"name": "image-folders", "side": 32, "classes": list(CLASSES)},
    "model": {"name": "linear-probe"},
    "method": {"name": "fedavg"},
}


@pytest.fixture
def site(images: Path, tmp_path: Path) -> SiteFolder:
    found = SiteFolder.at(Deployment.create(tmp_path / "dep", "localhost", 9443, ["a"]).path, "a")
    found.point_at(images)
    return found


def answers(
    site: SiteFolder, about: str = "one", **sections: dict[str, object]
) -> tuple[Client, list[str]]:
    """The site's client in a run, as a process that just began makes it; what was said."""
    said: list[str] = []
    config = door.resolve([(EXPERIMENT, "test"), (sections, "test")])  # type: ignore[list-item]
    client = _here(site, {"config": config.toml(), "run": about}, "a", said.append)[1]
    leaves = ("The run ", "  ")  # what leaves the site is said, too
    return client, [line for line in said if not line.startswith(leaves)]


def test_a_site_keeps_its_split_over_restarts_and_says_what_changed(
    site: SiteFolder, images: Path
) -> None:
    first, said = answers(site)
    assert not said
    (kept,) = (site.path / "split").glob("*.json")
    before = kept.read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    trained = held(
        door.split_as(door.resolve([(EXPERIMENT | {"data": here(images)}, "test")]), kept)[0]
    )
    gone = next(file for file, seat in trained.items() if seat == "a train")
    (images / gone).unlink()
    again, said = answers(site)
    assert again.test.x.equal(first.test.x)
    assert len(again.train) == len(first.train) - 1
    assert again.changed == {"data_gone": 1}
    assert said == [f"The data changed since they were split, in {kept.parent}. a: 1 gone ({gone})"]
    log = kept.parent / "changes.log"
    assert said[0] in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert kept.read_bytes() == before


def here(images: Path) -> dict[str, object]:
    return {
        "name": "image-folders",
        "side": 32,
        "classes": list(CLASSES),
        "site": "a",
        "path": str(images),
    }


def test_a_later_run_with_the_same_settings_has_the_same_split_and_another_seed_its_own(
    site: SiteFolder, images: Path
) -> None:
    first, _ = answers(site)
    (images / "dog" / "00.jpg").unlink()
    second, _ = answers(site, "two", run={"rounds": 3})
    assert second.test.x.equal(first.test.x)
    other, said = answers(site, "three", run={"seed": 1})
    assert not said
    assert not (other.test.x.shape == first.test.x.shape and other.test.x.equal(first.test.x))
    assert len(list((site.path / "split").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace(b'"test":[', b'"test":[1', 1)]
)
def test_a_damaged_split_of_a_site_names_itself(site: SiteFolder, damage) -> None:  # type: ignore[no-untyped-def]
    answers(site)
    (kept,) = (site.path / "split").glob("*.json")
    kept.write_bytes(damage(kept.read_bytes()))
    with pytest.raises(ValueError, match=str(kept)):
        answers(site)


# ---- one process


def asked(images: Path, *settings: str) -> list[door.Config]:
    base = EXPERIMENT | {"data": here(images), "run": {"rounds": 1}, "learning": {"epochs": 1}}
    return [
        door.resolve([(base, "test"), ({"name": name, "learning": {"rate": rate}}, "test")])
        for name, rate in (("one", 0.1), ("two", 0.2))
    ]


@pytest.fixture
def begun(images: Path, tmp_path: Path) -> Path:
    """A study of two experiments, which was stopped after the first run's start."""

    def power_cut(_: units.Beat) -> None:
        raise KeyboardInterrupt

    place = tmp_path / "runs"
    study.create(place, asked(images), [0, 1])
    with pytest.raises(KeyboardInterrupt):
        study.advance(place, tell=power_cut)
    assert RunDir(place / "one" / "seed-0").done() == 0
    return place


def test_a_study_whose_data_changed_stops_and_says_what(begun: Path, images: Path) -> None:
    (images / "dog" / "00.jpg").unlink()
    done = CliRunner().invoke(app, ["resume", str(begun), "--jobs", "1"])
    assert done.exit_code == 1
    words = " ".join(done.output.split())
    assert "a: 1 gone (dog/00.jpg)" in words
    assert "--changed-data" in words


def test_a_study_that_is_told_to_go_on_keeps_the_split_and_says_so(
    begun: Path, images: Path
) -> None:
    (images / "dog" / "00.jpg").unlink()
    picture(images / "dog" / "new.png", 1000)
    study.advance(begun, changed_data=True)
    for run in ("one/seed-0", "two/seed-0"):
        rows = RunDir(begun / run).rows("clients.jsonl")
        assert changes(rows)[-1][1:] == ("a", "1 new, 1 gone")
    assert changes(RunDir(begun / "one" / "seed-0").rows("clients.jsonl"))[0][0] == 1
    same = [parts(begun / run) for run in ("one/seed-0", "two/seed-0", "one/seed-1")]
    assert same[0] - same[1] <= {("dog/00.jpg", part) for part in ("train", "valid", "test")}
    assert len(same[0] & same[2]) < len(same[0])
    report.write_html(report.collect([begun]), begun / "report.html")
    assert "Data that changed" in (begun / "report.html").read_text()


def parts(run: Path) -> set[tuple[str, str]]:
    split = manifest(run / "split.json")
    files = list(split.files)
    own = split.clients["a"]
    return {
        (files[place], part) for part in ("train", "valid", "test") for place in getattr(own, part)
    }


def test_a_run_that_has_not_begun_is_held_to_the_data_of_the_others(
    begun: Path, images: Path
) -> None:
    study.advance(begun)
    for name in ("one", "two"):
        shutil.rmtree(begun / name / "seed-1")
    (images / "dog" / "00.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 gone \(dog/00.jpg\)"):
        study.advance(begun)


def test_data_that_did_not_change_are_no_news(begun: Path) -> None:
    study.advance(begun)
    assert not changes(RunDir(begun / "one" / "seed-0").rows("clients.jsonl"))


def test_another_source_is_compared_as_a_whole(tmp_path: Path) -> None:
    config = door.load("configs/demo/linear-probe.toml", ["data.clients=4", "run.rounds=1"])
    study.once(config, tmp_path / "run")
    file = tmp_path / "run" / "split.json"
    plain = json.loads(file.read_text())
    del plain["check"]
    file.write_text(json.dumps(sealed(plain | {"labels": "0"})))
    with pytest.raises(
        ValueError, match="the data are not those of .*split.json. its labels have another hash"
    ):
        units.work(units.Unit(config, tmp_path / "run"))


def test_a_sites_split_is_found_again_by_the_same_mark_as_ever() -> None:
    # If this changes, deployed sites draw their splits anew: say so in the changelog.
    assert ImageFolders(path="here", side=64, bits=12).mark(0) == "999c0a6700bea42e"
