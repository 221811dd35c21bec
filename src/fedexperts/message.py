"""What travels: an order to a client, a reply to the server, and their bytes.

A message is a line of plain JSON values, then safetensors bytes; nothing in it names a type to build, so nothing can be
executed by decoding it. This room does not know what the tensors mean; `admit` compares them with what is expected.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .method import Facts
from .tensors import Tensors, pack, shapes, unpack

Task = Literal["train", "absorb", "predict"]
PLAIN = 2**20  # bytes that a message's line of JSON may have
_COUNT = 2**53  # whole numbers below this are the same as floats


@dataclass(frozen=True)
class Order:
    """What the server asks of one client in one round."""

    client: str
    round: int
    task: Task
    tensors: Tensors
    most: int = 0  # bytes of tensors, packed, that the reply may bring
    kept: int = 0  # the last round in which, as the server knows, the client kept a private state; 0: none


@dataclass(frozen=True)
class Reply:
    """A client's answer; with `error` it is a client that failed this round, and says why."""

    client: str
    round: int
    task: Task
    tensors: Tensors = field(default_factory=dict)
    examples: int = 0
    facts: Facts = field(default_factory=dict)
    error: str = ""
    kept: bool = False  # whether the client kept a private state


def encode(message: Order | Reply) -> bytes:
    """Bytes of a message, equal for equal messages."""
    plain = {name: value for name, value in vars(message).items() if name != "tensors"}
    return json.dumps(plain, sort_keys=True).encode() + b"\n" + pack(message.tensors)


def decode_order(data: bytes) -> Order:
    """The order in `data`; ValueError if it is not one."""
    return Order(**_decode(data, {"client": str, "round": int, "task": str, "most": int, "kept": int}))


def decode_reply(data: bytes, most: int) -> Reply:
    """The reply in `data`, whose packed tensors have at most `most` bytes; ValueError if it is not one."""
    if len(data) > most + PLAIN:
        raise ValueError(f"it is {len(data):,} bytes long; at most {most + PLAIN:,} are taken of it")
    kinds = {"client": str, "round": int, "task": str, "examples": int, "facts": dict, "error": str, "kept": bool}
    reply = Reply(**_decode(data, kinds))
    if not 0 <= reply.examples < _COUNT:
        raise ValueError(f"it trained on {reply.examples!s:.20} examples; right would be how many it has")
    for name, fact in reply.facts.items():
        values = fact if isinstance(fact, list) else [fact]
        if not all(type(value) in (int, float, str) for value in values):
            raise ValueError(f"a reply's facts are numbers, words, or lists of them; its {name} is {fact!r:.100}")
    return reply


def _decode(data: bytes, kinds: dict[str, type]) -> dict[str, Any]:
    end = data.find(b"\n", 0, PLAIN)
    try:
        plain = json.loads(data[: max(end, 0)])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a message begins with a line of JSON; this one does not: {error}") from None
    if not isinstance(plain, dict) or {name: type(value) for name, value in plain.items()} != kinds:
        wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in kinds.items())
        raise ValueError(f"a message begins with a line of the plain fields {wanted}; this one begins {data[:200]!r}")
    return {**plain, "tensors": unpack(data[end + 1 :])}


def admit(tensors: Tensors, expected: Tensors) -> str:
    """Why `tensors` cannot be taken for `expected`, or "": names, shapes, types, finite values."""
    if set(tensors) != set(expected):
        return f"its tensors are named {sorted(tensors)}; expected are {sorted(expected)}"
    have, want = shapes(tensors), shapes(expected)
    for name in sorted(want):
        if have[name] != want[name]:
            return f"its {name} is {have[name]}; expected is {want[name]}"
        if odd := _odd(tensors[name]):
            return f"its {name} has {odd} values that are NaN or infinite"
    return ""


def _odd(values: Tensor) -> int:
    """How many values are NaN or infinite; one look at their sum says "none" of nearly every upload."""
    if math.isfinite(values.sum(dtype=torch.float64)):
        return 0
    return int((~torch.isfinite(values)).sum())
