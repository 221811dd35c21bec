"""What a frozen encoder says of every image or text, computed once and kept on disk.

After the first call no round touches the encoder again. A file's name is a hash of everything that
its content depends on, so there is nothing to invalidate. Until a file is whole, its blocks lie
beside it: whoever is killed goes on where it was, and processes that need the same images encode
each block once between them, as it is locked while one of them does. This room does not know the
encoder: `key` must name it and its preprocessing.

    NAME.safetensors                    features of all images
    NAME.blocks/VIEW-FIRST.safetensors  those of a block, until all are there
    NAME.blocks/lock                    byte n is locked by who encodes block n
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..tensors import rng, write

FORMAT = 2  # raise it when the same arguments would give other features
BLOCK = 64  # images or texts that an encoder is handed at once

Inputs = Tensor | tuple[str, ...]  # images uint8 [N, 3, H, W], or N texts
Tell = Callable[[int, int], None]  # inputs that are encoded, each view for itself, of all


def features(
    inputs: Inputs,
    encode: Callable[[Any], Tensor],
    key: str,
    cache: Path,
    views: int = 1,
    seed: int = 0,
    tell: Tell = lambda done, total: None,
) -> Tensor:
    """Features [N, V, ...] of images or texts; `encode` runs if `cache` lacks them.

    `encode` maps B of them to [B, ...], each by itself. View 0 is the image or text, each further
    view a seeded augmentation of an image, the same one however many views are asked for. `tell`
    hears how far this process and others are together. ValueError for images or views that are
    none, for an encoder that answers in another number, and for a cache file that is not what was
    written.
    """
    _check(inputs, views)
    name = _name(inputs, key, views, seed)
    path = cache / f"{name}.safetensors"
    if not path.exists():
        _Unfinished(path, inputs, encode, views, seed).finish(tell)
    return _load(path, name)


def _check(inputs: Inputs, views: int) -> None:
    if views < 1:
        raise ValueError(f"views is {views}: it must be at least 1, the image itself")
    if not isinstance(inputs, Tensor):
        if views > 1:
            raise ValueError(f"learning.views = {views}: texts are not augmented; use 1")
        return
    images = inputs
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        shape = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images are {shape}: they must be uint8 [N, 3, H, W], N at least 1")


def known(inputs: Inputs, key: str, cache: Path, views: int = 1, seed: int = 0) -> bool:
    """Whether `features` would find them all, and encode nothing."""
    return (cache / f"{_name(inputs, key, views, seed)}.safetensors").exists()


@dataclass(frozen=True)
class _Unfinished:
    """A file of features on the way, and who may finish it: any number of processes at once."""

    path: Path
    inputs: Inputs
    encode: Callable[[Any], Tensor]
    views: int
    seed: int

    @property
    def folder(self) -> Path:
        return self.path.with_suffix(".blocks")

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """View and first image of each."""
        firsts = range(0, len(self.inputs), BLOCK)
        return [(view, first) for view in range(self.views) for first in firsts]

    def finish(self, tell: Tell) -> None:
        """Encode what nobody else does, then what others left; then put it together."""
        try:
            with self._lock() as lock:
                for patient in (False, True):
                    for number, block in enumerate(self.blocks):
                        self._tell(tell)
                        with _held(lock, number, patient) as mine:
                            if mine and not self._there(*block):
                                self._keep(*block)
                self._tell(tell)
                with _held(lock, len(self.blocks), patient=True):
                    if not self.path.exists():
                        self._put_together()
        finally:
            if not self._count():
                with suppress(OSError):  # another process was quicker, or has just begun
                    shutil.rmtree(self.folder)

    def _lock(self) -> TextIO:
        """The lock's file, in a folder that whoever finishes may take away at any moment."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return open(self.folder / "lock", "w")

    def _count(self) -> int:
        """How many blocks are there; none where the folder is gone."""
        with suppress(FileNotFoundError):
            return sum(name.endswith(".safetensors") for name in os.listdir(self.folder))
        return 0

    def _tell(self, tell: Tell) -> None:
        total, there = len(self.inputs) * self.views, self._count()
        if self.path.exists():
            there = len(self.blocks)
        tell(min(there * BLOCK, total), total)

    def _there(self, view: int, first: int) -> bool:
        return self._file(view, first).exists() or self.path.exists()

    def _file(self, view: int, first: int) -> Path:
        return self.folder / f"{view}-{first}.safetensors"

    def _named(self, view: int, first: int) -> str:
        return f"{self.path.stem}/{view}-{first}"

    @torch.no_grad()
    def _keep(self, view: int, first: int) -> None:
        shown = self.inputs[first : first + BLOCK]
        if view:
            assert isinstance(shown, Tensor)  # texts have one view
            drawn_N4 = torch.rand(len(self.inputs), 4, generator=rng(self.seed, "view", view))
            shown = _augment(shown, drawn_N4[first : first + BLOCK] * 2 - 1)  # -1..1
        features = self.encode(shown).cpu()
        if len(features) != len(shown):
            raise ValueError(
                f"encode gave {list(features.shape)} for {len(shown)} inputs: it must give"
                f" [{len(shown)}, ...]"
            )
        _keep(self._file(view, first), self._named(view, first), features)

    def _put_together(self) -> None:
        """[N, V, ...]"""
        loaded = [_load(self._file(*block), self._named(*block)) for block in self.blocks]
        count = len(self.blocks) // self.views  # blocks of a view
        of_views = [loaded[view * count : (view + 1) * count] for view in range(self.views)]
        whole = torch.stack([torch.cat(parts) for parts in of_views], dim=1)
        _keep(self.path, self.path.stem, whole)
        shutil.rmtree(self.folder)


@contextmanager
def _held(lock: TextIO, number: int, patient: bool) -> Iterator[bool]:
    """Byte `number` of a file for this process alone, and whether it has it: who is not patient
    does not wait. A process that ends lets go.
    """
    how = fcntl.LOCK_EX
    if not patient:
        how |= fcntl.LOCK_NB
    try:
        fcntl.lockf(lock, how, 1, number)
    except (BlockingIOError, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, number)


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


def _name(inputs: Inputs, key: str, views: int, seed: int) -> str:
    # view 0 knows no seed; other versions and processors round differently
    drawn = seed if views > 1 else 0
    machine = (torch.__version__, torch.backends.cpu.get_cpu_capability())
    if isinstance(inputs, Tensor):
        shape, held = list(inputs.shape), inputs.cpu().contiguous().numpy().data
    else:
        shape, held = [len(inputs)], memoryview(json.dumps(inputs).encode())
    header = [FORMAT, key, views, drawn, machine, shape]
    digest = hashlib.sha256(json.dumps(header).encode())
    digest.update(held)
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
