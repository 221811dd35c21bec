"""Named tensors, their bytes, means and seeds; and the messages in which they travel."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import same_bits
from safetensors.torch import save

from fedexperts.average import mean
from fedexperts.message import Order, Reply, decode_order, decode_reply, encode
from fedexperts.tensors import (
    named,
    pack,
    packed_size,
    parts,
    rng,
    size,
    stack,
    unbind,
    under,
    unpack,
    write,
)

ONE, TWO = torch.tensor([1.0, -2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
KINDS = [torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16]
KINDS += [torch.int16, torch.int8, torch.uint8, torch.bool]


# Bytes


def test_bytes_come_back_as_the_same_tensors() -> None:
    sent = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in KINDS} | {
        "empty": torch.empty(0, 2, 4)
    }
    back = unpack(pack(sent))
    assert back.keys() == sent.keys()
    for name in sent:
        assert back[name].dtype == sent[name].dtype
        assert torch.equal(back[name], sent[name])


def test_the_bytes_are_those_that_safetensors_writes() -> None:
    for tensors in ({f"ä.{k}": torch.arange(3).to(k) for k in KINDS}, {"p": torch.tensor(1.0)}, {}):
        assert pack(tensors) == save(tensors)


def test_a_dense_tensor_is_not_copied_to_be_written() -> None:
    _, first, second = parts({"a": ONE, "b": TWO})
    assert [np.asarray(part).ctypes.data for part in (first, second)] == [
        ONE.data_ptr(),
        TWO.data_ptr(),
    ]


def test_a_tensor_that_no_file_holds_is_named() -> None:
    with pytest.raises(ValueError, match="odd is torch.complex64; what is sent, saved or kept"):
        pack({"odd": torch.zeros(1, dtype=torch.complex64)})


def test_equal_tensors_have_equal_bytes_whatever_their_order_layout_and_gradient() -> None:
    plain = {"a": ONE, "b": TWO}
    other = {"b": TWO.T.contiguous().T.requires_grad_(), "a": torch.stack([ONE, ONE], 1)[:, 0]}
    assert pack(plain) == pack(other)


def test_two_names_for_one_storage_are_two_tensors_once_they_travelled() -> None:
    """Pitfall 14: what was one expert under several names is several."""
    back = unpack(pack({"first": ONE, "second": ONE}))
    back["first"][0] = 7
    assert back["second"][0] == 1


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04K\x01.", b"\xff" * 40, pack({"a": TWO})[:-1], pack({"a": TWO}) + b"."]
)
def test_what_is_not_safetensors_is_refused(data: bytes) -> None:
    """Pitfall 23: a pickle is noise, too."""
    with pytest.raises(ValueError, match="not safetensors"):
        unpack(data)


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "new" / "file", b"old")
    write(tmp_path / "new" / "file", b"new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert (tmp_path / "new" / "file").read_bytes() == b"new"


# Names


def test_a_prefix_is_whole_words() -> None:
    tensors = {"pool.a.context": ONE, "pool.ab.context": TWO, "pool": ONE}
    assert under(tensors, "pool.a").keys() == {"context"}
    assert under(named("gate", {"q": ONE}), "gate") == {"q": ONE}


def test_size_counts_the_values() -> None:
    assert size({"a": ONE, "b": TWO.bfloat16()}) == 2 * 4 + 4 * 2


# Means


def test_a_mean_is_weighted() -> None:
    found = mean([{"p": torch.tensor([0.0, 8.0])}, {"p": torch.tensor([4.0, 0.0])}], [1, 3])
    assert found["p"].tolist() == [3.0, 2.0]


def test_a_mean_keeps_the_type_and_adds_in_more() -> None:
    """In float32 the small addend would be lost, in any order."""
    items = [{"p": torch.tensor([value])} for value in (2.0**25, 1.0, -(2.0**25))]
    assert mean(items, [1, 1, 1])["p"] == torch.tensor([1.0]) / 3
    assert mean([{"p": ONE.bfloat16()}], [2])["p"].dtype == torch.bfloat16


def test_a_mean_of_whole_numbers_is_that_of_the_item_that_weighs_most() -> None:
    """Pitfall 17: a batch norm's count of steps is copied, not averaged, and never cut."""
    for weights, count in (([1, 2, 3], 7), ([49, 1, 7], 5), ([10, 12, 12], 6)):
        assert mean([{"steps": torch.tensor(v)} for v in (5, 6, 7)], weights)["steps"] == count


