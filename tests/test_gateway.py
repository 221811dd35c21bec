"""The server's door: strangers reach nothing and hold nothing, and a registered site speaks for
itself alone.
"""

import asyncio
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn

pytest.importorskip("flwr")
from cryptography.hazmat.primitives.asymmetric import ec
from federated import HOSTILE, SITES, Federation
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from hostile import Hostile, signed

from fedexperts.deploy import courier, processes
from fedexperts.deploy.entrance import Entrance
from fedexperts.deploy.fleet import CALLS, Fleet, NotAllowedError
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.gateway import Gateway
from fedexperts.deploy.limits import Limits
from fedexperts.deploy.members import Member, Roster
from fedexperts.deploy.owner import owners_alone
from fedexperts.deploy.presence import Presence
from fedexperts.deploy.site import answering
from fedexperts.deploy.sitefolder import SiteFolder
from fedexperts.message import Order, Reply, decode_reply, encode
from fedexperts.post import ask, bytes_in, reply

A, B = 11, 22  # Flower's numbers of two sites
RUN, ORDER, SERVER = 7, "0" * 64, 1
STRANGER = ec.generate_private_key(ec.SECP384R1())


# ---- a small world: two sites, and an inner server that writes down what it is asked


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ec.EllipticCurvePrivateKey]:
    return {name: ec.generate_private_key(ec.SECP384R1()) for name in ("a", "b")}


class Inner:
    """Flower's server, as far as the gateway sees it: it answers everything, and keeps what it was
    asked.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.answers: dict[str, bytes] = {}
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        call = scope["path"].rpartition("/")[2]
        self.asked.append((scope["path"], message["body"]))
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [(b"server", b"inner")],
            }
        )
        await send({"type": "http.response.body", "body": self.answers.get(call, b"")})


class World:
    """A gateway before an inner server, asked by ASGI alone."""

    def __init__(self, keys: dict[str, ec.EllipticCurvePrivateKey], limits: Limits) -> None:
        self.inner, self.told, self.known, self.keys = Inner(), list[str](), list[Any](), keys
        self.roster = Roster()
        self.roster._known = {
            m.shown: m
            for m in (Member(n, i, keys[n].public_key()) for n, i in [("a", A), ("b", B)])
        }
        inside = httpx.AsyncClient(
            base_url="http://inside", transport=httpx.ASGITransport(self.inner)
        )
        self.app = Gateway(
            inside,
            self.roster,
            limits,
            lambda who, _: self.known.append(who),
            self.told.append,
            Presence(),
            lambda: b"an authority",
        )

    def ask(
        self,
        sent: bytes = b"/v1/fleet/pull-messages",
        body: bytes = b"",
        key: Any = None,
        **scope: Any,
    ) -> int:
        return asyncio.run(self.asked(sent, body, key, **scope))

    async def asked(
        self, sent: bytes, body: bytes, key: Any, headers: Any = None, **scope: Any
    ) -> int:
        shown = signed(key or self.keys["a"]) | {"content-length": str(len(body))}
        given = (
            [(name.encode(), value.encode()) for name, value in shown.items()]
            if headers is None
            else headers
        )
        whole = {
            "type": "http",
            "method": "POST",
            "raw_path": sent,
            "path": sent.decode("latin-1"),
            "headers": given,
        }
        whole |= {"query_string": b"", "client": ("127.0.0.1", 5)} | scope
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        await self.app(whole, receive, send)
        self.said = said
        return int(said[0].get("status", 0))


@pytest.fixture
def world(keys: dict[str, ec.EllipticCurvePrivateKey]) -> World:
    return World(keys, Limits())


def pull(node: int = A) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


# ---- what is asked for


START = b"/v1/control/start-run"
SPELLINGS = [
    START,
    b"/v1/fleet/../control/start-run",
    b"/v1/fleet/%2e%2e/control/start-run",
    b"/v1/fleet/%2E%2E/control/start-run",
    b"/v1/fleet/.%2e/control/start-run",
    b"/v1/fleet/..%2fcontrol%2fstart-run",
    b"/v1/fleet/..%2Fcontrol/start-run",
    b"/v1/fleet/x/..%2f..%2fcontrol%2fstart-run",
    b"/v1/fleet/x;/../../control/start-run",
    b"/v1/fleet/pull-messages/../../control/start-run",
    b"/v1/fleet/./../control/start-run",
    b"/v1/fleet/..;/control/start-run",
    b"/v1/fleet/..\\control\\start-run",
    b"/v1/fleet/%5c..%5ccontrol%5cstart-run",
    b"/v1/fleet/%252e%252e/control/start-run",
    b"/v1/fleet/%c0%ae%c0%ae/control/start-run",
    b"/v1/fleet//pull-messages",
    b"//v1/fleet/pull-messages",
    b"/v1//fleet/pull-messages",
    b"/v1/fleet/pull-messages/",
    b"/v1/fleet/pull-messages%00",
    b"/v1/fleet/%00",
    b"/v1/fleet/pull-messages%2f",
    b"/v1/fleet/pull-messages;x",
    b"/v1/fleet/pull%2dmessages",
    b"/v1/fleet/./pull-messages",
    b"/v1/fleet/PULL-MESSAGES",
    b"/V1/fleet/pull-messages",
    b"/v1/fleet",
    b"/v1/fleet/",
    b"/v1/fleet/register-node",  # with keys that the operator registers, no site needs it
    b"/v1/fleet/unregister-node",
    b"/v1/runtime/pull-messages",
    b"http://localhost/v1/fleet/pull-messages",
    b"https://localhost/v1/control/start-run",
    b"http://localhost/v1/fleet/../control/start-run",
    b"localhost:9443",
    b"v1/fleet/pull-messages",
    b"*",
    b"/",
    b"",
    b"/docs",
    b"/openapi.json",
]


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_other_spelling_leads_anywhere(world: World, path: bytes) -> None:
    """Not even with a site's own key."""
    assert world.ask(path, pull()) == 404
    assert world.inner.asked == []


