"""Data of one's own: any torch Dataset or arrays, divided among clients by a split of one's own.

Here five clinics are filled in the order in which their patients came, and are tested on the
newest. Run it: python examples/own_data.py. From a config: PYTHONPATH=examples and data.name =
"own_data:Clinics".
"""

import sys
import tempfile
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import fedexperts as fx

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def dataset() -> TensorDataset:
    """Stands for any Dataset of images with labels: floats [1, 8, 8] from 0 to 1, and a number."""
    scans = load_digits()
    return TensorDataset(torch.tensor(scans.images)[:, None] / 16, torch.tensor(scans.target))


@dataclass(frozen=True)
class Clinics:
    clients: int = 5

    def load(self, seed: int) -> fx.Federation:
        scans = dataset()
        images, labels = zip(*(scans[i] for i in range(len(scans))), strict=True)
        # what every model expects: whole numbers from 0 to 255 in three channels, [N, 3, H, W]
        pixels = (255 * torch.stack(images)).to(torch.uint8).repeat(1, 3, 1, 1)
        pixels = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
        parts = {}
        for clinic, own in enumerate(torch.arange(len(pixels)).chunk(self.clients)):
            valid, test = int(0.6 * len(own)), int(0.8 * len(own))
            parts[f"clinic-{clinic}"] = fx.Parts(own[:valid], own[valid:test], own[test:])
        return fx.Federation(
            inputs=pixels,  # or a tuple of texts
            labels=torch.stack(labels).long(),
            classes=CLASSES,
            parts=parts,  # of each client, which examples: checked to be at one client, in one part
            domains=dict.fromkeys(parts, "one scanner"),
        )


if __name__ == "__main__":
    settings = ["data.name=__main__:Clinics", "learning.rate=0.3", "run.rounds=5"]
    config = fx.load("configs/demo/promptfl.toml", [*settings, *sys.argv[1:]])
    results = fx.run(config, tempfile.mkdtemp() + "/run")
    print("after each evaluated round, in %:", results.scores, sep="\n")
