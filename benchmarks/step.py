"""A local training step with cached image features against the same step through the image encoder.

    python benchmarks/step.py

CLIP ViT-B/16 by shape (random weights), 10 classes, 16 context tokens, a batch of 16 images, prompt
and gate trained by pFedMoAP's own loss with K = 3 experts, one thread. Times are medians of one
run.
"""

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from text_encoder import END, START, names, tokenize
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from fedexperts.learn import Examples, Fitting, Learning, fit
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.models.clip import PromptedClip
from fedexperts.models.huggingface import parts
from fedexperts.tensors import rng

CLASSES, CONTEXT, BATCH, EXPERTS, TIMES = 10, 16, 16, 3, 3


def seconds(act: Callable[[], Any]) -> float:
    act()
    found = []
    for _ in range(TIMES):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words: Any = tokenize
    words.bos_token_id, words.eos_token_id = START, END
    vision = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
    clip = parts(vision, words, SimpleNamespace(to_dict=dict), torch.float32, torch.device("cpu"))
    model = PromptedClip(clip, names(CLASSES), 0.02 * torch.randn(CONTEXT, 512))
    method = PFedMoAP(experts=EXPERTS)
    context = model.initial["context"]
    experts = context + 0.02 * torch.randn(EXPERTS, CONTEXT, 512)
    start = method.start(
        model, {"global.context": context, "experts": experts}, None, rng(0, "start")
    )
    pixels, labels = torch.rand(BATCH, 3, 224, 224), torch.arange(BATCH) % CLASSES

    def encode() -> Tensor:
        with torch.no_grad():
            return normalize(clip.images(pixels), dim=-1)

    def step(features_BD: Tensor) -> None:
        how = Fitting(
            lambda local, x: method.predictor(model, local).step(x),
            Learning(epochs=1, batch=BATCH),
            method.penalty,
            method.rates(),
        )
        fit(how, [start], [Examples(features_BD[:, None], labels)], [rng(0, "batches")])

    kept = encode()
    cached, through = seconds(lambda: step(kept)), seconds(lambda: step(encode()))
    print(f"a step of {BATCH} images, {CLASSES} classes, ViT-B/16 by shape\n{'':28}seconds  times")
    print(f"{'features from the cache':28}{cached:7.2f}{1.0:7.1f}")
    print(f"{'through the image encoder':28}{through:7.2f}{through / cached:7.1f}")


if __name__ == "__main__":
    main()
