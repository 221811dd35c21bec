"""What a site may ask of Flower's server: for itself, in its own name, about orders that were sent
to it.

Flower checks who signs a request and nothing of what it says: it would store an order from one site
to another, and hand any object to whoever knows its hash. This room reads requests and answers, and
remembers what each site was sent. It knows no HTTP, and not what an order means.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from google.protobuf.message import DecodeError, Message

from .members import Member

T = TypeVar("T")
Request = Any  # one of Flower's, which has a class for each call

_KEPT = 1000  # orders of a site, the newest, to which it may reply

# request and answer; register-node needs no outside
CALLS: Mapping[str, tuple[type[Message], type[Message]]] = {
    "activate-node": (fleet_pb2.ActivateNodeRequest, fleet_pb2.ActivateNodeResponse),
    "deactivate-node": (fleet_pb2.DeactivateNodeRequest, fleet_pb2.DeactivateNodeResponse),
    "send-node-heartbeat": (
        heartbeat_pb2.SendNodeHeartbeatRequest,
        heartbeat_pb2.SendNodeHeartbeatResponse,
    ),
    "pull-messages": (fleet_pb2.PullMessagesRequest, fleet_pb2.PullMessagesResponse),
    "push-messages": (fleet_pb2.PushMessagesRequest, fleet_pb2.PushMessagesResponse),
    "get-run": (run_pb2.GetRunRequest, run_pb2.GetRunResponse),
    "get-fab": (fab_pb2.GetFabRequest, fab_pb2.GetFabResponse),
    "push-object": (message_pb2.PushObjectRequest, message_pb2.PushObjectResponse),
    "pull-object": (message_pb2.PullObjectRequest, message_pb2.PullObjectResponse),
    "confirm-message-received": (
        message_pb2.ConfirmMessageReceivedRequest,
        message_pb2.ConfirmMessageReceivedResponse,
    ),
}


class NotAllowedError(Exception):
    """What a site asked is not its to ask; the words are ours alone, none of the site's."""

    status = 403  # of HTTP


class AnothersNameError(NotAllowedError):
    """It is not who it says. An honest site learned a number that Flower has given anew since: its
    program is to end, and to ask for its number again.
    """

    status = 401


@dataclass
class _Order:
    """A message that a site pulled, and what of it the site may still pull."""

    metadata: message_pb2.Metadata
    objects: set[str]
    reply: str = ""  # its message's number, once there is one


@dataclass
class _Upload:
    """A reply's objects that the site may push, and for how many bytes."""

    objects: set[str]
    left: int


@dataclass
class _Sent:
    """What one site was sent, and what of its own it may send."""

    orders: dict[str, _Order] = field(default_factory=dict)
    uploads: dict[str, _Upload] = field(default_factory=dict)

    def order(self, number: str, of: str) -> _Order:
        if number not in self.orders:
            raise NotAllowedError(f"{of} an order that it was not sent")
        return self.orders[number]

    def remember(self, order: message_pb2.Message, tree: message_pb2.ObjectTree) -> None:
        self.orders[order.metadata.message_id] = _Order(order.metadata, _objects(tree))
        _forget(self.orders)