def test_each_call_is_passed_on_by_its_name_and_nothing_else_of_the_address(world: World) -> None:
    for call in CALLS:
        world.ask(f"/v1/fleet/{call}".encode(), pull(), path="/v1/control/start-run")
    assert {path for path, _ in world.inner.asked} <= {f"/v1/fleet/{call}" for call in CALLS}
    assert ("/v1/fleet/pull-messages", pull()) in world.inner.asked


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post", "PO ST"],
)
def test_no_other_method_is_answered(world: World, method: str) -> None:
    assert world.ask(body=pull(), method=method) == 404
    assert world.inner.asked == []


def test_a_query_a_missing_raw_path_and_a_websocket_lead_nowhere(world: World) -> None:
    assert world.ask(body=pull(), query_string=b"x=1") == 404
    assert world.ask(body=pull(), raw_path=None) == 404
    assert world.ask(body=pull(), type="websocket") == 0
    assert world.said == [{"type": "websocket.close"}]
    assert world.inner.asked == []


# ---- who asks


def changed(headers: dict[str, str], **changes: str | None) -> list[tuple[bytes, bytes]]:
    whole = (
        headers
        | {"content-length": "0"}
        | {name.replace("_", "-"): value for name, value in changes.items()}
    )
    return [
        (name.encode(), value.encode("latin-1"))
        for name, value in whole.items()
        if value is not None
    ]


@pytest.mark.parametrize("late", [-60, 400])
def test_a_signature_of_another_time_is_no_signature(world: World, late: float) -> None:
    assert world.ask(headers=changed(signed(world.keys["a"], late))) == 401


@pytest.mark.parametrize(
    "change",
    [
        {"flwr_signature": None},
        {"flwr_public_key": None},
        {"flwr_timestamp": None},
        {"flwr_signature": "x"},
        {"flwr_signature": "AAAA"},
        {"flwr_public_key": "\xff\xfe"},
        {"flwr_timestamp": "now"},
        {"flwr_timestamp": "2026-01-01T00:00:00"},
        {"flwr_timestamp": "9999-12-31T23:59:59+00:00"},
        {"flwr_timestamp": "\xb2\xb3"},
    ],
)
def test_who_shows_no_key_is_refused_before_a_byte_is_read(
    world: World, change: dict[str, str | None]
) -> None:
    assert world.ask(headers=changed(signed(world.keys["a"]), **change)) == 401
    assert world.inner.asked == world.known == []


def test_a_strangers_key_is_refused_and_one_that_begins_is_told_in_flowers_words(
    world: World,
) -> None:
    assert world.ask(key=STRANGER, body=pull()) == 401
    assert world.ask(b"/v1/fleet/activate-node", key=STRANGER) == 412
    assert json.loads(world.said[1]["body"])["code"] == 2004  # upon which a site tries on
    assert world.inner.asked == []


def test_one_sites_signature_under_anothers_key_is_refused(world: World) -> None:
    mixed = signed(world.keys["a"]) | {
        "flwr-public-key": signed(world.keys["b"])["flwr-public-key"]
    }
    assert world.ask(headers=changed(mixed)) == 401


