"""The server: Flower's program on this machine alone, the gateway before it, and the list of sites.

What they are told lies in folders. Flower's own files go into a folder of ours, its telemetry stays
off, and it installs nothing. Of runs this room knows that one which was under way goes on.
"""

import asyncio
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import uvicorn

from . import control, figures, hello, runs
from .address import called
from .diary import Diary
from .entrance import Entrance
from .folder import Deployment
from .gateway import Gateway
from .hub import hub
from .members import Roster
from .owner import owners_alone
from .presence import BEAT, Presence
from .programs import FlowerError, Program, alone, free_port, program

Tell = Callable[[str], None]
_INSIDE = 60.0  # seconds for an answer of Flower's server
_BACKLOG = 64  # connections that wait to be let in


def serve(deployment: Deployment, bind: str | None, tell: Tell, metrics: int = 0) -> None:
    """Run Flower's server, on this machine alone, and the gateway before it, until it is stopped.

    Sites reach the address `bind`; if it is None, the one that the server's name demands. Runs that
    were under way go on. Figures for Prometheus are told at the port `metrics`, if it is not 0.
    """
    host, port = deployment.address
    limits, address = deployment.limits, bind or listens_on(host)
    ending = deployment.lasts()  # before anything is started: is there a certificate,
    deployment.signed()  # and an app that sites would not refuse?
    owners_alone(deployment.path)
    diary = Diary(deployment.path / "server.log")

    def say(text: str) -> None:
        tell(text)
        diary.add(text)

    for line in ending:
        say(line)
    with (
        alone(deployment.path, "the server"),
        Entrance(address, port, limits.connections, limits.patience) as entrance,
        figures.told(deployment, metrics),
    ):
        say(f"Starting Flower's server; its log is {_log(deployment)}.")
        (deployment.path / "flower" / "presence.json").unlink(missing_ok=True)
        interrupted = runs.under_way(deployment)
        for run in interrupted:
            run.begins_anew()
        inside = free_port()
        control.point_at(deployment, inside)
        told = _superlink(deployment, inside)
        with (
            hub(deployment.signed) as apps,
            program(told, _log(deployment), _asking(apps)) as flower,
        ):
            _until_there(flower, inside)
            control.register(deployment, inside, say)
            entrance.listen(_BACKLOG)  # who comes from now on is answered
            known = ", ".join(deployment.sites) or "none"
            say(f"The server is up ({hello.version()}): sites reach it at {called(host, port)}.")
            say(f"Known sites: {known}.")
            say(_listening(address, port))
            server = _Server(deployment, flower, inside, say)
            for run in interrupted:
                say(f"The run {run.path.name} was under way; it goes on.")
            asyncio.run(server.answer(entrance))
    if flower.process.returncode not in (0, -signal.SIGTERM, -signal.SIGKILL):
        raise FlowerError(f"Flower's server ended: {flower.words.last()}")


def _log(deployment: Deployment) -> Path:
    return deployment.path / "flower" / "superlink.log"


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


