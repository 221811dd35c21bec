"""Folders of one's own images become a federation, or the first thing that does not fit is said
with what to do.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedexperts.config import Config, ConfigError
from fedexperts.config import load as load_config
from fedexperts.config.building import loaded
from fedexperts.data.examples import words
from fedexperts.data.federation import Federation
from fedexperts.data.folders import ImageFolders, SimulatedFolders
from fedexperts.data.manifest import load as manifest
from fedexperts.data.own import SIDE

SITES = {"north": {"cat": 10, "guide_dog": 10}, "south": {"cat": 6, "guide_dog": 14}}


def picture(path: Path, number: int = 0) -> None:
    """A small image; other numbers, other images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (number % 256, 7, number // 256)).save(path)


def fill(folder: Path, counts: Mapping[str, int], first: int = 0) -> Path:
    """Folders of classes, with so many images each."""
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(folder / name / f"{i:02}.png", first + 100 * place + i)
    return folder


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """Two sites, two classes."""
    for place, (site, counts) in enumerate(SITES.items()):
        fill(tmp_path / "sites" / site, counts, 1000 * place)
    return tmp_path / "sites"


def load(folder: Path, seed: int = 0, **options: object) -> Federation:
    return ImageFolders(path=str(folder), **({"side": 8} | options)).load(seed)  # type: ignore[arg-type]


def names(federation: Federation, client: str, part: str) -> set[str]:
    files = list(federation.files)
    return {files[i] for i in getattr(federation.parts[client], part).tolist()}


# Layouts


def test_sites_are_clients_folders_are_classes_in_words_and_every_image_keeps_its_label(
    sites: Path,
) -> None:
    made = load(sites)
    assert made.classes == ("cat", "guide dog")
    assert list(made.parts) == ["north", "south"]
    assert {client: sum(map(sum, own.values())) for client, own in made.counts().items()} == {
        "north": 20,
        "south": 20,
    }
    for place, (file, label) in enumerate(zip(made.files, made.labels.tolist(), strict=True)):
        client, folder, _ = file.split("/")
        assert words(folder) == made.classes[label]
        assert made.holders()[place][0] == client
        assert isinstance(made.inputs, torch.Tensor)
        red, _, blue = Image.open(sites / file).getpixel((0, 0))  # type: ignore[misc]
        assert made.inputs[place, :, 4, 4].tolist() == [red, 7, blue]


def test_parts_are_drawn_with_the_classes_of_the_client_from_the_seed(sites: Path) -> None:
    counts = load(sites).counts()
    assert counts["north"] == {"train": [5, 5], "valid": [2, 2], "test": [3, 3]}
    assert [sum(own) for own in counts["south"].values()] == [10, 4, 6]
    assert load(sites).manifest() == load(sites).manifest() != load(sites, seed=1).manifest()


def test_one_sites_own_folder_is_one_client_whose_classes_are_those_of_the_federation(
    sites: Path,
) -> None:
    (sites / "north" / "eel").mkdir()  # this site has none
    made = load(sites / "north", site="clinic-9", classes=("guide_dog", "eel", "cat"))
    assert list(made.parts) == ["clinic-9"]
    assert made.classes == ("guide dog", "eel", "cat")
    assert made.by_class() == {"clinic-9": [10, 0, 10]}
    assert all(
        file.startswith(made.classes[made.labels[i]].split()[0])
        for i, file in enumerate(made.files)
    )


def test_a_class_may_be_known_at_one_site_alone(sites: Path) -> None:
    fill(sites / "south", {"auk": 5}, 5000)
    assert load(sites).by_class() == {"north": [0, 10, 10], "south": [5, 6, 14]}


def test_parts_that_are_given_stay_and_those_that_are_not_are_drawn_from_train(
    tmp_path: Path,
) -> None:
    for place, (part, count) in enumerate({"train": 10, "val": 3, "test": 4}.items()):
        fill(tmp_path / "all" / part, {"cat": count, "dog": count}, 1000 * place)
        if part != "val":
            fill(tmp_path / "some" / part, {"cat": count, "dog": count}, 5000 + 1000 * place)
    fill(tmp_path / "none", {"cat": 10, "dog": 10}, 9000)
    made = load(tmp_path)
    sizes = {
        client: [sum(own) for own in parts.values()] for client, parts in made.counts().items()
    }
    assert sizes == {"all": [20, 6, 8], "some": [16, 4, 8], "none": [10, 4, 6]}
    for part, folder in {"train": "train", "valid": "val", "test": "test"}.items():
        assert {file.split("/")[1] for file in names(made, "all", part)} == {folder}
    assert {file.split("/")[1] for file in names(made, "some", "valid")} == {"train"}


def test_a_class_named_like_a_part_is_a_class_among_others(tmp_path: Path) -> None:
    fill(tmp_path / "toys", {"train": 5, "plane": 5})
    assert load(tmp_path).classes == ("plane", "train")


def test_shots_bound_what_is_trained_on_and_the_reserve_is_the_servers(sites: Path) -> None:
    made = load(sites, shots=2, reserve=3)
    assert all(own["train"] == [2, 2] for own in made.counts().values())
    assert made.reserve_counts() == [3, 3]
    assert made.by_class()[""] == [3, 3]
    skewed = load(sites, reserve=3, reserve_alpha=0.05, seed=3)
    assert sum(skewed.reserve_counts()) == 6
    assert max(skewed.reserve_counts()) > 3


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {"shots": 1}),
        ({}, {"valid": 0.4}),
        ({}, {"test": 0.1}),
        ({}, {"reserve": 1}),
        ({"reserve": 3}, {"reserve_alpha": 0.05}),
        ({}, {"side": 9}),
        ({}, {"classes": ("guide dog", "cat")}),
    ],
)
def test_every_option_matters(
    sites: Path, options: dict[str, object], changed: dict[str, object]
) -> None:
    assert load(sites, **options).manifest() != load(sites, **(options | changed)).manifest()


