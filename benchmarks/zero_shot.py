"""What the model for photographs knows of real pictures before anything is trained: accuracy of the
prompt "a photo of a NAME.", beside the commonest class and what a CLIP reaches.

    FEDEXPERTS_DATA=FOLDER python benchmarks/zero_shot.py [section.key=value ...]

FOLDER holds pacs/STYLE/CLASS, cifar10/test/CLASS, flowers17/CLASS and dtd10/CLASS. Settings choose
another model: model.name=prompted-clip model.clip=NAME model.init=words model.context=4, say.
"""

import os
import sys
from pathlib import Path

import torch

from fedexperts import config as door
from fedexperts.data.examples import words
from fedexperts.data.features import features
from fedexperts.data.images import Folder, read

SETS = {  # where a set lies, what it is, and what OpenAI's CLIP ViT-B/32 is published to reach:
    # open_clip's docs/openclip_classification_results.csv, commit 05e7db4
    "pacs/photo": ("PACS, photo", "not in the list"),
    "pacs/art_painting": ("PACS, art", "not in the list"),
    "pacs/cartoon": ("PACS, cartoon", "not in the list"),
    "pacs/sketch": ("PACS, sketch", "not in the list"),
    "cifar10/test": ("CIFAR-10, 1,000 of its test pictures", "89.8, all of them"),
    "flowers17": ("17 flowers", "66.7, of 102 flowers"),
    "dtd10": ("ten of DTD's textures", "44.4, of all 47"),
}
SIDE = 224


def main() -> None:
    root = Path(os.environ["FEDEXPERTS_DATA"])
    experiment = door.load("configs/own/images/zero-shot.toml", sys.argv[1:])
    print("| pictures | classes | commonest class | zero-shot | CLIP ViT-B/32 |")
    print("|---|---|---|---|---|")
    for place, (name, published) in SETS.items():
        folders = sorted(folder for folder in (root / place).iterdir() if folder.is_dir())
        files = [(file, k) for k, folder in enumerate(folders) for file in sorted(folder.iterdir())]
        built, _ = door.modelled(experiment, tuple(words(folder.name) for folder in folders))
        names = [str(file.relative_to(root)) for file, _ in files]
        pixels, _ = read(Folder(root), names, SIDE)
        labels = torch.tensor([label for _, label in files])
        with torch.no_grad():
            x = features(pixels, built.encode, built.key, door.cache_folder())[:, 0]
            right = built.model.logits(built.model.initial, x).argmax(1) == labels
        chance = labels.bincount().max() / len(labels)
        found = f"{100 * chance:.1f} | {100 * right.float().mean():.1f}"
        print(f"| {name} | {len(folders)} | {found} | {published} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