def test_a_site_that_is_removed_is_refused_at_its_next_call(world: World) -> None:
    assert world.ask(body=pull()) == 200
    world.roster.are({}, {})
    assert world.ask(body=pull()) == 401


# ---- how much is asked


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_length": None}, 411),
        ({"content_length": "-1"}, 411),
        ({"content_length": "1e3"}, 411),
        ({"content_length": "\xb2"}, 411),
        ({"transfer_encoding": "chunked"}, 411),
        ({"content_length": str(2**23 + 1)}, 413),
        ({"content_length": "9" * 5000}, 413),
        ({"content_length": "3"}, 400),
        ({"Content_Length": "0"}, 400),
    ],
)
def test_a_request_says_how_long_it_is_and_is_so(
    world: World, headers: dict[str, str | None], status: int
) -> None:
    assert world.ask(headers=changed(signed(world.keys["a"]), **headers)) == status
    assert world.inner.asked == []


def test_what_a_site_holds_at_once_is_bounded_in_number_and_time_and_bytes(
    keys: dict[str, Any],
) -> None:
    world = World(keys, Limits(at_once=2, arrival=0.3, memory=2**23))

    async def never() -> Any:
        await asyncio.sleep(60)

    async def slow(name: str, length: int, said: list[int]) -> None:
        async def send(message: Any) -> None:
            said.append(message.get("status", 0))

        headers = changed(signed(keys[name]), content_length=str(length))
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/v1/fleet/push-object",
            "headers": headers,
        }
        await world.app(scope | {"client": ("::1", 1)}, never, send)

    async def crowd(*who: tuple[str, int]) -> list[int]:
        said: list[int] = []
        await asyncio.gather(*(slow(name, length, said) for name, length in who))
        return [status for status in said if status]

    assert asyncio.run(crowd(("a", 10), ("a", 10), ("a", 10), ("b", 10))) == [503, 408, 408, 408]
    assert asyncio.run(crowd(("a", 2**22), ("b", 2**22), ("b", 1))) == [503, 408, 408]
    assert asyncio.run(crowd(("a", 1))) == [408]  # and all of it is given back
    assert world.inner.asked == []


# ---- the crowd at the port


@contextmanager
def listening(world: World, connections: int, patience: float) -> Iterator[int]:
    """The gateway on a real socket, without TLS; its port."""
    entrance = Entrance("127.0.0.1", 0, connections, patience)
    world.app._knows = entrance.knows
    settings = uvicorn.Config(
        world.app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(settings)

    async def live() -> None:
        watching = asyncio.create_task(entrance.watch())
        await server.serve([entrance])
        watching.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield entrance.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def closed(line: socket.socket, seconds: float) -> bool:
    """Whether the other side ends it within so many seconds."""
    line.settimeout(seconds)
    try:
        while line.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_who_shows_no_key_in_time_is_shut_out_however_it_dawdles(world: World) -> None:
    with listening(world, 50, 0.5) as port:
        lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        lines[1].sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
        lines[2].sendall(b"P")
        began = time.monotonic()
        assert all(closed(line, 5) for line in lines)
        assert time.monotonic() - began < 4
        for line in lines:
            line.close()


def test_a_full_house_has_room_for_who_has_a_key(world: World) -> None:
    """Strangers take every place ten times over; the site's requests are answered, and its place is
    its own.
    """
    with listening(world, 8, 30) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as site:
        lines = []
        for _ in range(10):
            lines += [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
            answer = site.post(
                "/v1/fleet/pull-messages", content=pull(), headers=signed(world.keys["a"])
            )
            assert answer.status_code == 200
        assert sum(not closed(line, 0.05) for line in lines) < 8
        assert len(set(world.inner.asked)) == 1
        for line in lines:
            line.close()


def test_a_port_or_address_that_cannot_be_had_is_named() -> None:
    with Entrance("127.0.0.1", 0, 8, 1) as entrance:
        port = entrance.getsockname()[1]
        entrance.listen()
        with pytest.raises(
            ValueError, match=f"127.0.0.1, port {port}: Address already in use; another server"
        ):
            Entrance("127.0.0.1", port, 8, 1)
    with pytest.raises(ValueError, match="--bind with an address of this machine"):
        Entrance("203.0.113.7", 0, 8, 1)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("fed.example.org", "0.0.0.0"),
        ("2001:db8::1", "::"),
    ],
)
def test_a_server_listens_no_wider_than_its_name_demands(host: str, address: str) -> None:
    assert processes.listens_on(host) == address


