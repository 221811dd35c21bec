"""A small server on loopback that speaks the hub's protocol: revision, tree, resolve with ETag,
large files from another address, ranges. And lines that are cut, other bytes than were told, closed
doors.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "c0" * 20
LARGE = 500_000  # bytes; larger files are told by their sha256


@dataclass
class Hub:
    """What the server has, by the repository's name: "models/OWNER/NAME" or "datasets/..."."""

    address: str = ""
    elsewhere: str = ""  # of large files: another host, as far as a client can see
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # code, the hub's word for it
    cuts: list[int] = field(default_factory=list)  # of the next large answers, bytes until the cut
    pause: int = 0  # bytes of a large file after which no more come
    forged: dict[str, bytes] = field(default_factory=dict)  # other bytes than those of path or hash
    claims: dict[str, int] = field(default_factory=dict)  # sizes that are told, by path
    hashes: dict[str, str] = field(default_factory=dict)  # of small files, likewise
    sent: list[tuple[str, int]] = field(default_factory=list)  # large files: hash, the first byte
    asked: list[str] = field(default_factory=list)


def told(path: str, data: bytes) -> dict[str, Any]:
    """As a listing tells of a file."""
    git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"size": len(data), "oid": git, "blobId": git}
    if len(data) > LARGE:
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 130}
    return entry | {"path": path, "rfilename": path, "type": "file"}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {address}")
        if blob := re.fullmatch(r"/blobs/(\w+)", address):
            return self._blob(blob[1])
        if asked := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)(/revision/.+|/tree/.+)?", address):
            return self._listing(asked[1], "/tree/" in address)
        asked = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)", address)
        if not asked:
            return self._answer(404, b"", {})
        rest = asked[3].removeprefix("refs/pr/6/").removeprefix("main/")
        return self._file(f"{asked[1] or 'models/'}{asked[2]}", rest.removeprefix(f"{COMMIT}/"))

    def _listing(self, name: str, tree: bool) -> None:
        if self._refused(name):
            return
        files = [told(path, data) for path, data in self.hub.repositories[name].items()]
        for file in files:
            path = file["path"]
            if path in self.hub.claims:
                file["lfs"]["size"] = file["size"] = self.hub.claims[path]
            file["blobId"] = self.hub.hashes.get(path, file["blobId"])
        about: Any = files
        if not tree:
            about = {
                "id": name.partition("/")[2],
                "sha": COMMIT,
                "siblings": files,
                "cardData": {"license": self.hub.licences.get(name, "mit")},
            }
        self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _refused(self, name: str) -> bool:
        refusal = self.hub.refusals.get(name)
        if name.removesuffix("/files") not in self.hub.repositories:
            refusal = refusal or (404, "RepoNotFound")
        if refusal:
            self._answer(refusal[0], b"", {"X-Error-Code": refusal[1]})
        return bool(refusal)

    def _file(self, name: str, path: str) -> None:
        if self._refused(name) or self._refused(f"{name}/files"):
            return None
        data = self.hub.repositories[name][path]
        about = told(path, data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{about["oid"]}"'}
        if "lfs" not in about:
            return self._answer(200, self.hub.forged.get(path, data), headers)
        sha256 = about["lfs"]["sha256"]
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        headers |= {"Location": f"{self.hub.elsewhere}/blobs/{sha256}"}
        return self._answer(302, b"", headers)

    def _blob(self, sha256: str) -> None:
        files = (data for all_ in self.hub.repositories.values() for data in all_.values())
        data = next(data for data in files if hashlib.sha256(data).hexdigest() == sha256)
        data = self.hub.forged.get(sha256, data)
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = 0
        if ranged:
            first = int(ranged[1])
        self.hub.sent.append((sha256, first))
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        data = data[first:]
        if self.hub.cuts:
            data = data[: self.hub.cuts.pop(0)]
            self.close_connection = True
        if self.hub.pause:
            self.wfile.write(data[: self.hub.pause])
            while self.hub.pause:
                time.sleep(0.05)
            return
        self.wfile.write(data)

    def _answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.elsewhere = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
