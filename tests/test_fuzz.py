"""Whatever bytes arrive, decoding ends in a message or in a ValueError; tests/fuzz.py goes on for
longer.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.message import PLAIN, Order, Reply, decode_order, decode_reply, encode
from fedexperts.tensors import pack, packed_size, size

TENSORS = {
    "context": torch.arange(12.0).view(3, 4),
    "steps": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
}
GOOD = [
    encode(Reply("a", 3, "train", TENSORS, 7, {"loss": 0.5, "received": ["b", "c"]})),
    encode(Order("a", 3, "train", TENSORS, 1000)),
]
MOST = packed_size(TENSORS)


def read(data: bytes) -> list[Order | Reply]:
    """The messages that the server and a site take `data` for; another exception than ValueError is
    the finding.
    """
    found: list[Order | Reply] = []
    with suppress(ValueError):
        found.append(decode_reply(data, MOST))
    with suppress(ValueError):
        found.append(decode_order(data))
    return found


def whole(message: Order | Reply, data: bytes) -> bool:
    """Whether a message that was read is one: fields of their types, tensors no larger than what
    came, bytes again.
    """
    plain = {"client": str, "round": int, "task": str}
    typed = all(type(getattr(message, name)) is kind for name, kind in plain.items())
    return (
        typed
        and size(message.tensors) <= len(data)
        and encode(message).endswith(pack(message.tensors))
    )


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good message with some bytes changed, cut out, doubled, or put in."""
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), place + draw(st.integers(1, 30)))
        match draw(st.sampled_from(["flip", "cut", "double", "insert"])):
            case "flip" if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place:end]
            case "double":
                data[place:place] = data[place:end]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=20))
    return bytes(data)


@settings(max_examples=1000, deadline=None)
@given(mutated())
def test_a_mutated_message_is_whole_or_refused(data: bytes) -> None:
    assert all(whole(message, data) for message in read(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = ("client", "round", "task", "examples", "facts", "error", "most")


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON))
def test_any_plain_values_make_a_whole_message_or_none(plain: dict[str, object]) -> None:
    data = json.dumps(plain).encode() + b"\n" + pack(TENSORS)
    assert all(whole(message, data) for message in read(data))


def test_a_header_that_promises_terabytes_is_refused_and_costs_nothing() -> None:
    """In a process that may hold 1 GB more than it does: sizes are compared before anything is
    made.
    """
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import test_fuzz as t\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))\n"
        "print([len(t.read(data)) for data in t.promises()])\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, here], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [0] * 9


def promises() -> list[bytes]:
    """Heads of safetensors files that speak of more than is there, and lines of JSON that would not
    end.
    """
    line = GOOD[0].split(b"\n", 1)[0] + b"\n"
    boasts = (([2**40], 2**42), ([2**31, 2**31], 2**62), ([2**62, 4], 8), ([0, 2**60], 0))
    heads = [
        json.dumps({"x": {"dtype": "F32", "shape": s, "data_offsets": [0, end]}}).encode()
        for s, end in boasts
    ]
    said = [line + len(head).to_bytes(8, "little") + head + bytes(8) for head in heads]
    said += [line + (2**63 - 1).to_bytes(8, "little"), line + b"\xff" * 8]
    return [*said, b"[" * (PLAIN - 1) + b"\n", b'{"a":' * 200_000 + b"\n", b"9" * 100_000 + b"\n"]
