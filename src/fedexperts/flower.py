"""Flower as one way in which `answer` runs: an order is a message to one node, the bytes in it are
ours.

In a simulation (Ray, on this machine) any node can be any client, and the order says which. In a
federation the operator registered each site's key under the site's name, so a node's name is not
its own claim. This room does not know what an order means, how a job is built, or what a round is.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from typing import TYPE_CHECKING, NamedTuple

from flwr.app import ConfigRecordValues, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from google.protobuf.message import DecodeError

from .client import Client, Job, answer
from .message import Order, Reply, decode_order, decode_reply, encode
from .post import About, about_in, bytes_in, question, reply

if TYPE_CHECKING:
    from flwr.server.superlink.fleet.vce.backend import BackendConfig

# Flower's codes for a message, or its reply, that was not there before its time was up
_NEVER_CAME = (3, 4)
# objects of a liar
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DecodeError)
_NOT_SIGNED = 7  # and for an app that is not signed by the key that a site trusts

_AWAY, _REMOVED = "it is not connected", "it was removed from the federation"
_LATE = "no reply within"

# the job, and the client of this name, if it is here
Site = Callable[[About, str], tuple[Job, Client]]


@dataclass(frozen=True)
class Flower:
    """Clients that are nodes of a Flower run: `nodes` says which of them are connected, by name,
    right now.
    """

    grid: Grid
    names: Sequence[str]  # of all that are expected, connected or not
    nodes: Callable[[], Mapping[str, int]]
    about: About
    deadline: float  # seconds; who has not answered by then failed this round
    alive: Callable[[], None] = lambda: None  # raises if nobody can answer any more
    poll: float = 0.1  # seconds between looks at what came
    # who of them does not take part any more, and is neither asked nor waited for
    removed: Callable[[], Collection[str]] = tuple

    def clients(self) -> list[str]:
        return sorted(self.names)

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        online, removed = self.nodes(), self.removed()
        there = online.keys() - set(removed)
        replies = [_failed(o, _absent(o, removed)) for o in orders if o.client not in there]
        asked = [
            (order, self._question(order, online[order.client]))
            for order in orders
            if order.client in there
        ]
        self.grid.push_messages([message for _, message in asked])
        waiting = {message.metadata.message_id: order for order, message in asked}
        until = time.monotonic() + self.deadline
        while waiting and time.monotonic() < until:
            self.alive()
            removed = self.removed()
            for number, order in list(waiting.items()):
                if order.client in removed:
                    replies.append(_failed(order, _REMOVED))
                    del waiting[number]
                    continue
                if (reply := self._pulled(number, order)) is not None:
                    replies.append(reply)
                    del waiting[number]
            if waiting:
                time.sleep(self.poll)
        return replies + [self._late(order) for order in waiting.values()]

    def _question(self, order: Order, node: int) -> Message:
        return question(encode(order), self.about, node, self.deadline, str(order.round))

    def _pulled(self, number: str, order: Order) -> Reply | None:
        """The reply to the order that Flower calls `number`, if it is there.

        Each is asked for alone: what cannot be read takes no other with it, and what it says it
        replies to is nothing.
        """
        try:
            came = list(self.grid.pull_messages([number]))
            return self._read(came[0], order) if came else None
        except _UNREADABLE as error:
            return _failed(
                order, f"its reply cannot be read: {type(error).__name__}: {str(error)[:100]!r}"
            )

    def _read(self, message: Message, order: Order) -> Reply:
        """The reply to an order; whatever is wrong with it is an error that the client made."""
        if message.has_error() and message.error.code in _NEVER_CAME:
            return self._late(order)
        if message.has_error() and message.error.code == _NOT_SIGNED:
            return _failed(
                order,
                "it refuses the server's app, which is not signed by the key in the site's app.pub",
            )
        if message.has_error():
            return _failed(order, f"Flower says: {message.error.reason}")
        try:
            said = decode_reply(bytes_in(message), order.most)
        except ValueError as error:
            return _failed(order, f"its reply was refused: {error}")
        if said.client != order.client:
            return _failed(order, f"its reply was refused: it says that it is {said.client!r:.100}")
        return said

    def _late(self, order: Order) -> Reply:
        return _failed(order, f"{_LATE} {self.deadline:g} s")


def silent(reply: Reply) -> bool:
    """Whether the reply is our own word for a client that did not answer."""
    return reply.error in (_AWAY, _REMOVED) or reply.error.startswith(_LATE)


def _absent(order: Order, removed: Collection[str]) -> str:
    if order.client in removed:
        return _REMOVED
    return _AWAY


def answered(here: Callable[[str], tuple[Job, Client]], data: bytes) -> tuple[bytes, str]:
    """The reply to the order in `data`, and what to say of it here; what is wrong here is the
    server's to know.
    """
    order = decode_order(data)
    try:
        job, client = here(order.client)
        (done,) = answer(job, [client], [order])
    except (ValueError, OSError, RuntimeError) as error:
        done = _failed(order, str(error) or type(error).__name__)
    return encode(done), f"round {order.round}: {order.task}{_said(done)}"


def _said(done: Reply) -> str:
    """What a site's own operator reads of its reply."""
    if done.error:
        return f" failed: {done.error}"
    if done.task != "predict":
        return ""
    right, examples = done.facts["test_correct"], done.facts["test_examples"]
    return f", own accuracy {float(right) / float(examples):.1%} ({right} of {examples})"  # type: ignore[arg-type]


