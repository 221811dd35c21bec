"""What goes wrong, and what it may not change: bad uploads, clients that are gone, divergence,
damaged files, two runs.

Killed and interrupted processes, and two at once in one run, are in test_crash.py, where there are
real ones.

Where each known defect of this field (the pitfalls) has its test:
   1 images under other images' labels            test_data.py
   2 training on the server's images              test_data.py
   3 parts swapped by position                    test_data.py
   4 another model's preprocessing                test_clip.py
   5 a client with one class                      test_data.py
   6 a seed that reaches nothing                  test_laws.py
   7 neighbours that are not                      test_pfedmoap.py
   8 one client's state in the next               test_laws.py
   9 a pool that changes within a round           test_pfedmoap.py
  10 one schedule stepped by all                  test_learn.py
  11 options that are words                       test_faults.py
  12 a proximal term without a gradient           test_learn.py
  13 a gate without a gradient                    test_fedmoe.py
  14 experts that are one expert                  test_tensors.py
  15 frozen weights that travel                   test_pfedmoap.py
  16 random starts, then averaged                 test_pfedmoap.py
  17 whole numbers averaged                       test_tensors.py
  18 pooling over padding                         test_clip.py
  19 the best test round                          test_report.py
  20 the best kept by reference                   test_faults.py
  21 only sampled clients evaluated               test_faults.py
  22 unequal test sets                            test_faults.py
  23 code in what a peer sends                    test_tensors.py
  24 machines inside the library                  test_rooms.py
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CASES,
    GATE,
    Case,
    Remembered,
    Spoilt,
    carry_out,
    job_and_engine,
    left_behind,
    pixels,
    same_bits,
    server,
    tiny,
)
from torch import Tensor, nn

from fedexperts.config import ConfigError
from fedexperts.engine import Engine
from fedexperts.learn import Local
from fedexperts.loop import NobodyLeftError, evaluate
from fedexperts.message import Order, Reply
from fedexperts.method import Method, Sent, Upload
from fedexperts.methods.fedavg import FedAvg
from fedexperts.model import Model
from fedexperts.models.built import Built
from fedexperts.models.network import Network, seeded
from fedexperts.private import Private
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors, pack, under, unpack

FULL = {"rounds": 3, "participation": 1.0}
MOAP = tiny(CASES["nearest"], run=FULL)
AVG = tiny(CASES["fedavg"], run=FULL)


def spoil_b(act: Callable[[Tensors], Tensors], round: int = 2) -> Any:
    """An engine in which one upload of client b, in one round, is not what it should be."""

    def spoil(reply: Reply) -> Reply:
        bad = (reply.client, reply.round, reply.task) == ("b", round, "train")
        return replace(reply, tensors=act(reply.tensors)) if bad else reply

    return lambda engine: Spoilt(engine, spoil)


def without_b(round: int = 2) -> Any:
    """An engine in which client b does not answer in one round."""
    return lambda engine: Spoilt(
        engine, lambda r: None if (r.client, r.round, r.task) == ("b", round, "train") else r
    )


def with_value(value: float) -> Callable[[Tensors], Tensors]:
    def act(tensors: Tensors) -> Tensors:
        spoilt: Tensor = tensors["context"].clone()
        spoilt[1, 2] = value
        return {"context": spoilt}

    return act


BAD: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "nan": (with_value(torch.nan), "its context has 1 values that are NaN or infinite"),
    "infinite": (with_value(torch.inf), "its context has 1 values that are NaN or infinite"),
    "shape": (
        lambda t: {"context": t["context"][:1]},
        r"its context is .*\(1, 4\).*; expected is .*\(2, 4\)",
    ),
    "stretched": (
        lambda t: {"context": t["context"][None]},
        r"its context is .*\(1, 2, 4\).*; expected",
    ),
    "type": (
        lambda t: {"context": t["context"].double()},
        "its context is .*float64.*; expected is .*float32",
    ),
    "unknown": (
        lambda t: t | {"gate.query.weight": torch.ones(1)},
        "named .*gate.query.weight.*; expected",
    ),
    "missing": (lambda t: {}, r"its tensors are named \[\]; expected are \['context'\]"),
    "renamed": (
        lambda t: {"prompt": t["context"]},
        r"named \['prompt'\]; expected are \['context'\]",
    ),
}


@pytest.mark.parametrize(("act", "why"), BAD.values(), ids=BAD)
def test_a_bad_upload_is_refused_and_the_round_goes_on(act: Any, why: str, tmp_path: Path) -> None:
    """Its client and the reason are logged; model and pool are as if the client had not
    answered.
    """
    two = tiny(CASES["nearest"], run={"rounds": 2, "participation": 1.0})
    refused = carry_out(two, tmp_path / "refused", spoil_b(act))
    silent = carry_out(two, tmp_path / "silent", without_b())
    row = refused.rows("rounds.jsonl")[1]
    assert row["refused"].keys() == {"b"}
    assert re.search(why, row["refused"]["b"])
    assert row["trained"].keys() == {*"acde"}
    ours, theirs = left_behind(refused), left_behind(silent)
    assert {name: ours[name] for name in ours if "server" in name} == {
        n: theirs[n] for n in theirs if "server" in n
    }


def test_a_refused_client_keeps_its_place_in_the_pool(tmp_path: Path) -> None:
    one = carry_out(
        tiny(CASES["nearest"], run={"rounds": 1, "participation": 1.0}), tmp_path / "one"
    )
    two = tiny(CASES["nearest"], run={"rounds": 2, "participation": 1.0})
    refused = carry_out(two, tmp_path / "two", spoil_b(with_value(torch.nan)))
    before, after = under(server(one), "pool"), under(server(refused), "pool")
    assert {name for name in before if torch.equal(before[name], after[name])} == {"b"}


@dataclass(frozen=True)
class FlatNorm:
    """A model with a batch norm over features, of which a batch of one has one value each: it
    cannot train on that.
    """

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        def make() -> nn.Module:
            return nn.Sequential(
                nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, len(classes))
            )

        return Built(Network(seeded(make, seed), classes), pixels, "")


def test_a_client_that_cannot_train_says_why_and_the_round_goes_on(tmp_path: Path) -> None:
    """Client e has one example, and no batch of five leaves one of another client's."""
    config = tiny(
        CASES["fedavg"], run=FULL, learning={"batch": 5}, model={"name": "test_faults:FlatNorm"}
    )
    folder = carry_out(config, tmp_path / "run")
    for row in folder.rows("rounds.jsonl"):
        assert row["trained"].keys() == {*"abcd"}
        assert row["refused"].keys() == {"e"}
        assert re.search("training failed: batch norm .* of one .*use.*batch", row["refused"]["e"])


