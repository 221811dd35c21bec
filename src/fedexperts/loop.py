"""The only loop. A round: order, exchange, admit, merge, log, save.

It knows the method's functions and the engine's two, and neither what is learned nor where.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from .admission import Admitted, Known, admit, checked, known_from, note, unsound
from .answers import told
from .client import Job
from .declared import Facts
from .engine import Engine
from .fusing import compiled
from .learn import Examples
from .membership import by_loss
from .message import Order, Reply, Task
from .method import Given, Sent, Upload
from .metrics import Row
from .options import option
from .rundir import SECONDS, RunDir
from .sums import summed
from .tensors import Tensors, count, packed_size, rng, size


@dataclass(frozen=True)
class Schedule:
    """Who takes part when."""

    rounds: int = option(20, says="rounds of training; 0 evaluates the start", ge=0)
    participation: float = option(1.0, says="share of the clients sampled each round", gt=0, le=1)
    evaluate_every: int = option(
        1,
        says="rounds between evaluations of all clients; the start and the last round always",
        ge=1,
    )


class NobodyLeftError(RuntimeError):
    """Every client of a round failed or was refused. The run can be resumed from the round
    before.
    """


def run(
    job: Job,
    engine: Engine,
    schedule: Schedule,
    folder: RunDir,
    tell: Callable[[int], None] = lambda _: None,
    until: int | None = None,
) -> None:
    """Run, or go on from the newest checkpoint, to the last round, or `until` an earlier one;
    `tell` hears of every finished round.
    """
    last = schedule.rounds if until is None else until
    with folder.locked(), compiled(job.merge.compiled):
        done, server = folder.load() or (-1, job.method.open(job.given))
        known = known_from(folder.rows("rounds.jsonl"), folder.rows("clients.jsonl"))
        engine = Ledger(engine, folder.kept())
        for round in range(done + 1, last + 1):
            if round > 0:
                server = train(job, engine, schedule, folder, server, round, known)
            if round % schedule.evaluate_every == 0 or round == schedule.rounds:
                rows, remarks = evaluate(job, engine, server, round, known)
                folder.log("clients.jsonl", rows)
                folder.log("server.jsonl", [examine(job, server, round) | remarks])
            folder.save(round, server, engine.kept)
            tell(round)


@dataclass(frozen=True)
class Ledger:
    """An engine that tells every client when it last kept a private state, and notes when it does:
    lost is not new.
    """

    engine: Engine
    kept: dict[str, int]

    def clients(self) -> list[str]:
        return self.engine.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        told = [replace(order, kept=self.kept.get(order.client, 0)) for order in orders]
        asked = {(order.client, order.round, order.task) for order in orders}
        replies = self.engine.exchange(told)
        self.kept.update(
            {r.client: r.round for r in replies if r.kept and (r.client, r.round, r.task) in asked}
        )
        return replies


def train(
    job: Job,
    engine: Engine,
    schedule: Schedule,
    folder: RunDir,
    server: Tensors,
    round: int,
    known: Known,
) -> Tensors:
    """One round: the server's next state. What its clients say of themselves is noted in
    `known`.
    """
    began = time.monotonic()
    chosen = sample(engine.clients(), schedule.participation, job.seed, round)
    sent = job.method.send(server, chosen, round, job.seed)
    expected = {client: job.method.expects(server, job.model, client) for client in chosen}
    payloads = {client: s.tensors for client, s in sent.items()}
    collect = _summed if job.upload.secure else _one_by_one
    server, uploads, replies, admitted, left_out = collect(
        job, engine, server, payloads, round, expected, known
    )
    refused = _errors(replies) | admitted.refused | left_out
    # one bad upload ends no run
    if not uploads and not (len(chosen) == 1 and replies[chosen[0]].tensors):
        raise NobodyLeftError(_nobody(round, refused))
    back = job.method.give_back(server, uploads) if uploads else {}
    absorbed = (
        exchange(job, engine, {client: b.tensors for client, b in back.items()}, round, "absorb")
        if back
        else {}
    )
    trained = _trained(sent, back, replies, uploads, admitted.moved)
    row: Row = {
        "round": round,
        **_mean([_carried("down", *_payloads(client, sent, back)) for client in sent]),
        **_mean([_carried("up", upload) for upload in uploads] or [_carried("up")]),
        "refused": refused,
        "trained": trained,
    }
    if back:
        came_back = {client: reply for client, reply in absorbed.items() if not reply.error}
        row["absorbed"] = {client: reply.facts for client, reply in came_back.items()}
    remarks = {
        "capped": admitted.capped,
        "changed": note(known, trained),
        "not_absorbed": _errors(absorbed),
    }
    folder.log(SECONDS, [{"round": round, "seconds": time.monotonic() - began}])
    folder.log("rounds.jsonl", [row | _any(remarks)])
    return server


Came = tuple[Tensors, list[Upload], dict[str, Reply], Admitted, dict[str, str]]


def _one_by_one(
    job: Job,
    engine: Engine,
    server: Tensors,
    payloads: dict[str, Tensors],
    round: int,
    expected: dict[str, Tensors],
    known: Known,
) -> Came:
    """The merged uploads of a round, each of which the server sees and admits."""
    replies = exchange(job, engine, payloads, round, "train", expected)
    came = [Upload(client, r.tensors, r.examples) for client, r in replies.items() if not r.error]
    admitted = admit(came, expected, known, job.terms)
    server, uploads, left_out = merge(
        job, job.merging(round), server, admitted.uploads, admitted.moved, round
    )
    return server, uploads, replies, admitted, left_out


def _summed(
    job: Job,
    engine: Engine,
    server: Tensors,
    payloads: dict[str, Tensors],
    round: int,
    expected: dict[str, Tensors],
    known: Known,
) -> Came:
    """The same where the server sees a sum alone, which is merged as if one client had sent it."""

    def ask(sent: dict[str, Tensors], task: Task, want: dict[str, Tensors]) -> dict[str, Reply]:
        return exchange(job, engine, sent, round, task, want)

    came = summed(ask, payloads, expected)
    uploads = [
        Upload(client, came.replies[client].tensors, n) for client, n in came.weights.items()
    ]
    admitted = Admitted(uploads, {client: {} for client in came.weights}, {}, {})
    if not uploads:
        return server, [], came.replies, admitted, {}
    total = sum(came.weights.values())
    given = job.merging(round, max(came.weights.values()) / total)
    everybody = [Upload("everybody", came.mean, total)]
    server, merged, left_out = merge(
        job, given, server, everybody, {"everybody": {"moved": 0}}, round
    )
    return server, uploads if merged else [], came.replies, admitted, left_out


def _trained(
    sent: dict[str, Sent],
    back: dict[str, Sent],
    replies: dict[str, Reply],
    uploads: Sequence[Upload],
    moved: dict[str, dict[str, float]],
) -> dict[str, Facts]:
    """What a round's log says of every client whose upload was merged."""
    trained = {}
    for upload in uploads:
        client, reply = upload.client, replies[upload.client]
        trained[client] = (
            reply.facts
            | sent[client].facts
            | _carried("down", *_payloads(client, sent, back))
            | _carried("up", upload)
            | {"examples": reply.examples}
            | moved[client]
        )
    return trained


