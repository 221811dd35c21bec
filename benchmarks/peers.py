"""Ours beside its peers: the same FedAvg, network, data, steps and clients, in ours, in a plain
torch loop, in pfl-research and in Flower's simulation.

    python benchmarks/peers.py                   all tasks, ten rounds of each
    python benchmarks/peers.py --quick           three rounds of each
    python benchmarks/peers.py --only CNN        one task
    python benchmarks/peers.py --pfl FOLDER      where pfl-research's environment is kept

pfl-research does not install beside this package, so it gets an environment of its own with the
same torch, made here and taken from the package index; by default in a temporary folder. A peer
that is not there is named with the reason.

CNN: 50 clients with 50 images of 28 x 28, 5 steps of 10, 9,098 weights. 16 KB and 4 MB: 100 clients
with a vector of so many bytes, one example and one step. Every player is a process of its own with
one thread; in each round they take turns, so that all see the same machine. Seconds are medians,
CPU seconds means, of a player and all processes that it started; the first round and the last do
not count. On a busy machine read the CPU seconds. `loss` is the global model's on the clients'
examples at the end: all shuffle in their own way (pfl-research not at all), so it is alike and not
equal. Ours writes logs and checkpoints and checks every upload, as always. Its CNN has the
library's own convolutions, which compute the same.
"""

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from contest import CLASSES, LOSS, RATE, READY, TASKS, clients_of, ended, loop, shown, train, turn
from engines import tree

import fedexperts as fx
from fedexperts import config as door
from fedexperts.loop import run
from fedexperts.models.vision import compact_cnn
from fedexperts.rundir import RunDir

PFL = "0.6.0"
ROUNDS, QUICK = 10, 3
UNCOUNTED = 2  # rounds: the first and the last
HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")


class AbsentError(RuntimeError):
    """A peer cannot be asked; says why."""


# ---- the players in this environment


