"""A mixture of experts as a model: main experts that are always on, routed experts, and a gate over
them.

    y(x) = (1 - alpha) E_main(x) + alpha * sum_k G_k(x) E_k(x)        (Fed-MoE, IJCAI 2025/610, eq.
    1)

E are probabilities, so the logits of a mixture are log y(x), and its cross-entropy is -log
y(x)[label]. Every expert is one and the same model with tensors of its own. This room knows neither
what the experts compute nor who trains them.

Shapes: B inputs, C classes, K routed experts, M main experts.
"""

from textwrap import indent

import torch
from torch import Tensor
from torch.func import vmap

from ..model import MixtureModel, Model, Portable
from ..tensors import Tensors, named, stack, under

LEAST = 1e-9  # probability whose logarithm is still taken


class Mixture(MixtureModel):
    """Tensors `main.i.*` and `expert.k.*`, each a whole expert, `gate.*`, and `alpha` where there
    is a main expert.

    All experts start from the expert's own start, in storage of their own; the gate starts from its
    model's. ValueError if the gate has not a logit for each routed expert.
    """

    def __init__(self, expert: Model, gate: Model, mains: int, top: int) -> None:
        self.expert, self.gate, self.mains, self.top = expert, gate, mains, top
        self.classes, self.experts = expert.classes, len(gate.classes)
        self.device = expert.device
        self.together = expert.together and gate.together
        if not 1 <= top <= self.experts:
            raise ValueError(
                f"mixture.top = {top} of {self.experts} experts; expected 1 to {self.experts}"
            )

        self.initial = self._start()
        parts = [("gate", gate), *((name, expert) for name in self._names())]
        self.buffers = frozenset(f"{name}.{key}" for name, part in parts for key in part.buffers)

    def _start(self) -> Tensors:
        tensors = named("gate", self.gate.initial)
        for name in self._names():
            own = {key: value.clone() for key, value in self.expert.initial.items()}
            tensors |= named(name, own)
        if self.mains:
            tensors["alpha"] = torch.tensor(0.5)
        return tensors

    def having(self, expert: Model, gate: Model) -> "Mixture":
        return Mixture(expert, gate, self.mains, self.top)

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """[B, C]: log y(x) with every expert and the gate in training, and what moved in them."""
        weights_BK, moved = _step(self.gate, tensors, "gate", x)
        outputs = []
        for name in self._names():
            output_BC, of_one = _step(self.expert, tensors, name, x)
            outputs.append(output_BC)
            moved |= of_one
        outputs_EBC = torch.stack(outputs)
        return (
            self.mix(tensors, outputs_EBC[: self.mains], outputs_EBC[self.mains :], weights_BK),
            moved,
        )

    def _names(self) -> list[str]:
        return [
            *(f"main.{i}" for i in range(self.mains)),
            *(f"expert.{k}" for k in range(self.experts)),
        ]

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: log y(x), every expert computed and weighed."""
        routed_KBC = self.probabilities(tensors, "expert", x)
        return self.mix(
            tensors, self.probabilities(tensors, "main", x), routed_KBC, self.weigh(tensors, x)
        )

    def predict(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: log y(x) of the main experts and the `top` routed ones, renormalised; no other
        one is computed.
        """
        weights_BK = self.routed(tensors, x)
        routed_BC = weights_BK.new_zeros(len(x), len(self.classes))
        for k in weights_BK.any(0).nonzero().flatten().tolist():
            rows = weights_BK[:, k].nonzero().flatten()
            own_BC = self.expert.logits(under(tensors, f"expert.{k}"), x[rows]).softmax(-1)
            routed_BC[rows] += weights_BK[rows, k, None] * own_BC
        return self._with_main(tensors, self.probabilities(tensors, "main", x), routed_BC)

    def routed(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the weights of the `top` routed experts, renormalised; 0 for all others."""
        weights_BL, chosen_BL = self.weigh(tensors, x).topk(self.top, dim=-1)
        share_BL = weights_BL / weights_BL.sum(-1, keepdim=True)
        return share_BL.new_zeros(len(x), self.experts).scatter(1, chosen_BL, share_BL)

    def weigh(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, K]: the gate's softmax."""
        return self.gate.logits(under(tensors, "gate"), x).softmax(-1)

    def portable(self, tensors: Tensors, sparse: bool = False) -> Portable:
        """The same as `predict` if sparse, else as `logits`, for which the best are all. Every
        expert is computed.
        """
        gate = self.gate.portable(under(tensors, "gate"))
        experts = {name: self.expert.portable(under(tensors, name)) for name in self._names()}
        expert = next(iter(experts.values()))
        counts = {
            "mains": self.mains,
            "experts": self.experts,
            "top": self.top if sparse else self.experts,
            "least": LEAST,
        }
        carried = named("gate", gate.tensors)
        for name, each in experts.items():
            carried |= named(name, each.tensors)
        if self.mains:
            carried["alpha"] = tensors["alpha"].clamp(0, 1)
        code = _CODE.format(expert=indent(expert.code, "    "), gate=indent(gate.code, "    "))
        return Portable(
            carried, counts | {"expert": expert.numbers, "gate": gate.numbers}, _FORMULA, code
        )

    def probabilities(self, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
        """[E, B, C]: probabilities from each of the experts `main.*` or `expert.*`."""
        count = self.mains if prefix == "main" else self.experts
        experts = [under(tensors, f"{prefix}.{i}") for i in range(count)]
        if not experts:
            return x.new_zeros(0, len(x), len(self.classes), dtype=torch.float32)
        if self.together and count > 1:
            outputs_EBC: Tensor = vmap(self.expert.logits, (0, None))(stack(experts), x)
        else:
            outputs_EBC = torch.stack([self.expert.logits(expert, x) for expert in experts])
        return outputs_EBC.softmax(-1)

    def mix(
        self, tensors: Tensors, mains_MBC: Tensor, routed_KBC: Tensor, weights_BK: Tensor
    ) -> Tensor:
        """[B, C]: log y(x) from the experts' answers and the routed experts' weights."""
        return self._with_main(
            tensors, mains_MBC, torch.einsum("bk,kbc->bc", weights_BK, routed_KBC)
        )

    def _with_main(self, tensors: Tensors, mains_MBC: Tensor, routed_BC: Tensor) -> Tensor:
        if self.mains:
            alpha = tensors["alpha"].clamp(0, 1)
            routed_BC = (1 - alpha) * mains_MBC.mean(0) + alpha * routed_BC
        return routed_BC.clamp_min(LEAST).log()


_FORMULA = """`x` is the input. Every expert is one and the same network, with weights of its own, and says
probabilities. The gate's softmax weighs the routed experts, of which the `top` best speak, renormalised. With main
experts, which always speak, the answer is (1 - alpha) * main + alpha * routed. The logits are its logarithm."""  # noqa: E501

_CODE = """def part(name):
    return {{key.removeprefix(name + "."): value for key, value in t.items() if key.startswith(name + ".")}}


def make_expert(t, n):
{expert}
    return logits


def make_gate(t, n):
{gate}
    return logits


gate = make_gate(part("gate"), n["gate"])
mains = [make_expert(part(f"main.{{i}}"), n["expert"]) for i in range(n["mains"])]
experts = [make_expert(part(f"expert.{{k}}"), n["expert"]) for k in range(n["experts"])]


def logits(x):
    shares = gate(x).softmax(-1)
    best, chosen = shares.topk(n["top"])
    weights = torch.zeros_like(shares).scatter(1, chosen, best / best.sum(-1, keepdim=True))
    answer = torch.einsum("bk,kbc->bc", weights, torch.stack([expert(x).softmax(-1) for expert in experts]))
    if mains:
        main = torch.stack([expert(x).softmax(-1) for expert in mains]).mean(0)
        answer = (1 - t["alpha"]) * main + t["alpha"] * answer
    return answer.clamp_min(n["least"]).log()"""  # noqa: E501


def _step(model: Model, tensors: Tensors, prefix: str, x: Tensor) -> tuple[Tensor, Tensors]:
    """Probabilities of a part in training, and what moved in it."""
    logits, moved = model.step(under(tensors, prefix), x)
    return logits.softmax(-1), named(prefix, moved)
