"""Flower as the place where `answer` runs: an order is a message to one node, the bytes in it are ours.

In a simulation (Ray, on this machine) any node can be any client, and the order says which. In a federation the
operator registered each site's key under the site's name, so a node's name is not its own claim. This room does not
know what an order means, how a job is built, or what a round is.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from typing import NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from .client import Client, Job, answer
from .message import Order, Reply, decode_order, decode_reply, encode

About = Mapping[str, str]  # what another process must know to build the same job
Here = UserConfig  # what a node was told when it was started
Site = Callable[[About, str, Here], tuple[Job, Client]]  # the job, and the client of this name, if it is here
_WORD = "fedexperts"  # the record's name and the array's in each message


@dataclass(frozen=True)
class Flower:
    """Clients that are nodes of a Flower run: `nodes` says which of them are connected, by name, right now."""

    grid: Grid
    names: Sequence[str]  # of all that are expected, connected or not
    nodes: Callable[[], Mapping[str, int]]
    about: About
    deadline: float  # seconds; who has not answered by then failed this round
    alive: Callable[[], None] = lambda: None  # raises if nobody can answer any more
    poll: float = 0.1  # seconds between looks at what came

    def clients(self) -> list[str]:
        return sorted(self.names)

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        online = self.nodes()
        replies = [_failed(order, "it is not connected") for order in orders if order.client not in online]
        asked = [(order, self._message(order, online[order.client])) for order in orders if order.client in online]
        self.grid.push_messages([message for _, message in asked])
        waiting = {message.metadata.message_id: order for order, message in asked}
        until = time.monotonic() + self.deadline
        while waiting and time.monotonic() < until:
            self.alive()
            for message in self.grid.pull_messages(list(waiting)):
                replies.append(_read(message, waiting.pop(message.metadata.reply_to_message_id)))
            if waiting:
                time.sleep(self.poll)
        return replies + [_failed(order, f"no reply within {self.deadline:g} s") for order in waiting.values()]

    def _message(self, order: Order, node: int) -> Message:
        content = RecordDict({_WORD: _carried(encode(order)), "about": ConfigRecord(dict(self.about))})
        return Message(content, node, "query", ttl=self.deadline, group_id=str(order.round))


def client_app(site: Site) -> ClientApp:
    """What runs at a node: it answers the order in a message for the client that is here."""
    app = ClientApp()

    @app.query()
    def ask(message: Message, context: Context) -> Message:
        order = decode_order(_bytes(message))
        try:
            about = {key: str(value) for key, value in message.content.config_records["about"].items()}
            job, client = site(about, order.client, context.node_config)
            (reply,) = answer(job, [client], [order])
        except (ValueError, OSError, RuntimeError) as error:  # what is wrong here is the server's to know, by name
            logging.getLogger(__name__).exception("order %s of round %d", order.task, order.round)
            reply = _failed(order, str(error))
        return Message(RecordDict({_WORD: _carried(encode(reply))}), reply_to=message)

    return app


class Simulated(NamedTuple):
    """A simulation that is there: its grid, its nodes by name, and a function that raises once it is not."""

    grid: Grid
    nodes: Mapping[str, int]
    alive: Callable[[], None]


@contextmanager
def simulation(site: Site, names: Sequence[str], workers: int, cpus: int, gpus: float) -> Iterator[Simulated]:
    """A Flower simulation on this machine with a node for each name, as long as it is needed.

    It runs in a thread of its own, so that the caller's loop is the caller's to interrupt.
    """
    from flwr.server.superlink.fleet.vce.backend import BackendConfig
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    grids, over, broken = Queue[Grid](), threading.Event(), Queue[BaseException]()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        grids.put(grid)
        over.wait()

    def live() -> None:
        ray: BackendConfig = {
            "init_args": {
                "num_cpus": workers * cpus,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "logging_level": logging.ERROR,
                "log_to_driver": False,
            },
            "client_resources": {"num_cpus": cpus, "num_gpus": gpus},
        }
        try:
            run_simulation(server, client_app(site), len(names), backend_config=ray)
        except BaseException as error:
            broken.put(error)

    def alive() -> None:
        if not thread.is_alive():
            raise RuntimeError(
                f"Flower's simulation ended: {broken.get() if broken.qsize() else 'it does not say why'}"
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


def _carried(data: bytes) -> ArrayRecord:
    """Bytes as Flower carries them in pieces: an array that nobody but us opens."""
    return ArrayRecord({_WORD: Array("uint8", (len(data),), _WORD, data)})


def _bytes(message: Message) -> bytes:
    """Our bytes in a message; ValueError if it holds something else."""
    try:
        return message.content.array_records[_WORD][_WORD].data
    except KeyError:
        raise ValueError("a message without an order or reply of ours") from None


def _read(message: Message, order: Order) -> Reply:
    """The reply to an order; whatever is wrong with it is an error that the client made."""
    if message.has_error():
        return _failed(order, f"Flower says: {message.error.reason}")
    try:
        reply = decode_reply(_bytes(message), order.most)
    except ValueError as error:
        return _failed(order, f"its reply was refused: {error}")
    if reply.client != order.client:
        return _failed(order, f"its reply was refused: it says that it is {reply.client[:100]!r}")
    return reply


def _failed(order: Order, why: str) -> Reply:
    return Reply(order.client, order.round, order.task, error=why)