class Fragile(FedAvg):
    """FedAvg that sends client b what no client can compute with."""

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        sent = super().send(server, clients, round, seed)
        return {
            c: Sent(s.tensors | {"scale": torch.full((1, 1), -1.0 if c == "b" else 1.0)})
            for c, s in sent.items()
        }

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        return Local(under(sent, "global"), {"scale": sent["scale"]})

    def penalty(self, model: Model, local: Local) -> Tensor:
        return torch.linalg.cholesky(local.fixed["scale"]).sum()


def test_a_client_that_fails_among_others_fails_alone(tmp_path: Path) -> None:
    """Whoever was computed with it is as if it had trained by itself."""
    case = Case({"name": "test_faults:Fragile"})
    many = carry_out(tiny(case, run=FULL, engine={"together": 5}), tmp_path / "many")
    row = many.rows("rounds.jsonl")[0]
    assert row["trained"].keys() == {*"acde"}
    assert row["refused"]["b"].startswith("training failed: linalg.cholesky: ")
    assert same_bits(server(many), server(carry_out(tiny(case, run=FULL), tmp_path / "one")))


def test_a_client_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    folder = carry_out(AVG, tmp_path / "run", without_b())
    assert [row["refused"] for row in folder.rows("rounds.jsonl")] == [{}, {"b": "no reply"}, {}]


@pytest.mark.parametrize("change", [{"round": 1}, {"task": "predict"}])
def test_an_answer_to_another_order_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    """A late reply of an earlier round is not this round's."""

    def late(reply: Reply) -> Reply:
        return (
            replace(reply, **change)
            if (reply.client, reply.round, reply.task) == ("b", 2, "train")
            else reply
        )

    folder = carry_out(AVG, tmp_path / "run", lambda engine: Spoilt(engine, late))
    assert [row["refused"] for row in folder.rows("rounds.jsonl")] == [{}, {"b": "no reply"}, {}]


