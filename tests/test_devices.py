"""Models compute where they are told; all that is sent, saved or kept lies on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, carry_out, digits, server, tiny
from far import FAR, Device

from fedexperts import config as door
from fedexperts.config import Config, ConfigError, machine
from fedexperts.models.built import computing_on
from fedexperts.models.sequence import TransformerSettings
from fedexperts.tensors import CPU

PROMPTED = ("nearest", "random", "averaged", "clipped", "linear")
NETWORKS = (
    "fedmoe",
    "fedmoe-norm",
    "fedmoe-no-main",
    "fedavg-norm",
    "fedmix",
    "fedjets",
    "fedmoe-strong",
    "cent-moe",
    "framed",
    "framed-images",
)
SLOW = ("averaged", "clipped", "linear", "fedmoe-strong", "cent-moe")
# a shell under vmap has no memory where a tensor's own values index another
ENGINES = {"fedjets": {"together": 1}}
WORLDS = [
    pytest.param(
        world(CASES[name], engine=ENGINES.get(name, {})),
        id=name,
        marks=[pytest.mark.slow] * (name in SLOW),
    )
    for world, names in ((digits, PROMPTED), (tiny, NETWORKS))
    for name in names
]


def far(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """A run on the far device, and how often something came to lie there."""
    monkeypatch.setattr(machine, "device", lambda _: FAR)
    with Device() as there:
        return carry_out(config, folder), there.moved


@pytest.mark.parametrize("config", WORLDS)
def test_models_on_another_device_learn_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = carry_out(config, tmp_path / "here")
    there, moved = far(config, tmp_path / "far", monkeypatch)
    assert moved > 1000
    for name, value in server(there).items():
        assert value.device == CPU
        torch.testing.assert_close(value, server(here)[name], rtol=1e-3, atol=1e-5)
    for one, other in zip(here.rows("clients.jsonl"), there.rows("clients.jsonl"), strict=True):
        # sums round differently in other kernels
        assert abs(one["test_correct"] - other["test_correct"]) <= 1


def test_a_mixture_is_where_its_experts_are_and_answers_where_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "device", lambda _: FAR)
    with Device():
        _, model = door.modelled(tiny(CASES["fedmoe-norm"]), ("one", "two"))
        answer, moved = model.step(model.initial, torch.randn(4, 3, 4, 4))
    assert model.device == FAR
    assert {value.device for value in (answer, *moved.values(), *model.initial.values())} == {CPU}
    assert moved


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-gpt2"])
def test_texts_are_classified_on_another_device(model: str) -> None:
    settings = TransformerSettings(model=model, tokens=8)
    here: Any = settings.build(("bad", "good"), 0)
    x = here.encode(["a good book", "not so good, this one"])
    with Device() as place, computing_on(FAR):
        there: Any = settings.build(("bad", "good"), 0)
        answer = there.model.logits(there.model.initial, x)
    assert place.moved
    assert answer.device == CPU
    torch.testing.assert_close(answer, here.model.logits(here.model.initial, x))


def test_a_device_that_is_not_there_is_refused_and_the_one_taken_is_stated() -> None:
    config = digits(CASES["fedavg"], run={"device": "cpu"})
    if not torch.cuda.is_available():
        with pytest.raises(
            ConfigError, match=r'run\.device = "cuda": torch .* finds none here; use'
        ):
            door.device(config.having({"run.device": "cuda"}, "test"))
    assert door.device(config) == CPU
    federation = config.section("data").load(0)
    assert door.about(config, federation)["device"] == "cpu"
    automatic = config.having({"run.device": "auto"}, "test")
    assert door.about(automatic, federation)["device"].split()[0] == door.device(automatic).type