def client_app(site: Site) -> ClientApp:
    """What a node of a simulation runs: it answers for the client that the order names."""
    app = ClientApp()

    @app.query()
    def ask(message: Message, context: Context) -> Message:
        about = about_in(message)
        data, _ = answered(lambda name: site(about, name), bytes_in(message))
        return reply(data, message)

    return app


class Simulated(NamedTuple):
    """A simulation that is there: its grid, its nodes by name, and a function that raises once it
    is not.
    """

    grid: Grid
    nodes: Mapping[str, int]
    alive: Callable[[], None]


@contextmanager
def simulation(
    site: Site, names: Sequence[str], workers: int, cpus: int, gpus: float, cluster: str = ""
) -> Iterator[Simulated]:
    """A Flower simulation with a node for each name, as long as it is needed: here, or on a Ray
    cluster that is there.

    It runs in a thread of its own, so that the caller's loop is the caller's to interrupt.
    """
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    grids, over, broken = Queue[Grid](), threading.Event(), Queue[BaseException]()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        grids.put(grid)
        over.wait()

    def live() -> None:
        try:
            run_simulation(
                server,
                client_app(site),
                len(names),
                backend_config=_backend(workers, cpus, gpus, cluster),
            )
        except BaseException as error:
            broken.put(error)

    def alive() -> None:
        if not thread.is_alive():
            raise RuntimeError(
                "Flower's simulation ended:"
                f" {broken.get() if broken.qsize() else 'it does not say why'}"
            )

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        while grids.empty() or len(nodes := sorted(grids.queue[0].get_node_ids())) < len(names):
            alive()
            time.sleep(0.05)
        yield Simulated(grids.get(), dict(zip(names, nodes, strict=True)), alive)
    finally:
        over.set()
        thread.join()


def _backend(workers: int, cpus: int, gpus: float, cluster: str) -> "BackendConfig":
    """What Ray is told: to start here, out of reach from other machines and without a dashboard, or
    where it is.
    """
    init: dict[str, ConfigRecordValues] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster:
        init |= {"address": cluster}
    else:
        init |= {
            "num_cpus": workers * cpus,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    return {"init_args": init, "client_resources": {"num_cpus": cpus, "num_gpus": gpus}}


def _failed(order: Order, why: str) -> Reply:
    return Reply(order.client, order.round, order.task, error=why)
