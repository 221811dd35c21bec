"""A client: its examples, its own disk, and `answer`, the only place where training and prediction
happen.

An engine decides where `answer` runs; nothing in here knows. What a client keeps goes to `Private`;
what leaves goes through one door (`upload.py`): a tensor that the method does not name in `uploads`
cannot be sent, nor one of its facts that it does not declare.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .answers import BASE, OWN, UNSEEN, among, told
from .declared import Facts
from .hidden import (
    STEPS,
    Pair,
    behind_masks,
    ledger_of,
    noised_sums,
    private_steps,
    settled,
    step_of_sum,
)
from .job import Client as Client
from .job import Job as Job
from .learn import Examples, Fitting, Local, Logits, fit, predict
from .message import Order, Reply
from .stacks import Stacks
from .tensors import Tensors, count, finite, rng, size
from .upload import seal

ONE_PASS = 2**20  # numbers of inputs that are asked at once


def answer(
    job: Job, clients: Sequence[Client], orders: Sequence[Order], together: int = 0
) -> list[Reply]:
    """The clients' replies, in order; clients whose tensors have equal shapes are trained or asked
    together, so many at once. 0: as many as is fastest.
    """
    stacks = Stacks(job.model, job.learning.batch, together or job.unasked)
    replies = [
        step_of_sum(client, order)
        for client, order in zip(clients, orders, strict=True)
        if order.task in STEPS
    ]
    for task, act in (("train", _train), ("absorb", _absorb), ("predict", _predict)):
        pairs = [
            (client, order)
            for client, order in zip(clients, orders, strict=True)
            if order.task == task
        ]
        replies += act(job, pairs, stacks)
    position = {order.client: i for i, order in enumerate(orders)}
    return sorted(replies, key=lambda reply: position[reply.client])


def _train(job: Job, pairs: Sequence[Pair], stacks: Stacks) -> list[Reply]:
    everybody, early = pairs, [settled(job, client, order) for client, order in pairs]
    pairs = [pair for pair, reply in zip(pairs, early, strict=True) if reply is None]
    starts = [_start(job, client, order) for client, order in pairs]
    trained = stacks.each(
        starts,
        [client.train.x for client, _ in pairs],
        lambda chosen: _attempt(job, [pairs[i] for i in chosen], [starts[i] for i in chosen]),
    )
    replies = [reply for reply in early if reply is not None] + trained
    if not job.upload.secure:
        return replies
    asked = {client.name: (client, order) for client, order in everybody}
    return [behind_masks(*asked[reply.client], reply) for reply in replies]


def _start(job: Job, client: Client, order: Order) -> Local:
    own = client.private.load(client.name, before=order.round, kept=order.kept)
    return job.method.start(
        job.model, order.tensors, own, rng(job.seed, "start", order.round, client.name)
    )


def _attempt(job: Job, pairs: Sequence[Pair], starts: Sequence[Local]) -> list[Reply]:
    """Train clients together; where that fails, one by one, and who fails alone says why: the
    others' round goes on.
    """
    try:
        trained, losses = _fit(job, pairs, starts)
    except (ValueError, RuntimeError) as error:
        if len(pairs) > 1:
            return [
                r
                for pair, start in zip(pairs, starts, strict=True)
                for r in _attempt(job, [pair], [start])
            ]
        ((client, order),) = pairs
        return [Reply(client.name, order.round, "train", error=f"training failed: {error}")]
    return [
        _finish(job, client, order, Local(after, start.fixed), loss)
        for (client, order), start, after, loss in zip(pairs, starts, trained, losses, strict=True)
    ]


def _fit(
    job: Job, pairs: Sequence[Pair], starts: Sequence[Local]
) -> tuple[list[Tensors], list[float]]:
    method = job.method
    if not any(start.trained for start in starts):  # a closed form has no steps
        return [start.trained for start in starts], [0.0] * len(starts)
    how = Fitting(
        lambda local, x: method.predictor(job.model, local).step(x),
        job.learning,
        partial(method.penalty, job.model),
        method.rates(),
        job.learning.factor(pairs[0][1].round, job.rounds),
        job.trained.buffers,
        job.trained.device,
    )
    if job.privacy.unit == "example":
        how = replace(how, private=private_steps(job, pairs))
    generators = [rng(job.seed, "batches", order.round, client.name) for client, order in pairs]
    return fit(how, starts, [client.train for client, _ in pairs], generators)


def _finish(job: Job, client: Client, order: Order, local: Local, loss: float) -> Reply:
    """Keep what stays, seal what leaves. A training that diverged keeps nothing and sends nothing
    but the fact.
    """
    for name, value in local.trained.items():
        if not finite(value):
            return Reply(
                client.name, order.round, "train", error=f"training diverged: {name} is not finite"
            )
    finished = job.method.finish(job.model, local)
    with torch.no_grad():
        if job.noises_sums:
            said = noised_sums(job, client, order, local)
        else:
            said = job.method.observe(job.model, local, client.train)
    leaves = job.upload.leaving(
        finished.leaves | said,
        order.tensors,
        job.normal("finish", order.round, client.name),
        job.method.uploads(job.model),
        client.name,
    )
    facts: Facts = {"parameters": count(local.trained), "bytes": size(local.trained)}
    ledger = None
    if job.private:  # a loss tells of the examples what no noise covers
        account = ledger_of(job, client, order)
        facts |= {"epsilon": account.epsilon, "delta": job.privacy.delta}
        ledger = account.with_round(leaves, job.deployed)
    else:
        facts["loss"] = loss
    if finished.stays or ledger:
        client.private.save(client.name, order.round, finished.stays, ledger)
    kept = bool(finished.stays or ledger)
    facts |= client.changed
    return Reply(client.name, order.round, "train", leaves, len(client.train), facts, kept=kept)


def _absorb(job: Job, pairs: Sequence[Pair], stacks: Stacks) -> list[Reply]:
    """Clients keep what the server gave back in their round, and say how well they did before and
    after.
    """
    clients = [client for client, _ in pairs]
    owns = [_newest(client, order) for client, order in pairs]
    kept = [
        job.method.absorb(job.model, order.tensors, own, client.train)
        for (client, order), own in zip(pairs, owns, strict=True)
    ]
    before, after = (
        _answers(job, [job.method.restore(job.model, {}, o) for o in own], clients, stacks)
        for own in (owns, kept)
    )
    replies = []
    for (client, order), own, was, now in zip(pairs, kept, before, after, strict=True):
        ledger = client.private.ledger(client.name, order.round)
        client.private.save(client.name, order.round, own, ledger)
        facts: Facts = {
            "before_correct": _hits(was.test, client.test),
            "after_correct": _hits(now.test, client.test),
            "test_examples": len(client.test),
        }
        replies.append(Reply(client.name, order.round, "absorb", facts=facts, kept=True))
    return replies


def _newest(client: Client, order: Order) -> Tensors | None:
    """A client's private state after the order's round: what it kept in the round itself is among
    it.
    """
    return client.private.load(client.name, before=order.round + 1, kept=order.kept)


def _predict(job: Job, pairs: Sequence[Pair], stacks: Stacks) -> list[Reply]:
    """How well each client's own predictor and the global one do on its validation and test
    examples.
    """
    clients = [client for client, _ in pairs]
    owns = [_newest(client, order) for client, order in pairs]
    own = [
        job.method.restore(job.model, order.tensors, kept)
        for (_, order), kept in zip(pairs, owns, strict=True)
    ]
    shared = [job.method.restore(job.model, order.tensors, None) for _, order in pairs]
    answers = _answers(job, own, clients, stacks)
    answers_global = _answers(job, shared, clients, stacks) if any(owns) else answers
    replies = []
    for i, (client, order) in enumerate(pairs):
        facts: Facts = {
            "valid_correct": _hits(answers[i].valid, client.valid),
            "valid_global_correct": _hits(answers_global[i].valid, client.valid),
            "valid_examples": len(client.valid),
            "test_correct": _hits(answers[i].test, client.test),
            "test_global_correct": _hits(answers_global[i].test, client.test),
            "test_examples": len(client.test),
        }
        facts |= told(answers[i].test, client.test.y, job.confusion_after(order.round))
        facts |= _reach(job, own[i], answers[i].test, client, order.round)
        facts |= _said(job, own[i], client) | client.changed
        replies.append(Reply(client.name, order.round, "predict", facts=facts))
    return replies


@torch.no_grad()
def _said(job: Job, local: Local, client: Client) -> Facts:
    """What a client says of its predictor on its test examples: facts, and its experts' shares."""
    x, y = client.test.x[:, 0], client.test.y
    predictor, declared = job.method.predictor(job.model, local), job.method.declares()
    metrics = predictor.metrics(x, y)
    shares_BCE = predictor.shares(x)
    if declared.experts and shares_BCE is not None:
        metrics = metrics | {"shares": shares_BCE.mean((0, 1)).tolist()}
    return seal(metrics, declared.says(), client.name)


