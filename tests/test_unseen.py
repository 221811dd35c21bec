"""Classes that nobody trains on: who has what, what clients are asked about, and their table."""

import csv
import statistics
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import CASES, TinyData, carry_out, job_and_engine, tiny
from papersets import png

from fedexperts import report
from fedexperts.config import ConfigError, load, parts
from fedexperts.data.digits import DigitsPathological, DigitsScanners
from fedexperts.data.examples import Example, Listing
from fedexperts.data.federation import Federation
from fedexperts.data.simulated import Simulated
from fedexperts.learn import Local
from fedexperts.metrics import Reach, last, reach
from fedexperts.tensors import under

COW = 2  # the class that nobody trains on


@dataclass(frozen=True)
class WithoutCows:
    """The tiny federation; its cows are tested on alone, and client "a" knows ants alone."""

    reserve: int = 0

    def load(self, seed: int) -> Federation:
        whole = TinyData().load(seed)
        tested = torch.cat([own.test for own in whole.parts.values()])
        kept = {}
        for client, own in whole.parts.items():
            if client == "e":  # whose one example is a cow
                continue
            known = (0,) if client == "a" else (0, 1)
            kept[client] = replace(
                own,
                **{
                    part: index[torch.isin(whole.labels[index], torch.tensor(known))]
                    for part, index in own.named().items()
                },
            )
        domains = dict.fromkeys(kept, "tiny")
        return replace(
            whole, parts=kept, domains=domains, unseen=tested[whole.labels[tested] == COW]
        )


WITHOUT = {"name": "test_unseen:WithoutCows"}


# ---- data


@pytest.mark.parametrize(
    "source", [DigitsPathological(clients=4, unseen=2), DigitsScanners(unseen=3, reserve=2)]
)
def test_nobody_has_a_digit_that_is_kept_from_training(
    source: DigitsPathological | DigitsScanners,
) -> None:
    one, other = source.load(0), source.load(1)
    unseen = one.labels[one.unseen].unique()
    assert len(unseen) == source.unseen
    held = torch.cat(
        [one.reserve, *(p for own in one.parts.values() for p in own.named().values())]
    )
    assert not torch.isin(one.labels[held], unseen).any()
    assert {*one.labels[held].tolist()} == {*range(10)} - {*unseen.tolist()}
    assert torch.equal(one.inputs[one.unseen], other.inputs[other.unseen])
    whole = replace(source, unseen=0).load(0)
    tested = sum(len(own.test) for own in whole.parts.values())
    assert len(one.unseen) == tested - sum(len(own.test) for own in one.parts.values())


def test_every_scanner_reads_the_digits_that_are_kept_from_training() -> None:
    one, four = (DigitsScanners(scanners=n, unseen=2).load(0) for n in (1, 4))
    assert len(four.unseen) == 4 * len(one.unseen)
    assert len({image.numpy().tobytes() for image in four.inputs[four.unseen]}) == len(four.unseen)


def texts(count: int) -> Listing:
    listed = [Example(f"{name} {i}", name, "") for name in "abcdef" for i in range(count)]
    return Listing(listed)


def test_simulated_clients_have_nothing_of_a_class_that_is_kept_from_training() -> None:
    asked = Simulated(clients=2, unseen=2, test=0.25)
    whole = asked.simulate(texts(12), tuple("abcdef"), 0)
    unseen = {whole.classes[label] for label in whole.labels[whole.unseen].tolist()}
    assert len(unseen) == 2
    assert [whole.inputs[i][0] in unseen for i in range(len(whole.inputs))] == [
        i in whole.unseen.tolist() for i in range(len(whole.inputs))
    ]
    assert len(whole.unseen) == 2 * 3  # the share to test on, and no more
    assert not whole.notes
    again = asked.simulate(texts(12), tuple("abcdef"), 1)
    assert {whole.inputs[i] for i in whole.unseen} == {again.inputs[i] for i in again.unseen}


