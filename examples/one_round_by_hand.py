"""One round of pFedMoAP by hand, without the loop, the engine and the run folder: every step is one
function call.

Run it: python examples/one_round_by_hand.py
"""

import tempfile
from pathlib import Path

import fedexperts as fx

config = fx.load("configs/demo/pfedmoap.toml", ["learning.rate=0.3", "method.experts=3"])
job, sites = fx.build(config, private=Path(tempfile.mkdtemp()))
server = job.method.open(job.given)  # named tensors: the global prompt, and soon a pool of prompts
clients = list(sites.values())[:5]

for round in (1, 2):
    # the server writes an order to every client: the global prompt and, from the second round on,
    # three experts
    sent = job.method.send(server, [c.name for c in clients], round, job.seed)
    orders = [fx.Order(name, round, "train", payload.tensors) for name, payload in sent.items()]

    # every client trains; what it keeps lies on its own disk, what it replies is its prompt and
    # nothing else
    replies = fx.answer(job, clients, orders)
    uploads = [fx.Upload(r.client, r.tensors, r.examples) for r in replies]

    # the server overwrites the pool and averages the prompts
    server = job.method.merge(job.given, server, uploads, round)
    for reply in replies:
        received = sent[reply.client].facts.get("received") or "the global prompt alone"
        print(
            f"round {round}: {reply.client} got {received}; loss {reply.facts['loss']:.2f};"
            f" sends {list(reply.tensors)}"
        )

payload = job.method.publish(server)
for reply in fx.answer(job, clients, [fx.Order(c.name, 2, "predict", payload) for c in clients]):
    facts = reply.facts
    print(f"{reply.client}: {facts['test_correct']} of {facts['test_examples']} right")