def test_grey_of_sixteen_bits_is_read_as_the_data_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a" / "scan").mkdir(parents=True)
    ramp = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    for i in range(4):
        Image.fromarray(ramp + i).save(tmp_path / "a" / "scan" / f"{i}.png")
    brightest = {}
    for bits in (0, 12, 16):
        pixels = load(tmp_path, bits=bits).inputs
        assert isinstance(pixels, torch.Tensor)
        brightest[bits] = int(pixels.max())
    assert brightest == {0: 255, 12: 251, 16: 16}


def test_the_reserve_is_never_of_what_a_site_gives_to_test_on(tmp_path: Path) -> None:
    fill(tmp_path / "site" / "train", {"cat": 6, "dog": 6})
    fill(tmp_path / "site" / "test", {"cat": 9, "dog": 9}, 1000)
    made = load(tmp_path, reserve=2)
    files = list(made.files)
    assert all("train" in files[i] for i in made.reserve.tolist())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("golden_retriever", "golden retriever"),
        ("T-shirt__large ", "T-shirt large"),
        ("polka-dotted", "polka-dotted"),
        ("cafe\u0301", "caf\u00e9"),
        ("犬", "犬"),
        ("_", ""),
    ],
)
def test_a_class_is_words(name: str, said: str) -> None:
    assert words(name) == said


def test_names_are_in_any_script(tmp_path: Path) -> None:
    fill(tmp_path / "Kraków", {"собака": 4, "قط": 4})
    picture(tmp_path / "Kraków" / "собака" / "写真 №1\u200c.PNG", 77)
    made = load(tmp_path)
    assert made.by_class() == {"Kraków": [5, 4]}
    assert json.loads(json.dumps(made.manifest()))["files"] == made.files


def test_two_spellings_of_a_letter_are_one_class_and_one_client(tmp_path: Path) -> None:
    fill(tmp_path / "Zu\u0308rich", {"cafe\u0301": 4})  # as some disks keep it
    fill(tmp_path / "B\u00e2le", {"caf\u00e9": 4}, 50)
    made = load(tmp_path)
    assert made.classes == ("caf\u00e9",)
    assert list(made.parts) == ["B\u00e2le", "Z\u00fcrich"]


# What lies beside images


def test_hidden_files_are_passed_over_and_other_files_are_named_in_a_note(sites: Path) -> None:
    assert load(sites).notes == ()
    for junk in (".DS_Store", "north/.hidden.png", "south/cat/Thumbs.db", ".git/x.png"):
        (sites / junk).parent.mkdir(exist_ok=True)
        (sites / junk).write_text("junk")
    assert load(sites).notes == ()
    (sites / "south" / "cat" / "phone.heic").write_text("?")
    (sites / "README.txt").write_text("what these are")
    made = load(sites)
    assert made.notes == ("Passed over, as no images: README.txt; south/cat/phone.heic.",)
    assert len(made.files) == 40


