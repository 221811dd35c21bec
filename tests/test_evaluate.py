"""Labelled inputs held against what a run learned: every count is the count of its answers, and a
log says of its clients what they said.
"""

import csv
import io
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, TinyData, tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

import fedexperts as fx
from fedexperts import answers
from fedexperts.answers import BINS, binned, by_class, confused, matrix, told
from fedexperts.cli import app
from fedexperts.evaluate import evaluate
from fedexperts.predict import Learned
from fedexperts.report.evaluation import Answer, Evaluation, tables
from fedexperts.report.paired import wilson
from fedexperts.study import once


def call(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    once(tiny(CASES["nearest"]), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny clients' test images as files: client/class/number.png."""
    root, federation = tmp_path_factory.mktemp("pictures"), TinyData(8).load(0)
    assert isinstance(federation.inputs, Tensor)
    for client, parts in federation.parts.items():
        for i in parts.test.tolist():
            folder = root / client / federation.classes[federation.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(federation.inputs[i].permute(1, 2, 0).numpy())
            image.save(folder / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def found(run: Path, pictures: Path) -> Evaluation:
    return evaluate(Learned.of(run, "b"), pictures / "b")


def logged(run: Path, client: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    return next(row for row in reversed(rows) if row["client"] == client)


# ---- as in the run


def test_a_client_is_evaluated_on_its_test_images_as_the_run_logged_it(
    run: Path, found: Evaluation
) -> None:
    row = logged(run, "b")
    assert (found.correct, len(found.answers)) == (row["test_correct"], row["test_examples"])
    assert found.matrix == matrix(row["test_confusion"], 3)
    assert found.bins.examples == row["test_bin_examples"]
    assert found.bins.correct == row["test_bin_correct"]
    assert found.bins.sure == pytest.approx(row["test_bin_sure"], abs=0.011)
    assert "b's own model" in found.who


def test_only_after_the_last_round_a_client_says_which_class_it_takes_for_which(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows if "test_confusion" in row} == {3}
    assert all(sum(row["test_bin_examples"]) == row["test_examples"] for row in rows)


def test_without_a_client_the_servers_predictor_is_evaluated(
    run: Path, pictures: Path, found: Evaluation
) -> None:
    shared = evaluate(Learned.of(run, ""), pictures / "b")
    assert shared.correct == logged(run, "b")["test_global_correct"]
    assert shared.who != found.who


def test_a_run_in_python_is_evaluated_as_by_the_command(
    run: Path, pictures: Path, found: Evaluation
) -> None:
    results = fx.Results(run)
    assert results.evaluate(pictures / "b", client="b") == found
    assert results.evaluate(str(pictures / "b")) == evaluate(Learned.of(run, ""), pictures / "b")


# ---- counting


def test_every_figure_is_the_count_of_its_answers(found: Evaluation) -> None:
    pairs = Counter((answer.truth, answer.said) for answer in found.answers)
    for each in found.by_class:
        examples = sum(n for (truth, _), n in pairs.items() if truth == each.name)
        said = sum(n for (_, answer), n in pairs.items() if answer == each.name)
        assert (each.examples, each.said) == (examples, said)
        assert each.recall == pytest.approx(pairs[each.name, each.name] / examples)
    assert found.interval == wilson(found.correct, len(found.answers))


def test_a_class_without_examples_has_no_recall_and_one_never_said_no_precision() -> None:
    never, absent = by_class([[0, 2], [0, 0]], ("never said", "absent"))
    assert (never.recall, never.precision) == (0.0, None)
    assert (absent.recall, absent.precision) == (None, 0.0)


def test_who_is_as_often_correct_as_sure_has_no_error_and_who_is_sure_and_wrong_has_all() -> None:
    half = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert binned(half, torch.tensor([True, False, True, False])).error == 0
    assert binned(torch.ones(3), torch.tensor([False] * 3)).error == 100
    # two bins: 0.2 apart for half of the answers, 0 for the others
    mixed = binned(torch.tensor([0.8, 0.8, 1.0, 1.0]), torch.tensor([True, True, True, True]))
    assert mixed.error == pytest.approx(10)
    assert mixed.examples == [0, 0, 0, 0, 0, 0, 0, 0, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_what_a_client_counts_honestly_can_be(pairs: list[tuple[int, int]]) -> None:
    """And its cells give back the whole matrix."""
    y, said = (torch.tensor(each) for each in zip(*pairs, strict=True))
    facts: dict[str, Any] = dict(told(3.0 * torch.eye(4)[said], y, by_class=True))
    facts |= {"test_examples": len(pairs), "test_correct": int((y == said).sum())}
    assert answers.unlike(facts, 4) == ""
    whole = matrix(confused(said, y, 4), 4)
    assert [[pairs.count((t, s)) for s in range(4)] for t in range(4)] == whole
    facts["test_correct"] = facts["test_correct"] + 1
    assert answers.unlike(facts, 4)


def test_sums_of_confidences_leave_a_client_with_two_digits() -> None:
    facts = told(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert facts["test_bin_sure"] == [0, 0, 0, 0, 0, 0, 0, 0.73, 0, 0]  # of 0.7310586


def test_a_model_that_answers_no_numbers_is_not_sure() -> None:
    bins = binned(torch.tensor([torch.nan]), torch.tensor([False]))
    assert bins.examples == [1, *[0] * (BINS - 1)]


def test_the_surest_mistakes_come_first_and_no_correct_answer_is_among_them() -> None:
    made = Evaluation(
        "somebody",
        ("ant", "bee"),
        [
            Answer("one", "ant", "bee", 0.6),
            Answer("two", "ant", "ant", 0.99),
            Answer("three", "bee", "ant", 0.9),
        ],
    )
    assert [answer.input for answer in made.worst(5)] == ["three", "one"]
    assert [answer.input for answer in made.worst(1)] == ["three"]


# ---- the command


class Images(HTMLParser):
    """The images of a page, and everything that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attributes if name in ("src", "href")]


def test_the_command_prints_the_figures_and_writes_them_as_page_pictures_csv_and_json(
    run: Path, pictures: Path, found: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = call("evaluate", run, pictures / "b", "--client", "b", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert f"{found.correct} of {len(found.answers)} correct" in done.stdout
    assert f"expected calibration error {found.bins.error:.1f} %" in done.stdout
    said = json.loads((out / "evaluation.json").read_text())
    assert said == json.loads(json.dumps(found.plain()))
    rows = list(csv.reader((out / "confusion.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == rows[0][1:] == list(found.classes)
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == found.matrix
    listed = list(csv.DictReader((out / "answers.csv").read_text().splitlines()))
    assert [row["said"] for row in listed] == [answer.said for answer in found.answers]
    page = Images((out / "evaluation.html").read_text())
    kinds = Counter(source.split(";")[0] for source in page.sources)
    mistakes = len(found.answers) - found.correct
    assert mistakes
    assert kinds == {"data:image/png": mistakes, "data:image/svg+xml": 2}
    for name in ("confusion", "reliability"):
        assert (out / f"{name}.svg").read_bytes().startswith(b"<?xml")


def test_a_folder_that_is_there_is_not_written_over(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    done = call("evaluate", run, pictures / "b", "--out", tmp_path)
    assert done.exit_code == 1
    assert str(tmp_path) in done.stderr


def test_a_table_of_files_gives_the_same_answers_as_their_folders(
    run: Path, pictures: Path, found: Evaluation, tmp_path: Path
) -> None:
    files = sorted((pictures / "b").rglob("*.png"))
    lines = [f"{file.relative_to(pictures)},{file.parent.name}" for file in files]
    table = pictures / "all.csv"
    table.write_text("\n".join(["path,label", *lines]))
    again = evaluate(Learned.of(run, "b"), table)
    table.unlink()
    pairs = {(Path(a.input).name, a.said, a.probability) for a in again.answers}
    assert pairs == {(Path(a.input).name, a.said, a.probability) for a in found.answers}


def test_texts_are_evaluated_from_a_table(tmp_path: Path) -> None:
    words = {
        "data": {"name": "reviews", "clients": 2, "reviews": 40},
        "model": {"name": "transformer", "tokens": 12},
    }
    once(tiny(CASES["fedavg"], **words, run={"rounds": 1}), tmp_path / "run")
    predictor = Learned.of(tmp_path / "run", "")
    first, second = predictor.model.classes[:2]
    table = tmp_path / "few.csv"
    table.write_text(f"text,label\nnever again,{first}\nsimply perfect,{second}\n")
    out = tmp_path / "out"
    done = call("evaluate", tmp_path / "run", table, "--out", out)
    assert done.exit_code == 0, done.stderr
    listed = list(csv.DictReader((out / "answers.csv").read_text().splitlines()))
    assert [(row["input"], row["truth"]) for row in listed] == [
        ("never again", first),
        ("simply perfect", second),
    ]
    assert "data:image/png" not in (out / "evaluation.html").read_text()


def test_images_that_cannot_be_read_are_named_and_not_counted(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    good = sorted((pictures / "b").rglob("*.png"))[:3]
    for file in good:
        (tmp_path / "few" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "few" / file.parent.name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "few" / good[0].parent.name / "000-half.png").write_bytes(good[0].read_bytes()[:40])
    done = call("evaluate", run, tmp_path / "few", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "of 3 correct" in done.stdout
    assert "1 of 4 images cannot be read" in done.stderr
    assert "000-half.png" in done.stderr
    assert "000-half.png" in (tmp_path / "out" / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("elk", "'elk' in"),
        ("clients", "a folder where images should be"),
        ("nowhere", "no such file or folder; expected a folder with CLASS/IMAGE files"),
        ("broken", "can be read"),
        ("text", "expected images"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    wrong: str, message: str, run: Path, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / wrong
    if wrong == "elk":
        (path / "elk").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(path / "elk" / "one.png")
    if wrong == "clients":
        path = pictures
    if wrong == "broken":
        (path / "ant").mkdir(parents=True)
        (path / "ant" / "one.png").touch()
    if wrong == "text":
        path = tmp_path / "few.csv"
        path.write_text("text,label\nhello,ant\n")
    done = call("evaluate", run, path)
    assert done.exit_code == 1
    assert message in done.stderr.replace("\n", " ")
    if wrong == "elk":
        assert "like its classes: ant, bee, cow" in done.stderr.replace("\n", " ")


def test_names_of_strangers_do_nothing_on_the_page_or_in_a_terminal(
    run: Path, tmp_path: Path
) -> None:
    """The same image in every class is a mistake in two of them."""
    bad = "<b>[red]&.png"
    for name in ("ant", "bee", "cow"):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), "white").save(tmp_path / "few" / name / bad)
    done = call("evaluate", run, tmp_path / "few", "--out", tmp_path / "out")
    assert "1 of 3 correct" in done.stdout
    assert done.stdout.count(bad) == 2
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "<b>[" not in page
    assert page.count("&lt;b&gt;[red]&amp;.png") == 2


@pytest.mark.parametrize(
    ("count", "title"), [(8, "Which class was said for which"), (20, "Frequent mistakes")]
)
def test_what_is_printed_fits_a_terminal(count: int, title: str) -> None:
    names = [f"class {number}" for number in range(count)]
    wrong = [Answer(f"folder/{name}.png", name, names[0], 0.5) for name in names]
    console = Console(file=io.StringIO(), width=80)
    for table in tables(Evaluation("somebody", names, wrong), 3):
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert title in text
    assert "folder/class 1.png" in text
    assert "…" not in text
