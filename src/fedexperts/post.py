"""How our bytes travel in Flower's messages, and from Flower's process at a site to the one that
answers.

Every process that Flower starts for a message imports this, so it imports nothing heavy; it does
not know what the bytes mean. Between processes of one machine they go through a socket in a folder
that only its owner can open.
"""

import json
import socket
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

_WORD = "fedexperts"  # the record's name and the array's in each message
_LONGEST = 2**40  # bytes of a frame; more is a mistake

About = Mapping[str, str]  # what another process must know to build the same job


def question(data: bytes, about: About, node: int, deadline: float, group: str) -> Message:
    """A message to a node that is answered within `deadline` seconds or forgotten."""
    content = RecordDict({_WORD: _carried(data), "about": ConfigRecord(dict(about))})
    return Message(content, node, "query", ttl=deadline, group_id=group)


def reply(data: bytes, to: Message) -> Message:
    """The answer to a message."""
    return Message(RecordDict({_WORD: _carried(data)}), reply_to=to)


def about_in(message: Message) -> dict[str, str]:
    """What a question says beside its bytes; ValueError if it says nothing."""
    try:
        return {key: str(value) for key, value in message.content.config_records["about"].items()}
    except (KeyError, ValueError):
        raise ValueError("a message that does not say what it is about") from None


def bytes_in(message: Message) -> bytes:
    """Our bytes in a message; ValueError if it holds something else."""
    try:
        return message.content.array_records[_WORD][_WORD].data
    except (KeyError, ValueError):
        raise ValueError("a message without bytes of ours") from None


def _carried(data: bytes) -> ArrayRecord:
    """Bytes as Flower carries them in pieces: an array that nobody but us opens."""
    return ArrayRecord({_WORD: Array("uint8", (len(data),), _WORD, data)})


def ask(path: str, about: About, data: bytes) -> bytes:
    """What the process behind the socket at `path` answers."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        put(line, json.dumps(dict(about)).encode())
        put(line, data)
        return take(line)


def put(line: socket.socket, data: bytes) -> None:
    """Send one frame."""
    line.sendall(len(data).to_bytes(8, "big") + data)


def take(line: socket.socket) -> bytes:
    """Receive one frame; ConnectionError if the other side is gone."""
    length = int.from_bytes(_exactly(line, 8), "big")
    if length > _LONGEST:
        raise ConnectionError(f"a frame of {length} bytes")
    return _exactly(line, length)


def _exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = line.recv(min(count - len(data), 2**20))
        if not piece:
            raise ConnectionError("the process at the other end is gone")
        data += piece
    return bytes(data)