def test_equal_images_at_two_clients_or_in_two_parts_are_found(sites: Path) -> None:
    assert load(sites).twins() == []
    (sites / "south" / "cat" / "copy.png").write_bytes(
        (sites / "north" / "cat" / "03.png").read_bytes()
    )
    made = load(sites)
    files = list(made.files)
    assert [(files[one], files[other]) for one, other in made.twins()] == [
        ("north/cat/03.png", "south/cat/copy.png")
    ]
    for i in range(4):
        (sites / "north" / "cat" / f"copy-{i}.png").write_bytes(
            (sites / "north" / "cat" / "03.png").read_bytes()
        )
    made = load(sites)
    assert all(made.holders()[one] != made.holders()[other] for one, other in made.twins())
    assert len(made.twins()) > 1


# What does not fit


def test_a_folder_that_is_not_there_or_empty_is_said_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="no such folder.* --set data.path=FOLDER, expected FOLDER/client/class/image",
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no folder; expected"):
        load(tmp_path)


def test_one_sites_folder_is_not_taken_for_a_folder_of_sites_nor_the_other_way_round(
    sites: Path,
) -> None:
    with pytest.raises(
        ValueError,
        match="north/cat holds images of no class .00.png; .*data.site=NAME if it is one",
    ):
        load(sites / "north")
    with pytest.raises(ValueError, match="north/cat: a folder where images should be"):
        load(sites, site="north", classes=("north", "south"))


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "val", "test"),
        ("Train", "validation"),
        ("train",),
        ("training", "testing", "more"),
    ],
)
def test_parts_are_not_taken_for_sites(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for place, part in enumerate(parts):
        fill(tmp_path / part, {"cat": 6, "dog": 6}, 100 * place)
    with pytest.raises(
        ValueError, match="parts of one client's own data and no clients: use data.site ="
    ):
        load(tmp_path)


@pytest.mark.parametrize("names", [("HER2", "HER2+", "HER2-"), ("-1", "1"), ("A", "A-")])
def test_a_sign_in_the_name_of_a_class_stays(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path / "north", dict.fromkeys(names, 6))
    assert load(tmp_path).classes == tuple(sorted(names))


def test_folders_that_become_one_class_are_noted(tmp_path: Path) -> None:
    fill(tmp_path / "north", {"HER2": 6, "HER2_": 6, "low grade": 6})
    fill(tmp_path / "south", {"low_grade": 6}, 1000)
    assert load(tmp_path).notes == (
        "One class, 'HER2', of several names: 'HER2'; 'HER2_'.",
        "One class, 'low grade', of several names: 'low grade'; 'low_grade'.",
    )


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "north", {"_": 6, "cat": 6})
    with pytest.raises(ValueError, match="a name without a letter or a sign"):
        load(tmp_path)


def test_a_pipe_among_the_images_is_named_and_not_waited_for(sites: Path) -> None:
    os.mkfifo(sites / "north" / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"north/cat/pipe.png \(it is no file"):
        load(sites)


def test_an_image_outside_of_every_class_is_named(sites: Path) -> None:
    picture(sites / "south" / "stray.png")
    with pytest.raises(ValueError, match=r"south holds images of no class \(stray.png\)"):
        load(sites)


def test_a_site_without_images_is_named(sites: Path) -> None:
    (sites / "west" / "cat").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="sites has no image in 'west'; .* Add some, or remove what is empty"
    ):
        load(sites)


def test_where_no_file_is_an_image_of_a_kind_that_is_read_the_kinds_are_said(
    tmp_path: Path,
) -> None:
    (tmp_path / "a" / "cat").mkdir(parents=True)
    (tmp_path / "a" / "cat" / "IMG_0001.HEIC").write_bytes(b"from a telephone")
    with pytest.raises(ValueError, match=r"as .*\.jpg, .*; passed over were a/cat/IMG_0001.HEIC"):
        load(tmp_path)


def test_a_class_without_an_example_anywhere_is_refused_unless_it_is_listed(sites: Path) -> None:
    (sites / "south" / "eel").mkdir()
    with pytest.raises(
        ValueError,
        match="class 'eel' has no example anywhere: remove it, or list",
    ):
        load(sites)
    assert load(sites, classes=("cat", "eel", "guide dog")).classes == ("cat", "eel", "guide dog")


