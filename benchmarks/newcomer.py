"""What do a few labelled images give a client that never trained? Choices among experts against
what all share.

    python benchmarks/newcomer.py            10 minutes on two cores; goes on where it was stopped
    python benchmarks/newcomer.py --print    the tables alone

Digits with four scanners and 20 clients, of whom four, one of each scanner, stay away from a run;
five runs, so that everybody is a newcomer once. Each newcomer draws 8 labelled images from its own
training part, five times, and is asked on its own test part: mean accuracy in percent over
newcomers and draws. ± is the standard error over newcomers of the difference to what all share;
worse and better count draws. `--like` is what `predict --like` does: one choice, and what all share
where that does better on the 8 images.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from grid import run, variant
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedexperts import config as door
from fedexperts.average import mean
from fedexperts.config import Config
from fedexperts.data.digits import DigitsScanners
from fedexperts.data.federation import Federation
from fedexperts.learn import Examples, Local
from fedexperts.methods.fedmoe import FedMoE
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.model import PromptModel, as_mixture
from fedexperts.predict import Learned
from fedexperts.tensors import named, rng, under

SEEDS, FOLDS, DRAWS, FEW = (0,), range(5), range(5), 8
SHARED = "what all share"
RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "pfedmoap": ("pfedmoap", {}),
    "kept prompts": ("pfedmoap", {"method.reset": False}),
    "averaged gates": ("pfedmoap", {"method.gates": "averaged"}),
    "fedmoe": ("fedmoe-digits/fedmoe", {}),
}
Logits = dict[str, Tensor]  # what is chosen -> [B, C]
Choose = Callable[[Examples, Tensor], Logits]
Accuracies = Mapping[str, list[float]]  # of a choice: newcomer -> a value a draw


class Newcomer(NamedTuple):
    """A client that stayed away: images and labels to choose by, and those of the test part."""

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, kw_only=True)
class LeftOut(DigitsScanners):
    """The demo's clients without one of each scanner."""

    fold: int = 0

    def load(self, seed: int) -> Federation:
        whole = super().load(seed)
        stay = {name: parts for name, parts in whole.parts.items() if not self.away(name)}
        return replace(whole, parts=stay, domains={name: whole.domains[name] for name in stay})

    def away(self, name: str) -> bool:
        return int(name.rpartition("-")[2]) // self.scanners == self.fold

    def newcomers(self, seed: int) -> Iterator[Newcomer]:
        whole = super().load(seed)
        images, labels = whole.inputs, whole.labels
        assert isinstance(images, Tensor)
        for name, own in whole.parts.items():
            if self.away(name):
                shown, asked = own.train, own.test
                yield Newcomer(name, images[shown], labels[shown], images[asked], labels[asked])


def name(kind: str, fold: int) -> str:
    return f"{kind.replace(' ', '-')}-without-{fold}"


def experiments() -> Iterator[Config]:
    for kind, (file, change) in RUNS.items():
        base = door.load(f"configs/demo/{file}.toml")
        reserve = base.values["data"].get("reserve", 0)
        shared = {"data.name": "newcomer:LeftOut", "data.reserve": reserve} | change
        for fold in FOLDS:
            changes = {"data.fold": fold, "run.evaluate_every": 40}
            yield variant(base, name(kind, fold), shared | changes)


def choices(learned: Learned) -> Choose:
    """What may be chosen of a run's experts, beside what `predict --like` does."""
    if isinstance(learned.method, PFedMoAP):
        return prompts(learned, learned.method)
    assert isinstance(learned.method, FedMoE)
    return experts(learned, learned.method)


def prompts(learned: Learned, method: PFedMoAP) -> Choose:
    """Of pFedMoAP's pool and the global prompt: the most useful ones, and all by likelihood."""
    model, server = learned.model, learned.server
    assert isinstance(model, PromptModel)
    shared, scale = server["global.context"], model.scale
    gate = named("gate", under(server, "global.gate"))
    contexts = [shared, *under(server, "pool").values()]
    texts_NCD = torch.stack([model.texts(context) for context in contexts])

    def choose(few: Examples, x: Tensor) -> Logits:
        chosen_NBC = scale * few.x[:, 0] @ texts_NCD.mT
        asked_NBC = scale * x @ texts_NCD.mT
        loss_N = torch.stack([cross_entropy(one, few.y, reduction="sum") for one in chosen_NBC])
        likely_N = (-loss_N).softmax(0)
        best = loss_N.argsort()
        logits = {f"mean of the best {K} prompts": asked_NBC[best[:K]].mean(0) for K in (1, 4)}
        logits["all prompts, by likelihood"] = torch.einsum("n,nbc->bc", likely_N, asked_NBC)
        if not gate:
            return logits
        others = loss_N[1:].argsort() + 1
        few_experts = {"no expert": others[:0], "the best 4": others[:4]}
        few_experts["the worst 4"] = others[-4:]
        for what, some in few_experts.items():
            local = Local({"context": shared} | gate, {"experts": texts_NCD[some]})
            logits[f"the shared gate, {what}"] = method.predictor(model, local).logits(x)
        return logits

    return choose


