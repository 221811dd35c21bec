"""Who takes part, and what all agree on before the first round: `Client` and `Job`.

This room does not know how an order is answered, nor where.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from .admission import Guard, Terms
from .answers import SAYS_CONFUSION, SAYS_REACH
from .average import MergeSettings, noised_mean, outliers
from .declared import Facts
from .learn import Examples, Learning
from .method import Given, Method
from .model import Model
from .privacy import PrivacySettings
from .private import Private
from .tensors import Normal, Tensors, normal_of_this_machine, rng
from .upload import UploadSettings


@dataclass(frozen=True)
class Client:
    """One party of a run: its name, its three disjoint sets of examples, its own disk."""

    name: str
    train: Examples
    valid: Examples
    test: Examples
    private: Private
    # since its data were split: how many came, how many went
    changed: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What the server and every client agree on before the first round."""

    method: Method
    model: Model
    learning: Learning
    rounds: int
    seed: int
    reserve: Examples  # the server's own, which no client ever sees
    # where a simulation has them: all clients' "valid" and "test" parts in one
    exam: Mapping[str, Examples]
    guard: Guard = field(default_factory=Guard)  # what the server takes of an upload
    merge: MergeSettings = field(default_factory=MergeSettings)  # how uploads become one
    upload: UploadSettings = field(default_factory=UploadSettings)  # what is done to what leaves
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    # whether this is one site of many machines, and not a simulation of them all
    deployed: bool = False
    # whether clients say, after the last round, which class they take for which; it tells how many
    # examples of each class they have
    confusion: bool = True
    # where a simulation keeps classes from training: examples of these, to test on
    unseen: Examples | None = None
    # all clients' training examples in one, where a simulation is asked whether they can be told
    members: Examples | None = None

    @property
    def given(self) -> Given:
        return Given(self.model, self.reserve, self.learning, self.seed, self.merge.average)

    def merging(self, round: int, heaviest: float | None = None) -> Given:
        """The same for a round's merge: the server's own noise is in its mean, of whose weights
        `heaviest` is the largest share, where uploads came as their sum.
        """
        if not (self.private and self.privacy.noised_by == "server"):
            return self.given
        noise = self.privacy.use(1, 1, 1, self.rounds).noise * self.privacy.clip
        normal = self.normal("server noise", round)
        return replace(
            self.given, average=partial(noised_mean, noise=noise, normal=normal, share=heaviest)
        )

    @property
    def private(self) -> bool:
        return self.privacy.unit != "none"

    @property
    def noises_sums(self) -> bool:
        """Whether clients' examples are hidden in what they say of them, not in their steps."""
        return self.privacy.unit == "example" and self.method.sensitivity() > 0

    def normal(self, use: str, round: int, client: str = "") -> Normal:
        """Where noise comes from. A machine's of its own is its own: who has the server knows the
        run's seed.
        """
        if self.deployed:
            return normal_of_this_machine
        generator = rng(self.seed, use, round, client)
        return lambda shape: torch.randn(shape, generator=generator)

    def outliers(self, uploads: Mapping[str, Tensors]) -> dict[str, str]:
        """Whose uploads join no pool, and why, if the merge is to bear hostile clients."""
        if not self.merge.robust or self.method.reads() != "uploads":
            return {}
        return outliers(uploads, self.merge.apart)

    @property
    def terms(self) -> Terms:
        says = self.method.declares().says() | (SAYS_CONFUSION if self.confusion else {})
        says |= SAYS_REACH if self.unseen else {}
        return Terms(
            self.guard,
            says,
            self.trained.buffers,
            len(self.model.classes),
            self.private,
            self.upload.secure,
        )

    def confusion_after(self, round: int) -> bool:
        """Whether a client's confusion matrix is told after this round."""
        return self.confusion and round == self.rounds

    @property
    def unasked(self) -> int:
        """Clients that are computed at once where nobody says how many; 0: as many as is fastest.

        A method of one's own is not stacked unasked, as it may read single numbers.
        """
        return 0 if type(self.method).__module__.startswith("fedexperts.") else 1

    @property
    def trained(self) -> Model:
        """What clients train."""
        return self.method.trains(self.model)
