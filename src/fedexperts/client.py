"""A client: its examples, its own disk, and `answer`, the only place where training and prediction happen.

An engine decides where `answer` runs; nothing in here knows. What a client keeps goes to `Private`; what leaves is
sealed: a tensor that the method does not name in `uploads` cannot be sent.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from .learn import Examples, Learning, fit, predict
from .message import Order, Reply
from .method import Facts, Local, Method, Model
from .private import Private
from .tensors import Tensors, rng, shapes

T = TypeVar("T")


@dataclass(frozen=True)
class Client:
    """One site: its name, its three disjoint sets of examples, its own disk."""

    name: str
    train: Examples
    valid: Examples
    test: Examples
    private: Private


@dataclass(frozen=True)
class Job:
    """What the server and every client agree on before the first round."""

    method: Method
    model: Model
    learning: Learning
    rounds: int
    seed: int


def answer(job: Job, clients: Sequence[Client], orders: Sequence[Order]) -> list[Reply]:
    """The clients' replies, in order; clients whose tensors have equal shapes are trained or asked together."""
    replies: list[Reply] = []
    for task, act in (("train", _train), ("predict", _predict)):
        pairs = [(client, order) for client, order in zip(clients, orders, strict=True) if order.task == task]
        replies += act(job, pairs)
    place = {order.client: i for i, order in enumerate(orders)}
    return sorted(replies, key=lambda reply: place[reply.client])


Pair = tuple[Client, Order]


def _train(job: Job, pairs: Sequence[Pair]) -> list[Reply]:
    starts = [_start(job, client, order) for client, order in pairs]
    return _together(starts, lambda chosen: _train_alike(job, [pairs[i] for i in chosen], [starts[i] for i in chosen]))


def _start(job: Job, client: Client, order: Order) -> Local:
    own = client.private.load(client.name, before=order.round)
    return job.method.start(job.model, order.tensors, own, rng(job.seed, "start", order.round, client.name))


def _train_alike(job: Job, pairs: Sequence[Pair], starts: Sequence[Local]) -> list[Reply]:
    method = job.method
    trained, losses = fit(
        lambda local, x: method.logits(job.model, local, x),
        method.penalty,
        starts,
        [client.train for client, _ in pairs],
        [rng(job.seed, "batches", order.round, client.name) for client, order in pairs],
        job.learning,
        method.rates(),
        job.learning.factor(pairs[0][1].round, job.rounds),
    )
    return [
        _finish(job, client, order, Local(after, start.fixed), loss)
        for (client, order), start, after, loss in zip(pairs, starts, trained, losses, strict=True)
    ]


def _finish(job: Job, client: Client, order: Order, local: Local, loss: float) -> Reply:
    """Keep what stays, seal what leaves. A training that diverged keeps nothing and sends nothing but the fact."""
    for name, value in local.trained.items():
        if not torch.isfinite(value).all():
            return Reply(client.name, order.round, "train", error=f"training diverged: {name} is not finite")
    finished = job.method.finish(job.model, local, rng(job.seed, "finish", order.round, client.name))
    leaves = seal(finished.leaves, job.method.uploads(job.model), client.name)
    if finished.stays:
        client.private.save(client.name, order.round, finished.stays)
    return Reply(client.name, order.round, "train", leaves, len(client.train), {"loss": loss})


def seal(leaves: Tensors, uploads: frozenset[str], client: str) -> Tensors:
    """`leaves`, if every name in it may leave; else ValueError before anything is sent."""
    if extra := sorted(set(leaves) - uploads):
        raise ValueError(f"client {client} was about to send {extra}; its method lets only {sorted(uploads)} leave")
    return leaves


def _predict(job: Job, pairs: Sequence[Pair]) -> list[Reply]:
    """How well each client's own predictor does on its validation and test examples, and the global one on its test."""
    clients = [client for client, _ in pairs]
    # "after round r" includes what the client kept in round r itself
    owns = [client.private.load(client.name, before=order.round + 1) for client, order in pairs]
    own = [job.method.recall(job.model, order.tensors, kept) for (_, order), kept in zip(pairs, owns, strict=True)]
    shared = [job.method.recall(job.model, order.tensors, None) for _, order in pairs]
    valid = _correct(job, own, [client.valid for client in clients])
    test = _correct(job, own, [client.test for client in clients])
    test_global = _correct(job, shared, [client.test for client in clients]) if any(owns) else test
    replies = []
    for i, (client, order) in enumerate(pairs):
        facts: Facts = {
            "valid_correct": valid[i],
            "valid_examples": len(client.valid),
            "test_correct": test[i],
            "test_global_correct": test_global[i],
            "test_examples": len(client.test),
        }
        with torch.no_grad():
            facts |= job.method.facts(job.model, own[i], client.test.x[:, 0])
        replies.append(Reply(client.name, order.round, "predict", facts=facts))
    return replies


def _correct(job: Job, states: Sequence[Local], examples: Sequence[Examples]) -> list[int]:
    """How many of each client's examples are classified right."""

    def count(chosen: Sequence[int]) -> list[int]:
        logits = predict(
            lambda local, x: job.method.logits(job.model, local, x),
            [states[i] for i in chosen],
            [examples[i].x[:, 0] for i in chosen],
        )
        return [int((out.argmax(-1) == examples[i].y).sum()) for out, i in zip(logits, chosen, strict=True)]

    return _together(states, count)


def _together(states: Sequence[Local], act: Callable[[Sequence[int]], list[T]]) -> list[T]:
    """`act` on the places of each group of equal shapes; its results in the order of `states`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, local in enumerate(states):
        groups[str(shapes(local.kept()))].append(place)
    found = {place: value for group in groups.values() for place, value in zip(group, act(group), strict=True)}
    return [found[place] for place in range(len(states))]
