"""Clients trained together against one at a time: processor seconds of the same round, as ratios
within one run.

    python benchmarks/together.py

Ten clients of digits-scanners behind the tiny CLIP, PromptFL and pFedMoAP (K = 4); the third round,
with experts.
"""

import tempfile
import time
from pathlib import Path

from fedexperts import config as door
from fedexperts.engine import InProcess
from fedexperts.loop import exchange
from fedexperts.method import Upload
from fedexperts.provenance import program

GROUPS, ROUNDS, CLIENTS = (1, 2, 5, 10), 3, 10


def seconds(method: str, together: int) -> float:
    """Processor time of the third round's training."""
    config = door.load(f"configs/demo/{method}.toml", ["learning.rate=0.1"])
    job, sites = door.build(config, Path(tempfile.mkdtemp()))
    engine = InProcess(job, sites, together)
    names = engine.clients()[::2][:CLIENTS]
    server, spent = job.method.open(job.given), 0.0
    for round in range(1, ROUNDS + 1):
        began = time.process_time()
        sent = job.method.send(server, names, round, job.seed)
        payloads = {name: each.tensors for name, each in sent.items()}
        expected = {name: job.method.expects(server, job.model, name) for name in names}
        replies = exchange(job, engine, payloads, round, "train", expected)
        spent = time.process_time() - began
        uploads = [Upload(r.client, r.tensors, r.examples) for r in replies.values()]
        server = job.method.merge(job.given, server, uploads, round)
    return spent


def main() -> None:
    print(program())
    print(f"{'together':10}" + "".join(f"{group:>8}" for group in GROUPS))
    for method in ("promptfl", "pfedmoap"):
        spent = [seconds(method, group) for group in GROUPS]
        print(f"{method:10}" + "".join(f"{spent[0] / s:7.1f}x" for s in spent))


if __name__ == "__main__":
    main()
