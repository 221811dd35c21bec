"""A federation on loopback for tests: a server and three sites, each a group of processes that can
be killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedexperts import config as door
from fedexperts.deploy import runs
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.programs import free_port

HERE = Path(__file__).parent
SITES = ("as-scanned-0", "faint-2", "inverted-1")  # what digits-scanners calls its clients
# may take part, too; they are asked by those tests alone that say so
ROGUE = "slanted-3"  # of four clients; ours but for its answers, see rogue.py
HOSTILE = "mallory"  # a program that is not ours, see hostile.py


def experiment(**sections: Any) -> dict[str, Any]:
    """pFedMoAP on digits, one scanner a site."""
    return {
        "name": "digits",
        "data": {"name": "digits-scanners", "clients": 3, "scanners": 3, "shots": 2},
        "model": {"name": "prompted-clip", "context": 2},
        "method": {"name": "pfedmoap", "experts": 2, "width": 8, "heads": 2},
        "learning": {"epochs": 1, "batch": 8, "rate": 0.1},
    } | sections


# A fraction of the defaults, which honest sites do not meet, either: no test of a run would pass
# otherwise.
TIGHT = """
[limits]
connections = 64
arrival = 30
at_once = 4
request = 6291456
memory = 33554432
upload = 2097152
"""


class Federation:
    """A server and sites on loopback, each a group of processes that can be killed at once, as a
    machine is.
    """

    def __init__(self, path: Path, cache: Path, server: str = "localhost") -> None:
        self.path, self.folder = path, path / "dep"
        self.environment = dict(os.environ) | {"FEDEXPERTS_CACHE": str(cache)}
        self.groups: dict[str, subprocess.Popen[bytes]] = {}
        # what stands before a program's command where it runs on a machine of its own
        self.machines: dict[str, list[str]] = {}
        Deployment.create(self.folder, server, free_port(), [*SITES, ROGUE, HOSTILE])
        with open(self.folder / "deploy.toml", "a") as file:
            file.write(TIGHT)
        for site in (*SITES, ROGUE):
            os.replace(self.folder / "sites" / site, path / site)

    @property
    def port(self) -> int:
        return Deployment.at(self.folder).address[1]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "fedexperts", "deploy", *arguments]

    def start(self, name: str, *command: str) -> None:
        """Start a program under a name, in a group of its own and with a careless umask, its words
        in NAME.log.
        """
        machine = self.machines.get(name, self.machines.get("server", []))
        with open(self.path / f"{name}.log", "wb") as log:
            self.groups[name] = subprocess.Popen(
                [*machine, *command],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=HERE,
                umask=0,
            )

    def serve(self) -> None:
        self.start("server", *self.command("server", str(self.folder)))
        self.until(
            lambda: "It listens on" in self.said("server") or self.ended("server"), "the server"
        )

    def join(self, site: str) -> None:
        self.start(site, *self.command("site", str(self.path / site), "--name", site))

    def kill(self, name: str) -> None:
        group = self.groups.pop(name)
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()

    def said(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()

    def ended(self, name: str) -> bool:
        assert self.groups[name].poll() is None, f"{name} ended: {self.words()}"
        return False

    def until(self, true: Callable[[], bool], what: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{what} did not come: {self.words()}"
            time.sleep(0.1)

    def words(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-600:]}" for log in self.path.glob("*.log"))

    def submit(self, name: str, options: Sequence[str] = (), **sections: Any) -> runs.Run:
        """Start a run of the experiment, watched by a terminal of its own."""
        engine = {
            "name": "flower",
            "sites": list(SITES),
            "deadline": 120.0,
            "wait": 240.0,
        } | sections.pop("engine", {})
        config = door.resolve([(experiment(**sections) | {"name": name, "engine": engine}, "test")])
        (self.path / f"{name}.toml").write_text(config.toml())
        file = str(self.path / f"{name}.toml")
        self.start(name, *self.command("run", str(self.folder), file, *options))
        run = runs.Run(self.folder / "runs" / name)
        self.until(lambda: (run.path / "status.json").exists(), f"run {name}")
        return run

    def do(self, *command: str) -> str:
        """What a command says in the operator's terminal, once it has done."""
        full = [*self.machines.get("server", []), *self.command(*command)]
        done = subprocess.run(
            full, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def finished(self, name: str) -> int:
        """The exit code of the terminal that watches."""
        return self.groups.pop(name).wait(900)

    @contextmanager
    def running(self, sites: Sequence[str]) -> Iterator[None]:
        """The server and these sites, until the end."""
        try:
            self.serve()
            for site in sites:
                self.join(site)
            yield
        finally:
            self.close()

    def close(self) -> None:
        for name in list(self.groups):
            self.kill(name)
