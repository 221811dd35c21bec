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
_CHUNK = 2**18  # numbers that `combine` holds at once: in fp32 1 MB, which a core has in its cache

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


@torch.no_grad()
def combine(weights: Tensor, items: Sequence[Mapping[str, Tensor]]) -> list[Tensors]:
    """n weighted sums of m equally named items, by weights [n, m]: clients into experts, or back.

    Floating tensors are summed in their own type, at least float32; of others, a batch norm's count
    of steps, the item with the row's largest weight gives its own. What was before is one more
    item: (1 - lambda) E + lambda sum.
    """
    _combinable(weights, items)
    sums: list[Tensors] = [{} for _ in weights]
    for name, first in items[0].items():
        for one in sums:
            one[name] = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        begin = 0
        for rows in _sums(weights, [item[name] for item in items]):
            for one, row in zip(sums, rows, strict=True):
                one[name].view(-1)[begin : begin + len(row)] = row
            begin += len(row)
    return sums


def _sums(weights: Tensor, values: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """The n weighted sums of one tensor of m items, flat, chunk by chunk: each must be read before
    the next, which takes its memory. Memory is taken once, and a sum is rounded where it is put.
    """
    kind, flat = values[0].dtype, [value.reshape(-1) for value in values]
    if not kind.is_floating_point:
        yield [flat[position] for position in weights.argmax(1).tolist()]
        return
    length = len(flat[0])
    step = min(max(1, _CHUNK // sum(weights.shape)), max(1, length))
    wide = torch.promote_types(kind, torch.float32)
    weights = weights.to(values[0].device, wide)
    rows, sums = (weights.new_empty(count, step) for count in reversed(weights.shape))
    for begin in range(0, length, step):
        end = min(begin + step, length)
        part, into = rows[:, : end - begin], sums[:, : end - begin]
        for row, value in zip(part, flat, strict=True):
            row.copy_(value[begin:end])
        yield torch.mm(weights, part, out=into).unbind()


def _combinable(weights: Tensor, items: Sequence[Mapping[str, Tensor]]) -> None:
    """ValueError for weights of another number of items, and for an item unlike the first."""
    if not weights.numel() or weights.ndim != 2 or weights.shape[1] != len(items):
        raise ValueError(
            f"weights are {list(weights.shape)} for {len(items)} items; expected [sums, items]"
        )
    want = shapes(items[0])
    for position, item in enumerate(items):
        have = shapes(item)
        for name in sorted(want.keys() | have.keys()):
            if have.get(name) != want.get(name):
                has, expected = have.get(name, "missing"), want.get(name, "none")
                raise ValueError(
                    f"item {position} is not like the first item: its {name} is {has}; expected is"
                    f" {expected}"
                )


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
