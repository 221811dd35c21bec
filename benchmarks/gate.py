"""What the server's part of a Fed-MoE round costs, against a direct transcription of the paper's
equations.

    python benchmarks/gate.py

Twenty clients, four routed experts and a main one, compact CNNs, a reserve set of 100 images, five
passes for the gate. The transcription computes every expert anew in every step and fuses parameter
by parameter, as the equations read; ours computes the experts' answers once, because they do not
move while the gate is trained. Ratios within one run.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from clocks import seconds
from torch import Tensor, nn
from torch.func import functional_call

from fedexperts import config as door
from fedexperts.method import Upload
from fedexperts.methods.fedmoe import FedMoE
from fedexperts.model import as_mixture
from fedexperts.models.vision import compact_cnn
from fedexperts.provenance import program
from fedexperts.tensors import Tensors, sum_in_order, under

CLIENTS, EXPERTS, PASSES, RATE, BATCH, BETA, LAM = 20, 4, 5, 0.003, 16, 0.001, 0.1


def probabilities(module: nn.Module, weights: Tensors, x: Tensor) -> Tensor:
    """[B, C]"""
    logits: Tensor = functional_call(module, weights, (x,))
    return logits.softmax(-1)


def fused(before: Tensors, models: Sequence[Tensors], shares: Tensor) -> Tensors:
    """(1 - lambda) E + lambda sum_j w_j M_j, parameter by parameter."""
    after: Tensors = {}
    for name in before:
        added = sum_in_order(w * m[name] for w, m in zip(shares, models, strict=True))
        after[name] = ((1 - LAM) * before[name] + LAM * added).detach()
    return after


def direct(server: Tensors, models: Sequence[Tensors], x: Tensor, y: Tensor) -> None:
    """Steps B1 to B4 as written."""
    module, router = compact_cnn(2, 16, 10), compact_cnn(2, 16, EXPERTS)
    gate = {name: value.clone().requires_grad_() for name, value in under(server, "gate").items()}
    alpha = server["alpha"].clone().requires_grad_()
    certain = [probabilities(module, model, x).gather(1, y[:, None])[:, 0] for model in models]
    weights = probabilities(router, gate, x)
    experts = []
    for k in range(EXPERTS):
        relevance = torch.stack([(weights[:, k] * p).mean() for p in certain])
        experts.append(fused(under(server, f"expert.{k}"), models, relevance.softmax(0)))
    alike = torch.full([len(models)], 1 / len(models))
    main = fused(under(server, "main.0"), models, alike)
    optimizer = torch.optim.Adam(
        [{"params": list(gate.values()), "lr": RATE}, {"params": [alpha], "lr": 0.01}]
    )
    for _ in range(PASSES):
        for rows in torch.randperm(len(y)).split(BATCH):
            routing = probabilities(router, gate, x[rows])
            mixed = (1 - alpha) * probabilities(module, main, x[rows])
            for k, expert in enumerate(experts):
                mixed = mixed + alpha * routing[:, k, None] * probabilities(module, expert, x[rows])
            entropy = -(routing * routing.log()).sum(-1).mean()
            loss = -mixed.gather(1, y[rows, None]).log().mean() + BETA * entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    print(program())
    torch.set_num_threads(1)
    settings = ["start.epochs=0", f"mixture.experts={EXPERTS}", "mixture.mains=1"]
    config = door.load("configs/demo/fedmoe-digits/fedmoe-letter.toml", settings)
    job, _ = door.build(config, Path(tempfile.mkdtemp()))
    given, method = job.given, FedMoE(gate_epochs=PASSES, gate_rate=RATE)
    server, expert = method.open(given), as_mixture(job.model).expert.initial
    models = [
        {name: value + 0.1 * torch.randn_like(value) for name, value in expert.items()}
        for _ in range(CLIENTS)
    ]
    uploads = [Upload(f"client-{i:02d}", model, 40) for i, model in enumerate(models)]
    x, y = given.reserve.x[:, 0], given.reserve.y
    ours = seconds(lambda: method.merge(given, server, uploads, 1))
    transcribed = seconds(lambda: direct(server, models, x, y))
    print(f"{'a round of the server':32}times")
    print(f"{'ours':32}{1.0:5.1f}\n{'the equations, transcribed':32}{transcribed / ours:5.1f}")


if __name__ == "__main__":
    main()