def test_a_client_without_examples_has_nothing_to_say(tmp_path: Path) -> None:
    def empty(reply: Reply) -> Reply:
        return replace(reply, examples=0) if (reply.client, reply.task) == ("b", "train") else reply

    folder = carry_out(AVG, tmp_path / "run", lambda engine: Spoilt(engine, empty))
    assert folder.rows("rounds.jsonl")[0]["refused"] == {"b": "it trained on 0 examples"}


@pytest.mark.parametrize("answer", ["none", "an error"])
def test_a_round_goes_on_without_a_client_that_does_not_absorb(answer: str, tmp_path: Path) -> None:
    """Of a second exchange: the log says who absorbed, and the client goes on with the model that
    it trained.
    """

    @dataclass(frozen=True)
    class Deaf:
        inner: Engine

        def clients(self) -> list[str]:
            return self.inner.clients()

        def exchange(self, orders: Sequence[Order]) -> list[Reply]:
            lost = [o for o in orders if (o.client, o.round, o.task) == ("b", 2, "absorb")]
            errors = [
                Reply(o.client, o.round, o.task, error="full disk")
                for o in lost
                if answer != "none"
            ]
            return self.inner.exchange([o for o in orders if o not in lost]) + errors

    def kept(folder: RunDir) -> Tensors | None:
        return under(Private(folder.path / "private").load("b", before=3) or {}, "trained")

    sent: list[Reply] = []
    deaf = carry_out(
        tiny(CASES["fedmoe"], run=FULL),
        tmp_path / "deaf",
        lambda engine: Spoilt(Deaf(engine), listen(sent)),
    )
    (trained,) = [r.tensors for r in sent if (r.client, r.round, r.task) == ("b", 2, "train")]
    rows = deaf.rows("rounds.jsonl")
    assert [row["absorbed"].keys() for row in rows] == [{*"abcde"}, {*"acde"}, {*"abcde"}]
    assert all(row["trained"].keys() == {*"abcde"} and not row["refused"] for row in rows)
    assert same_bits(kept(deaf), trained)


def listen(heard: list[Reply]) -> Callable[[Reply], Reply]:
    def hear(reply: Reply) -> Reply:
        heard.append(reply)
        return reply

    return hear


def test_a_stranger_s_reply_is_not_taken(tmp_path: Path, remembered: Remembered) -> None:
    """Who was not asked cannot upload."""

    def renamed(reply: Reply) -> Reply:
        return replace(reply, client="z") if (reply.client, reply.task) == ("b", "train") else reply

    folder = carry_out(AVG, tmp_path / "run", lambda engine: Spoilt(engine, renamed))
    assert all(row["refused"] == {"b": "no reply"} for row in folder.rows("rounds.jsonl"))
    assert all("z" not in row["trained"] for row in folder.rows("rounds.jsonl"))


def test_with_nobody_left_the_run_stops_and_can_be_resumed(
    tmp_path: Path, remembered: Remembered
) -> None:
    """It stands at the round before; once clients are back it ends as if they had never been
    away.
    """
    gone = lambda engine: Spoilt(engine, lambda r: None if (r.round, r.task) == (2, "train") else r)  # noqa: E731
    with pytest.raises(
        NobodyLeftError, match=r"round 2: no client is left \(a: no reply; .*stands at round 1"
    ):
        carry_out(MOAP, tmp_path / "run", gone)
    assert RunDir(tmp_path / "run").done() == 1
    assert left_behind(carry_out(MOAP, tmp_path / "run")) == left_behind(remembered(MOAP))


# Divergence


