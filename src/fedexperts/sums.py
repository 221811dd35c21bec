"""The server's side of secure sums: keys, shares, masked uploads, and masks taken off their sum.

The server passes on what clients send each other and cannot read it. Who drops out on the way costs
the round nothing, as long as two thirds are left. This room does not know what is summed, nor how
an order travels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .masks import KEY, SHARE, added, floating, join, least, pair_stream, stream, to_bytes
from .message import Reply, Task
from .tensors import Tensors, named

# payloads by client, and what their replies must look like, to checked replies
Ask = Callable[[dict[str, Tensors], Task, dict[str, Tensors]], dict[str, Reply]]
_BYTES = torch.zeros(0, dtype=torch.uint8)


@dataclass(frozen=True)
class Summed:
    """What came of a round: replies of all, the weighted mean, who is in it; too few: nobody."""

    replies: dict[str, Reply]
    mean: Tensors
    weights: dict[str, int]


def summed(ask: Ask, payloads: Mapping[str, Tensors], expected: Mapping[str, Tensors]) -> Summed:
    """A weighted mean of what clients train from their payloads, each of whose uploads is masked;
    its weights are examples.
    """
    names, like = sorted(payloads), expected[min(payloads)]
    replies: dict[str, Reply] = {}

    def step(sent: dict[str, Tensors], task: Task, want: dict[str, Tensors]) -> dict[str, Tensors]:
        came = ask(sent, task, want)
        for name, reply in came.items():
            if task == "train" or (reply.error and task != "unmask"):
                replies[name] = reply
        return {name: reply.tensors for name, reply in came.items() if not reply.error}

    key = torch.zeros(KEY, dtype=torch.uint8)
    nothing: dict[str, Tensors] = {name: {} for name in names}
    keys = step(nothing, "keys", {name: {"mask": key, "box": key} for name in names})
    publics = {f"{kind}.{name}": own[kind] for name, own in keys.items() for kind in own}
    boxes = {f"to.{name}": torch.zeros(SHARE, dtype=torch.uint8) for name in keys}
    shares = step(dict.fromkeys(keys, publics), "shares", dict.fromkeys(keys, boxes))
    others = named("with", dict.fromkeys(shares, _BYTES))
    asked = {name: dict(payloads[name]) | named("masked", others) for name in shares}
    integers = {name: torch.zeros_like(value, dtype=torch.int64) for name, value in like.items()}
    masked = step(asked, "train", dict.fromkeys(asked, integers))
    if len(masked) < least(len(keys)):
        return Summed(_failed(replies, names, "too few clients are left for a secure sum"), {}, {})
    alive = named("alive", dict.fromkeys(masked, _BYTES))
    told = step(
        {
            name: alive
            | {f"from.{peer}": boxes_of[f"to.{name}"] for peer, boxes_of in shares.items()}
            for name in masked
        },
        "unmask",
        dict.fromkeys(masked, _expected_shares(shares, masked)),
    )
    if len(told) < least(len(keys)):
        return Summed(_failed(replies, names, "too few clients told their shares"), {}, {})
    sums = _unmasked(sorted(keys), masked, sorted(shares), told, publics)
    weights = {name: replies[name].examples for name in masked}
    return Summed(replies, floating(sums, sum(weights.values()), like), weights)


def _expected_shares(shares: Mapping[str, Tensors], masked: Mapping[str, Tensors]) -> Tensors:
    share = torch.zeros(KEY, dtype=torch.uint8)
    return {f"{'seed' if name in masked else 'key'}.{name}": share for name in shares}


def _unmasked(
    everybody: list[str],
    masked: Mapping[str, Tensors],
    others: list[str],
    told: Mapping[str, Tensors],
    publics: Tensors,
) -> Tensors:
    """The sum without its masks: each stream of who is in it, each pair's of who is not."""
    total, *rest = masked.values()
    for one in rest:
        total = added(total, one)

    def secret(kind: str, name: str) -> bytes:
        some = sorted(told)[: least(len(everybody))]
        return join({everybody.index(who): to_bytes(told[who][f"{kind}.{name}"]) for who in some})

    for name in masked:
        total = added(total, stream(secret("seed", name), total), -1)
    for gone in sorted(set(others) - set(masked)):
        key = secret("key", gone)
        for name in masked:
            other = to_bytes(publics[f"mask.{name}"])
            total = added(total, pair_stream(key, gone, name, other, total))
    return total


def _failed(replies: dict[str, Reply], names: list[str], why: str) -> dict[str, Reply]:
    """Everybody failed: with its own reason, or because of the others."""
    return {
        name: replies[name]
        if name in replies and replies[name].error
        else Reply(name, 0, "train", error=why)
        for name in names
    }