def merge(
    job: Job,
    given: Given,
    server: Tensors,
    uploads: list[Upload],
    moved: dict[str, dict[str, float]],
    round: int,
) -> tuple[Tensors, list[Upload], dict[str, str]]:
    """The server's next state, whose uploads are in it, and why others are not: with them nobody
    could go on from it.

    Left out is first what lies farthest from the global tensors.
    """
    left_out = job.outliers({upload.client: upload.tensors for upload in uploads})
    uploads = [upload for upload in uploads if upload.client not in left_out]
    while uploads:
        merged = job.method.merge(given, server, uploads, round)
        if not (why := unsound(merged, job.method.publish(merged), job.terms)):
            return merged, uploads, left_out
        worst = max(uploads, key=lambda upload: moved[upload.client]["moved"])
        left_out[worst.client] = f"once it was merged, {why}"
        uploads = [upload for upload in uploads if upload is not worst]
    return server, [], left_out


def evaluate(
    job: Job, engine: Engine, server: Tensors, round: int, known: Known
) -> tuple[list[Row], Row]:
    """A row for every client that answered, sampled or not, after `round`; and what is to be said
    of the others.
    """
    payload = job.method.publish(server)
    replies = exchange(job, engine, dict.fromkeys(engine.clients(), payload), round, "predict")
    said = {client: reply.facts for client, reply in replies.items() if not reply.error}
    rows = [facts | {"round": round, "client": client} for client, facts in said.items()]
    return rows, _any({"unanswered": _errors(replies), "changed": note(known, said)})


