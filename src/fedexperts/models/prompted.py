"""A frozen CLIP or dual model under a learned prompt or a linear classifier, by their settings.

Importing this room does not import transformers; building a model does. It knows no checkpoint's
format.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..model import Model
from ..options import Outside, option
from ..tensors import rng
from .adapted import AdaptedClip
from .built import Backbone, Built, Sighted, matrix_units
from .clip import Clip, LinearProbe, PromptedClip, encode, words
from .dual import Dual, PromptedDual
from .dual import encode as classify
from .sight import encode_below, encode_patches, patches_in, sight_of

SPREAD = 0.02  # standard deviation of a random context, about that of a CLIP's word embeddings
WORDS = "a photo of a"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Precision = Literal["fp32", "bf16"]
PRECISION = "type of the frozen weights; what is trained and what comes out is fp32"
WIDE = 256  # width of a text encoder from which bf16 pays
Init = Literal["random", "words"]


@dataclass(frozen=True)
class _OnClip(Outside, Sighted):
    """What both ask of the CLIP."""

    clip: str = option(
        "tinyclip",
        says='CLIP, RN50 or SigLIP: "tinyclip" (ours), a local folder, a hub name downloaded'
        " before, or RN50.pt",
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        says=f'{PRECISION}; "auto": bf16 where the processor has matrix units for it and the CLIP'
        f" is {WIDE} wide or more",
    )

    def at_hand(self) -> None:
        """ValueError, with what to type, if the CLIP is not on this machine."""
        self.reads()

    def rounded(self, units: bool) -> str:
        if self.precision != "auto":
            return self.precision
        from .huggingface import find_clip, width  # as below

        if units and width(find_clip(self.clip)) >= WIDE:
            return "bf16"
        return "fp32"

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
    init: Init = option("random", says=f"the context starts as normal(0, {SPREAD}) or as `words`")
    words: str = option(
        WORDS,
        says='text of exactly `context` tokens, with which the context starts if init is "words"',
    )
    patches: bool = option(
        False, says="the features of an image's patches are read, too, as fedotp needs"
    )

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the CLIP cannot be loaded, a prompt is too long, or `words` are not
        `context` tokens.
        """
        clip = _load(self.clip, self.rounded(matrix_units()))
        start = _start(self, words(clip, self.words), seed)
        built = _built(PromptedClip(clip, classes, start, self.patches), clip, self.clip)
        if self.patches:
            patches_in(clip)
            key = f"{clip.key} patches"
            return replace(built, encode=partial(encode_patches, clip), key=key, recipe="")
        return replace(built, plain=lambda: PromptedClip(clip, classes, words(clip, WORDS)))


@dataclass(frozen=True)
class AdaptedClipSettings(_OnClip):
    """A frozen CLIP with adapters beside the upper layers of both encoders (pFedMMA)."""

    layers: int = option(2, says="last layers of each encoder that have an adapter", ge=1)
    width: int = option(32, says="r, numbers that an adapter maps a token to", ge=1)
    words: str = option(WORDS, says="text before the class names")

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the CLIP cannot be loaded, has no such layers, or a prompt is too long."""
        clip = _load(self.clip, self.rounded(matrix_units()))
        sight = sight_of(clip)
        model = AdaptedClip(clip, sight, classes, self.words, self.layers, self.width, seed)
        built = _built(model, clip, self.clip)
        key = f"{clip.key} below {self.layers}"
        encoded = partial(encode_below, clip, sight, self.layers)
        return replace(built, encode=encoded, key=key, recipe="")


@dataclass(frozen=True)
class PromptedDualSettings(Outside, Sighted):
    """A frozen image classifier beside a frozen sentence encoder, under a learned context."""

    classifier: str = option(
        "efficientnet-lite0",
        says='image classifier: "efficientnet-lite0" (of the extra photos), a local folder, or a'
        " hub name downloaded before",
    )
    encoder: str = option(
        "all-minilm-l6-v2",
        says='sentence encoder: "all-minilm-l6-v2" (of the extra photos), a local folder, or a hub'
        " name downloaded before",
    )
    precision: Precision = option("fp32", says=PRECISION)
    context: int = option(4, says="learned context vectors, in tokens", ge=1)
    init: Init = option("words", says=f"the context starts as normal(0, {SPREAD}) or as `words`")
    words: str = option(
        WORDS,
        says="text before the names when the two are joined; of exactly `context` tokens if init is"
        ' "words"',
    )

    def at_hand(self) -> None:
        _check_dual(self.classifier, self.encoder)

    def reads(self) -> list[Path]:
        return _halves(self.classifier, self.encoder)

    def sees(self) -> int:
        return _seen(self.classifier)

    def rounded(self, units: bool) -> str:
        return self.precision

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if a half cannot be loaded, a prompt is too long, or `words` are not `context`
        tokens.
        """
        dual = _load_dual(self.classifier, self.encoder, self.words, self.precision)
        plain = dual.sentences.words(self.words)
        model = PromptedDual(dual, classes, _start(self, plain, seed))
        built = _built_dual(model, dual, self.classifier)
        return replace(built, plain=lambda: PromptedDual(dual, classes, plain))


