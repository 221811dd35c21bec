"""What a run learned predicts new inputs, exactly as it did in the run; what cannot be predicted is
said.
"""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, Case, TinyData, rewrite, tiny
from PIL import Image
from rich.markup import escape as rich_escape
from rich.text import Text
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from fedexperts.cli import app
from fedexperts.cli.plain import Plain
from fedexperts.learn import Examples, Learning
from fedexperts.model import taught
from fedexperts.predict import Learned, Prediction, inputs, labelled, loudest, predictions
from fedexperts.private import Private
from fedexperts.study import once
from fedexperts.tensors import named, under

Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a case's finished run in the tiny world."""
    done: dict[str, Path] = {}

    def find(case: Case, **sections: dict[str, Any]) -> Path:
        config = tiny(case, **sections)
        if config.toml() not in done:
            done[config.toml()] = tmp_path_factory.mktemp("learned") / "run"
            once(config, done[config.toml()])
        return done[config.toml()]

    return find


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny clients' test images as files: client/number-label.png."""
    root, federation = tmp_path_factory.mktemp("pictures"), TinyData(8).load(0)
    assert isinstance(federation.inputs, torch.Tensor)
    for client, parts in federation.parts.items():
        (root / client).mkdir()
        for i in parts.test.tolist():
            image = Image.fromarray(federation.inputs[i].permute(1, 2, 0).numpy())
            image.save(root / client / f"{i:03}-{federation.classes[federation.labels[i]]}.png")
    return root


def said(predictor: Learned, folder: Path) -> list[Prediction]:
    return [
        each
        for found, _ in predictions(predictor, inputs(predictor, [folder], []))
        for each in found
    ]


def right(found: list[Prediction]) -> int:
    return sum(each.label == each.input.removesuffix(".png").split("-")[-1] for each in found)


def logged(run: Path, log: str, **where: Any) -> dict[str, Any]:
    rows = [json.loads(line) for line in (run / log).read_text().splitlines()]
    return next(row for row in reversed(rows) if where.items() <= row.items())


