"""The currency: everything that is sent, saved or kept is a flat dict of named tensors.

Names are dotted ("global.context", "pool.clinic-a.context"). This room knows bytes, names, sums and seeds; it
knows no method, no model, no client and no file layout.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

Tensors = dict[str, Tensor]


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes, equal for equal tensors: names sorted, values detached, dense and on the CPU."""
    return _save({name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)})


def unpack(data: bytes) -> Tensors:
    """The tensors of `pack`; ValueError if `data` is not a safetensors file."""
    try:
        return _load(data)
    except (SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"not safetensors: {error} ({len(data)} bytes)") from None


def under(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors named `prefix.*`, without the prefix."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors, named `prefix.*`; the inverse of `under`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def mean(items: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Weighted mean of equally named tensors, added in the order given, so that it repeats bit for bit.

    Weights need not sum to one; they must be positive in sum. Sums are taken in float64 and returned in the
    tensors' own type, rounded where that is whole numbers.
    """
    total = float(sum(weights))
    if not items or total <= 0:
        raise ValueError(f"a mean of {len(items)} items with weights that sum to {total}: nothing to average")
    shares = [weight / total for weight in weights]

    def one(name: str, kind: torch.dtype) -> Tensor:
        summed = sum_in_order(item[name].double() * share for item, share in zip(items, shares, strict=True))
        return (summed if kind.is_floating_point else summed.round()).to(kind)

    return {name: one(name, first.dtype) for name, first in items[0].items()}


def sum_in_order(values: Iterable[Tensor]) -> Tensor:
    """Sum of at least one tensor, left to right."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def stack(items: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Equally named and shaped tensors, stacked on a new leading axis [n, ...]."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def unbind(tensors: Mapping[str, Tensor], count: int) -> list[Tensors]:
    """The inverse of `stack`: `count` dicts, views of the stack that gradients flow through."""
    return [{name: value[i] for name, value in tensors.items()} for i in range(count)]


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor: equal for tensors that can be stacked."""
    return {name: (tuple(tensors[name].shape), tensors[name].dtype) for name in sorted(tensors)}


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values alone."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def rng(seed: int, use: str, round: int = 0, client: str = "") -> torch.Generator:
    """A generator for one use: a pure function of its four arguments, so no generator state is ever saved."""
    digest = hashlib.sha256(f"{seed}/{use}/{round}/{client}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def write(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: aside, flushed to the disk, then renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
