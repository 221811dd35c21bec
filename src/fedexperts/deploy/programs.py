"""A program of Flower's, started and ended with us, its words in a diary; and one of ours at a time
in a folder.

This room does not know what the programs do.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import config as door
from .diary import Diary


class FlowerError(ChildProcessError):
    """What one of Flower's programs said when it failed."""


@dataclass(frozen=True)
class Program:
    """A program that runs, and what it has said so far."""

    process: "subprocess.Popen[bytes]"
    words: Diary
    listener: threading.Thread

    def ended(self) -> bool:
        """Whether it has; then all that it said has been taken down."""
        if self.process.poll() is None:
            return False
        self.listener.join(2)  # its own children may hold its line open
        return True


@contextmanager
def program(command: Sequence[str], log: Path, told: Mapping[str, str] = {}) -> Iterator[Program]:
    """A program that ends with us, its words in a log, its files beside it."""
    words = Diary(log)
    environment = door.flower_environment(log.parent) | dict(told)
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_end_with_parent,
    )
    assert process.stdout is not None
    listener = words.follow(process.stdout)
    try:
        yield Program(process, words, listener)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        listener.join(2)


def _end_with_parent() -> None:
    """On Linux, a child of a killed parent ends too, so that its port is free for the next."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextmanager
def alone(folder: Path, who: str) -> Iterator[None]:
    """Nobody else runs in the folder meanwhile; ValueError if somebody does."""
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().strip() or "unknown"
            raise ValueError(
                f"{who} runs already in {folder}, as process {process}: stop that first (`kill"
                f" {process}`, or by its service manager)"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
