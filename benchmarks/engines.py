"""What a round costs on each engine, without training to speak of: seconds and memory for few and
many clients.

    python benchmarks/engines.py              all of it, about ten minutes on two cores
    python benchmarks/engines.py --quick      10 clients alone
    python benchmarks/engines.py --demo       pFedMoAP of the digits demo, on two engines
    python benchmarks/engines.py --floor      a deployment's round without work: what of it is ours

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
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.data.federation import Federation, Parts
from fedexperts.engine import Engine
from fedexperts.loop import run
from fedexperts.message import Order, Reply, decode_order, decode_reply, encode
from fedexperts.metrics import Row
from fedexperts.model import Model
from fedexperts.models.built import Built
from fedexperts.provenance import program
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors

HERE = Path(__file__).parent
SIZES = {"16 KB": 2**12, "4 MB": 2**20}  # numbers of 4 bytes
ROUNDS = 5
FLOOR = 8  # rounds without work, of which the first are not counted
TICKS = os.sysconf("SC_CLK_TCK")  # of a processor's second
PROGRAM = [sys.executable, "-m", "fedexperts"]
SITES = ["client-0000", "client-0001"]  # what OneEach calls its first two


class Cost(NamedTuple):
    """What an engine takes."""

    seconds: float  # a round
    first: float  # seconds until the first round is over
    memory: float  # megabytes


class Case(NamedTuple):
    """What is measured in a process of its own."""

    engine: str
    clients: int
    numbers: int


@dataclass(frozen=True)
class OneEach:
    """An example to train on and one to test on for every client."""

    clients: int = 10

    def load(self, seed: int) -> Federation:
        names = [f"client-{i:04d}" for i in range(self.clients)]
        count = 2 * self.clients
        one = torch.arange(count)
        parts = {
            name: Parts(one[i : i + 1], one[:0], one[self.clients + i :][:1])
            for i, name in enumerate(names)
        }
        images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
        return Federation(images, one % 2, ("no", "yes"), parts, dict.fromkeys(names, "here"))


class Vector(Model):
    """So many numbers, two of which say yes or no."""

    classes = ("no", "yes")

    def __init__(self, numbers: int) -> None:
        self.initial = {"x": torch.zeros(numbers)}

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        return tensors["x"][:2].expand(len(x), 2)


@dataclass(frozen=True)
class VectorSettings:
    """A vector as a model."""

    numbers: int = 4096

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        return Built(Vector(self.numbers), lambda images: images.float().flatten(1), "")


@dataclass(frozen=True)
class Wire:
    """An engine between which and the loop every message is bytes."""

    inner: Engine

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        most = {order.client: order.most for order in orders}
        replies = self.inner.exchange([decode_order(encode(order)) for order in orders])
        return [decode_reply(encode(reply), most[reply.client]) for reply in replies]


def experiment(clients: int, numbers: int, engine: Mapping[str, object]) -> Config:
    tables = {
        "name": "engines",
        "data": {"name": "engines:OneEach", "clients": clients},
        "model": {"name": "engines:VectorSettings", "numbers": numbers},
        "method": {"name": "fedavg"},
        "learning": {"epochs": 1, "batch": 1, "rate": 0.1},
        "run": {"rounds": ROUNDS, "evaluate_every": ROUNDS + 1},
        "engine": engine,
    }
    return door.resolve([(tables, "benchmark")])


def tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def held(pids: Iterable[int]) -> float:
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
    """The most memory that processes and their descendants held, looked at every half second."""

    def __init__(self, *roots: int) -> None:
        self.roots, self.most, self.over = roots, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.over.wait(0.5):
            self.most = max(self.most, held(set().union(*(tree(root) for root in self.roots))))

    def end(self) -> float:
        self.over.set()
        self.thread.join()
        return self.most


def carried_out(case: Case) -> Cost:
    """In this process."""
    began = time.perf_counter()
    watch = Watch(os.getpid())
    settings: dict[str, object] = {"name": "inprocess"}
    if case.engine == "simulation":
        settings = {"name": "flower-simulation", "workers": 2}
    config = experiment(case.clients, case.numbers, settings)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir.create(Path(temporary) / "run", config.toml(), {})
        with door.opened(config, folder.path / "private") as (job, inner, _):
            engine = Wire(inner) if case.engine == "bytes" else inner
            schedule = config.section("run")
            run(job, engine, schedule, folder, lambda _: ends.append(time.perf_counter()))
    rounds = [after - before for before, after in itertools.pairwise(ends[1:])]
    return Cost(statistics.median(rounds), ends[1] - began, watch.end())


def prepared(folder: Path, numbers: int) -> Path:
    """A deployment on loopback, with a site a client, and the file of its experiment."""
    from fedexperts.deploy.folder import Deployment
    from fedexperts.deploy.programs import free_port

    Deployment.create(folder, "localhost", free_port(), SITES)
    for site in SITES:  # the data and the model are code of ours, which a site must allow
        with open(folder / "sites" / site / "site.toml", "a") as file:
            file.write('modules = ["engines"]\n')
    config = folder.parent / "engines.toml"
    engine = {"name": "flower", "wait": 300.0}
    config.write_text(experiment(len(SITES), numbers, engine).toml())
    return config


def deployed(case: Case) -> Cost:
    """On loopback."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "deployment"
        config = prepared(folder, case.numbers)
        began = time.time()
        with programs(folder) as watch:
            deploy("run", str(folder), str(config)).check_returncode()
        path = folder / "runs" / "engines"
        submitted = (path / "flower.json").stat().st_mtime - began
        seconds = [row["seconds"] for row in RunDir(path).rows("rounds.jsonl")]
        return Cost(statistics.median(seconds[1:]), submitted + seconds[0], watch.end())


