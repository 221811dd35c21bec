"""Who was in the training data? Attacks on what a client uploads, with and without noise.

    python benchmarks/membership.py [digits] [pacs]          goes on where it was stopped

digits: real digits behind the tiny CLIP. pacs: PACS in FEDEXPERTS_DATA, heads and sums on the
features of a classifier, prompts of the model for photographs. A client has 100 of 200 images,
drawn by chance; so have 16 clients that an attacker trains itself to know what to expect (shadows).
It is told one upload, knows the model, and must say of each of the 200 if it was in training, by

- its loss alone (one threshold for all: Yeom et al., 2018), or
- the likelihood of its confidence among shadows with and without it (LiRA: Carlini et al., 2022).

The prompt is what another client receives from pFedMoAP's pool, so that row is what any client can
do. A mean of `gaussian-sums` is attacked as one client's own upload, without masks: what the server
would see without them, and what a sum over one client would give away.

Area under the curve with its 95 % interval over 17 targets (each in turn, the others being its
shadows), and true positives in percent where 1 % are false, all targets' answers together. Noise is
for one round of this length at delta 1e-5.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import rankdata, t
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedexperts import config as door
from fedexperts.config import Config, load, resolve
from fedexperts.learn import Examples, Fitting, Learning, Local, fit
from fedexperts.methods.leaning import LeaningExperts
from fedexperts.model import Model
from fedexperts.noised import Noised
from fedexperts.privacy import noise_for
from fedexperts.tensors import rng

FOLDER = Path("runs/membership")
CONFIGS = Path(__file__).parents[1] / "configs/benchmark/pacs-few"
POOL, MODELS, DELTA = 200, 17, 1e-5
EPSILONS = (0.0, 8.0, 1.0)
HOW = {
    "linear-probe": Learning(20, 16, rate=1.0),
    "prompted-clip": Learning(5, 16, rate=1.0),
    "prompted-dual": Learning(5, 16, rate=1.0),
}
UPLOADS = {
    "linear-probe": "head",
    "prompted-clip": "prompt",
    "prompted-dual": "prompt",
    "sums": "class sums",
}


def on_digits(model: str) -> Config:
    base: dict[str, Any] = {
        "name": "members",
        "data": {"name": "digits-scanners", "scanners": 1},
        "model": {"name": model},
        "method": {"name": "fedavg"},
    }
    return resolve([(base, "here")])


def on_pacs(model: str) -> Config:
    file = "promptfl.toml" if model == "prompted-dual" else "linear-probe-fedavg.toml"
    return load(CONFIGS / file, ["data.shots=8"])


SETS: dict[str, tuple[Callable[[str], Config], tuple[str, ...]]] = {
    "digits": (on_digits, ("linear-probe", "prompted-clip", "sums")),
    "pacs": (on_pacs, ("linear-probe", "prompted-dual", "sums")),
}


def opened(config: Config) -> tuple[Model, Examples]:
    """The model, and the first images that clients train on, a share of each client's."""
    job, clients = door.build(config, FOLDER / "private")
    each = math.ceil(POOL / len(clients))
    own = [client.train for client in clients.values()]
    x, y = (torch.cat([getattr(part, name)[:each] for part in own])[:POOL] for name in "xy")
    return job.model, Examples(x, y)


def normal(draw: torch.Generator, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=draw)


# ---- how sure what was uploaded is of each example's label, [examples]


def of_training(
    model: Model, pool: Examples, mine: Tensor, number: int, how: Learning, epsilon: float
) -> Tensor:
    """Log odds of the label under what one client trained."""
    own, draw = Examples(pool.x[mine], pool.y[mine]), rng(0, "member", number)
    fitting = Fitting(lambda local, x: (model.logits(local.trained, x), {}), how)
    if epsilon:
        rate, steps = how.batch / len(own), how.epochs * math.ceil(len(own) / how.batch)
        noise = noise_for(epsilon, DELTA, rate, steps)
        noised = Noised(1.0, [noise], [partial(normal, draw)], [len(own)])
        fitting = Fitting(fitting.step, how, private=noised)
    (ended,), _ = fit(fitting, [Local(model.initial)], [own], [draw])
    with torch.no_grad():
        return _odds(model.logits(ended, pool.x[:, 0]), pool.y)


def of_sums(model: Model, pool: Examples, mine: Tensor, number: int, epsilon: float) -> Tensor:
    """How far each example lies along the mean of its class that one client uploads."""
    own, draw = Examples(pool.x[mine], pool.y[mine]), rng(0, "member", number)
    method = LeaningExperts()
    said = method.observe(model, Local({}), own)
    if epsilon:
        deviation = noise_for(epsilon, DELTA, 1.0, 1) * method.sensitivity() / len(own)
        said = {n: v + deviation * normal(draw, v.shape) for n, v in sorted(said.items())}
    return (pool.x[:, 0] * said["sum"][pool.y]).sum(1).double()


def _odds(logits: Tensor, y: Tensor) -> Tensor:
    loss = cross_entropy(logits, y, reduction="none").double().clamp(1e-9, 30)
    return -loss - (1 - (-loss).exp()).log()


def sureness(kind: str, model: Model, pool: Examples, inside: Tensor, epsilon: float) -> Tensor:
    """[models, examples]"""
    if kind == "sums":
        rows = [of_sums(model, pool, mine, i, epsilon) for i, mine in enumerate(inside)]
    else:
        how = HOW[kind]
        rows = [of_training(model, pool, mine, i, how, epsilon) for i, mine in enumerate(inside)]
    return torch.stack(rows)


# ---- attacks


def by_likelihood(sure: Tensor, inside: Tensor) -> Iterator[Tensor]:
    """Each model's examples, by its shadows: all other models."""
    for target in range(len(sure)):
        shadows = torch.arange(len(sure)) != target
        known, member = sure[shadows], inside[shadows].double()
        with_it = (known * member).sum(0) / member.sum(0).clamp_min(1)
        without = (known * (1 - member)).sum(0) / (1 - member).sum(0).clamp_min(1)
        spread = known.std(0).clamp_min(1e-6)  # of both: shadows are few
        far_in, far_out = (sure[target] - with_it) / spread, (sure[target] - without) / spread
        yield far_out.square() - far_in.square()


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


def row(name: str, kind: str, epsilon: float) -> list[str]:
    """A line of the table; kept in a file."""
    file = FOLDER / f"{name}-{kind}-{epsilon}.json"
    if file.exists():
        kept: list[str] = json.loads(file.read_text())
        return kept
    configured = SETS[name][0]
    model, pool = opened(configured("linear-probe" if kind == "sums" else kind))
    draw = rng(0, "members")
    inside = torch.stack([torch.randperm(POOL, generator=draw) < POOL // 2 for _ in range(MODELS)])
    sure = sureness(kind, model, pool, inside, epsilon)
    cells = [told(list(sure), inside), told(list(by_likelihood(sure, inside)), inside)]
    file.write_text(json.dumps(cells))
    return cells


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    print("| data, upload | epsilon | loss: area, caught at 1 % | LiRA: area, caught at 1 % |")
    print("|---|---|---|---|")
    for name in [word for word in sys.argv[1:] if word in SETS] or SETS:
        for kind in SETS[name][1]:
            for epsilon in EPSILONS:
                cells = " | ".join(row(name, kind, epsilon))
                print(f"| {name}, {UPLOADS[kind]} | {epsilon or 'none'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
