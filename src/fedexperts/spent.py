"""What a client has spent of its privacy, in a ledger on its own disk.

A round counts once: whoever asks for it again is sent what left before, and no new noise is drawn,
so that no two answers can be averaged. Where noise follows from the seed (a simulation), the round
is computed again and comes out the same. This room does not know how a client trains.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .message import Order
from .privacy import PrivacySettings, Use
from .private import Private
from .tensors import Tensors, named, under


@dataclass(frozen=True)
class Ledger:
    """A client's account before a round, and what the round would add to it."""

    settings: PrivacySettings
    round: int
    rows: Tensor  # [rounds before, 4]: round, noise, rate, times
    use: Use
    sent: Tensors | None  # what left when the round was asked for before

    @classmethod
    def opened(
        cls, settings: PrivacySettings, private: Private, order: Order, use: Use, deployed: bool
    ) -> "Ledger":
        """As the client's disk has it; ValueError if it is damaged or lost."""
        newest = private.ledger(order.client, kept=order.kept)
        rows = newest.get("rows", torch.zeros(0, 4, dtype=torch.float64))
        asked = bool((rows[:, 0] == order.round).any())
        if not deployed:
            rows, asked = rows[rows[:, 0] < order.round], False
        sent = None
        if asked:
            sent = under(private.ledger(order.client, order.round), "sent")
        return cls(settings, order.round, rows, use, sent)

    @property
    def epsilon(self) -> float:
        """In all, this round included."""
        uses = [Use(noise, rate, int(times)) for _, noise, rate, times in self.rows.tolist()]
        if self.sent is None:
            uses.append(self.use)
        return self.settings.total(uses)

    def refusal(self) -> str:
        """Why the client does not answer this round, or ""."""
        if self.sent is not None:
            if self.sent:
                return ""
            return (
                f"round {self.round} was answered before, and what was sent is not kept: to answer"
                " it anew would spend privacy twice"
            )
        if self.settings.beyond(self.epsilon):
            return (
                f"its privacy is spent: with this round epsilon would be {self.epsilon:.4g}, and"
                f" privacy.epsilon = {self.settings.epsilon:g}"
            )
        return ""

    def with_round(self, leaves: Tensors, deployed: bool) -> Tensors:
        """The ledger once this round has been answered; a site keeps what it sent."""
        row = torch.tensor([[self.round, *self.use]], dtype=torch.float64)
        sent = named("sent", leaves) if deployed else {}
        return {"rows": torch.cat([self.rows, row])} | sent
