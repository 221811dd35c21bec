"""What a round costs on each engine, without training to speak of: seconds and memory for few and
many clients.

    python benchmarks/engines.py              all of it, about ten minutes on two cores
    python benchmarks/engines.py --quick      10 clients alone
    python benchmarks/engines.py --demo       pFedMoAP on digits-scanners, 20 clients and 20 rounds,
    on two engines

FedAvg of one vector, 16 KB or 4 MB; a client has one example and takes one step. Seconds are the
median of rounds after the first, and what it takes until the first round ends, all that is loaded
and started included. Memory is the most that the process and all that it started held at once
(proportional set size). The deployment has 2 sites on loopback, over TLS with keys; the server,
Flower's and ours, and the sites count.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fedexperts import config as door
from fedexperts.data.federation import Federation, Parts
from fedexperts.loop import run
from fedexperts.message import decode_order, decode_reply, encode
from fedexperts.models.built import Built
from fedexperts.rundir import RunDir

HERE = Path(__file__).parent
SIZES = {"16 KB": 2**12, "4 MB": 2**20}  # numbers of 4 bytes


@dataclass(frozen=True)
class OneEach:
    """An example to train on and one to test on for every client."""

    clients: int = 10

    def load(self, seed):
        names = [f"client-{i:04d}" for i in range(self.clients)]
        count = 2 * self.clients
        one = torch.arange(count)
        parts = {
            name: Parts(one[i : i + 1], one[:0], one[self.clients + i :][:1])
            for i, name in enumerate(names)
        }
        images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
        return Federation(images, one % 2, ("no", "yes"), parts, dict.fromkeys(names, "here"))


class Vector:
    """So many numbers, two of which say yes or no."""

    classes = ("no", "yes")

    def __init__(self, numbers):
        self.initial = {"x": torch.zeros(numbers)}

    def logits(self, tensors, x):
        return tensors["x"][:2].expand(len(x), 2)


@dataclass(frozen=True)
class VectorSettings:
    """A vector as a model."""

    numbers: int = 4096

    def build(self, classes, seed):
        return Built(Vector(self.numbers), lambda images: images.float().flatten(1), "")


@dataclass(frozen=True)
class Wire:
    """An engine between which and the loop every message is bytes."""

    inner: object

    def clients(self):
        return self.inner.clients()

    def exchange(self, orders):
        most = {order.client: order.most for order in orders}
        replies = self.inner.exchange([decode_order(encode(order)) for order in orders])
        return [decode_reply(encode(reply), most[reply.client]) for reply in replies]


def experiment(clients, numbers, rounds, engine):
    return door.resolve(
        [
            (
                {
                    "name": "engines",
                    "data": {"name": "engines:OneEach", "clients": clients},
                    "model": {"name": "engines:VectorSettings", "numbers": numbers},
                    "method": {"name": "fedavg"},
                    "learning": {"epochs": 1, "batch": 1, "rate": 0.1},
                    "run": {"rounds": rounds, "evaluate_every": rounds + 1},
                    "engine": engine,
                },
                "benchmark",
            )
        ]
    )


def tree(root):
    """A process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
            except OSError:
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def held(pids):
    """Megabytes of memory, what is shared counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1000


class Watch:
    """The most memory that processes held, looked at every half second; `roots` may grow."""

    def __init__(self, *roots):
        self.roots, self.most, self.over = list(roots), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self):
        while not self.over.wait(0.5):
            self.most = max(self.most, held(set().union(*(tree(root) for root in self.roots))))

    def end(self):
        self.over.set()
        self.thread.join()
        return self.most


def carried_out(engine, clients, numbers, rounds):
    """In this process: seconds a round, seconds to the end of the first, megabytes."""
    began, ends = time.perf_counter(), []
    watch = Watch(os.getpid())
    settings = (
        {"name": "flower-simulation", "workers": 2}
        if engine == "simulation"
        else {"name": "inprocess"}
    )
    config = experiment(clients, numbers, rounds, settings)
    with tempfile.TemporaryDirectory() as place:
        folder = RunDir.create(Path(place) / "run", config.toml(), {})
        with door.opened(config, folder.path / "private") as (job, inner, _):
            carrier = Wire(inner) if engine == "bytes" else inner
            run(
                job,
                carrier,
                config.section("run"),
                folder,
                lambda _: ends.append(time.perf_counter()),
            )
    rounds = [after - before for before, after in itertools.pairwise(ends[1:])]
    return statistics.median(rounds), ends[1] - began, watch.end()


def deployed(numbers, rounds):
    """On loopback with 2 sites: the same three figures."""
    from fedexperts.deploy.folder import Deployment
    from fedexperts.deploy.processes import free_port

    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    names = ["client-0000", "client-0001"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "dep"
        Deployment.create(folder, "localhost", free_port(), names)
        config = Path(place) / "engines.toml"
        config.write_text(experiment(2, numbers, rounds, {"name": "flower", "wait": 300.0}).toml())

        def start(*arguments):
            return subprocess.Popen(
                [sys.executable, "-m", "fedexperts", "deploy", *arguments],
                env=environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        began = time.time()
        programs = [
            start("server", str(folder)),
            *(start("site", str(folder), "--name", name) for name in names),
        ]
        watch = Watch(*(program.pid for program in programs))
        try:
            while not any("online" in line for line in listed(environment, folder)):
                time.sleep(1)
            subprocess.run(
                [sys.executable, "-m", "fedexperts", "deploy", "run", str(folder), str(config)],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        finally:
            for program in programs:
                os.killpg(program.pid, signal.SIGTERM)
            for program in programs:
                program.wait()
        rows = RunDir(folder / "runs" / "engines").rows("rounds.jsonl")
        first = (
            (folder / "runs" / "engines" / "flower.json").stat().st_mtime
            - began
            + rows[0]["seconds"]
        )
        return statistics.median(row["seconds"] for row in rows[1:]), first, watch.end()


def listed(environment, folder):
    command = [sys.executable, "-m", "fedexperts", "deploy", "sites", str(folder)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True
    ).stdout.splitlines()


def told(name, clients, size, rounds=5):
    """A case in a process of its own, so that memory is its alone; as a line."""
    command = [
        sys.executable,
        __file__,
        "--case",
        name,
        str(clients),
        str(SIZES[size]),
        str(rounds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, first, memory = json.loads(done.stdout.splitlines()[-1])
    print(
        f"| {name} | {clients} | {size} | {seconds:.3f} | {first:.1f} | {memory:.0f} |", flush=True
    )


def demo():
    """The digits demo's pFedMoAP, untuned, on two engines."""
    for name in ("inprocess", "flower-simulation"):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            settings = ["learning.rate=0.3", f"engine.name={name}"]
            command = ["run", "configs/demo/pfedmoap.toml", "--jobs", "1", "--out", f"{place}/out"]
            arguments = [word for setting in settings for word in ("--set", setting)]
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "fedexperts",
                    *command,
                    *arguments,
                    "--set",
                    "method.gate_rate=0.05",
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        print(f"| {name} | {time.perf_counter() - began:.0f} |", flush=True)


def main():
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--quick", action="store_true")
    reader.add_argument("--demo", action="store_true")
    reader.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    asked = reader.parse_args()
    if asked.case:
        name, clients, numbers, rounds = asked.case[0], *map(int, asked.case[1:])
        figures = (
            deployed(numbers, rounds)
            if name == "deployment"
            else carried_out(name, clients, numbers, rounds)
        )
        print(json.dumps(figures))
    elif asked.demo:
        print("| engine | seconds |\n|---|---|")
        demo()
    else:
        print(
            "| engine | clients | payload | s a round | s to the first | MB"
            " |\n|---|---|---|---|---|---|"
        )
        for size in SIZES:
            for clients in (10,) if asked.quick else (10, 100):
                for name in ("inprocess", "bytes", "simulation"):
                    told(name, clients, size)
            told("deployment", 2, size)


if __name__ == "__main__":
    main()
