"""A metric of one's own: how sure every client is of its answers, beside how often it is right.

A number leaves a client only if its method declares it, with what it may be; the report draws it.
Run it: python examples/own_metric.py. From a config:
PYTHONPATH=examples and method.name = "own_metric:Sure".
"""

import sys
import tempfile
from dataclasses import dataclass

from torch import Tensor

import fedexperts as fx


class Confident(fx.Predictor):
    def metrics(self, x: Tensor, y: Tensor) -> fx.Facts:
        probabilities = self.logits(x).softmax(-1)
        return {"confidence": float(probabilities.max(-1).values.mean())}


@dataclass(frozen=True)
class Sure(fx.FedAvg):
    def predictor(self, model: fx.Model, local: fx.Local) -> Confident:
        return Confident(self.trains(model), local)

    def declares(self) -> fx.Declared:
        confidence = fx.Metric(
            name="confidence",
            title="How sure are clients?",
            unit="probability",
            says="mean probability of the class that is answered; 1: sure of every answer",
            allowed=fx.Figure(least=0, most=1),  # the server refuses what lies outside
        )
        return fx.Declared(metrics=(confidence,))


if __name__ == "__main__":
    settings = ["method.name=__main__:Sure", "learning.rate=0.3", "run.rounds=5"]
    config = fx.load("configs/demo/promptfl.toml", [*settings, *sys.argv[1:]])
    results = fx.run(config, tempfile.mkdtemp() + "/run")
    last = results.clients.loc[5]
    print(last[["accuracy", "confidence"]].to_string())
    print(f"{last.accuracy.mean():.1f} % right, {100 * last.confidence.mean():.1f} % sure")
    print(f"drawn in {results.report()}")
