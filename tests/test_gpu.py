"""The laws on a real GPU: what test_devices.py shows on a pretended one, and what only a real one
can show.

    pytest -m gpu tests/test_gpu.py

Without a CUDA device they are skipped. On one device everything repeats bit for bit. Between GPU
and CPU, where sums are added in another order, each of the server's tensors may differ by 1e-3 of
its norm (and 1e-5), and of a client's test examples one may be right here and wrong there.
"""

import gc
import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CASES,
    Remembered,
    Wire,
    carry_out,
    digits,
    left_behind,
    same_bits,
    server,
    tiny,
)
from test_crash import ended, go_on, instants, live, started
from test_devices import WORLDS
from test_laws import close, tensors

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.engine import Engine
from fedexperts.learn import Examples, Learning
from fedexperts.message import Order, Reply
from fedexperts.model import taught
from fedexperts.models.built import Built
from fedexperts.predict import Learned
from fedexperts.rundir import RunDir
from fedexperts.study import once
from fedexperts.tensors import CPU, Tensors, rng

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]
every_world = pytest.mark.parametrize("config", WORLDS)
NEAREST, FEDMOE = digits(CASES["nearest"]), tiny(CASES["fedmoe-norm"])
some_worlds = pytest.mark.parametrize("config", [NEAREST, FEDMOE], ids=["nearest", "fedmoe-norm"])


def having(config: Config, **changes: Any) -> Config:
    """A config on the GPU; `engine__together=2` is engine.together = 2."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return config.having({"run.device": "cuda"} | dotted, "test")


# ---- one device: bit for bit


@every_world
def test_the_same_seed_gives_the_same_bits(
    config: Config, tmp_path: Path, remembered: Remembered
) -> None:
    again = carry_out(having(config), tmp_path / "again")
    assert left_behind(again) == left_behind(remembered(having(config)))


@every_world
def test_the_wire_and_the_number_of_workers_change_nothing(
    config: Config, tmp_path: Path, remembered: Remembered
) -> None:
    here = left_behind(remembered(having(config, engine__together=2)))
    assert here == left_behind(
        carry_out(having(config, engine__together=2), tmp_path / "wire", Wire)
    )
    assert here == left_behind(
        carry_out(having(config, engine__together=2, engine__workers=2), tmp_path / "workers")
    )


@pytest.fixture(scope="module")
def processes() -> Any:
    """As in test_crash.py: each child opens the GPU anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "fedexperts.config.building", "pytest"])
    return context


@some_worlds
def test_a_crash_changes_nothing(
    config: Config, processes: Any, tmp_path: Path, remembered: Remembered
) -> None:
    whole = left_behind(remembered(having(config)))
    points = instants(processes, having(config), tmp_path / "counted")
    for point in points[len(points) // 3 :: len(points) // 3]:
        path = tmp_path / "{}-{}".format(*point)
        assert ended(started(processes, live, having(config), path, *point)) == -signal.SIGKILL
        assert ended(started(processes, go_on, having(config), path)) == 0
        assert left_behind(RunDir(path)) == whole


NETWORKS = {
    "compact-cnn": {},
    "leaf-cnn": {},
    "resnet18": {"norm": "batch"},
    "tiny-bert": {"model": "tiny-bert", "tokens": 8},
    "tiny-gpt2": {"model": "tiny-gpt2", "tokens": 8},
}


def trained(name: str, device: str) -> tuple[Tensors, Tensors]:
    """A network's tensors after a few steps, and what it then says."""
    model = {"name": "transformer" if name.startswith("tiny-") else name, **NETWORKS[name]}
    text = {
        "name": name,
        "data": {"name": "digits-scanners"},
        "method": {"name": "fedavg"},
        "model": model,
    }
    config = door.resolve([({**text, "run": {"device": device}}, "test")])
    built, network = door.modelled(config, ("no", "yes"))
    x, y = shown(built, name), torch.arange(24) % 2
    learning = Learning(epochs=2, batch=8, rate=0.01)
    after = taught(network, network.initial, Examples(x[:, None], y), learning, rng(0, "batches"))
    with torch.no_grad():
        return after, {"logits": network.logits(after, x)}


def shown(built: Built, name: str) -> torch.Tensor:
    if name.startswith("tiny-"):
        return built.encode([f"a {'good' if i % 2 else 'bad'} book, the {i}th" for i in range(24)])
    return built.encode(
        torch.randint(256, (24, 3, 32, 32), generator=rng(0, "images"), dtype=torch.uint8)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_repeats_its_bits(name: str) -> None:
    for one, other in zip(trained(name, "cuda"), trained(name, "cuda"), strict=True):
        assert same_bits(one, other)


# not the ResNet: batch norm enlarges rounding, and on an H100 its first weights were 1.3e-2 of
# their norm apart
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"resnet18"}))
def test_every_other_network_learns_what_it_does_on_the_cpu(name: str) -> None:
    for here, there in zip(trained(name, "cpu"), trained(name, "cuda"), strict=True):
        close(here, there)


