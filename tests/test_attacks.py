"""A site that lies, as a person would write one: tables of lies, and what came of each.

Client b of the tiny world is the liar, and tells another lie in every round; the others are honest.
Whatever it says, the run goes on, the log says why it was refused, and whoever looks at the run
sees words and nothing else. Lies in bytes, before there is a reply, are in test_flower.py,
test_tensors.py and test_fuzz.py; those of a whole site on a network in test_deploy.py.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, Case, Wire, carry_out, job_and_engine, server, tiny
from rich.console import Console
from torch import Tensor

from fedexperts.admission import Guard, Terms, admit, cleaned, unlike
from fedexperts.config import only_simulated
from fedexperts.engine import Engine
from fedexperts.learn import Local
from fedexperts.message import Order, Reply
from fedexperts.method import Upload
from fedexperts.methods.fedavg import FedAvg
from fedexperts.model import Model
from fedexperts.predictor import Predictor
from fedexperts.report import collect, tables, write_html
from fedexperts.rundir import RunDir
from fedexperts.study import once
from fedexperts.tensors import Tensors, named, normal_of_this_machine

FULL = {"participation": 1.0}
TERMS = Terms(Guard(), {}, frozenset(), 3)
Lie = Callable[[Reply], Reply | list[Reply]]


@dataclass(frozen=True)
class Lying:
    """An engine whose client b answers, in each round that `lies` knows, with a lie instead of its
    reply to a task.
    """

    inner: Engine
    lies: dict[tuple[int, str], Lie]
    liars: str = "b"

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        said: list[Reply] = []
        for reply in self.inner.exchange(orders):
            lie = self.lies.get((reply.round, reply.task)) if reply.client in self.liars else None
            told = lie(reply) if lie else reply
            said += told if isinstance(told, list) else [told]
        return said


def lying(lies: dict[tuple[int, str], Lie], liars: str = "b") -> Callable[[Engine], Engine]:
    return lambda engine: Lying(Wire(engine), lies, liars)


# ---- numbers that end a run


def filled(value: float) -> Lie:
    """Every number is this one, its sign as it was; what counts is as it was."""
    return changed(lambda x: torch.full_like(x, value) * torch.where(x < 0, -1, 1).to(x.dtype))


def changed(act: Callable[[Tensor], Tensor]) -> Lie:
    def lie(reply: Reply) -> Reply:
        return replace(
            reply,
            tensors={n: act(t) if t.is_floating_point() else t for n, t in reply.tensors.items()},
        )

    return lie


def one_of(value: float) -> Lie:
    """One number in the last tensor is this one, and all others are honest."""

    def lie(reply: Reply) -> Reply:
        name = max(name for name, tensor in reply.tensors.items() if tensor.is_floating_point())
        odd = reply.tensors[name].clone()
        odd.view(-1)[0] = value
        return replace(reply, tensors=reply.tensors | {name: odd})

    return lie


NUMBERS: dict[int, tuple[Lie, str]] = {
    2: (filled(1e30), r"has numbers up to 1e\+30; at most 10000 is taken"),
    3: (one_of(-3e38), r"has numbers up to 3e\+38; at most 10000 is taken"),
    4: (filled(1e-40), ""),  # too small to harm
    5: (changed(lambda x: -10 * x), ""),
    6: (one_of(math.nan), "has 1 values that are NaN or infinite"),
    7: (filled(math.inf), "values that are NaN or infinite"),
}
UPLOADING = {
    name: case
    for name, case in CASES.items()
    if case.method["name"] not in ("alone", "central") and name != "tip-adapter"  # it uploads none
}
every_uploading = pytest.mark.parametrize("case", UPLOADING.values(), ids=UPLOADING)


@every_uploading
def test_no_upload_ends_a_run_for_good(case: Case, tmp_path: Path) -> None:
    """What is absurd is refused by name, what is not does no lasting harm: at the end all train,
    the liar too.
    """
    config = tiny(case, run=FULL | {"rounds": 9, "evaluate_every": 9})
    run = carry_out(
        config, tmp_path / "run", lying({(r, "train"): lie for r, (lie, _) in NUMBERS.items()})
    )
    rows = run.rows("rounds.jsonl")
    for row in rows:
        _, why = NUMBERS.get(row["round"], (None, ""))
        assert row["trained"].keys() >= {*"acde"}, row["refused"]
        assert all(math.isfinite(facts["loss"]) for facts in row["trained"].values())
        assert re.search(why, row["refused"].get("b", ""))
    assert rows[-1]["refused"] == {}
    assert all(torch.isfinite(value).all() for value in server(run).values())


def as_far_as_it_is_taken(reply: Reply) -> Reply:
    """Every number lies 1.8 from 0 with its sign: nearly as far as one client alone is believed."""
    return filled(1.8)(reply)  # type: ignore[return-value]


@every_uploading
def test_not_even_where_it_is_the_only_one(case: Case, tmp_path: Path) -> None:
    """One client a round, so that there is no median: the round passes without it, and later honest
    ones train.
    """
    lies: dict[tuple[int, str], Lie] = {(1, "train"): filled(1e30), (2, "train"): filled(9999)}
    lies |= {(3, "train"): as_far_as_it_is_taken, (4, "train"): filled(30)}
    config = tiny(case, run={"rounds": 8, "participation": 0.2, "evaluate_every": 8})
    rows = carry_out(config, tmp_path / "run", lying(lies, "abcde")).rows("rounds.jsonl")
    assert [bool(row["trained"]) for row in rows] == [False, False, True, False, *4 * [True]]
    assert "at most 10000 is taken" in str(rows[0]["refused"])
    assert "from the global tensors; at most" in str(rows[1]["refused"])


def test_times_minus_ten_is_far_where_honest_clients_move_little(tmp_path: Path) -> None:
    """It is no absurd number; but nobody else lies nearly as far from what was sent."""
    config = tiny(CASES["fedavg"], run=FULL | {"rounds": 2}, learning={"rate": 0.001})
    run = carry_out(config, tmp_path / "run", lying({(2, "train"): NUMBERS[5][0]}))
    row = run.rows("rounds.jsonl")[1]
    assert row["refused"]["b"].startswith("its upload lies ")
    assert "from the global tensors; at most " in row["refused"]["b"]


KINDS: dict[str, tuple[Tensor, str]] = {
    "half": (torch.tensor([300.0]).half(), "its x has numbers up to 300; at most 255.9"),
    "bfloat16": (
        torch.tensor([-2e4]).bfloat16(),
        "its x has numbers up to 2e\\+04; at most 10000 is taken",
    ),
    "double": (torch.tensor([1e200], dtype=torch.float64), "its x has numbers up to 1e\\+200"),
    "count": (
        torch.tensor(2**62),
        r"its x has numbers up to 4.61e\+18; at most 9.007\d*e\+15 is taken",
    ),
    "least": (torch.tensor(-(2**63)), r"its x has numbers up to 9.22e\+18"),
}


@pytest.mark.parametrize(("value", "why"), KINDS.values(), ids=KINDS)
def test_numbers_of_every_type_have_a_bound(value: Tensor, why: str) -> None:
    """That of a half is where its squares end."""
    assert re.search(why, unlike({"x": value}, {"x": torch.zeros_like(value)}, TERMS))
    assert unlike({"x": torch.ones_like(value)}, {"x": value}, TERMS) == ""
    assert unlike({"x": torch.empty(0)}, {"x": torch.empty(0)}, TERMS) == ""


def test_what_moves_by_itself_may_be_large_and_is_far_by_its_own_median() -> None:
    """A batch norm's variances have the size of what it sees; training does not read them, and
    predictions do.
    """
    start = {"w": torch.zeros(1), "1.running_var": torch.ones(1)}
    terms = Terms(Guard(), {}, frozenset({"1.running_var"}), 3)

    def admitted(*variances: float) -> dict[str, str]:
        uploads = [
            start | {"w": torch.ones(1), "1.running_var": torch.tensor([var])} for var in variances
        ]
        assert not any(unlike(tensors, start, terms) for tensors in uploads)
        came = [Upload(f"{i}", t, 1) for i, t in enumerate(uploads)]
        return admit(came, {upload.client: start for upload in came}, {}, terms).refused

    assert admitted(1e6, 2e6, 3e6) == {}
    assert admitted(2.0, 2.0, 2.0, 1e6).keys() == {"3"}
    huge = start | {"1.running_var": torch.tensor([1e30])}
    assert (
        unlike(huge, start, terms)
        == "its 1.running_var has numbers up to 1e+30; at most 1.84467e+19 is taken"
    )


def test_a_variance_is_not_negative() -> None:
    bad = {"1.running_var": torch.tensor([1.0, -0.1])}
    assert unlike(bad, bad, TERMS) == "its 1.running_var has variances below 0"


class Summing(FedAvg):
    """A method that makes more of the loudest upload."""

    def merge(self, given: Any, server: Tensors, uploads: Sequence[Upload], round: int) -> Tensors:
        loudest = max(uploads, key=lambda upload: float(upload.tensors["context"].abs().max()))
        return named("global", {name: 1e5 * value for name, value in loudest.tensors.items()})


def test_an_upload_with_which_nobody_could_go_on_is_left_out(tmp_path: Path) -> None:
    """Each upload is within bounds, and what they make is not: the farthest goes, and then the
    next.
    """
    config = tiny(Case({"name": "test_attacks:Summing"}), run=FULL | {"rounds": 1})
    quiet = lying({(1, "train"): filled(0.01)}, "c")
    row = carry_out(config, tmp_path / "run", quiet).rows("rounds.jsonl")[0]
    assert row["trained"].keys() == {"c"}
    assert row["refused"].keys() == {*"abde"}
    why = r"once it was merged, global.context has numbers up to \S+; at most 5000 is taken"
    assert all(re.fullmatch(why, said) for said in row["refused"].values())


# ---- weights


def counting(examples: int) -> Lie:
    return lambda reply: replace(reply, examples=examples)


def test_nobody_owns_the_average_by_a_lie_about_its_examples(tmp_path: Path) -> None:
    """Ten medians at most, and what it said before is in the log."""
    config = tiny(CASES["fedavg"], run=FULL | {"rounds": 3})
    run = carry_out(config, tmp_path / "run", lying({(2, "train"): counting(2**53 - 1)}))
    _, second, third = run.rows("rounds.jsonl")
    assert second["capped"] == {"b": "of 9007199254740991 examples 27 count"}  # all others together
    assert second["changed"] == {"b": "examples 9 -> 9007199254740991"}
    assert third["changed"] == {"b": "examples 9007199254740991 -> 9"}
    assert "capped" not in third


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ({"a": 40, "b": 50, "c": 60}, {"a": 40, "b": 50, "c": 60}),  # honest
        ({"a": 40, "b": 50, "c": 2**53}, {"a": 40, "b": 50, "c": 90}),  # no more than all others
        (
            {**dict.fromkeys("abcdefghijklmno", 40), "z": 2**53},
            {**dict.fromkeys("abcdefghijklmno", 40), "z": 400},
        ),
        ({"a": 40, "b": 2**53}, {"a": 40, "b": 40}),
        ({"b": 2**53}, {"b": 2**53}),  # alone it is the average anyway
        ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_a_count_has_a_bound(said: dict[str, int], count: dict[str, int]) -> None:
    nothing: Tensors = {"x": torch.zeros(1)}
    admitted = admit(
        [Upload(c, nothing, n) for c, n in said.items()], dict.fromkeys(said, nothing), {}, TERMS
    )
    assert {upload.client: upload.examples for upload in admitted.uploads} == count


# ---- what is said beside the tensors

ESCAPES = "\x1b[31mred\x1b[0m \x9b31m [bold]markup[/] [/] <script>alert(1)</script> "
ESCAPES += "\u202edrow\u2066 \ud800 \x00\r\n\x07end " + "x" * 5000


def saying(**facts: Any) -> Lie:
    return lambda reply: replace(reply, facts=reply.facts | facts)


def silent_on(name: str) -> Lie:
    return lambda reply: replace(
        reply, facts={key: value for key, value in reply.facts.items() if key != name}
    )


def bringing(reply: Reply) -> Reply:
    return replace(reply, tensors={"context": torch.zeros(2, 4)})


def as_client(name: str) -> Lie:
    return lambda reply: replace(reply, client=name)


def twice(reply: Reply) -> list[Reply]:
    return [reply, reply]


def hung(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


LIES: dict[str, list[tuple[Lie, str]]] = {
    "train": [
        (saying(loss=math.nan), "its loss is nan; expected is a number"),
        (saying(loss=math.inf), "its loss is inf; expected is a number"),
        (saying(loss=10**400), "its loss is 1000.*; expected is a number"),
        (saying(loss="0.5"), "its loss is '0.5'; expected is a number"),
        (saying(loss=True), "its loss is True; expected is a number"),
        (saying(loss=[0.5]), "its loss is a list; expected is a number"),
        (saying(loss=hung(500)), "its loss is a list; expected is a number"),
        (saying(loss=None), "its loss is a NoneType"),
        (silent_on("loss"), "it does not say its loss"),
        (
            saying(bytes=-1),
            "its bytes is -1; expected is a whole number from 0 to 9007199254740991",
        ),
        (saying(bytes=0.5), "its bytes is 0.5; expected is a whole number"),
        (saying(received=["a"]), "it says 'received', for which nobody asked"),
        (saying(**{ESCAPES: 1}), "for which nobody asked"),
        (counting(0), "it trained on 0 examples"),
        (counting(-1), "it trained on -1 examples"),
        (counting(10**400), "it trained on 10000000000000000000 examples"),
        (
            lambda reply: replace(reply, error=ESCAPES),
            r"^\[31mred\[0m 31m \[bold\]markup\[/\] \[/\] <script>",
        ),
        (lambda reply: replace(reply, error="\x07"), "it failed and does not say why"),
        (as_client("a"), "no reply"),
        (lambda reply: replace(reply, round=1), "no reply"),
        (lambda reply: replace(reply, task="predict"), "no reply"),
        (twice, "2 replies came in its name"),
    ],
    "predict": [
        (saying(test_correct=21), "its test_correct is 21 of 20 examples"),
        (
            saying(test_correct=2**53, test_examples=1),
            "its test_correct is 9007199254740992; expected",
        ),
        (saying(test_global_correct=-1), "its test_global_correct is -1; expected"),
        (saying(valid_correct=5), "its valid_correct is 5 of 4 examples"),
        (saying(valid_correct=0.5), "its valid_correct is 0.5; expected is a whole number"),
        (
            saying(test_examples=0, test_correct=0, test_global_correct=0),
            "its test_examples is 0; expected",
        ),
        (silent_on("test_examples"), "it does not say its test_examples"),
        (saying(client="a"), "it says 'client', for which nobody asked"),
        (silent_on("test_bin_sure"), "it does not say its test_bin_sure"),
        (saying(test_bin_examples=[20]), "it does not say 10 bins of confidence"),
        (saying(test_bin_correct=[0] * 9 + [0.5]), "its test_bin_correct is a list; expected"),
        (saying(test_bin_examples=[19, *[0] * 9]), "its bins of confidence do not add up"),
        (saying(test_bin_sure=[20.0, *[0] * 9]), "its bin 0 of confidence has"),
        (
            saying(
                test_correct=20,
                test_bin_correct=[20, *[0] * 9],
                test_bin_examples=[*[0] * 9, 20],
                test_bin_sure=[*[0] * 9, 19.0],
            ),
            "its bin 0 of confidence has 20 correct of 0",
        ),
        (saying(test_confusion=[0, 21]), "its confusion matrix does not add up to its examples"),
        (saying(test_confusion=[9, 20]), "its confusion matrix is not one of 3 classes"),
        (saying(test_confusion=[0]), "its confusion matrix is not one of 3 classes"),
        (
            saying(shares=[0.25] * 4),
            "its shares is a list; expected is at most 3 times a number from -0.01 to 1.01",
        ),
        (saying(shares=[1.0, math.nan]), "its shares is a list; expected"),
        (saying(shares=0.5), "its shares is 0.5; expected"),
        (
            saying(experts_apart="far"),
            "its experts_apart is 'far'; expected is a number from -0.01 to 2.01",
        ),
        (bringing, r"its tensors are named \['context'\]; expected are \[\]"),
        (lambda reply: replace(reply, error=ESCAPES), "<script>"),
        (twice, "2 replies came in its name"),
    ],
}


@pytest.fixture(scope="module")
def lied_to(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run in which client b tells every lie of the tables, one a round."""
    lies = {(r, task): lie for task, told in LIES.items() for r, (lie, _) in enumerate(told, 2)}
    rounds = 2 + max(map(len, LIES.values()))
    config = tiny(CASES["nearest"], run=FULL | {"rounds": rounds})
    return carry_out(
        config, tmp_path_factory.mktemp("lies") / "run", lambda engine: Lying(engine, lies)
    )