@dataclass(frozen=True)
class LinearProbeSettings(_OnClip):
    """A linear classifier on the image features of a frozen CLIP or dual model."""

    classifier: str = option(
        "",
        says="in place of a CLIP, the image classifier of a dual model (see prompted-dual); empty:"
        " the CLIP",
    )
    encoder: str = option("all-minilm-l6-v2", says="its sentence encoder, which says the scale")

    def at_hand(self) -> None:
        if self.classifier:
            _check_dual(self.classifier, self.encoder)
        else:
            super().at_hand()

    def reads(self) -> list[Path]:
        return _halves(self.classifier, self.encoder) if self.classifier else super().reads()

    def rounded(self, units: bool) -> str:
        """Of a classifier, whose features a dual model has in fp32 by default, as that."""
        if self.classifier and self.precision == "auto":
            return "fp32"
        return super().rounded(units)

    def sees(self) -> int:
        return _seen(self.classifier) if self.classifier else super().sees()

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the frozen model cannot be loaded. It starts at zero, whatever the seed."""
        if not self.classifier:
            clip = _load(self.clip, self.rounded(matrix_units()))
            return _built(LinearProbe(classes, clip.width, clip.scale), clip, self.clip)
        dual = _load_dual(self.classifier, self.encoder, WORDS, self.rounded(matrix_units()))
        width = dual.classifier.rows.shape[1]
        probe = LinearProbe(classes, width, dual.bridge.scale)
        return _built_dual(probe, dual, self.classifier)


def _start(
    asked: PromptedClipSettings | PromptedDualSettings, words_nW: Tensor, seed: int
) -> Tensor:
    """The context that settings ask for: random ones, or their words."""
    length, width = words_nW.shape
    if asked.init == "random":
        return SPREAD * torch.randn(asked.context, width, generator=rng(seed, "context"))
    if length != asked.context:
        raise ValueError(
            f"the words {asked.words!r} are {length} tokens and context is {asked.context}: set"
            f" context to {length}, or choose words of {asked.context} tokens"
        )
    return words_nW


def _load(name: str, precision: str) -> Clip:
    from .huggingface import load_clip  # takes seconds to import: not before a model is built

    return load_clip(name, TYPES[precision])


def _load_dual(classifier: str, encoder: str, words: str, precision: str) -> Dual:
    from .halves import load_dual  # as above

    return load_dual(classifier, encoder, words, TYPES[precision])


def _check_dual(classifier: str, encoder: str) -> None:
    from .halves import check_here  # as above

    check_here(classifier, encoder)


def _halves(classifier: str, encoder: str) -> list[Path]:
    from .halves import folders  # as above

    return folders(classifier, encoder)


def _seen(classifier: str) -> int:
    from .halves import side  # as above

    return side(classifier)


def _built(model: Model, clip: Clip, name: str) -> Built:
    from .huggingface import find_clip  # as above

    backbone, encoded = Backbone.of(name, find_clip(name)), partial(encode, clip)
    return Built(model, encoded, clip.key, recipe=clip.recipe, backbone=backbone, reads="images")


def _built_dual(model: Model, dual: Dual, name: str) -> Built:
    from .halves import LITE0, find_classifier  # as above

    classifier = dual.classifier
    backbone = None
    if name != LITE0:  # whose package its recipe imports
        backbone = Backbone.of(name, find_classifier(name))
    return Built(
        model,
        partial(classify, classifier),
        classifier.key,
        recipe=classifier.recipe,
        backbone=backbone,
        reads="images",
    )
