"""What a client does of a round so that it stays hidden: its account before it trains, its noise in
training, its masks around an upload.

This room does not know how a client trains or predicts.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from .declared import Facts
from .job import Client, Job
from .learn import Examples, Local
from .masks import Masks, least
from .message import Order, Reply
from .noised import Noised
from .spent import Ledger
from .tensors import Tensors, count, size, under

Pair = tuple[Client, Order]
STEPS = ("keys", "shares", "unmask")  # tasks of a secure sum beside the training


def settled(job: Job, client: Client, order: Order) -> Reply | None:
    """The reply of who trains no more: its privacy is spent, or it has answered this round."""
    if not job.private:
        return None
    ledger = ledger_of(job, client, order)
    if why := ledger.refusal():
        return Reply(client.name, order.round, "train", error=why)
    if ledger.sent is None:
        return None
    sent = ledger.sent
    facts: Facts = {"parameters": count(sent), "bytes": size(sent)}
    facts |= {"epsilon": ledger.epsilon, "delta": job.privacy.delta} | client.changed
    return Reply(client.name, order.round, "train", sent, len(client.train), facts, kept=True)


def ledger_of(job: Job, client: Client, order: Order) -> Ledger:
    """What the client has spent before, and would with this round."""
    learning = job.learning
    use = job.privacy.use(len(client.train), learning.batch, learning.epochs, job.rounds)
    if job.noises_sums:  # once in a round, and every example is in the sum
        use = job.privacy.use(1, 1, 1, job.rounds)
    return Ledger.opened(job.privacy, client.private, order, use, job.deployed)


def private_steps(job: Job, pairs: Sequence[Pair]) -> Noised:
    """Private steps of these clients."""
    clients = [client for client, _ in pairs]
    noises = [ledger_of(job, client, order).use.noise for client, order in pairs]
    normals = [job.normal("steps", order.round, client.name) for client, order in pairs]
    return Noised(job.privacy.clip, noises, normals, [len(client.train) for client in clients])


def noised_sums(job: Job, client: Client, order: Order, local: Local) -> Tensors:
    """What a client says of its examples, with its part of the noise that hides one of them in
    everybody's sum. As few parts as a secure sum has at least are the whole of it.
    """
    said = job.method.observe(job.model, local, bounded(client.train))
    parts = least(len(under(order.tensors, "masked.with")))
    whole = ledger_of(job, client, order).use.noise * job.method.sensitivity()
    deviation = whole / math.sqrt(parts) / len(client.train)
    normal = job.normal("sums", order.round, client.name)
    return {name: value + deviation * normal(value.shape) for name, value in sorted(said.items())}


def bounded(examples: Examples) -> Examples:
    """The same with inputs of length 1 at most, rounding and all."""
    n, views, *shape = examples.x.shape
    lengths = examples.x.flatten(2).norm(dim=2).clamp_min(1) * (1 + 1e-6)
    return replace(examples, x=examples.x / lengths.view(n, views, *[1] * len(shape)))


def step_of_sum(client: Client, order: Order) -> Reply:
    """A step of a secure sum beside the training itself; who cannot take it says why."""
    masks = Masks(client.private.folder, client.name, order.round)
    try:
        match order.task:
            case "keys":
                tensors = masks.begin()
            case "shares":
                tensors = masks.share(order.tensors)
            case _:
                tensors = masks.unmask(order.tensors)
    except ValueError as error:
        return Reply(client.name, order.round, order.task, error=str(error))
    return Reply(client.name, order.round, order.task, tensors)


def behind_masks(client: Client, order: Order, reply: Reply) -> Reply:
    """An upload as the server may see it; why not, if it cannot be hidden."""
    if reply.error:
        return reply
    others = under(order.tensors, "masked.with").keys()
    masks = Masks(client.private.folder, client.name, order.round)
    try:
        return replace(reply, tensors=masks.masked(reply.tensors, reply.examples, others))
    except ValueError as error:
        return Reply(client.name, order.round, "train", error=str(error))
