"""What a frozen encoder says of every image, computed once and kept on disk.

After the first call no round touches the encoder again. A file's name is a hash of everything that
its content depends on, so there is nothing to invalidate. This room does not know the encoder:
`key` must name it and its preprocessing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..tensors import rng, write

FORMAT = 1  # raise it when the same arguments would give other features
BATCH = 256  # images an encoder sees at once


def features(
    images: Tensor | tuple[str, ...],
    encode: Callable[[Tensor], Tensor],
    key: str,
    cache: Path,
    views: int = 1,
    seed: int = 0,
) -> Tensor:
    """Features [N, V, ...] of images uint8 [N, 3, H, W]; `encode` runs if `cache` lacks them.

    `encode` maps uint8 [B, 3, H, W] to [B, ...], each image by itself. View 0 is the image, each
    further view a seeded augmentation, the same one however many views are asked for. ValueError
    for texts, for images or views that are none, for an encoder that answers in another number, and
    for a cache file that is not what was written.
    """
    if not isinstance(images, Tensor):
        raise ValueError(
            f"the data are {len(images)} texts: this model's encoder must be given images"
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        shape = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images are {shape}: they must be uint8 [N, 3, H, W], N at least 1")
    if views < 1:
        raise ValueError(f"views is {views}: it must be at least 1, the image itself")
    name = _name(images, key, views, seed)
    path = cache / f"{name}.safetensors"
    if not path.exists():
        _keep(path, name, _compute(images, encode, views, seed))
    return _load(path, name)


@torch.no_grad()
def _compute(images: Tensor, encode: Callable[[Tensor], Tensor], views: int, seed: int) -> Tensor:
    """[N, V, ...]"""
    return torch.stack(
        [torch.cat(list(_encoded(images, encode, view, seed))) for view in range(views)], dim=1
    )


def _encoded(
    images: Tensor, encode: Callable[[Tensor], Tensor], view: int, seed: int
) -> Iterator[Tensor]:
    """The features of one view, batch by batch, so that few augmented images are in memory."""
    drawn_N4 = torch.rand(len(images), 4, generator=rng(seed, "view", view)) * 2 - 1  # -1..1
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        features = encode(_augment(batch, drawn_N4[first : first + BATCH]) if view else batch).cpu()
        if features.shape[:1] != batch.shape[:1]:
            shape = list(features.shape)
            raise ValueError(
                f"encode gave {shape} for {len(batch)} images: it must give [{len(batch)}, ...]"
            )
        yield features


def _augment(images: Tensor, drawn_B4: Tensor) -> Tensor:
    """Images uint8 [B, 3, H, W], each shifted by up to 6 % of a side, scaled by up to 10 % and its
    contrast changed by up to 20 %, as drawn (-1..1). What lies outside an image repeats its border.
    """
    shift_B21 = 0.12 * drawn_B4[:, :2, None]  # a side is 2 long, so 0.12 is 6 %
    zoom_B22 = torch.eye(2) * (1 + 0.1 * drawn_B4[:, 2, None, None])
    contrast_B111 = 1 + 0.2 * drawn_B4[:, 3, None, None, None]
    grid = affine_grid(
        torch.cat([zoom_B22, shift_B21], dim=2), list(images.shape), align_corners=False
    )
    moved = grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    middle = moved.mean((1, 2, 3), keepdim=True)
    return ((moved - middle) * contrast_B111 + middle).round().clamp(0, 255).to(torch.uint8)


def _name(images: Tensor, key: str, views: int, seed: int) -> str:
    # view 0 knows no seed; other versions and processors round differently
    drawn, machine = (
        (seed if views > 1 else 0),
        (
            torch.__version__,
            torch.backends.cpu.get_cpu_capability(),
        ),
    )
    header = [FORMAT, key, views, drawn, machine, list(images.shape)]
    digest = hashlib.sha256(json.dumps(header).encode())
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _checksum(values: Tensor, name: str) -> str:
    """Of values, type, shape and the file's own name, so that a renamed file is found out too."""
    digest = hashlib.sha256(f"{name} {values.dtype} {list(values.shape)}".encode())
    digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _keep(path: Path, name: str, values: Tensor) -> None:
    """Write the whole file or nothing. Two processes that do this at once write the same bytes."""
    values = values.contiguous()  # a channels-last encoder's are not
    write(path, save({"features": values}, metadata={"sha256": _checksum(values, name)}))


def _load(path: Path, name: str) -> Tensor:
    """The features in a file, memory-mapped; ValueError if a bit of them is another."""
    try:
        with safe_open(path, framework="pt") as file:
            values: Tensor = file.get_tensor("features")
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, ValueError) as error:
        raise _corrupt(path, str(error)) from None
    if _checksum(values, name) != expected:
        raise _corrupt(path, "its checksum is wrong")
    return values


def _corrupt(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path} is not what was written there ({why}): delete it, and it is computed again"
    )