def test_limits_are_the_operators_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    made = Deployment.create(tmp_path / "dep", "localhost", 9443, ["a"])
    assert made.limits == Limits()
    file = made.path / "deploy.toml"
    text = file.read_text()
    file.write_text(text + "\n[limits]\nat_once = 4\npatience = 3\n")
    assert made.limits == Limits(at_once=4, patience=3.0)
    file.write_text(text + '\n[limits]\npatiense = 3\nmemory = "1"\n')
    with pytest.raises(
        ValueError,
        match=r"deploy.toml: limits.memory = '1': .*limits.patiense: no such .*defaults are conn",
    ):
        _ = made.limits


# ---- what a registered site may ask


def order_for(node: int = A, number: str = ORDER) -> tuple[Message, ObjectTree]:
    said = Metadata(
        run_id=RUN,
        message_id=number,
        src_node_id=SERVER,
        dst_node_id=node,
        group_id="1",
        message_type="query",
    )
    return Message(metadata=said), ObjectTree(
        object_id=number, children=[ObjectTree(object_id="c" * 64)]
    )


def answer_to(order: Metadata, **changes: Any) -> PushMessagesRequest:
    plain = {
        "run_id": RUN,
        "message_id": "e" * 64,
        "src_node_id": A,
        "dst_node_id": SERVER,
        "group_id": "1",
    }
    plain |= {"message_type": "query", "reply_to_message_id": order.message_id}
    message = Message(metadata=Metadata(**(plain | changes)))
    tree = ObjectTree(object_id="e" * 64)
    return PushMessagesRequest(
        node=Node(node_id=A), messages_list=[message], message_object_trees=[tree]
    )


@pytest.fixture
def sent(world: World) -> World:
    """A world in which each of the two sites was sent an order."""
    for name, node, number in (("a", A, ORDER), ("b", B, "b" * 64)):
        order, tree = order_for(node, number)
        came = PullMessagesResponse(messages_list=[order], message_object_trees=[tree])
        world.inner.answers["pull-messages"] = came.SerializeToString()
        assert world.ask(body=pull(node), key=world.keys[name]) == 200
    world.inner.asked.clear()
    return world


def pushes(world: World, request: PushMessagesRequest) -> int:
    return world.ask(b"/v1/fleet/push-messages", request.SerializeToString())


def test_a_reply_in_its_own_name_to_its_own_order_is_passed_on(sent: World) -> None:
    assert pushes(sent, answer_to(order_for()[0].metadata)) == 200
    assert sent.told == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reply_to_message_id": "", "dst_node_id": B}, "an order of its own"),
        ({"src_node_id": B}, "a reply in another's name"),
        ({"src_node_id": SERVER}, "a reply in another's name"),
        ({"reply_to_message_id": "b" * 64}, "a reply to an order that it was not sent"),
        ({"dst_node_id": B}, "a reply that does not fit its order"),
        ({"run_id": RUN + 1}, "a reply that does not fit its order"),
        ({"group_id": "2"}, "a reply that does not fit its order"),
        ({"message_type": "train"}, "a reply that does not fit its order"),
        ({"message_id": "f" * 64}, "a reply whose objects are not its own"),
    ],
)
def test_every_other_push_is_refused_and_logged_by_name(
    sent: World, changes: dict[str, Any], why: str
) -> None:
    request = answer_to(order_for()[0].metadata, **changes)
    assert [pushes(sent, request), pushes(sent, request)] == [403, 403]
    assert sent.inner.asked == []
    assert sent.told == [f"The site a: push-messages was refused: {why}."]  # once, not at every try


def test_several_messages_in_one_push_are_refused(sent: World) -> None:
    request = answer_to(order_for()[0].metadata)
    request.messages_list.append(Message())
    assert pushes(sent, request) == 403
    assert pushes(sent, PushMessagesRequest(node=Node(node_id=A))) == 403


def test_a_second_reply_is_refused_and_the_first_may_be_sent_again(sent: World) -> None:
    first = answer_to(order_for()[0].metadata)
    second = answer_to(order_for()[0].metadata, message_id="d" * 64)
    second.message_object_trees[0].object_id = "d" * 64
    assert [pushes(sent, first), pushes(sent, first), pushes(sent, second)] == [200, 200, 403]