def experts(learned: Learned, method: FedMoE) -> Choose:
    """Of Fed-MoE's mixture: step C's blend, by likelihood and as in training by the gate, too; the
    best expert.
    """
    mixture, server = as_mixture(learned.model), learned.server
    network, gate = mixture.expert, under(server, "gate")
    main = under(method.publish(server), "global")
    routed = [under(server, f"expert.{k}") for k in range(mixture.experts)]
    every = [main, *routed]

    def choose(few: Examples, x: Tensor) -> Logits:
        shown, labels_B1 = few.x[:, 0], few.y[:, None]
        certain = [network.logits(e, shown).softmax(-1).gather(1, labels_B1)[:, 0] for e in routed]
        right_KB = torch.stack(certain)
        gate_BK = mixture.gate.logits(gate, shown).softmax(-1)
        relevances_K = {
            "by likelihood": right_KB.mean(1),
            "by gate and likelihood": (gate_BK.T * right_KB).mean(1),
        }
        logits = {"the server's mixture": learned.logits(x)}
        for what, relevance_K in relevances_K.items():
            shares = method._shares(server, relevance_K[:, None])[:, 0].tolist()
            logits[f"step C's blend, {what}"] = network.logits(mean(every, shares), x)
        losses = [float(cross_entropy(network.logits(one, shown), few.y)) for one in every]
        logits["the best expert"] = network.logits(every[losses.index(min(losses))], x)
        return logits

    return choose


@torch.no_grad()
def right(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Newcomer, choice and accuracy, a row a draw."""
    learned = Learned.of(folder, "")
    data: LeftOut = learned.config.section("data")
    seed: int = learned.config.values["run"]["seed"]
    known = learned.method.restore(learned.model, learned.method.publish(learned.server), None)
    shared = learned.method.predictor(learned.model, known)
    choose = choices(learned)
    for new in data.newcomers(seed):
        given, x = learned.built.encode(new.images), learned.built.encode(new.test_images)
        for draw in DRAWS:
            dice = rng(seed, "few", draw, new.name)
            chosen = torch.randperm(len(new.labels), generator=dice)[:FEW]
            few = Examples(given[chosen][:, None], new.labels[chosen])
            logits = {SHARED: shared.logits(x), "--like": learned.like(few).logits(x)}
            for what, one in (logits | choose(few, x)).items():
                hits = (one.argmax(-1) == new.test_labels).float()
                yield f"{new.name} {seed}", what, 100 * float(hits.mean())


def measured(kind: str, out: Path) -> dict[str, Accuracies]:
    """Of each choice, over folds and seeds."""
    accuracies: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fold in FOLDS:
        for seed in SEEDS:
            for who, what, accuracy in right(out / name(kind, fold) / f"seed-{seed}"):
                accuracies[what][who].append(accuracy)
    return {**accuracies}


def gain(own: Accuracies, shared: Accuracies) -> str:
    """Three cells: how far a choice is above what all share, and in how many draws below and
    above.
    """
    ahead = {who: [a - b for a, b in zip(own[who], shared[who], strict=True)] for who in own}
    each = [statistics.fmean(differences) for differences in ahead.values()]
    draws = [difference for differences in ahead.values() for difference in differences]
    error = statistics.stdev(each) / math.sqrt(len(each))
    worse = 100 * sum(difference < 0 for difference in draws) / len(draws)
    better = 100 * sum(difference > 0 for difference in draws) / len(draws)
    return f"{statistics.fmean(each):+.1f} ± {error:.1f} | {worse:.0f} % | {better:.0f} %"


def table(out: Path) -> Iterator[str]:
    yield "| run | choice | accuracy | to what all share | worse | better |"
    yield "|---|---|---|---|---|---|"
    for kind in RUNS:
        accuracies = measured(kind, out)
        for what, own in accuracies.items():
            level = statistics.fmean(value for values in own.values() for value in values)
            yield f"| {kind} | {what} | {level:.1f} | {gain(own, accuracies[SHARED])} |"


def main() -> None:
    torch.set_num_threads(1)
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/newcomer"))
    print("\n".join(table(out)))


if __name__ == "__main__":
    main()
