"""Flower's programs, started and asked: the server, a site, and a run.

What they are told lies in folders; they are watched until they end. Flower's own files go into a
folder of ours, its telemetry stays off, and it installs nothing.
"""

import asyncio
import json
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
from typing import Any

import httpx
import uvicorn

from .. import config as door
from ..tensors import write
from .entrance import Entrance
from .folder import Deployment
from .gateway import Gateway
from .hub import hub
from .members import Roster
from .owner import owners_alone
from .runs import Run
from .signing import NAME, trusting
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


class FlowerError(ChildProcessError):
    """What one of Flower's programs said when it failed."""


def serve(deployment: Deployment, bind: str | None, tell: Tell) -> None:
    """Run the server until it is stopped: Flower's on this machine alone, and the gateway before
    it.

    Sites reach the address `bind`; if it is None, the one that the server's name demands.
    """
    host, port = deployment.address
    limits, address = deployment.limits, bind or listens_on(host)
    owners_alone(deployment.path)
    inside, log = free_port(), deployment.path / "flower" / "superlink.log"
    deployment.signed()  # before anything is started: sites would refuse another
    with Entrance(address, port, limits.connections, limits.patience) as entrance:
        _write_connection(deployment, inside)
        program = _superlink(deployment, inside, log)
        with hub(deployment.signed) as apps, _program(program, log, _asking(apps)) as server:
            _until_there(server, inside, log)
            register(deployment)
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
    """The address at which a server of this name is reached: this machine alone, if the name says
    so.
    """
    if host in ("localhost", "127.0.0.1", "::1"):
        return "::1" if host == "::1" else "127.0.0.1"
    return "::" if ":" in host else "0.0.0.0"


def _listening(address: str, port: int) -> str:
    everywhere = address in ("0.0.0.0", "::")
    where = (
        "every network of this machine; --bind ADDRESS narrows it"
        if everywhere
        else "this address alone"
    )
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
    """What Flower's server is told: our hub, where it would ask its maker's; it calls nobody else,
    by no proxy.
    """
    return {"FLWR_SUPERGRID_API_URL": address, "NO_PROXY": "*", "no_proxy": "*"}


def _keep_registered(
    deployment: Deployment,
    roster: Roster,
    server: "subprocess.Popen[bytes]",
    outside: uvicorn.Server,
    tell: Tell,
) -> None:
    """Follow the list of sites while the server runs; without Flower's server, there is nothing to
    pass on to.
    """
    known = deployment.sites
    while server.poll() is None:
        time.sleep(1)
        try:
            if (wanted := deployment.sites) != known:
                _call_up(deployment, roster)  # who was removed is out at once; Flower is slower
                register(deployment)
                _call_up(deployment, roster)
                known = wanted
                tell(f"Known sites: {', '.join(known) or 'none'}.")
        except (ValueError, OSError) as error:
            tell(f"The list of sites: {error}")
            time.sleep(10)  # and again: it may be in the midst of being written by hand
    outside.should_exit = True


def _call_up(deployment: Deployment, roster: Roster) -> None:
    """Those may take part who are listed and have Flower's number."""
    roster.are(deployment.sites, _noted(deployment))


def register(deployment: Deployment) -> None:
    """Tell Flower whose keys are whose, and whose are not welcome any more."""
    there, wanted = _registered(deployment), deployment.sites
    for name, (node, key) in list(there.items()):
        if wanted.get(name) != key:
            _flwr(deployment, "supernode", "unregister", node, "here")
            _note(
                deployment,
                there := {other: known for other, known in there.items() if other != name},
            )
    for name, key in wanted.items():
        if name not in there:
            file = deployment.path / "flower" / f"{name}.pub"
            file.write_text(key)
            said = _flwr(deployment, "supernode", "register", str(file), "here", "--name", name)
            _note(deployment, there := there | {name: (str(said["node-id"]), key)})


def connected(deployment: Deployment) -> dict[str, str]:
    """How each registered site stands: "registered", "online", "offline"."""
    status = _status(deployment)
    return {name: status[node] for name, (node, _) in _registered(deployment).items()}


def _registered(deployment: Deployment) -> dict[str, tuple[str, str]]:
    """Flower's number and the key of each site that the server knows by name: what we noted, if
    Flower noted it too.
    """
    status = _status(deployment)
    return {
        name: (node, key)
        for name, (node, key) in _noted(deployment).items()
        if status.get(node, "unregistered") != "unregistered"
    }