def test_a_set_says_itself_what_of_an_unseen_class_is_tested_on_and_the_reserve_is_without_it() -> (
    None
):
    listing = texts(12)
    parted = [replace(e, part="test" if e.what[-1] in "01" else "train") for e in listing.examples]
    asked = Simulated(clients=2, unseen=1, reserve=1)
    whole = asked.simulate(replace(listing, examples=parted), tuple("abcdef"), 0)
    assert {whole.inputs[i][-1] for i in whole.unseen} == {"0", "1"}
    assert len(whole.reserve) == 5


def test_without_unseen_classes_a_split_is_written_as_before() -> None:
    assert "unseen" not in DigitsPathological().load(0).manifest()
    written = DigitsPathological(clients=4, unseen=2).load(0).manifest()
    assert written["unseen"]


def test_what_is_kept_from_training_must_be_at_nobody() -> None:
    whole = TinyData(reserve=1).load(0)
    cows = whole.labels == COW
    free = cows.nonzero().flatten()[:1]
    with pytest.raises(ValueError, match=r"the reserve has an example of class 'cow', which is"):
        replace(whole, unseen=free)
    with pytest.raises(ValueError, match=r"unseen: .*int64"):
        replace(whole, unseen=free.float())


def test_wrong_values_are_refused_with_what_to_type() -> None:
    with pytest.raises(ValueError, match=r"data.unseen = 9 of 10 classes; expected at most 8"):
        DigitsPathological(unseen=9).load(0)
    with pytest.raises(ValueError, match=r"8 classes to 5 clients: it must be 1 to 4 clients"):
        DigitsPathological(unseen=2).load(0)
    with pytest.raises(ValueError, match=r"data.numberings = 2: .* use data.numberings = 1, or"):
        DigitsScanners(unseen=2, numberings=2)
    with pytest.raises(ValueError, match=r"data.pages = 3: .* use data.pages = 1, or"):
        Simulated(unseen=2, pages=3)
    with pytest.raises(ValueError, match=r"data.unseen with data.split"):
        Simulated(unseen=2, split="split.json")
    with pytest.raises(ConfigError, match=r"unseen = -1"):
        parts(tiny(CASES["fedavg"], data={"name": "digits-scanners", "unseen": -1}))


def test_a_class_of_every_style_is_kept_from_clients_of_any_style(tmp_path: Path) -> None:
    """As in `fedexperts run configs/benchmark/pacs-few --set data.unseen=2`."""
    for number, (style, name) in enumerate(product(("ink", "oil"), ("cat", "cow", "dog"))):
        (tmp_path / "art" / style / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "art" / style / name / f"{i}.png").write_bytes(png(30 * number + i))
    settings = {"data.path": str(tmp_path / "art"), "data.side": 32, "data.clients": 4}
    settings |= {"data.unseen": 1, "data.valid": 0.2, "data.test": 0.3}
    settings |= {"model.name": "prompted-clip", "model.context": 4, "model.clip": "tinyclip"}
    config = load("configs/benchmark/pacs-few/zero-shot.toml").having(settings, "here")
    federation = parts(config)[0]
    assert sorted(federation.domains.values()) == ["ink", "ink", "oil", "oil"]
    shades = federation.inputs[federation.unseen].float().mean((1, 2, 3))
    assert sorted((shades > 80).tolist()) == [False] * 6 + [True] * 6  # oil is brighter here
    rows = carry_out(config, tmp_path / "run").rows("clients.jsonl")
    asked = [row["unseen_examples"] for row in rows]
    assert asked == [len(federation.unseen)] * 4  # everybody, about all styles


# ---- what clients are asked about


