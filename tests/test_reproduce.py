"""Published figures beside ours: one place for the figures, no figure without its config, nothing
skipped in silence.

Sets are copies of a few rows that lie in the hub's cache as `hf download` leaves them, so that they
are found as real ones are.
"""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedexperts import config as door
from fedexperts import reproduce
from fedexperts.cli import app
from fedexperts.config import ConfigError
from fedexperts.data.sets import SETS

SMALL = [
    "model.clip=tinyclip",
    "model.context=4",
    "data.side=32",
    "data.clients=2",
    "learning.epochs=1",
]
COMMIT = "0f" * 20
PAPERS = ("fedmoe", "pfedmoap")
SOURCE = {
    "fedmoe": r"IJCAI 2025/610, accuracy of the server",
    "pfedmoap": r"arXiv:2410.10114, RN50, mean local accuracy",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copies: Path) -> Path:
    """The hub's cache, with Flowers102 and DTD in it and nothing else."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    for name in ("flowers102", "dtd"):
        repository = cache / f"datasets--{SETS[name].hub.replace('/', '--')}"
        shutil.copytree(copies / name, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def call(*arguments, settings=()):
    words = [*map(str, arguments), *(f"--set={text}" for text in settings)]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# ---- the figures


# the papers print no figure for ablations of ours and rivals; office-caltech10's published images
# carry others' labels
NO_TARGETS = {"ablations", "domainnet", "office-caltech10", "rivals"}


def published(paper):
    found = tomllib.loads((Path("configs") / paper / reproduce.PUBLISHED).read_text())
    return {
        (group, name): figure
        for group, row in found["published"].items()
        for name, figure in row.items()
    }


@pytest.mark.parametrize("paper", PAPERS)
def test_every_figure_has_its_config_and_every_config_its_figure(paper):
    folder = Path("configs") / paper
    files = {path.relative_to(folder) for path in folder.rglob("[!_]*.toml")}
    rows = {Path(group) / f"{name}.toml" for group, name in published(paper)}
    assert {path for path in files if path.parts[0] not in NO_TARGETS} == rows
    for path in rows:
        assert door.load(folder / path).name == path.stem


@pytest.mark.parametrize("paper", PAPERS)
def test_a_config_says_its_figure_its_download_and_its_command(paper):
    for (group, name), figure in published(paper).items():
        file = Path("configs") / paper / group / f"{name}.toml"
        first, second, *_ = file.read_text().splitlines()
        assert re.search(
            rf"on [\w-]+(, [\w ]+)?: {figure:.2f} published \({SOURCE[paper]}", first
        ), file
        assert f"fedexperts fetch {group.split('/')[0]} (" in second, file
        assert second.endswith(f"fedexperts run {file} --seeds 3"), file


@pytest.mark.parametrize("paper", PAPERS)
def test_what_differs_is_said_of_sets_and_methods_that_are_there(paper):
    found = tomllib.loads((Path("configs") / paper / reproduce.PUBLISHED).read_text())
    words = {
        word for group, row in found["published"].items() for word in (*group.split("/"), *row)
    }
    assert set(found["differs"]) <= words | {"*"}
    assert found["column"] in ("local", "server")


def test_the_rows_of_pfedmoap_are_the_papers_setting():
    for group, name in published("pfedmoap"):
        values = door.load(Path("configs/pfedmoap") / group / f"{name}.toml").values
        data, run, learning = values["data"], values["run"], values["learning"]
        cifar = group.startswith("cifar")
        assert data["dataset"] == group
        assert (data["partition"], data["clients"]) == (
            ("dirichlet", 100) if cifar else ("pathological", 10)
        )
        alone = name == "coop-alone"  # 25 passes of its own
        assert data["shots"] == (0 if cifar else 16)
        assert run["participation"] == (0.1 if cifar and not alone else 1.0)
        short = {"zero-shot": 0, "coop-alone": 5}
        assert run["rounds"] == short.get(name, 120 if cifar else 10)
        assert (learning["rate"], learning["epochs"]) == (0.002, 5)


def test_the_rows_of_fed_moe_are_the_papers_table():
    """Its spec: K and m of each set, clients, reserve sets, splits."""
    table = {"femnist": (5, 5, "natural", 1302), "cifar10": (5, 5, "dirichlet", 1000)}
    table |= {"sentiment140": (3, 3, "dominant", 1000), "yelp": (3, 3, "dominant", 1000)}
    classes = {"femnist": 62, "cifar10": 10, "sentiment140": 2, "yelp": 5}
    rows = published("fedmoe")
    assert len(rows) == 4 * (5 * 3 + 1)
    for group, name in rows:
        dataset, clients = group.split("/")
        values = door.load(Path("configs/fedmoe") / group / f"{name}.toml").values
        experts, sampled, partition, reserve = table[dataset]
        data, run = values["data"], values["run"]
        assert (data["dataset"], data["clients"], data["partition"]) == (
            dataset,
            int(clients),
            partition,
        )
        assert data["reserve"] * classes[dataset] == reserve
        assert run["participation"] * data["clients"] == pytest.approx(sampled)
        assert run["judged_by"] == "server"
        assert ("mixture" in values) == (name not in ("fedavg", "fedprox"))
        assert values.get("mixture", {}).get("experts", experts) == experts
        assert ("gate" in values) == (dataset == "yelp" and "mixture" in values)


# ---- their reproduction


def test_what_is_here_is_run_and_what_is_not_is_listed(hub, tmp_path):
    place, settings = tmp_path / "runs", [*SMALL, "run.rounds=1", "learning.rate=1.0"]
    words = f"--only=dtd --only=pfedmoap --out={place} --seeds=2 --jobs=1".split()
    done = call("reproduce", "pfedmoap", *words, settings=settings)
    assert done.exit_code == 0, done.output
    rows = {
        line.split()[0]: line.split()[1:]
        for line in done.output.splitlines()
        if re.match(r" [\w-]+/", line)
    }
    assert set(rows) == {f"{name}/pfedmoap" for name in list(SETS)[:7]} | {
        f"dtd/{name}"
        for name in (
            "zero-shot",
            "coop-alone",
            "promptfl",
            "promptfl-personal",
            "fedper",
            "promptfl-fedprox",
            "fedamp",
            "pfedprompt",
            "fedotp",
            "pfedmoap-lambda-0",
        )
    }
    for name, cells in rows.items():
        group, experiment = name.split("/")
        assert float(cells[0]) == published("pfedmoap")[group, experiment]
        assert (cells[1] == "-") == (group not in ("dtd", "flowers102")), name
    mine = [
        json.loads(line)
        for seed in (0, 1)
        for line in (place / f"dtd/coop-alone/seed-{seed}/clients.jsonl").read_text().splitlines()
    ]
    ours = (
        50
        * sum(row["test_correct"] / row["test_examples"] for row in mine if row["round"] == 1)
        / 2
    )
    assert rows["dtd/coop-alone"][1] == f"{ours:.2f}"
    assert rows["dtd/coop-alone"][3] == "(2)"
    assert rows["dtd/coop-alone"][4] == f"{ours - 44.23:+.2f}"
    differs = {
        text.split()[0]: n for n, text in re.findall(r"^ +(\d+)  Differs: (.*)$", done.output, re.M)
    }
    notes = {name: {*cells[4:]} for name, cells in rows.items() if cells[1] == "-"}
    assert all(differs["batches"] in notes[name] for name in notes if "/pfedmoap" in name)
    assert [name for name in notes if differs["200"] in notes[name]] == ["food101/pfedmoap"]
    assert "Differs: --set model.clip=tinyclip --set model.context=4" in done.output
    assert "Type: fedexperts fetch food101" in done.output
    assert "12 of 17 figures reproduced" in done.output


def test_typed_again_it_goes_on_and_with_what_has_come_since(hub, tmp_path, copies):
    place, settings = tmp_path / "runs", [*SMALL, "run.rounds=0"]
    command = (
        "reproduce",
        "pfedmoap",
        "--out",
        place,
        "--jobs",
        1,
        "--only=coop-alone",
        "--only=dtd/promptfl",
    )
    (hub / "datasets--tanganke--dtd").rename(hub / "aside")
    first = call(*command, "--seeds", 1, settings=settings)
    assert "1 of 8 figures reproduced" in first.output
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.jsonl")}
    (hub / "aside").rename(hub / "datasets--tanganke--dtd")
    second = call(*command, "--only=flowers102/promptfl", "--seeds", 2, settings=settings)
    assert "4 of 9 figures reproduced" in second.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(place.glob("*/*/seed-*"))) == 8
    other = call(*command, settings=[*settings, "learning.batch=3"])
    assert other.exit_code == 2
    assert "holds coop-alone with other settings" in " ".join(other.output.split())


def test_if_nothing_can_be_run_the_exit_code_says_so(hub, tmp_path):
    done = call("reproduce", "fedmoe", "--only", "yelp/100", "--out", tmp_path / "runs")
    assert done.exit_code == 1
    assert "0 of 5 figures can be reproduced here" in done.output
    block = "fedexperts fetch yelp openai-community/gpt2-medium openai-community/gpt2\n"
    assert block in done.output
    assert not (tmp_path / "runs").exists()


def test_what_cannot_go_on_is_listed_with_its_own_reason(hub, tmp_path):
    words = f"--only=coop-alone --only=dtd/promptfl --out={tmp_path / 'runs'} --seeds=1 --jobs=1".split()  # noqa: E501
    done = call(
        "reproduce", "pfedmoap", *words, settings=[*SMALL, "run.rounds=1", "learning.rate=1e38"]
    )
    assert done.exit_code == 1
    assert "0 of 8 figures reproduced" in done.output
    numbers = {
        line.split()[0]: line.split()[-1]
        for line in done.output.splitlines()
        if re.match(r" [\w-]+/", line)
    }
    for name in ("dtd/coop-alone", "dtd/promptfl", "flowers102/coop-alone"):
        assert re.search(
            rf"^ +{numbers[name]}  Not run: .*/{name}/seed-0: round 1: no client is left",
            done.output,
            re.M,
        )


def test_a_set_that_cannot_be_read_does_not_stop_the_others(hub, copies, tmp_path):
    (snapshot,) = hub.glob("datasets--tanganke--dtd/snapshots/*")
    shutil.rmtree(snapshot)
    shutil.copytree(copies / "cifar10", snapshot)
    words = (
        f"--only=dtd/promptfl --only=flowers102/promptfl --out={tmp_path / 'runs'} --seeds=1"
        " --jobs=1".split()
    )
    done = call("reproduce", "pfedmoap", *words, settings=[*SMALL, "run.rounds=0"])
    assert done.exit_code == 0
    assert "1 of 2 figures reproduced" in done.output
    assert "tanganke/dtd documents: train has the columns img, label, not image" in done.output


def test_the_servers_accuracy_is_taken_where_the_paper_gives_the_servers(copies, tmp_path):
    settings = [
        f"data.path={copies / 'sentiment140'}",
        "model.model=tiny-bert",
        "run.rounds=1",
        "run.participation=1.0",
    ]
    settings += ["data.clients=2", "data.per_class=12", "data.reserve=2"]
    words = f"--only=sentiment140/10/fedavg --seeds=1 --jobs=1 --out={tmp_path / 'runs'}".split()
    done = call("reproduce", "fedmoe", *words, settings=settings)
    assert done.exit_code == 0, done.output
    (rows,) = tmp_path.glob("runs/sentiment140/10/fedavg/seed-0/clients.jsonl")
    last = [
        row for line in rows.read_text().splitlines() if (row := json.loads(line))["round"] == 1
    ]
    server = (
        100
        * sum(row["test_global_correct"] for row in last)
        / sum(row["test_examples"] for row in last)
    )
    assert re.search(rf"sentiment140/10/fedavg +75.90 +{server:.2f} ", done.output)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pfedmaop"], "pfedmaop: no such paper; expected one of fedmoe, pfedmoap"),
        (
            ["pfedmoap", "--only", "flower102"],
            "the paper has no such data set or method; did you mean flowers102?",
        ),
        (["fedmoe", "--only", "cifar10/5"], "did you mean cifar10/50?"),
        (["fedmoe", "--set", "learning.rate=0"], "learning.rate = 0"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(arguments, says, tmp_path):
    done = call("reproduce", *arguments, "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert says in done.output.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_figures_are_asked_for_by_set_by_method_and_by_themselves():
    def asked(*only):
        return [str(figure) for figure in reproduce.read("fedmoe", only).figures]

    assert len(asked()) == 64
    assert asked("cifar10/50") == [
        f"cifar10/50/{name}" for name in ("fedavg", "fedprox", "fedmix", "fedjets", "fedmoe")
    ]
    assert len(asked("cifar10")) == 16
    assert asked("cent-moe", "yelp/100/fedmoe")[-1] == "yelp/100/fedmoe"
    assert len(asked("cent-moe")) == 4
    with pytest.raises(ConfigError, match="no such data set or method"):
        asked("50")
