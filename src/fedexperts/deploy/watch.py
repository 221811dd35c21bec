"""What to say of a run while it goes on, read off its folder; nothing here changes anything."""

import time
from collections.abc import Iterator

from ..metrics import Row, changes
from .control import FlowerError, carried_out
from .folder import Deployment
from .runs import Run, Status

_LOOK = 0.5  # seconds between looks at the folder
# seconds without a sign of life after which the server is asked whether the run is carried out
_QUIET = 15.0


def lines(deployment: Deployment, run: Run) -> Iterator[str]:
    """A line for every change of who is there and every finished round, until the run is over."""
    said, rows, asked = Status(), len(run.rows()), time.monotonic()
    while True:
        status = run.status
        if (status.state, status.missing) != (said.state, said.missing) and not status.over:
            yield _standing(status)
            said = status
        finished = run.rows()
        for row in finished[rows:]:
            yield _round(row, status.rounds)
        for round, client, what in _changed(finished):
            if round in {row["round"] for row in finished[rows:]}:
                yield (
                    f"round {round}: the data of {client} are not what they were when they were"
                    f" split: {what}"
                )
        rows = len(finished)
        if status.over:
            return
        if run.quiet() > _QUIET and time.monotonic() > asked + _QUIET:
            _look_after(deployment, run)
            asked = time.monotonic()
        time.sleep(_LOOK)


def _look_after(deployment: Deployment, run: Run) -> None:
    """Write down that a run has failed if nobody carries it out any more."""
    try:
        if carried_out(deployment, run):
            return
        gone = "it was stopped, or Flower's process ended"
    except FlowerError as error:
        gone = f"the server is gone: {error}"
    if not run.status.over:
        run.stands(Status("failed", run.status.rounds, why=gone))


def _changed(rows: list[Row]) -> list[tuple[int, str, str]]:
    trained = [
        facts | {"round": row["round"], "client": client}
        for row in rows
        for client, facts in row["trained"].items()
    ]
    return changes(trained)


def _standing(status: Status) -> str:
    there = f"{', '.join(status.online) or 'nobody'} connected"
    if not status.missing:
        return f"{status.state}: {there}"
    return f"{status.state}: {there}; missing: {', '.join(status.missing)}"


def _round(row: Row, rounds: int) -> str:
    trained, refused = row["trained"], row["refused"]
    late = "".join(f"; {client}: {why}" for client, why in refused.items())
    return (
        f"round {row['round']} of {rounds}: {len(trained)} of {len(trained) + len(refused)} sites,"
        f" {row['seconds']:.1f} s, {row['bytes_down'] / 1000:.1f} kB down and"
        f" {row['bytes_up'] / 1000:.1f} kB up a site{late}"
    )