def _superlink(deployment: Deployment, inside: int) -> list[str]:
    return [
        "flower-superlink",
        "--host",
        "127.0.0.1",
        "--port",
        str(inside),
        "--database",
        str(_log(deployment).with_name("state.db")),
        "--ssl-ca-certfile",
        str(deployment.path / "ca.crt"),
        "--ssl-certfile",
        str(deployment.path / "server.crt"),
        "--ssl-keyfile",
        str(deployment.secret / "server.key"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


class _Server:
    """The server while it is up: the door, the list of sites, who was heard."""

    def __init__(self, deployment: Deployment, flower: Program, inside: int, tell: Tell) -> None:
        self._deployment, self._flower, self._tell = deployment, flower, tell
        self._inside = inside  # the port of Flower's server
        self._roster, self._presence = Roster(), Presence()
        self._call_up()

    async def answer(self, entrance: Entrance) -> None:
        """Let sites in, until the server is stopped or Flower's is gone."""
        deployment = self._deployment
        trusted = ssl.create_default_context(cafile=str(deployment.path / "ca.crt"))
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self._inside}", verify=trusted, timeout=_INSIDE
        ) as client:
            gateway = Gateway(
                client,
                self._roster,
                deployment.limits,
                entrance.knows,
                self._tell,
                self._presence,
                (deployment.path / "ca.crt").read_bytes,
            )
            outside = uvicorn.Server(_settings(gateway, deployment))
            for task in (lambda: self._follow(outside), self._hand_over):
                threading.Thread(target=task, daemon=True).start()
            watching = asyncio.create_task(entrance.watch())
            await outside.serve([entrance])
            watching.cancel()

    def _hand_over(self) -> None:
        """Give Flower every run that waits for it, new or interrupted, while its server runs."""
        while self._flower.process.poll() is None:
            try:
                for run in runs.waiting(self._deployment):
                    self._hand(run)
            except (ValueError, OSError) as error:
                self._tell(f"The runs: {error}")
                time.sleep(10)
            time.sleep(1)

    def _hand(self, run: runs.Run) -> None:
        state = run.status.state
        try:
            control.submit(self._deployment, run)
            return
        except control.NobodyAnswersError as error:
            why = f"{error}; it is tried again"
        except (ValueError, OSError) as error:
            state, why = "failed", str(error)
        if not run.status.over:  # nobody has stopped it meanwhile
            run.stands(replace(run.status, state=state, why=why))
        self._tell(f"The run {run.path.name}: {why}")

    def _follow(self, outside: uvicorn.Server) -> None:
        """Follow the list of sites while Flower's server runs, and end the gateway with it."""
        deployment = self._deployment
        known, folder = deployment.sites, deployment.path / "flower"
        connected = list[str]()
        while self._flower.process.poll() is None:
            try:
                self._presence.note(folder)
                connected = self._tell_of(connected)
                wanted = deployment.sites
                if wanted != known:
                    self._call_up()  # who was removed is out at once; Flower is slower
                    control.register(deployment, self._inside, self._tell)
                    self._call_up()
                    known = wanted
                    self._tell(f"Known sites: {', '.join(known) or 'none'}.")
            except (ValueError, OSError) as error:
                self._tell(f"The list of sites: {error}")
                time.sleep(10)  # and again: it may be in the midst of being written by hand
            time.sleep(1)
        outside.should_exit = True

    def _tell_of(self, before: list[str]) -> list[str]:
        """Say who came and who went; who is connected now."""
        now = self._presence.connected()
        for name in sorted(set(now) - set(before)):
            version = self._presence.of(name).version
            its = ""
            if version:  # it may greet us a moment later
                its = f" ({version})"
            self._tell(f"The site {name} is connected{its}.")
        for name in sorted(set(before) - set(now)):
            self._tell(f"The site {name} has not been heard for {BEAT:g} s.")
        return now

    def _call_up(self) -> None:
        """Those may take part who are listed and have Flower's number."""
        deployment = self._deployment
        numbers = control.numbered(deployment)
        self._roster.are(deployment.sites, numbers, deployment.removed)


def _settings(gateway: Gateway, deployment: Deployment) -> uvicorn.Config:
    return uvicorn.Config(
        gateway,
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


def _asking(address: str) -> dict[str, str]:
    """Flower's server asks our hub, not its maker's, and calls nobody else, by no proxy."""
    return {"FLWR_SUPERGRID_API_URL": address, "NO_PROXY": "*", "no_proxy": "*"}


def _until_there(flower: Program, port: int) -> None:
    for _ in range(600):
        if flower.ended():
            raise FlowerError(f"Flower's server did not start: {flower.words.last()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise FlowerError(
        f"Flower's server did not answer within a minute; its log is {flower.words.path}"
    )
