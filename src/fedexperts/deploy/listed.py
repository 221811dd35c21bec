"""Flower's own list of sites: whose key has which number, and which has none any more.

Its server is asked on this machine, over one connection; its command line takes seconds for each
site. This room does not know whom the operator wants on that list.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import httpx
from flwr.proto import control_pb2

from .programs import FlowerError

_PATIENCE = 60.0  # seconds for an answer
_CALLS: dict[str, Any] = {
    "list-nodes": control_pb2.ListNodesResponse,
    "register-node": control_pb2.RegisterNodeResponse,
    "unregister-node": control_pb2.UnregisterNodeResponse,
}


class Listed:
    """The list, as long as a connection to Flower's server lasts."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def numbers(self) -> dict[bytes, str]:
        """The number of each key, as sites show it."""
        nodes = self._asked("list-nodes", control_pb2.ListNodesRequest()).nodes_info
        there = [node for node in nodes if node.status != "unregistered"]
        return {node.public_key: str(node.node_id) for node in there}

    def add(self, name: str, key: bytes) -> str:
        """The number that the key has from now on."""
        request = control_pb2.RegisterNodeRequest(public_key=key, name=name)
        return str(self._asked("register-node", request).node_id)

    def drop(self, number: str) -> None:
        self._asked("unregister-node", control_pb2.UnregisterNodeRequest(node_id=int(number)))

    def _asked(self, call: str, request: Any) -> Any:
        try:
            response = self._client.post(f"/v1/control/{call}", content=request.SerializeToString())
        except httpx.TransportError as error:
            raise FlowerError(f"Flower's server is not there: {error}") from None
        if response.status_code != 200:
            raise FlowerError(f"Flower's server, {call}: {response.text[:300]}")
        return _CALLS[call].FromString(response.content)


@contextmanager
def listed(port: int, authority: str) -> Iterator[Listed]:
    """The list of the server at this port, whose certificate is signed by `authority`, a file."""
    headers = {
        "content-type": "application/protobuf",
        "flwr-package-name": "flwr",
        "flwr-package-version": version("flwr"),
        "flwr-component-name": "fedexperts",
    }
    trusted = ssl.create_default_context(cafile=authority)
    with httpx.Client(
        base_url=f"https://127.0.0.1:{port}",
        verify=trusted,
        headers=headers,
        timeout=_PATIENCE,
        trust_env=False,  # no proxy leads to this machine
    ) as client:
        yield Listed(client)