def test_classes_other_than_those_listed_and_listed_ones_without_a_folder_are_named(
    sites: Path,
) -> None:
    with pytest.raises(
        ValueError, match="'guide dog': not among data.classes, .* Did you mean 'guide dogs'"
    ):
        load(sites, classes=("cat", "guide dogs"))
    with pytest.raises(ValueError, match="'eel': among data.classes, but there is no such folder"):
        load(sites, classes=("cat", "guide dog", "eel"))


def test_classes_that_differ_in_capitals_alone_are_refused_unless_they_are_listed(
    sites: Path,
) -> None:
    fill(sites / "south", {"Cat": 3}, 5000)
    with pytest.raises(ValueError, match="classes 'Cat'; 'cat' differ in capitals alone"):
        load(sites)
    assert load(sites, classes=("Cat", "cat", "guide dog")).by_class()["south"] == [3, 6, 14]


def test_a_site_of_several_must_list_the_classes_and_is_told_those_that_it_has(sites: Path) -> None:
    with pytest.raises(ValueError, match=r'for example data.classes = \["cat", "guide dog"\]'):
        load(sites / "north", site="north")


def test_a_table_in_place_of_a_folder_says_how_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "pictures.csv").write_text("path,label,site\n")
    with pytest.raises(ValueError, match="is a file; .* --set data.name=table"):
        load(tmp_path / "pictures.csv")


def test_sites_whose_names_cannot_name_folders_are_told_better_ones_at_once(
    sites: Path,
) -> None:
    fill(sites / "St. Gallen", {"cat": 5}, 3000)
    fill(sites / "Old Town", {"cat": 5}, 3000)
    with pytest.raises(
        ValueError,
        match="'Old Town' cannot .* Rename 'Old Town' to 'Old-Town'; 'St. Gallen' to 'St-Gallen'$",
    ):
        load(sites)


@pytest.mark.parametrize("folders", [["train", "test", "cat"], ["valid", "test"], ["test"]])
def test_parts_among_classes_or_without_train_are_refused(
    tmp_path: Path, folders: list[str]
) -> None:
    for folder in folders:
        fill(tmp_path / "site" / folder, {"cat": 3})
    with pytest.raises(
        ValueError,
        match=(
            "site holds .*test.*: expected train, valid and test, or train alone, or classes alone"
        ),
    ):
        load(tmp_path)


def test_too_few_images_are_said_with_the_client_and_not_by_class(sites: Path) -> None:
    fill(sites / "tiny", {"cat": 2, "guide_dog": 0}, 3000)
    with pytest.raises(
        ValueError,
        match=r"client 'tiny' has too few examples .* there are 2\. Add more",
    ):
        load(sites)
    fill(sites / "tiny", {"guide_dog": 1}, 3100)
    assert [sum(own) for own in load(sites).counts()["tiny"].values()] == [1, 1, 1]


def test_a_reserve_of_more_than_there_is_names_the_class(sites: Path) -> None:
    with pytest.raises(
        ValueError, match="data.reserve = 17: class 'cat' has 16 examples to train on"
    ):
        load(sites, reserve=17)


def test_links_may_lead_within_the_folder_but_not_out_of_it(sites: Path, tmp_path: Path) -> None:
    picture(tmp_path / "secret.png", 9)
    (sites / "north" / "cat" / "in.png").symlink_to(sites / "north" / "cat" / "01.png")
    assert load(sites).by_class()["north"] == [11, 10]
    link = sites / "north" / "cat" / "out.png"
    link.symlink_to(tmp_path / "secret.png")
    with pytest.raises(
        ValueError, match="cat/out.png leads out of .*sites, to .*secret.png: use a copy"
    ):
        load(sites)
    link.unlink()
    (sites / "west").symlink_to(fill(tmp_path / "elsewhere", {"cat": 5}))
    with pytest.raises(ValueError, match="sites/west leads out of"):
        load(sites)


def test_a_broken_image_is_named_below_the_folder(sites: Path) -> None:
    (sites / "south" / "cat" / "05.png").write_text("?")
    with pytest.raises(
        ValueError, match=r"1 of 40 images in .* cannot be read: south/cat/05.png \(not an image"
    ):
        load(sites)


def test_a_file_name_that_is_no_text_is_refused(sites: Path) -> None:
    (sites / "north" / "cat" / "a\udcff.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'a\\udcff.png' in .*: a name that cannot be written"):
        load(sites)


# A split that is taken up again


