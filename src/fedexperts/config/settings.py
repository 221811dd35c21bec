"""Sections of a config that belong to no other room: a run, its common start, a mixture of experts.

This room holds plain values; it reads no file and builds nothing.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ..loop import Schedule


@dataclass(frozen=True)
class RunSettings(Schedule):
    """Who takes part when, from which seed."""

    seed: Annotated[
        int,
        Field(ge=0, description="of splits, few-shot draws, sampling, starts and batches alike"),
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(
            description=(
                'where models compute; "auto": a GPU of CUDA or of Apple\'s, where torch finds one'
            )
        ),
    ] = "auto"
    threads: Annotated[
        int, Field(ge=1, description="of one computation; sums may round differently for others")
    ] = 1
    judged_by: Annotated[
        Literal["clients", "server"],
        Field(
            description=(
                "whose validation accuracy chooses rates and rounds: each client's own, or the"
                " server's"
            )
        ),
    ] = "clients"


@dataclass(frozen=True)
class StartSettings:
    """What everybody, the server and every client, starts from."""

    epochs: Annotated[
        int,
        Field(
            ge=0,
            description=(
                "passes over the reserve set that train the common start; 0: the model's own"
            ),
        ),
    ] = 0
    rate: Annotated[float, Field(gt=0, description="learning rate (Adam) of these passes")] = 0.003
    batch: Annotated[int, Field(ge=1, description="examples in a step of these passes")] = 16


@dataclass(frozen=True)
class MixtureSettings:
    """A mixture of experts, each of them a whole [model]; [gate] names the gate's model if it is
    another.
    """

    experts: Annotated[int, Field(ge=1, description="K, routed experts")] = 4
    mains: Annotated[
        int,
        Field(
            ge=0, le=3, description="main experts, always on; only tune_epochs tells several apart"
        ),
    ] = 1
    top: Annotated[
        int, Field(ge=1, description="L, routed experts that the server's predictions use")
    ] = 1

    def __post_init__(self) -> None:
        if self.top > self.experts:
            raise ValueError(
                f"top = {self.top} of {self.experts} experts; expected 1 to {self.experts}"
            )
