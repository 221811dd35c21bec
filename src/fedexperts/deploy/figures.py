"""The server's figures for Prometheus, on this machine alone: sites and runs, as they stand.

What they are comes from `presence` and `watch`; nothing here changes anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from .folder import Deployment
from .presence import Heard, heard_sites
from .runs import under_way
from .watch import snapshot


def text(deployment: Deployment) -> str:
    """All figures, a line each."""
    return "".join(f"fedexperts_{line}\n" for line in _lines(deployment))


def _lines(deployment: Deployment) -> Iterator[str]:
    heard = heard_sites(deployment.path / "flower") or {}
    for name in deployment.sites:
        facts = heard.get(name, Heard())
        yield f'site_connected{{site="{name}"}} {int(facts.connected)}'
        yield f'site_bytes_total{{site="{name}",way="in"}} {facts.bytes_in}'
        yield f'site_bytes_total{{site="{name}",way="out"}} {facts.bytes_out}'
    for run in under_way(deployment):
        now = snapshot(deployment, run)
        yield f'run_round{{run="{now["run"]}"}} {now["round"]}'
        yield f'run_rounds{{run="{now["run"]}"}} {now["rounds"]}'
        if now["accuracy"] is not None:
            yield f'run_accuracy_percent{{run="{now["run"]}"}} {now["accuracy"]:.2f}'
        if now["seconds_left"] is not None:
            yield f'run_seconds_left{{run="{now["run"]}"}} {now["seconds_left"]:.0f}'
        for name, facts in now["sites"].items():
            answers = int(facts["state"] == "online")  # neither late nor refused
            yield f'run_site_answers{{run="{now["run"]}",site="{name}"}} {answers}'


@contextmanager
def told(deployment: Deployment, port: int) -> Iterator[None]:
    """Figures at http://127.0.0.1:PORT/metrics, as long as it is needed; none at port 0."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            data = text(deployment).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object, **__: object) -> None:
            """Nothing: it is asked every few seconds."""

    if not port:
        yield
        return
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Answer)
    except OSError as error:
        raise ValueError(f"--metrics {port}: {error.strerror}; use another port") from None
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