def test_a_split_is_taken_up_by_another_seed_and_another_size_of_pixels(
    sites: Path, tmp_path: Path
) -> None:
    made, file = load(sites, seed=1, reserve=2), tmp_path / "split.json"
    file.write_text(json.dumps(made.manifest()))
    again = load(sites, seed=2, side=9, split=str(file))
    for key in ("clients", "reserve", "files", "labels"):
        assert again.manifest()[key] == made.manifest()[key]
    assert load(sites, seed=2).manifest()["clients"] != made.manifest()["clients"]


def test_a_split_of_other_examples_is_refused_with_the_first_difference(
    sites: Path, tmp_path: Path
) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(load(sites).manifest()))
    again = {"split": str(file)}
    with pytest.raises(
        ValueError, match="its classes are cat, guide dog, and here they are guide dog, cat"
    ):
        load(sites, classes=("guide dog", "cat"), **again)
    picture(sites / "north" / "cat" / "03.png", 999)
    with pytest.raises(ValueError, match="north/cat/03.png has changed since"):
        load(sites, **again)
    (sites / "north" / "cat" / "03.png").unlink()
    with pytest.raises(
        ValueError, match="its file number 3 is north/cat/03.png, and here it is north/cat/04.png"
    ):
        load(sites, **again)
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"labels": "0"}))
    picture(sites / "north" / "cat" / "03.png", 3)
    with pytest.raises(ValueError, match="its labels have another hash"):
        load(sites, **again)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a split that a run wrote: its content: Invalid JSON"),
        ("{}", "is not a split that a run wrote: classes: Field required"),
        (
            '{"classes": [], "inputs": "", "labels": "", "reserve": [1.5], "clients": {}}',
            "reserve.0: Input should be a valid integer",
        ),
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        manifest(tmp_path / "split.json")
    with pytest.raises(ValueError, match="no such file; expected the split.json of a run"):
        manifest(tmp_path / "nowhere.json")


def test_a_split_beside_options_that_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is drawn: leave out reserve, shots"):
        ImageFolders(path="x", split="split.json", shots=3, reserve=1)
    with pytest.raises(ValueError, match="valid=0.5 and test=0.6"):
        replace(ImageFolders(path="x"), valid=0.5, test=0.6)


def own_config(path: Path, *settings: str) -> Config:
    said = [f"data.path={path}", "model.clip=tinyclip", "model.context=4", *settings]
    return load_config(Path("configs/own/images-clip/pfedmoap.toml"), said)


def test_images_are_as_large_as_the_model_sees_them_unless_another_side_is_asked_for(
    sites: Path,
) -> None:
    assert loaded(own_config(sites)).side == 32
    assert loaded(own_config(sites, "data.side=48")).side == 48
    assert loaded(own_config(sites, "model.name=linear-probe")).side == 32
    assert load(sites, side=0).side == SIDE  # where nobody says


@pytest.mark.parametrize("side", [7, 1025, -1])
def test_a_side_of_a_few_pixels_is_refused(sites: Path, side: int) -> None:
    with pytest.raises(ConfigError, match=rf"side = {side}"):
        own_config(sites, f"data.side={side}")


# Clients that are simulated


def simulated(folder: Path | str, seed: int = 0, **options: object) -> Federation:
    given = {"side": 8, "clients": 2} | options
    return SimulatedFolders(path=str(folder), **given).load(seed)  # type: ignore[arg-type]


def held_out(federation: Federation) -> set[str]:
    clients = federation.parts
    return {file for client in clients for file in names(federation, client, "test")}


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """Two styles, three classes of 20 images each."""
    for place, style in enumerate(("photo", "sketch")):
        fill(tmp_path / "set" / style, {"cat": 20, "dog": 20, "cow": 20}, 1000 * place)
    return tmp_path / "set"


def test_each_style_is_dealt_out_to_clients_of_its_own(styles: Path) -> None:
    made = simulated(styles, partition="dirichlet-in-domains", clients=4, alpha=0.3)
    assert made.domains == {
        "photo-0": "photo",
        "photo-1": "photo",
        "sketch-0": "sketch",
        "sketch-1": "sketch",
    }
    for client, domain in made.domains.items():
        for part in ("train", "valid", "test"):
            assert {file.split("/")[0] for file in names(made, client, part)} == {domain}
    assert len(made.labels) == 120