def asks(world: World, call: str, **fields: Any) -> int:
    """The status of a site's call, in its own name if the fields name no other."""
    kind = CALLS[call][0]
    own = {"node": Node(node_id=A)} if "node" in kind.DESCRIPTOR.fields_by_name else {}
    return world.ask(f"/v1/fleet/{call}".encode(), kind(**(own | fields)).SerializeToString())


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("get-run", {"run_id": RUN + 1}),
        ("get-fab", {"run_id": RUN + 1, "hash_str": "x"}),
        ("push-object", {"object_id": "e" * 64, "object_content": b"x"}),
        ("push-object", {"object_id": "e" * 64, "object_content": b"x", "session_id": "s"}),
    ],
)
def test_what_is_anothers_can_neither_be_read_nor_changed(
    sent: World, call: str, fields: dict[str, Any]
) -> None:
    assert asks(sent, call, **fields) == 403
    assert sent.inner.asked == []
    assert sent.told[0].startswith(f"The site a: {call} was refused: ")


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("pull-messages", {"node": Node(node_id=B)}),
        ("pull-messages", {"node": Node()}),
        ("send-node-heartbeat", {"node": Node(node_id=B)}),
        ("confirm-message-received", {"node": Node(node_id=B), "message_object_id": ORDER}),
        ("deactivate-node", {"node_id": B}),
        ("activate-node", {"public_key": b"another's"}),
    ],
)
def test_who_asks_by_anothers_number_is_to_learn_its_own(
    sent: World, call: str, fields: dict[str, Any]
) -> None:
    """At 401 Flower's program ends, and learns its number at the next start."""
    assert asks(sent, call, **fields) == 401
    assert sent.inner.asked == []
    assert sent.told == [f"The site a: {call} was refused: a request in another's name."]


def test_anothers_order_cannot_be_read(sent: World) -> None:
    assert asks(sent, "pull-object", object_id="b" * 64) == 410
    assert sent.inner.asked == []
    assert sent.told[0].startswith("The site a: pull-object was refused: ")


def test_a_receipt_is_never_refused_and_goes_no_further_where_it_is_nobodys(sent: World) -> None:
    """A server that was killed does not know whose order it was. Flower's program would drop the
    order, answer it all the same, and send every later answer an order late.
    """
    assert asks(sent, "confirm-message-received", message_object_id="b" * 64) == 200
    assert sent.inner.asked == []
    sent.inner.status = 403  # as of an order whose run was stopped
    assert asks(sent, "confirm-message-received", message_object_id=ORDER) == 200
    assert asks(sent, "pull-object", object_id="c" * 64) == 410, "it drops the order at once"
    sent.inner.status = 503
    assert asks(sent, "confirm-message-received", message_object_id=ORDER) == 503


def test_a_sign_of_life_that_flower_refuses_is_given_again(sent: World) -> None:
    """Flower's program at a site would give none from then on."""
    sent.inner.status = 500
    assert asks(sent, "send-node-heartbeat") == 503
    assert asks(sent, "pull-messages") == 500


def test_bytes_that_are_no_request_are_refused(sent: World) -> None:
    assert sent.ask(b"/v1/fleet/push-messages", b"\xff" * 100) == 403
    assert sent.ask(b"/v1/fleet/push-messages", b"\x1a\x02" * 5000) == 403
    assert sent.inner.asked == []


def test_an_orders_objects_are_its_sites_until_it_has_them(sent: World) -> None:
    def may(call: str, **fields: Any) -> int:
        request = CALLS[call][0](node=Node(node_id=A), run_id=RUN, **fields)
        return sent.ask(f"/v1/fleet/{call}".encode(), request.SerializeToString())

    assert may("pull-object", object_id="c" * 64) == 200
    assert may("confirm-message-received", message_object_id=ORDER) == 200
    assert may("pull-object", object_id="c" * 64) == 410


def test_a_site_uploads_what_flower_asked_for_and_no_more_bytes_than_the_limit(
    keys: dict[str, Any],
) -> None:
    fleet, member = Fleet(100), Member("a", A, keys["a"].public_key())
    order, tree = order_for()
    came = PullMessagesResponse(messages_list=[order], message_object_trees=[tree])
    asked = fleet.asked("pull-messages", member, pull())
    fleet.answered("pull-messages", member, asked, came.SerializeToString())
    asked = fleet.asked("push-messages", member, answer_to(order.metadata).SerializeToString())
    wanted = PushMessagesResponse(session_id="s", objects_to_push=["e" * 64])
    fleet.answered("push-messages", member, asked, wanted.SerializeToString())

    def push(number: str, content: bytes) -> None:
        fields = {
            "session_id": "s",
            "object_id": number,
            "object_content": content,
            "node": Node(node_id=A),
        }
        fleet.asked("push-object", member, CALLS["push-object"][0](**fields).SerializeToString())

    push("e" * 64, bytes(60))
    with pytest.raises(NotAllowedError, match="in no reply of its own"):
        push("f" * 64, b"")
    with pytest.raises(NotAllowedError, match="more bytes than"):
        push("e" * 64, bytes(60))


