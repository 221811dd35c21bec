"""Flower's server, asked: which sites it knows, and, by its own command line, which runs it carries
out.

This room starts no server and no site, and does not know what a run learns.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from .. import config as door
from ..options import Values
from ..tensors import write
from .folder import Deployment
from .listed import listed
from .members import shown
from .presence import Heard, heard_sites
from .programs import FlowerError
from .runs import Run
from .signing import NAME

_PATIENCE = 120.0  # seconds for an answer to Flower's command line
Numbered = dict[str, tuple[str, str]]  # name of a site -> Flower's number of it, and its key


def point_at(deployment: Deployment, port: int) -> None:
    """Write down where Flower's command line finds the server: on this machine, at `port`."""
    text = (
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{deployment.path / "ca.crt"}"\n'
    )
    write(_connection(deployment), text.encode())


def register(deployment: Deployment, port: int, tell: Callable[[str], None]) -> None:
    """Tell Flower, whose server is at this port, whose keys are whose, and whose are not welcome
    any more.
    """
    wanted = {shown(name, key): name for name, key in deployment.sites.items()}
    known = {number: name for name, (number, _) in numbered(deployment).items()}
    with listed(port, str(deployment.path / "ca.crt")) as flower:
        there = flower.numbers()
        for key in there.keys() - wanted.keys():
            number = there.pop(key)
            flower.drop(number)
            tell(f"Took the site {known.get(number, number)} off Flower's list.")
        for key, name in wanted.items():
            if key not in there:
                there[key] = flower.add(name, key)
    now = {name: (there[key], deployment.sites[name]) for key, name in wanted.items()}
    write(_register_file(deployment), json.dumps(now).encode())


def connected(deployment: Deployment) -> dict[str, Heard]:
    """What the server has heard of each site; FlowerError if it is not there."""
    heard = heard_sites(deployment.path / "flower")
    if heard is None:
        raise _down(deployment)
    return heard


class NobodyAnswersError(FlowerError):
    """Flower's server is not there, or too busy: one may ask again."""


def _down(deployment: Deployment) -> NobodyAnswersError:
    return NobodyAnswersError(
        f"the server is not running: start it by `fedexperts deploy server {deployment.path}`"
    )


def numbered(deployment: Deployment) -> Numbered:
    """The sites that Flower was told of, as we wrote it down."""
    file = _register_file(deployment)
    if not file.exists():
        return {}
    noted: Numbered = json.loads(file.read_bytes())
    return noted


def _register_file(deployment: Deployment) -> Path:
    return deployment.path / "flower" / "nodes.json"


def submit(deployment: Deployment, run: Run) -> None:
    """Give a run to Flower, which carries it out whether anybody watches or not.

    Twice does no harm: only one process carries a run out.
    """
    about = f'folder="{deployment.path}" run="{run.path.name}"'
    deployment.signed()  # Flower's words, if it is not there, would be of a hub
    said = _flwr(deployment, "run", NAME, "here", "-c", about)
    run.numbered(int(said["run-id"]))


def stop(deployment: Deployment, run: Run) -> None:
    """End Flower's part of a run, whatever its loop does."""
    _flwr(deployment, "stop", str(run.number), "here")


def carried_out(deployment: Deployment, run: Run) -> bool:
    """Whether Flower is still at it, or is about to be; FlowerError if the server is not there."""
    connected(deployment)
    number = run.number
    if not number:
        return True
    runs = _flwr(deployment, "list", "--run-id", str(number), "here")["runs"]
    if run.number != number:
        return True  # it was begun anew meanwhile
    return bool(runs) and not str(runs[0]["status"]).startswith("finished")


def _flwr(deployment: Deployment, *arguments: str) -> Values:
    """What Flower's command line answers."""
    down = _down(deployment)
    # Flower would make one of its own, and find no server in it
    if not _connection(deployment).exists():
        raise down
    command = ["flwr", *arguments, "--format", "json"]
    environment = door.flower_environment(deployment.path / "flower")
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise NobodyAnswersError(
            f"flwr {arguments[0]}: no answer in {_PATIENCE:g} s; this machine may be too busy"
        ) from None
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
