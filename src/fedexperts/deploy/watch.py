"""What to say of a run while it goes on, read off its folder; nothing here changes anything but the
state of a run that nobody carries out any more.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import study
from ..metrics import Row, by_round, changes, score
from .control import carried_out
from .folder import Deployment
from .presence import Heard, heard_sites
from .programs import FlowerError
from .runs import Part, Run, Status

_LOOK = 0.5  # seconds between looks at the folder
# seconds without a sign of life after which the server is asked whether the run is carried out
_QUIET = 15.0
_STUCK = 120.0  # and after which the loop is said to be stuck


def lines(deployment: Deployment, run: Run) -> Iterator[str]:
    """A line for every change of who is there and every finished round, until the run is over."""
    said, asked, trouble, chose = Status(), time.monotonic(), "", False
    news = {part.path: _News(run, part) for part in run.parts()}
    for known in news.values():
        known.pass_over()
    while True:
        status = run.status
        if _differs(status, said) and not status.over:
            yield _standing(run, status)
            said = status
        begun = run.parts()
        if not chose and any(run.named(part).startswith("seed-") for part in begun):
            yield from _chosen(run)
            chose = True
        for part in begun:
            if part.path not in news:
                news[part.path] = _News(run, part)
            yield from news[part.path].lines(status.later)
        if status.over:
            return
        if run.quiet() > _QUIET and time.monotonic() > asked + _QUIET:
            already, trouble = trouble, _look_after(deployment, run)
            if trouble and trouble != already:
                yield trouble
            asked = time.monotonic()
        time.sleep(_LOOK)


class _News:
    """What has been said of one run: of each finished round and each evaluation once."""

    def __init__(self, run: Run, part: Part) -> None:
        self._part, self._name = part, run.named(part)
        self._rounds = int(part.config.values["run"]["rounds"])
        self._told = 0  # rounds
        self._reached: set[int] = set()  # rounds whose accuracy was told

    def pass_over(self) -> None:
        """What there is already is not told."""
        self._told, self._reached = len(self._part.rows()), set(_reached(self._part))

    def lines(self, later: int) -> Iterator[str]:
        """What is new; `later` is how many rounds come after those of this run."""
        if self._told == self._rounds and self._rounds in self._reached:
            return
        before = ""
        if self._name:
            before = f"{self._name}, "
        for line in self._new_lines(later):
            yield before + line

    def _new_lines(self, later: int) -> Iterator[str]:
        finished = self._part.rows()
        new = finished[self._told :]
        for row in new:
            yield _round(row, self._rounds, _left(finished, self._rounds, later))
        for round, client, what in _changed(finished):
            if round in {row["round"] for row in new}:
                yield (
                    f"round {round}: the data of {client} are not what they were when they were"
                    f" split: {what}"
                )
        self._told = len(finished)
        reached = _reached(self._part)
        for round in reached.keys() - self._reached:
            yield f"after round {round}: accuracy {reached[round]:.1f}%, the mean of the sites"
        self._reached = set(reached)


def _differs(status: Status, said: Status) -> bool:
    return (status.state, status.missing, status.why, status.part) != (
        said.state,
        said.missing,
        said.why,
        said.part,
    )


def _look_after(deployment: Deployment, run: Run) -> str:
    """Write down that a run has failed if nobody carries it out any more; what is wrong with it
    otherwise.
    """
    try:
        if carried_out(deployment, run):
            if not run.number and run.waited() > _STUCK:
                return (
                    f"the server has not begun the run in {_STUCK:g} s: it is very busy, or older"
                    " than this program, and is to be started again"
                )
            if run.number and _STUCK < run.quiet() < float("inf"):
                return (
                    f"the server's part of the run has shown no sign of life for {_STUCK:g} s:"
                    " it computes for long, or is stuck; `fedexperts deploy stop` ends it"
                )
            return ""
    except FlowerError as error:
        return f"the server is gone, and the run goes on by itself once it is there: {error}"
    if not run.status.over:
        gone = "Flower's process, which carried it out, ended"
        run.stands(replace(run.status, state="failed", why=gone))
    return ""


def _changed(rows: list[Row]) -> list[tuple[int, str, str]]:
    trained = [
        facts | {"round": row["round"], "client": client}
        for row in rows
        for client, facts in row["trained"].items()
    ]
    return changes(trained)


def _standing(run: Run, status: Status) -> str:
    said = f"{status.state}: {', '.join(status.online) or 'nobody'} connected"
    name = run.named(run.now)
    if name:
        said = f"{name} {said}"
    if status.missing:
        said += f"; missing: {', '.join(status.missing)}"
    if status.why:
        said += f"; {status.why}"
    return said


def _chosen(run: Run) -> Iterator[str]:
    """With which values a study's seeds are run, if it chose them."""
    chosen = study.choose(run.path, run.config)
    values = ", ".join(f"{key} = {value}" for key, value in chosen.items())
    if values:
        yield f"each seed runs with {values}, the best on validation data"


