"""Whatever bytes arrive, decoding ends in a message or in a ValueError; tests/fuzz.py goes on for longer."""

import json
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.message import PLAIN, Order, Reply, decode_order, decode_reply, encode
from fedexperts.tensors import pack, packed_size

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


def read(data: bytes) -> None:
    """As the server and a site do."""
    for decode in (lambda d: decode_reply(d, MOST), decode_order):
        with suppress(ValueError):
            message = decode(data)
            assert all(isinstance(value, torch.Tensor) for value in message.tensors.values())


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
def test_a_mutated_message_is_read_or_refused(data: bytes) -> None:
    read(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = ("client", "round", "task", "examples", "facts", "error", "most")


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON))
def test_any_plain_values_are_read_or_refused(plain: dict[str, object]) -> None:
    read(json.dumps(plain).encode() + b"\n" + pack(TENSORS))


def test_a_header_that_promises_terabytes_costs_nothing() -> None:
    """In a process that may hold 1 GB more than it does: sizes are compared before anything is made."""
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import test_fuzz as t\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))\n"
        "t.promises()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], check=True)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2**30  # this process is as it was


def promises() -> None:
    """Heads of safetensors files that speak of more than is there."""
    line = GOOD[0].split(b"\n", 1)[0] + b"\n"
    for shape, end in (([2**40], 2**42), ([2**31, 2**31], 2**62), ([2**62, 4], 8), ([0, 2**60], 0)):
        head = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        read(line + len(head).to_bytes(8, "little") + head + bytes(8))
    read(line + (2**63 - 1).to_bytes(8, "little"))
    read(line + b"\xff" * 8)
    read(b"[" * (PLAIN - 1) + b"\n")
    read(b'{"a":' * 200_000 + b"\n")
    read(b"9" * 100_000 + b"\n")