@dataclass(frozen=True)
class Clients:
    """A task's data, as ours takes them."""

    task: str = "CNN"

    def load(self, seed: int) -> fx.Federation:
        images, labels = TASKS[self.task].images()
        clients, own = labels.shape
        positions = torch.arange(labels.numel()).reshape(clients, own)
        parts = {
            f"client-{i:03d}": fx.Parts(row[:-1], row[:0], row[-1:])
            for i, row in enumerate(positions)
        }
        inputs = images.flatten(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
        classes = tuple(f"class {number}" for number in range(CLASSES))
        domains = dict.fromkeys(parts, "here")
        return fx.Federation(inputs, labels.flatten(), classes, parts, domains)


@dataclass(frozen=True)
class Net:
    """A task's network, as ours takes it."""

    task: str = "CNN"

    def build(self, classes: tuple[str, ...], seed: int) -> fx.Built:
        task = TASKS[self.task]
        module = task.module()
        if self.task == "CNN":
            module = compact_cnn(8, task.side, CLASSES)
            module.load_state_dict(task.module().state_dict())
        return fx.Built(fx.Network(module, classes), lambda images: shown(images[:, 0]), "")


def ours(name: str, rounds: int, engine: Mapping[str, object]) -> None:
    """With all defaults but these of the engine."""
    task = TASKS[name]
    tables = {
        "name": "peers",
        "data": {"name": "peers:Clients", "task": name},
        "model": {"name": "peers:Net", "task": name},
        "method": {"name": "fedavg"},
        "learning": {"epochs": 1, "batch": task.batch, "rate": RATE},
        "run": {"rounds": rounds, "evaluate_every": rounds + 1},
        "engine": engine,
    }
    config = door.resolve([(tables, "benchmark")])

    def tell(round: int) -> None:
        if round < rounds:
            turn()

    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir.create(Path(temporary) / "run", config.toml(), {})
        with door.opened(config, folder.path / "private") as (job, opened, _):
            run(job, opened, config.section("run"), folder, tell)
        checkpoint = folder.look()
    assert checkpoint
    ended(task, fx.under(checkpoint[1], "global"))


def flower(name: str, rounds: int) -> None:
    """As Flower's own examples are written."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    task = TASKS[name]
    client, server = ClientApp(), ServerApp()

    @client.train()
    def answer(message: Message, context: Context) -> Message:
        x, y = clients_of(name)[int(context.node_config["partition-id"])]
        module = task.module()
        module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        train(task, module, x, y)
        arrays, metrics = ArrayRecord(module.state_dict()), MetricRecord({"num-examples": len(y)})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content=content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def between(round: int, arrays: ArrayRecord) -> None:
            if round < rounds:
                turn()

        start = ArrayRecord(task.module().state_dict())
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=task.clients,
            min_available_nodes=task.clients,
        )
        result = strategy.start(grid, start, num_rounds=rounds, evaluate_fn=between)
        ended(task, result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        client,
        task.clients,
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": 1, "include_dashboard": False},
        },
    )


def play(who: str, name: str, rounds: int) -> None:
    torch.set_num_threads(1)
    if who == "loop":
        loop(TASKS[name], rounds)
    elif who == "flower":
        flower(name, rounds)
    elif who == "together":
        ours(name, rounds, {"together": TASKS[name].clients})
    else:
        ours(name, rounds, {})


# ---- those who watch them


class Player:
    """A process that plays a round when it is asked to; AbsentError if it ends before its time."""

    def __init__(self, title: str, command: Sequence[str]) -> None:
        self.title, self.command = title, command
        self.seconds: list[float] = []  # of each round, as all below
        self.cpu: list[float] = []
        self.loss = math.nan

    @contextmanager
    def playing(self) -> Iterator[None]:
        """As long as it is needed."""
        with tempfile.TemporaryFile("w+") as self.errors:
            self.process = subprocess.Popen(
                self.command,
                env=dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
            )
            try:
                yield
            finally:
                for pid in tree(self.process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                self.process.wait()

    def until_ready(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(LOSS):
                self.loss = float(line.split()[1])
            if line.startswith((READY, LOSS)):
                return
        self.errors.seek(0)
        words = self.errors.read().strip().splitlines() or ["it ended without a word"]
        raise AbsentError(words[-1])

    def round(self) -> None:
        assert self.process.stdin
        before, began = used(self.process.pid), time.perf_counter()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.until_ready()
        self.seconds.append(time.perf_counter() - began)
        self.cpu.append(used(self.process.pid) - before)

    @property
    def cost(self) -> tuple[float, float]:
        """Seconds and CPU seconds of a round."""
        return statistics.median(self.seconds[1:-1]), statistics.fmean(self.cpu[1:-1])


def used(root: int) -> float:
    """CPU seconds of a process and all that descend from it, so far."""
    ticks = 0
    for pid in tree(root):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def pfl_python(folder: Path) -> Path:
    """The Python of an environment with pfl-research and this torch; AbsentError if it cannot be
    made.
    """
    python, torch_here = folder / "bin" / "python", torch.__version__.partition("+")[0]
    if not python.exists():
        venv.create(folder, with_pip=True)
        pin = folder / "constraints.txt"
        pin.write_text(f"torch=={torch_here}\n")
        command = [str(python), "-m", "pip", "install", f"pfl=={PFL}", f"torch=={torch_here}"]
        pinned = dict(os.environ) | {"PIP_CONSTRAINT": str(pin)}
        done = subprocess.run(command, env=pinned, capture_output=True, text=True)
        if done.returncode:
            raise AbsentError(f"pip says {done.stderr.strip().splitlines()[-1]}")
    return python


def players(task: str, rounds: int, pfl: Path) -> Iterator[Player]:
    """The plain loop first; who is absent is named."""
    what = [task, str(rounds)]
    here = [sys.executable, __file__, "--play"]
    yield Player("plain torch loop", [*here, "loop", *what])
    yield Player("ours, defaults", [*here, "ours", *what])
    yield Player(f"ours, together = {TASKS[task].clients}", [*here, "together", *what])
    try:
        python = str(pfl_python(pfl))
        yield Player(f"pfl-research {PFL}", [python, str(HERE / "pfl_player.py"), *what])
    except AbsentError as error:
        print(f"pfl-research: not run, {error}", flush=True)
    try:
        yield Player(f"Flower {version('flwr')}, simulation", [*here, "flower", *what])
    except PackageNotFoundError:
        print("Flower: not run, it is not installed; pip install 'fedexperts[flower]'", flush=True)


def contest(task: str, rounds: int, pfl: Path) -> list[Player]:
    """Those who played all rounds, the plain loop first; who did not is named."""
    there: list[Player] = []
    with ExitStack() as stack:
        for player in players(task, rounds, pfl):
            stack.enter_context(player.playing())
            if played(player, player.until_ready):
                there.append(player)
        for _ in range(rounds):
            there = [player for player in there if played(player, player.round)]
    return there


def played(player: Player, act: Callable[[], None]) -> bool:
    try:
        act()
    except AbsentError as error:
        print(f"{player.title}: not run, {error}", flush=True)
        return False
    return True


def table(there: Sequence[Player]) -> Iterator[str]:
    yield "| who | s a round | CPU s | s, of the loop's | CPU, of the loop's | loss |"
    yield "|---|---|---|---|---|---|"
    first_seconds, first_cpu = there[0].cost
    for player in there:
        seconds, cpu = player.cost
        yield (
            f"| {player.title} | {seconds:.3f} | {cpu:.3f} | {seconds / first_seconds:.2f}"
            f" | {cpu / first_cpu:.2f} | {player.loss:.3f} |"
        )


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--quick", action="store_true")
    reader.add_argument("--only", choices=TASKS)
    reader.add_argument("--pfl", type=Path)
    reader.add_argument("--play", nargs=3, help=argparse.SUPPRESS)
    asked = reader.parse_args()
    if asked.play:
        who, task, rounds = asked.play
        play(who, task, int(rounds))
        return
    rounds = UNCOUNTED + (QUICK if asked.quick else ROUNDS)
    tasks = [asked.only] if asked.only else list(TASKS)
    print(f"torch {torch.__version__}, fedexperts {fx.__version__}, one thread each", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for task in tasks:
            print(f"\n{task}: {TASKS[task].clients} clients", flush=True)
            there = contest(task, rounds, asked.pfl or Path(temporary) / "pfl")
            print("\n".join(["", *table(there)]), flush=True)


if __name__ == "__main__":
    main()
