"""How long an experiment will take on this machine, from eight examples and a few steps.

What is measured is what will run: the encoder, a client's training and its evaluation, with as many
clients at once as [engine] asks for. Their examples are the same eight again and again, so nothing
more is encoded. The server's own work is not in it. This room does not know what a method does.
"""

import time
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..client import Client, Job, answer
from ..data.features import known
from ..data.federation import Federation
from ..learn import Examples, Learning
from ..message import Order
from ..method import Method
from ..model import Model
from ..models.built import Built
from ..private import Private
from . import machine
from .folders import cache_folder
from .reading import Config
from .settings import RunSettings

FEW = 8  # examples that are encoded
FEW_CLIENTS = 10  # that are trained where their shapes say how many at once


@dataclass(frozen=True)
class Estimate:
    """Seconds, and how often they are spent."""

    encode: float  # one example
    examples: int  # that are still to be encoded
    step: float  # one step of those clients that are trained at once
    training: float  # all rounds of one run
    evaluation: float

    @property
    def run(self) -> float:
        """One run, once all is encoded."""
        return self.training + self.evaluation


def estimate(
    config: Config, federation: Federation, built: Built, model: Model, method: Method
) -> Estimate | None:
    """None where nothing can be measured: no data here, or a training that fails on so few."""
    run: RunSettings = config.section("run")
    learning: Learning = config.section("learning")
    torch.set_num_threads(run.threads)
    if not len(federation.inputs) or not federation.parts:
        return None
    x, encode = _encoded(federation.inputs, built)
    few = _Few(config, federation, x, replace(learning, epochs=1), model, method)
    first = few.seconds(1, FEW)
    one, two, more = few.seconds(1, FEW), few.seconds(3, FEW), few.seconds(1, 4 * FEW)
    if first is None or one is None or two is None or more is None:
        return None
    step, asked = max(two[0] - one[0], 0) / 2, max(more[1] - one[1], 0) / (3 * FEW)
    counts = [(len(own.train), len(own.valid) + len(own.test)) for own in federation.parts.values()]
    steps = sum(learning.epochs * ceil(train / learning.batch) for train, _ in counts)
    held = sum(count for _, count in counts)
    turns = len(counts) / few.together / few.workers  # of the engine, for all clients
    rounds, every = run.rounds, run.evaluate_every
    trained = turns * run.participation * (one[0] + (steps / len(counts) - 1) * step)
    evaluated = turns * (one[1] + (held / len(counts) - FEW) * asked)
    evaluations = sum(round % every == 0 or round == rounds for round in range(rounds + 1))
    left = _left(federation.inputs, built, learning.views, run.seed)
    return Estimate(encode, left, step, rounds * trained, evaluations * max(evaluated, 0))


def _left(inputs: Any, built: Built, views: int, seed: int) -> int:
    """Images that are still to be encoded, each view for itself."""
    if not built.key or known(inputs, built.key, cache_folder(), views, seed):
        return 0
    return len(inputs) * views


def _encoded(inputs: Any, built: Built) -> tuple[Tensor, float]:
    """A few inputs as a model is shown them, and the seconds for each."""
    built.encode(inputs[:1])  # what is only slow once
    began = time.perf_counter()
    x = built.encode(inputs[:FEW]).cpu()
    return x, (time.perf_counter() - began) / len(x)


@dataclass(frozen=True)
class _Few:
    """A few examples in place of all, and clients that have them."""

    config: Config
    federation: Federation
    x: Tensor
    learning: Learning
    model: Model
    method: Method

    @property
    def together(self) -> int:
        return min(self.asked or FEW_CLIENTS, len(self.federation.parts))

    @property
    def asked(self) -> int:
        """What [engine] says; 0: as many as is fastest."""
        return int(self.config.values["engine"].get("together", 1))

    @property
    def workers(self) -> int:
        return min(int(self.config.values["engine"].get("workers", 1)), machine.cores())

    def examples(self, count: int) -> Examples:
        positions = torch.arange(count) % len(self.x)
        views = self.x[positions][:, None].repeat_interleave(self.learning.views, dim=1)
        return Examples(views, self.federation.labels[positions])

    def seconds(self, steps: int, held: int) -> tuple[float, float] | None:
        """Of a training of so many steps, and of an evaluation on so many examples; None if it
        fails.
        """
        reserve = self.federation.reserve
        given = Examples(self.examples(len(reserve)).x, self.federation.labels[reserve])
        train, test = self.examples(steps * self.learning.batch), self.examples(held // 2)
        names = list(self.federation.parts)[: self.together]
        with TemporaryDirectory() as folder:
            private = Private(Path(folder))
            clients = [Client(name, train, test, test, private) for name in names]
            job = Job(self.method, self.model, self.learning, 1, 0, given, {})
            server = self.method.open(job.given)
            sent = self.method.send(server, names, 1, 0)
            orders = [Order(name, 1, "train", sent[name].tensors) for name in names]
            began = time.perf_counter()
            replies = answer(job, clients, orders, self.asked)
            trained = time.perf_counter() - began
            if any(reply.error for reply in replies):
                return None
            public = self.method.publish(server)
            orders = [
                Order(reply.client, 1, "predict", public, kept=int(reply.kept)) for reply in replies
            ]
            began = time.perf_counter()
            answer(job, clients, orders, self.asked)
            return trained, time.perf_counter() - began
