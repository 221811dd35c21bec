"""A pFedMoAP step against what no step can beat, and against the step of published code.

    python benchmarks/limit.py               10 and 100 classes, in fp32 and bf16: two minutes
    python benchmarks/limit.py --published   and published code's step: three minutes more

CLIP ViT-B/16 by shape (random weights), a batch of 16 images, 16 context tokens, K = 3, one thread.
"products" are the matrix products of the same shapes, forward and backward to the inputs, and
nothing else. "published" is a transcription of what published code does, in fp32: all 77 tokens of
every class through transformers' own encoder, and the image encoder in every step. Times are
processor seconds, the fastest of several in which the ways take turns.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gpu import Product, products
from step import fitting, started
from text_encoder import as_clip, names, random_clip, transformers_texts
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fedexperts.config.machine import matrix_units
from fedexperts.learn import Examples, Learning, Local, fit
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.models.clip import PromptedClip
from fedexperts.provenance import program
from fedexperts.tensors import CPU, named, rng

BATCH, CONTEXT, EXPERTS, ROUNDS = 16, 16, 3, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Act = Callable[[], object]


def multiplied(needed: list[Product], dtype: torch.dtype) -> Act:
    """Products of these shapes, each as often as it is needed."""
    factors = []
    for count, rows, inner, columns, times in needed:
        left = torch.randn(count, rows, inner).to(dtype)
        factors.append((left, torch.randn(count, inner, columns).to(dtype), times))

    def act() -> None:
        for left, right, times in factors:
            for _ in range(times):
                torch.bmm(left, right)

    return act


def ours(model: PromptedClip, x_BD: Tensor, y: Tensor) -> Act:
    method = PFedMoAP(experts=EXPERTS)
    how = fitting(method, model, Learning(epochs=1, batch=BATCH))
    start, own = started(method, model), Examples(x_BD[:, None], y)
    return lambda: fit(how, [start], [own], [rng(0, "batches")])


def published(classes: int, y: Tensor) -> Act:
    model: Any = random_clip(vision={"patch_size": 16}).requires_grad_(False)
    texts, method = transformers_texts(model, names(classes)), PFedMoAP(experts=EXPERTS)
    context = (0.02 * torch.randn(CONTEXT, 512)).requires_grad_()
    gate = method.new_gate(EXPERTS + 1, rng(0, "gate"))
    moving = [context, *(value.requires_grad_() for value in gate.values())]
    experts = normalize(torch.randn(EXPERTS, classes, 512), dim=-1)
    local = Local(named("gate", gate), {"experts": experts})
    optimizer = torch.optim.SGD(moving, lr=0.002)
    pixels, scale = torch.rand(BATCH, 3, 224, 224), model.logit_scale.exp()

    def act() -> None:
        with torch.no_grad():
            seen = model.vision_model(pixel_values=pixels).pooler_output
            x_BD = normalize(model.visual_projection(seen), dim=-1)
        own_CD = texts(context)
        mixed_BC, _ = method.mix(local, own_CD, x_BD)
        optimizer.zero_grad()
        cross_entropy(scale * (mixed_BC + method.lam * x_BD @ own_CD.T), y).backward()
        optimizer.step()

    return act


def fastest(ways: Mapping[str, Act], rounds: int) -> dict[str, float]:
    """Processor seconds of each, after a round that does not count."""
    best = dict.fromkeys(ways, float("inf"))
    for round in range(rounds + 1):
        for way, act in ways.items():
            began = time.process_time()
            act()
            if round:
                best[way] = min(best[way], time.process_time() - began)
    return best


def measure(classes: int, with_published: bool) -> None:
    y = torch.arange(BATCH) % classes
    x_BD = normalize(torch.randn(BATCH, 512), dim=-1)
    clip = random_clip(vision={"num_hidden_layers": 1})
    ways: dict[str, Act] = {}
    for precision, dtype in DTYPES.items():
        start = 0.02 * torch.randn(CONTEXT, 512)
        model = PromptedClip(as_clip(clip, dtype), names(classes), start)
        ways[f"products {precision}"] = multiplied(products(model, 1), dtype)
        ways[f"ours {precision}"] = ours(model, x_BD, y)
        clip = random_clip(vision={"num_hidden_layers": 1})  # the last was rounded
    best = fastest(ways, ROUNDS)
    if with_published:
        best |= fastest({"published": published(classes, y)}, 1)
    for precision in DTYPES:
        limit, step = best[f"products {precision}"], best[f"ours {precision}"]
        line = f"| {classes} | {precision} | {limit:.3f} | {step:.3f} | {step / limit:.2f} |"
        if with_published:
            line += f" {best['published']:.2f} | {best['published'] / step:.0f} |"
        print(line, flush=True)


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    reader.add_argument("--published", action="store_true")
    asked = reader.parse_args()
    print(program())
    torch.set_num_threads(1)
    chosen = "bf16" if matrix_units(CPU) else "fp32"
    print(f'model.precision = "auto" is {chosen} on this processor')
    heads = ["classes", "precision", "products, s", "ours, s", "times"]
    if asked.published:
        heads += ["published, s", "times faster"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for classes in (10, 100):
        measure(classes, asked.published)


if __name__ == "__main__":
    main()
