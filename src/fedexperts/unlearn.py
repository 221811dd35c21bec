"""A finished run without one of its clients: what it told the server is taken out, all others get
what they would have been given, and no client sends anything.

The result is a run's folder of its own, whose server's state and private states are, bit for bit,
those of a run in which that client never took part. The old folder still has it; who wants it gone
deletes that. This room knows neither methods nor what a client's word is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import config as door
from .client import Job
from .engine import Engine
from .loop import Ledger, evaluate, examine, exchange
from .message import Order, Reply
from .method import Upload
from .metrics import Row
from .private import Private
from .rundir import EVENTS, RunDir
from .tensors import Tensors


@dataclass(frozen=True)
class Rest:
    """An engine without one client."""

    engine: Engine
    gone: str

    def clients(self) -> list[str]:
        return [client for client in self.engine.clients() if client != self.gone]

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        return self.engine.exchange(orders)


def unlearn(folder: RunDir, client: str, path: Path) -> RunDir:
    """The run again, in `path`, without the client; ValueError if that cannot be done exactly."""
    newest = folder.look()
    config = door.parse(folder.text("config.toml"), str(folder.path))
    if newest is None or newest[0] < config.values["run"]["rounds"]:
        raise ValueError(f"{folder.path} is not finished; use `fedexperts resume` first")
    if config.values["engine"]["name"] == "flower":
        raise ValueError(
            f"{folder.path} is a deployment's, whose sites keep what they were given; remove the"
            " site from the federation and run again: one round is all"
        )
    round, server = newest
    if path.exists():
        raise ValueError(f"{path} exists already; use another --out")
    told = folder.rows("rounds.jsonl")
    if any(row.get("capped") for row in told):
        raise ValueError(
            "some clients' examples did not count in full, by a median over all clients, the one"
            " to be taken out among them; run anew without it"
        )
    written = folder.path / "split.json"
    split = written if written.exists() else None
    with door.opened(config, path / "private", split) as (job, engine, _):
        less = job.method.without(job.model, server, client)
        rest = [_without(row, client) for row in told]
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = folder.copy(path, None)
        ledger = Ledger(Rest(engine, client), {})
        states = Private(folder.path / "private"), Private(path / "private")
        copy.save(0, job.method.open(job.given))
        _give_back(job, ledger, rest, less, round, states)
        copy.log("rounds.jsonl", rest)
        rows, remarks = evaluate(job, ledger, less, round, {})
        copy.log("clients.jsonl", rows)
        copy.log("server.jsonl", [examine(job, less, round) | remarks])
        copy.log(EVENTS, [{"round": round, "unlearned": client}])
        copy.save(round, less, ledger.kept)
    return copy


def _give_back(
    job: Job,
    engine: Engine,
    told: Sequence[Row],
    less: Tensors,
    round: int,
    states: tuple[Private, Private],
) -> None:
    """Every client that told something gets what it has without the one that is gone, in the place
    of what it kept.
    """
    names = sorted({client for row in told for client in row["trained"]})
    old, new = states
    for name in names:
        if kept := old.load(name, before=round + 1):
            new.save(name, round, kept)
    back = job.method.give_back(less, [Upload(name, {}, 0) for name in names])
    payloads = {client: sent.tensors for client, sent in back.items()}
    replies = exchange(job, engine, payloads, round, "absorb")
    for name, reply in replies.items():
        if reply.error:
            raise ValueError(f"{name} could not take what it was given back: {reply.error}")


def _without(row: Row, client: str) -> Row:
    """A round's row as if it had not had the client; its means over clients stay."""
    kept = {key: value for key, value in row.items() if key != "seconds"}
    for key in ("trained", "absorbed", "refused"):
        if key in kept:
            kept[key] = {name: facts for name, facts in kept[key].items() if name != client}
    return kept
