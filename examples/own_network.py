"""A network of one's own in a few lines: any torch.nn.Module, here under FedAvg and under Fed-MoE.

Run it: python examples/own_network.py. From a config: PYTHONPATH=examples and model.name =
"own_network:Perceptron".
"""

import sys
import tempfile
from dataclasses import dataclass

from torch import nn

import fedexperts as fx


@dataclass(frozen=True)
class Perceptron:
    hidden: int = 16

    def build(self, classes: tuple[str, ...], seed: int) -> fx.Built:
        """The model, what turns uint8 images [B, 3, H, W] into its inputs, and "": not worth
        keeping on disk.
        """

        def make() -> nn.Module:
            return nn.Sequential(
                nn.Flatten(),
                nn.Linear(64, self.hidden),
                nn.ReLU(),
                nn.Linear(self.hidden, len(classes)),
            )

        network = fx.Network(fx.seeded(make, seed), classes)
        return fx.Built(network, lambda images: images[:, :1, ::4, ::4] / 255 - 0.5, "")


if __name__ == "__main__":
    for method in ("fedavg", "fedmoe-letter"):
        settings = ["model.name=__main__:Perceptron", "run.rounds=5", *sys.argv[1:]]
        config = fx.load(f"configs/demo/fedmoe-digits/{method}.toml", settings)
        score = fx.run(config, tempfile.mkdtemp() + "/run").score
        print(
            f"{method}: the server {score.server:.1f} %, its clients {score.mean:.1f} % on average"
        )
