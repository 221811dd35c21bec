"""What a round costs without training: 100 clients with 16 KB each, in microseconds a client.

    python benchmarks/round.py

The loop, the messages, the checks on uploads, the logs and the checkpoint are the library's; the
clients answer at once with what they were sent plus their own number. Every method's row is
measured in the same run, evaluation left out.
"""

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fedexperts.client import Job
from fedexperts.learn import Examples, Learning
from fedexperts.loop import Schedule, run
from fedexperts.message import Reply, decode_order, decode_reply, encode
from fedexperts.methods import METHODS
from fedexperts.rundir import RunDir

CLIENTS, ROUNDS = 100, 10
FACTS = {"loss": 0.0, "parameters": 4096, "bytes": 16384}


class Bare:
    """A model of 16 KB that says the same whatever it is asked."""

    classes = ("a", "b")
    scale = 1.0

    def __init__(self):
        self.initial = {"context": torch.zeros(16, 256)}

    def texts(self, context):
        return torch.ones(2, 256)

    def logits(self, tensors, x):
        raise NotImplementedError


@dataclass(frozen=True)
class Echo:
    """Clients that answer at once; `wire` sends every message through its bytes."""

    wire: bool
    count: int = CLIENTS

    def clients(self):
        return [f"client-{i:05d}" for i in range(self.count)]

    def exchange(self, orders):
        return [self.answer(order) for order in orders]

    def answer(self, order):
        if order.task == "predict":
            return Reply(order.client, order.round, "predict", error="not asked here")
        order = decode_order(encode(order)) if self.wire else order
        context = order.tensors["global.context"] + int(order.client[-5:]) / 1000
        reply = Reply(order.client, order.round, "train", {"context": context}, 1, FACTS)
        return decode_reply(encode(reply), order.most) if self.wire else reply


def microseconds(method, wire):
    """A client's share of a round, the median over rounds."""
    times = [time.perf_counter()]
    job = Job(
        method,
        Bare(),
        Learning(),
        ROUNDS,
        0,
        reserve=Examples(torch.empty(0), torch.empty(0)),
        exam={},
    )
    with tempfile.TemporaryDirectory() as place:
        folder = RunDir.create(Path(place) / "run", "", {})
        schedule = Schedule(ROUNDS, evaluate_every=ROUNDS + 1)
        run(job, Echo(wire), schedule, folder, lambda _: times.append(time.perf_counter()))
    rounds = [after - before for before, after in itertools.pairwise(times[2:])]
    return 1e6 * statistics.median(rounds) / CLIENTS


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = {"fedavg": METHODS["fedavg"](), "pfedmoap, K = 9": METHODS["pfedmoap"](experts=9)}
    print(
        f"a round of {CLIENTS} clients with 16 KB, no training\n{'':28}us a client   share of the"
        " first"
    )
    first = None
    for wire in (False, True):
        for name, method in cases.items():
            cost = microseconds(method, wire)
            first = first or cost
            print(f"{name + (', as bytes' if wire else ''):28}{cost:10.0f}{cost / first:16.2f}")
