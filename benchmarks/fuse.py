"""How fast are client models fused into experts, and with how much memory: GPT-2 medium, random
weights.

    python benchmarks/fuse.py               6 of its 24 layers: 6 GB of memory, about a minute
    python benchmarks/fuse.py --layers 24   all of it, 0.36 B parameters: 16 GB of memory

A round's two sums: 3 client models and the 4 experts before into 4 experts, then all seven back
into 3 client models, in chunks and, where there is a C++ compiler, compiled. Rates are bytes read
and written in a second, the better of two, and each is a share of what a plain copy reaches in the
same run. What is held is memory beside the items and the sums, in units of the largest tensor, the
embedding.
"""

import argparse
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from fedexperts.fusing import combine, compiled
from fedexperts.provenance import program
from fedexperts.tensors import Tensors, size

CLIENTS, EXPERTS, LAMBDA = 3, 4, 0.5
WIDTH, WORDS = 1024, 50257
FORK = multiprocessing.get_context("fork")


class Cost(NamedTuple):
    """Of an act."""

    seconds: float
    held: int  # bytes, the most at once


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """GPT-2 medium's tensors, by name."""
    block = {
        "ln_1": (WIDTH,),
        "attn.c_attn": (WIDTH, 3 * WIDTH),
        "attn.c_proj": (WIDTH, WIDTH),
        "ln_2": (WIDTH,),
        "mlp.c_fc": (WIDTH, 4 * WIDTH),
        "mlp.c_proj": (4 * WIDTH, WIDTH),
    }
    whole: dict[str, tuple[int, ...]] = {
        "wte.weight": (WORDS, WIDTH),
        "wpe.weight": (1024, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
    }
    for layer in range(layers):
        for name, shape in block.items():
            whole |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[-1:]}
    return whole


def drawn(layers: int, kind: torch.dtype, seed: int) -> Tensors:
    torch.manual_seed(seed)
    return {
        name: torch.empty(shape, dtype=kind).uniform_(-1, 1)
        for name, shape in shapes(layers).items()
    }


def into_experts() -> Tensor:
    """[experts, clients + experts]: a mean of the clients, moving from the expert before."""
    routed = torch.softmax(torch.randn(EXPERTS, CLIENTS), dim=1)
    return torch.cat([LAMBDA * routed, (1 - LAMBDA) * torch.eye(EXPERTS)], dim=1)


def into_clients() -> Tensor:
    """[clients, clients + experts]"""
    blend = torch.softmax(torch.randn(CLIENTS, EXPERTS), dim=1)
    return torch.cat([LAMBDA * torch.eye(CLIENTS), (1 - LAMBDA) * blend], dim=1)


def private_bytes() -> int:
    """Memory of this process that is no file's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def measured(act: Callable[[], object]) -> Cost:
    """The quicker of two, each in a process of its own, where all memory is new."""
    costs: SimpleQueue[Cost] = FORK.SimpleQueue()
    for _ in range(2):
        child = FORK.Process(target=watched, args=(costs, act))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)
    return min(costs.get(), costs.get())


def watched(costs: SimpleQueue[Cost], act: Callable[[], object]) -> None:
    held, over, before = [0], threading.Event(), private_bytes()

    def watch() -> None:
        while not over.wait(0.002):
            held.append(private_bytes() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    over.set()
    watching.join()
    costs.put(Cost(seconds, max(held)))


def copies(items: Sequence[Tensors]) -> list[Tensors]:
    return [{name: value.clone() for name, value in item.items()} for item in items]


def tell(what: str, rate: float, copied: float, held: float) -> None:
    print(f"{what:32}{rate / 1e9:8.2f}{rate / copied:16.2f}{held:12.2f}", flush=True)


def measure(layers: int, kind: torch.dtype) -> None:
    items = [drawn(layers, kind, seed) for seed in range(CLIENTS + EXPERTS)]
    model, largest = size(items[0]), WORDS * WIDTH * kind.itemsize
    copy = measured(lambda: copies(items[:EXPERTS]))
    copied = 2 * EXPERTS * model / copy.seconds
    tell("plain copy", copied, copied, (copy.held - EXPERTS * model) / largest)

    def fuse(how: str) -> None:
        for what, weights in (("to experts", into_experts()), ("and back", into_clients())):
            combine(weights, [{"wpe": item["wpe.weight"]} for item in items])  # compiles, if so
            cost = measured(partial(combine, weights, items))
            rate = (len(items) + len(weights)) * model / cost.seconds
            tell(f"{what}{how}", rate, copied, (cost.held - len(weights) * model) / largest)

    fuse("")
    if shutil.which("c++"):
        with compiled(True):
            fuse(", compiled")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--layers", type=int, default=6, help="of GPT-2 medium's 24")
    layers: int = asked.parse_args().layers
    print(program())
    torch.set_num_threads(1)
    count = sum(torch.Size(shape).numel() for shape in shapes(layers).values())
    print(
        f"{CLIENTS} clients, {EXPERTS} experts, {layers} of 24 layers, {count / 1e6:.0f} M"
        " parameters; one thread"
    )
    for kind in (torch.float32, torch.bfloat16):
        print(f"{kind!s:32}{'GB/s':>8}{'share of copy':>16}{'held':>12}")
        measure(layers, kind)


if __name__ == "__main__":
    main()
