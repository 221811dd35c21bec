"""What the server's part of a Fed-MoE round costs, against a direct transcription of the paper's
equations.

    python benchmarks/gate.py

Twenty clients, four routed experts and a main one, compact CNNs, a reserve set of 100 images, five
passes for the gate. The transcription computes every expert anew in every step and fuses parameter
by parameter, as the equations read; ours computes the experts' answers once, because they do not
move while the gate is trained. Ratios within one run.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch.func import functional_call

from fedexperts import config as door
from fedexperts.method import Upload
from fedexperts.methods.fedmoe import FedMoE
from fedexperts.models.vision import compact_cnn
from fedexperts.tensors import under

PASSES, RATE, BATCH, BETA, LAM = 5, 0.003, 16, 0.001, 0.1


def direct(server, models, x, y):
    """Steps B1 to B4 as written."""
    module, router = compact_cnn(2, 16, 10), compact_cnn(2, 16, 4)
    experts = [under(server, f"expert.{k}") for k in range(4)]
    main, gate, alpha = (
        under(server, "main.0"),
        under(server, "gate"),
        server["alpha"].clone().requires_grad_(),
    )
    responses = [
        functional_call(module, m, (x,)).softmax(-1).gather(1, y[:, None])[:, 0] for m in models
    ]
    weights = functional_call(router, gate, (x,)).softmax(-1)
    for k, expert in enumerate(experts):
        row = torch.stack([(weights[:, k] * p).mean() for p in responses]).softmax(0)
        for name in expert:
            expert[name] = (1 - LAM) * expert[name] + LAM * sum(
                w * m[name] for w, m in zip(row, models, strict=True)
            )
    for name in main:
        main[name] = (1 - LAM) * main[name] + LAM * sum(m[name] for m in models) / len(models)
    experts, main = (
        [{n: v.detach() for n, v in e.items()} for e in experts],
        {n: v.detach() for n, v in main.items()},
    )
    gate = {name: value.clone().requires_grad_() for name, value in gate.items()}
    optimizer = torch.optim.Adam(
        [{"params": list(gate.values()), "lr": RATE}, {"params": [alpha], "lr": 0.01}]
    )
    for _ in range(PASSES):
        for rows in torch.randperm(len(y)).split(BATCH):
            routing = functional_call(router, gate, (x[rows],)).softmax(-1)
            answer = (1 - alpha) * functional_call(module, main, (x[rows],)).softmax(-1)
            for k, expert in enumerate(experts):
                answer = answer + alpha * routing[:, k, None] * functional_call(
                    module, expert, (x[rows],)
                ).softmax(-1)
            entropy = -(routing * routing.log()).sum(-1).mean()
            loss = -answer.gather(1, y[rows, None]).log().mean() + BETA * entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def seconds(act):
    """Processor seconds, the fastest of five."""
    times = []
    for _ in range(5):
        began = time.process_time()
        act()
        times.append(time.process_time() - began)
    return min(times)


def main():
    torch.set_num_threads(1)
    config = door.load("configs/demo/fedmoe-digits/fedmoe-letter.toml", ["start.epochs=0"])
    job, _ = door.build(config, Path(tempfile.mkdtemp()))
    given, method = job.given, FedMoE(gate_epochs=PASSES, gate_rate=RATE)
    server, expert = method.open(given), job.model.expert.initial
    models = [
        {name: value + 0.1 * torch.randn_like(value) for name, value in expert.items()}
        for _ in range(20)
    ]
    uploads = [Upload(f"client-{i:02d}", model, 40) for i, model in enumerate(models)]
    x, y = given.reserve.x[:, 0], given.reserve.y
    ours = seconds(lambda: method.merge(given, server, uploads, 1))
    transcribed = seconds(lambda: direct(server, models, x, y))
    print(f"{'a round of the server':32}times")
    print(f"{'ours':32}{1.0:5.1f}\n{'the equations, transcribed':32}{transcribed / ours:5.1f}")


if __name__ == "__main__":
    main()