def test_a_run_says_nothing_of_the_servers_folders(sent: World) -> None:
    answer = GetRunResponse()
    answer.run.run_id, answer.run.fab_hash = RUN, "hash"
    answer.run.override_config["folder"].string = "/home/operator/dep"
    sent.inner.answers["get-run"] = answer.SerializeToString()
    request = GetRunRequest(node=Node(node_id=A), run_id=RUN)
    assert sent.ask(b"/v1/fleet/get-run", request.SerializeToString()) == 200
    assert b"/home/operator" not in sent.said[1]["body"]
    assert GetRunResponse.FromString(sent.said[1]["body"]).run.fab_hash == "hash"


# ---- a site outlives any order


ORDERS: list[tuple[dict[str, Any], bytes]] = [
    ({}, b""),
    ({"config": "", "run": "r"}, b"\x80\x04garbage"),
    ({"config": "[", "run": "r"}, encode(Order("a", 1, "train", {}))),
    ({"config": "x = 1", "run": "../.."}, encode(Order("a", 1, "train", {}))),
    ({"run": "r"}, encode(Order("a", 2, "train", {}))),
    ({"config": "name = 'x'"}, encode(Order("a", 2, "train", {}))),
    ({"config": "name = 'x'", "run": "\x00"}, encode(Order("a", 2, "train", {}))),
    ({"config": "name = 'x'", "run": "r"}, encode(Order("another", 3, "train", {}))),
    (
        {"config": "name = 'x'", "run": "r"},
        b'{"client": "a", "round": 1, "task": "train", "most": 0}\n' + b"\xff" * 8,
    ),
    ({"config": "name = 'x'", "run": "r"}, b"[" * 100_000 + b"\n"),
]


def test_a_site_answers_whatever_it_is_sent_and_lives_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Deployment.create(tmp_path / "dep", "localhost", 9443, ["a"])
    told: list[str] = []
    with answering(SiteFolder.at(tmp_path / "dep", "a"), told.append) as place:
        for about, data in ORDERS:
            answer = decode_reply(ask(place, about, data), 0)
            assert answer.error, (about, data[:50])
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(place)  # and who goes away
    assert len(told) >= len(ORDERS)
    assert "Traceback" not in "".join(told) + "".join(capfd.readouterr())


def test_an_order_without_anything_of_ours_is_carried_as_nothing(tmp_path: Path) -> None:
    Deployment.create(tmp_path / "dep", "localhost", 9443, ["a"])
    context: Any = SimpleNamespace(node_config={})
    empty, half = (
        RecordDict(),
        RecordDict({"about": ConfigRecord({"run": "r"}), "fedexperts": ArrayRecord()}),
    )
    with answering(SiteFolder.at(tmp_path / "dep", "a"), lambda _: None) as place:
        context.node_config["socket"] = place
        for content in (empty, half):
            sent, _ = order_for()
            sent.content.SetInParent()
            order = message_from_proto(sent)
            order.content = content
            assert (
                "cannot be answered"
                in decode_reply(bytes_in(courier.carry(order, context)), 0).error
            )


# ---- on a running federation


def statuses(federation: Federation, *requests: bytes) -> list[bytes]:
    """What is answered to raw bytes, each over a connection of its own: the status line's
    number.
    """
    context = ssl.create_default_context(cafile=str(federation.folder / "ca.crt"))
    found = []
    for request in requests:
        line = socket.create_connection(("127.0.0.1", federation.port), 10)
        with context.wrap_socket(line, server_hostname="localhost") as secure:
            secure.sendall(request)
            found.append(secure.recv(100).split()[1])
    return found


@pytest.mark.slow
def test_over_a_raw_socket_nothing_leads_to_flowers_other_calls(federation: Federation) -> None:
    """Whoever could submit a run could run code on the server: Flower asks operators for no
    password.
    """
    head = (
        b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\ncontent-length: 0\r\n\r\n"
    )
    paths = [path for path in SPELLINGS if path]
    methods = [b"GET", b"HEAD", b"PUT", b"CONNECT", b"TRACE", b"BREW"]
    requests = [b"POST " + path + head for path in paths]
    requests += [method + b" /v1/fleet/pull-messages" + head for method in methods]
    requests += [
        b"POST /v1/fleet/\x00" + head,
        b"POST /v1/fleet/\xff" + head,
        b"CONNECT localhost:1" + head,
        b"\r\nx\r\n\r\n",
    ]
    requests += [
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection:"
        b" upgrade\r\n\r\n"
    ]
    log = federation.folder / "flower" / "superlink.log"
    before = log.stat().st_size  # the operator's own runs, of other tests, stand in it
    found = statuses(federation, *requests)
    assert set(found) <= {b"404", b"400", b"401"}, list(zip(requests, found, strict=True))
    assert found.count(b"401") == 1  # the last: the right name, without a key
    since = log.read_bytes()[before:]
    assert b"StartRun" not in since
    assert b"start-run" not in since


