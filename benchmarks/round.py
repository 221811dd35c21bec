"""What a round costs without training: 100 clients with 16 KB each, in microseconds a client.

    python benchmarks/round.py

The loop, the messages, the checks on uploads, the logs and the checkpoint are the library's; the
clients answer at once with what they were sent plus drawn numbers of their own. Every method's row
is measured in the same run, evaluation left out.
"""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedexperts.client import Job
from fedexperts.declared import Facts
from fedexperts.engine import Engine
from fedexperts.learn import Examples, Learning
from fedexperts.loop import Schedule, run
from fedexperts.message import Order, Reply, decode_order, decode_reply, encode
from fedexperts.method import Method
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.model import PromptModel
from fedexperts.provenance import program
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors

CLIENTS, ROUNDS = 100, 10
FACTS: Facts = {"loss": 0.0, "parameters": 4096, "bytes": 16384}
NOBODY = Examples(torch.empty(0), torch.empty(0))
CONTEXT = (16, 256)
# client i's numbers are those from the i-th on: prompts on a line would have equal distances
DRAWN = torch.randn(10_000 + math.prod(CONTEXT), generator=torch.Generator().manual_seed(0))


class Bare(PromptModel):
    """A context of 16 KB in front of no classes to speak of; nobody asks for its logits."""

    classes = ("a", "b")
    scale = 1.0

    def __init__(self) -> None:
        self.initial = {"context": torch.zeros(CONTEXT)}

    def texts(self, context: Tensor) -> Tensor:
        return torch.ones(2, 256)

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Echo:
    """Clients that answer at once; `wire` sends every message through its bytes."""

    wire: bool
    count: int = CLIENTS

    def clients(self) -> list[str]:
        return [f"client-{i:05d}" for i in range(self.count)]

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        return [self._reply(order) for order in orders]

    def _reply(self, order: Order) -> Reply:
        if order.task == "predict":
            return Reply(order.client, order.round, "predict", error="not asked here")
        if self.wire:
            order = decode_order(encode(order))
        own = DRAWN[int(order.client[-5:]) :][: math.prod(CONTEXT)].view(CONTEXT)
        context = order.tensors["global.context"] + own
        reply = Reply(order.client, order.round, "train", {"context": context}, 1, FACTS)
        if self.wire:
            reply = decode_reply(encode(reply), order.most)
        return reply


def carried_out(
    method: Method, engine: Engine, folder: RunDir, rounds: int, participation: float = 1.0
) -> list[float]:
    """Seconds of each round of a run in which nobody trains."""
    ends: list[float] = []
    job = Job(method, Bare(), Learning(), rounds, 0, reserve=NOBODY, exam={})
    schedule = Schedule(rounds, participation, evaluate_every=rounds + 1)
    run(job, engine, schedule, folder, lambda _: ends.append(time.perf_counter()))
    return [after - before for before, after in itertools.pairwise(ends)]


def microseconds(method: Method, wire: bool) -> float:
    """A client's share of a round, the median of rounds after the first."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir.create(Path(temporary) / "run", "", {})
        seconds = carried_out(method, Echo(wire), folder, ROUNDS)
    return 1e6 * statistics.median(seconds[1:]) / CLIENTS


def main() -> None:
    print(program())
    torch.set_num_threads(1)
    methods: dict[str, Method] = {"fedavg": FedAvg(), "pfedmoap, K = 9": PFedMoAP(experts=9)}
    costs = {name: microseconds(method, wire=False) for name, method in methods.items()}
    for name, method in methods.items():
        costs[f"{name}, as bytes"] = microseconds(method, wire=True)
    print(f"a round of {CLIENTS} clients with 16 KB, no training")
    print(f"{'':28}us a client   share of the first")
    for name, cost in costs.items():
        print(f"{name:28}{cost:10.0f}{cost / costs['fedavg']:16.2f}")


if __name__ == "__main__":
    main()
