"""Networks for images: a compact one of a few thousand weights, LEAF's for FEMNIST, and ResNet-18
for small images.

Plain torch; pixels are scaled by `encode`, in front of the network. This room does not know how
they are trained.

Shapes: B batch, S channels, H x W pixels, C classes, w width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, unfold

from ..options import option
from .built import Built
from .network import Network, seeded

Norm = Callable[[int], nn.Module]  # channels -> the layer behind a convolution

FEMNIST_SIDE = 28  # pixels
GROUPS = 2  # of a group norm, as in arXiv:1910.00189


def grey(side: int, images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to [B, 1, side, side] in -0.5 .. 0.5, each pixel the mean of what it
    covers.
    """
    return adaptive_avg_pool2d(images.float().mean(1, keepdim=True), side) / 255 - 0.5


def coloured(side: int, images: Tensor) -> Tensor:
    """The same in three channels."""
    return adaptive_avg_pool2d(images.float(), side) / 255 - 0.5


def normalised(x: Tensor) -> Tensor:
    """Each image [S, H, W] with mean 0, deviation 1 and a skew that is not negative."""
    centred = x - x.mean((1, 2, 3), keepdim=True)
    unit = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-3)
    skew = unit.pow(3).mean((1, 2, 3), keepdim=True)
    return torch.where(skew < 0, -unit, unit)


def _small_recipe(side: int, colour: bool = False, normalise: bool = False) -> str:
    """Lines that do as the three above."""
    pixels = "pixels.float()" if colour else "pixels.float().mean(1, keepdim=True)"
    small = f"torch.nn.functional.adaptive_avg_pool2d({pixels}, {side}) / 255 - 0.5"
    if not normalise:
        return f"def inputs(pixels):\n    return {small}"
    return f"def inputs(pixels):\n    x = {small}\n{_NORMALISED}"


_NORMALISED = """    centred = x - x.mean((1, 2, 3), keepdim=True)
    unit = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-3)
    skew = unit.pow(3).mean((1, 2, 3), keepdim=True)
    return torch.where(skew < 0, -unit, unit)"""


def colour(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to the same in -2 .. 2: about unit variance for photographs."""
    return images.float() / 63.75 - 2


_COLOUR = "def inputs(pixels):\n    return pixels.float() / 63.75 - 2"


class Conv(nn.Conv2d):
    """The same convolution as a matrix product over unfolded patches.

    vmap over weights makes a grouped convolution of conv2d, for which a CPU has no fast kernel, and
    a batched product of this. A step of ten compact networks of width 2 to 6, batches of 16 to 64,
    one thread: stacked this way it takes 0.3 to 0.7 of the time of a loop over conv2d.
    """

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (s, _), p = self.kernel_size, self.stride, int(self.padding[0])
        patches = unfold(x, k, padding=p, stride=s)  # [B, in * k * k, positions]
        assert self.bias is not None
        flat = self.weight.flatten(1) @ patches + self.bias[:, None]
        out: Tensor = flat.unflatten(-1, ((x.shape[-2] + 2 * p - k) // s + 1, -1))
        return out


def compact_cnn(width: int, side: int, classes: int, channels: int = 1) -> nn.Module:
    """[B, S, side, side] -> [B, C]: two convolutions of stride 2, and a linear layer."""
    left = -(-side // 4)
    return nn.Sequential(
        Conv(channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        Conv(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * left**2, classes),
    )


def leaf_cnn(classes: int) -> nn.Module:
    """[B, 1, 28, 28] -> [B, C]: the network of LEAF (arXiv:1812.01097) for FEMNIST, 6.6 M weights
    for 62 classes.
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (FEMNIST_SIDE // 4) ** 2, 2048),
        nn.ReLU(),
        nn.Linear(2048, classes),
    )


def resnet18(classes: int, norm: Norm) -> nn.Module:
    """[B, 3, H, W] -> [B, C]: He et al. (arXiv:1512.03385), 11.2 M weights for ten classes.

    The stem is the one for CIFAR's 32 x 32 pixels: 3 x 3, stride 1, and no pooling behind it.
    """
    widths = (64, 64, 128, 256, 512)
    stages = [
        nn.Sequential(
            _block(below, width, 1 if below == width else 2, norm), _block(width, width, 1, norm)
        )
        for below, width in pairwise(widths)
    ]
    stem = nn.Sequential(_conv(3, widths[0], 3, 1), norm(widths[0]), nn.ReLU())
    return nn.Sequential(
        stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)
    )


class Block(nn.Module):
    """A residual block: a long way and a short cut."""

    parts = ("long", "short")

    def __init__(self, long: nn.Module, short: nn.Module) -> None:
        super().__init__()
        self.long, self.short = long, short

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.long(x) + self.short(x))


def _block(below: int, width: int, stride: int, norm: Norm) -> Block:
    """Two 3 x 3 convolutions; where they change the shape, the short cut is a 1 x 1 convolution."""
    first = (_conv(below, width, 3, stride), norm(width), nn.ReLU())
    long = nn.Sequential(*first, _conv(width, width, 3, 1), norm(width))
    same = below == width
    return Block(
        long, nn.Identity() if same else nn.Sequential(_conv(below, width, 1, stride), norm(width))
    )


def _conv(below: int, width: int, side: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(below, width, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": partial(nn.GroupNorm, GROUPS)}


@dataclass(frozen=True)
class CompactCnnSettings:
    """A convolutional network of few weights: with ten classes 0.75 K at width 2, 2.7 K at 6, 10 K
    at 16.
    """

    width: int = option(
        2, says="channels of the first convolution; the second has twice as many", ge=1
    )
    side: int = option(16, says="pixels of a side, to which images are made small", ge=1)
    colour: bool = option(False, says="images keep their colours, or are made grey")
    normalise: Literal["none", "image"] = option(
        "none",
        says='"image": each image gets mean 0, deviation 1 and a skew that is not negative, as a'
        " mixture whose experts read in frames must be compared with",
    )

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        channels = 3 if self.colour else 1
        module = seeded(lambda: compact_cnn(self.width, self.side, len(classes), channels), seed)
        recipe = _small_recipe(self.side, self.colour, self.normalise == "image")
        return Built(Network(module, classes), self._encode, "", recipe=recipe, reads="images")

    def _encode(self, images: Tensor) -> Tensor:
        small = coloured(self.side, images) if self.colour else grey(self.side, images)
        return normalised(small) if self.normalise == "image" else small


@dataclass(frozen=True)
class LeafCnnSettings:
    """The two-layer network of LEAF for FEMNIST's 28 x 28 grey pixels, to which other images are
    scaled.
    """

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        network = Network(seeded(lambda: leaf_cnn(len(classes)), seed), classes)
        recipe = _small_recipe(FEMNIST_SIDE)
        return Built(network, partial(grey, FEMNIST_SIDE), "", recipe=recipe, reads="images")


@dataclass(frozen=True)
class ResNet18Settings:
    """ResNet-18 for CIFAR's 32 x 32 pixels."""

    norm: Literal["batch", "group"] = option(
        "batch",
        says='"group" has no running statistics, which clients with different data disagree about',
    )

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        module = seeded(lambda: resnet18(len(classes), NORMS[self.norm]), seed)
        return Built(Network(module, classes), colour, "", recipe=_COLOUR, reads="images")
