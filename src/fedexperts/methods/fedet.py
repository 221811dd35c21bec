"""Fed-ET: clients of several architectures, and a larger network at the server that learns from all
of them.

Cho, Manoel, Joshi, Sim, Dimitriadis: "Heterogeneous Ensemble Knowledge Transfer for Training Large
Models in Federated Learning", IJCAI 2022, arXiv:2204.12703. The reserve set's labels are not used.
This room knows a network's tensors by the number of its kind (models/family.py), and not what it
is.

Shapes: m clients of a round, R reserve examples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..learn import Examples, Local
from ..method import Finished, Given, Method, Sent, Upload, needs_reserve
from ..model import Model, taught
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under


@dataclass(frozen=True)
class FedET(Method):
    """Small networks of several kinds teach a large one at the server (arXiv:2204.12703).

    Networks of one kind are averaged; the server's own learns what clients agree on, and some of
    what those who disagree say.
    A client's kind is drawn by its name. The paper's last step, in which small networks take over
    layers of the large one, is left out: here they have none in common.
    """

    epochs: int = option(5, says="passes over the reserve set", ge=1)
    distil_rate: float = option(0.003, says="learning rate of these passes", gt=0)
    diversity: float = option(0.05, says="lambda, weight of what those who disagree say", ge=0)

    def fits(self, model: Model, reserve: int) -> None:
        needs_reserve(reserve, "fedet")
        if _kinds(model.initial) < 2:
            raise ValueError(
                "fedet needs networks of several kinds, the server's and clients'; set model.name ="
                ' "family"'
            )

    # ---- server

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(name for name in model.initial if not name.startswith("kind.0."))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        shared = under(server, "global")
        return _of(shared, _drawn(client, _kinds(shared)))

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        shared = under(server, "global")
        kinds = _kinds(shared)
        return {
            client: Sent(named("global", _of(shared, _drawn(client, kinds)))) for client in clients
        }

    def publish(self, server: Tensors) -> Tensors:
        """The first of the small networks, which stands for all where a client has none."""
        return named("global", _of(under(server, "global"), 1))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        shared = under(server, "global")
        for kind in range(1, _kinds(shared)):
            group = [
                u for u in uploads if all(name.startswith(f"kind.{kind}.") for name in u.tensors)
            ]
            if group:
                shared |= given.averaged(group)
        x_R = given.reserve.x
        with torch.no_grad():
            said_mRC = torch.stack([given.model.logits(u.tensors, x_R[:, 0]) for u in uploads])
        soft = Examples(x_R, self._target(said_mRC))
        learning = replace(given.learning, epochs=self.epochs, rate=self.distil_rate)
        draws = rng(given.seed, "distil", round)
        large = taught(given.model, _of(shared, 0), soft, learning, draws)
        return named("global", shared | large)

    def _target(self, said_mRC: Tensor) -> Tensor:
        """[R, C]: CE(pseudo-label, h) + lambda KL(dissent, h) is, but for a constant, the
        cross-entropy of h with their sum.
        """
        C = said_mRC.shape[-1]
        label_R = _consensus(said_mRC, torch.ones(said_mRC.shape[:2])).argmax(-1)
        apart_mR = (said_mRC.argmax(-1) != label_R).float()
        dissent_RC = _consensus(said_mRC, apart_mR).softmax(-1)
        anybody_R1 = apart_mR.amax(0)[:, None]
        return one_hot(label_R, C) + self.diversity * anybody_R1 * dissent_RC

    def served(self, model: Model, server: Tensors) -> Predictor:
        return Predictor(model, Local(_of(under(server, "global"), 0)))

    # ---- client

    def start(
        self, model: Model, sent: Tensors, own: Tensors | None, rng: torch.Generator
    ) -> Local:
        return Local(under(sent, "global"))

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(named("trained", local.trained), leaves=local.trained)

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        if own:
            return Local(under(own, "trained"))
        return Local(under(sent, "global"))


def _consensus(said_mRC: Tensor, who_mR: Tensor) -> Tensor:
    """[R, C]: the mean of some clients' logits, each weighed by how far its own vary over the
    classes.
    """
    sure_mR = who_mR * said_mRC.var(-1, unbiased=False)
    weight_mR = sure_mR / sure_mR.sum(0).clamp_min(1e-12)
    return (weight_mR[..., None] * said_mRC).sum(0)


def _drawn(client: str, kinds: int) -> int:
    """A client's kind, which its name alone decides."""
    return 1 + int(torch.randint(kinds - 1, (), generator=rng(0, "architecture", client=client)))


def _kinds(tensors: Tensors) -> int:
    """How many there are, the server's among them."""
    return len({name.split(".")[1] for name in tensors if name.startswith("kind.")})


def _of(tensors: Tensors, kind: int) -> Tensors:
    return named(f"kind.{kind}", under(tensors, f"kind.{kind}"))
