"""Who was in the training data? Attacks on what a client uploads, with and without noise.

    python benchmarks/membership.py

Real digits behind the tiny CLIP. A client has 100 of 200 scans, drawn by chance; so have 33 clients
that an attacker trains itself to know what to expect (shadows). It is told one upload, knows the
model, and must say of each of the 200 whether it was trained on, by

- its loss alone (one threshold for all: Yeom et al., 2018), or
- the likelihood of its confidence among shadows with and without it (LiRA: Carlini et al., 2022).

The prompt is what another client receives from pFedMoAP's pool, so those rows are what any client
can do. Area under the curve with its 95 % interval over 33 targets (each in turn, the others being
its shadows), and true positives in percent where 1 % are false, all targets' answers together.
"""

import math
import statistics
from collections.abc import Iterator
from functools import partial

import torch
from scipy.stats import rankdata, t
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedexperts import config as door
from fedexperts.config import resolve
from fedexperts.learn import Examples, Fitting, Learning, Local, fit
from fedexperts.model import Model
from fedexperts.noised import Noised
from fedexperts.privacy import noise_for
from fedexperts.tensors import Tensors, rng

POOL, MODELS, DELTA = 200, 34, 1e-5
STEPS = {"linear-probe": Learning(20, 16, rate=1.0), "prompted-clip": Learning(10, 16, rate=1.0)}


def opened(model: str) -> tuple[Model, Examples]:
    base = {
        "name": "members",
        "data": {"name": "digits-scanners", "scanners": 1},
        "model": {"name": model},
        "method": {"name": "fedavg"},
    }
    federation, built, seen, _ = door.parts(resolve([(base, "here")]))
    own = torch.cat([part.train for part in federation.parts.values()])[:POOL]
    return seen, Examples(built.encode(federation.inputs[own])[:, None], federation.labels[own])


def normal(draw: torch.Generator, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=draw)


def trained(model: Model, pool: Examples, inside: Tensor, how: Learning, epsilon: float) -> Tensor:
    """[models, examples]: how sure each trained model is of each example's label, as log odds."""
    sure = []

    def step(local: Local, x: Tensor) -> tuple[Tensor, Tensors]:
        return model.logits(local.trained, x), {}

    for number, mine in enumerate(inside):
        own, draw = Examples(pool.x[mine], pool.y[mine]), rng(0, "member", number)
        fitting = Fitting(step, how)
        if epsilon:
            rate, steps = how.batch / len(own), how.epochs * math.ceil(len(own) / how.batch)
            noise = noise_for(epsilon, DELTA, rate, steps)
            noised = Noised(1.0, [noise], [partial(normal, draw)], [len(own)])
            fitting = Fitting(step, how, private=noised)
        (ended,), _ = fit(fitting, [Local(model.initial)], [own], [draw])
        with torch.no_grad():
            loss = cross_entropy(model.logits(ended, pool.x[:, 0]), pool.y, reduction="none")
        loss = loss.double().clamp(1e-9, 30)
        sure.append(-loss - (1 - (-loss).exp()).log())
    return torch.stack(sure)


def by_likelihood(sure: Tensor, inside: Tensor) -> Iterator[Tensor]:
    """Each model's examples, by its shadows: all other models."""
    for target in range(len(sure)):
        shadows = torch.arange(len(sure)) != target
        known, member = sure[shadows], inside[shadows]
        score = torch.zeros(sure.shape[1], dtype=torch.float64)
        for example in range(sure.shape[1]):
            with_it, without = (known[member[:, example] == there, example] for there in (1, 0))
            spread = known[:, example].std().clamp_min(1e-6)  # of both: shadows are few
            far_in = (sure[target, example] - with_it.mean()) / spread
            far_out = (sure[target, example] - without.mean()) / spread
            score[example] = far_out.square() - far_in.square()
        yield score


def area(score: Tensor, member: Tensor) -> float:
    ranks = torch.from_numpy(rankdata(score.numpy()))
    count = int(member.sum())
    return float((ranks[member].sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


def told(scores: list[Tensor], inside: Tensor) -> str:
    areas = [area(score, mine) for score, mine in zip(scores, inside, strict=True)]
    half = t.ppf(0.975, len(areas) - 1) * statistics.stdev(areas) / math.sqrt(len(areas))
    middle = statistics.fmean(areas)
    every, member = torch.cat(scores), inside.flatten()
    limit = every[~member].quantile(0.99)
    caught = 100 * float((every[member] > limit).double().mean())
    return f"{middle:.3f} [{middle - half:.3f}, {middle + half:.3f}], {caught:.1f} %"


def main() -> None:
    torch.set_num_threads(1)
    print("| upload | epsilon | loss: area, caught at 1 % | LiRA: area, caught at 1 % |")
    print("|---|---|---|---|")
    for kind, how in STEPS.items():
        model, pool = opened(kind)
        draw = rng(0, "members")
        rows = [torch.randperm(POOL, generator=draw) < POOL // 2 for _ in range(MODELS)]
        inside = torch.stack(rows)
        for epsilon in (0.0, 8.0, 1.0):
            sure = trained(model, pool, inside, how, epsilon)
            cells = told(list(sure), inside), told(list(by_likelihood(sure, inside)), inside)
            print(f"| {kind} | {epsilon or 'none'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
