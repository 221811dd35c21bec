"""A frozen CLIP under a learned prompt or a linear classifier, by their settings.

Importing this room does not import transformers; building a model does. It knows no checkpoint's
format.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..model import Model
from ..options import Outside, option
from ..tensors import rng
from .built import Backbone, Built, Sighted
from .clip import Clip, LinearProbe, PromptedClip, encode, words

SPREAD = 0.02  # standard deviation of a random context, about that of a CLIP's word embeddings


@dataclass(frozen=True)
class _OnClip(Outside, Sighted):
    """What both ask of the CLIP."""

    clip: str = option(
        "tinyclip",
        says='CLIP, RN50 or SigLIP: "tinyclip" (ours), a local folder, a hub name downloaded'
        " before, or RN50.pt",
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32", says="type of the frozen weights; what is trained and what comes out is fp32"
    )

    def at_hand(self) -> None:
        """ValueError, with what to type, if the CLIP is not on this machine."""
        self.reads()

    def reads(self) -> list[Path]:
        from .huggingface import find_clip  # as below

        return [find_clip(self.clip)]

    def sees(self) -> int:
        from .huggingface import find_clip, side  # as below

        return side(find_clip(self.clip))


@dataclass(frozen=True)
class PromptedClipSettings(_OnClip):
    """A frozen CLIP whose class names stand behind a learned context (CoOp, PromptFL, pFedMoAP)."""

    context: int = option(16, says="learned context vectors, in tokens", ge=1)
    init: Literal["random", "words"] = option(
        "random", says=f"the context starts as normal(0, {SPREAD}) or as `words`"
    )
    words: str = option(
        "a photo of a",
        says='text of exactly `context` tokens, with which the context starts if init is "words"',
    )

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the CLIP cannot be loaded, a prompt is too long, or `words` are not
        `context` tokens.
        """
        clip = _load(self.clip, self.precision)
        return _built(PromptedClip(clip, classes, self._start(clip, seed)), clip, self.clip)

    def _start(self, clip: Clip, seed: int) -> Tensor:
        if self.init == "random":
            return SPREAD * torch.randn(
                self.context, clip.positions.shape[1], generator=rng(seed, "context")
            )
        start_lW = words(clip, self.words)
        if len(start_lW) != self.context:
            raise ValueError(
                f"the words {self.words!r} are {len(start_lW)} tokens and context is"
                f" {self.context}: set context to {len(start_lW)}, or choose words of"
                f" {self.context} tokens"
            )
        return start_lW


@dataclass(frozen=True)
class LinearProbeSettings(_OnClip):
    """A linear classifier on a frozen CLIP's image features."""

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the CLIP cannot be loaded. It starts at zero, whatever the seed."""
        clip = _load(self.clip, self.precision)
        return _built(LinearProbe(classes, clip.width, clip.scale), clip, self.clip)


def _load(name: str, precision: str) -> Clip:
    from .huggingface import load_clip  # takes seconds to import: not before a model is built

    return load_clip(name, torch.bfloat16 if precision == "bf16" else torch.float32)


def _built(model: Model, clip: Clip, name: str) -> Built:
    from .huggingface import find_clip  # as above

    where = Path(name).name if Path(name).expanduser().is_dir() else name
    backbone = Backbone(where, find_clip(name))
    return Built(model, partial(encode, clip), clip.key, recipe=clip.recipe, backbone=backbone)
