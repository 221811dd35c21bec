"""Flower's server, asked by its own command line: which sites it knows, which runs it carries out.

This room starts no server and no site, and does not know what a run learns.
"""

import json
import subprocess
from pathlib import Path

from .. import config as door
from ..options import Values
from ..tensors import write
from .folder import Deployment
from .runs import Run
from .signing import NAME

Numbered = dict[str, tuple[str, str]]  # name of a site -> Flower's number of it, and its key


class FlowerError(ChildProcessError):
    """What one of Flower's programs said when it failed."""


def point_at(deployment: Deployment, port: int) -> None:
    """Write down where Flower's command line finds the server: on this machine, at `port`."""
    text = (
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{deployment.path / "ca.crt"}"\n'
    )
    write(_connection(deployment), text.encode())


def register(deployment: Deployment) -> None:
    """Tell Flower whose keys are whose, and whose are not welcome any more."""
    there, wanted = _registered(deployment), deployment.sites
    for name, (node, key) in list(there.items()):
        if wanted.get(name) != key:
            _flwr(deployment, "supernode", "unregister", node, "here")
            del there[name]
            _note(deployment, there)
    for name, key in wanted.items():
        if name not in there:
            file = deployment.path / "flower" / f"{name}.pub"
            file.write_text(key, encoding="utf-8")
            said = _flwr(deployment, "supernode", "register", str(file), "here", "--name", name)
            there[name] = str(said["node-id"]), key
            _note(deployment, there)


def connected(deployment: Deployment) -> dict[str, str]:
    """How each registered site stands: "registered", "online", "offline"."""
    status = _status(deployment)
    return {name: status[node] for name, (node, _) in _registered(deployment).items()}


def numbered(deployment: Deployment) -> Numbered:
    """The sites that Flower was told of, as we wrote it down."""
    file = _register_file(deployment)
    if not file.exists():
        return {}
    noted: Numbered = json.loads(file.read_bytes())
    return noted


def _registered(deployment: Deployment) -> Numbered:
    """The sites that the server knows by name: those that we noted, if Flower noted them too."""
    status = _status(deployment)
    return {
        name: (node, key)
        for name, (node, key) in numbered(deployment).items()
        if status.get(node, "unregistered") != "unregistered"
    }


def _status(deployment: Deployment) -> dict[str, str]:
    """How each of Flower's numbers stands."""
    nodes = _flwr(deployment, "supernode", "list", "here")["nodes"]
    return {node["node-id"]: node["status"] for node in nodes}


def _note(deployment: Deployment, there: Numbered) -> None:
    """Write down which number is whose, at once: Flower tells no names, and takes a key once."""
    write(_register_file(deployment), json.dumps(there).encode())


def _register_file(deployment: Deployment) -> Path:
    return deployment.path / "flower" / "nodes.json"


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
    runs = _flwr(deployment, "list", "--run-id", str(run.number), "here")["runs"]
    return bool(runs) and not str(runs[0]["status"]).startswith("finished")


def _flwr(deployment: Deployment, *arguments: str) -> Values:
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
        said: Values = json.loads(text)
    except ValueError:
        said = {"success": False, "error-message": (done.stderr or done.stdout).strip()[-500:]}
    if done.returncode or not said.get("success"):
        why = str(said.get("error-message", "it failed")).strip()
        if "SuperLink is unavailable" in why:
            raise down
        raise FlowerError(f"flwr {arguments[0]}: {why}")
    return said


def _connection(deployment: Deployment) -> Path:
    return deployment.path / "flower" / "config.toml"