def _round(row: Row, rounds: int, left: float | None) -> str:
    trained, refused = row["trained"], row["refused"]
    said = (
        f"round {row['round']} of {rounds}: {len(trained)} of {len(trained) + len(refused)} sites,"
        f" {row['seconds']:.1f} s, {row['bytes_down'] / 1000:.1f} kB down and"
        f" {row['bytes_up'] / 1000:.1f} kB up a site"
    )
    if left:
        said += f", about {_duration(left)} left"
    return said + "".join(f"; {client}: {why}" for client, why in refused.items())


def _reached(part: Part) -> dict[int, float]:
    """The mean accuracy of the sites on their own test parts, by evaluated round."""
    rounds = by_round(part.folder.rows("clients.jsonl"))
    return {round: score(rows).mean for round, rows in rounds.items()}


def _left(rows: list[Row], rounds: int, later: int) -> float | None:
    """Seconds that the rest may take, as the newest rounds did; None if nobody can tell."""
    newest: list[float] = [row["seconds"] for row in rows[-5:] if "seconds" in row]
    if not newest:
        return None
    left: int = rounds - rows[-1]["round"] + later
    return left * sum(newest) / len(newest)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def snapshot(deployment: Deployment, run: Run) -> dict[str, Any]:
    """How a run stands, in plain values for a monitor."""
    status, now = run.status, run.now
    rows, reached = now.rows(), _reached(now)
    newest: Row = {"trained": {}, "refused": {}, "round": 0}
    if rows:
        newest = rows[-1]
    heard = heard_sites(deployment.path / "flower")
    accuracy = None
    if reached:
        accuracy = reached[max(reached)]
    return {
        "run": run.path.name,
        "part": run.named(now),
        "state": status.state,
        "why": status.why,
        "server": heard is not None,
        "round": newest["round"],
        "rounds": status.rounds,
        "accuracy": accuracy,
        "seconds_left": _left(rows, status.rounds, status.later),
        "sites": {
            name: _site(name, deployment, newest, heard or {})
            for name in run.config.values["engine"]["sites"]
        },
    }


def _site(
    name: str, deployment: Deployment, newest: Row, heard: dict[str, Heard]
) -> dict[str, Any]:
    facts = heard.get(name, Heard())
    state, why = "online", newest["refused"].get(name, "")
    if name not in deployment.sites:
        state = "removed"
    elif not facts.connected:
        state = "offline"
    elif why.startswith("no reply within"):
        state = "late"
    elif why:
        state = "refused"
    return {
        "state": state,
        "why": why,
        "version": facts.version,
        "bytes_in": facts.bytes_in,
        "bytes_out": facts.bytes_out,
    }


def snapshots(deployment: Deployment, run: Run) -> Iterator[str]:
    """A line of JSON for each change, until the run is over; bytes alone are no change."""
    said: dict[str, Any] = {}
    asked = time.monotonic()
    while True:
        over = run.status.over
        now = snapshot(deployment, run)
        if run.quiet() > _QUIET and time.monotonic() > asked + _QUIET and not over:
            _look_after(deployment, run)
            asked = time.monotonic()
        if _without_bytes(now) != _without_bytes(said):
            yield json.dumps(now)
            said = now
        if over:
            return
        time.sleep(_LOOK)


def _without_bytes(now: dict[str, Any]) -> dict[str, Any]:
    sites = {
        name: {key: value for key, value in facts.items() if not key.startswith("bytes")}
        for name, facts in now.get("sites", {}).items()
    }
    return now | {"sites": sites}
