"""Flower as an engine: results of its simulation are those of one process, and whatever a node
sends is looked at.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, Case, Remembered, digits, left_behind, open_run, tiny
from test_dual import experiment as dual
from test_dual import save_both

from fedexperts import config as door
from fedexperts.config import Config
from fedexperts.loop import run
from fedexperts.message import PLAIN, Order, Reply, decode_order, encode
from fedexperts.rundir import RunDir
from fedexperts.tensors import packed_size

pytest.importorskip("flwr")
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedexperts import flower, post

NAMES = list("abcde")
ALONE = {"together": 1}


# ---- the simulation

ray = pytest.mark.filterwarnings(  # Ray leaves a null device and sockets to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
    "ignore::FutureWarning",
)


@pytest.fixture(scope="module")
def simulated() -> Iterator[Callable[[Config, Path], RunDir]]:
    """Runs an experiment on a Flower simulation with two processes, which is started once for
    all.
    """
    room = door.flower_room()
    with room.simulation(door.simulated, NAMES, workers=2, cpus=1, gpus=0.0) as (
        grid,
        nodes,
        alive,
    ):

        def carry_out(config: Config, path: Path) -> RunDir:
            folder = open_run(config, path)
            places = {"private": str(path / "private"), "split": str(path / "split.json")}
            about = {"config": config.toml(), **places}
            job, sites = door.build(config, path / "private")
            named = dict(zip(sorted(sites), nodes.values(), strict=True))
            engine = flower.Flower(grid, sorted(sites), lambda: named, about, 600.0, alive)
            run(job, engine, config.section("run"), folder)
            return folder

        yield carry_out


@ray
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_simulation_ends_at_the_bits_of_one_process(
    case: Case, tmp_path: Path, remembered: Remembered, simulated: Callable[[Config, Path], RunDir]
) -> None:
    """Laws 1 and 8: every method, in two processes of Flower's, with messages between. Their
    clients answer one by one.
    """
    assert left_behind(simulated(tiny(case), tmp_path / "there")) == left_behind(
        remembered(tiny(case, engine=ALONE))
    )


@ray
@pytest.mark.slow
def test_a_simulation_of_real_digits_ends_at_the_bits_of_one_process(
    tmp_path: Path, remembered: Remembered, simulated: Callable[[Config, Path], RunDir]
) -> None:
    config = digits(CASES["nearest"], engine=ALONE)
    assert left_behind(simulated(config, tmp_path / "there")) == left_behind(remembered(config))


@ray
@pytest.mark.slow
def test_a_simulation_of_secure_sums_ends_at_the_bits_of_one_process(
    tmp_path: Path, remembered: Remembered, simulated: Callable[[Config, Path], RunDir]
) -> None:
    """Keys and masks are new each time; what comes of the sum is the same whole number."""
    pytest.importorskip("Crypto", reason='needs pip install "fedexperts[privacy]"')
    whole = {"participation": 1.0}
    config = tiny(CASES["fedavg-probe"], upload={"secure": True}, run=whole, engine=ALONE)
    there = simulated(config, tmp_path / "there")
    assert left_behind(there) == left_behind(remembered(config))


@ray
@pytest.mark.slow
def test_a_simulation_behind_a_model_for_photographs_ends_at_the_bits_of_one_process(
    tmp_path: Path, remembered: Remembered, simulated: Callable[[Config, Path], RunDir]
) -> None:
    config = dual(save_both(tmp_path), engine=ALONE)
    there = left_behind(simulated(config, tmp_path / "there"))
    assert there == left_behind(remembered(config))


@ray
@pytest.mark.slow
def test_one_word_in_the_config_moves_a_run_to_flower(
    tmp_path: Path, remembered: Remembered
) -> None:
    """From the command line, in a process of its own, as a user starts it."""
    plain = remembered(tiny(CASES["nearest"], engine=ALONE))
    config = tiny(CASES["nearest"], engine={"name": "flower-simulation", "workers": 1})
    (tmp_path / "config.toml").write_text(config.toml())
    command = [
        sys.executable,
        "-m",
        "fedexperts",
        "run",
        str(tmp_path / "config.toml"),
        "--out",
        str(tmp_path / "out"),
    ]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, capture_output=True)
    assert left_behind(RunDir(tmp_path / "out" / "tiny" / "seed-0")) == left_behind(plain)


def test_without_flower_nothing_else_breaks_and_the_error_says_what_to_install(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.toml").write_text(tiny(CASES["fedavg"]).toml())
    script = (
        "import sys; sys.modules['flwr'] = None; sys.path.insert(0, {tests!r})\n"
        "from fedexperts.cli import app\n"
        "app(['run', {config!r}, '--jobs', '1', '--out', {out!r}, *sys.argv[1:]])\n"
    ).format(
        tests=str(Path(__file__).parent),
        config=str(tmp_path / "config.toml"),
        out=str(tmp_path / "out"),
    )

    def start(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", script, *more], capture_output=True, text=True)

    without = start("--set", "engine.name=flower-simulation")
    assert without.returncode == 2
    assert "pip install 'fedexperts[flower]'" in " ".join(without.stderr.split())
    assert start("--out", str(tmp_path / "other")).returncode == 0


def test_a_federation_of_machines_is_not_started_by_run() -> None:
    config = tiny(CASES["fedavg"], engine={"name": "flower"})
    with (
        pytest.raises(door.ConfigError, match="fedexperts deploy run FOLDER CONFIG"),
        door.opened(config, Path()),
    ):
        pass


# ---- messages, on a grid that delivers them in this process


@pytest.fixture
def _somebody() -> None:
    """Flower makes no message before a process knows which task it is."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