def _reach(job: Job, local: Local, logits: Tensor, client: Client, round: int) -> Facts:
    """After the last round, where classes are kept from training: how many answers are correct
    among the client's own classes, about those that others train on, and about those that nobody
    does. A model of no texts knows nothing of the last.
    """
    if job.unseen is None or round < job.rounds:
        return {}
    everybody = job.exam["test"]
    own = client.train.y.unique()
    unseen = job.unseen.y.unique()
    others = torch.tensor(
        [c for c in range(len(job.model.classes)) if c not in {*own.tolist(), *unseen.tolist()}]
    )
    facts: Facts = {f"{OWN}_correct": among(logits, client.test.y, own)}
    asked = {BASE: (_of(everybody, others), others), UNSEEN: (job.unseen, unseen)}
    for of, (examples, classes) in asked.items():
        if not len(examples) or (of == UNSEEN and not job.trained.named):
            continue
        (said,) = predict(_logits(job), [local], [examples.x[:, 0]], job.trained.device)
        facts[f"{of}_correct"] = among(said, examples.y, classes)
        facts[f"{of}_examples"] = len(examples)
    return facts


def _of(examples: Examples, classes: Tensor) -> Examples:
    """Those of some classes."""
    chosen = torch.isin(examples.y, classes)
    return Examples(examples.x[chosen], examples.y[chosen])


