"""Engines by name: the settings of each, and what opens it. This room does not know how an order is
answered.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..client import Job
from ..engine import Engine, InProcess
from ..options import option
from .building import Clients, simulated
from .checking import ConfigError
from .machine import flower_room

LATE = "seconds for an answer; a slower client counts as failed for this round"


@dataclass(frozen=True)
class InProcessSettings:
    """Every client in this process."""

    together: int = option(
        0,
        says="clients of equal shapes trained in one computation; 0: as many as is fastest, by"
        " their shapes; 1: one at a time",
        ge=0,
    )
    workers: int = option(1, says="computations at a time, each in a thread", ge=1)

    @contextmanager
    def open(self, job: Job, clients: Clients, about: Mapping[str, str]) -> Iterator[Engine]:
        yield InProcess(job, clients, self.together, self.workers)


@dataclass(frozen=True)
class FlowerSimulationSettings:
    """Every client a node of Flower's simulation (Ray), on this machine or a cluster."""

    workers: int = option(
        2, says="processes that answer at a time; a cluster uses all it has", ge=1
    )
    cpus: int = option(1, says="CPUs for each process", ge=1)
    gpus: float = option(0.0, says="part of a GPU for each process", ge=0)
    cluster: str = option(
        "",
        says="HOST:PORT of a Ray cluster whose machines see this run's folder; empty: this machine",
    )
    deadline: float = option(3600.0, says=LATE, gt=0)

    @contextmanager
    def open(self, job: Job, clients: Clients, about: Mapping[str, str]) -> Iterator[Engine]:
        flower, names = flower_room(), sorted(clients)
        size = (self.workers, self.cpus, self.gpus, self.cluster)
        with flower.simulation(simulated, names, *size) as (grid, nodes, alive):
            yield flower.Flower(grid, names, lambda: nodes, about, self.deadline, alive)


@dataclass(frozen=True)
class FlowerSettings:
    """Clients that are sites on machines of their own, connected by Flower: `fedexperts deploy`."""

    sites: list[str] = option(
        [], says="names of the sites that take part; empty: all registered sites"
    )
    minimum: int = option(
        1, says="number of sites that must be connected before the run begins", ge=1
    )
    wait: float = option(
        120.0, says="seconds that the server waits for all sites at the start", ge=0
    )
    deadline: float = option(600.0, says=LATE, gt=0)
    patience: float = option(
        259200.0,
        says="seconds that a run waits for sites when too few are there, or for room on the"
        " server's disk, before it fails",
        ge=0,
    )

    def open(self, job: Job, clients: Clients, about: Mapping[str, str]) -> Any:
        raise ConfigError(
            'engine.name = "flower" is a federation of several machines; use `fedexperts'
            ' deploy run FOLDER CONFIG`, or engine.name = "flower-simulation" on this one'
        )
