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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
from fedexperts.predict import Learned
from fedexperts.tensors import named, rng, under

SEEDS, FOLDS, DRAWS, FEW = (0,), range(5), range(5), 8
RUNS = {
    "pfedmoap": ("pfedmoap", {}),
    "kept prompts": ("pfedmoap", {"method.reset": False}),
    "averaged gates": ("pfedmoap", {"method.gates": "averaged"}),
    "fedmoe": ("fedmoe-digits/fedmoe", {}),
}
Answers = dict[str, Tensor]  # what is chosen -> logits
Choose = Callable[[Examples, Tensor], Answers]


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

    def newcomers(self, seed: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
        """Name, images and labels to choose by, images and labels of the test part."""
        whole = super().load(seed)
        for name, parts in whole.parts.items():
            if self.away(name):
                own = (parts.train, parts.test)
                train, test = ((whole.inputs[i], whole.labels[i]) for i in own)  # type: ignore[index]
                yield name, *train, *test


def name(kind: str, fold: int) -> str:
    return f"{kind.replace(' ', '-')}-without-{fold}"


def experiments() -> Iterator[Config]:
    for kind, (file, change) in RUNS.items():
        base = door.load(f"configs/demo/{file}.toml")
        data = {
            "data.name": "newcomer:LeftOut",
            "data.reserve": base.values["data"].get("reserve", 0),
        }
        for fold in FOLDS:
            yield variant(
                base,
                name(kind, fold),
                data | {"data.fold": fold, "run.evaluate_every": 40} | change,
            )


def prompts(predictor: Learned) -> Choose:
    """Of pFedMoAP's pool and the global prompt: the most useful ones, and all by likelihood."""
    model, server = predictor.model, predictor.server
    contexts = [server["global.context"], *under(server, "pool").values()]
    texts_NCD = torch.stack([model.texts(context) for context in contexts])  # type: ignore[attr-defined]
    return partial(_prompts, predictor, texts_NCD)


def _prompts(predictor: Learned, texts_NCD: Tensor, few: Examples, x: Tensor) -> Answers:
    model, context = predictor.model, predictor.server["global.context"]
    chosen_NBC, asked_NBC = (model.scale * shown @ texts_NCD.mT for shown in (few.x[:, 0], x))  # type: ignore[attr-defined]
    loss_N = torch.stack([cross_entropy(chosen, few.y, reduction="sum") for chosen in chosen_NBC])
    found = {
        f"mean of the best {K} prompts": asked_NBC[loss_N.argsort()[:K]].mean(0) for K in (1, 4)
    }
    found["all prompts, by likelihood"] = torch.einsum("n,nbc->bc", (-loss_N).softmax(0), asked_NBC)
    if gate := under(predictor.server, "global.gate"):
        best = loss_N[1:].argsort() + 1
        for what, experts in (
            ("no expert", best[:0]),
            ("the best 4", best[:4]),
            ("the worst 4", best[-4:]),
        ):
            local = Local(
                {"context": context} | named("gate", gate), {"experts": texts_NCD[experts]}
            )
            found[f"the shared gate, {what}"] = predictor.method.predictor(model, local).logits(x)
    return found


def experts(predictor: Learned) -> Choose:
    """Of Fed-MoE's mixture: step C's blend, by likelihood and as in training by the gate, too; the
    best expert.
    """
    return partial(_experts, predictor)


def _experts(predictor: Learned, few: Examples, x: Tensor) -> Answers:
    model, server, method = predictor.model, predictor.server, predictor.method
    own = [under(server, f"expert.{k}") for k in range(model.experts)]  # type: ignore[attr-defined]
    main = under(method.publish(server), "global")
    network = model.expert  # type: ignore[attr-defined]
    right_KB = torch.stack(
        [network.logits(e, few.x[:, 0]).softmax(-1).gather(1, few.y[:, None])[:, 0] for e in own]
    )
    gate_BK = model.gate.logits(under(server, "gate"), few.x[:, 0]).softmax(-1)  # type: ignore[attr-defined]
    found = {"the server's mixture": predictor.logits(x)}
    for what, relevance_K in (
        ("by likelihood", right_KB.mean(1)),
        ("by gate and likelihood", (gate_BK.T * right_KB).mean(1)),
    ):
        shares = method._shares(server, relevance_K[:, None])[:, 0].tolist()  # type: ignore[attr-defined]
        found[f"step C's blend, {what}"] = network.logits(mean([main, *own], shares), x)
    losses = [float(cross_entropy(network.logits(e, few.x[:, 0]), few.y)) for e in (main, *own)]
    found["the best expert"] = network.logits([main, *own][losses.index(min(losses))], x)
    return found


@torch.no_grad()
def right(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Newcomer, choice and accuracy, a row a draw."""
    shared = Learned.of(folder, "")
    data, seed = shared.config.section("data"), shared.config.values["run"]["seed"]
    known = shared.method.restore(shared.model, shared.method.publish(shared.server), None)
    others = (prompts if "pool" in {name.split(".")[0] for name in shared.server} else experts)(
        shared
    )
    for who, images, labels, asked, truth in data.newcomers(seed):
        given, x = shared.built.encode(images), shared.built.encode(asked)
        for draw in DRAWS:
            chosen = torch.randperm(len(labels), generator=rng(seed, "few", draw, who))[:FEW]
            few = Examples(given[chosen][:, None], labels[chosen])
            answers = {"what all share": shared.method.logits(shared.model, known, x)}
            answers |= {"--like": shared.like(few).logits(x)} | others(few, x)
            for what, answer in answers.items():
                yield (
                    f"{who} {seed}",
                    what,
                    100 * float((answer.argmax(-1) == truth).float().mean()),
                )


def table(out: Path) -> Iterator[str]:
    yield (
        "| run | choice | accuracy | to what all share | worse | better"
        " |\n|---|---|---|---|---|---|"
    )
    for kind in RUNS:
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for fold in FOLDS:
            for seed in SEEDS:
                for who, what, accuracy in right(out / name(kind, fold) / f"seed-{seed}"):
                    found[what][who].append(accuracy)
        shared = found["what all share"]
        for what, own in found.items():
            ahead = {
                who: [a - b for a, b in zip(own[who], shared[who], strict=True)] for who in own
            }
            each, draws = (
                [statistics.fmean(d) for d in ahead.values()],
                [a for d in ahead.values() for a in d],
            )
            error = statistics.stdev(each) / math.sqrt(len(each))
            worse, better = (
                100 * sum(sign * a > 0 for a in draws) / len(draws) for sign in (-1, 1)
            )
            level = statistics.fmean(a for accuracies in own.values() for a in accuracies)
            gain = (
                f"{statistics.fmean(each):+.1f} ± {error:.1f}" if what != "what all share" else ""
            )
            yield f"| {kind} | {what} | {level:.1f} | {gain} | {worse:.0f} % | {better:.0f} % |"


def main() -> None:
    torch.set_num_threads(1)
    out = run(list(experiments()), SEEDS, __doc__ or "", Path("runs/newcomer"))
    print("\n".join(table(out)))


if __name__ == "__main__":
    main()