TOLD = [
    pytest.param(task, round, why, id=f"{task}-{round}")
    for task, told in LIES.items()
    for round, (_, why) in enumerate(told, 2)
]


@pytest.mark.parametrize(("task", "round", "why"), TOLD)
def test_what_cannot_be_is_refused_with_its_reason(
    task: str, round: int, why: str, lied_to: RunDir
) -> None:
    log, key = {"train": ("rounds.jsonl", "refused"), "predict": ("server.jsonl", "unanswered")}[
        task
    ]
    (row,) = [row for row in lied_to.rows(log) if row["round"] == round]
    assert row[key].keys() - {"a"} == {"b"}
    assert re.search(why, row[key]["b"]), row[key]["b"]
    assert len(row[key]["b"]) <= 1000
    assert row[key]["b"].isprintable()


def test_in_another_clients_name_nobody_is_believed(lied_to: RunDir) -> None:
    """In this process nobody proves who he is; on Flower the server knows whose reply it is
    (test_flower.py).
    """
    forged = 2 + next(i for i, (_, why) in enumerate(LIES["train"]) if why == "no reply")
    assert lied_to.rows("rounds.jsonl")[forged - 1]["refused"] == {
        "a": "2 replies came in its name",
        "b": "no reply",
    }


def test_who_looks_at_a_run_that_was_lied_to_sees_words_and_nothing_else(
    lied_to: RunDir, tmp_path: Path
) -> None:
    """In a terminal no escape, on the page no element, and every table and picture is there."""
    experiments = collect([lied_to.path])
    console = Console(record=True, width=200, file=io.StringIO())
    for table in tables(experiments):
        console.print(table)
    write_html(experiments, tmp_path / "report.html")
    for text in (console.export_text(), (tmp_path / "report.html").read_text()):
        assert "uploads refused" in text
        assert not [c for c in text if c in "\x1b\x9b\x07\x00\u202e\u2066"]
        assert "<script" not in text
    assert "[bold]markup[/] [/]" in (tmp_path / "report.html").read_text()