class Answers(NamedTuple):
    """Logits of a client's validation and test examples."""

    valid: Tensor
    test: Tensor


def _answers(
    job: Job, states: Sequence[Local], clients: Sequence[Client], stacks: Stacks
) -> list[Answers]:
    """Of each client, asked with a state of its own; both parts in one pass, as a text encoder
    costs most. All that have one state are asked at once, if clients are not to go one by one.
    """
    shared = len(states) > 1 and stacks.together != 1
    if shared and all(same(state, states[0]) for state in states):
        return _of_one(job, states[0], clients)

    def ask(chosen: Sequence[int]) -> list[Answers]:
        inputs = [_held_out(clients[i]) for i in chosen]
        logits = predict(_logits(job), [states[i] for i in chosen], inputs, job.trained.device)
        return [_parted(out, clients[i]) for out, i in zip(logits, chosen, strict=True)]

    return stacks.each(states, [client.train.x for client in clients], ask)


def _logits(job: Job) -> Logits:
    return lambda local, x: job.method.predictor(job.model, local).logits(x)


def _held_out(client: Client) -> Tensor:
    """Inputs of its validation and its test examples."""
    return torch.cat([part.x[:, 0] for part in (client.valid, client.test)])


def _parted(logits: Tensor, client: Client) -> Answers:
    return Answers(*logits.split([len(client.valid), len(client.test)]))


def _of_one(job: Job, state: Local, clients: Sequence[Client]) -> list[Answers]:
    """Of clients that are asked with one state: a global prompt is encoded once for as many as
    their inputs allow.
    """
    inputs = [_held_out(client) for client in clients]
    largest = max(x.numel() for x in inputs)
    at_once = max(1, ONE_PASS // max(1, largest))
    answers: list[Answers] = []
    for begin in range(0, len(clients), at_once):
        some = inputs[begin : begin + at_once]
        (logits,) = predict(_logits(job), [state], [torch.cat(some)], job.trained.device)
        parts = logits.split([len(x) for x in some])
        answers += map(_parted, parts, clients[begin : begin + at_once])
    return answers


def same(local: Local, other: Local) -> bool:
    """Whether two states are equal."""
    ours, theirs = local.kept(), other.kept()
    return ours.keys() == theirs.keys() and all(
        ours[name] is theirs[name] or ours[name].equal(theirs[name]) for name in ours
    )


def _hits(logits: Tensor, examples: Examples) -> int:
    """How many of the examples are classified right."""
    return int((logits.argmax(-1) == examples.y).sum())