def call(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# As in the run


@pytest.mark.parametrize(
    "name",
    [
        "nearest",
        "linear",
        "alone",
        "fedavg",
        "fedmoe",
        "fedmoe-norm",
        "fedmix",
        "fedjets",
        "framed",
    ],
)
def test_a_client_is_right_on_as_many_test_images_as_the_run_logged(
    name: str, learned: Trained, pictures: Path
) -> None:
    run = learned(CASES[name])
    for client in ("a", "c"):
        found = said(Learned.of(run, client), pictures / client)
        assert len(found) == 20
        assert right(found) == logged(run, "clients.jsonl", client=client)["test_correct"]


def test_without_a_client_the_servers_own_predictor_answers_and_its_experts_share_the_answer(
    learned: Trained, pictures: Path
) -> None:
    run = learned(CASES["fedmoe-no-main"])
    server = Learned.of(run, "")
    found = said(server, pictures)
    assert right(found) == logged(run, "server.jsonl")["test_correct"]
    assert "server's own" in server.who
    for each in found:
        assert list(each.experts) == ["expert 0", "expert 1", "expert 2"]
        assert sum(each.experts.values()) == pytest.approx(1)
        assert sum(share > 0 for share in each.experts.values()) == 2  # the top two


def test_a_main_expert_has_what_alpha_leaves(learned: Trained, pictures: Path) -> None:
    run = learned(CASES["fedmoe"])
    alpha = logged(run, "server.jsonl")["alpha"]
    assert all(
        each.experts["main 0"] == pytest.approx(1 - alpha)
        for each in said(Learned.of(run, ""), pictures)
    )


def test_who_spoke_is_told_by_name_and_weighs_on_average_what_the_run_logged(
    learned: Trained, pictures: Path
) -> None:
    run = learned(CASES["nearest"])
    predictor = Learned.of(run, "a")
    received = logged(run, "rounds.jsonl", round=predictor.kept)["trained"]["a"]["received"]
    found = said(predictor, pictures / "a")
    assert [list(each.experts) for each in found] == [["own", *received]] * len(found)
    assert all(sum(each.experts.values()) == pytest.approx(1) for each in found)
    assert len({each.experts["own"] for each in found}) > 1, "each image has weights of its own"


def test_who_kept_nothing_predicts_with_what_all_share_and_that_is_said(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    run = learned(CASES["nearest"], run={"participation": 0.2})
    trained = Private(run / "private").clients()
    new = min(set("abcde") - set(trained))
    newcomer, shared = Learned.of(run, new), Learned.of(run, "")
    assert said(newcomer, pictures / new) == said(shared, pictures / new)
    assert said(shared, pictures / new) != said(Learned.of(run, trained[0]), pictures / new)
    assert f"{new} has kept none of its own" in newcomer.who
    assert (
        right(said(shared, pictures / new))
        == logged(run, "clients.jsonl", client=new)["test_global_correct"]
    )


def test_who_kept_something_that_is_not_here_does_not_predict_with_what_all_share(
    learned: Trained, tmp_path: Path
) -> None:
    run = learned(CASES["nearest"])
    done = call("predict", run, tmp_path, "--client", "a", "--private", tmp_path)
    assert done.exit_code == 1
    assert (
        f"the private state of client a is gone from {tmp_path / 'a'}: it kept one in round 3"
        in done.stderr
    )
    assert "--private FOLDER" in done.stderr


def test_a_common_start_that_data_taught_is_taught_again_where_it_is_all_there_is(
    learned: Trained, pictures: Path
) -> None:
    case = replace(CASES["alone"], model="network", reserve=8)
    run = learned(case, start={"epochs": 30, "rate": 0.05}, run={"rounds": 0})
    assert (
        right(said(Learned.of(run, "c"), pictures / "c"))
        == logged(run, "clients.jsonl", client="c")["test_correct"]
    )
    plain = learned(case, run={"rounds": 0})
    assert said(Learned.of(run, "c"), pictures / "c") != said(
        Learned.of(plain, "c"), pictures / "c"
    )


def test_private_states_may_lie_elsewhere_and_nothing_in_the_run_is_changed(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    run = learned(CASES["nearest"])
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    own = Private(run / "private").load("b", 99)
    assert own is not None
    Private(tmp_path).save("a", 3, own)
    elsewhere = Learned.of(run, "a", tmp_path)
    assert elsewhere.kept == 3
    assert [e.probability for e in said(elsewhere, pictures / "a")] == [
        e.probability for e in said(Learned.of(run, "b"), pictures / "a")
    ]
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_log_that_a_running_round_is_writing_is_left_alone(
    learned: Trained, tmp_path: Path
) -> None:
    once(tiny(CASES["fedavg"], run={"rounds": 1}), tmp_path / "run")
    log = tmp_path / "run" / "clients.jsonl"
    log.write_text(log.read_text() + '{"round": 2, "cl')
    Learned.of(tmp_path / "run", "a")
    assert log.read_text().endswith('"cl')


def test_many_images_come_in_batches_with_the_same_answers(
    learned: Trained, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Learned.of(learned(CASES["nearest"]), "a")
    whole = said(predictor, pictures)
    monkeypatch.setattr("fedexperts.predict.BATCH", 7)
    batches = [found for found, _ in predictions(predictor, inputs(predictor, [pictures], []))]
    assert [len(found) for found in batches] == [7] * 14 + [2]
    assert [(e.input, e.label) for found in batches for e in found] == [
        (e.input, e.label) for e in whole
    ]


# A newcomer, from a few labelled images


def few(pictures: Path, client: str, place: Path, count: int = 8) -> Path:
    """A client's first images, in folders by class."""
    for file in sorted((pictures / client).iterdir())[:count]:
        label = file.stem.split("-")[1]
        (place / label).mkdir(parents=True, exist_ok=True)
        (place / label / file.name).write_bytes(file.read_bytes())
    return place


def settled(run: Path, folder: Path) -> tuple[Learned, Learned, Examples]:
    """What the server has, what a newcomer with these examples makes of it, and the examples."""
    shared = Learned.of(run, "")
    examples = labelled(shared, folder)
    return shared, shared.like(examples), examples


def test_labelled_images_are_read_as_the_run_reads_its_own(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    shared = Learned.of(learned(CASES["nearest"]), "")
    folder = few(pictures, "a", tmp_path / "few")
    examples = labelled(shared, folder)
    files = sorted(folder.rglob("*.png"))
    assert [shared.model.classes[y] for y in examples.y.tolist()] == [
        file.parent.name for file in files
    ]
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]
    )
    assert torch.equal(examples.x[:, 0], shared.built.encode(pixels))
    (tmp_path / "table.csv").write_text(
        "path,label\n" + "".join(f"{f},{f.parent.name}\n" for f in files)
    )
    again = labelled(shared, tmp_path / "table.csv")
    assert torch.equal(again.x, examples.x)
    assert torch.equal(again.y, examples.y)


def test_a_newcomer_takes_the_prompt_that_finds_its_labels_likeliest(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    run = learned(CASES["nearest"], method={"reset": False}, learning={"rate": 1.0})
    shared, own, examples = settled(run, few(pictures, "e", tmp_path / "few"))
    losses = {
        name: float(
            cross_entropy(shared.model.logits({"context": context}, examples.x[:, 0]), examples.y)
        )
        for name, context in shared.server.items()
    }
    best = min(losses, key=lambda name: losses[name])
    assert best != "global.context"
    assert best.removeprefix("pool.") in own.who.split(": ")[-1]
    assert torch.equal(own.local.trained["context"], shared.server[best])
    assert said(own, pictures / "e") != said(shared, pictures / "e")


def test_a_newcomer_mixes_the_most_useful_prompts_behind_a_gate_that_is_shared(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    run = learned(CASES["averaged"], method={"reset": False}, learning={"rate": 1.0})
    shared, own, examples = settled(run, few(pictures, "e", tmp_path / "few"))
    texts = shared.model.texts  # type: ignore[attr-defined]
    losses = {
        name.removeprefix("pool."): float(
            cross_entropy(10 * examples.x[:, 0] @ texts(context).T, examples.y)
        )
        for name, context in shared.server.items()
        if name.startswith("pool.")
    }
    useful = sorted(losses, key=lambda name: losses[name])[:2]
    assert own.chosen is not None
    assert list(own.chosen) == ["global prompt", *useful]
    assert sum(own.chosen.values()) == pytest.approx(1)
    for name, expert_CD in zip(useful, own.local.fixed["experts"], strict=True):
        assert torch.equal(expert_CD, texts(shared.server[f"pool.{name}"]))
    assert all(list(each.experts) == list(own.chosen) for each in said(own, pictures / "e"))
    assert right(said(own, pictures / "e")) > right(said(shared, pictures / "e"))


def test_a_newcomer_of_fedmoe_has_a_blend_of_experts_by_the_labels_they_find(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    shared, _, examples = settled(
        learned(CASES["fedmoe-next"]), few(pictures, "e", tmp_path / "few")
    )
    wise = shared.model.expert.initial  # type: ignore[attr-defined]
    wise = taught(shared.model.expert, wise, examples, Learning(60, rate=0.3), torch.Generator())  # type: ignore[attr-defined]
    server = shared.server | named("expert.1", wise)
    own = replace(shared, server=server).like(examples)
    assert own.chosen is not None
    assert list(own.chosen) == ["main", "expert 0", "expert 1", "expert 2"]
    assert max(own.chosen, key=lambda name: own.chosen[name]) == "expert 1"  # type: ignore[index]
    experts = [under(server, name) for name in ("main.0", "expert.0", "expert.1", "expert.2")]
    for name, value in own.local.trained.items():
        blend = sum(
            share * expert[name] for share, expert in zip(own.chosen.values(), experts, strict=True)
        )
        torch.testing.assert_close(value, blend)
    assert not own.serves


@pytest.mark.parametrize("case", ["nearest", "averaged", "fedmoe", "fedmoe-no-main"])
def test_a_newcomer_stays_with_what_all_share_where_nothing_does_better(
    case: str, learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    shared, _, examples = settled(learned(CASES[case]), few(pictures, "e", tmp_path / "few"))
    noise = {
        name: value + 3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        for name, value in shared.server.items()
        if name.startswith(("pool.", "expert.", "global.gate."))
    }
    spoilt = replace(shared, server=shared.server | noise)
    known = spoilt.method.restore(spoilt.model, spoilt.method.publish(spoilt.server), None)
    answers = spoilt.method.predictor(spoilt.model, known).logits(examples.x[:, 0])
    own = spoilt.like(Examples(examples.x, answers.argmax(-1)))
    assert own.chosen == {}
    assert "no choice of experts does better" in own.who
    assert own.experts(0) == []
    assert torch.equal(own.logits(examples.x[:, 0]), answers)


def test_a_newcomers_images_need_no_labels_where_experts_know_how_images_lie(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    """A folder of images without classes; a method that chooses by labels says so."""
    unsorted = tmp_path / "unsorted"
    unsorted.mkdir()
    for number, file in enumerate(sorted((pictures / "e").rglob("*.png"))[:6]):
        shutil.copy(file, unsorted / f"{number}.png")
    asked = (pictures / "e", "--like", unsorted)
    done = call("predict", learned(CASES["gaussian"]), *asked, "--format", "json")
    assert done.exit_code == 0, done.stderr
    assert "the experts that fit the unlabelled images best" in " ".join(done.stderr.split())
    shares = json.loads(done.stdout)[0]["experts"]
    assert shares["own examples"] == 0
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    refused = call("predict", learned(CASES["averaged"]), *asked)
    assert refused.exit_code == 1
    assert "use a folder with CLASS/IMAGE files" in " ".join(refused.stderr.split())


def test_the_command_says_which_experts_a_newcomer_chose(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    run, folder = learned(CASES["averaged"]), few(pictures, "e", tmp_path / "few")
    _, own, _ = settled(run, folder)
    done = call("predict", run, pictures / "e", "--like", folder, "--format", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == [each.plain() for each in said(own, pictures / "e")]
    assert f"Predicted with {own.who}" in done.stderr


def test_a_newcomer_may_have_texts_in_a_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = {
        "data": {"name": "reviews", "clients": 2, "reviews": 40, "reserve": 4},
        "model": {"name": "transformer", "tokens": 12},
    }
    once(tiny(Case({"name": "fedmoe"}, mixture={"experts": 2}), **words, run={"rounds": 1}), run)
    classes = Learned.of(run, "").model.classes
    (tmp_path / "few.csv").write_text(
        f"text,label\nthe soup was cold,{classes[0]}\nsimply perfect,{classes[-1]}\n"
    )
    done = call(
        "predict", run, "--text", "never again", "--like", tmp_path / "few.csv", "--format", "json"
    )
    assert done.exit_code == 0, done.stderr
    assert [each["class"] in classes for each in json.loads(done.stdout)] == [True]


@pytest.mark.parametrize(
    ("case", "wrong", "message"),
    [
        ("nearest", ["--client", "a"], "use either --like or --client"),
        ("fedavg", [], "FedAvg has no experts from which a newcomer could choose; use"),
        ("nearest", ["elk"], "'elk' in"),
        ("nearest", ["text"], "expected images"),
        ("nearest", ["nowhere"], "no such file"),
    ],
)
def test_labelled_images_that_cannot_be_used_are_said(
    case: str, wrong: list[str], message: str, learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    folder = few(pictures, "a", tmp_path / "few", 2)
    if wrong == ["elk"]:
        next(iter(folder.iterdir())).rename(folder / "elk")
    if wrong == ["text"]:
        folder = tmp_path / "few.csv"
        folder.write_text("text,label\nhello,ant\n")
    if wrong == ["nowhere"]:
        folder = tmp_path / "nowhere"
    options = wrong if wrong[:1] == ["--client"] else []
    done = call("predict", learned(CASES[case]), pictures / "a", "--like", folder, *options)
    assert done.exit_code == 1
    assert message in done.stderr.replace("\n", " ")


# On the command line


def test_the_command_prints_a_table_json_or_csv(learned: Trained, pictures: Path) -> None:
    run = learned(CASES["nearest"])
    expected = said(Learned.of(run, "a"), pictures / "a")
    shown = [
        call("predict", run, "--client", "a", pictures / "a", "--format", form)
        for form in ("json", "csv", "table")
    ]
    assert [done.exit_code for done in shown] == [0, 0, 0]
    assert json.loads(shown[0].stdout) == [each.plain() for each in expected]
    rows = list(csv.DictReader(shown[1].stdout.splitlines()))
    assert [(r["input"], r["class"], float(r["own"])) for r in rows] == [
        (e.input, e.label, e.experts["own"]) for e in expected
    ]
    assert f"{100 * expected[0].probability:.1f}" in shown[2].stdout
    assert all("a's own model, as it kept it in round" in done.stderr for done in shown)


def test_folders_that_are_named_like_classes_are_told(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    run = learned(CASES["fedavg"])
    name = Learned.of(run, "").model.classes[0]
    first, *others = sorted((pictures / "a").iterdir())
    for folder, file in ((name, first), ("unsorted", others[0])):
        (tmp_path / folder).mkdir()
        copy(file, tmp_path / folder)
    done = call("predict", run, tmp_path)
    assert "1 of 2 inputs lie in folders named like classes: `fedexperts evaluate`" in done.stderr
    assert "named like" not in call("predict", run, tmp_path / "unsorted").stderr


def _hidden(file: str, to: str) -> None:
    """A copy of a file that its name hides, as macOS lays them beside pictures."""
    copy(file, Path(to).with_name(f"._{Path(to).name}"))


def test_what_is_hidden_is_passed_over(learned: Trained, pictures: Path, tmp_path: Path) -> None:
    copytree(pictures / "a", tmp_path / "new" / "north")
    for hidden in (".ipynb_checkpoints", "north/.cache/deep"):
        copytree(pictures / "c", tmp_path / "new" / hidden)
    copytree(pictures / "c", tmp_path / "new" / "south", copy_function=_hidden)
    found = said(Learned.of(learned(CASES["fedavg"]), ""), tmp_path / "new")
    names = [path.name for path in sorted((pictures / "a").iterdir())]
    assert [each.input for each in found] == [str(tmp_path / "new/north" / name) for name in names]


def test_all_classes_are_given_where_they_are_asked_for(learned: Trained, pictures: Path) -> None:
    run = learned(CASES["nearest"])
    predictor = Learned.of(run, "a")
    first, *_ = said(predictor, pictures / "a")
    shown = [
        call("predict", run, "--client", "a", pictures / "a", "--all", "--format", form)
        for form in ("json", "csv", "table")
    ]
    likeliest = json.loads(shown[0].stdout)[0]["classes"]
    assert next(iter(likeliest.items())) == (first.label, first.probability)
    assert list(likeliest.values()) == sorted(likeliest.values(), reverse=True)
    row = next(csv.DictReader(shown[1].stdout.splitlines()))
    columns = {name: float(row[f"p({name})"]) for name in predictor.model.classes}
    assert columns == likeliest
    assert sum(columns.values()) == pytest.approx(1)
    assert ", ".join(f"{name} {100 * p:.1f}" for name, p in likeliest.items()) in shown[2].stdout


def test_images_that_cannot_be_read_are_named_and_the_others_predicted(
    learned: Trained, pictures: Path, tmp_path: Path
) -> None:
    good = next(iter(sorted((pictures / "a").iterdir())))
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:40])
    (tmp_path / "whole.png").write_bytes(good.read_bytes())
    done = call("predict", learned(CASES["nearest"]), tmp_path, "--client", "a", "--format", "json")
    assert done.exit_code == 1
    assert [Path(each["input"]).name for each in json.loads(done.stdout)] == ["whole.png"]
    assert "1 of 2 images" in done.stderr
    assert "half.png" in done.stderr


def test_texts_are_predicted_from_a_file_of_lines_and_from_the_command_line(tmp_path: Path) -> None:
    run, texts = tmp_path / "run", tmp_path / "new.txt"
    texts.write_text("the soup was cold\n\nnever again\n")
    words = {
        "data": {"name": "reviews", "clients": 2, "reviews": 40},
        "model": {"name": "transformer", "tokens": 12},
    }
    once(tiny(CASES["fedavg"], **words, run={"rounds": 1}), run)
    done = call("predict", run, texts, "--text", "simply perfect", "--format", "json")
    assert [each["input"] for each in json.loads(done.stdout)] == [
        "the soup was cold",
        "never again",
        "simply perfect",
    ]
    refused = call("predict", run, tmp_path)
    assert refused.exit_code == 1
    assert "expected a .txt file" in refused.stderr


def _two_runs(run: Path, place: Path) -> list[object]:
    for name in ("one", "other"):
        (place / name).mkdir()
        for file in ("config.toml", "environment.json", "hashes.json"):
            (place / name / file).write_bytes((run / file).read_bytes())
    return [place, place]


def _started(run: Path, place: Path) -> list[object]:
    _two_runs(run, place)
    return [place / "one", place]


def _older(run: Path, place: Path) -> list[object]:
    _two_runs(run, place)
    rewrite(place / "one", "environment.json", '{"classes": ["ant"]}')
    return [place / "one", place]


def _empty(run: Path, place: Path) -> list[object]:
    (place / "empty").mkdir()
    return [run, place / "empty"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda run, place: [run, "nowhere.png"], "nowhere.png: no such file or folder"),
        (_empty, "no image in"),
        (lambda run, place: [run], "nothing to predict"),
        (lambda run, place: [run, "--text", "hello"], "expected image files"),
        (lambda run, place: [run, place, "--client", "aa"], "no client 'aa'"),
        (lambda run, place: [run, place, "--client", "xyz"], "there are a, b, c, d, e"),
        (lambda run, place: [place, place], "no run"),
        (_two_runs, "holds 2 runs; expected one of"),
        (_started, "no finished round yet"),
        (_older, "does not say side"),
    ],
)
def test_what_cannot_be_predicted_is_said(
    wrong: Callable[[Path, Path], list[object]], message: str, learned: Trained, tmp_path: Path
) -> None:
    done = call("predict", *wrong(learned(CASES["nearest"]), tmp_path))
    assert done.exit_code == 1
    assert message in done.stderr.replace("\n", " ")


def test_the_three_experts_that_spoke_loudest_are_named_in_order() -> None:
    assert loudest({"own": 0.1, "a": 0.2, "b": 0.65, "c": 0.05}) == "b 0.65, a 0.20, own 0.10"
    assert loudest({}) == ""


# ---- words of strangers

MARKUP = "[red]a.png"
ACTS = "\x1b]0;mine\x07\x1b[2J\u202egnp.png"
SHOWN = r"\x1b]0;mine\x07\x1b[2J\u202egnp.png"


def test_names_of_files_and_classes_are_printed_as_they_are_and_do_nothing_to_a_terminal(
    learned: Trained, tmp_path: Path
) -> None:
    """Rich's markup stays as it stands; what a terminal would act on is shown as its number."""
    run = tmp_path / "run"
    copytree(learned(CASES["fedavg-probe"]), run)
    about = json.loads((run / "environment.json").read_text())
    rewrite(
        run,
        "environment.json",
        json.dumps(about | {"classes": [f"[b]{i}\x1b[31m" for i in range(3)]}),
    )
    (tmp_path / "new").mkdir()
    for name in (MARKUP, ACTS):
        Image.new("RGB", (9, 9)).save(tmp_path / "new" / name, "PNG")
    (tmp_path / "new" / f"broken{ACTS}").touch()
    wide = CliRunner(env={"COLUMNS": "400"})
    for form in ("table", "csv"):
        done = wide.invoke(app, ["predict", str(run), str(tmp_path / "new"), "--format", form])
        assert done.exit_code == 1
        for name in (MARKUP, SHOWN, "[b]", r"\x1b[31m"):
            assert name in done.stdout
        assert f"broken{SHOWN} (not an image" in done.stderr.replace("\n", "")
        assert not {"\x1b", "\x07", "\u202e"} & {*done.output}


def test_colours_of_the_program_itself_stay() -> None:
    console = Plain(file=StringIO(), force_terminal=True, color_system="standard", highlight=False)
    console.print("[red]Error:[/] " + rich_escape("[red]\x1b[32m é ü 語 👩‍🔬"))
    assert console.file.getvalue() == "\x1b[31mError:\x1b[0m [red]\\x1b[32m é ü 語 👩‍🔬\n"  # type: ignore[attr-defined]
    console.print(Text("\x1b[2J"))
    assert console.file.getvalue().endswith("\n\\x1b[2J\n")  # type: ignore[attr-defined]
