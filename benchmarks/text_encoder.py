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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from fedexperts.models.clip import Clip, PromptedClip
from fedexperts.models.huggingface import parts
from fedexperts.provenance import program
from fedexperts.tensors import CPU

ROUNDS = 3
START, FULL_STOP, END = 49406, 269, 49407

Texts = Callable[[Tensor], Tensor]


class Ids:
    """A tokenizer for class names that are written as their token ids."""

    bos_token_id, eos_token_id = START, END

    def __call__(
        self, text: str, add_special_tokens: bool, verbose: bool = True
    ) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[*map(int, text.rstrip(".").split()), FULL_STOP])


def names(count: int) -> tuple[str, ...]:
    draw = random.Random(count)
    return tuple(
        " ".join(str(draw.randrange(1000, 40000)) for _ in range(1 + i % 5)) for i in range(count)
    )


def random_clip(vision: dict[str, int], text: dict[str, int] | None = None) -> CLIPModel:
    """ViT-B/16's text encoder and, but for what is said otherwise, ViT-B/32's image encoder."""
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text))


def as_clip(
    model: CLIPModel, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Clip:
    """The parts of a CLIP that is never shown an image file."""
    return parts(model, Ids(), SimpleNamespace(to_dict=dict), dtype, device)


def transformers_texts(model: CLIPModel, classes: tuple[str, ...]) -> Texts:
    """What CLIPModel.get_text_features does, but for the context that stands in place of some
    embeddings.
    """
    text = model.text_model
    tokenize = Ids()
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


class Pass(NamedTuple):
    """Forward and backward, with the gradient of a random linear function of the outputs."""

    seconds: float
    outputs: Tensor  # [C, D]
    gradient: Tensor  # [l, W]


def run(texts: Texts, context: Tensor, weights: Tensor) -> Pass:
    context = context.clone().requires_grad_()
    begun = time.process_time()
    outputs = texts(context)
    (gradient,) = torch.autograd.grad((outputs * weights).sum(), context)
    return Pass(time.process_time() - begun, outputs.detach(), gradient)


def difference(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


def measure(count: int) -> None:
    model = random_clip(vision={"num_hidden_layers": 1})
    context, weights = 0.02 * torch.randn(16, 512), torch.randn(count, 512)
    prompted = PromptedClip(as_clip(model), names(count), context)
    ways: dict[str, Texts] = {
        "transformers, 77 tokens": transformers_texts(model, names(count)),
        "plain, 77 tokens": prompted.texts_plain,
        "cut after the last [EOS]": lambda context: prompted.texts_plain(context, prompted.longest),
        "tree": prompted.texts,
    }
    passes: dict[str, list[Pass]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, texts in ways.items():
            passes[way].append(run(texts, context, weights))
    fastest = {way: min(each, key=lambda one: one.seconds) for way, each in passes.items()}
    reference = fastest["transformers, 77 tokens"]
    print(f"\n{count:3} classes{'':16}{'faster':>10}{'outputs':>10}{'gradients':>11}")
    for way, one in fastest.items():
        outputs = difference(one.outputs, reference.outputs)
        gradients = difference(one.gradient, reference.gradient)
        print(
            f"  {way:25}{reference.seconds / one.seconds:9.1f}x{outputs:10.0e}{gradients:11.0e}"
            f"   {one.seconds:.2f} s here"
        )


def main() -> None:
    print(program())
    torch.set_num_threads(1)
    for count in (10, 100):
        measure(count)


if __name__ == "__main__":
    main()
