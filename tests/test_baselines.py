"""Fed-MoE's baselines, done again by hand: the reserve set alone, averages tuned on it, and
FedJETs.
"""

from dataclasses import replace

import pytest
import torch
from conftest import CASES, carry_out, given, job_and_engine, same_bits, server, tiny
from torch.nn.functional import cross_entropy

from fedexperts.average import mean
from fedexperts.client import answer
from fedexperts.config import parts
from fedexperts.learn import Examples, Learning
from fedexperts.message import Order
from fedexperts.method import Upload
from fedexperts.methods.central import Central, FineTuned
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.fedjets import FedJETs
from fedexperts.models.mixture import Mixture
from fedexperts.models.network import Network
from fedexperts.tensors import named, rng, size, under

CLASSES = ("yes", "no")
draw = rng(0, "baselines")
RESERVE = Examples(torch.randn(12, 1, 2, generator=draw), torch.randint(2, (12,), generator=draw))


def linear(classes=CLASSES):
    with torch.random.fork_rng():
        torch.manual_seed(len(classes))
        return Network(torch.nn.Linear(2, len(classes)), classes)


def descended(model, tensors, steps, rate):
    """Steps of gradient descent on the whole reserve set."""
    for _ in range(steps):
        tensors = {name: value.clone().requires_grad_() for name, value in tensors.items()}
        loss = cross_entropy(model.logits(tensors, RESERVE.x[:, 0]), RESERVE.y)
        slopes = torch.autograd.grad(loss, list(tensors.values()))
        tensors = {
            name: (value - rate * slope).detach()
            for (name, value), slope in zip(tensors.items(), slopes, strict=True)
        }
    return tensors


def close(one, other):
    return one.keys() == other.keys() and all(
        torch.allclose(one[n], other[n], rtol=1e-5, atol=1e-6) for n in one
    )


WHOLE = Learning(batch=12, optimizer="sgd")  # a step is the whole set: its order is nothing


def what(model):
    return replace(given(model, RESERVE), learning=WHOLE)


UPLOADS = [
    Upload(client, {name: value + shift for name, value in linear().initial.items()}, examples)
    for client, shift, examples in (("a", 1.0, 1), ("b", -2.0, 3))
]


# ---- local fine-tuning, and data in one place


def test_a_client_predicts_with_what_it_trained_and_sends_the_same(tmp_path):
    config = tiny(CASES["fedavg-personal"], run={"rounds": 1, "participation": 1.0})
    plain = tiny(CASES["fedavg"], run={"rounds": 1, "participation": 1.0})
    personal = carry_out(config, tmp_path / "personal")
    assert same_bits(server(personal), server(carry_out(plain, tmp_path / "plain")))
    rows = [row for row in personal.rows("clients.jsonl") if row["round"] == 1]
    own, shared = (sum(row[key] for row in rows) for key in ("test_correct", "test_global_correct"))
    assert own > shared


def test_with_pooled_data_a_client_trains_on_all_and_is_tested_on_its_own(tmp_path):
    schedule = {"rounds": 1, "participation": 0.01}
    apart, pooled = (
        carry_out(tiny(CASES["fedavg"], run=schedule | {"pooled": pooled}), tmp_path / str(pooled))
        for pooled in (False, True)
    )
    counts = parts(tiny(CASES["fedavg"]))[0].counts()
    everybody = sum(sum(own["train"]) for own in counts.values())
    (one,), (whole,) = (run.rows("rounds.jsonl")[0]["trained"].values() for run in (apart, pooled))
    assert one["examples"] < whole["examples"] == everybody
    for row in pooled.rows("clients.jsonl"):
        assert row["test_examples"] == sum(counts[row["client"]]["test"])


# ---- the reserve set


@pytest.mark.parametrize(
    "model", [linear(), Mixture(linear(), linear(("one", "two", "three")), 1, 1)]
)
def test_central_descends_the_reserve_set_before_the_first_round(model):
    opened = Central(epochs=3, rate=0.1).open(what(model))
    assert close(opened, named("global", descended(model, model.initial, 3, 0.1)))


def test_central_is_what_everybody_has_and_rounds_change_nothing_of_it(tmp_path):
    none, three = (
        carry_out(tiny(CASES["central"], run={"rounds": rounds}), tmp_path / str(rounds))
        for rounds in (0, 3)
    )
    assert same_bits(server(none), server(three))
    assert not list((tmp_path / "3" / "private").rglob("*.private"))
    assert {row["bytes_up"] for row in three.rows("rounds.jsonl")} == {0}
    start, *_, end = (
        [row["test_correct"] for row in three.rows("clients.jsonl") if row["round"] == r]
        for r in (0, 3)
    )
    assert start == end