@torch.no_grad()
def examine(job: Job, server: Tensors, round: int) -> Row:
    """What the server itself holds after `round` and, where a simulation has an exam for it, how
    well it does.
    """
    row: Row = {"round": round, "server_parameters": count(server), "server_bytes": size(server)}
    if job.members and round == job.rounds:
        row |= _membership(job, server, job.members)
    served = job.method.served(job.model, server)
    if served is None:
        return row
    for part, examples in job.exam.items():
        logits = served.logits(examples.x[:, 0])
        row[f"{part}_correct"] = int((logits.argmax(-1) == examples.y).sum())
        row[f"{part}_examples"] = len(examples)
        if part == "test":
            row |= told(logits, examples.y, job.confusion_after(round))
            row |= served.metrics(examples.x[:, 0], examples.y)
    return row


def _membership(job: Job, server: Tensors, members: Examples) -> Facts:
    """How well training examples can be told from test ones by their loss under what all share."""
    local = job.method.restore(job.model, job.method.publish(server), None)
    inside_n, outside_m = (
        cross_entropy(
            job.method.predictor(job.model, local).logits(some.x[:, 0]), some.y, reduction="none"
        )
        for some in (members, job.exam["test"])
    )
    return by_loss(inside_n, outside_m)


def exchange(
    job: Job,
    engine: Engine,
    payloads: dict[str, Tensors],
    round: int,
    task: Task,
    expected: dict[str, Tensors] | None = None,
) -> dict[str, Reply]:
    """A checked reply of every client, sorted, whatever the order in which they came; where there
    is none, it says so.

    An answer to another order is none, and of two in one name neither is believed.
    """
    expected = expected or {}
    came: dict[str, list[Reply]] = {client: [] for client in sorted(payloads)}
    for reply in engine.exchange(
        [
            Order(client, round, task, tensors, _most(expected.get(client)))
            for client, tensors in payloads.items()
        ]
    ):
        if (reply.round, reply.task) == (round, task) and reply.client in came:
            came[reply.client].append(reply)
    terms = job.terms

    def only(client: str, replies: list[Reply]) -> Reply:
        if len(replies) != 1:
            why = f"{len(replies)} replies came in its name" if replies else "no reply"
            return Reply(client, round, task, error=why)
        return checked(replies[0], expected.get(client, {}), terms)

    return {client: only(client, replies) for client, replies in came.items()}


def _most(expected: Tensors | None) -> int:
    """Bytes of tensors that a reply may bring."""
    return packed_size(expected) if expected else 0


def sample(clients: Sequence[str], participation: float, seed: int, round: int) -> list[str]:
    """A round's clients, sorted: at least one, drawn without replacement from the sorted names."""
    names = sorted(clients)
    count = max(1, round_half_up(participation * len(names)))
    drawn = torch.randperm(len(names), generator=rng(seed, "sample", round))[:count]
    return [names[i] for i in sorted(drawn.tolist())]


def round_half_up(value: float) -> int:
    return int(value + 0.5)


def _errors(replies: dict[str, Reply]) -> dict[str, str]:
    return {client: reply.error for client, reply in replies.items() if reply.error}


def _any(remarks: Row) -> Row:
    """What there is something to say of."""
    return {key: remark for key, remark in remarks.items() if remark}


def _nobody(round: int, refused: dict[str, str]) -> str:
    reasons = "; ".join(f"{client}: {why}" for client, why in refused.items())
    return (
        f"round {round}: no client is left ({reasons}). The run stands at round {round - 1} and can"
        " be resumed."
    )


def _carried(way: str, *messages: Sent | Upload) -> dict[str, int]:
    """How much goes one way between the server and a client in a round."""
    carried = [message.tensors for message in messages]
    return {f"parameters_{way}": sum(map(count, carried)), f"bytes_{way}": sum(map(size, carried))}


def _payloads(client: str, *ways: dict[str, Sent]) -> list[Sent]:
    return [each[client] for each in ways if client in each]


def _mean(rows: Collection[dict[str, int]]) -> Row:
    return {key: sum(each[key] for each in rows) / len(rows) for key in next(iter(rows))}
