"""What do hostile sites cost the honest ones, under each rule by which uploads become one?

    python benchmarks/attacks.py             ten minutes on one core; goes on where it was stopped

Real digits behind the tiny CLIP, 20 clients with four scanners, all of them in every round. One of
them, or a fifth, is hostile in every round: it sends minus what it learned (the change since the
global tensors or, where none are sent, the upload itself), the same ten times as far, random
numbers of deviation 1, or what it learned from labels turned round (class c for 9 - c). Accuracy in
percent: the mean over honest clients, each on its own test part, after the last round, seed 0.
`refused` counts uploads of hostile and of honest clients that were left out, of all they sent.
The guard's bounds (`[guard]`) are as they are by default.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedexperts import config as door
from fedexperts.client import Client
from fedexperts.config import Config, resolve
from fedexperts.engine import InProcess
from fedexperts.learn import Examples
from fedexperts.loop import run
from fedexperts.message import Order, Reply
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors, rng, under

FOLDER = Path("runs/attacks")
RULES = ("mean", "median", "trimmed-mean", "geometric-median", "krum")
PROMPTS: dict[str, Any] = {"model": {"name": "prompted-clip", "context": 4}}
PROBE: dict[str, Any] = {"model": {"name": "linear-probe"}, "learning": {"epochs": 5, "rate": 0.3}}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg (linear probe)": PROBE | {"method": {"name": "fedavg"}},
    "PromptFL": PROMPTS | {"method": {"name": "fedavg"}, "learning": {"epochs": 2, "rate": 1.0}},
    "pFedMoAP": PROMPTS
    | {
        "method": {"name": "pfedmoap", "experts": 4, "gate_rate": 0.15},
        "learning": {"epochs": 2, "rate": 0.1},
    },
    "Gaussian experts": PROMPTS | {"method": {"name": "gaussian-experts"}},
    "Fed-MoE (linear probes)": PROBE
    | {
        "method": {"name": "fedmoe-strong"},
        "mixture": {"experts": 4},
        "data": {"reserve": 10},
    },
}
ROUNDS = {"Gaussian experts": 1, "PromptFL": 10, "Fed-MoE (linear probes)": 10}
Attack = Callable[[Tensors, Tensors, torch.Generator], Tensors]


# ---- what a hostile client sends in the place of what it learned, given what it was sent


def flipped(upload: Tensors, start: Tensors, draw: torch.Generator) -> Tensors:
    return _along(upload, start, -1)


def far(upload: Tensors, start: Tensors, draw: torch.Generator) -> Tensors:
    return _along(upload, start, -10)


def noise(upload: Tensors, start: Tensors, draw: torch.Generator) -> Tensors:
    return {name: torch.randn(value.shape, generator=draw) for name, value in upload.items()}


def honest(upload: Tensors, start: Tensors, draw: torch.Generator) -> Tensors:
    return upload


def _along(upload: Tensors, start: Tensors, times: float) -> Tensors:
    begun = {name: start.get(name, torch.zeros_like(value)) for name, value in upload.items()}
    return {name: begun[name] + times * (value - begun[name]) for name, value in upload.items()}


ATTACKS: dict[str, Attack] = {
    "sign flip": flipped,
    "times -10": far,
    "random": noise,
    "label flip": honest,  # its upload is what it learned, from other labels
}


@dataclass(frozen=True)
class Hostile:
    """An engine some of whose clients send something else than they learned."""

    inner: InProcess
    who: frozenset[str]
    attack: Attack

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        sent = {order.client: under(order.tensors, "global") for order in orders}
        return [self._told(reply, sent[reply.client]) for reply in self.inner.exchange(orders)]

    def _told(self, reply: Reply, start: Tensors) -> Reply:
        if reply.client not in self.who or reply.task != "train":
            return reply
        draw = rng(0, "attack", reply.round, reply.client)
        return replace(reply, tensors=self.attack(reply.tensors, start, draw))


def experiment(method: str, rule: str) -> Config:
    base = {
        "name": "attacked",
        "data": {"name": "digits-scanners"},
        "learning": {"batch": 16},
        "run": {"rounds": ROUNDS.get(method, 5), "evaluate_every": 100},
        "engine": {"together": 20},
        "merge": {"rule": rule},
    }
    return resolve([(base, "here"), (METHODS[method], "here")])


def attacked(method: str, rule: str, attack: str, share: float) -> dict[str, float]:
    """What came of a run some of whose clients are hostile; kept in a file."""
    file = FOLDER / f"{method}-{rule}-{attack}-{share}.json".replace(" ", "-")
    if file.exists():
        kept: dict[str, float] = json.loads(file.read_text())
        return kept
    config, home = experiment(method, rule), FOLDER / "run"
    shutil.rmtree(home, ignore_errors=True)
    folder = RunDir.create(home, config.toml(), {})
    job, clients = door.build(config, home / "private")
    names = sorted(clients)
    who = frozenset(names[: max(1, int(share * len(names)))] if attack else [])
    if attack == "label flip":
        clients = {name: _misled(own) if name in who else own for name, own in clients.items()}
    engine = Hostile(InProcess(job, clients, together=20), who, ATTACKS.get(attack, honest))
    run(job, engine, config.section("run"), folder)
    file.write_text(json.dumps(_came(folder, who)))
    return _came(folder, who)


def _misled(client: Client) -> Client:
    train = client.train
    return replace(client, train=Examples(train.x, 9 - train.y))


def _came(folder: RunDir, who: frozenset[str]) -> dict[str, float]:
    last = [row for row in folder.rows("clients.jsonl") if row["round"] > 0]
    right = [
        100 * row["test_correct"] / row["test_examples"] for row in last if row["client"] not in who
    ]
    refused = [client for row in folder.rows("rounds.jsonl") for client in row["refused"]]
    hostile = sum(client in who for client in refused)
    return {
        "accuracy": statistics.fmean(right),
        "hostile": hostile,
        "honest": len(refused) - hostile,
    }


def table(method: str, read: Callable[..., dict[str, float]]) -> str:
    """A row an attack, a column a rule; beside an accuracy, what was refused."""
    lines = [f"\n{method}", f"| attack, hostile | {' | '.join(RULES)} |", "|---" * 6 + "|"]
    rows = [("", 0.0), *((attack, share) for share in (0.05, 0.2) for attack in ATTACKS)]
    for attack, share in rows:
        cells = []
        for rule in RULES:
            came = read(method, rule, attack, share)
            beside = ""
            if came["hostile"] or came["honest"]:
                beside = f" ({came['hostile']:.0f} + {came['honest']:.0f} refused)"
            cells.append(f"{came['accuracy']:.1f}{beside}")
        who = f"{attack}, {20 * share:.0f} of 20" if attack else "none"
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    methods = [word for word in sys.argv[1:] if word in METHODS] or list(METHODS)
    for method in methods:
        print(table(method, attacked), flush=True)


if __name__ == "__main__":
    main()