def test_a_round_in_which_nobody_answers_an_evaluation_is_a_gap(tmp_path: Path) -> None:
    lies = {(2, "predict"): saying(test_correct=-1)}
    run = carry_out(
        tiny(CASES["nearest"], run=FULL | {"rounds": 3}), tmp_path / "run", lying(lies, "abcde")
    )
    assert [row["round"] for row in run.rows("clients.jsonl")] == sorted(5 * [0, 1, 3])
    assert run.rows("server.jsonl")[2]["unanswered"].keys() == {*"abcde"}
    write_html(collect([run.path]), tmp_path / "report.html")
    last = carry_out(
        tiny(CASES["nearest"], run=FULL | {"rounds": 2}), tmp_path / "last", lying(lies, "abcde")
    )
    write_html(collect([last.path]), tmp_path / "report.html")
    assert (
        "no client answered the evaluation after its last round"
        in (tmp_path / "report.html").read_text()
    )


def test_what_a_client_says_of_its_test_part_does_not_change_in_silence(tmp_path: Path) -> None:
    nothing = [0] * 10
    many = saying(
        test_examples=2000,
        test_correct=0,
        test_bin_examples=[2000, *nothing[1:]],
        test_bin_sure=nothing,
        test_bin_correct=nothing,
    )
    config = tiny(CASES["fedavg"], run=FULL | {"rounds": 3})
    run = carry_out(config, tmp_path / "run", lying({(2, "predict"): many}))
    assert run.rows("server.jsonl")[2]["changed"] == {"b": "test_examples 20 -> 2000"}


