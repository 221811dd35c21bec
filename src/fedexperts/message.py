"""What travels: an order to a client, a reply to the server, and their bytes.

A message is a line of plain JSON values, then safetensors bytes; nothing in it names a type to
build, so nothing can be executed by decoding it. This room does not know what the tensors mean, nor
what of a message can be believed.
"""

import json
from dataclasses import dataclass, field
from typing import Literal

from .declared import Facts
from .options import Values
from .tensors import Tensors, pack, packed_size, unpack

# the last three are of secure sums (masks.py)
Task = Literal["train", "absorb", "predict", "keys", "shares", "unmask"]
PLAIN = 2**20  # bytes that a message's line of JSON may have
_NOTHING = packed_size({})  # bytes of tensors in a message without any


@dataclass(frozen=True)
class Order:
    """What the server asks of one client in one round."""

    client: str
    round: int
    task: Task
    tensors: Tensors
    most: int = 0  # bytes of tensors, packed, that the reply may bring
    # the last round in which, as the server knows, the client kept a private state; 0: none
    kept: int = 0


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
    return Order(
        **_decode(data, {"client": str, "round": int, "task": str, "most": int, "kept": int})
    )


def decode_reply(data: bytes, most: int) -> Reply:
    """The reply in `data`, whose packed tensors have at most `most` bytes; ValueError if it is not
    one.
    """
    if len(data) > most + PLAIN:
        raise ValueError(
            f"it is {len(data):,} bytes long; at most {most + PLAIN:,} are taken of it"
        )
    kinds = {
        "client": str,
        "round": int,
        "task": str,
        "examples": int,
        "facts": dict,
        "error": str,
        "kept": bool,
    }
    packed = packed_in(data)
    if packed > max(most, _NOTHING):
        raise ValueError(f"its tensors are {packed:,} bytes long; at most {most:,} were asked for")
    return Reply(**_decode(data, kinds))


def packed_in(data: bytes) -> int:
    """Bytes of tensors in a message."""
    return len(data) - data.find(b"\n", 0, PLAIN) - 1


def _decode(data: bytes, kinds: dict[str, type]) -> Values:
    end = data.find(b"\n", 0, PLAIN)
    try:
        plain = json.loads(data[: max(end, 0)])
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"a message begins with a line of JSON; this one does not: {error}"
        ) from None
    if not isinstance(plain, dict) or {name: type(value) for name, value in plain.items()} != kinds:
        wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in kinds.items())
        raise ValueError(
            f"a message begins with a line of the plain fields {wanted}; this one begins"
            f" {data[:200]!r}"
        )
    return {**plain, "tensors": unpack(data[end + 1 :])}