def test_clients_are_asked_about_their_own_classes_those_of_others_and_those_of_nobody(
    tmp_path: Path,
) -> None:
    config = tiny(CASES["fedavg"], data=WITHOUT)
    folder = carry_out(config, tmp_path / "run")
    rows = folder.rows("clients.jsonl")
    assert not any("own_correct" in row for row in rows if row["round"] < 3)

    job, _ = job_and_engine(config, tmp_path / "private")
    loaded = folder.load()
    assert loaded
    context = under(loaded[1], "global")
    tests = job.exam["test"]
    assert job.unseen

    def right(x: torch.Tensor, y: torch.Tensor, classes: list[int]) -> int:
        logits = job.model.logits(Local(context).trained, x)
        said = [classes[int(row.argmax())] for row in logits[:, classes]]
        return sum(a == b for a, b in zip(said, y.tolist(), strict=True))

    a, b = (row for row in rows if row["round"] == 3 and row["client"] in "ab")
    bees = tests.y == 1
    assert a["own_correct"] == a["test_examples"]  # who knows one class says no other
    assert a["base_correct"] == a["base_examples"] == int(bees.sum())
    assert a["unseen_correct"] == a["unseen_examples"] == len(job.unseen)
    own = slice(a["test_examples"], a["test_examples"] + b["test_examples"])
    assert b["own_correct"] == right(tests.x[own, 0], tests.y[own], [0, 1])
    assert b["test_correct"] == right(tests.x[own, 0], tests.y[own], [0, 1, 2])
    assert "base_correct" not in b  # it trains on all that others do


def test_a_model_without_texts_is_not_asked_about_classes_of_nobody(tmp_path: Path) -> None:
    rows = carry_out(tiny(CASES["fedavg-probe"], data=WITHOUT), tmp_path / "run").rows(
        "clients.jsonl"
    )
    assert any("base_correct" in row for row in rows)
    assert not any("unseen_correct" in row for row in rows)


def test_without_unseen_classes_logs_say_nothing_of_them(tmp_path: Path) -> None:
    rows = carry_out(tiny(CASES["fedavg"]), tmp_path / "run").rows("clients.jsonl")
    assert not any("own_correct" in row for row in rows)
    assert last(rows).reach is None


# ---- figures and their table


def test_reach_is_the_mean_over_clients_and_its_mean_is_harmonic() -> None:
    rows = [
        {"own_correct": 9, "test_examples": 10, "base_correct": 3, "base_examples": 10}
        | {"unseen_correct": 2, "unseen_examples": 10},
        {"own_correct": 14, "test_examples": 20, "unseen_correct": 4, "unseen_examples": 10},
    ]
    figures = reach(rows)
    assert figures == Reach(own=80.0, base=30.0, unseen=30.0)
    assert figures
    assert figures.harmonic == pytest.approx(3 / (1 / 80 + 1 / 30 + 1 / 30))
    assert Reach(80.0, 30.0, None).harmonic is None
    assert Reach(80.0, 0.0, 10.0).harmonic == 0


def test_a_table_says_what_clients_know_of_other_classes(tmp_path: Path) -> None:
    for name in ("fedavg", "fedavg-probe"):
        config = tiny(CASES[name], data=WITHOUT, run={"participation": 1.0})
        carry_out(config, tmp_path / name / "seed-0")
    experiments = report.collect([tmp_path])
    text = report.written("markdown", [], report.tables(experiments))
    section = text.split("What clients know of other classes")[1]
    rows = [line for line in section.splitlines() if line.startswith("|")][:4]
    head, _, *rows = ["".join(row.split()) for row in rows]
    assert head == "|experiment|ownclasses|allclasses|base|unseen|HM|"
    assert sum(row.endswith("|-|-|") for row in rows) == 1
    flat = csv.DictReader(report.as_csv(experiments).splitlines())
    probe, prompted = sorted(flat, key=lambda row: row["unseen_classes"] != "")  # one has texts
    assert probe["unseen_classes"] == probe["harmonic_classes"] == ""
    means = [float(prompted[f"{of}_classes"]) for of in ("own", "base", "unseen")]
    harmonic = float(prompted["harmonic_classes"])
    assert harmonic == pytest.approx(statistics.harmonic_mean(means), abs=0.01)