@pytest.mark.parametrize(("items", "weights"), [([], []), ([{"p": ONE}], [0])])
def test_a_mean_of_nothing_is_refused(items: Any, weights: Any) -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        mean(items, weights)


def test_a_mean_does_not_guess_a_missing_weight() -> None:
    with pytest.raises(ValueError, match="shorter"):
        mean([{"p": ONE}, {"p": ONE}], [1])


def test_a_stack_comes_apart_again_and_gradients_flow_through() -> None:
    whole = {
        name: value.requires_grad_() for name, value in stack([{"p": ONE}, {"p": -ONE}]).items()
    }
    first, second = unbind(whole, 2)
    assert same_bits(second, {"p": -ONE})
    (gradient,) = torch.autograd.grad((first["p"] * 3).sum(), [whole["p"]])
    assert gradient.tolist() == [[3, 3], [0, 0]]


# Seeds


def test_a_generator_depends_on_each_of_its_four_arguments_and_on_nothing_else() -> None:
    base: dict[str, Any] = {"seed": 1, "use": "batches", "round": 2, "client": "a"}
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 2},
        {"use": "start"},
        {"round": 3},
        {"client": "b"},
    ]
    torch.manual_seed(5)
    drawn = [torch.rand(4, generator=rng(**(base | change))).tolist() for change in changes]
    torch.manual_seed(6)
    assert drawn[0] == torch.rand(4, generator=rng(**base)).tolist()
    assert len({tuple(values) for values in drawn}) == len(changes)


# Messages

ORDER = Order("a", 3, "train", {"global.context": TWO}, 1000)
REPLY = Reply("a", 3, "train", {"context": TWO}, 7, {"loss": 0.1, "weights": [0.5, 1 / 3]}, "")


def test_a_message_comes_back_as_it_was() -> None:
    order, reply = (
        decode_order(encode(ORDER)),
        decode_reply(encode(REPLY), packed_size(REPLY.tensors)),
    )
    assert replace(order, tensors={}) == replace(ORDER, tensors={})
    assert replace(reply, tensors={}) == replace(REPLY, tensors={})
    assert same_bits(order.tensors, ORDER.tensors)
    assert same_bits(reply.tensors, REPLY.tensors)


def test_messages_are_not_taken_for_each_other() -> None:
    with pytest.raises(
        ValueError, match="plain fields client: str, round: int, task: str, most: int, kept: int;"
    ):
        decode_order(encode(REPLY))
    with pytest.raises(ValueError, match="plain fields"):
        decode_reply(encode(ORDER), packed_size(ORDER.tensors))


PLAIN = {"client": "a", "round": 3, "task": "train", "most": 0, "kept": 0}


@pytest.mark.parametrize(
    "plain",
    [
        PLAIN | {"__class__": "os.system"},
        {"client": "a", "round": 3, "most": 0},
        PLAIN | {"round": "3"},
        PLAIN | {"round": True},
        PLAIN | {"client": None},
        [PLAIN],
        "train",
    ],
)
def test_a_message_has_a_closed_schema(plain: Any) -> None:
    """Pitfall 23: tensors and plain values of known names and types, and nothing that names a type
    to build.
    """
    with pytest.raises(ValueError, match="plain fields"):
        decode_order(json.dumps(plain).encode() + b"\n" + pack({}))


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"{", b"\xff\xfe", encode(ORDER)[:-1]])
def test_noise_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"begins with a line of JSON|not safetensors"):
        decode_order(data)


def test_a_reply_brings_no_more_bytes_of_tensors_than_were_asked_for() -> None:
    """Of a task that asks for none, none: the name alone of a tensor without numbers is too
    much.
    """
    for tensors, most in (
        (REPLY.tensors, 0),
        (REPLY.tensors, packed_size(REPLY.tensors) - 1),
        ({"x": TWO[:0]}, 0),
    ):
        with pytest.raises(
            ValueError, match=f"its tensors are .* bytes long; at most {most} were asked for"
        ):
            decode_reply(encode(replace(REPLY, tensors=tensors)), most)
    assert decode_reply(encode(replace(REPLY, tensors={})), 0).tensors == {}
