"""A method of one's own in thirty lines: every client starts between the global prompt and the one
it had.

Run it: python examples/own_method.py. From a config: PYTHONPATH=examples and method.name =
"own_method:Between".
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import fedexperts as fx


@dataclass(frozen=True)
class Between(fx.Method):
    share: float = fx.option(0.5, says="of the own prompt in the start; 0: FedAvg", ge=0, le=1)

    def uploads(self, model: fx.Model) -> frozenset[str]:
        return frozenset(model.initial)

    def merge(
        self, given: fx.Given, server: fx.Tensors, uploads: Sequence[fx.Upload], round: int
    ) -> fx.Tensors:
        average = given.averaged(uploads)
        return fx.named("global", average)

    def start(
        self, model: fx.Model, sent: fx.Tensors, own: fx.Tensors | None, rng: torch.Generator
    ) -> fx.Local:
        shared = fx.under(sent, "global")
        return fx.Local(fx.mean([own or shared, shared], [self.share, 1 - self.share]))

    def finish(self, model: fx.Model, local: fx.Local) -> fx.Finished:
        return fx.Finished(stays=local.trained, leaves=local.trained)

    def restore(self, model: fx.Model, sent: fx.Tensors, own: fx.Tensors | None) -> fx.Local:
        return fx.Local(own or fx.under(sent, "global"))


if __name__ == "__main__":
    for share in (0.0, 0.5):
        settings = [
            "method.name=__main__:Between",
            f"method.share={share}",
            "learning.rate=0.3",
            "run.rounds=5",
        ]
        config = fx.load("configs/demo/promptfl.toml", [*settings, *sys.argv[1:]])
        score = fx.run(config, tempfile.mkdtemp() + "/run").score
        print(
            f"share {share}: {score.mean:.1f} % on average, {score.worst:.1f} % at the worst client"
        )
