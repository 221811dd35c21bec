"""Engines decide where `answer` runs, and nothing else. This one runs it here.

`clients()` names who can be asked; `exchange(orders)` returns the replies, in any order; a missing
reply is a client that failed this round. Elsewhere (a network, another machine) is another
class with these two functions.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from .client import Client, Job, answer
from .message import Order, Reply
from .stacks import MOST


class Engine(Protocol):
    """Where clients are."""

    def clients(self) -> list[str]:
        """Names, sorted."""
        ...

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        """The replies to orders of one round, in any order; who failed is missing or replies with
        an error.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """All clients in this process: up to `together` of them in one computation (0: as many as is
    fastest, by their shapes), `workers` computations at a time.

    Who is computed together depends on the orders alone, so the result is the same for any number
    of workers.
    """

    job: Job
    members: Mapping[str, Client]
    together: int = 0
    workers: int = 1

    def clients(self) -> list[str]:
        return sorted(self.members)

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        line = sorted(orders, key=lambda order: order.client)
        most = self.together or MOST
        groups = [line[i : i + most] for i in range(0, len(line), most)]

        def run(group: list[Order]) -> list[Reply]:
            members = [self.members[order.client] for order in group]
            return answer(self.job, members, group, self.together)

        if self.workers == 1:
            return [reply for group in groups for reply in run(group)]
        with ThreadPoolExecutor(self.workers) as pool:
            return [reply for replies in pool.map(run, groups) for reply in replies]
