"""The signed app, served to Flower on this machine alone: its server takes signatures from a hub,
and from nobody else.

A site believes neither this hub nor the server; what it looks at is the signature. This room knows
Flower's two questions to a hub, and not what an app is.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from .signing import Signed


@contextmanager
def hub(signed: Callable[[], Signed]) -> Iterator[str]:
    """A hub with one app, asked for anew for each run, as long as it is needed; its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # what is there of an app?
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._send(
                lambda signed: json.dumps(
                    {"fab_url": f"{address}/", "verifications": [signed.told()]}
                ).encode()
            )

        def do_GET(self) -> None:  # the app itself
            self._send(lambda signed: signed.app)

        def _send(self, what: Callable[[Signed], bytes]) -> None:
            try:
                status, data = 200, what(signed())
            except ValueError as error:
                status, data = 500, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object, **__: object) -> None:
            """Nothing: Flower's log says what it asked."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield address
        finally:
            server.shutdown()
