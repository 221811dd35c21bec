"""Weighted sums of whole models: clients fused into experts, and experts blended for clients.

A sum goes through memory once, in chunks that a core has in its cache or, on demand, in one pass
that torch's compiler makes. This room knows no method and decides no weight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from .tensors import Tensors, shapes

Pass = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], None]  # weights, items, sums

CHUNK = 2**18  # numbers that are held at once: in fp32 1 MB
UNROLLED = 64  # products, n x m, up to which a compiled pass is written out
SHAPES = 1024  # pairs of n and m, in each type, that are compiled: more than are written out

_compiled: ContextVar[Pass | None] = ContextVar("compiled", default=None)


@torch.no_grad()
def combine(weights: Tensor, items: Sequence[Mapping[str, Tensor]]) -> list[Tensors]:
    """n weighted sums of m equally named items, by weights [n, m]: clients into experts, or back.

    Floating tensors are summed in their own type, at least float32; of others, a batch norm's count
    of steps, the item with the row's largest weight gives its own. What was before is one more
    item: (1 - lambda) E + lambda sum.
    """
    _check(weights, items)
    sums: list[Tensors] = [{} for _ in weights]
    for name, first in items[0].items():
        for one in sums:
            one[name] = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        into = [one[name].view(-1) for one in sums]
        _fuse(weights, [item[name].reshape(-1) for item in items], into)
    return sums


def _fuse(weights: Tensor, items: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """The sums of one tensor, flat."""
    kind = items[0].dtype
    if not kind.is_floating_point:
        for one, position in zip(sums, weights.argmax(1).tolist(), strict=True):
            one.copy_(items[position])
        return
    weights = weights.to(items[0].device, torch.promote_types(kind, torch.float32))
    compiled = _compiled.get()
    if compiled is None or weights.numel() > UNROLLED:
        _in_chunks(weights, items, sums)
    else:  # of a view the compiler would look at the whole, and compile anew for each of its shapes
        compiled(weights, [item.detach() for item in items], [one.detach() for one in sums])


def _in_chunks(weights: Tensor, items: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """Memory is taken once, and a sum is rounded where it is put."""
    step = min(max(1, CHUNK // sum(weights.shape)), max(1, len(items[0])))
    wide, totals = (weights.new_empty(count, step) for count in reversed(weights.shape))
    for begin in range(0, len(items[0]), step):
        end = min(begin + step, len(items[0]))
        part, total = wide[:, : end - begin], totals[:, : end - begin]
        for row, item in zip(part, items, strict=True):
            row.copy_(item[begin:end])
        torch.mm(weights, part, out=total)
        for one, row in zip(sums, total, strict=True):
            one[begin:end] = row


def _in_one_pass(weights: Tensor, items: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """Without a compiler this reads every item once for every sum."""
    for row, one in zip(weights, sums, strict=True):
        total = row[0] * items[0].to(weights.dtype)
        for weight, item in zip(row[1:], items[1:], strict=True):
            total = total + weight * item.to(weights.dtype)
        one.copy_(total)


@contextmanager
def compiled(on: bool) -> Iterator[None]:
    """Whether sums in here are compiled by torch: one pass over memory for each tensor, which
    rounds otherwise than chunks do. Of more than 64 products a number they are not.

    ValueError, at once: torch finds no C++ compiler that works.
    """
    if not on:
        yield
        return
    made = torch.compile(_in_one_pass, dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
        _check_compiler(made)
        token = _compiled.set(made)
        try:
            yield
        finally:
            _compiled.reset(token)


@torch.no_grad()
def _check_compiler(made: Pass) -> None:
    numbers = torch.ones(2, 2)
    try:
        made(numbers, numbers.unbind(), torch.empty(2, 2).unbind())
    except Exception as error:  # torch promises none of its own
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"merge.compiled = true, and torch could not compile on this machine: {reason}. Install"
            " a C++ compiler (Debian, Ubuntu: apt-get install g++), or leave merge.compiled out"
        ) from None


def _check(weights: Tensor, items: Sequence[Mapping[str, Tensor]]) -> None:
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