# ---- two devices: the same to rounding


@every_world
def test_a_gpu_learns_what_the_cpu_does(config: Config, remembered: Remembered) -> None:
    here, there = (
        remembered(config.having({"run.device": "cpu"}, "test")),
        remembered(having(config)),
    )
    close(server(here), server(there))
    for one, other in zip(here.rows("clients.jsonl"), there.rows("clients.jsonl"), strict=True):
        assert abs(one["test_correct"] - other["test_correct"]) <= 1


@every_world
def test_together_is_alone(config: Config, remembered: Remembered) -> None:
    one, many = (left_behind(remembered(having(config, engine__together=n))) for n in (1, 5))
    assert one.keys() == many.keys()
    for name in one:
        if name.endswith((".safetensors", ".private")):
            close(tensors(one[name]), tensors(many[name]))


def test_what_a_gpu_learned_predicts_on_the_cpu(tmp_path: Path) -> None:
    config = having(NEAREST)
    once(config, tmp_path / "run")
    images = torch.randint(256, (20, 3, 32, 32), generator=rng(0, "images"), dtype=torch.uint8)
    said = []
    for device in ("cuda", "cpu"):
        (tmp_path / "run" / "config.toml").write_text(
            config.having({"run.device": device}, "test").toml()
        )
        predictor = Learned.of(tmp_path / "run", "faint-2")
        assert torch.device(predictor.built.encode(images).device) == CPU
        said.append(predictor.logits(predictor.built.encode(images)).softmax(-1))
    torch.testing.assert_close(*said, rtol=0, atol=1e-3)


# ---- where things lie


@dataclass(frozen=True)
class Watched:
    """An engine before which every tensor that is sent is looked at."""

    inner: Engine
    places: set[torch.device] = field(default_factory=set)

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        replies = self.inner.exchange(orders)
        self.places.update(
            value.device for said in (*orders, *replies) for value in said.tensors.values()
        )
        return replies


@every_world
def test_nothing_that_is_sent_lies_on_the_gpu_and_none_of_its_memory_is_kept(
    config: Config, tmp_path: Path
) -> None:
    watched: list[Watched] = []
    memory: list[int] = []

    def watch(engine: Engine) -> Engine:
        watched.append(Watched(engine))
        return watched[0]

    torch.cuda.reset_peak_memory_stats()
    carry_out(
        having(config, run__rounds=4), tmp_path / "run", watch, lambda _: memory.append(held())
    )
    assert watched[0].places == {CPU}
    assert torch.cuda.max_memory_allocated() > memory[-1], "it was computed there"
    assert memory[-1] == memory[-2], memory


def held() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_a_gpu_is_taken_where_there_is_one_and_the_run_names_the_card() -> None:
    config = NEAREST.having({"run.device": "auto"}, "test")
    stated = door.about(config, config.section("data").load(0))["device"]
    assert stated == f"cuda ({torch.cuda.get_device_name()})"


# ---- two processes, one card


@pytest.mark.filterwarnings("ignore")  # Flower's and Ray's own
def test_two_processes_of_flower_share_a_gpu_and_end_at_the_bits_of_one(
    tmp_path: Path, remembered: Remembered
) -> None:
    pytest.importorskip("flwr", exc_type=ImportError)
    pytest.importorskip("ray", exc_type=ImportError)
    shared = {"name": "flower-simulation", "workers": 2, "gpus": 0.5}
    config = digits(CASES["nearest"], run={"device": "cuda"}, engine=shared)
    assert left_behind(carry_out(config, tmp_path / "there")) == left_behind(
        remembered(having(NEAREST))
    )
