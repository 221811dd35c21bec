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
        self.environment = dict(os.environ) | {
            "FEDEXPERTS_CACHE": str(cache),
            "WANDB_MODE": "offline",
        }
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
        self._serve(*self.command("server", str(self.folder)))

    def serve_until(self, call: str) -> None:
        """A server that dies at the next such call of a site, once `dies` says so."""
        self._serve(
            sys.executable, str(HERE / "dying.py"), str(self.folder), call, str(self._armed)
        )

    def dies(self) -> None:
        self._armed.touch()
        self.ends("server", 120)
        self._armed.unlink()

    @property
    def _armed(self) -> Path:
        return self.path / "armed"

    def _serve(self, *command: str) -> None:
        self.start("server", *command)
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
        """The last words of all programs, Flower's included."""
        logs = [*self.path.glob("*.log"), *self.path.glob("*/flower/*.log")]
        said = [f"---- {log.relative_to(self.path)}\n{log.read_text()[-1500:]}" for log in logs]
        return "\n".join(said)

    def submit(self, name: str, options: Sequence[str] = (), **sections: Any) -> runs.Run:
        """Start a run of the experiment, watched by a terminal of its own."""
        self.start_run(name, name, options, **sections)
        run = runs.Run(self.folder / "runs" / name)
        self.until(lambda: (run.path / "flower.json").exists(), f"run {name}")
        return run

    def start_run(
        self, name: str, terminal: str, options: Sequence[str] = (), **sections: Any
    ) -> None:
        engine = {
            "name": "flower",
            "sites": list(SITES),
            "deadline": 120.0,
            "wait": 240.0,
        } | sections.pop("engine", {})
        config = door.resolve([(experiment(**sections) | {"name": name, "engine": engine}, "test")])
        file = self.path / f"{terminal}.toml"
        file.write_text(config.toml())
        self.start(terminal, *self.command("run", str(self.folder), str(file), *options))

    def do(self, *command: str) -> str:
        """What a command says in the operator's terminal, once it has done."""
        full = [*self.machines.get("server", []), *self.command(*command)]
        try:
            done = subprocess.run(
                full, env=self.environment, capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{command} did not end: {self.words()}") from None
        assert done.returncode == 0, done.stderr
        return done.stdout

    def finished(self, name: str) -> int:
        """The exit code of the terminal that watches."""
        return self.ends(name, 600)

    def ends(self, name: str, seconds: float) -> int:
        """The exit code of a program that ends by itself."""
        program = self.groups[name]
        self.until(lambda: program.poll() is not None, f"the end of {name}", seconds)
        return self.groups.pop(name).wait()

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
