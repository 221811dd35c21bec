"""Clients trained together against one at a time: processor seconds of the same steps, as ratios
within one run, and how many the library takes by itself.

    python benchmarks/together.py

First networks of many shapes, four steps a client, then ten clients of digits-scanners behind the
tiny CLIP, PromptFL and pFedMoAP (K = 4), in their third round, with experts. One thread. "numbers"
are a client's own, "shown" those in a batch of its inputs: from these `stacks.at_once` says what is
"chosen".
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contest import Vector
from torch import nn

from fedexperts import config as door
from fedexperts.engine import InProcess
from fedexperts.learn import Examples, Fitting, Learning, Local, fit
from fedexperts.loop import exchange
from fedexperts.method import Upload
from fedexperts.model import Model
from fedexperts.models.clip import LinearProbe
from fedexperts.models.network import Network
from fedexperts.models.vision import compact_cnn
from fedexperts.provenance import program
from fedexperts.stacks import at_once
from fedexperts.tensors import count, rng

GROUPS, STEPS, REPEATS = (1, 2, 5, 10, 20, 50), 4, 3
ROUNDS, CLIENTS = 3, 10
BYTES = 2**28  # of the largest stack that is tried
CLASSES = tuple(map(str, range(10)))


def network(module: nn.Module) -> Model:
    return Network(module, CLASSES)


def layers(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, len(CLASSES)))


def convolutions(width: int) -> nn.Module:
    """As compact_cnn, of torch's own."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 7 * 7, len(CLASSES)),
    )


def probe(width: int, classes: int) -> Model:
    return LinearProbe(tuple(map(str, range(classes))), width, 10.0)


Shape = tuple[Callable[[], Model], tuple[int, ...], int]  # the model, an input, a batch
SHAPES: dict[str, Shape] = {
    "linear probe, 512 wide": (lambda: probe(512, 10), (512,), 16),
    "the same, 1280, 100 classes": (lambda: probe(1280, 100), (1280,), 16),
    "a vector of 16 KB": (lambda: network(Vector(2**12)), (1,), 1),
    "256 KB": (lambda: network(Vector(2**16)), (1,), 1),
    "1 MB": (lambda: network(Vector(2**18)), (1,), 1),
    "4 MB": (lambda: network(Vector(2**20)), (1,), 1),
    "two layers, 64-32": (lambda: network(layers(64, 32)), (64,), 16),
    "512-128": (lambda: network(layers(512, 128)), (512,), 16),
    "784-256": (lambda: network(layers(784, 256)), (784,), 16),
    "compact-cnn, width 2, 16 x 16": (lambda: network(compact_cnn(2, 16, 10)), (1, 16, 16), 16),
    "width 8, 28 x 28": (lambda: network(compact_cnn(8, 28, 10)), (1, 28, 28), 10),
    "width 16, batch 64": (lambda: network(compact_cnn(16, 28, 10)), (1, 28, 28), 64),
    "torch's convolutions, width 8": (lambda: network(convolutions(8)), (1, 28, 28), 10),
    "width 32": (lambda: network(convolutions(32)), (1, 28, 28), 16),
}


def step_seconds(model: Model, shape: tuple[int, ...], batch: int, group: int) -> float:
    """Of a client's step, so many at once; the fastest of several."""
    how = Fitting(
        lambda local, x: (model.logits(local.trained, x), {}),
        Learning(epochs=1, batch=batch, rate=0.02),
    )
    size, dice = STEPS * batch, rng(0, "examples")
    own = []
    for _ in range(group):
        # small, as large ones leave gradients so small that they are slow to compute with
        x = 0.05 * torch.randn(size, 1, *shape, generator=dice)
        own.append(Examples(x, torch.randint(len(model.classes), (size,), generator=dice)))
    best = float("inf")
    for _ in range(REPEATS + 1):
        generators = [rng(0, "batches", 0, str(client)) for client in range(group)]
        began = time.process_time()
        fit(how, [Local(model.initial)] * group, own, generators)
        best = min(best, time.process_time() - began)
    return best / STEPS / group


def shapes() -> None:
    heads = ["network", "numbers", "shown", "chosen", "alone, ms a step"]
    heads += [str(group) for group in GROUPS[1:]]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, (make, shape, batch) in SHAPES.items():
        model = make()
        numbers, shown = count(model.initial), batch * torch.Size(shape).numel()
        sizes = [group for group in GROUPS if 4 * numbers * group <= BYTES]
        seconds = [step_seconds(model, shape, batch, group) for group in sizes]
        ratios = [f"{seconds[0] / each:.1f}x" for each in seconds[1:]]
        ratios += ["" for _ in GROUPS[len(sizes) :]]
        chosen = at_once(numbers, shown, model.held)
        cells = [name, f"{numbers:,}", f"{shown:,}", str(chosen), f"{1e3 * seconds[0]:.2f}"]
        print(f"| {' | '.join(cells + ratios)} |", flush=True)


def seconds(method: str, together: int) -> float:
    """Processor time of the third round's training."""
    config = door.load(f"configs/demo/{method}.toml", ["learning.rate=0.1"])
    job, sites = door.build(config, Path(tempfile.mkdtemp()))
    engine = InProcess(job, sites, together)
    names = engine.clients()[::2][:CLIENTS]
    server, spent = job.method.open(job.given), 0.0
    for round in range(1, ROUNDS + 1):
        began = time.process_time()
        sent = job.method.send(server, names, round, job.seed)
        payloads = {name: each.tensors for name, each in sent.items()}
        expected = {name: job.method.expects(server, job.model, name) for name in names}
        replies = exchange(job, engine, payloads, round, "train", expected)
        spent = time.process_time() - began
        uploads = [Upload(r.client, r.tensors, r.examples) for r in replies.values()]
        server = job.method.merge(job.given, server, uploads, round)
    return spent


def main() -> None:
    print(program())
    torch.set_num_threads(1)
    shapes()
    groups = [group for group in GROUPS if group <= CLIENTS]
    print(f"\n{'together':10}" + "".join(f"{group:>8}" for group in groups) + "  chosen")
    for method in ("promptfl", "pfedmoap"):
        spent = [seconds(method, group) for group in (*groups, 0)]
        print(f"{method:10}" + "".join(f"{spent[0] / s:7.1f}x" for s in spent))


if __name__ == "__main__":
    main()
