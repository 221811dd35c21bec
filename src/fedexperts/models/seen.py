"""What a frozen model has seen: whether it can know the classes of these data, said before anything
is trained.

This room loads no model; it is handed one, or the plain values of a config.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..tensors import rng
from .built import Built

ASKED = 128  # examples, at most
CHARACTERS = ("digits-scanners", "digits-pathological")  # data that the tiny CLIP can know


def unfit(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Why an experiment's model cannot be expected to know its data, with what to use; "" if there
    is no reason.
    """
    model, data = values["model"], values["data"]
    if model.get("clip") != "tinyclip" or model.get("classifier") or data["name"] in CHARACTERS:
        return ""
    return (
        "The tiny CLIP has seen written characters and nothing else. On other images its figures"
        " say nothing of what a real model would reach. For photographs: pip install"
        " 'fedexperts[photos]' and --set model.name=prompted-dual, or a CLIP by --set"
        " model.clip=NAME."
    )


@torch.no_grad()
def zero_shot(built: Built, inputs: Any, labels: Tensor) -> str:
    """How many of some examples a model with plain prompts gets right, beside chance; "" for a
    model without prompts.
    """
    if built.plain is None or not len(inputs):
        return ""
    model = built.plain()
    some = torch.randperm(len(inputs), generator=rng(0, "zero-shot"))[:ASKED]
    predicted = model.logits(model.initial, built.encode(inputs[some])).argmax(1)
    share = float((predicted == labels[some]).float().mean())
    chance = float(labels.bincount().max()) / len(labels)
    says = (
        f"Zero-shot, {100 * share:.0f} % of {len(some)} images are right; always naming the"
        f" commonest class, {100 * chance:.0f} % would be."
    )
    if share < chance + 2 * sqrt(chance * (1 - chance) / len(some)):
        says += " So this model does not know these classes."
    return says
