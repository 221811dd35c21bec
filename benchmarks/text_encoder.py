"""Time of a CLIP text encoder's forward and backward pass, with the gradient to the context, in
four ways.

    python benchmarks/text_encoder.py

Random weights of ViT-B/16's text encoder (width 512, 12 layers, 8 heads), 16 context tokens, class
names of 1 to 5 random tokens, fp32, one thread. "transformers" is its own encoder with fused
attention and 77 tokens a class, as published code runs it; "plain" is the same with our layers;
"cut" stops after the last [EOS]; "tree" is what `PromptedClip.texts` does. Times are processor
seconds, the fastest of several rounds in which the ways take turns, and printed as ratios within
this run. Differences are the largest, relative to the largest value that transformers gives.
"""

import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from fedexperts.models.clip import PromptedClip
from fedexperts.models.huggingface import parts

ROUNDS = 3
START, FULL_STOP, END = 49406, 269, 49407

Texts = Callable[[Tensor], Tensor]


def tokenize(text: str, add_special_tokens: bool) -> Any:
    """A class name is written as its token ids."""
    return SimpleNamespace(input_ids=[*map(int, text.rstrip(".").split()), FULL_STOP])


def names(count: int) -> tuple[str, ...]:
    draw = random.Random(count)
    return tuple(
        " ".join(str(draw.randrange(1000, 40000)) for _ in range(1 + i % 5)) for i in range(count)
    )


def transformers_texts(model: Any, classes: tuple[str, ...]) -> Texts:
    """What CLIPModel.get_text_features does, but for the context that stands in place of some
    embeddings.
    """
    text = model.text_model
    ids = [[START, *[0] * 16, *tokenize(name, False).input_ids, END] for name in classes]
    ends = torch.tensor([len(row) - 1 for row in ids])
    words = text.embeddings.token_embedding(
        torch.tensor([row + [END] * (77 - len(row)) for row in ids])
    )

    def texts(context: Tensor) -> Tensor:
        shared = context.expand(len(classes), -1, -1)
        hidden = text.embeddings(
            inputs_embeds=torch.cat([words[:, :1], shared, words[:, 17:]], dim=1)
        )
        hidden = text.encoder(
            inputs_embeds=hidden, attention_mask=None, is_causal=True
        ).last_hidden_state
        pooled = text.final_layer_norm(hidden)[torch.arange(len(classes)), ends]
        return normalize(model.text_projection(pooled), dim=-1)

    return texts


def run(texts: Texts, context: Tensor, weights: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds, outputs [C, D] and the gradient [l, W] of a random linear function of the
    outputs.
    """
    context = context.clone().requires_grad_()
    begun = time.process_time()
    out = texts(context)
    (gradient,) = torch.autograd.grad((out * weights).sum(), context)
    return time.process_time() - begun, out.detach(), gradient


def difference(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


def measure(count: int) -> None:
    torch.manual_seed(0)
    model: Any = CLIPModel(CLIPConfig(vision_config={"num_hidden_layers": 1}))
    tokenizer: Any = tokenize
    tokenizer.bos_token_id, tokenizer.eos_token_id = START, END
    clip = parts(
        model, tokenizer, SimpleNamespace(to_dict=dict), torch.float32, torch.device("cpu")
    )
    context, weights = 0.02 * torch.randn(16, 512), torch.randn(count, 512)
    prompted = PromptedClip(clip, names(count), context)
    ways: dict[str, Texts] = {
        "transformers, 77 tokens": transformers_texts(model, names(count)),
        "plain, 77 tokens": prompted.texts_plain,
        "cut after the last [EOS]": lambda context: prompted.texts_plain(context, prompted.longest),
        "tree": prompted.texts,
    }
    best = dict.fromkeys(ways, float("inf"))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(ROUNDS):
        for way, texts in ways.items():
            seconds, *found[way] = run(texts, context, weights)
            best[way] = min(best[way], seconds)
    reference, slowest = found["transformers, 77 tokens"], best["transformers, 77 tokens"]
    print(f"\n{count:3} classes{'':16}{'faster':>10}{'outputs':>10}{'gradients':>11}")
    for way, (out, gradient) in found.items():
        apart = f"{difference(out, reference[0]):10.0e}{difference(gradient, reference[1]):11.0e}"
        print(f"  {way:25}{slowest / best[way]:9.1f}x{apart}   {best[way]:.2f} s here")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for count in (10, 100):
        measure(count)
