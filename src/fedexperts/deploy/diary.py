"""A log that lasts for months: every line with its time, appended, and put aside when it is long.

    NAME.log      the newest lines
    NAME.log.1    those before

A full disk loses lines and stops nobody. This room does not know who speaks.
"""

import os
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

LONGEST = 10_000_000  # bytes of a log, after which it is put aside
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


class Diary:
    """A log, and the lines that came since it was opened, the newest of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: deque[str] = deque(maxlen=1000)
        self.count = 0  # of all lines, also of those that are not kept
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, line: str) -> None:
        """One more line, whatever becomes of the disk."""
        bare = _COLOURS.sub("", line).rstrip()
        plain = "".join(mark if mark.isprintable() else " " for mark in bare)
        self.lines.append(plain)
        self.count += 1
        try:
            if self.path.exists() and self.path.stat().st_size > LONGEST:
                os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {plain}\n")
        except OSError:
            pass  # a full disk: what is said is lost, and the work goes on

    def follow(self, stream: IO[bytes]) -> threading.Thread:
        """Take down what a program says, until it is silent for good."""

        def listen() -> None:
            with stream:
                for line in stream:
                    self.add(line.decode(errors="replace"))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        return thread

    def since(self, count: int) -> list[str]:
        """The lines after so many."""
        new = min(self.count - count, len(self.lines))
        return list(self.lines)[len(self.lines) - new :]

    def holds(self, word: str) -> bool:
        """Whether a line that came since the beginning has this word."""
        return any(word in line for line in list(self.lines))

    def last(self) -> str:
        """What it says was wrong; or its last words."""
        lines = [line.strip() for line in list(self.lines) if line.strip()]
        wrong = [position for position, line in enumerate(lines) if line.startswith("ERROR")]
        last = lines[-1:]
        if wrong:
            last = lines[wrong[-1] + 1 : wrong[-1] + 3]
        return " ".join(last)[:300] or "it said nothing"
