"""How far a study is: a bar in a terminal; without one, a line now and then.

This room hears of rounds; it does not know what is run.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .terminal import err

if TYPE_CHECKING:
    from .. import units

QUIET = 30.0  # seconds between two lines, at least


@contextmanager
def progress() -> Iterator["units.Progress"]:
    """What hears of every beat of a study, and shows it."""
    if not err.is_terminal:
        yield Lines(lambda line: err.print(line, soft_wrap=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[unit]}"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[remark]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(beat: "units.Beat") -> None:
            if beat.what not in tasks:
                tasks[beat.what] = bar.add_task(
                    beat.what, total=beat.total, unit=beat.unit, remark=""
                )
            number = tasks[beat.what]
            remark = f"{beat.clients or '...'} clients per round"
            if beat.unit == "example":
                speed = next(task.speed for task in bar.tasks if task.id == number)
                remark = f"{1000 / speed:.3g} ms each" if speed else "..."
            bar.update(number, completed=beat.done, total=beat.total, remark=remark)

        yield tell


@dataclass
class Lines:
    """A line at a round's end, the last always, others at most every `QUIET` seconds."""

    write: Callable[[str], object]
    clock: Callable[[], float] = time.monotonic
    _begun: dict[str, tuple[float, int]] = field(default_factory=dict)
    _written: tuple[str, int] = ("", -1)
    _when: float = -QUIET

    def __call__(self, beat: "units.Beat") -> None:
        now = self.clock()
        began, first = self._begun.setdefault(beat.what, (now, beat.done))
        last = beat.done == beat.total
        if (beat.what, beat.done) == self._written or (now - self._when < QUIET and not last):
            return
        self._written, self._when = (beat.what, beat.done), now
        said = [f"{beat.what}: {beat.unit} {beat.done} of {beat.total}"]
        if beat.valid is not None:
            said.append(f"{beat.run} has {beat.valid:.1f} % on validation data")
        if beat.done > first and not last:
            left = (now - began) / (beat.done - first) * (beat.total - beat.done)
            said.append(f"{timedelta(seconds=round(left))} left")
        self.write(", ".join(said))
