"""A backbone of one's own, whole: a small dual encoder under a learned prompt, trained by PromptFL
and by pFedMoAP.

An image and a text for each class become features; the logits are their similarities. Both encoders
are random and frozen here: put yours in their place. Run it: python examples/own_backbone.py. From
a config: PYTHONPATH=examples and model.name = "own_backbone:Dual".
"""

import math
import sys
import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

import fedexperts as fx


class Prompted(fx.PromptModel):
    """What every method of prompts needs: initial, classes, scale, texts and logits."""

    scale = 10.0

    def __init__(
        self, context: Tensor, attention_Cl: Tensor, reader_WD: Tensor, classes: tuple[str, ...]
    ) -> None:
        self.initial = {"context": context}  # [l, W]: all that is trained
        self.classes = classes
        self.device = fx.device()  # where the config lets models compute
        self.attention_Cl = attention_Cl.to(self.device)  # how a class's name reads the context
        self.reader_WD = reader_WD.to(self.device)

    def texts(self, context: Tensor) -> Tensor:
        """[..., l, W] to [..., C, D]: the contexts of several clients may come at once."""
        words = torch.tanh(self.attention_Cl @ context.to(self.device))
        return normalize(words @ self.reader_WD, dim=-1).to(context.device)

    def logits(self, tensors: fx.Tensors, x: Tensor) -> Tensor:
        return self.scale * x @ self.texts(tensors["context"]).mT.to(x.device)


@dataclass(frozen=True)
class Dual:
    length: int = 16  # of the context, l
    width: int = 64  # of a word, W
    features: int = 128  # of an image and a text, D

    def build(self, classes: tuple[str, ...], seed: int) -> fx.Built:
        def drawn(what: str, *shape: int) -> Tensor:  # what is frozen is the same for every seed
            return torch.randn(shape, generator=fx.rng(0, what)) / math.sqrt(shape[-1])

        lens_PD = drawn("lens", 256, self.features)

        def encode(images: Tensor) -> Tensor:
            """uint8 [B, 3, 32, 32] to [B, D]."""
            pixels = images[:, 0, ::2, ::2].flatten(1) / 255
            edges = ((pixels - pixels.mean(1, keepdim=True)) @ lens_PD).abs()
            return normalize(edges - edges.mean(1, keepdim=True), dim=-1)

        attention = 4 * drawn("words", len(classes), self.length)
        reader = drawn("reader", self.width, self.features)
        context = 0.1 * torch.randn(self.length, self.width, generator=fx.rng(seed, "context"))
        return fx.Built(Prompted(context, attention, reader, classes), encode, key="")


if __name__ == "__main__":
    for method, more in (("promptfl", []), ("pfedmoap", ["method.width=128"])):
        settings = ["model.name=__main__:Dual", "learning.rate=1.0", "run.rounds=5", *more]
        config = fx.load(f"configs/demo/{method}.toml", [*settings, *sys.argv[1:]])
        score = fx.run(config, tempfile.mkdtemp() + "/run").score
        print(f"{method}: {score.mean:.1f} % on average, {score.worst:.1f} % at the worst client")
