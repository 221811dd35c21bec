"""What a GPU gives: pFedMoAP's step on a text encoder of ViT-B/16's shape, many clients at once,
the demo, Flower.

    python benchmarks/gpu.py --out runs/gpu                  all parts, at most eight minutes
    python benchmarks/gpu.py --out runs/gpu --only step,demo
    python benchmarks/gpu.py --device cpu --quick            tries the script itself, in two minutes

Each part is a process of its own with a limit in seconds; each row is written as soon as it is
measured, to gpu.txt and, as JSON, to gpu.jsonl: a part that is cut off leaves what it had. Weights
are random, nothing is downloaded. Times are medians within one run. "limit" is the matrix products
of the same shapes and nothing else, the backward ones too, as a CUDA graph; "fit" is what the
library runs; "eager", "graph" and the compiled ways are its step alone, on tensors that lie on the
device already. tf32 is fp32 whose matrix products round to 10 bits.
"""

import argparse
import copy
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from grid import variant
from step import fitting, started
from text_encoder import as_clip, names, random_clip
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import cross_entropy, normalize

from fedexperts import config as door
from fedexperts.average import mean
from fedexperts.config import Config
from fedexperts.learn import Examples, Fitting, Learning, Local, fit
from fedexperts.loop import run
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.metrics import Row, by_round, score
from fedexperts.models.built import computing_on
from fedexperts.models.clip import Clip, PromptedClip
from fedexperts.models.network import Network, seeded
from fedexperts.models.vision import compact_cnn, leaf_cnn
from fedexperts.provenance import program
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors, on, pack, rng, stack, unbind

