"""A local training step with cached image features against the same step through the image encoder.

    python benchmarks/step.py

CLIP ViT-B/16 by shape (random weights), 10 classes, 16 context tokens, a batch of 16 images, prompt
and gate trained by pFedMoAP's own loss with K = 3 experts, one thread. Times are processor seconds,
the fastest of three.
"""

from functools import partial

import torch
from clocks import seconds
from text_encoder import as_clip, names, random_clip
from torch import Tensor
from torch.nn.functional import normalize

from fedexperts.learn import Examples, Fitting, Learning, Local, fit
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.model import PromptModel
from fedexperts.models.clip import PromptedClip
from fedexperts.provenance import program
from fedexperts.tensors import rng

CLASSES, CONTEXT, BATCH, EXPERTS, TIMES = 10, 16, 16, 3, 3


def started(method: PFedMoAP, model: PromptModel) -> Local:
    """A client in its second round, with experts near to the global prompt."""
    context = model.initial["context"]
    noise = torch.randn(method.experts, *context.shape, generator=rng(0, "experts"))
    sent = {"global.context": context, "experts": context + 0.02 * noise}
    return method.start(model, sent, None, rng(0, "start"))


def fitting(method: PFedMoAP, model: PromptModel, learning: Learning) -> Fitting:
    """The method's own loss and rates, where the model computes."""
    return Fitting(
        lambda local, x: method.predictor(model, local).step(x),
        learning,
        partial(method.penalty, model),
        method.rates(),
        device=model.device,
    )


def main() -> None:
    print(program())
    torch.set_num_threads(1)
    clip = as_clip(random_clip(vision={"patch_size": 16}))
    model = PromptedClip(clip, names(CLASSES), 0.02 * torch.randn(CONTEXT, 512))
    method = PFedMoAP(experts=EXPERTS)
    how = fitting(method, model, Learning(epochs=1, batch=BATCH))
    start = started(method, model)
    pixels, labels = torch.rand(BATCH, 3, 224, 224), torch.arange(BATCH) % CLASSES

    def encode() -> Tensor:
        with torch.no_grad():
            return normalize(clip.images(pixels), dim=-1)

    def step(features_BD: Tensor) -> None:
        fit(how, [start], [Examples(features_BD[:, None], labels)], [rng(0, "batches")])

    kept = encode()
    cached, through = seconds(lambda: step(kept), TIMES), seconds(lambda: step(encode()), TIMES)
    print(f"a step of {BATCH} images, {CLASSES} classes, ViT-B/16 by shape\n{'':28}seconds  times")
    print(f"{'features from the cache':28}{cached:7.2f}{1.0:7.1f}")
    print(f"{'through the image encoder':28}{through:7.2f}{through / cached:7.1f}")


if __name__ == "__main__":
    main()
