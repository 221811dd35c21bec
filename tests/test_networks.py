"""A network as a model is the module that it was made of: the same outputs, and nothing that it was
given changes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedexperts.models.network import Network, seeded
from fedexperts.models.vision import (
    NORMS,
    CompactCnnSettings,
    Conv,
    LeafCnnSettings,
    ResNet18Settings,
    compact_cnn,
    leaf_cnn,
    resnet18,
)
from fedexperts.tensors import Tensors, rng, stack, unbind

DIGITS = tuple("0123456789")
LETTERS = tuple(f"class {i}" for i in range(62))  # of FEMNIST
IMAGES = torch.randint(
    256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
EVERY: dict[str, tuple[Any, Callable[[], nn.Module]]] = {
    "compact": (CompactCnnSettings(width=3), lambda: compact_cnn(3, 16, 10)),
    "leaf": (LeafCnnSettings(), lambda: leaf_cnn(10)),
    "resnet-batch": (ResNet18Settings(), lambda: resnet18(10, NORMS["batch"])),
    "resnet-group": (ResNet18Settings(norm="group"), lambda: resnet18(10, NORMS["group"])),
}
every = pytest.mark.parametrize("name", EVERY)


def count(tensors: Tensors) -> int:
    return sum(value.numel() for value in tensors.values() if value.is_floating_point())


def close(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-3) for name in one
    )


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copied(tensors: Tensors) -> Tensors:
    return {name: value.clone() for name, value in tensors.items()}


# A network is its module


@every
def test_a_network_is_the_module_in_evaluation_and_in_training(name: str) -> None:
    settings, make = EVERY[name]
    built = settings.build(DIGITS, seed=1)
    model, x = built.model, built.encode(IMAGES)
    # torch multiplies what asks for gradients otherwise, and on some processors rounds it otherwise
    module = seeded(make, 1).requires_grad_(False)
    before = copied(model.initial)
    assert same(model.initial, dict(module.state_dict()))
    assert torch.equal(model.logits(model.initial, x), module.eval()(x))
    logits, moved = model.step(model.initial, x)
    assert torch.equal(logits, module.train()(x))
    assert same(moved, dict(module.named_buffers()))
    assert same(model.initial, before)
    assert moved.keys() == model.buffers
    assert built.key == ""
    assert logits.shape == (3, 10)


@every
def test_gradients_are_those_of_the_module(name: str) -> None:
    settings, make = EVERY[name]
    built = settings.build(DIGITS, seed=1)
    model, x = built.model, built.encode(IMAGES)
    module = seeded(make, 1)
    module(x).square().sum().backward()
    fixed = {name: model.initial[name] for name in model.buffers}
    trained = {name: value for name, value in model.initial.items() if name not in fixed}
    gradients = grad(lambda tensors: model.step(tensors | fixed, x)[0].square().sum())(trained)
    assert close(
        gradients,
        {name: value.grad for name, value in module.named_parameters() if value.grad is not None},
    )


def test_only_batch_norm_moves_and_its_counter_is_a_whole_number() -> None:
    model: Any = ResNet18Settings().build(DIGITS, 0).model
    _, moved = model.step(model.initial, torch.randn(2, 3, 8, 8))
    counters = {
        name: value for name, value in moved.items() if name.endswith("num_batches_tracked")
    }
    assert len(counters) * 3 == len(model.buffers) == 60
    assert all(
        value.dtype == torch.int64 and value == model.initial[name] + 1
        for name, value in counters.items()
    )
    assert not model.together
    for settings in (ResNet18Settings(norm="group"), CompactCnnSettings(), LeafCnnSettings()):
        still: Any = settings.build(DIGITS, 0).model
        assert not still.buffers
        assert still.together


def test_dropout_is_off_and_the_module_given_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = Network(module, ("a", "b"), together=False)
    x = torch.randn(5, 4)
    assert torch.equal(model.step(model.initial, x)[0], model.logits(model.initial, x))
    assert not model.together
    with torch.no_grad():
        module[0].weight.zero_()
    assert model.initial["0.weight"].any()
    assert module.training
    assert module[1].p == 0.5


def test_tied_weights_are_one_tensor_and_constants_stay_inside() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    module.register_buffer("constant", torch.ones(1), persistent=False)
    model = Network(module, tuple("abcd"))
    x = torch.randn(3, 4)
    assert model.initial.keys() == {"0.weight", "0.bias", "1.bias"}
    assert torch.equal(model.logits(model.initial, x), module(x))
    zero = model.initial | {"0.weight": torch.zeros(4, 4)}
    assert torch.equal(model.logits(zero, x), zero["1.bias"].expand(3, 4))


def test_threads_compute_at_once_and_do_not_meet() -> None:
    both_inside = Barrier(2, timeout=10)

    class Slow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            both_inside.wait()
            out = super().forward(x)
            both_inside.wait()
            return out

    model = Network(Slow(4, 2), ("a", "b"))
    x = torch.randn(3, 4)
    states = [{"weight": torch.full((2, 4), value), "bias": torch.zeros(2)} for value in (1.0, 2.0)]
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda state: model.logits(state, x), states)
    assert torch.allclose(one, x.sum(1, keepdim=True).expand(3, 2))
    assert torch.allclose(two, 2 * one)


# Clients together


@pytest.mark.parametrize("name", ["compact", "leaf", "resnet-group"])
def test_stacked_clients_are_each_client_alone(name: str) -> None:
    model = EVERY[name][0].build(DIGITS, 0).model
    states = [EVERY[name][0].build(DIGITS, seed).model.initial for seed in (1, 2)]
    side = {"compact": (1, 16, 16), "leaf": (1, 28, 28), "resnet-group": (3, 8, 8)}[name]
    x = torch.randn(2, 4, *side, generator=torch.Generator().manual_seed(0))

    def loss(tensors: Tensors, x: Tensor) -> Tensor:
        return model.step(tensors, x)[0].square().sum()  # type: ignore[no-any-return]

    together = unbind(vmap(grad(loss))(stack(states), x), 2)
    assert all(
        close(own, grad(loss)(state, x[i]))
        for i, (own, state) in enumerate(zip(together, states, strict=True))
    )


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (5, 1, 2), (1, 2, 0), (3, 2, 0)]
)
def test_a_convolution_of_patches_is_a_convolution(side: int, stride: int, padding: int) -> None:
    ours, torchs = (kind(2, 4, side, stride=stride, padding=padding) for kind in (Conv, nn.Conv2d))
    x = torch.randn(3, 2, 9, 12)
    expected = torchs(x)
    found = functional_call(ours, dict(torchs.named_parameters()), (x,))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-6)


# Sizes and starts


@pytest.mark.parametrize(
    ("settings", "classes", "weights"),
    [
        (CompactCnnSettings(), DIGITS, 746),
        (CompactCnnSettings(width=6), DIGITS, 2_650),
        (CompactCnnSettings(width=16), DIGITS, 9_930),
        (CompactCnnSettings(width=20), DIGITS, 13_850),
        (LeafCnnSettings(), LETTERS, 6_603_710),
        (ResNet18Settings(norm="group"), DIGITS, 11_173_962),
        (ResNet18Settings(), DIGITS, 11_173_962 + 2 * 4_800),  # and two statistics a channel
    ],
)
def test_networks_are_as_large_as_their_papers_say(
    settings: Any, classes: tuple[str, ...], weights: int
) -> None:
    assert count(settings.build(classes, 0).model.initial) == weights


@every
def test_a_start_follows_the_seed_and_touches_nobody_elses_dice(name: str) -> None:
    def start(seed: int) -> Tensors:
        return EVERY[name][0].build(DIGITS, seed).model.initial  # type: ignore[no-any-return]

    torch.manual_seed(5)
    dice = torch.get_rng_state()
    first = start(0)
    assert torch.equal(torch.get_rng_state(), dice)
    torch.rand(1)
    assert same(start(0), first)
    assert not same(start(1), first)


def test_images_become_small_and_grey_or_stay_in_colour() -> None:
    grey, colour = (
        settings.build(DIGITS, 0).encode
        for settings in (CompactCnnSettings(side=2), ResNet18Settings())
    )
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images[..., :2, :2] = 255
    images[:, :, 2, 2] = torch.tensor([30, 60, 90], dtype=torch.uint8)
    assert torch.allclose(
        grey(images), torch.tensor([[[[0.5, -0.5], [-0.5, 15 / 255 - 0.5]]]]), atol=1e-6
    )
    small = CompactCnnSettings(side=2, colour=True).build(DIGITS, 0)
    means = torch.tensor([30, 60, 90]) / 4 / 255 - 0.5
    torch.testing.assert_close(small.encode(images)[0, :, 1, 1], means)
    assert small.model.logits(small.model.initial, small.encode(images)).shape == (1, 10)
    assert colour(images).shape == (1, 3, 4, 4)
    assert (colour(images).min(), colour(images).max()) == (-2, 2)


def test_an_image_that_is_normalised_is_the_same_dark_or_bright_inverted_or_faint() -> None:
    ink = torch.randint(0, 80, (1, 3, 4, 4), generator=rng(0, "ink"), dtype=torch.uint8)
    ink[..., 0, 0] = 200
    settings = CompactCnnSettings(side=4, normalise="image").build(DIGITS, 0)
    one = settings.encode(ink)
    assert float(one.mean()) == pytest.approx(0, abs=1e-6)
    assert float(one.std(correction=0)) == pytest.approx(1)
    for other in (255 - ink, ink // 2 + 20):
        torch.testing.assert_close(settings.encode(other), one, atol=0.05, rtol=0)
    assert (
        settings.encode(torch.full_like(ink, 7)).abs().max() < 1e-3
    )  # one colour: no noise of rounding
