"""Flower's programs, started and watched until they end: the server, and a site.

What they are told lies in folders. Flower's own files go into a folder of ours, its telemetry stays
off, and it installs nothing. This room does not know runs.
"""

import asyncio
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from .. import config as door
from ..tensors import write
from . import control
from .control import FlowerError
from .entrance import Entrance
from .folder import Deployment
from .gateway import Gateway
from .hub import hub
from .members import Roster
from .owner import owners_alone
from .signing import trusting
from .site import answering
from .sitefolder import SiteFolder

Tell = Callable[[str], None]
_INSIDE = 60.0  # seconds for an answer of Flower's server
_BACKLOG = 64  # connections that wait to be let in
# what Flower's program says if its key is refused while it is connected
_SHUT_OUT = "SuperNode terminated gracefully"
_REFUSED = "[code: 2004]"  # Flower's number for a key that it does not know, or that is in use
# Flower's words of an app that our key did not sign; the last where a signature is such that Flower
# fell over it
_UNSIGNED = re.compile("could not be verified|could not verify the FAB|in _verify_fab")
_NOT_OURS = (
    "refused to run what the server sent: it is not signed by the key of app.pub. Either the"
    " server's app is another deployment's or was signed by another key, which `fedexperts deploy"
    " app` there mends, or somebody changed it"
)


def serve(deployment: Deployment, bind: str | None, tell: Tell) -> None:
    """Run Flower's server, on this machine alone, and the gateway before it, until it is stopped.

    Sites reach the address `bind`; if it is None, the one that the server's name demands.
    """
    host, port = deployment.address
    limits, address = deployment.limits, bind or listens_on(host)
    owners_alone(deployment.path)
    inside, log = free_port(), deployment.path / "flower" / "superlink.log"
    deployment.signed()  # before anything is started: sites would refuse another
    with Entrance(address, port, limits.connections, limits.patience) as entrance:
        control.point_at(deployment, inside)
        program = _superlink(deployment, inside, log)
        with hub(deployment.signed) as apps, _program(program, log, _asking(apps)) as server:
            _until_there(server, inside, log)
            control.register(deployment)
            roster = Roster()
            _call_up(deployment, roster)
            entrance.listen(_BACKLOG)  # who comes from now on is answered
            known = ", ".join(deployment.sites) or "none"
            tell(f"The server is up: sites reach it at {host}:{port}. Known sites: {known}.")
            tell(_listening(address, port))
            asyncio.run(_answer(deployment, inside, entrance, roster, server, tell))
    if server.returncode not in (0, -signal.SIGTERM, -signal.SIGKILL):
        raise FlowerError(f"Flower's server ended: {_last(log)}")


def listens_on(host: str) -> str:
    """The address at which a server of this name listens: this machine alone, or every network."""
    if host in ("localhost", "127.0.0.1"):
        return "127.0.0.1"
    if host == "::1":
        return "::1"
    return "::" if ":" in host else "0.0.0.0"


def _listening(address: str, port: int) -> str:
    where = "this address alone"
    if address in ("0.0.0.0", "::"):
        where = "every network of this machine; --bind ADDRESS narrows it"
    return f"It listens on {address}, port {port}: {where}."


