"""Engines by name: the settings of each, and what opens it. This room does not know how an order is
answered.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ..client import Job
from ..engine import Engine, InProcess
from .building import Sites, simulated
from .checking import ConfigError
from .machine import flower_room


@dataclass(frozen=True)
class InProcessSettings:
    """Every client in this process."""

    together: Annotated[
        int,
        Field(
            ge=1, description="clients of equal shapes trained in one computation; 1: one at a time"
        ),
    ] = 1
    workers: Annotated[int, Field(ge=1, description="computations at a time, each in a thread")] = 1

    @contextmanager
    def open(self, job: Job, sites: Sites, about: Mapping[str, str]) -> Iterator[Engine]:
        yield InProcess(job, sites, self.together, self.workers)


Deadline = Annotated[
    float, Field(gt=0, description="seconds for an answer; who is later failed this round")
]


@dataclass(frozen=True)
class FlowerSimulationSettings:
    """Every client a node of Flower's simulation (Ray), on this machine or a cluster."""

    workers: Annotated[
        int, Field(ge=1, description="processes that answer at a time; of a cluster, all it has")
    ] = 2
    cpus: Annotated[int, Field(ge=1, description="CPUs that each of them takes")] = 1
    gpus: Annotated[float, Field(ge=0, description="share of a GPU that each of them takes")] = 0.0
    cluster: Annotated[
        str,
        Field(
            description=(
                "HOST:PORT of a Ray cluster whose machines see this run's folder; empty: this"
                " machine"
            )
        ),
    ] = ""
    deadline: Deadline = 3600.0

    @contextmanager
    def open(self, job: Job, sites: Sites, about: Mapping[str, str]) -> Iterator[Engine]:
        flower, names = flower_room(), sorted(sites)
        size = (self.workers, self.cpus, self.gpus, self.cluster)
        with flower.simulation(simulated, names, *size) as (grid, nodes, alive):
            yield flower.Flower(grid, names, lambda: nodes, about, self.deadline, alive)


@dataclass(frozen=True)
class FlowerSettings:
    """Clients that are sites on machines of their own, connected by Flower: `fedexperts deploy`."""

    sites: Annotated[
        list[str],
        Field(description="names of the sites that take part; none: all that are registered"),
    ] = field(default_factory=list)
    minimum: Annotated[
        int, Field(ge=1, description="sites without which the run does not begin")
    ] = 1
    wait: Annotated[
        float, Field(ge=0, description="seconds that the server waits for all sites at the start")
    ] = 120.0
    deadline: Deadline = 600.0

    def open(self, job: Job, sites: Sites, about: Mapping[str, str]) -> Any:
        raise ConfigError(
            'engine.name = "flower" is a federation of several machines; use `fedexperts'
            ' deploy run FOLDER CONFIG`, or engine.name = "flower-simulation" on this one'
        )