@contextmanager
def programs(folder: Path) -> Iterator[Watch]:
    """A server and its sites, all connected."""
    started = [start("server", str(folder))]
    started += [start("site", str(folder), "--name", site) for site in SITES]
    try:
        while deploy("sites", str(folder)).stdout.count("  connected (") < len(SITES):
            time.sleep(1)
        yield Watch(*(program.pid for program in started))
    finally:
        for program in started:
            os.killpg(program.pid, signal.SIGTERM)
        for program in started:
            program.wait()


def spent(roots: Sequence[int]) -> dict[str, float]:
    """Seconds of processors so far, by whose program it is; of ended ones, too."""
    seconds: dict[str, float] = defaultdict(float)
    for pid in set().union(*(tree(root) for root in roots)):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        own, children = (sum(map(int, fields[i : i + 2])) / TICKS for i in (11, 13))
        if pid in roots:
            seconds["ours: the gateway, and the processes that answer"] += own
        elif "serverapp" in command:
            seconds["Flower's process in which our rounds run"] += own
        else:
            seconds["Flower's programs"] += own
        if pid not in roots:
            seconds["Flower's programs"] += children
    return seconds


def floor() -> None:
    """What a round without work costs on loopback, in time and in seconds of processors."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "deployment"
        config = prepared(folder, 4096)
        run_folder = RunDir(folder / "runs" / "engines")
        with programs(folder) as watch:
            arguments = ["run", str(folder), str(config), "--set", f"run.rounds={FLOOR}"]
            operator = start(*arguments)
            while len(done := _rounds(run_folder)) < 2:
                time.sleep(0.2)
            before, first = spent(watch.roots), len(done)
            while len(done := _rounds(run_folder)) < FLOOR:
                time.sleep(0.2)
            after, count = spent(watch.roots), len(done) - first
            operator.wait()
        answers = []
        for site in SITES:
            log = (folder / "sites" / site / "site.log").read_text()
            answers += [float(took) for took in re.findall(r"train.* out, ([\d.]+) s\)", log)[2:]]
    seconds = [row["seconds"] for row in done[first:]]
    print(f"| what | of a round, {count} rounds, {len(SITES)} sites |\n|---|---|")
    print(f"| time | {statistics.median(seconds):.1f} s |")
    print(f"| of it our answer at a site | {statistics.median(answers):.1f} s |")
    for whose, total in after.items():
        print(f"| seconds of processors, {whose} | {(total - before[whose]) / count:.2f} s |")


def _rounds(folder: RunDir) -> list[Row]:
    return folder.latest() if folder.path.exists() else []


def environment() -> dict[str, str]:
    """In which programs import this file."""
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, "deploy", *arguments],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def deploy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "deploy", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def tell(engine: str, clients: int, size: str) -> None:
    """A case in a process of its own, so that memory is its alone; as a line."""
    command = [sys.executable, __file__, "--case", engine, str(clients), str(SIZES[size])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cost = Cost(*json.loads(done.stdout.splitlines()[-1]))
    print(
        f"| {engine} | {clients} | {size} | {cost.seconds:.3f} | {cost.first:.1f}"
        f" | {cost.memory:.0f} |",
        flush=True,
    )


def demo(engine: str) -> float:
    """Seconds of the digits demo's pFedMoAP, untuned."""
    settings = ["learning.rate=0.3", "method.gate_rate=0.05", f"engine.name={engine}"]
    words = [word for setting in settings for word in ("--set", setting)]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        where = ["--jobs", "1", "--out", f"{temporary}/out"]
        command = [*PROGRAM, "run", "configs/demo/pfedmoap.toml", *where, *words]
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--quick", action="store_true")
    reader.add_argument("--demo", action="store_true")
    reader.add_argument("--floor", action="store_true")
    reader.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    asked = reader.parse_args()
    if asked.case:
        case = Case(asked.case[0], int(asked.case[1]), int(asked.case[2]))
        measure = deployed if case.engine == "deployment" else carried_out
        print(json.dumps(measure(case)))
        return
    print(program())
    if asked.floor:
        floor()
    elif asked.demo:
        print("| engine | seconds |\n|---|---|")
        for engine in ("inprocess", "flower-simulation"):
            print(f"| {engine} | {demo(engine):.0f} |", flush=True)
    else:
        print("| engine | clients | payload | s a round | s to the first | MB |")
        print("|---|---|---|---|---|---|")
        for size in SIZES:
            for clients in (10,) if asked.quick else (10, 100):
                for engine in ("inprocess", "bytes", "simulation"):
                    tell(engine, clients, size)
            tell("deployment", len(SITES), size)


if __name__ == "__main__":
    main()
