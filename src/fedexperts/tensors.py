"""The currency: everything that is sent, saved or kept is a flat dict of named tensors.

Names are dotted ("global.context", "pool.clinic-a.context"). This room knows bytes, names, sums and
seeds; it knows no method, no model, no client and no file layout.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from torch import Tensor

Tensors = dict[str, Tensor]
Normal = Callable[[torch.Size], Tensor]  # standard normal numbers of a shape
CPU = torch.device("cpu")  # where what is sent, saved or kept lies

# safetensors' words, in the order of its files: what is wide comes first, so that all lie aligned
_KINDS = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_BLOCK = 2**15  # numbers whose squares are summed at once


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes, equal for equal tensors, whatever their order, device and layout."""
    return b"".join(parts(tensors))


def parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of `pack`, piece by piece: dense tensors are not copied for it."""
    tensors = _ordered(tensors)
    yield _head(tensors)
    yield from map(_raw, tensors.values())


def _ordered(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors as they follow each other in a safetensors file."""
    rank = {kind: number for number, kind in enumerate(_KINDS)}
    for name, value in tensors.items():
        if value.dtype not in rank:
            raise ValueError(
                f"{name} is {value.dtype}; what is sent, saved or kept is one of {[*_KINDS]}"
            )
    names = sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))
    return {name: tensors[name] for name in names}


def _head(tensors: Tensors) -> bytes:
    """What a safetensors file begins with: its ordered tensors' kinds, shapes and offsets."""
    entries, begin = {}, 0
    for name, value in tensors.items():
        end = begin + value.nbytes
        entries[name] = {
            "dtype": _KINDS[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw(value: Tensor) -> memoryview:
    """A tensor's bytes."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def unpack(data: bytes) -> Tensors:
    """The tensors of `pack`; ValueError if `data` is not a safetensors file."""
    try:
        return _load(data)
    except (SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"not safetensors: {error} ({len(data)} bytes)") from None


def under(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors named `prefix.*`, without the prefix."""
    return {
        name[len(prefix) + 1 :]: value
        for name, value in tensors.items()
        if name.startswith(prefix + ".")
    }


def named(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors, named `prefix.*`; the inverse of `under`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def on(device: torch.device, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors on a device; those that lie there already, themselves."""
    return {name: value.to(device) for name, value in tensors.items()}


def sum_in_order(values: Iterable[Tensor]) -> Tensor:
    """Sum of at least one tensor, left to right."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def finite(value: Tensor) -> bool:
    """Whether all numbers are. One that is not makes the sum so; only a sum that overflows needs
    another look.
    """
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def length(value: Tensor, start: Tensor | None = None) -> float:
    """l2 norm of a tensor, or of its difference from another, whatever its size: squares are summed
    in float64, in blocks that stay in a core's cache.
    """
    squares, flat = 0.0, value.reshape(-1)
    begun = None if start is None else start.reshape(-1)
    buffer = torch.empty(min(_BLOCK, len(flat)), dtype=torch.float64, device=value.device)
    for begin in range(0, len(flat), _BLOCK):
        part = flat[begin : begin + _BLOCK]
        if begun is not None:
            part = part - begun[begin : begin + _BLOCK]
        wide = buffer[: len(part)].copy_(part)
        squares += float(wide.dot(wide))
    return math.sqrt(squares)


def apart(items: Sequence[Mapping[str, Tensor]]) -> float:
    """Root mean square distance from the mean of items, as a share of its norm; 0 for zeros."""
    flat = torch.stack(
        [
            torch.cat([value.flatten().double() for _, value in sorted(item.items())])
            for item in items
        ]
    )
    centre = flat.mean(0)
    return float((flat - centre).norm() / (len(items) ** 0.5 * centre.norm()).clamp_min(1e-30))


def stack(items: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Equally named and shaped tensors, stacked on a new leading axis [n, ...]."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def unbind(tensors: Mapping[str, Tensor], count: int) -> list[Tensors]:
    """The inverse of `stack`: `count` dicts, views of the stack that gradients flow through."""
    return [{name: value[i] for name, value in tensors.items()} for i in range(count)]


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor: equal for tensors that can be stacked."""
    return {name: (tuple(tensors[name].shape), tensors[name].dtype) for name in sorted(tensors)}


def count(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in all tensors: parameters, and whatever else is among them."""
    return sum(value.numel() for value in tensors.values())


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values alone."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def packed_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of `pack`, known without packing."""
    return len(_head(_ordered(tensors))) + size(tensors)


def rng(seed: int, use: str, round: int = 0, client: str = "") -> torch.Generator:
    """A generator for one use, by its four arguments alone: no generator's state is ever saved."""
    digest = hashlib.sha256(f"{seed}/{use}/{round}/{client}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal_of_this_machine(shape: torch.Size) -> Tensor:
    """Standard normal numbers from the operating system's randomness, 53 bits for each.

    A generator would not do: torch's has a seed of 32 bits, and whoever guesses it can take the
    noise off.
    """
    drawn = torch.frombuffer(bytearray(os.urandom(8 * shape.numel())), dtype=torch.int64)
    bits = drawn & (2**53 - 1)
    normal: Tensor = torch.special.ndtri((bits.double() + 0.5) / 2**53)
    return normal.float().reshape(shape)


def write(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with writing(path) as file:
        file.write(data)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name once it is whole: written aside, flushed, renamed into place."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = aside(path)
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def aside(path: Path) -> Path:
    """Where a file or a folder is, while this process makes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the disk gets the file's name: a write does not say where no space is left."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(aside(path))):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
