"""HeteroFL and FedRolex: weak clients train a part of each layer of the server's network.

Diao, Ding, Tarokh: "HeteroFL", ICLR 2021, arXiv:2010.01264; Alam et al.: "FedRolex", NeurIPS 2022,
arXiv:2212.01548. This room does not know how a network is cut (slim.py).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..learn import Local
from ..method import Given, Sent, Upload
from ..model import Model
from ..options import option
from ..predictor import Predictor
from ..tensors import Tensors, named, under
from . import slim
from .fedavg import Keeping
from .kinds import kind_of


@dataclass(frozen=True)
class HeteroFL(Keeping):
    """Clients of several widths train one network: the first units of each layer (arXiv:2010.01264,
    equation 2) or, if `rolling`, a window that moves on each round (FedRolex, arXiv:2212.01548,
    algorithm 1).

    Each number of the network becomes the mean over the clients that trained it. HeteroFL's scaler
    and masked loss are left out. A client predicts with the sub-model that it trained last; the
    whole network is the server's.
    """

    widths: list[float] = option(
        [1.0, 0.5], says="shares of each layer; a client's is drawn from these by its name"
    )
    clients: dict[str, float] = option(
        {},
        says='a client\'s share, as in { "clinic-2" = 0.5 }; who is not named draws one',
    )
    rolling: bool = option(False, says="the window moves on by one step each round (FedRolex)")

    def __post_init__(self) -> None:
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(
                f"widths = {self.widths}: expected shares above 0 and up to 1, as in [1.0, 0.5]"
            )
        for client, width in self.clients.items():
            if width not in self.widths:
                raise ValueError(
                    f'clients = {{"{client}" = {width}}}: expected one of widths = {self.widths}'
                )

    def fits(self, model: Model, reserve: int) -> None:
        hidden = slim.hidden(model)
        for width in self.widths:
            slim.window(model.initial, hidden, width)

    def width_of(self, client: str) -> float:
        """A client's share of each layer."""
        return kind_of(client, self.clients, self.widths, "width")

    # ---- server

    def open(self, given: Given) -> Tensors:
        return super().open(given) | named("hidden", slim.hidden(given.model))

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        return self._cut(server, self.width_of(client), 0)

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        by_width = {width: self._cut(server, width, round) for width in {*self.widths}}
        return {
            client: Sent(named("global", by_width[self.width_of(client)])) for client in clients
        }

    def publish(self, server: Tensors) -> Tensors:
        """The narrowest sub-model, which every client can hold."""
        return named("global", self._cut(server, min(self.widths), 0))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        """Each number's mean over the clients that have it, by their examples; all others stay."""
        groups: dict[float, list[Upload]] = defaultdict(list)
        for upload in uploads:
            groups[self.width_of(upload.client)].append(upload)
        shared = under(server, "global")
        total = {name: torch.zeros_like(value).double() for name, value in shared.items()}
        weight = {name: torch.zeros_like(value).double() for name, value in shared.items()}
        for width, group in groups.items():
            examples = [float(upload.examples) for upload in group]
            averaged = given.average([upload.tensors for upload in group], examples)
            positions = self._window(server, width, round)
            for name, value in averaged.items():
                slim.add(total[name], sum(examples) * value.double(), positions[name])
                slim.add(weight[name], torch.tensor(sum(examples)).double(), positions[name])
        trained = {
            name: torch.where(weight[name] > 0, total[name] / weight[name].clamp_min(1), value).to(
                value.dtype
            )
            for name, value in shared.items()
        }
        return server | named("global", trained)

    def served(self, model: Model, server: Tensors) -> Predictor:
        return Predictor(model, Local(under(server, "global")))

    def _cut(self, server: Tensors, width: float, round: int) -> Tensors:
        return slim.cut(under(server, "global"), self._window(server, width, round))

    def _window(self, server: Tensors, width: float, round: int) -> slim.Window:
        turn = round if self.rolling else 0
        return slim.window(under(server, "global"), under(server, "hidden"), width, turn)
