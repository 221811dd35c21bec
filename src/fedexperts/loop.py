"""The only loop. A round: order, exchange, admit, merge, log, save.

It knows the method's functions and the engine's two, and neither what is learned nor where.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch.linalg import vector_norm

from .client import Job
from .engine import Engine
from .message import Order, Reply, Task, admit
from .method import Sent, Upload
from .metrics import Row
from .rundir import SECONDS, RunDir
from .tensors import Tensors, count, packed_size, rng, size


@dataclass(frozen=True)
class Schedule:
    """Who takes part when."""

    rounds: Annotated[int, Field(ge=0, description="rounds of training; 0 evaluates the start")] = 20
    participation: Annotated[float, Field(gt=0, le=1, description="share of the clients sampled each round")] = 1.0
    evaluate_every: Annotated[
        int, Field(ge=1, description="rounds between evaluations of all clients; the start and the last round always")
    ] = 1


class NobodyLeftError(RuntimeError):
    """Every client of a round failed or was refused. The run can be resumed from the round before."""


def run(
    job: Job, engine: Engine, schedule: Schedule, folder: RunDir, tell: Callable[[int], None] = lambda _: None
) -> None:
    """Run, or go on from the newest checkpoint, to the last round; `tell` hears of every finished round."""
    with folder.locked():
        done, server = folder.load() or (-1, job.method.open(job.given))
        engine = Ledger(engine, folder.kept())
        for round in range(done + 1, schedule.rounds + 1):
            if round > 0:
                server = train(job, engine, schedule, folder, server, round)
            if round % schedule.evaluate_every == 0 or round == schedule.rounds:
                folder.log("clients.jsonl", evaluate(job, engine, server, round))
                folder.log("server.jsonl", [examine(job, server, round)])
            folder.save(round, server, engine.kept)
            tell(round)


@dataclass(frozen=True)
class Ledger:
    """An engine that tells every client when it last kept a private state, and notes when it does: lost is not new."""

    engine: Engine
    kept: dict[str, int]

    def clients(self) -> list[str]:
        return self.engine.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        told = [replace(order, kept=self.kept.get(order.client, 0)) for order in orders]
        asked = {(order.client, order.round, order.task) for order in orders}
        replies = self.engine.exchange(told)
        self.kept.update({r.client: r.round for r in replies if r.kept and (r.client, r.round, r.task) in asked})
        return replies


def train(job: Job, engine: Engine, schedule: Schedule, folder: RunDir, server: Tensors, round: int) -> Tensors:
    """One round: the server's next state."""
    began = time.monotonic()
    chosen = sample(engine.clients(), schedule.participation, job.seed, round)
    sent = job.method.send(server, chosen, round, job.seed)
    expected = job.method.expects(server, job.model)
    most = packed_size(expected)
    replies = exchange(engine, {client: s.tensors for client, s in sent.items()}, round, "train", most)
    refused = {client: why for client in chosen if (why := _refusal(replies.get(client), expected))}
    uploads = [Upload(c, replies[c].tensors, replies[c].examples) for c in chosen if c not in refused]
    if not uploads:
        raise NobodyLeftError(_nobody(round, refused))
    server = job.method.merge(job.given, server, uploads, round)
    back = job.method.give_back(server, uploads)
    absorbed = exchange(engine, {client: b.tensors for client, b in back.items()}, round, "absorb") if back else {}
    down = {client: _carried("down", *(each[client] for each in (sent, back) if client in each)) for client in sent}
    up = {upload.client: _carried("up", upload) for upload in uploads}
    row: Row = {
        "round": round,
        **_mean(down.values()),
        **_mean(up.values()),
        "refused": refused,
        "trained": {
            u.client: replies[u.client].facts | sent[u.client].facts | down[u.client] | up[u.client]
            | {"examples": u.examples, "moved": _moved(u, expected)}
            for u in uploads
        },
    }  # fmt: skip
    if back:
        row["absorbed"] = {client: reply.facts for client, reply in absorbed.items() if not reply.error}
    folder.log(SECONDS, [{"round": round, "seconds": time.monotonic() - began}])
    folder.log("rounds.jsonl", [row])
    return server


def evaluate(job: Job, engine: Engine, server: Tensors, round: int) -> list[Row]:
    """A row for every client that answered, sampled or not, after `round`."""
    payload = job.method.publish(server)
    replies = exchange(engine, dict.fromkeys(engine.clients(), payload), round, "predict")
    return [
        reply.facts | {"round": round, "client": client} for client, reply in sorted(replies.items()) if not reply.error
    ]


@torch.no_grad()
def examine(job: Job, server: Tensors, round: int) -> Row:
    """What the server itself holds after `round` and, where a simulation has an exam for it, how well it does."""
    row: Row = {"round": round, "server_parameters": count(server), "server_bytes": size(server)}
    for part, examples in job.exam.items():
        logits = job.method.serve(job.model, server, examples.x[:, 0])
        if logits is not None:
            row |= {f"{part}_correct": int((logits.argmax(-1) == examples.y).sum()), f"{part}_examples": len(examples)}
    if test := job.exam.get("test"):
        row |= job.method.shows(job.model, server, test.x[:, 0], test.y)
    return row


def exchange(engine: Engine, payloads: dict[str, Tensors], round: int, task: Task, most: int = 0) -> dict[str, Reply]:
    """Replies by client, whatever the order in which they came; an answer to another order is none."""
    orders = [Order(client, round, task, tensors, most) for client, tensors in payloads.items()]
    replies = {r.client: r for r in engine.exchange(orders) if (r.round, r.task) == (round, task)}
    return {client: replies[client] for client in sorted(payloads) if client in replies}


def sample(clients: Sequence[str], participation: float, seed: int, round: int) -> list[str]:
    """A round's clients, sorted: at least one, drawn without replacement from the sorted names."""
    names = sorted(clients)
    count = max(1, round_half_up(participation * len(names)))
    drawn = torch.randperm(len(names), generator=rng(seed, "sample", round))[:count]
    return [names[i] for i in sorted(drawn.tolist())]


def round_half_up(value: float) -> int:
    return int(value + 0.5)


def _refusal(reply: Reply | None, expected: Tensors) -> str:
    """Why a client's upload is not taken, or ""."""
    if reply is None:
        return "no reply"
    if reply.error:
        return reply.error
    if reply.examples < 1:
        return f"it trained on {reply.examples} examples"
    return admit(reply.tensors, expected)


def _nobody(round: int, refused: dict[str, str]) -> str:
    reasons = "; ".join(f"{client}: {why}" for client, why in refused.items())
    return f"round {round}: no client is left ({reasons}). The run stands at round {round - 1} and can be resumed."


def _carried(way: str, *messages: Sent | Upload) -> dict[str, int]:
    """How much goes one way between the server and a client in a round."""
    carried = [message.tensors for message in messages]
    return {f"parameters_{way}": sum(map(count, carried)), f"bytes_{way}": sum(map(size, carried))}


def _mean(found: Collection[dict[str, int]]) -> Row:
    return {key: sum(each[key] for each in found) / len(found) for key in next(iter(found))}


def _moved(upload: Upload, start: Tensors) -> float:
    """l2 distance of an upload to the global tensors."""
    floating = [name for name in sorted(start) if start[name].is_floating_point()]  # others count steps
    return math.hypot(*(float(vector_norm(upload.tensors[n] - start[n], dtype=torch.float64)) for n in floating))