in_this_process = pytest.mark.usefixtures("_somebody")


class Mailbox:
    """A grid whose nodes are functions from a message to the next one; None: no answer yet."""

    def __init__(self, nodes: dict[int, Callable[[Message], Message | None]]) -> None:
        self.nodes = nodes
        self.sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(len(self.sent))
            self.sent[message.metadata.message_id] = message
        return list(self.sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = [self.sent[name] for name in message_ids]
        return [
            a
            for message in asked
            if (a := self.nodes[message.metadata.dst_node_id](message)) is not None
        ]


ORDER = Order(
    "a", 2, "train", {"global.x": torch.zeros(3)}, most=packed_size({"x": torch.zeros(3)})
)
HONEST = Reply("a", 2, "train", {"x": torch.ones(3)}, 5, {"loss": 0.5})


def says(data: bytes) -> Callable[[Message], Message]:
    return lambda message: post.reply(data, message)


def exchanged(
    answer: Callable[[Message], Message | None],
    deadline: float = 5.0,
    about: dict[str, str] | None = None,
) -> Reply:
    engine: Any = flower.Flower(
        Mailbox({7: answer}), ["a"], lambda: {"a": 7}, about or {}, deadline, poll=0.01
    )  # type: ignore[arg-type]
    (reply,) = engine.exchange([ORDER])
    return reply  # type: ignore[no-any-return]


@in_this_process
def test_an_order_reaches_its_node_and_the_reply_comes_back() -> None:
    def node(message: Message) -> Message:
        order = decode_order(post.bytes_in(message))
        assert (order.client, order.round, order.task) == ("a", 2, "train")
        return post.reply(encode(HONEST), message)

    reply = exchanged(node)
    assert replace(reply, tensors={}) == replace(HONEST, tensors={})
    assert reply.tensors["x"].equal(torch.ones(3))


@in_this_process
def test_a_node_that_answers_twice_is_heard_once() -> None:
    class Twice(Mailbox):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            return 2 * super().pull_messages(message_ids)

    engine: Any = flower.Flower(Twice({7: says(encode(HONEST))}), ["a"], lambda: {"a": 7}, {}, 5.0)  # type: ignore[arg-type]
    assert len(engine.exchange([ORDER])) == 1


@in_this_process
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(b"\x80\x04K\x01."), "begins with a line"),
        (says(encode(HONEST)[:-3]), "not safetensors"),
        (says(encode(HONEST) + bytes(PLAIN)), "bytes long; at most"),
        (says(encode(replace(HONEST, client="b"))), "it says that it is 'b'"),
        (
            says(encode(replace(HONEST, tensors={f"{i}": torch.empty(0) for i in range(10**5)}))),
            "bytes long; at most",
        ),
        (says(b"[" * 100_000 + b"\n"), "begins with a line of JSON"),
        (lambda message: Message(RecordDict(), reply_to=message), "without bytes of ours"),
        (
            lambda message: Message(
                RecordDict(
                    {
                        "fedexperts": ArrayRecord(
                            {"odd": Array("f4", (1,), "numpy.ndarray", b"1234")}
                        )
                    }
                ),
                reply_to=message,
            ),
            "without bytes of ours",
        ),
        (
            lambda message: Message(Error(5, "node unavailable"), reply_to=message),
            "node unavailable",
        ),
        (lambda message: None, "no reply within 0.2 s"),
    ],
)
def test_what_is_no_reply_is_refused_by_name_and_reason(
    answer: Callable[[Message], Message | None], why: str
) -> None:
    reply = exchanged(answer, 0.2)
    assert (reply.client, reply.round, reply.task, reply.tensors) == ("a", 2, "train", {})
    assert why in reply.error


def test_who_is_not_connected_is_not_waited_for() -> None:
    engine: Any = flower.Flower(Mailbox({}), ["a"], dict, {}, 60.0)  # type: ignore[arg-type]
    began = time.monotonic()
    (reply,) = engine.exchange([ORDER])
    assert reply.error == "it is not connected"
    assert time.monotonic() - began < 5


@in_this_process
def test_a_node_that_cannot_answer_says_why() -> None:
    def nowhere(about: post.About, client: str) -> Any:
        raise ValueError(f"no data of {client} in {about['place']}")

    app = flower.client_app(nowhere)
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    reply = exchanged(lambda message: app(message, context), about={"place": "the attic"})
    assert reply.error == "no data of a in the attic"
