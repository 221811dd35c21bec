"""A CLIP with a ModifiedResNet (RN50 and its kin) from OpenAI's checkpoints or open_clip's, in the
parts of clip.py.

    RN50.pt                                               OpenAI's, a TorchScript archive
    open_clip_config.json, open_clip_model.safetensors    open_clip's, as on the hub

Both name their tensors alike. Checkpoints with a ViT are Hugging Face's to read (huggingface.py);
tokenizer and image processor are made there, too. A TorchScript archive is a program: when it is
loaded it runs no Python, but torch's own operators, which write files, too. So OpenAI's own
archives are loaded, known by their bytes, and no others.

Shapes: W word width, D feature width, L positions.
"""

import hashlib
import html
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..tensors import Tensors, under
from .clip import Clip, Layer, quick_mlp
from .modified_resnet import SHRUNK, ModifiedResNet

SETTINGS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HEAD = 64  # channels of a head, in all of OpenAI's
# OpenAI's, for pixels in 0..1
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PUBLISHED = {  # sha256 of OpenAI's archives, as they stand in their addresses
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
}
NEEDED = (
    "visual.attnpool.c_proj.weight",
    "transformer.resblocks.0.attn.in_proj_weight",
    "token_embedding.weight",
)
_PLAIN = {
    **dict.fromkeys(map(ord, "\u02bc\u2018\u2019\u201a\u201b"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f"), '"'),
    **{code: normalize("NFKC", chr(code)) for code in (0x3000, *range(0xFF01, 0xFFF0))},
    **{code: normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)},
}


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP as it lies on disk: its tensors in fp32, and what they do not say."""

    tensors: Tensors
    heads: int  # of the text encoder
    quick: bool  # whether its activation is QuickGELU
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return SHRUNK * math.isqrt(len(self.tensors["visual.attnpool.positional_embedding"]) - 1)


def checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or in a file .pt; None if there is none of these. ValueError if
    it cannot be read.
    """
    archives = [path] if path.suffix == ".pt" else sorted(path.glob("*.pt"))
    if (path / SETTINGS).exists():
        return _open_clip(path)
    if len(archives) > 1:
        raise ValueError(
            f"{path} holds {len(archives)} checkpoints; expected one of them, as {archives[0]}"
        )
    return _archive(archives[0]) if archives else None


def _archive(file: Path) -> Checkpoint:
    with open(file, "rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    if sha256 not in PUBLISHED.values():
        why = (
            "it is none of the archives that OpenAI published, and another may write files when it"
            " is loaded"
        )
        raise _broken(file, f"{why} (its sha256 is {sha256})")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is what OpenAI published
        try:
            tensors = torch.jit.load(file, map_location="cpu").state_dict()
        except (RuntimeError, OSError) as error:
            raise _broken(file, str(error).strip().splitlines()[0]) from None
    _check(file, tensors)
    width = tensors["token_embedding.weight"].shape[1]
    return Checkpoint(_float(tensors), width // HEAD, True, MEAN, STD)


def _open_clip(folder: Path) -> Checkpoint:
    try:
        said = json.loads((folder / SETTINGS).read_bytes())
        model, shown = said["model_cfg"], said.get("preprocess_cfg", {})
        tensors = load_file(folder / WEIGHTS)
        heads = model["text_cfg"]["heads"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _broken(folder, f"{type(error).__name__} {error}".splitlines()[0]) from None
    if (fitted := shown.get("resize_mode", "shortest"), shown.get("interpolation", "bicubic")) != (
        "shortest",
        "bicubic",
    ):
        raise _broken(
            folder, f"it shows images {fitted}, which only ('shortest', 'bicubic') can be"
        )
    _check(folder, tensors)
    quick = bool(model.get("quick_gelu", False))
    return Checkpoint(
        _float(tensors), heads, quick, tuple(shown.get("mean", MEAN)), tuple(shown.get("std", STD))
    )


def _float(tensors: Mapping[str, Tensor]) -> Tensors:
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if missing := [name for name in NEEDED if name not in tensors]:
        raise ValueError(
            f"{path} is no CLIP with a ModifiedResNet and a text encoder of its own (it has no"
            f' {missing[0]}); expected one as "timm/resnet50_clip.openai", or a CLIP in'
            ' Hugging Face\'s layout, as "openai/clip-vit-base-patch16"'
        )


def parts(
    saved: Checkpoint,
    tokenize: Callable[[str], list[int]],
    ends: tuple[int, int],
    preprocess: Callable[[Tensor], Tensor],
    key: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Clip:
    """The parts of a checkpoint, frozen and moved; `ends` are the ids of [SOS] and [EOS], `key` is
    Clip's.

    KeyError or RuntimeError if tensors are missing or do not fit each other.
    """
    t = {
        name: value.to(device, dtype) if value.is_floating_point() else value
        for name, value in saved.tensors.items()
    }
    visual = _visual(saved.side, under(t, "visual"))

    def images(pixels: Tensor) -> Tensor:
        features: Tensor = visual(pixels.to(dtype))
        return features

    def patches(pixels: Tensor) -> Tensor:
        return visual.everywhere(pixels.to(dtype))

    count = len({name.split(".")[2] for name in t if name.startswith("transformer.resblocks.")})
    return Clip(
        images=images,
        tokens=nn.Embedding.from_pretrained(t["token_embedding.weight"]),
        positions=t["positional_embedding"],
        layers=tuple(
            _text_layer(under(saved.tensors, f"transformer.resblocks.{i}"), saved, device, dtype)
            for i in range(count)
        ),
        norm=_filled(nn.LayerNorm, under(t, "ln_final")),
        project=_filled(nn.Linear, {"weight": t["text_projection"].T.contiguous()}),
        scale=saved.tensors["logit_scale"].exp().item(),
        tokenize=tokenize,
        start=ends[0],
        end=ends[1],
        preprocess=preprocess,
        key=key,
        patches=patches,
    )


def plain(text: str) -> str:
    """A text as OpenAI's tokenizer reads it: HTML's names for characters are those characters, and
    of what ftfy makes plain, curly quotes, ligatures and wide letters are.
    """
    text = html.unescape(text).translate(_PLAIN)
    return html.unescape(html.unescape(text)).strip()


def _visual(side: int, t: Tensors) -> ModifiedResNet:
    blocks = [
        len({name.split(".")[1] for name in t if name.startswith(f"layer{n}.")})
        for n in (1, 2, 3, 4)
    ]
    with torch.device("meta"):  # no time, and nobody's dice, for weights that are thrown away
        net = ModifiedResNet(
            side, t["layer1.0.conv1.weight"].shape[0], blocks, t["attnpool.c_proj.weight"].shape[0]
        )
    counters = {
        name: torch.tensor(0) for name in net.state_dict() if name.endswith("num_batches_tracked")
    }
    net.load_state_dict(counters | t, assign=True)
    return net.requires_grad_(False).eval()


def _text_layer(t: Tensors, saved: Checkpoint, device: torch.device, dtype: torch.dtype) -> Layer:
    """Joined before its weights are rounded to `dtype`."""
    first, second = (_filled(nn.Linear, under(t, f"mlp.{name}")) for name in ("c_fc", "c_proj"))
    mlp: nn.Module = nn.Sequential(first, nn.GELU(), second)
    if saved.quick:
        mlp = quick_mlp(first, second)
    attention = {"weight": t["attn.in_proj_weight"], "bias": t["attn.in_proj_bias"]}
    return Layer(
        norm1=_filled(nn.LayerNorm, under(t, "ln_1")).to(device, dtype),
        seen=_filled(nn.Linear, attention).to(device, dtype),
        out=_filled(nn.Linear, under(t, "attn.out_proj")).to(device, dtype),
        norm2=_filled(nn.LayerNorm, under(t, "ln_2")).to(device, dtype),
        mlp=mlp.to(device, dtype),
        heads=saved.heads,
    )


def _filled(kind: type, t: Tensors) -> Any:
    """A linear layer or a layer norm with these weights, frozen."""
    shape = reversed(t["weight"].shape)
    with torch.device("meta"):
        made = kind(*shape, bias="bias" in t)
    made.load_state_dict(t, assign=True)
    return made.requires_grad_(False)


def _broken(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path} does not hold a whole CLIP: {why}. Expected OpenAI's RN50.pt, or a folder"
        f" with {SETTINGS} and "
        f'{WEIGHTS}, as "fedexperts fetch timm/resnet50_clip.openai" brings it'
    )
