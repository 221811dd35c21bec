"""Trackers of a deployment's runs, told by whoever watches.

The server does not tell them: a tracker that hangs would hold up every site, and who may write to
it is known to the operator's terminal. What they are told is `track`'s to know.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import study
from ..track import PLACES
from ..units import Unit
from .runs import Run

Tell = Callable[[], None]


@contextmanager
def following(run: Run, warn: Callable[[str], None]) -> Iterator[Tell]:
    """Tells the trackers of a study, at each call, what is new in its runs, but for the trials.

    Nothing, if it has none, or another terminal tells them.
    """
    listed = run.path / PLACES
    if not listed.exists():
        yield _nothing
        return
    with open(listed, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _nothing
            return
        again = f"fedexperts deploy watch FOLDER {run.path.name}"
        with study.followed(run.path, warn, again) as follow:
            yield lambda: _tell(run, follow)


def _nothing() -> None:
    """Nobody hears."""


def _tell(run: Run, follow: Callable[[Unit], None]) -> None:
    for part in run.parts():
        if not run.named(part).startswith("tune/"):
            follow(Unit(part.config, part.path))