def test_who_does_not_absorb_is_named(tmp_path: Path) -> None:
    lies = {(1, "absorb"): saying(after_correct=10**6), (2, "absorb"): bringing}
    rows = carry_out(tiny(CASES["fedmoe"], run=FULL), tmp_path / "run", lying(lies)).rows(
        "rounds.jsonl"
    )
    assert rows[0]["not_absorbed"] == {"b": "its after_correct is 1000000 of 20 examples"}
    assert "expected are []" in rows[1]["not_absorbed"]["b"]
    assert "not_absorbed" not in rows[2]


def test_words_from_outside_are_cut_and_cleaned() -> None:
    words = cleaned(ESCAPES)
    assert words.startswith(
        "[31mred[0m 31m [bold]markup[/] [/] <script>alert(1)</script> drow    end xxx"
    )
    assert len(words) == 1000
    assert cleaned("Kraków, 東京\n\tand so on ") == "Kraków, 東京  and so on"


def test_a_client_sends_no_figure_that_its_method_does_not_declare(tmp_path: Path) -> None:
    """As with tensors: the client itself stops before anything is sent."""
    config = tiny(Case({"name": "test_attacks:Talkative"}))
    with pytest.raises(
        ValueError, match=r"was about to send \['age'\]; its method lets only \[\] leave"
    ):
        carry_out(config, tmp_path / "run")