def memory(process: int) -> float:
    """MB that a process holds."""
    words = Path(f"/proc/{process}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def stranger(
    federation: Federation, head: bytes, piece: bytes, pause: float, over: threading.Event
) -> None:
    """One who sends what it likes, for as long as it is let, and comes again."""
    context = ssl.create_default_context(cafile=str(federation.folder / "ca.crt"))
    while not over.is_set():
        try:
            line = socket.create_connection(("127.0.0.1", federation.port), 5)
            with context.wrap_socket(line, server_hostname="localhost") as secure:
                secure.sendall(head)
                while not over.is_set():
                    secure.sendall(piece)
                    time.sleep(pause)
        except OSError:
            time.sleep(0.05)


@pytest.fixture(scope="module")
def mallory(federation: Federation) -> Hostile:
    """A site of the running federation whose program is not ours; the last test removes it."""
    found = Hostile(federation.folder / "sites" / HOSTILE, federation.port)
    assert found.begins().node_id
    return found


@pytest.mark.slow
def test_strangers_hold_no_memory_and_keep_nobody_waiting(
    federation: Federation, mallory: Hostile
) -> None:
    server = federation.groups["server"].pid
    before, over = memory(server), threading.Event()
    large = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n"
    heads = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\nx-a: "
    crowd = (
        [(large, bytes(2**20), 0.0)] * 8
        + [(large, b"x", 0.2)] * 8
        + [(heads, b"y", 0.2)] * 8
        + [(b"", b"P", 1.0)] * 4
    )
    threads = [
        threading.Thread(target=stranger, args=(federation, *one, over), daemon=True)
        for one in crowd
    ]
    idle = [socket.create_connection(("127.0.0.1", federation.port)) for _ in range(40)]
    for thread in threads:
        thread.start()
    seconds, held = [], []
    try:
        for _ in range(20):
            began = time.monotonic()
            assert mallory.lives() == 200
            seconds.append(time.monotonic() - began)
            held.append(memory(server) - before)
            time.sleep(0.2)
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
        for line in idle:
            line.close()
    assert max(held) < 60, held  # MB, of 480 and more that are sent
    assert max(seconds) < 5, seconds


def orders_of_others(federation: Federation, node: int) -> list[tuple[str, int]]:
    """Orders to other sites and the sites' numbers, as a leak would tell them."""
    with sqlite3.connect(f"file:{federation.folder}/flower/state.db?mode=ro", uri=True) as database:
        rows = database.execute("select message_id, dst_node_id from message_ins").fetchall()
    return [(number, to % 2**64) for number, to in rows if to % 2**64 != node]


def upload(mallory: Hostile, order: Message, content: bytes, objects: dict[str, bytes]) -> Any:
    """Push, in its own name, a reply to an order whose root object is `content`, and its
    objects.
    """
    root, said = get_object_id(content), Message(metadata=order.metadata)
    said.metadata.message_id, said.metadata.reply_to_message_id = root, order.metadata.message_id
    said.metadata.src_node_id, said.metadata.dst_node_id = mallory.node, order.metadata.src_node_id
    said.content.SetInParent()
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=number) for number in objects])
    came = mallory.pushes(said, tree)
    for number in came.objects_to_push:
        whole = objects | {root: content}
        assert (
            mallory.pushes_object(order.metadata.run_id, came.session_id, number, whole[number])
            == 200
        )
    return said, tree


def as_another(order: Message, victim: str) -> tuple[bytes, dict[str, bytes]]:
    """An honest site's reply in every byte, but that it says to be another's, to the other's
    order.
    """
    claim = Reply("as-scanned-0", 1, "train", {}, 10)
    made = reply(encode(claim), message_from_proto(order))
    made.metadata.__dict__["_reply_to_message_id"] = victim
    parts = {number: part.deflate() for number, part in get_all_nested_objects(made).items()}
    return parts.pop(made.object_id), parts


def junk(order: Message) -> tuple[bytes, dict[str, bytes]]:
    """Objects that Flower stores, and cannot read; others for every order."""
    body = b"\xff" * 5 + order.metadata.message_id.encode()
    return b"Message  %d\x00%s" % (len(body), body), {}


