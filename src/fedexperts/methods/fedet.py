"""Fed-ET: clients of several architectures, and a larger network at the server that learns from all
of them.

Cho, Manoel, Joshi, Sim, Dimitriadis: "Heterogeneous Ensemble Knowledge Transfer for Training Large
Models in Federated Learning", IJCAI 2022, arXiv:2204.12703. Of the paper no more than its
introduction could be read here: the steps are those that public notes and re-implementations agree
on. The reserve set's labels are not used. This room knows a network's tensors by the number of its
kind (models/family.py), and not what it is.

Shapes: m clients of a round, R reserve examples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..learn import Examples, Local
from ..method import Given, Sent, Upload, needs_reserve
from ..model import Model, taught
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, rng, under
from .fedavg import Keeping
from .kinds import kind_of

TOP = "top"  # the last layer, which networks of all kinds have alike


@dataclass(frozen=True)
class FedET(Keeping):
    """Small networks of several kinds teach a large one at the server (arXiv:2204.12703).

    Networks of one kind are averaged, by their clients' examples; re-implementations take them
    alike. The layer that all have alike (the paper's representation layers) becomes the mean of
    everybody's at the server. The server's network learns what clients agree on, and some of what
    those who disagree say, if anybody does. Then all take over its layer.
    """

    epochs: int = option(5, says="passes over the reserve set", ge=1)
    distil_rate: float = option(0.003, says="learning rate of these passes", gt=0)
    diversity: float = option(0.05, says="lambda, weight of what those who disagree say", ge=0)
    clients: dict[str, int] = option(
        {},
        says="a client's network by its number in model.kinds, of which 0 is the server's, as in"
        ' { "clinic-2" = 1 }; who is not named draws one by its name',
    )

    def fits(self, model: Model, reserve: int) -> None:
        needs_reserve(reserve, "fedet")
        if _kinds(model.initial) < 2:
            raise ValueError(
                "fedet needs networks of several kinds, the server's and clients'; set model.name ="
                ' "family"'
            )
        for client, kind in self.clients.items():
            if not 0 < kind < _kinds(model.initial):
                raise ValueError(
                    f'method.clients = {{"{client}" = {kind}}}: expected the number of a network of'
                    f" clients, 1 to {_kinds(model.initial) - 1}"
                )

    def kind(self, client: str, kinds: int) -> int:
        """The number of a client's network."""
        return kind_of(client, self.clients, range(1, kinds), "architecture")

    # ---- server

    def uploads(self, model: Model) -> frozenset[str]:
        return frozenset(name for name in model.initial if not name.startswith("kind.0."))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        shared = under(server, "global")
        return _of(shared, self.kind(client, _kinds(shared)))

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        shared = under(server, "global")
        kinds = _kinds(shared)
        return {
            client: Sent(named("global", _of(shared, self.kind(client, kinds))))
            for client in clients
        }

    def publish(self, server: Tensors) -> Tensors:
        """The first of the small networks, which stands for all where a client has none."""
        return named("global", _of(under(server, "global"), 1))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        shared = under(server, "global")
        kinds = range(1, _kinds(shared))
        groups = {kind: [u for u in uploads if _of(u.tensors, kind)] for kind in kinds}
        for group in filter(None, groups.values()):
            shared |= given.averaged(group)
        tops = [_top(upload.tensors, kind) for kind in kinds for upload in groups[kind]]
        examples = [float(upload.examples) for kind in kinds for upload in groups[kind]]
        shared |= named(f"kind.0.{TOP}", given.average(tops, examples))
        x_R = given.reserve.x
        with torch.no_grad():
            said_mRC = torch.stack([given.model.logits(u.tensors, x_R[:, 0]) for u in uploads])
        soft = Examples(x_R, self._target(said_mRC))
        learning = replace(given.learning, epochs=self.epochs, rate=self.distil_rate)
        draws = rng(given.seed, "distil", round)
        shared |= taught(given.model, _of(shared, 0), soft, learning, draws)
        for kind in kinds:
            shared |= named(f"kind.{kind}.{TOP}", _top(shared, 0))
        return named("global", shared)

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


def _consensus(said_mRC: Tensor, who_mR: Tensor) -> Tensor:
    """[R, C]: the mean of some clients' logits, each weighed by how far its own vary over the
    classes.
    """
    sure_mR = who_mR * said_mRC.var(-1, unbiased=False)
    weight_mR = sure_mR / sure_mR.sum(0).clamp_min(1e-12)
    return (weight_mR[..., None] * said_mRC).sum(0)


def _kinds(tensors: Tensors) -> int:
    """How many there are, the server's among them."""
    return len({name.split(".")[1] for name in tensors if name.startswith("kind.")})


def _of(tensors: Tensors, kind: int) -> Tensors:
    return named(f"kind.{kind}", under(tensors, f"kind.{kind}"))


def _top(tensors: Tensors, kind: int) -> Tensors:
    return under(tensors, f"kind.{kind}.{TOP}")
