"""Fed-MoE's baselines, done again by hand: the reserve set alone, averages tuned on it, and FedJETs."""

from dataclasses import replace

import pytest
import torch
from conftest import CASES, carry_out, given, job_and_engine, left_behind, same_bits, server, tiny
from torch.nn.functional import cross_entropy

from fedexperts.config import ConfigError, load
from fedexperts.learn import Examples, Learning, Local
from fedexperts.method import Upload
from fedexperts.methods.central import Central, FineTuned
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.fedjets import FedJETs
from fedexperts.models.mixture import Mixture
from fedexperts.models.network import Network
from fedexperts.tensors import mean, named, rng, under

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
            name: (value - rate * slope).detach() for (name, value), slope in zip(tensors.items(), slopes, strict=True)
        }
    return tensors


def close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name)


WHOLE = Learning(batch=12, optimizer="sgd")  # a step is the whole set: its order is nothing


def what(model):
    return replace(given(model, RESERVE), learning=WHOLE)


UPLOADS = [
    Upload(client, {name: value + shift for name, value in linear().initial.items()}, examples)
    for client, shift, examples in (("a", 1.0, 1), ("b", -2.0, 3))
]


# ---- the reserve set


@pytest.mark.parametrize("model", [linear(), Mixture(linear(), linear(("one", "two", "three")), 1, 1)])
def test_central_descends_the_reserve_set_before_the_first_round(model):
    opened = Central(epochs=3, rate=0.1).open(what(model))
    close(opened, named("global", descended(model, model.initial, 3, 0.1)))


def test_central_is_what_everybody_has_and_rounds_change_nothing_of_it(tmp_path):
    none, three = (
        carry_out(tiny(CASES["central"], run={"rounds": rounds}), tmp_path / str(rounds)) for rounds in (0, 3)
    )
    assert same_bits(server(none), server(three))
    assert not list((tmp_path / "3" / "private").rglob("*.private"))
    assert {row["bytes_up"] for row in three.rows("rounds.jsonl")} == {0}
    start, *_, end = ([row["test_correct"] for row in three.rows("clients.jsonl") if row["round"] == r] for r in (0, 3))
    assert start == end


@pytest.mark.parametrize("keep", [True, False])
def test_a_tuned_average_is_published_and_kept_or_not(keep):
    method, model = FineTuned(epochs=2, tune_rate=0.2, keep=keep), linear()
    start = method.open(what(model))
    plain = mean([u.tensors for u in UPLOADS], [1, 3])
    merged = method.merge(what(model), start, UPLOADS, 1)
    close(under(method.publish(merged), "global"), descended(model, plain, 2, 0.2))
    goes_on = under(method.send(merged, ["a"], 2, 0)["a"].tensors, "global")
    close(goes_on, descended(model, plain, 2, 0.2) if keep else plain)
    assert same_bits(method.publish(start), FedAvg().publish(start))


@pytest.mark.parametrize("method", ["central", "fedavg-tuned"])
def test_without_a_reserve_set_it_is_said_what_to_type(method):
    with pytest.raises(ValueError, match=r"trains on a reserve set, and there is none; right would be data.reserve"):
        tiny_parts = replace(CASES[method], reserve=0)
        job_and_engine(tiny(tiny_parts), None)


# ---- FedJETs


GATE = linear(("one", "two", "three"))
MIXTURE = Mixture(linear(), GATE, 0, 1)
JETS = FedJETs(experts=2)


def jets(**more):
    """A server whose three experts are told apart by their biases 0, 1, 2."""
    shared = MIXTURE.initial
    for k in range(3):
        shared[f"expert.{k}.bias"] = torch.full((2,), float(k))
    return named("global", shared) | more


def use(*weights):
    return torch.tensor(weights)
