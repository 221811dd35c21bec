"""What the reserve set alone can do, and what it adds to averaging: two baselines of Fed-MoE (IJCAI
2025/610).

Cent-MoE is its table's row "reserve set only". FedAvg tuned on the reserve set is the control that
the table lacks: Fed-MoE's server trains on that set, so FedAvg's should, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..declared import Declared
from ..learn import Local
from ..method import Finished, Given, Sent, Upload, needs_reserve
from ..model import Model, taught
from ..options import option
from ..tensors import Tensors, named, rng, under
from .fedavg import Alone, FedAvg


@dataclass(frozen=True)
class Central(Alone):
    """The model, a mixture or any other, trained on the reserve set before the first round; rounds
    change nothing.
    """

    epochs: int = option(20, says="passes over the reserve set", ge=1)
    rate: float = option(0.003, says="learning rate of these passes", gt=0)

    def declares(self) -> Declared:
        return Declared()

    def fits(self, model: Model, reserve: int) -> None:
        needs_reserve(reserve)

    def open(self, given: Given) -> Tensors:
        return named("global", _tuned(given, given.model.initial, self.epochs, self.rate, 0))

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        return dict.fromkeys(clients, Sent(self.publish(server)))

    def finish(self, model: Model, local: Local) -> Finished:
        return Finished(stays={}, leaves={})

    def restore(self, model: Model, sent: Tensors, own: Tensors | None) -> Local:
        return Local(under(sent, "global"))


@dataclass(frozen=True)
class FineTuned(FedAvg):
    """FedAvg whose average is tuned on the reserve set after every merge, and published as that."""

    epochs: int = option(1, says="passes over the reserve set", ge=1)
    tune_rate: float = option(0.001, says="learning rate of these passes", gt=0)
    keep: bool = option(
        True, says="the next round starts at the tuned model, or else at the plain average"
    )

    def fits(self, model: Model, reserve: int) -> None:
        needs_reserve(reserve)

    def publish(self, server: Tensors) -> Tensors:
        return named("global", under(server, "tuned")) or super().publish(server)

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        return dict.fromkeys(clients, Sent(super().publish(server)))

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        plain = super().merge(given, server, uploads, round)
        tuned = _tuned(given, under(plain, "global"), self.epochs, self.tune_rate, round)
        return named("global", tuned) if self.keep else plain | named("tuned", tuned)


def _tuned(given: Given, tensors: Tensors, epochs: int, rate: float, round: int) -> Tensors:
    """The model after some passes over the reserve set, with the clients' batches and optimiser."""
    learning = replace(given.learning, epochs=epochs, rate=rate)
    return taught(given.model, tensors, given.reserve, learning, rng(given.seed, "reserve", round))
