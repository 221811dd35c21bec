"""What a round costs the server as clients grow: FedAvg and pFedMoAP, prompts of 16 KB, clients
that answer at once.

    python benchmarks/scale.py            10 to 10,000 clients, about five minutes and 3 GB of
    memory

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
from dataclasses import dataclass
from pathlib import Path

import torch
from round import Bare, Echo

from fedexperts.client import Job
from fedexperts.learn import Examples, Learning
from fedexperts.loop import Schedule, run
from fedexperts.methods import METHODS
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.rundir import RunDir

ROUNDS = 5
NOBODY = Examples(torch.empty(0), torch.empty(0))


@dataclass(frozen=True)
class Timed(PFedMoAP):
    """pFedMoAP that notes how long it searched."""

    def send(self, server, clients, round, seed):
        began = time.perf_counter()
        sent = super().send(server, clients, round, seed)
        SEARCHED.append(time.perf_counter() - began)
        return sent


SEARCHED = []


def measured(method, clients, participation):
    """Seconds a round, seconds of search, state and traffic in MB."""
    SEARCHED.clear()
    ends = [time.perf_counter()]
    job = Job(method, Bare(), Learning(), ROUNDS, 0, reserve=NOBODY, exam={})
    with tempfile.TemporaryDirectory() as place:
        folder = RunDir.create(Path(place) / "run", "", {})
        schedule = Schedule(ROUNDS, participation, evaluate_every=ROUNDS + 1)
        run(job, Echo(False, clients), schedule, folder, lambda _: ends.append(time.perf_counter()))
        checkpoint = next(
            (folder.path / "checkpoints" / f"round-{ROUNDS:06d}").glob("server.safetensors")
        )
        state, row = checkpoint.stat().st_size, folder.rows("rounds.jsonl")[-1]
    seconds = statistics.median(after - before for before, after in itertools.pairwise(ends[3:]))
    traffic = (row["bytes_down"] + row["bytes_up"]) * len(row["trained"])
    return seconds, statistics.median(SEARCHED[2:] or [0.0]), state / 1e6, traffic / 1e6


def main():
    torch.set_num_threads(1)
    print(
        "| method | clients | in a round | s a round | of it search | state MB | traffic MB |\n"
        + "|---" * 7
        + "|"
    )
    for name, method in (("fedavg", METHODS["fedavg"]()), ("pfedmoap", Timed(experts=9))):
        for clients in (10, 100, 1000, 10_000):
            for share, said in ((1.0, "all"), (0.1, "a tenth")):
                seconds, search, state, traffic = measured(method, clients, share)
                print(
                    f"| {name} | {clients:,} | {said} | {seconds:.3f} | {search:.3f} | {state:.2f}"
                    f" | {traffic:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
