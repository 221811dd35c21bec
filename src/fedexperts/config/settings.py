"""Sections of a config that belong to no other room: a run, its common start, a mixture of experts.

This room holds plain values; it reads no file and builds nothing.
"""

from dataclasses import dataclass
from typing import Literal

from ..loop import Schedule
from ..options import option


@dataclass(frozen=True)
class RunSettings(Schedule):
    """Who takes part when, from which seed."""

    seed: int = option(0, says="seed of splits, few-shot draws, sampling, starts and batches", ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto",
        says='where models compute; "auto": a CUDA or Apple GPU, if torch finds one',
    )
    threads: int = option(
        1, says="threads of one computation; another number may round sums differently", ge=1
    )
    pooled: bool = option(
        False,
        says="whoever trains has all clients' training examples, as only a simulation can: an"
        " upper bound",
    )
    counts: bool = option(
        False,
        says="whether split.json and an export's card say how many examples of each class a"
        " client has",
    )
    judged_by: Literal["clients", "server"] = option(
        "clients",
        says="whose validation accuracy chooses rates and rounds: each client's own, or the"
        " server's",
    )
    confusion: bool = option(
        False,
        says="whether sites of a deployment that allow it say, after the last round, which class"
        " they take for which; simulated clients always do",
    )
    membership: bool = option(
        False,
        says="whether a simulation says, after the last round, how well a loss under what all share"
        " tells who was trained on",
    )


@dataclass(frozen=True)
class StartSettings:
    """What everybody, the server and every client, starts from."""

    epochs: int = option(
        0,
        says="passes over the reserve set to train the common start; 0: the model's own start",
        ge=0,
    )
    rate: float = option(0.003, says="learning rate (Adam) of these passes", gt=0)
    batch: int = option(16, says="examples in a step of these passes", ge=1)


@dataclass(frozen=True)
class MixtureSettings:
    """A mixture of experts, each of them a whole [model]; [gate] names the gate's model if it is
    another.
    """

    experts: int = option(4, says="K, routed experts", ge=1)
    mains: int = option(
        1, says="main experts, always on; only tune_epochs tells several apart", ge=0, le=3
    )
    top: int = option(1, says="L, routed experts that the server's predictions use", ge=1)

    def __post_init__(self) -> None:
        if self.top > self.experts:
            raise ValueError(
                f"top = {self.top} of {self.experts} experts; expected 1 to {self.experts}"
            )
