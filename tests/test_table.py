"""A table of one's own images or texts becomes a federation; rows and columns that do not fit are
named.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from fedexperts.data import table
from fedexperts.data.federation import Federation
from fedexperts.data.table import Table

SHOPS = [
    (f"{word} soup, {label} in {shop}", label, shop)
    for shop in ("a", "b")
    for label in ("good", "so_so")
    for word in ("hot", "cold", "fine", "thin", "rich")
]


def csv(path: Path, rows: Sequence[Sequence[str]], comma: str = ",") -> Path:
    path.write_text(
        "".join(comma.join(f'"{cell}"' for cell in row) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Reviews of two shops."""
    return csv(tmp_path / "texts.csv", [("text", "label", "site"), *SHOPS])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of one site, with their parts, in a folder beside the table."""
    rows = [("path", "label", "split")]
    for i in range(12):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        rows.append(
            (f"images/{i}.png", ("cat", "dog")[i % 2], ("Train", "train", "val", "test")[i // 3])
        )
    return csv(tmp_path / "images.csv", rows)


def load(file: Path, seed: int = 0, **options: object) -> Federation:
    return Table(path=str(file), **({"side": 8} | options)).load(seed)  # type: ignore[arg-type]


def test_texts_keep_their_rows_labels_and_sites(texts: Path) -> None:
    made = load(texts)
    assert made.inputs == tuple(text for text, _, _ in SHOPS)
    assert [made.classes[label] for label in made.labels.tolist()] == [
        label.replace("_", " ") for _, label, _ in SHOPS
    ]
    assert {
        client: [sum(own) for own in parts.values()] for client, parts in made.counts().items()
    } == {
        "a": [5, 2, 3],
        "b": [5, 2, 3],
    }
    assert all(SHOPS[place][2] == client for place, (client, _) in made.holders().items())
    assert list(made.files) == [f"row {number}" for number in range(1, 21)]


def test_images_are_read_beside_the_table_with_their_parts(pictures: Path) -> None:
    made = load(pictures, site="clinic", classes=("dog", "cat", "eel"))
    assert made.inputs[:, 0, 4, 4].tolist() == list(range(12))  # type: ignore[call-overload, union-attr]
    assert made.labels.tolist() == [1, 0] * 6
    assert {part: index.tolist() for part, index in made.parts["clinic"].named().items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "valid": [6, 7, 8],
        "test": [9, 10, 11],
    }
    assert list(made.files)[:2] == ["images/0.png", "images/1.png"]


def test_paths_are_seen_from_the_folder_that_is_given_and_may_be_whole(
    pictures: Path, tmp_path: Path
) -> None:
    rows = [("path", "label"), *((f"{i}.png", ("cat", "dog")[i % 2]) for i in range(11))]
    (tmp_path / "lists").mkdir()
    file = csv(tmp_path / "lists" / "x.csv", [*rows, (str(tmp_path / "images" / "11.png"), "dog")])
    made = load(file, root=str(tmp_path / "images"), site="a", classes=("cat", "dog"))
    assert list(made.files) == [f"{i}.png" for i in range(12)]


@pytest.mark.parametrize("comma", [";", "\t", ",", "|"])
def test_semicolons_tabs_and_bars_part_columns_too_and_a_mark_of_byte_order_is_no_letter(
    tmp_path: Path, comma: str
) -> None:
    file = csv(tmp_path / "x.csv", [("text", "label", "site"), *SHOPS], comma)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert (
        load(file).inputs
        == load(csv(tmp_path / "y.csv", [("text", "label", "site"), *SHOPS])).inputs
    )


def test_a_comma_in_the_name_of_a_column_parts_nothing(tmp_path: Path) -> None:
    name = "free text, as typed, whole"
    file = csv(tmp_path / "x.csv", [(name, "label", "site"), *SHOPS], ";")
    assert load(file, text_column=name).inputs == tuple(text for text, _, _ in SHOPS)


def test_parquet_is_read_like_csv(texts: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(("text", "label", "site"), map(list, zip(*SHOPS, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").manifest() == load(texts).manifest()
    parquet.write_table(
        pyarrow.table(columns | {"site": [None, *columns["site"][1:]]}), tmp_path / "y.parquet"
    )
    with pytest.raises(ValueError, match="1 of 20 rows of .* cannot be used. row 1: site is empty"):
        load(tmp_path / "y.parquet")
    (tmp_path / "z.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match="z.parquet is not a readable parquet file"):
        load(tmp_path / "z.parquet")


def test_columns_have_any_names_and_others_are_named_in_a_note(texts: Path, tmp_path: Path) -> None:
    renamed = csv(
        tmp_path / "x.csv", [("id", "review", "stars", "shop"), *(("7", *row) for row in SHOPS)]
    )
    made = load(renamed, text_column="review", label_column="stars", site_column="shop")
    assert made.manifest() == load(texts).manifest()
    assert made.notes == ("Columns of x.csv that are not used: id.",)
    assert load(texts).notes == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"label_column": "stars"},
            "has the columns text, label, site, and none is 'stars'; use data.label",
        ),
        ({"site_column": "shop"}, "none is 'shop'; use data.site_column = one of them"),
        ({"text_column": ""}, "must have one of files, 'path', or one of texts, ''"),
        ({"path_column": "label"}, "it must have one of files, 'label', or one of texts, 'text'"),
        (
            {"site": "a", "classes": ("good", "so so")},
            "use either one of clients, .*or data.site = 'NAME'",
        ),
        ({"site_column": ""}, "use either one of clients"),
        ({"classes": ("good", "bad")}, "'so so': not among data.classes, which are good, bad"),
        ({"root": "", "path": "nowhere.csv"}, "data.path = 'nowhere.csv': no such file, seen from"),
    ],
)
def test_columns_that_do_not_fit_are_said_with_those_that_are_there(
    texts: Path, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Table(**({"path": str(texts)} | options)).load(0)  # type: ignore[arg-type]


def test_all_rows_that_cannot_be_used_are_named_at_once(pictures: Path, tmp_path: Path) -> None:
    (tmp_path.parent / "out.png").write_bytes(b"")
    with open(pictures, "a", encoding="utf-8") as file:
        file.write(
            "images/1.png,dog,train\nimages/./2.png,dog,train\n../out.png,dog,test\n,dog,train\n"
        )
        file.write("images/3.png,,train\nimages/3.png,dog,later\n")
    with pytest.raises(ValueError, match="6 of 18 rows of .* cannot be used") as caught:
        load(pictures, site="a", classes=("cat", "dog"))
    said = str(caught.value)
    for part in (
        "row 13: images/1.png is in another row already",
        "row 14: images/2.png is in another row already",
        "out.png leads out of",
        "row 16: path is empty",
        "row 17: label is empty",
        "row 18: split is 'later', expected train, valid or test",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "text,label,site\nso, so,good,a\n",
            "row 1 has not as many cells as there are columns .3.; expected quotes",
        ),
        ("text,label,site\nfine,good\n", "row 1 has not as many cells"),
        ('text,label,site\n"fine"ly,good,a\n', "after line 1: .* expected a table in CSV"),
        ("text,label,site\n", "has no rows; expected one row for each example"),
        ("", "has no rows"),
    ],
)
def test_a_file_that_is_no_table_is_explained(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "x.csv")


def test_another_encoding_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("text,label,site\nschön,gut,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not in UTF-8 .*; save"):
        load(tmp_path / "x.csv")


def test_a_missing_image_is_named(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"cannot be read: images/5.png \(no such file\)"):
        load(pictures, site="a", classes=("cat", "dog"))


def test_a_split_of_texts_is_taken_up_and_that_of_other_texts_refused(
    texts: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps(load(texts, seed=1).manifest()))
    assert load(texts, seed=2, split=str(split)).manifest() == load(texts, seed=1).manifest()
    texts.write_text(texts.read_text().replace("cold", "icy"))
    with pytest.raises(
        ValueError, match="data.split is a split of other examples: row 2 has changed since"
    ):
        load(texts, split=str(split))


def test_equal_texts_in_two_parts_are_found(tmp_path: Path) -> None:
    file = csv(
        tmp_path / "x.csv",
        [("text", "label", "site"), *SHOPS, ("hot soup, good in a", "good", "b")],
    )
    assert load(file).twins() == [(0, 20)]


def test_a_table_that_would_fill_the_memory_is_refused_by_what_it_says_and_by_what_it_unpacks_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with open(tmp_path / "x.csv", "wb") as file:
        file.truncate(table.BYTES + 1)  # no byte of it is on the disk
    with pytest.raises(ValueError, match="x.csv has more than 1,073,741,824 bytes, unpacked"):
        load(tmp_path / "x.csv")
    monkeypatch.setattr(table, "BYTES", 10**6)
    columns = {"text": ["so " * 400] * 10_000, "label": ["good"] * 10_000, "site": ["a"] * 10_000}
    parquet.write_table(pyarrow.table(columns), tmp_path / "repeats.parquet")
    parquet.write_table(pyarrow.table(columns), tmp_path / "says.parquet", use_dictionary=False)
    assert (tmp_path / "repeats.parquet").stat().st_size < 10**4  # and unpacked 12 MB
    for name in ("repeats", "says"):
        with pytest.raises(
            ValueError, match=f"{name}.parquet has more than 1,000,000 bytes, unpacked"
        ):
            load(tmp_path / f"{name}.parquet")


def test_a_cell_longer_than_a_text_can_be_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    long = [("so " * 50_000, "good", "a"), *SHOPS]
    columns = dict(zip(("text", "label", "site"), map(list, zip(*long, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match="row 1: text has 149,999 characters, and at most 131,072 are read"
    ):
        load(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="row 1: text has 149,999 characters"):
        load(csv(tmp_path / "x.csv", [("text", "label", "site"), *long]))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    file = csv(
        tmp_path / "twice.csv",
        [
            ("text", "label", "label", "site"),
            *((text, "x", label, site) for text, label, site in SHOPS),
        ],
    )
    with pytest.raises(ValueError, match="label more than once; use a name for each column"):
        load(file)


def test_a_cell_that_holds_no_text_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = [label for _, label, _ in SHOPS]
    for strange in ([label.encode() for label in labels], [[label] for label in labels]):
        columns = {"text": [text for text, _, _ in SHOPS], "label": strange}
        parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="row 1: label holds (bytes|list), expected a text"):
            load(tmp_path / "x.parquet", site="a", classes=("good", "so so"))


def test_labels_that_become_one_class_are_noted(tmp_path: Path) -> None:
    rows = [(text, label.replace("_", " "), shop) for text, label, shop in SHOPS[:5] + SHOPS[10:15]]
    file = csv(tmp_path / "x.csv", [("text", "label", "site"), *SHOPS, ("so", "so so", "a"), *rows])
    assert load(file).notes == ("One class, 'so so', of several names: 'so so'; 'so_so'.",)


def test_a_label_that_is_not_a_number_in_a_column_of_numbers_is_missing(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = [0.0, 1.0] * 9 + [0.0, float("nan")]
    columns = {
        "text": [text for text, _, _ in SHOPS],
        "label": labels,
        "site": [site for _, _, site in SHOPS],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="row 20: label is empty"):
        load(tmp_path / "x.parquet")