def pulled(mallory: Hostile) -> Message:
    """The next order to mallory."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        mallory.lives()
        if found := mallory.call("pull-messages").messages_list:
            return found[0]
        time.sleep(0.3)
    raise AssertionError("no order came")


@pytest.mark.slow
def test_a_hostile_site_speaks_for_nobody_else_and_ends_no_run(
    federation: Federation, mallory: Hostile
) -> None:
    asked = {"sites": ["as-scanned-0", "mallory"], "deadline": 40.0}
    run = federation.submit("hostile", run={"rounds": 2, "evaluate_every": 2}, engine=asked)
    order = pulled(mallory)  # of round 0: to predict
    number, at = order.metadata.run_id, order.metadata.message_id
    federation.until(lambda: bool(orders_of_others(federation, mallory.node)), "the other's order")
    victim, other = orders_of_others(federation, mallory.node)[-1]

    # what is another's cannot be read, taken away, ordered or answered
    tree = ObjectTree(object_id="f" * 64)
    command = Message(metadata=order.metadata)
    command.metadata.message_id, command.metadata.dst_node_id = "f" * 64, other
    forged = Message(metadata=command.metadata)
    forged.metadata.src_node_id, forged.metadata.reply_to_message_id = other, victim
    forged.metadata.dst_node_id = order.metadata.src_node_id
    own_name = Message(metadata=forged.metadata)
    own_name.metadata.src_node_id = mallory.node
    assert [mallory.pushes(message, tree) for message in (command, forged, own_name)] == [403] * 3
    assert mallory.call("pull-object", run_id=number, object_id=victim) == 410
    mallory.call("confirm-message-received", run_id=number, message_object_id=victim)  # in vain
    assert mallory.call("pull-messages", node=Node(node_id=other)) == 401
    assert mallory.call("get-run", run_id=number + 1) == 403
    assert str(federation.folder) not in str(mallory.call("get-run", run_id=number))
    assert mallory.call("pull-object", run_id=number, object_id=at).object_content
    said = federation.said("server").replace("\n", " ")
    for why in (
        "an order of its own",
        "a reply in another's name",
        "a reply to an order that it was not sent",
    ):
        assert f"The site mallory: push-messages was refused: {why}." in said

    # what it says within its own reply is believed by nobody, and what cannot be read ends nothing
    first = upload(mallory, order, *as_another(order, victim))
    assert mallory.pushes(*first) != 403  # the same again
    second = Message(metadata=first[0].metadata)
    second.metadata.message_id = "f" * 64
    assert mallory.pushes(second, tree) == 403
    upload(mallory, training := pulled(mallory), *as_another(training, victim))
    for _ in ("train", "predict"):
        upload(mallory, order := pulled(mallory), *junk(order))
    assert federation.finished("hostile") == 0, federation.words()
    rows = run.rows()
    assert [list(row["trained"]) for row in rows] == [["as-scanned-0"]] * 2
    whys = [row["refused"]["mallory"] for row in rows]
    assert "it says that it is 'as-scanned-0'" in whys[0]
    assert "its reply cannot be read" in whys[1]


@pytest.mark.slow
def test_a_removed_sites_live_session_is_refused_at_its_next_call(
    federation: Federation, mallory: Hostile
) -> None:
    assert mallory.lives() == 200
    command = federation.command("remove", str(federation.folder), "mallory")
    subprocess.run(command, env=federation.environment, check=True, capture_output=True, timeout=60)
    end = time.monotonic() + 5  # the server looks at its list every second
    while mallory.lives() == 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert mallory.lives() == 401
    assert mallory.call("pull-messages") == 401
    assert mallory.begins() == 412


@pytest.mark.slow
def test_everything_in_a_deployments_folders_is_its_owners_alone(federation: Federation) -> None:
    """The programs of this federation were started with umask 0."""
    places = [federation.folder, *(federation.path / name for name in SITES)]
    found = [
        path for place in places for path in (place, *place.rglob("*")) if not path.is_symlink()
    ]
    assert {"state.db", "node.key", "supernode.log"} <= {path.name for path in found}
    assert [path for path in found if path.stat().st_mode & 0o077] == []


def test_a_folder_that_was_carried_carelessly_is_closed(tmp_path: Path) -> None:
    made = Deployment.create(tmp_path / "dep", "localhost", 9443, ["a"])
    for path in (made.path, *made.path.rglob("*")):
        path.chmod(0o777)
    owners_alone(made.path)
    assert {path.stat().st_mode & 0o777 for path in (made.path, *made.path.rglob("*"))} == {0o700}