@pytest.mark.parametrize("keep", [True, False])
def test_a_tuned_average_is_published_and_kept_or_not(keep):
    method, model = FineTuned(epochs=2, tune_rate=0.2, keep=keep), linear()
    start = method.open(what(model))
    plain = mean([u.tensors for u in UPLOADS], [1, 3])
    merged = method.merge(what(model), start, UPLOADS, 1)
    assert close(under(method.publish(merged), "global"), descended(model, plain, 2, 0.2))
    goes_on = under(method.send(merged, ["a"], 2, 0)["a"].tensors, "global")
    assert close(goes_on, descended(model, plain, 2, 0.2) if keep else plain)
    assert same_bits(method.publish(start), FedAvg().publish(start))


def test_every_round_is_tuned_with_batches_of_its_own():
    small = replace(what(linear()), learning=replace(WHOLE, batch=5))
    one, two = (FineTuned(tune_rate=0.2).merge(small, {}, UPLOADS, round) for round in (1, 2))
    assert not same_bits(one, two)


@pytest.mark.parametrize("method", ["central", "fedavg-tuned"])
def test_without_a_reserve_set_it_is_said_what_to_type(method):
    without = tiny(replace(CASES[method], reserve=0))
    with pytest.raises(
        ValueError, match=r"needs a reserve set, and there is none; use data.reserve"
    ):
        parts(without)


# ---- FedJETs


MIXTURE = Mixture(linear(), linear(("one", "two", "three")), 1, 1)
JETS = FedJETs(experts=2)
USE = {"a": torch.tensor([0.5, 0.4, 0.1]), "b": torch.tensor([0.1, 0.6, 0.3])}


def experts(value):
    """A server of the mixture whose experts 0, 1 and 2 are full of value, value + 1 and value +
    2.
    """
    tensors = MIXTURE.initial
    for k in range(3):
        tensors |= named(
            f"expert.{k}",
            {"weight": torch.full((2, 2), value + k), "bias": torch.full((2,), value + k)},
        )
    return named("global", tensors)


SERVER = experts(0.0) | named("use", USE)


def held(sent):
    """Which experts a payload holds, told by themselves."""
    return [
        int(value[0])
        for name, value in sorted(sent.tensors.items())
        if name.endswith("bias") and "expert" in name
    ]


def test_a_client_is_sent_the_experts_that_its_gate_weighed_most():
    sent = JETS.send(SERVER, "ab", 2, 0)
    assert {client: held(each) for client, each in sent.items()} == {"a": [0, 1], "b": [1, 2]}
    assert sent["b"].tensors["chosen"].tolist() == sent["b"].facts["chosen"] == [1, 2]


def test_a_client_of_which_nothing_is_known_draws_its_experts():
    drawn = {
        tuple(held(JETS.send(SERVER, "c", round, seed)["c"]))
        for round in range(1, 9)
        for seed in (0, 1)
    }
    assert drawn == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert held(JETS.send(SERVER, "c", 5, 0)["c"]) == held(JETS.send(SERVER, "c", 5, 0)["c"])


def test_the_server_remembers_what_newcomers_drew():
    """Each its own, by round and seed: what is merged as expert k is what was sent as expert k."""
    drawn = JETS.send(SERVER, "cdefgh", 5, 3)
    assert len({tuple(held(sent)) for sent in drawn.values()}) > 1
    for client, sent in drawn.items():
        first, second = held(sent)
        merged = JETS.merge(
            replace(given(MIXTURE), seed=3), SERVER, [jets_upload(client, 1, 10.0, 20.0)], 5
        )
        assert merged[f"global.expert.{first}.bias"][0] == 10
        assert merged[f"global.expert.{second}.bias"][0] == 20


def test_an_anchor_has_its_own_expert_in_every_round_and_fills_up_by_its_gate():
    assert held(JETS.send(SERVER | {"anchor.a": torch.tensor(2)}, "a", 2, 0)["a"]) == [2, 0]


def test_bytes_are_those_of_the_experts_that_travel():
    one, gate = size(linear().initial), size(MIXTURE.gate.initial)
    alpha, index, use = 4, 2 * 8, 3 * 4
    assert size(JETS.send(SERVER, "a", 2, 0)["a"].tensors) == gate + 3 * one + alpha + index
    assert size(JETS.expects(SERVER, MIXTURE, "a")) == gate + 3 * one + alpha + use
    assert JETS.expects(SERVER, MIXTURE, "a").keys() == JETS.uploads(MIXTURE)


