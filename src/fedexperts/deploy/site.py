"""The process that answers at a site: it holds the model and the data, and answers one order after
the other.

Orders come through a socket that only this user can open. Nothing here knows how they came to this
machine.
"""

import json
import os
import socketserver
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread

from .. import config as door
from ..client import Client, Job
from ..data.federation import check_folder
from ..flower import answered
from ..message import Order, Reply, decode_order, encode, packed_in
from ..post import About, put, take
from . import consent
from .sitefolder import SiteFolder

Tell = Callable[[str], None]


@contextmanager
def answering(site: SiteFolder, tell: Tell) -> Iterator[str]:
    """A socket behind which the site's orders are answered, as long as it is needed; its path."""
    one_at_a_time = Lock()

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                about: About = json.loads(take(self.request))
                data = take(self.request)
                with one_at_a_time:
                    began = time.monotonic()
                    reply, what = _answer(site, about, data, tell)
                    took = time.monotonic() - began
                    size = f"{len(data):,} bytes in, {len(reply):,} bytes out"
                    tell(f"{_called(about)}, {what} ({size}, {took:.1f} s)")
                put(self.request, reply)
            # Flower's process ended meanwhile, as it does when a run is stopped
            except ConnectionError as error:
                tell(f"An answer was not wanted any more: {error}.")

    # its owner's alone; a socket's path must be short
    with TemporaryDirectory(prefix="fedexperts-") as folder:
        path = str(Path(folder) / "orders")
        with socketserver.ThreadingUnixStreamServer(path, Line) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield path
            finally:
                server.shutdown()


def _answer(site: SiteFolder, about: About, data: bytes, tell: Tell) -> tuple[bytes, str]:
    """The reply to an order, and what to say of it. A site outlives whatever a server sends."""
    try:
        reply, what = answered(lambda name: _here(site, about, name, tell), data)
        return _within(site, reply, what, data)
    except Exception as error:
        why = f"an order that cannot be answered: {type(error).__name__}: {str(error)[:200]!r}"
        asked = _asked(site, data)
        return (
            encode(Reply(site.name, asked.round, asked.task, error=why)),
            f"The server sent {why}",
        )


def _within(site: SiteFolder, reply: bytes, what: str, data: bytes) -> tuple[bytes, str]:
    """The reply, if the site lets so many bytes out; or the reason."""
    try:
        door.Allowed.read(site.allowed).check_upload(packed_in(reply))
    except ValueError as error:
        asked = _asked(site, data)
        kept = Reply(site.name, asked.round, asked.task, error=str(error))
        return encode(kept), f"round {asked.round}: {asked.task} failed: {error}"
    return reply, what


def _called(about: About) -> str:
    """The run's name, as its operator gave it."""
    return str(about.get("run", "a run without a name")).rpartition("-")[0][:200] or "a run"


def _asked(site: SiteFolder, data: bytes) -> Order:
    """What an order asks, as far as it can be read."""
    try:
        return decode_order(data)
    except ValueError:
        return Order(site.name, 0, "train", {})


def _here(site: SiteFolder, about: About, name: str, tell: Tell) -> tuple[Job, Client]:
    """The job of an order, and this site with its own data; ValueError if it is another's."""
    if name != site.name:
        raise ValueError(f"this is the site {site.name}, not {name}")
    allowed = door.Allowed.read(site.allowed)
    allowed.check_run(about.get("study") or _called(about))
    run = _Asked(about["config"], _safe(about["run"]), consent.of_study(about))
    return _built_once(run, site, json.dumps(site.data), site.files_seen(), allowed, tell)


@dataclass(frozen=True)
class _Asked:
    """A run as the server tells of it."""

    config: str
    name: str
    study: str  # of which study it is, in words; nothing, if it stands alone


@lru_cache(maxsize=1)
def _built_once(
    run: _Asked, site: SiteFolder, data: str, files: str, allowed: door.Allowed, tell: Tell
) -> tuple[Job, Client]:
    """Built anew where any of this is not what it was: what `files` says of the site's, too."""
    splits, private = site.path / "split", site.path / "private" / run.name
    own = json.loads(data)
    job, client, changed = door.site(run.config, site.name, own, private, splits, allowed)
    if changed:
        line = f"The data changed since they were split, in {splits}. {changed}"
        tell(line)
        with open(
            splits / "changes.log",
            "a",
            encoding="utf-8",
            opener=lambda path, flags: os.open(path, flags, 0o600),
        ) as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} run {run.name}. {line}\n")
    for line in consent.leaving(run.name, job, site.name, run.study):
        tell(line)
    return job, client


def _safe(run: str) -> str:
    """A run's name as the name of a folder; ValueError for one that would lead elsewhere."""
    check_folder(f"the run's name {run!r:.200}", run)
    return run