class Talkative(FedAvg):
    def predictor(self, model: Model, local: Local) -> Predictor:
        return Chatty(model, local)


class Chatty(Predictor):
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {"age": 47}


# ---- a run that is going on already, and noise


def test_of_two_who_resume_at_once_one_goes_on(tmp_path: Path) -> None:
    config = tiny(CASES["fedavg"], run=FULL | {"rounds": 2})

    def second(_: int) -> None:
        with pytest.raises(ValueError, match="is being run by another process"):
            carry_out(config, tmp_path / "run")

    assert carry_out(config, tmp_path / "run", tell=second).done() == 2


def test_the_noise_of_a_site_is_its_machines_own(tmp_path: Path) -> None:
    """Asked twice in a simulation it uploads the same; deployed, another noise of the same size
    each time.
    """
    job, engine = job_and_engine(tiny(CASES["clipped"]), tmp_path)
    order = Order("b", 1, "train", job.method.publish(job.method.open(job.given)))

    def upload(deployed: bool) -> Tensor:
        (reply,) = replace(engine, job=replace(job, deployed=deployed)).exchange([order])
        return reply.tensors["context"]

    assert upload(False).equal(upload(False))
    assert not upload(True).allclose(upload(True), atol=1e-3)
    assert not upload(True).allclose(upload(False), atol=1e-3)


def test_noise_of_this_machine_is_normal() -> None:
    drawn = normal_of_this_machine(torch.Size([100, 1000]))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    assert float((drawn.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.005)


def test_a_run_says_whose_noise_is_simulated(tmp_path: Path) -> None:
    once(tiny(CASES["clipped"], run=FULL | {"rounds": 1}), tmp_path / "run")
    write_html(collect([tmp_path / "run"]), tmp_path / "report.html")
    assert (
        "the noise on uploads is simulated: it follows from the seed"
        in (tmp_path / "report.html").read_text()
    )
    deployed = tiny(CASES["clipped"], engine={"name": "flower"})
    assert only_simulated(deployed) == only_simulated(tiny(CASES["nearest"])) == ""