def _superlink(deployment: Deployment, inside: int, log: Path) -> list[str]:
    return [
        "flower-superlink",
        "--host",
        "127.0.0.1",
        "--port",
        str(inside),
        "--database",
        str(log.with_name("state.db")),
        "--ssl-ca-certfile",
        str(deployment.path / "ca.crt"),
        "--ssl-certfile",
        str(deployment.path / "server.crt"),
        "--ssl-keyfile",
        str(deployment.secret / "server.key"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


async def _answer(
    deployment: Deployment,
    inside: int,
    entrance: Entrance,
    roster: Roster,
    server: "subprocess.Popen[bytes]",
    tell: Tell,
) -> None:
    """Let sites in, until the server is stopped or Flower's is gone."""
    trusted = ssl.create_default_context(cafile=str(deployment.path / "ca.crt"))
    async with httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{inside}", verify=trusted, timeout=_INSIDE
    ) as client:
        settings = uvicorn.Config(
            Gateway(client, roster, deployment.limits, entrance.knows, tell),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            log_level="critical",
            access_log=False,
            backlog=_BACKLOG,
            ssl_certfile=str(deployment.path / "server.crt"),
            ssl_keyfile=str(deployment.secret / "server.key"),
        )
        outside = uvicorn.Server(settings)
        follow = (deployment, roster, server, outside, tell)
        threading.Thread(target=_keep_registered, args=follow, daemon=True).start()
        watching = asyncio.create_task(entrance.watch())
        await outside.serve([entrance])
        watching.cancel()


def _asking(address: str) -> dict[str, str]:
    """Flower's server asks our hub, not its maker's, and calls nobody else, by no proxy."""
    return {"FLWR_SUPERGRID_API_URL": address, "NO_PROXY": "*", "no_proxy": "*"}


def _keep_registered(
    deployment: Deployment,
    roster: Roster,
    server: "subprocess.Popen[bytes]",
    outside: uvicorn.Server,
    tell: Tell,
) -> None:
    """Follow the list of sites while Flower's server runs, and end the gateway with it."""
    known = deployment.sites
    while server.poll() is None:
        time.sleep(1)
        try:
            wanted = deployment.sites
            if wanted != known:
                _call_up(deployment, roster)  # who was removed is out at once; Flower is slower
                control.register(deployment)
                _call_up(deployment, roster)
                known = wanted
                tell(f"Known sites: {', '.join(known) or 'none'}.")
        except (ValueError, OSError) as error:
            tell(f"The list of sites: {error}")
            time.sleep(10)  # and again: it may be in the midst of being written by hand
    outside.should_exit = True


def _call_up(deployment: Deployment, roster: Roster) -> None:
    """Those may take part who are listed and have Flower's number."""
    roster.are(deployment.sites, control.numbered(deployment))


def join(site: SiteFolder, patience: float, tell: Tell) -> None:
    """Run a site until it is stopped, or the server has kept it out for `patience` seconds.

    After a crash the server holds the last session for a while, and lets nobody else in under the
    same key.
    """
    owners_alone(site.path)
    log = site.path / "flower" / "supernode.log"
    until = time.monotonic() + patience
    with answering(site, tell) as orders:
        tell(f"The site {site.name} looks for {site.server}; Flower's words stand in {log}.")
        while True:
            with _program(_supernode(site, orders), log) as program:
                _until_connected(program, log)
                inside = program.poll() is None
                if inside:
                    tell(f"The site {site.name} is connected.")
                _until_ended(program, log, lambda: tell(f"The site {site.name} {_NOT_OURS}"))
            words = _last(log)
            if inside and _SHUT_OUT in log.read_text(encoding="utf-8", errors="replace"):
                until = time.monotonic() + patience
            elif _REFUSED not in words:
                raise FlowerError(f"the site {site.name} ended: {words}")
            if time.monotonic() > until:
                raise FlowerError(
                    f"the server does not let the site {site.name} in: its key is not the one in"
                    " deploy.toml there (`fedexperts deploy add` made it), or the site runs"
                    " elsewhere"
                )
            tell(
                f"The server does not let {site.name} in: an unknown key, or its last session is"
                " open still. Trying on."
            )
            time.sleep(5)


def _until_connected(program: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until Flower's program has a number from the server, or has ended."""
    while program.poll() is None and "SuperNode ID" not in log.read_text(
        encoding="utf-8", errors="replace"
    ):
        time.sleep(0.2)


def _until_ended(
    program: "subprocess.Popen[bytes]", log: Path, refused: Callable[[], None]
) -> None:
    """Until Flower's program has ended; each app that it refuses meanwhile is told."""
    with open(log, encoding="utf-8", errors="replace") as words:
        ended = False
        while not ended:
            ended = program.poll() is not None  # and then once more, for its last words
            for _ in _UNSIGNED.findall(words.read()):
                refused()
            time.sleep(0.5)


def _supernode(site: SiteFolder, orders: str) -> list[str]:
    trusted = site.path / "flower" / "trusted.yaml"
    write(trusted, trusting(site.signer))
    return [
        "flower-supernode",
        "--superlink",
        site.server,
        "--root-certificates",
        str(site.path / "ca.crt"),
        "--auth-supernode-private-key",
        str(site.path / "node.key"),
        "--host",
        "127.0.0.1",
        "--port",
        str(free_port()),
        "--ssl-certfile",
        str(site.path / "tls.crt"),
        "--ssl-keyfile",
        str(site.path / "tls.key"),
        "--ssl-ca-certfile",
        str(site.path / "ca.crt"),
        "--node-config",
        f'socket="{orders}"',
        "--trusted-entities",
        str(trusted),
    ]


@contextmanager
def _program(
    command: Sequence[str], log: Path, told: Mapping[str, str] = {}
) -> "Iterator[subprocess.Popen[bytes]]":
    """A program that ends with us, its words in a log, its files beside it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = door.flower_environment(log.parent) | dict(told)
    with open(log, "wb") as words:
        program = subprocess.Popen(
            command, env=environment, stdout=words, stderr=words, preexec_fn=_end_with_parent
        )
    try:
        yield program
    finally:
        program.terminate()
        try:
            program.wait(10)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _end_with_parent() -> None:
    """On Linux, a child of a killed parent ends too, so that its port is free for the next."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _until_there(program: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    for _ in range(600):
        if program.poll() is not None:
            raise FlowerError(f"Flower's server did not start: {_last(log)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise FlowerError(f"Flower's server did not answer within a minute; its log is {log}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last(log: Path) -> str:
    """What a log says was wrong, without colours; or its last words."""
    text = re.sub("\x1b\\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [position for position, line in enumerate(lines) if line.startswith("ERROR")]
    last = lines[-1:]
    if wrong:
        last = lines[wrong[-1] + 1 : wrong[-1] + 3]
    return " ".join(last)[:300] or "it said nothing"
