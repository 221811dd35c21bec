"""Frames: how an expert reads. A scale and a shift bring a group's pixels to the mean and the
deviation of the widest group, and their skew to a positive sign: bright on dark. So all experts
read alike, and share what they know.

This room knows moments and models; it does not know who belongs to which group.

Shapes: B inputs, S channels of an image, P numbers of a sketch, K groups or experts.
"""

from textwrap import indent

import torch
from torch import Tensor

from ..model import Model, Portable
from ..tensors import Tensors, named, under
from .sketch import KINDS, SHIFTS, Moments, numbers

FRAME = ("frame.scale", "frame.shift")
TOLERANCE = 0.15  # of log deviations, and of means in deviations: below it groups read alike
LEAST = 1e-6  # a variance below it is none


class Framed(Model):
    """A model behind a frame, which is among its tensors, and which training does not move."""

    def __init__(self, inner: Model) -> None:
        self.inner = inner
        self.initial = inner.initial | unframed(1, image=False)[0]
        self.classes, self.device, self.together = inner.classes, inner.device, inner.together
        self.buffers = inner.buffers | set(FRAME)

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self.inner.logits(without(tensors), read(tensors, x))

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        return self.inner.step(without(tensors), read(tensors, x))

    def portable(self, tensors: Tensors) -> Portable:
        inner = self.inner.portable(without(tensors))
        carried = inner.tensors | {name: tensors[name] for name in FRAME}
        formula = f"`x` times frame.scale plus frame.shift is read by what follows. {inner.formula}"
        code = _FRAMED.format(inner=indent(inner.code, "    "))
        return Portable(carried, inner.numbers, formula, code)


_FRAMED = """def make_inner(t):
{inner}
    return logits


inner = make_inner({{key: value for key, value in t.items() if not key.startswith("frame.")}})


def logits(x):
    return inner(t["frame.scale"] * x + t["frame.shift"])"""


class SketchGate(Model):
    """A linear discriminant of an input's few numbers; its tensors come from sketches."""

    def __init__(self, expert: Model, groups: int) -> None:
        self.expert = expert
        self.initial = {}
        self.classes = tuple(f"expert-{k}" for k in range(groups))
        self.device, self.together = expert.device, expert.together

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        told_BP = numbers(self.expert, under(tensors, "start"), x)
        unit_BP = (told_BP - tensors["middle"]) / tensors["sd"]
        return unit_BP @ tensors["weight"] + tensors["bias"]

    def portable(self, tensors: Tensors) -> Portable:
        if start := under(tensors, "start"):
            inner = self.expert.portable(start)
            carried = tensors | named("start", inner.tensors)
            code = _OF_OTHERS.format(inner=indent(inner.code, "    "))
            return Portable(carried, inner.numbers, "", code + _LINEAR)
        return Portable(dict(tensors), {"shifts": [list(pair) for pair in SHIFTS]}, "", _OF_IMAGES)


_LINEAR = """


def logits(x):
    return ((numbers(x) - t["middle"]) / t["sd"]) @ t["weight"] + t["bias"]"""

_OF_OTHERS = """def make_start(t):
{inner}
    return logits


start = make_start({{key[6:]: value for key, value in t.items() if key.startswith("start.")}})


def numbers(x):
    return start(x).log_softmax(-1)"""

_OF_IMAGES = (
    """def numbers(x):
    mean = x.mean((2, 3), keepdim=True)
    sd = (x - mean).square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    unit = (x - mean) / sd
    rows = [mean[..., 0, 0], sd[..., 0, 0], unit.pow(3).mean((2, 3))]
    height, width = x.shape[2:]
    for down, right in n["shifts"]:
        here = unit[..., : height - down, max(0, -right) : width - max(0, right)]
        there = unit[..., down:, max(0, right) : width - max(0, -right)]
        rows.append((here * there).mean((2, 3)))
    return torch.cat(rows, dim=1)"""
    + _LINEAR
)


def without(tensors: Tensors) -> Tensors:
    """An expert's tensors but for its frame: what its client sends."""
    return {name: value for name, value in tensors.items() if name not in FRAME}


def read(tensors: Tensors, x: Tensor) -> Tensor:
    """Inputs behind a frame; tokens have none."""
    if not x.is_floating_point():
        return x
    return tensors["frame.scale"] * x + tensors["frame.shift"]


def unframed(count: int, image: bool, channels: int = 1) -> list[Tensors]:
    """Frames that change nothing."""
    shape = (channels, 1, 1) if image else ()
    return [
        {"frame.scale": torch.ones(shape), "frame.shift": torch.zeros(shape)} for _ in range(count)
    ]


def frames(groups: Moments) -> list[Tensors]:
    """Each group's frame, from the moments of its images."""
    S = groups.mean.shape[1] // KINDS
    like = _alike(groups)
    mean_KS, sd_KS, sign_KS = _pixels(groups.together(like))
    widest = int(sd_KS.sum(1).argmax())
    scale_KS = sign_KS * sd_KS[widest] / sd_KS
    shift_KS = sign_KS[widest] * mean_KS[widest] - scale_KS * mean_KS
    empty_K = groups.count == 0  # it reads its inputs as they are
    scale_KS[empty_K], shift_KS[empty_K] = 1, 0
    frames = []
    for scale_S, shift_S in zip(scale_KS.float(), shift_KS.float(), strict=True):
        frames.append(
            {"frame.scale": scale_S.reshape(S, 1, 1), "frame.shift": shift_S.reshape(S, 1, 1)}
        )
    return frames


def _pixels(groups: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """[K, S] each: mean and deviation of a group's pixels, and the sign of their skew."""
    S = groups.mean.shape[1] // KINDS
    square_KP = groups.moment.diagonal(dim1=1, dim2=2)
    mean_KS = groups.mean[:, :S]
    variance_KS = square_KP[:, S : 2 * S] + square_KP[:, :S] - mean_KS.square()
    skew_KS = groups.mean[:, 2 * S : 3 * S]
    sign_KS = torch.where(skew_KS < 0, -1.0, 1.0).double()
    return mean_KS, variance_KS.clamp_min(LEAST).sqrt(), sign_KS


def _alike(groups: Moments) -> Tensor:
    """[K, K]: which groups share a frame: those that a chain of like ones joins."""
    mean_KS, sd_KS, sign_KS = _pixels(groups)
    wider_KKS = torch.maximum(sd_KS[:, None], sd_KS)
    like_KKS = sign_KS[:, None] == sign_KS
    like_KKS &= (sd_KS[:, None].log() - sd_KS.log()).abs() < TOLERANCE
    like_KKS &= (mean_KS[:, None] - mean_KS).abs() < TOLERANCE * wider_KKS
    there_K = groups.count > 0
    like_KK = (like_KKS.all(2) & there_K & there_K[:, None]).double()
    for _ in range(len(like_KK)):
        like_KK = (like_KK @ like_KK > 0).double()
    return like_KK
