"""What a round costs the server as clients grow: FedAvg and pFedMoAP, prompts of 16 KB, clients
that answer at once.

    python benchmarks/scale.py            10 to 10,000 clients: five minutes, 3 GB of memory
    python benchmarks/scale.py --tenth    those with a tenth of the clients in a round: a minute
    python benchmarks/scale.py --long     many rounds: memory, logs, disk, resuming: five minutes

Full participation is the worst case: everybody's prompt is new and everybody is compared with
everybody. `a tenth` is the same federation with a tenth of the clients in a round. Search is the
time of `Method.send`, in which the nearest are found, and `RunDir.save` that of the checkpoint;
state is what the server holds after the last round, and written what a checkpoint adds to the disk,
the mean of the rounds after the second; traffic is the server's link in a round, both ways, with K
= 9 experts a client. One thread; seconds are the processor's, the mean of rounds after the second.

Many rounds: memory is this process's own, that is no file's, at a third, two thirds and the end;
logs grow by so much a round; on disk is the whole folder at the end; a fresh reader of the folder
takes so long to check it and to go on.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from fuse import private_bytes
from round import NOBODY, Bare, Echo

from fedexperts.admission import known_from
from fedexperts.client import Job
from fedexperts.learn import Learning
from fedexperts.loop import Schedule, run
from fedexperts.method import Method, Sent
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.provenance import program
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors

Tell = Callable[[int], None]
ROUNDS = 5
UNCOUNTED = 2  # rounds: at first there is no pool
CLIENTS = (10, 100, 1000, 10_000)
SHARES = {"all": 1.0, "a tenth": 0.1}
LONG: tuple[tuple[str, int, int], ...] = (
    ("fedavg", 10_000, 300),
    ("pfedmoap", 1000, 300),
    ("pfedmoap", 10_000, 30),
)


@dataclass(frozen=True)
class Timed(PFedMoAP):
    """pFedMoAP that notes how long each search took."""

    searches: list[float] = field(default_factory=list)

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        began = time.process_time()
        sent = super().send(server, clients, round, seed)
        self.searches.append(time.process_time() - began)
        return sent


@dataclass(frozen=True)
class Watched(RunDir):
    """A run's folder that notes how long each checkpoint took, and what it added to the disk."""

    saves: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def save(self, round: int, server: Tensors, kept: Mapping[str, int] | None = None) -> None:
        before = set(self._files())
        began = time.process_time()
        super().save(round, server, kept)
        self.saves.append(time.process_time() - began)
        now = self._files()
        self.written.append(sum(now[file] for file in now.keys() - before))

    def _files(self) -> dict[tuple[int, int], int]:
        """Sizes of the files of checkpoints, each once, whatever its names."""
        files = [file.stat() for file in self.path.glob("checkpoints/*/*")]
        return {(file.st_ino, file.st_mtime_ns): file.st_size for file in files}


class Cost(NamedTuple):
    """Of a round."""

    seconds: float
    search: float  # seconds of these
    save: float  # and of these
    state: float  # MB
    written: float  # MB
    traffic: float  # MB


def carried_out(
    method: Method, clients: int, share: float, folder: RunDir, rounds: int, tell: Tell
) -> None:
    """A run in which nobody trains, and none but the last round is evaluated."""
    job = Job(method, Bare(), Learning(), rounds, 0, reserve=NOBODY, exam={})
    schedule = Schedule(rounds, share, evaluate_every=rounds + 1)
    run(job, Echo(False, clients), schedule, folder, tell)


def measured(method: Timed | FedAvg, clients: int, share: float) -> Cost:
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Watched(RunDir.create(Path(temporary) / "run", "", {}).path)
        carried_out(
            method,
            clients,
            share,
            folder,
            ROUNDS,
            lambda _: ends.append(time.process_time()),
        )
        state = folder.rows("server.jsonl")[-1]["server_bytes"]
        row = folder.rows("rounds.jsonl")[-1]
    search = 0.0
    if isinstance(method, Timed):
        search = statistics.fmean(method.searches[UNCOUNTED:])
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    traffic = (row["bytes_down"] + row["bytes_up"]) * len(row["trained"])
    return Cost(
        statistics.fmean(seconds[UNCOUNTED:-1]),  # the last is evaluated
        search,
        statistics.fmean(folder.saves[1 + UNCOUNTED : -1]),
        state / 1e6,
        statistics.fmean(folder.written[1 + UNCOUNTED : -1]) / 1e6,
        traffic / 1e6,
    )


def made(name: str) -> Timed | FedAvg:
    return Timed(experts=9) if name == "pfedmoap" else FedAvg()


def tell(name: str, clients: int, said: str) -> None:
    cost = measured(made(name), clients, SHARES[said])
    print(
        f"| {name} | {clients:,} | {said} | {cost.seconds:.3f} | {cost.search:.3f}"
        f" | {cost.save:.3f} ({cost.save / cost.seconds:.0%}) | {cost.state:.2f}"
        f" | {cost.written:.2f} | {cost.traffic:.1f} |",
        flush=True,
    )


def tell_long(name: str, clients: int, rounds: int) -> None:
    """A tenth of the clients in a round, for many rounds."""
    held: dict[int, float] = {}

    def note(round: int) -> None:
        if round in (rounds // 3, 2 * rounds // 3, rounds - 1):
            held[round] = private_bytes() / 1e6

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run"
        carried_out(made(name), clients, 0.1, RunDir.create(path, "", {}), rounds, note)
        files = [file.stat() for file in path.rglob("*") if file.is_file()]
        disk = sum({file.st_ino: file.st_size for file in files}.values()) / 1e6
        logs = sum(file.stat().st_size for file in path.glob("*.jsonl")) / rounds / 1e3
        began, folder = time.process_time(), RunDir(path)
        folder.load()
        known_from(folder.rows("rounds.jsonl"), folder.rows("clients.jsonl"))
        resumed = time.process_time() - began
    memory = ", ".join(f"{megabytes:.0f}" for megabytes in held.values())
    print(
        f"| {name} | {clients:,} | {rounds} | {memory} | {logs:.1f} | {disk:.1f} | {resumed:.2f} |",
        flush=True,
    )


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    reader.add_argument("--tenth", action="store_true")
    reader.add_argument("--long", action="store_true")
    asked = reader.parse_args()
    print(program())
    torch.set_num_threads(1)
    if asked.long:
        heads = ("method", "clients", "rounds", "memory MB", "logs KB a round", "on disk MB")
        print(f"| {' | '.join(heads)} | CPU s to resume |\n{'|---' * 7}|")
        for case in LONG:
            tell_long(*case)
        return
    heads = ("method", "clients", "in a round", "CPU s a round", "of it search", "checkpoint")
    print(f"| {' | '.join(heads)} | state MB | written MB | traffic MB |\n{'|---' * 9}|")
    for name, clients, said in itertools.product(("fedavg", "pfedmoap"), CLIENTS, SHARES):
        if said != "all" or not asked.tenth:
            tell(name, clients, said)


if __name__ == "__main__":
    main()