class Fleet:
    """The rules, and what has happened so far. `upload` is how many bytes one reply may have."""

    def __init__(self, upload: int) -> None:
        self._upload = upload
        self._sites: dict[str, _Sent] = {}

    def asked(self, call: str, member: Member, body: bytes) -> Request:
        """The request of a member; NotAllowedError if it is not the member's to ask."""
        request: Request = CALLS[call][0]()
        try:
            request.ParseFromString(body)
        except DecodeError:
            raise NotAllowedError("a request that cannot be read") from None
        if not _own(request, member):
            raise AnothersNameError("a request in another's name")
        if rule := _RULES.get(call):
            rule(self._sent(member), request)
        return request

    def answered(self, call: str, member: Member, request: Request, content: bytes) -> bytes:
        """What the member gets of Flower's answer; what later requests refer to is remembered."""
        reading = {
            "pull-messages": self._pulled,
            "push-messages": self._pushed,
            "get-run": _without_paths,
        }.get(call)
        if not reading:
            return content
        response: Any = CALLS[call][1].FromString(content)
        reading(self._sent(member), request, response)
        return response.SerializeToString() if call == "get-run" else content

    def _sent(self, member: Member) -> _Sent:
        return self._sites.setdefault(member.name, _Sent())

    def _pulled(
        self, sent: _Sent, request: Request, response: fleet_pb2.PullMessagesResponse
    ) -> None:
        for order, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            sent.remember(order, tree)

    def _pushed(
        self, sent: _Sent, request: Request, response: fleet_pb2.PushMessagesResponse
    ) -> None:
        metadata = request.messages_list[0].metadata
        sent.orders[metadata.reply_to_message_id].reply = metadata.message_id
        sent.uploads[response.session_id] = _Upload(set(response.objects_to_push), self._upload)
        _forget(sent.uploads)


def _own(request: Request, member: Member) -> bool:
    if isinstance(request, fleet_pb2.ActivateNodeRequest):
        return request.public_key == member.shown
    node = request.node.node_id if hasattr(request, "node") else request.node_id
    return bool(node == member.node)


def _may_reply(sent: _Sent, request: fleet_pb2.PushMessagesRequest) -> None:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise NotAllowedError("a push of several messages, or of none")
    said, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    if not said.reply_to_message_id:
        raise NotAllowedError("an order of its own")
    if said.src_node_id != request.node.node_id:
        raise NotAllowedError("a reply in another's name")
    order = sent.order(said.reply_to_message_id, "a reply to")
    if order.reply not in ("", said.message_id):
        raise NotAllowedError("a second reply to an order")
    if _about(said) != _about(order.metadata) or said.dst_node_id != order.metadata.src_node_id:
        raise NotAllowedError("a reply that does not fit its order")
    if tree.object_id != said.message_id:
        raise NotAllowedError("a reply whose objects are not its own")


def _about(said: message_pb2.Metadata) -> tuple[int, str, str]:
    return said.run_id, said.group_id, said.message_type


def _may_push(sent: _Sent, request: message_pb2.PushObjectRequest) -> None:
    upload = sent.uploads.get(request.session_id)
    if upload is None or request.object_id not in upload.objects:
        raise NotAllowedError("an object that is in no reply of its own")
    upload.left -= len(request.object_content)
    if upload.left < 0:
        raise NotAllowedError("a reply of more bytes than limits.upload")


def _may_pull(sent: _Sent, request: message_pb2.PullObjectRequest) -> None:
    if not any(request.object_id in order.objects for order in sent.orders.values()):
        raise NotAllowedError("an object of an order that it was not sent")


def _may_confirm(sent: _Sent, request: message_pb2.ConfirmMessageReceivedRequest) -> None:
    sent.order(request.message_object_id, "a receipt for").objects.clear()


def _in_run(sent: _Sent, request: Request) -> None:
    if not any(order.metadata.run_id == request.run_id for order in sent.orders.values()):
        raise NotAllowedError("a run that it was sent no order of")


def _without_paths(sent: _Sent, request: Request, response: run_pb2.GetRunResponse) -> None:
    """The run's config says where on the server its folder lies; a site needs nothing of it."""
    response.run.override_config.clear()


_RULES: Mapping[str, Callable[[_Sent, Request], None]] = {
    "push-messages": _may_reply,
    "push-object": _may_push,
    "pull-object": _may_pull,
    "confirm-message-received": _may_confirm,
    "get-run": _in_run,
    "get-fab": _in_run,
}


def _objects(tree: message_pb2.ObjectTree) -> set[str]:
    return {tree.object_id}.union(*(_objects(child) for child in tree.children))


def _forget(kept: dict[str, T]) -> None:
    """Keep the newest alone."""
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]
