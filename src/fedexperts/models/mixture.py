"""A mixture of experts as a model: main experts that are always on, routed experts, and a gate over them.

    y(x) = (1 - alpha) E_main(x) + alpha * sum_k G_k(x) E_k(x)        (Fed-MoE, IJCAI 2025/610, eq. 1)

E are probabilities, so the logits of a mixture are log y(x), and its cross-entropy is -log y(x)[label]. Every expert is
one and the same model with tensors of its own. This room knows neither what the experts compute nor who trains them.

Shapes: B inputs, C classes, K routed experts, M main experts.
"""

import torch
from torch import Tensor
from torch.func import vmap

from ..method import Model, device, moving, step
from ..tensors import Tensors, named, stack, under

LEAST = 1e-9  # probability whose logarithm is still taken


class Mixture:
    """Tensors `main.i.*` and `expert.k.*`, each a whole expert, `gate.*`, and `alpha` where there is a main expert.

    All experts start from the expert's own start, in storage of their own; the gate starts from its model's.
    ValueError if the gate has not a logit for each routed expert.
    """

    def __init__(self, expert: Model, gate: Model, mains: int, top: int) -> None:
        self.expert, self.gate, self.mains, self.top = expert, gate, mains, top
        self.classes, self.experts = expert.classes, len(gate.classes)
        self.device = device(expert)
        self.together = getattr(expert, "together", True) and getattr(gate, "together", True)
        if not 1 <= top <= self.experts:
            raise ValueError(f"mixture.top = {top} of {self.experts} experts; right would be 1 to {self.experts}")

    @property
    def initial(self) -> Tensors:
        tensors = named("gate", self.gate.initial)
        for name in self._names():
            tensors |= named(name, {key: value.clone() for key, value in self.expert.initial.items()})
        return tensors | ({"alpha": torch.tensor(0.5)} if self.mains else {})

    @property
    def moving(self) -> frozenset[str]:
        """What moves by itself in the experts and in the gate."""
        parts = [("gate", self.gate), *((name, self.expert) for name in self._names())]
        return frozenset(f"{name}.{key}" for name, part in parts for key in moving(part))

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """[B, C]: log y(x) with every expert and the gate in training, and what moved in them."""
        weights_BK, moved = _step(self.gate, tensors, "gate", x)
        answers = []
        for name in self._names():
            answer_BC, of_one = _step(self.expert, tensors, name, x)
            answers.append(answer_BC)
            moved |= of_one
        answers_EBC = torch.stack(answers)
        return self.mix(tensors, answers_EBC[: self.mains], answers_EBC[self.mains :], weights_BK), moved

    def _names(self) -> list[str]:
        return [*(f"main.{i}" for i in range(self.mains)), *(f"expert.{k}" for k in range(self.experts))]

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: log y(x), every expert computed and weighed."""
        routed_KBC = self.answers(tensors, "expert", x)
        return self.mix(tensors, self.answers(tensors, "main", x), routed_KBC, self.weigh(tensors, x))

    def predict(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: log y(x) of the main experts and the `top` routed ones, renormalised; no other one is computed."""
        weights_BK = self.routed(tensors, x)
        routed_BC = weights_BK.new_zeros(len(x), len(self.classes))
        for k in weights_BK.any(0).nonzero().flatten().tolist():
            rows = weights_BK[:, k].nonzero().flatten()
            answer = self.expert.logits(under(tensors, f"expert.{k}"), x[rows]).softmax(-1)
            routed_BC[rows] += weights_BK[rows, k, None] * answer
        return self._with_main(tensors, self.answers(tensors, "main", x), routed_BC)

    def routed(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the weights of the `top` routed experts, renormalised; 0 for all others."""
        weights_BL, chosen_BL = self.weigh(tensors, x).topk(self.top, dim=-1)
        share_BL = weights_BL / weights_BL.sum(-1, keepdim=True)
        return share_BL.new_zeros(len(x), self.experts).scatter(1, chosen_BL, share_BL)

    def weigh(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the gate's softmax."""
        return self.gate.logits(under(tensors, "gate"), x).softmax(-1)

    def answers(self, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
        """[E, B, C]: probabilities from each of the experts `main.*` or `expert.*`."""
        count = self.mains if prefix == "main" else self.experts
        experts = [under(tensors, f"{prefix}.{i}") for i in range(count)]
        if not experts:
            return x.new_zeros(0, len(x), len(self.classes), dtype=torch.float32)
        if self.together and count > 1:
            answers_EBC: Tensor = vmap(self.expert.logits, (0, None))(stack(experts), x)
        else:
            answers_EBC = torch.stack([self.expert.logits(expert, x) for expert in experts])
        return answers_EBC.softmax(-1)

    def mix(self, tensors: Tensors, mains_MBC: Tensor, routed_KBC: Tensor, weights_BK: Tensor) -> Tensor:
        """[B, C]: log y(x) from the experts' answers and the routed experts' weights."""
        return self._with_main(tensors, mains_MBC, torch.einsum("bk,kbc->bc", weights_BK, routed_KBC))

    def _with_main(self, tensors: Tensors, mains_MBC: Tensor, routed_BC: Tensor) -> Tensor:
        if self.mains:
            alpha = tensors["alpha"].clamp(0, 1)
            routed_BC = (1 - alpha) * mains_MBC.mean(0) + alpha * routed_BC
        return routed_BC.clamp_min(LEAST).log()


def _step(model: Model, tensors: Tensors, prefix: str, x: Tensor) -> tuple[Tensor, Tensors]:
    """Probabilities of a part in training, and what moved in it."""
    logits, moved = step(model, under(tensors, prefix), x)
    return logits.softmax(-1), named(prefix, moved)