# seconds, in order
LIMITS = {"machine": 60, "step": 150, "demo": 75, "together": 50, "flower": 75, "compile": 130}
WHOLE = 475  # seconds of all parts
CONTEXT, BATCH, EXPERTS, RATE = 16, 16, 3, 1e-4
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sheet:
    """Where rows go, and where things are computed."""

    out: Path
    device: torch.device
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def line(self, text: str) -> None:
        print(text, flush=True)
        with open(self.out / "gpu.txt", "a") as file:
            file.write(text + "\n")

    def head(self, *columns: str) -> None:
        self.line("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def row(self, part: str, **values: object) -> None:
        with open(self.out / "gpu.jsonl", "a") as file:
            file.write(json.dumps({"part": part, **values}) + "\n")
        self.line("| " + " | ".join(shown(value) for value in values.values()) + " |")

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """GB of the device's memory, the most since `fresh`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None

    def fresh(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def milliseconds(act: Callable[[], object], sheet: Sheet, repeats: int = 7) -> float:
    """The median of several times, each of as many acts as take 20 ms; none is begun after two
    seconds.
    """

    def timed(count: int) -> float:
        sheet.sync()
        began = time.perf_counter()
        for _ in range(count):
            act()
        sheet.sync()
        return 1000 * (time.perf_counter() - began) / count

    timed(2)
    count, until = max(1, int(20 / timed(1))), time.perf_counter() + 2
    times = [timed(count)]
    while len(times) < repeats and time.perf_counter() < until:
        times.append(timed(count))
    return statistics.median(times)


def graphed(act: Callable[[], object]) -> Callable[[], object]:
    """The same act as one CUDA graph: its kernels are launched at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()
    return graph.replay


# ---- machine


def machine(sheet: Sheet) -> None:
    """What the card can do: its copy and its products."""
    card = torch.cuda.get_device_name() if sheet.cuda else "no GPU"
    sheet.line(
        f"\n{card}; torch {torch.__version__}, CUDA {torch.version.cuda}; {os.cpu_count()} CPU"
        " cores"
    )
    sheet.head("what", "rate", "unit")
    size = 2**22 if sheet.quick else 2**30
    one, other = torch.rand(size, device=sheet.device), torch.empty(size, device=sheet.device)
    took = milliseconds(lambda: other.copy_(one), sheet)
    sheet.row("machine", what="copy, bytes read and written", rate=8e-6 * size / took, unit="GB/s")
    wide = 512 if sheet.quick else 8192
    for precision in DTYPES:
        with rounding(precision):
            a = torch.randn(wide, wide, device=sheet.device).to(DTYPES[precision])
            took = milliseconds(partial(torch.mm, a, a), sheet)
        sheet.row(
            "machine",
            what=f"product of {wide} x {wide}, {precision}",
            rate=2e-9 * wide**3 / took,
            unit="TFLOP/s",
        )


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """In here fp32 products are what `precision` says."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- step


Losses = Callable[[Tensors, Tensors, Tensor, Tensor], Tensor]


@dataclass
class Work:
    """The step of n clients: their stacked tensors and a batch of each."""

    model: PromptedClip
    method: PFedMoAP
    starts: list[Local]
    trained: Tensors
    fixed: Tensors
    x: Tensor  # [n, B, D]
    y: Tensor  # [n, B]

    def losses(self, trained: Tensors, fixed: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """As in learn.py: one client alone, several under a vmap."""

        def one(trained: Tensors, fixed: Tensors, x: Tensor, y: Tensor) -> Tensor:
            predictor = self.method.predictor(self.model, Local(trained, fixed))
            return cross_entropy(predictor.logits(x), y)

        if len(x) > 1:
            losses: Tensor = vmap(one)(trained, fixed, x, y)
            return losses
        (alone,), (constant,) = unbind(trained, 1), unbind(fixed, 1)
        return one(alone, constant, x[0], y[0])[None]

    def gradients(self, losses: Losses) -> Tensors:
        loss = losses(self.trained, self.fixed, self.x, self.y).sum()
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        return dict(zip(self.trained, gradients, strict=True))

    def step(self, losses: Losses) -> None:
        gradients = self.gradients(losses)
        with torch.no_grad():
            for name, value in self.trained.items():
                value.sub_(gradients[name], alpha=RATE)

    @torch.no_grad()
    def begin(self) -> None:
        """Back to where the clients start: measuring moves them."""
        for name, value in self.trained.items():
            value.copy_(self.starts[0].trained[name])

    @cached_property
    def compiled(self) -> Losses:
        compiled: Losses = torch.compile(self.losses, dynamic=False)
        return compiled

    def fit(self, steps: int) -> Callable[[], object]:
        """So many of these steps as the library takes them, with all that is around them."""
        x, y = self.x.cpu().repeat(1, steps, 1)[:, :, None], self.y.cpu().repeat(1, steps)
        each = [Examples(*one) for one in zip(x, y, strict=True)]
        how = fitting(self.method, self.model, Learning(1, BATCH, rate=RATE))

        def act() -> object:
            dice = [rng(0, "batches", client=str(i)) for i in range(len(each))]
            return fit(how, self.starts, each, dice)

        return act


@cache
def clip_of(dtype: torch.dtype, device: torch.device, layers: int) -> Clip:
    """ViT-B/16's text encoder with random weights; its image encoder is not needed."""
    model = random_clip(vision={"num_hidden_layers": 1}, text={"num_hidden_layers": layers})
    return as_clip(model, dtype, device)


def text_model(precision: str, classes: int, sheet: Sheet) -> PromptedClip:
    clip = clip_of(DTYPES[precision], sheet.device, 2 if sheet.quick else 12)
    return PromptedClip(
        clip, names(classes), 0.02 * torch.randn(CONTEXT, 512, generator=rng(0, "context"))
    )


def work(model: PromptedClip, clients: int, sheet: Sheet) -> Work:
    method = PFedMoAP(experts=EXPERTS)
    start = started(method, model)
    trained, fixed = stack([start.trained] * clients), stack([start.fixed] * clients)
    dice = [rng(0, "batch", client=str(i)) for i in range(clients)]
    x = normalize(torch.stack([torch.randn(BATCH, 512, generator=draw) for draw in dice]), dim=-1)
    y = torch.stack([torch.randint(len(model.classes), (BATCH,), generator=draw) for draw in dice])
    free = {name: value.requires_grad_() for name, value in on(sheet.device, trained).items()}
    return Work(
        model,
        method,
        [start] * clients,
        free,
        on(sheet.device, fixed),
        x.to(sheet.device),
        y.to(sheet.device),
    )


Product = tuple[int, int, int, int, int]  # batch, rows, inner, columns; how often


def products(model: PromptedClip, clients: int) -> list[Product]:
    """All matrix products of a step of n clients: forward, and backward to the inputs, for no
    weight has a gradient.
    """
    assert model._tree
    R, s, seen = model._tree.mask.shape
    T, W, C, layers = seen - s, 512, len(model.classes), len(model.clip.layers)
    heads, S, n = model.clip.layers[0].heads, seen - s + R * s, clients
    tokens, ends = n * S, n * C
    inside: list[Product] = [
        (1, tokens, W, W, 3 * layers),
        *(
            (1, rows, *shape, times)
            for rows, times in ((tokens, layers - 1), (ends, 1))
            for shape in MAPS
        ),
        (1, ends, W, W, 1),
    ]
    d = W // heads
    attention = [
        (n * heads, T, d, T),
        (n * heads, T, T, d),
        (n * heads * R, s, d, seen),
        (n * heads * R, s, seen, d),
    ]
    back = [(b, rows, columns, inner, times) for b, rows, inner, columns, times in inside]
    return [*inside, *back, *((*shape, 3 * layers) for shape in attention)]


MAPS = [(512, 512), (512, 2048), (2048, 512)]  # of a layer, behind the attention


def limit(needed: list[Product], precision: str, sheet: Sheet) -> float:
    """Milliseconds of these products, and nothing else."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=sheet.device).to(DTYPES[precision])

    factors = [(drawn(b, m, k), drawn(b, k, n), times) for b, m, k, n, times in needed]

    def act() -> None:
        for one, other, times in factors:
            for _ in range(times):
                torch.bmm(one, other)

    return milliseconds(graphed(act) if sheet.cuda else act, sheet)


Case = tuple[int, int, str]  # classes, clients, precision


def step(sheet: Sheet) -> None:
    """The library's step, alone and in a graph."""
    sheet.line(
        f"\npFedMoAP's step, batches of {BATCH}, K = {EXPERTS}, text encoder of ViT-B/16's shape"
    )
    most: list[Case] = [(100, n, p) for n in (1, 16, 100) for p in DTYPES]
    most += [(10, n, p) for n in (1, 16, 100) for p in ("fp32", "bf16")]
    steps(
        sheet,
        ("fit", "eager", "graph"),
        [(10, 1, "fp32"), (10, 3, "bf16")] if sheet.quick else most,
    )


def compiled(sheet: Sheet) -> None:
    """The same through torch.compile, whose time stands behind its first row."""
    sheet.line("\npFedMoAP's step through torch.compile")
    most: list[Case] = [(100, n, p) for n in (1, 16) for p in ("bf16", "fp32")]
    steps(
        sheet, ("eager", "compiled", "compiled, graph"), [(10, 2, "fp32")] if sheet.quick else most
    )


def steps(sheet: Sheet, ways: Sequence[str], cases: Sequence[Case]) -> None:
    columns = (
        "classes",
        "clients",
        "precision",
        "way",
        "ms a step",
        "ms a client",
        "limit ms",
        "times the limit",
    )
    sheet.head(*columns, "TFLOP/s", "GB", "gradient apart from fp32", "s to begin")
    exact: dict[int, Tensor] = {}
    for case in cases:
        classes, clients, precision = case
        if classes not in exact:
            exact[classes] = exact_gradient(sheet, classes)
        with rounding(precision):
            sheet.fresh()
            model = text_model(precision, classes, sheet)
            needed = products(model, clients)
            least, doing = limit(needed, precision, sheet), work(model, clients, sheet)
            flops = sum(2 * b * m * k * n * times for b, m, k, n, times in needed)
            for way in ways:
                sheet.fresh()
                row: Row = {"classes": classes, "clients": clients}
                row |= {"precision": precision, "way": way}
                try:
                    took, gradient, begun = one_way(sheet, way, doing)
                except Exception as error:  # the other ways are measured all the same
                    why = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
                    sheet.row("step", **row, failed=why)
                    continue
                sheet.row(
                    "step",
                    **row,
                    ms=took,
                    ms_client=took / clients,
                    limit_ms=least,
                    times=took / least,
                    tflops=flops / took / 1e9,
                    gb=sheet.peak(),
                    apart=apart(gradient, exact[classes]),
                    begin_s=begun,
                )
            if "compiled" in ways:
                torch.compiler.reset()


def one_way(sheet: Sheet, way: str, doing: Work) -> tuple[float, Tensor, float]:
    """Milliseconds a step, the first client's gradient to its context, and the seconds of the first
    step.
    """
    if "graph" in way and not sheet.cuda:
        raise ValueError("CUDA graphs need CUDA")
    losses = doing.compiled if "compiled" in way else doing.losses
    doing.begin()
    began = time.perf_counter()
    gradient = doing.gradients(losses)["context"][0].clone()
    sheet.sync()
    begun = time.perf_counter() - began
    if way == "fit":
        count = 8 if len(doing.starts) < 100 else 3
        return milliseconds(doing.fit(count), sheet, repeats=3) / count, gradient, begun

    def act() -> None:
        doing.step(losses)

    return milliseconds(graphed(act) if "graph" in way else act, sheet), gradient, begun


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def exact_gradient(sheet: Sheet, classes: int) -> Tensor:
    """The first client's gradient to its context, in fp32."""
    doing = work(text_model("fp32", classes, sheet), 1, sheet)
    return doing.gradients(doing.losses)["context"][0].clone()


# ---- many clients


def together(sheet: Sheet) -> None:
    """FedAvg's local training of 100 clients, 5 steps of 10 images, and the mean: stacked, one by
    one, a plain loop.
    """
    count = 4 if sheet.quick else 100
    sheet.line(f"\nFedAvg, {count} clients, 5 steps of 10 images of 28 x 28")
    sheet.head(
        "network", "weights", "device", "way", "s a round", "times as fast as its loop", "GB"
    )
    networks = {"compact-cnn": lambda: compact_cnn(8, 28, 10), "leaf-cnn": lambda: leaf_cnn(10)}
    for name, make in networks.items():
        for device in dict.fromkeys((sheet.device, torch.device("cpu"))):
            if name == "leaf-cnn" and device.type == "cpu":
                continue  # its loop alone takes a minute
            rounds(sheet, name, seeded(make, 0), device, count)


def rounds(sheet: Sheet, name: str, module: nn.Module, device: torch.device, count: int) -> None:
    draw = rng(0, "images")
    x = torch.randn(count, 50, 1, 28, 28, generator=draw)
    y = torch.randint(10, (count, 50), generator=draw)
    with computing_on(device):
        network = Network(module, tuple("0123456789"))
    ways: dict[str, Callable[[], Tensors]] = {
        "plain loop": lambda: looped(module, x, y, device),
        "together = 1": lambda: fitted(network, x, y, 1),
        f"together = {count}": lambda: fitted(network, x, y, count),
    }
    weights = sum(value.numel() for value in module.parameters())
    loop = math.nan
    for way, act in ways.items():
        sheet.fresh()
        took = milliseconds(act, sheet, repeats=5) / 1000
        if way == "plain loop":
            loop = took
        sheet.row(
            "together",
            network=name,
            weights=weights,
            device=device.type,
            way=way,
            s=took,
            times=loop / took,
            gb=sheet.peak() if device.type == "cuda" else None,
        )


def looped(module: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensors:
    """As one writes it: a copy of the module a client, torch's SGD, a running mean."""
    uploads = []
    for images, labels in zip(x.to(device), y.to(device), strict=True):
        local = copy.deepcopy(module).to(device)
        optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
        for order in torch.randperm(50).split(10):
            optimizer.zero_grad()
            cross_entropy(local(images[order]), labels[order]).backward()
            optimizer.step()
        uploads.append({name: value.detach().cpu() for name, value in local.state_dict().items()})
    return {name: torch.stack([upload[name] for upload in uploads]).mean(0) for name in uploads[0]}


def fitted(network: Network, x: Tensor, y: Tensor, group: int) -> Tensors:
    """As the library does it."""
    how = Fitting(
        lambda local, x: network.step(local.trained, x),
        Learning(1, 10, rate=0.1),
        device=network.device,
    )
    everybody = [Examples(images[:, None], labels) for images, labels in zip(x, y, strict=True)]
    uploads: list[Tensors] = []
    for i in range(0, len(x), group):
        each = everybody[i : i + group]
        dice = [rng(0, "batches", client=str(i + j)) for j in range(len(each))]
        uploads += fit(how, [Local(network.initial)] * len(each), each, dice)[0]
    return mean(uploads, [1.0] * len(uploads))


# ---- the demo, and Flower


def demo(sheet: Sheet) -> None:
    """pFedMoAP of the demo, one seed, untuned, on the CPU and on the device."""
    sheet.line("\nthe demo's pFedMoAP, one seed, 10 of 20 clients a round")
    sheet.head(
        "where",
        "s a round",
        "s in all",
        "accuracy",
        "worst client",
        "clients' largest difference, examples",
        "global prompt apart",
        "same bits",
        "GB",
    )
    device = sheet.device.type
    ways: Ways = {
        "cpu, one thread": {"run.device": "cpu"},
        f"{device}, together = 20": {"run.device": device},
        f"{device}, again": {"run.device": device},
        f"{device}, together = 1": {"run.device": device, "engine.together": 1},
        f"{device}, bf16": {"run.device": device, "model.precision": "bf16"},
        "cpu, 8 threads": {"run.device": "cpu", "run.threads": 8},
    }
    several(sheet, "demo", ways, rounds=2 if sheet.quick else 20)


def flower(sheet: Sheet) -> None:
    """Two processes of Flower's simulation that share the card, against one process."""
    missing = [name for name in ("flwr", "ray") if find_spec(name) is None]
    if missing:
        sheet.line(
            f"\nFlower's share of a GPU: not run, {' and '.join(missing)} cannot be imported here"
        )
        return
    sheet.line("\nthe same on Flower's simulation, two processes with half a GPU each")
    sheet.head(
        "where",
        "s a round",
        "s in all",
        "accuracy",
        "worst client",
        "largest difference",
        "apart",
        "bits",
        "GB",
    )
    device = sheet.device.type
    ways: Ways = {
        "one process, together = 1": {"run.device": device, "engine.together": 1},
        "Flower, gpus = 0.5": {
            "run.device": device,
            "engine.name": "flower-simulation",
            "engine.workers": 2,
            "engine.gpus": 0.5 if sheet.cuda else 0.0,
        },
    }
    several(sheet, "flower", ways, rounds=2 if sheet.quick else 5)


Ways = dict[str, dict[str, object]]  # each way's changes of the config


def several(sheet: Sheet, part: str, ways: Ways, rounds: int) -> None:
    """The same experiment in several ways, each against the first, and its bits against the way
    before.
    """
    plain = door.load("configs/demo/pfedmoap.toml", ["learning.rate=0.1", "method.gate_rate=0.15"])
    first: RunDir | None = None
    before = b""
    with tempfile.TemporaryDirectory() as temporary:
        for i, (way, changes) in enumerate(ways.items()):
            sheet.fresh()
            config = variant(plain, "demo", changes | {"run.rounds": rounds})
            began = time.perf_counter()
            folder = carried_out(config, Path(temporary) / str(i))
            whole = time.perf_counter() - began
            first = first or folder
            state = server(folder)
            bits = pack(state)
            accuracy = score(newest(folder))
            seconds = [row["seconds"] for row in folder.rows("rounds.jsonl")]
            here = changes["run.device"] == "cuda" and "engine.name" not in changes
            sheet.row(
                part,
                where=way,
                s_round=statistics.median(seconds[1:]),
                s=whole,
                accuracy=accuracy.mean,
                worst=accuracy.worst,
                examples=furthest(first, folder),
                apart=apart(state["global.context"], server(first)["global.context"]),
                bits=bits == before if before else None,
                gb=sheet.peak() if here else None,
            )
            before = bits


def carried_out(config: Config, path: Path) -> RunDir:
    folder = RunDir.create(path, config.toml(), {})
    with door.opened(config, path / "private") as (job, engine, _):
        run(job, engine, config.section("run"), folder)
    return folder


def server(folder: RunDir) -> Tensors:
    checkpoint = folder.look()
    assert checkpoint
    return checkpoint[1]


def newest(folder: RunDir) -> list[Row]:
    rounds = by_round(folder.rows("clients.jsonl"))
    return rounds[max(rounds)]


def furthest(one: RunDir, other: RunDir) -> int:
    """Test examples of a client that one has right and the other not, at the client where they
    differ most.
    """
    pairs = zip(newest(one), newest(other), strict=True)
    return max(abs(int(a["test_correct"]) - int(b["test_correct"])) for a, b in pairs)


# ---- all parts


PARTS: dict[str, Callable[[Sheet], None]] = {
    "machine": machine,
    "step": step,
    "demo": demo,
    "together": together,
    "flower": flower,
    "compile": compiled,
}


def part(name: str, sheet: Sheet, asked: argparse.Namespace, seconds: float) -> None:
    """A part in a process of its own, which ends, with all that it started, when its time is up."""
    quick = ["--quick"] if asked.quick else []
    command = [
        sys.executable,
        __file__,
        "--part",
        name,
        "--out",
        str(sheet.out),
        "--device",
        sheet.device.type,
        *quick,
    ]
    began = time.perf_counter()
    child = subprocess.Popen(command, start_new_session=True)
    try:
        status = child.wait(seconds)
        ended = f"ended with status {status}" if status else "done"
    except subprocess.TimeoutExpired:
        ended = "stopped, its time was up: the rows above stand"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    sheet.line(f"\n[{name}: {ended}, {time.perf_counter() - began:.0f} s]")


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("--out", type=Path, default=Path("runs/gpu"))
    reader.add_argument("--only", default=",".join(LIMITS), help="parts: " + ", ".join(LIMITS))
    reader.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    reader.add_argument("--quick", action="store_true", help="small shapes, to try the script")
    reader.add_argument("--seconds", type=float, default=WHOLE, help="of all parts")
    reader.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    asked = reader.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch finds no CUDA device here; expected a machine with one, or --device cpu --quick"
        )
    sheet = Sheet(asked.out, torch.device(asked.device), asked.quick)
    if asked.part:
        torch.set_num_threads(1)
        PARTS[asked.part](sheet)
        return
    if unknown := sorted(set(asked.only.split(",")) - LIMITS.keys()):
        sys.exit(f"no such part: {', '.join(unknown)}; known are {', '.join(LIMITS)}")
    print(program())
    until = time.perf_counter() + asked.seconds
    for name in LIMITS:
        if name in asked.only.split(",") and (left := until - time.perf_counter()) > 15:
            part(name, sheet, asked, min(LIMITS[name], left))


if __name__ == "__main__":
    main()
