"""A site as somebody would write one who means harm: its key is registered, and its program is not
ours.
"""

import datetime
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node

from fedexperts.deploy.fleet import CALLS
from fedexperts.deploy.members import SHOWN


def signed(key: ec.EllipticCurvePrivateKey, late: float = 0) -> dict[str, str]:
    """The headers by which a site shows its key; `late` seconds ago."""
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    time = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=late)).isoformat()
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    shown = b64encode(public).decode(), time, b64encode(signature).decode()
    return dict(zip(SHOWN, shown, strict=True)) | {"content-type": "application/protobuf"}


def private_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = form.load_ssh_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


class Hostile:
    """Asks the server at `port` whatever it likes, with a key of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.key = private_key(folder / "node.key")
        trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self.line = httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=20)
        self.node = 0

    def ask(self, call: str, body: bytes) -> httpx.Response:
        return self.line.post(f"/v1/fleet/{call}", content=body, headers=signed(self.key))

    def call(self, call: str, **fields: Any) -> Any:
        """What is answered; the status, if it is an error."""
        request, answer = CALLS[call]
        if "node" in request.DESCRIPTOR.fields_by_name:
            fields = {"node": Node(node_id=self.node)} | fields
        came = self.ask(call, request(**fields).SerializeToString())
        return answer.FromString(came.content) if came.status_code == 200 else came.status_code

    def begins(self) -> Any:
        public = self.key.public_key().public_bytes(
            form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
        )
        found = self.call("activate-node", public_key=public, heartbeat_interval=30)
        self.node = getattr(found, "node_id", 0)
        return found

    def lives(self) -> Any:
        beat = SendNodeHeartbeatRequest(node=Node(node_id=self.node), heartbeat_interval=30)
        return self.ask("send-node-heartbeat", beat.SerializeToString()).status_code

    def pushes(self, message: Message, tree: ObjectTree, **fields: Any) -> Any:
        return self.call(
            "push-messages", messages_list=[message], message_object_trees=[tree], **fields
        )

    def pushes_object(self, run: int, session: str, number: str, content: bytes) -> Any:
        request = PushObjectRequest(
            node=Node(node_id=self.node),
            run_id=run,
            session_id=session,
            object_id=number,
            object_content=content,
        )
        return self.ask("push-object", request.SerializeToString()).status_code