def jets_upload(client, examples, first, second):
    """All of a client's tensors full of one number, but for its two experts."""
    expected = JETS.expects(SERVER, MIXTURE, "a")
    fill = {"expert.0": first, "expert.1": second}
    filled = {
        n: torch.full_like(value, fill.get(n.rpartition(".")[0], examples))
        for n, value in expected.items()
    }
    return Upload(client, filled | {"use": USE["b"]}, examples)


def test_an_expert_is_the_mean_over_those_who_trained_it_and_the_rest_over_all():
    # experts 0 and 1; 1 and 2
    uploads = [jets_upload("a", 1, 10.0, 20.0), jets_upload("b", 3, 30.0, 40.0)]
    merged = JETS.merge(given(MIXTURE), SERVER, uploads, 2)
    biases = [float(merged[f"global.expert.{k}.bias"][0]) for k in range(3)]
    assert biases == [10.0, (1 * 20 + 3 * 30) / 4, 40.0]
    for name in ("gate.weight", "main.0.weight", "alpha"):
        assert merged[f"global.{name}"].unique().tolist() == [(1 * 1 + 3 * 3) / 4]
    alone = JETS.merge(given(MIXTURE), SERVER, uploads[:1], 2)
    assert same_bits(under(alone, "global.expert.2"), under(SERVER, "global.expert.2"))


def test_gates_say_what_they_prefer_and_the_first_who_upload_are_anchors_for_good():
    state = SERVER
    for clients in ("bc", "ad", "ab"):
        state = JETS.merge(given(MIXTURE), state, [jets_upload(c, 1, 0.0, 0.0) for c in clients], 1)
    assert {client: int(k) for client, k in under(state, "anchor").items()} == {
        "b": 0,
        "c": 1,
        "a": 2,
    }
    assert all(torch.equal(state[f"use.{client}"], USE["b"]) for client in "abcd")
    assert state.keys() == SERVER.keys() | {f"anchor.{c}" for c in "abc"} | {
        f"use.{c}" for c in "abcd"
    }


def test_a_client_mixes_the_experts_it_holds_by_the_gate_renormalised():
    x = RESERVE.x[:, 0]
    local = JETS.start(MIXTURE, JETS.send(SERVER, "b", 2, 0)["b"].tensors, None, rng(0, ""))
    gate = (x @ SERVER["global.gate.weight"].T + SERVER["global.gate.bias"]).softmax(-1)
    one, two = ((k * x.sum(-1, keepdim=True) + k).expand(-1, 2).softmax(-1) for k in (1, 2))
    share = (gate[:, 1] / (gate[:, 1] + gate[:, 2]))[:, None]
    main = linear().logits(linear().initial, x).softmax(-1)
    torch.testing.assert_close(
        JETS.predictor(MIXTURE, local).logits(x).exp(),
        0.5 * main + 0.5 * (share * one + (1 - share) * two),
    )
    torch.testing.assert_close(JETS.observe(MIXTURE, local, RESERVE)["use"], gate.mean(0))


def test_everybody_predicts_with_the_whole_mixture():
    everybody = JETS.restore(MIXTURE, JETS.publish(SERVER), None)
    x = RESERVE.x[:, 0]
    torch.testing.assert_close(
        JETS.predictor(MIXTURE, everybody).logits(x), MIXTURE.logits(under(SERVER, "global"), x)
    )


def test_what_a_client_observes_is_of_what_it_trained_on(tmp_path):
    config = tiny(CASES["fedjets"], run={"rounds": 1, "participation": 1.0})
    job, engine = job_and_engine(config, tmp_path / "private")
    state = job.method.open(job.given)
    order = Order("b", 1, "train", job.method.send(state, ["b"], 1, 0)["b"].tensors)
    reply = answer(job, [engine.members["b"]], [order])[0]
    gate = job.model.gate.logits(
        under(reply.tensors, "gate"), engine.members["b"].train.x[:, 0]
    ).softmax(-1)
    torch.testing.assert_close(reply.tensors["use"], gate.mean(0))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (linear(), r"needs a mixture; use a section \[mixture\]"),
        (
            Mixture(linear(), linear(), 0, 1),
            "method.experts = 3 of 2; expected 1 to mixture.experts",
        ),
        (
            Mixture(Network(torch.nn.BatchNorm1d(2), CLASSES), linear(), 0, 1),
            'use model.norm = "group"',
        ),
        (
            Mixture(linear(), Network(torch.nn.BatchNorm1d(2), CLASSES), 0, 1),
            'use model.norm = "group"',
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_to_type(model, says):
    with pytest.raises(ValueError, match=says):
        FedJETs(experts=3).fits(model, 0)
