"""More of an image than one feature: features of its patches, and what the upper layers read.

The image side is one of Hugging Face's, taken as it is: this room imports none of it, and does not
know who trains what. What comes out is kept on disk like features.

Shapes: B images, P patches, S = 1 + P tokens, W width of the image side, D feature width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .clip import IMAGES, Clip, Layer, Sight, one_product, run_frozen


def patches_of(vision: Any, projection: nn.Module, pixels: Tensor) -> Tensor:
    """[B, 1 + P, D]: the feature of each image and, projected alike, those of its patches."""
    hidden = vision(pixel_values=pixels).last_hidden_state
    features: Tensor = projection(vision.post_layernorm(hidden))
    return features


def taken_apart(vision: Any, projection: nn.Module) -> Sight:
    """The same image side, layer by layer."""

    def tokens(pixels: Tensor) -> Tensor:
        embedded: Tensor = vision.pre_layrnorm(vision.embeddings(pixels))
        return embedded

    def project(hidden: Tensor) -> Tensor:
        features: Tensor = projection(vision.post_layernorm(hidden))
        return features

    return Sight(tokens, tuple(map(_layer, vision.encoder.layers)), project)


def _layer(layer: Any) -> Layer:
    attention = layer.self_attn
    return Layer(
        norm1=layer.layer_norm1,
        seen=one_product(attention.q_proj, attention.k_proj, attention.v_proj),
        out=attention.out_proj,
        norm2=layer.layer_norm2,
        mlp=layer.mlp,
        heads=attention.num_heads,
    )


def encode_patches(clip: Clip, images: Tensor) -> Tensor:
    """Normalised features [B, 1 + P, D] in fp32 of images uint8 [B, 3, H, W] and their patches.

    ValueError, with what to use, for a CLIP whose patches lie elsewhere than texts.
    """
    return normalize(_shown(clip, patches_in(clip), images), dim=-1)


def encode_below(clip: Clip, sight: Sight, adapted: int, images: Tensor) -> Tensor:
    """[B, S, W] in fp32: what the last `adapted` layers read of images uint8 [B, 3, H, W]."""

    def below(pixels: Tensor) -> Tensor:
        return run_frozen(sight.layers[: len(sight.layers) - adapted], sight.tokens(pixels))

    return _shown(clip, below, images)


def patches_in(clip: Clip) -> Callable[[Tensor], Tensor]:
    """ValueError, with what to use, if a CLIP's patches do not lie where its texts do."""
    if clip.patches is None:
        raise ValueError(
            "the patches of this SigLIP do not lie where its texts do; use a CLIP, say model.clip ="
            ' "openai/clip-vit-base-patch16"'
        )
    return clip.patches


def sight_of(clip: Clip) -> Sight:
    """ValueError, with what to use, if a CLIP's image side cannot be taken apart."""
    if clip.sight is None:
        raise ValueError(
            "the image side of this CLIP has no layers of a transformer to put adapters beside; use"
            ' one that has, say model.clip = "openai/clip-vit-base-patch16"'
        )
    return clip.sight()


@torch.no_grad()
def _shown(clip: Clip, look: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    made = [look(clip.preprocess(batch)).float() for batch in images.split(IMAGES)]
    return torch.cat(made).to(images.device)