def test_training_that_diverges_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    """No private state is poisoned, no tensor is uploaded; the run stops as nobody is left."""
    wild = tiny(CASES["alone-probe"], learning={"rate": 1e38, "epochs": 9}, run=FULL)
    with pytest.raises(NobodyLeftError, match="a: training diverged: .* is not finite"):
        carry_out(wild, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.private"))


def test_a_gate_that_diverges_leaves_the_last_good_one_in_place(
    tmp_path: Path, remembered: Remembered
) -> None:
    calm = carry_out(
        tiny(CASES["nearest"], run={"rounds": 2, "participation": 1.0}), tmp_path / "calm"
    )
    before = {p.name: p.read_bytes() for p in sorted((calm.path / "private" / "c").iterdir())}
    wild = tiny(Case(GATE | {"gate_rate": 1e38}), learning={"rate": 1e30}, run=FULL)
    with pytest.raises(NobodyLeftError, match="diverged"):
        carry_out(wild, calm.path)
    assert {
        p.name: p.read_bytes() for p in sorted((calm.path / "private" / "c").iterdir())
    } == before


# Damaged files: always a ValueError that names the file and says what to do; never a fresh start


@pytest.fixture
def folder(tmp_path: Path, remembered: Remembered) -> RunDir:
    """A finished run that may be damaged: its own copy."""
    shutil.copytree(remembered(MOAP).path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def damage(file: Path, act: Callable[[bytes], bytes]) -> None:
    file.write_bytes(act(file.read_bytes()))


def more(folder: RunDir) -> None:
    carry_out(tiny(CASES["nearest"], run={"rounds": 4, "participation": 1.0}), folder.path)


ACTS: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "cut": lambda data: data[:-7],
    "empty": lambda data: b"",
}
every_act = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


@every_act
@pytest.mark.parametrize("name", ["server.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_named_with_the_one_before_it(
    name: str, act: Any, folder: RunDir
) -> None:
    file = folder.path / "checkpoints" / "round-000003" / name
    damage(file, act)
    with pytest.raises(
        ValueError,
        match=rf"damaged: {file}.* backup .*, or delete {file.parent} .* from round-000002",
    ):
        more(folder)


@pytest.mark.parametrize("name", ["server.safetensors", "manifest.json"])
def test_a_missing_part_of_a_checkpoint_is_damage_too(name: str, folder: RunDir) -> None:
    file = folder.path / "checkpoints" / "round-000003" / name
    file.unlink()
    with pytest.raises(ValueError, match=f"damaged: {file}"):
        more(folder)


def test_no_digit_of_a_manifest_can_change_unseen(folder: RunDir) -> None:
    """A shorter length would cut a log; a higher round would skip one."""
    file = folder.path / "checkpoints" / "round-000003" / "manifest.json"
    whole, logs = (
        file.read_bytes(),
        [(folder.path / name).read_bytes() for name in ("rounds.jsonl", "clients.jsonl")],
    )
    digits = [place for place, byte in enumerate(whole) if chr(byte).isdigit()]
    for place in digits:
        file.write_bytes(
            whole[:place]
            + (b"1" if whole[place : place + 1] != b"1" else b"2")
            + whole[place + 1 :]
        )
        with pytest.raises(ValueError, match="damaged"):
            folder.load()
    assert logs == [(folder.path / name).read_bytes() for name in ("rounds.jsonl", "clients.jsonl")]


def test_the_older_checkpoint_leads_to_the_same_end(folder: RunDir, remembered: Remembered) -> None:
    """What the message says to do works, to the last bit."""
    shutil.rmtree(folder.path / "checkpoints" / "round-000003")
    carry_out(MOAP, folder.path)
    assert left_behind(folder) == left_behind(remembered(MOAP))


def test_a_last_damaged_checkpoint_leaves_only_a_new_folder(folder: RunDir) -> None:
    shutil.rmtree(folder.path / "checkpoints" / "round-000002")
    damage(folder.path / "checkpoints" / "round-000003" / "manifest.json", ACTS["cut"])
    with pytest.raises(ValueError, match="or start anew in another folder"):
        more(folder)


MIXTURE = dict.fromkeys(("main.0.w", "expert.0.w", "expert.12.a.w", "expert.12.b"), torch.ones(3))
REST = dict.fromkeys(("gate.w", "alpha", "global.layers.0.w", "pool.3"), torch.zeros(2))


@pytest.fixture
def mixture(tmp_path: Path) -> RunDir:
    """A run that was saved once, with a large mixture on its server."""
    folder = RunDir.create(tmp_path / "run", "", {})
    folder.save(0, MIXTURE | REST)
    return folder


def test_a_mixture_is_saved_expert_by_expert(mixture: RunDir) -> None:
    """Each numbered group of tensors has its file; all else, a client named 3 among it, stays in
    the server's.
    """
    files = {path.name: path for path in (mixture.path / "checkpoints" / "round-000000").iterdir()}
    groups = {"main.0.safetensors", "expert.0.safetensors", "expert.12.safetensors"}
    assert files.keys() == groups | {"server.safetensors", "manifest.json", "seconds.json"}
    assert unpack(files["expert.12.safetensors"].read_bytes()).keys() == {
        "expert.12.a.w",
        "expert.12.b",
    }
    assert files["server.safetensors"].read_bytes() == pack(REST)
    assert same_bits(server(mixture), MIXTURE | REST)


def test_a_client_with_any_name_is_saved(mixture: RunDir) -> None:
    """At worst it has a file of its own."""
    pool = {
        f"pool.{name}": torch.ones(1)
        for name in ("3", "3.", "3.4", "../x", "3./x", "server", "manifest.json")
    }
    mixture.save(1, pool)
    assert server(mixture).keys() == pool.keys()


@every_act
@pytest.mark.parametrize("name", ["server", "main.0", "expert.12"])
def test_a_damaged_expert_is_named(name: str, act: Any, mixture: RunDir) -> None:
    file = mixture.path / "checkpoints" / "round-000000" / f"{name}.safetensors"
    damage(file, act)
    with pytest.raises(ValueError, match=f"damaged: {file}"):
        mixture.load()
    file.unlink()
    with pytest.raises(ValueError, match=f"damaged: {file}"):
        mixture.load()


def test_removed_checkpoints_are_not_a_fresh_start(folder: RunDir) -> None:
    shutil.rmtree(folder.path / "checkpoints")
    for ask in (more, RunDir.done, lambda f: f.rows("rounds.jsonl")):
        with pytest.raises(
            ValueError,
            match="checkpoints has no checkpoint, yet rounds were logged.*[Rr]estore them",
        ):
            ask(folder)


@pytest.mark.parametrize("act", [ACTS["cut"], ACTS["empty"]], ids=["cut", "empty"])
@pytest.mark.parametrize("log", ["rounds.jsonl", "clients.jsonl"])
def test_a_shortened_log_is_named(log: str, act: Any, folder: RunDir) -> None:
    damage(folder.path / log, act)
    for ask in (more, lambda f: f.rows(log)):
        with pytest.raises(
            ValueError, match=rf"{log} has \d+ bytes, yet the checkpoint was written when it had"
        ):
            ask(folder)


def test_a_lost_log_is_named(folder: RunDir) -> None:
    (folder.path / "clients.jsonl").unlink()
    for ask in (more, lambda f: f.rows("clients.jsonl")):
        with pytest.raises(ValueError, match="clients.jsonl has 0 bytes"):
            ask(folder)


def test_an_unreadable_log_is_named(folder: RunDir) -> None:
    damage(folder.path / "rounds.jsonl", lambda data: data.replace(b"{", b"?", 1))
    with pytest.raises(ValueError, match=r"rounds.jsonl is damaged .*: put a backup in its place"):
        folder.rows("rounds.jsonl")


def test_what_a_crash_left_behind_the_checkpoint_is_cut_off(
    folder: RunDir, remembered: Remembered
) -> None:
    whole = folder.rows("rounds.jsonl")
    with open(folder.path / "rounds.jsonl", "a") as log:
        log.write('{"round": 4, "half a li')
    assert folder.rows("rounds.jsonl") == whole
    folder.load()
    assert left_behind(folder) == left_behind(remembered(MOAP))


@every_act
def test_a_damaged_private_state_is_named_and_only_its_client_begins_afresh(
    act: Any, folder: RunDir
) -> None:
    file = folder.path / "private" / "c" / "round-000003.private"
    damage(file, act)
    with pytest.raises(
        ValueError, match=rf"private state of client c is damaged: {file}.*--forget c"
    ):
        more(folder)
    folder.forget("c")
    more(folder)
    assert folder.done() == 4


def test_two_runs_never_share_a_folder(folder: RunDir) -> None:
    with pytest.raises(
        ValueError, match="run is there already: two runs never share a folder.*fedexperts resume"
    ):
        RunDir.create(folder.path, "", {})
    assert folder.done() == 3


# Evaluation, and options


def test_every_client_is_evaluated_whoever_was_sampled(tmp_path: Path) -> None:
    """Pitfall 21: one of five is trained, five are asked, in the rounds asked for."""
    few = tiny(CASES["nearest"], run={"rounds": 5, "participation": 0.2, "evaluate_every": 2})
    folder = carry_out(few, tmp_path / "run")
    assert all(len(row["trained"]) == 1 for row in folder.rows("rounds.jsonl"))
    asked = [(row["round"], row["client"]) for row in folder.rows("clients.jsonl")]
    assert asked == [(round, client) for round in (0, 2, 4, 5) for client in "abcde"]


def test_a_client_is_evaluated_with_what_the_round_itself_taught_it(
    remembered: Remembered, tmp_path: Path
) -> None:
    """By hand: its newest private state, on its own test part; the global column from the model's
    start.
    """
    folder = remembered(tiny(CASES["alone"], run=FULL))
    job, engine = job_and_engine(tiny(CASES["alone"], run=FULL), folder.path / "private")
    for row in folder.rows("clients.jsonl")[-5:]:
        site = engine.members[row["client"]]
        own = site.private.load(site.name, before=4)
        assert own is not None
        for column, tensors in (
            ("test", under(own, "trained")),
            ("test_global", job.model.initial),
        ):
            right = job.model.logits(tensors, site.test.x[:, 0]).argmax(-1) == site.test.y
            assert row[f"{column}_correct"] == int(right.sum())


def test_every_method_is_measured_on_the_same_examples(remembered: Remembered) -> None:
    """Pitfall 22: local and global accuracies are columns of one row, over one test part, whatever
    the method.
    """
    rows = {name: remembered(tiny(case)).rows("clients.jsonl") for name, case in CASES.items()}
    sizes = [
        [(r["client"], r["valid_examples"], r["test_examples"]) for r in each]
        for each in rows.values()
    ]
    assert all(each == sizes[0] for each in sizes)
    first, last = rows["alone"][:5], rows["alone"][-5:]
    assert [row["test_global_correct"] for row in first] == [
        row["test_global_correct"] for row in last
    ]
    assert [row["test_correct"] for row in first] != [row["test_correct"] for row in last]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_state_that_was_handed_out_is_never_written_over(case: Case, tmp_path: Path) -> None:
    """Pitfall 20: whoever keeps a server's state or a reply has what it was, not what it became."""
    job, engine = job_and_engine(tiny(case), tmp_path)
    method: Method = job.method
    kept: list[tuple[Tensors, bytes]] = []
    state = method.open(job.given)
    for round in (1, 2, 3):
        sent = method.send(state, "abcde", round, 0)
        replies = engine.exchange([Order(c, round, "train", s.tensors) for c, s in sent.items()])
        for tensors in (
            state,
            job.model.initial,
            *(s.tensors for s in sent.values()),
            *(r.tensors for r in replies),
        ):
            kept.append((tensors, pack(tensors)))
        uploads = [Upload(r.client, r.tensors, r.examples) for r in replies]
        state = method.merge(job.given, state, uploads, round)
        back = method.give_back(state, uploads)
        kept += [
            (tensors, pack(tensors)) for tensors in (state, *(b.tensors for b in back.values()))
        ]
        engine.exchange([Order(c, round, "absorb", b.tensors) for c, b in back.items()])
    assert all(pack(tensors) == then for tensors, then in kept)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "bias", "False"),
        ("method", "experts", "4"),
        ("method", "lam", True),
        ("run", "rounds", 2.5),
    ],
)
def test_an_option_has_a_type(section: str, key: str, value: Any) -> None:
    """Pitfall 11: the word "False" is not false."""
    with pytest.raises(ConfigError, match=re.escape(f"{section}.{key} = {value!r}: ")):
        tiny(CASES["nearest"], **{section: {key: value}})


def test_a_client_never_speaks_for_another(tmp_path):
    """A reply's facts cannot change the client and the round under which the server logs them: it
    asked for neither.
    """

    @dataclass(frozen=True)
    class Forger:
        inner: Engine

        def clients(self):
            return self.inner.clients()

        def exchange(self, orders):
            forged = {"client": "somebody else", "round": 99}
            replies = self.inner.exchange(orders)
            return [replace(r, facts=r.facts | forged) if r.client == "b" else r for r in replies]

    job, engine = job_and_engine(tiny(CASES["fedavg"]), tmp_path / "private")
    rows, remarks = evaluate(job, Forger(engine), job.method.open(job.given), 0, {})
    assert [row["client"] for row in rows] == [*"acde"]
    assert remarks == {"unanswered": {"b": "it says 'client', for which nobody asked"}}
    assert {row["round"] for row in rows} == {0}