def test_simulated_clients_may_see_and_name_things_otherwise(styles: Path) -> None:
    """Pages client by client, and names by blocks of them."""
    asked = {"partition": "dirichlet-in-domains", "clients": 4, "alpha": 1000.0}
    plain = simulated(styles, **asked)
    other = simulated(styles, **asked, pages=2, numberings=3)
    assert isinstance(plain.inputs, torch.Tensor)
    for number, (client, parts) in enumerate(plain.parts.items()):
        for part, own in parts.named().items():
            assert torch.equal(own, getattr(other.parts[client], part))
            turned = plain.inputs[own].flip(2, 3) if number % 2 else plain.inputs[own]
            assert torch.equal(other.inputs[own], turned)
            assert torch.equal(other.labels[own], (plain.labels[own] + number // 2) % 3)
    wide = simulated(styles, **asked, meets="everybody")
    assert held_out(wide) == held_out(plain)
    assert any(not torch.equal(wide.parts[c].test, plain.parts[c].test) for c in plain.parts)
    with pytest.raises(ValueError, match="numberings = 4 of 3 classes; expected at most"):
        simulated(styles, **asked, numberings=4)


def test_what_is_tested_on_is_the_same_for_every_seed_and_few_shots_leave_it_alone(
    styles: Path,
) -> None:
    asked = {"partition": "dirichlet-in-domains", "clients": 4, "alpha": 1000.0}
    first, second = (simulated(styles, seed, **asked) for seed in (0, 1))
    assert held_out(first) == held_out(second)
    assert len(held_out(first)) == 36  # three tenths of each style
    assert names(first, "photo-0", "train") != names(second, "photo-0", "train")
    few = simulated(styles, shots=2, **asked)
    assert held_out(few) == held_out(first)
    assert {len(own.train) for own in few.parts.values()} == {6}


def test_a_folder_of_classes_is_dealt_out_by_class_or_by_shares_of_classes(styles: Path) -> None:
    apart = simulated(styles / "photo", partition="pathological", clients=1)
    assert list(apart.parts) == ["site-0"]
    mixed = simulated(styles / "photo", partition="dirichlet", clients=3)
    assert [sum(map(sum, own.values())) for own in mixed.counts().values()] == [20, 20, 20]
    assert held_out(apart) == held_out(mixed)


def test_train_and_test_folders_stay_apart_unless_pooled(tmp_path: Path) -> None:
    fill(tmp_path / "set" / "train", {"cat": 20, "dog": 20})
    fill(tmp_path / "set" / "test", {"cat": 6, "dog": 6}, 1000)
    kept = simulated(tmp_path / "set", partition="dirichlet")
    assert held_out(kept) == {file for file in kept.files if file.startswith("test/")}
    pooled = simulated(tmp_path / "set", partition="dirichlet", given=False)
    assert {file.split("/")[0] for file in held_out(pooled)} == {"train", "test"}


def test_whom_pictures_are_of_is_one_client_each(styles: Path) -> None:
    made = simulated(styles, partition="natural", clients=0)
    assert list(made.parts) == ["photo", "sketch"]
    assert held_out(made) == held_out(simulated(styles, 1, partition="natural", clients=0))


@pytest.mark.parametrize(
    ("folder", "partition", "says"),
    [
        ("set", "dirichlet", r'for FOLDER/domain/class/image.jpg use data.partition = "dirichlet-'),
        ("set/photo", "natural", "as data.partition asks whose an image is"),
        ("nowhere", "dirichlet", "no such folder, seen from .*, expected FOLDER/class/image.jpg"),
        ("", "dirichlet", "data.path is missing: use --set data.path=FOLDER"),
        ("$NOT_SET/set", "natural", "NOT_SET is not set in the environment; type: export NOT_SET"),
    ],
)
def test_a_folder_that_a_partition_cannot_deal_out_says_what_would_do(
    styles: Path, monkeypatch: pytest.MonkeyPatch, folder: str, partition: str, says: str
) -> None:
    monkeypatch.chdir(styles.parent)
    with pytest.raises(ValueError, match=says):
        simulated(folder, partition=partition)


def test_parts_are_no_domains(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 20, "dog": 20})
    fill(tmp_path / "test", {"cat": 6, "dog": 6}, 1000)
    with pytest.raises(ValueError, match=r'no clients: use data.partition = "dirichlet"'):
        simulated(tmp_path, partition="natural", clients=0)


def test_a_path_may_begin_with_what_the_environment_says(
    styles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICTURES", str(styles.parent))
    given = SimulatedFolders(path="$PICTURES/set", side=8, partition="natural", clients=0)
    assert list(given.load(0).parts) == ["photo", "sketch"]
