"""Local training: one client's steps by hand, and several clients' steps at once."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from conftest import TinyProbe, given
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedexperts.learn import Examples, Fitting, Learning, Local, fit, predict
from fedexperts.method import Upload
from fedexperts.methods.fedavg import FedAvg
from fedexperts.tensors import Tensors, rng

CLASSES, WIDTH = 3, 4


def logits(local: Local, x: Tensor) -> Tensor:
    return x @ local.trained["head.weight"].T * local.trained["gain"] + local.fixed.get(
        "shift", torch.zeros(())
    )


def step(local: Local, x: Tensor) -> tuple[Tensor, Tensors]:
    return logits(local, x), {}


def start(client: str = "a") -> Local:
    drawn = torch.randn(CLASSES, WIDTH, generator=rng(0, "head", client=client))
    return Local({"head.weight": drawn, "gain": torch.ones(())})


def examples(count: int, client: str = "a", views: int = 1) -> Examples:
    draw = rng(0, "examples", client=client)
    x = torch.randn(count, views, WIDTH, generator=draw)
    return Examples(x, torch.randint(CLASSES, (count,), generator=draw))


def trained(
    learning: Learning,
    starts: Sequence[Local],
    data: Sequence[Examples],
    rates: Mapping[str, float] | None = None,
    factor: float = 1.0,
    penalty: Any = lambda local: 0.0,
) -> tuple[list[Tensors], list[float]]:
    generators = [rng(0, "batches", client=str(len(each))) for each in data]
    how = Fitting(step, learning, penalty, rates or {}, factor)
    return fit(how, starts, data, generators)


def by_hand(local: Local, data: Examples, rate: float, gain_rate: float, steps: int) -> Tensors:
    """Full-batch gradient descent."""
    values = {name: value.clone().requires_grad_() for name, value in local.trained.items()}
    for _ in range(steps):
        loss = cross_entropy(logits(Local(values, local.fixed), data.x[:, 0]), data.y)
        weight, gain = torch.autograd.grad(loss, [values["head.weight"], values["gain"]])
        values = {
            "head.weight": (values["head.weight"] - rate * weight).detach().requires_grad_(),
            "gain": (values["gain"] - gain_rate * gain).detach().requires_grad_(),
        }
    return values


def near(one: Tensors, other: Tensors) -> bool:
    return (
        all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
        and one.keys() == other.keys()
    )


def test_a_step_is_gradient_descent_with_each_tensors_own_rate() -> None:
    """`head.*` has a rate of its own; a padded batch weighs only the examples that are there."""
    data = examples(5)
    (found,), _ = trained(
        Learning(epochs=3, batch=8, rate=0.5), [start()], [data], {"head": 0.1}, factor=0.5
    )
    assert near(found, by_hand(start(), data, rate=0.05, gain_rate=0.25, steps=3))


def test_the_loss_told_is_the_mean_over_the_steps() -> None:
    data = examples(5)
    _, (loss,) = trained(Learning(epochs=1, batch=5), [start()], [data])
    assert loss == pytest.approx(float(cross_entropy(logits(start(), data.x[:, 0]), data.y)))


def test_what_is_fixed_does_not_move_and_is_used() -> None:
    local = Local(start().trained, {"shift": torch.tensor([0.0, 3.0, -3.0])})
    data = examples(5)
    (found,), _ = trained(Learning(epochs=2, batch=5, rate=0.1), [local], [data])
    assert found.keys() == local.trained.keys()
    assert near(found, by_hand(local, data, 0.1, 0.1, 2))


def test_the_start_is_not_written_over() -> None:
    local, before = start(), start()
    trained(Learning(rate=0.5), [local], [examples(5)])
    assert near(local.trained, before.trained)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_clients_trained_together_are_as_if_alone(optimizer: Any) -> None:
    """Law 2, with momentum and decay: 1, 7 and 11 examples in batches of 3; who has fewer stops
    where it is.
    """
    learning = Learning(
        epochs=3, batch=3, optimizer=optimizer, rate=0.05, momentum=0.9, weight_decay=0.1
    )
    names = ["a", "b", "c"]
    starts, data = (
        [start(n) for n in names],
        [examples(count, n) for count, n in zip((1, 7, 11), names, strict=True)],
    )
    together, losses = trained(learning, starts, data)
    for i in range(3):
        (alone,), (loss,) = trained(learning, [starts[i]], [data[i]])
        assert near(together[i], alone)
        assert losses[i] == pytest.approx(loss, abs=1e-5)


def test_one_that_diverges_does_not_touch_those_trained_with_it() -> None:
    learning, data = Learning(epochs=2, batch=3, rate=0.1), [examples(5, "a"), examples(7, "b")]
    wild = Examples(data[1].x * float("inf"), data[1].y)
    together, _ = trained(learning, [start("a"), start("b")], [data[0], wild])
    (alone,), _ = trained(learning, [start("a")], [data[0]])
    assert not torch.isfinite(together[1]["head.weight"]).all()
    assert near(together[0], alone)


def test_what_moves_by_itself_has_no_gradient_and_no_decay() -> None:
    """A count of steps and a running mean: each step says where they are next, and only of the
    clients that took it.
    """

    def moved(local: Local, x: Tensor) -> tuple[Tensor, Tensors]:
        own = local.trained
        after = {"steps": own["steps"] + 1, "mean": own["mean"] + own["gain"]}
        return logits(local, x) + own["mean"], after

    names = ("a", "b")
    begun = {"steps": torch.tensor(3), "mean": torch.tensor(2.0)}
    starts = [Local(start(name).trained | begun) for name in names]
    learning = Learning(epochs=1, batch=4, rate=0.0001, weight_decay=0.1)
    generators = [rng(0, "batches", client=name) for name in names]
    how = Fitting(moved, learning, buffers=frozenset({"steps", "mean"}))
    found, _ = fit(how, starts, [examples(3), examples(9)], generators)
    assert [int(each["steps"]) for each in found] == [4, 6]
    assert found[0]["mean"] == 3
    assert float(found[1]["mean"]) == pytest.approx(5, abs=0.01)
    assert starts[0].trained["steps"] == 3


def seen(learning: Learning, count: int, views: int) -> Tensor:
    """[steps, B, 2]: which example and view stands where in training, read off the inputs
    themselves.
    """
    places = torch.stack(
        torch.meshgrid(torch.arange(count), torch.arange(views), indexing="ij"), -1
    ).float()
    steps: list[Tensor] = []

    def watch(local: Local, x: Tensor) -> tuple[Tensor, Tensors]:
        steps.append(x.detach().clone())
        return x * local.trained["gain"], {}

    data = Examples(places, torch.zeros(count, dtype=torch.int64))
    start = Local({"gain": torch.ones(())})
    fit(Fitting(watch, learning), [start], [data], [rng(0, "batches")])
    return torch.stack(steps)


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    steps = seen(Learning(epochs=2, batch=4), 8, 1)
    first, second = steps[..., 0].reshape(2, 8).tolist()
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_views_are_drawn_for_each_example_and_epoch() -> None:
    views = seen(Learning(epochs=4, batch=8, views=3), 8, 3)[..., 1]
    assert {*views.flatten().tolist()} == {0, 1, 2}
    assert len({tuple(epoch.tolist()) for epoch in views}) == 4


def test_a_schedule_is_a_pure_function_of_the_round() -> None:
    """Pitfall 10: nothing is stepped, so nothing is stepped for somebody else."""
    cosine = Learning(schedule="cosine")
    forth, back = (
        [cosine.factor(r, 8) for r in range(1, 9)],
        [cosine.factor(r, 8) for r in range(8, 0, -1)],
    )
    assert (
        forth
        == back[::-1]
        == pytest.approx([(1 + math.cos(math.pi * r / 8)) / 2 for r in range(8)])
    )
    assert forth[0] == 1 > forth[-1] > 0
    assert Learning().factor(5, 8) == 1


def test_fedprox_adds_its_own_gradient() -> None:
    """Pitfall 12: mu changes the update, by mu times the distance to the global model and not
    otherwise.
    """
    mu, rate, data = 0.5, 0.1, examples(5)
    shared = {name: value + 0.3 for name, value in start().trained.items()}
    local = Local(start().trained, shared)
    (plain,), _ = trained(Learning(epochs=1, batch=5, rate=rate), [local], [data])
    (prox,), _ = trained(
        Learning(epochs=1, batch=5, rate=rate),
        [local],
        [data],
        penalty=partial(FedAvg(mu=mu).penalty, None),
    )
    pulled = {
        name: plain[name] - rate * mu * (local.trained[name] - shared[name]) for name in plain
    }
    assert near(prox, pulled)
    assert not near(prox, plain)


def test_fedavg_weighs_by_examples() -> None:
    """By hand: 1 and 3 examples."""
    uploads = [
        Upload("a", {"gain": torch.tensor(0.0)}, 1),
        Upload("b", {"gain": torch.tensor(4.0)}, 3),
    ]
    after = FedAvg().merge(given(TinyProbe()), {"global.gain": torch.tensor(9.0)}, uploads, 1)
    assert after["global.gain"] == 3


def test_answers_of_unequal_length_together_are_those_alone() -> None:
    states, inputs = [start("a"), start("b")], [torch.randn(4, WIDTH), torch.randn(0, WIDTH)]
    together = predict(logits, states, inputs)
    assert [len(out) for out in together] == [4, 0]
    assert torch.allclose(together[0], predict(logits, states[:1], inputs[:1])[0], atol=1e-6)