def _noted(deployment: Deployment) -> dict[str, tuple[str, str]]:
    file = _register_file(deployment)
    noted: dict[str, tuple[str, str]] = json.loads(file.read_bytes()) if file.exists() else {}
    return noted


def _status(deployment: Deployment) -> dict[str, str]:
    return {
        node["node-id"]: node["status"]
        for node in _flwr(deployment, "supernode", "list", "here")["nodes"]
    }


def _note(deployment: Deployment, there: dict[str, tuple[str, str]]) -> None:
    """Flower does not tell names, so we write down which number is whose, at once: a key is
    registered only once.
    """
    write(_register_file(deployment), json.dumps(there).encode())


def _register_file(deployment: Deployment) -> Path:
    return deployment.path / "flower" / "nodes.json"


def join(site: SiteFolder, patience: float, tell: Tell) -> None:
    """Run a site until it is stopped; FlowerError if the server does not let it in for `patience`
    seconds.

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
                if inside := program.poll() is None:
                    tell(f"The site {site.name} is connected.")
                _until_ended(program, log, lambda: tell(f"The site {site.name} {_NOT_OURS}"))
            words = _last(log)
            if inside and _SHUT_OUT in log.read_text(errors="replace"):
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
    while program.poll() is None and "SuperNode ID" not in log.read_text(errors="replace"):
        time.sleep(0.2)


def _until_ended(
    program: "subprocess.Popen[bytes]", log: Path, refused: Callable[[], None]
) -> None:
    """Until Flower's program has ended; each app that it refuses meanwhile is told."""
    with open(log, errors="replace") as words:
        ended = False
        while not ended:
            ended = program.poll() is not None  # and then once more, for its last words
            for _ in _UNSIGNED.findall(words.read()):
                refused()
            time.sleep(0.5)


def _supernode(site: SiteFolder, orders: str) -> list[str]:
    write(trusted := site.path / "flower" / "trusted.yaml", trusting(site.signer))
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


def submit(deployment: Deployment, run: Run) -> None:
    """Give a run to Flower, which carries it out whether anybody watches or not."""
    about = f'folder="{deployment.path}" run="{run.path.name}"'
    deployment.signed()  # Flower's words, if it is not there, would be of a hub
    said = _flwr(deployment, "run", NAME, "here", "-c", about)
    run.numbered(int(said["run-id"]))


def stop(deployment: Deployment, run: Run) -> None:
    """End a run; its finished rounds are kept."""
    _flwr(deployment, "stop", str(run.number), "here")


def carried_out(deployment: Deployment, run: Run) -> bool:
    """Whether Flower is still at it; FlowerError if the server is not there."""
    found = _flwr(deployment, "list", "--run-id", str(run.number), "here")["runs"]
    return bool(found) and not str(found[0]["status"]).startswith("finished")


def _flwr(deployment: Deployment, *arguments: str) -> dict[str, Any]:
    """What Flower's command line answers."""
    down = FlowerError(
        f"the server is not running: start it by `fedexperts deploy server {deployment.path}`"
    )
    # Flower would make one of its own, and find no server in it
    if not _connection(deployment).exists():
        raise down
    command = ["flwr", *arguments, "--format", "json"]
    environment = door.flower_environment(deployment.path / "flower")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    text = done.stdout[done.stdout.find("{") :]
    try:
        said: dict[str, Any] = json.loads(text)
    except ValueError:
        said = {"success": False, "error-message": (done.stderr or done.stdout).strip()[-500:]}
    if done.returncode or not said.get("success"):
        why = str(said.get("error-message", "it failed")).strip()
        if "SuperLink is unavailable" in why:
            raise down
        raise FlowerError(f"flwr {arguments[0]}: {why}")
    return said


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
    """On Linux, a child of a killed parent ends too: its port is free when the parent is started
    again.
    """
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


def _write_connection(deployment: Deployment, port: int) -> None:
    """Where Flower's command line finds the server."""
    write(
        _connection(deployment),
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{deployment.path / "ca.crt"}"\n'.encode(),
    )


def _connection(deployment: Deployment) -> Path:
    return deployment.path / "flower" / "config.toml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last(log: Path) -> str:
    """What a log says was wrong, without colours; or its last words."""
    text = re.sub("\x1b\\[[0-9;]*m", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [place for place, line in enumerate(lines) if line.startswith("ERROR")]
    return (
        " ".join(lines[wrong[-1] + 1 : wrong[-1] + 3] if wrong else lines[-1:])[:300]
        or "it said nothing"
    )
