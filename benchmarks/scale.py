"""What a round costs the server as clients grow: FedAvg and pFedMoAP, prompts of 16 KB, clients
that answer at once.

    python benchmarks/scale.py            10 to 10,000 clients: five minutes, 3 GB of memory

Full participation is the worst case: everybody's prompt is new and everybody is compared with
everybody. `a tenth` is the same federation with a tenth of the clients in a round. Search is the
time of `Method.send`, in which the nearest are found; state is what the server holds, and writes as
a checkpoint, after the last round; traffic is the server's link in a round, both ways, with K = 9
experts a client. One thread, the median of rounds after the second.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from round import Echo, carried_out

from fedexperts.method import Method, Sent
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.provenance import program
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors

ROUNDS = 5
CLIENTS = (10, 100, 1000, 10_000)
SHARES = {"all": 1.0, "a tenth": 0.1}


@dataclass(frozen=True)
class Timed(PFedMoAP):
    """pFedMoAP that notes how long each search took."""

    searches: list[float] = field(default_factory=list)

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        began = time.perf_counter()
        sent = super().send(server, clients, round, seed)
        self.searches.append(time.perf_counter() - began)
        return sent


class Cost(NamedTuple):
    """Of a round."""

    seconds: float
    search: float  # seconds of these
    state: float  # MB
    traffic: float  # MB


def measured(method: Method, clients: int, participation: float) -> Cost:
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir.create(Path(temporary) / "run", "", {})
        seconds = carried_out(method, Echo(False, clients), folder, ROUNDS, participation)
        checkpoint = folder.path / "checkpoints" / f"round-{ROUNDS:06d}"
        state = (checkpoint / "server.safetensors").stat().st_size
        row = folder.rows("rounds.jsonl")[-1]
    search = 0.0
    if isinstance(method, Timed):
        search = statistics.median(method.searches[2:])
    traffic = (row["bytes_down"] + row["bytes_up"]) * len(row["trained"])
    return Cost(statistics.median(seconds[2:]), search, state / 1e6, traffic / 1e6)


def tell(name: str, method: Method, clients: int, said: str) -> None:
    cost = measured(method, clients, SHARES[said])
    print(
        f"| {name} | {clients:,} | {said} | {cost.seconds:.3f} | {cost.search:.3f}"
        f" | {cost.state:.2f} | {cost.traffic:.1f} |",
        flush=True,
    )


def main() -> None:
    print(program())
    torch.set_num_threads(1)
    print("| method | clients | in a round | s a round | of it search | state MB | traffic MB |")
    print("|---" * 7 + "|")
    for clients, said in itertools.product(CLIENTS, SHARES):
        tell("fedavg", FedAvg(), clients, said)
    for clients, said in itertools.product(CLIENTS, SHARES):
        tell("pfedmoap", Timed(experts=9), clients, said)


if __name__ == "__main__":
    main()
