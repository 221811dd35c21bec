"""The process that answers at a site: it holds the model and the data, and answers one order after the other.

Orders come through a socket that only this user can open. Nothing here knows how they came to this machine.
"""

import json
import socketserver
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread

from .. import config as door
from ..client import Client, Job
from ..data.federation import check_folder
from ..flower import answered
from ..post import About, put, take
from .folder import SiteFolder

Tell = Callable[[str], None]


@contextmanager
def answering(site: SiteFolder, tell: Tell) -> Iterator[str]:
    """A socket behind which the site's orders are answered, as long as it is needed; its place."""
    one_at_a_time = Lock()

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            about: About = json.loads(take(self.request))
            data = take(self.request)
            with one_at_a_time:
                began = time.monotonic()
                answer, what = answered(lambda name: _here(site, about, name), data)
                tell(f"{what} ({time.monotonic() - began:.1f} s)")
            put(self.request, answer)

    with TemporaryDirectory(prefix="fedexperts-") as folder:  # its owner's alone; a socket's path must be short
        place = str(Path(folder) / "orders")
        with socketserver.ThreadingUnixStreamServer(place, Line) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield place
            finally:
                server.shutdown()


def _here(site: SiteFolder, about: About, name: str) -> tuple[Job, Client]:
    """The job of an order, and this site with its own data; ValueError if the order is another's."""
    if name != site.name:
        raise ValueError(f"this is the site {site.name}, not {name}")
    return _built_once(about["config"], name, json.dumps(site.data), str(site.path / "private" / _safe(about["run"])))


@lru_cache(maxsize=1)
def _built_once(text: str, name: str, data: str, private: str) -> tuple[Job, Client]:
    return door.site(text, name, json.loads(data), Path(private))


def _safe(run: str) -> str:
    """A run's name as the name of a folder; ValueError for one that would lead elsewhere."""
    check_folder(f"the run's name {run!r:.200}", run)
    return run
