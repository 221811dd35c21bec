"""Ten faults at a site of a federation that runs: its operator gets out of each by what the screen
says.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("flwr")
from federated import Federation
from test_probe import FAKETIME, change

from fedexperts import config as door
from fedexperts.deploy import hello, probe
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.probe import CODES
from fedexperts.deploy.programs import free_port
from fedexperts.deploy.sitefolder import SiteFolder

pytestmark = pytest.mark.slow
CLINIC = "clinic"
PICTURES = {
    "name": "pictures",
    "data": {"name": "image-folders", "side": 32, "classes": ["cat", "dog"], "valid": 0.2},
    "model": {"name": "linear-probe"},
    "method": {"name": "fedavg"},
    "run": {"rounds": 1},
    "engine": {"name": "flower", "sites": [CLINIC], "deadline": 60.0, "wait": 60.0},
}


class Clinic:
    """A site with pictures of its own, beside the others of a federation."""

    def __init__(self, federation: Federation, images: Path) -> None:
        self.federation, self.images = federation, images
        self.folder = federation.path / CLINIC
        self.others = federation.path / "of-another"
        Deployment.create(self.others, "localhost", free_port(), [CLINIC])
        Deployment.at(federation.folder).add(CLINIC)
        (federation.folder / "sites" / CLINIC).rename(self.folder)
        federation.until(lambda: f"Known sites: as-scanned-0, {CLINIC}" in self.server, "the site")
        for number, name in enumerate(("cat", "dog")):
            (images / name).mkdir(parents=True)
            for shade in range(12):
                picture = Image.new("RGB", (32, 32), (200 * number, 9 * shade, 7))
                picture.save(images / name / f"{shade}.png")

    @property
    def server(self) -> str:
        """What the server's terminal says."""
        return self.federation.said("server")

    @property
    def site(self) -> SiteFolder:
        return SiteFolder.at(self.folder, CLINIC)

    def screen(self, cause: str, program: str = "", **environment: str) -> str:
        """What the site's terminal says when it tries once, and gives up for this cause."""
        command = self.federation.command("site", str(self.folder), "--name", CLINIC)
        if program:
            arguments = command[command.index("deploy") :]
            command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            [*command, "--patience", "0"],
            env=self.federation.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == CODES[cause], done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    def is_let_in(self) -> bool:
        return probe.greet(self.site.door, self.site.key).version == hello.version()

    def join(self) -> None:
        self.federation.start(
            CLINIC,
            *self.federation.command("site", str(self.folder), "--name", CLINIC),
            *("--data", str(self.images)),
        )
        connected = f"The site {CLINIC} is connected."
        self.federation.until(lambda: connected in self.federation.said(CLINIC), "the clinic")

    def run(self, name: str) -> str:
        """What the operator's terminal says of a run of this site alone, which fails."""
        config = door.resolve([(PICTURES | {"name": name}, "test")])
        file = self.federation.path / f"{name}.toml"
        file.write_text(config.toml())
        self.federation.start(
            name, *self.federation.command("run", str(self.federation.folder), str(file))
        )
        assert self.federation.finished(name) == 1, self.federation.words()
        return self.federation.said(name)

    def goes_on(self, name: str) -> None:
        """Type what the terminal said is to be typed."""
        typed = f"fedexperts deploy resume {self.federation.folder} {name}"
        assert f"Continue with: {typed}" in self.federation.said(name)
        assert "Report: " in self.federation.do(*typed.split()[2:])


@pytest.fixture(scope="module")
def clinic(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    made = Clinic(federation, tmp_path_factory.mktemp("images"))
    yield made
    deployment = Deployment.at(federation.folder)
    if CLINIC in deployment.sites:
        deployment.remove(CLINIC)


@pytest.fixture
def restored(clinic: Clinic) -> Iterator[Clinic]:
    """Whose small files are put back afterwards, and which is then let in again."""
    kept = {file: file.read_bytes() for file in clinic.folder.iterdir() if file.is_file()}
    yield clinic
    for file, data in kept.items():
        file.write_bytes(data)
    assert clinic.is_let_in()


def test_another_authority(restored: Clinic) -> None:
    shutil.copy(restored.others / "ca.crt", restored.folder / "ca.crt")
    said = restored.screen("authority")
    assert "shows a certificate of" in said
    assert "which is not the authority of this site's ca.crt" in said


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's package faketime")
def test_a_wrong_clock(clinic: Clinic) -> None:
    wrong = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "-400s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    said = clinic.screen("clock", **wrong)
    assert "s behind the server's" in said
    assert "timedatectl set-ntp true" in said


def test_a_name_that_nobody_knows(restored: Clinic) -> None:
    change(restored.folder / "site.toml", 'server = "localhost:', 'server = "fed.invalid:')
    said = restored.screen("name")
    assert "this machine does not know the name fed.invalid" in said


def test_another_port(restored: Clinic) -> None:
    port = restored.federation.port
    change(restored.folder / "site.toml", f"localhost:{port}", f"localhost:{free_port()}")
    assert "nothing listens at localhost:" in restored.screen("port")


def test_a_proxy_that_leads_nowhere(clinic: Clinic) -> None:
    said = clinic.screen("proxy", HTTPS_PROXY=f"http://127.0.0.1:{free_port()}", NO_PROXY="")
    assert "which HTTPS_PROXY in the environment names, does not lead to" in said
    assert "add localhost to NO_PROXY" in said


def test_the_key_of_another_deployment(restored: Clinic) -> None:
    shutil.copy(restored.others / "sites" / CLINIC / "node.key", restored.folder / "node.key")
    assert "does not know this site's key" in restored.screen("key")


def test_a_version_that_does_not_fit(clinic: Clinic) -> None:
    program = (
        "import fedexperts; fedexperts.__version__ = '7.3.1'\n"
        "from fedexperts.cli import main; main()"
    )
    said = clinic.screen("version", program)
    assert "the versions do not fit: this site has fedexperts 7.3.1 with" in said
    assert f"the server has {hello.version()}" in said
    refused = f"The site {CLINIC}: hello was refused: its version does not fit: fedexperts 7.3.1"
    assert refused in clinic.server


@pytest.fixture(scope="module")
def joined(clinic: Clinic) -> Iterator[Clinic]:
    """While its program runs, and is not started again."""
    clinic.join()
    yield clinic
    if CLINIC in clinic.federation.groups:
        clinic.federation.kill(CLINIC)


def until_it_is_mended(clinic: Clinic, name: str, why: str, mend: Callable[[], object]) -> None:
    """A run that fails for this reason, which both ends read; and goes on once it is mended, by
    what the screen says.
    """
    said = clinic.run(name)
    assert f"{CLINIC}: " in said
    assert why in said
    assert why in clinic.federation.said(CLINIC)
    mend()
    clinic.goes_on(name)


def test_a_class_that_is_missing(joined: Clinic) -> None:
    dog, hidden = joined.images / "dog", joined.images.parent / "hidden"
    dog.rename(hidden)
    why = "'dog': among data.classes, but there is no such folder. Make a folder of that name"
    until_it_is_mended(joined, "no-dog", why, lambda: hidden.rename(dog))


def test_a_full_disk_at_the_site(joined: Clinic) -> None:
    private = joined.folder / "private"
    private.mkdir(exist_ok=True)
    small = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(private)]
    done = subprocess.run(small, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk of one's own can be had here: {done.stderr.strip()}")
    try:
        with suppress(OSError), open(private / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        why = "No space left on device"
        until_it_is_mended(joined, "full", why, (private / "filler").unlink)
    finally:
        subprocess.run(["umount", str(private)], check=True)


def test_a_site_that_was_removed(joined: Clinic) -> None:
    """Its program is told so and ends; to come back, a new folder is carried to it, as it says."""
    operator = Deployment.at(joined.federation.folder)
    operator.remove(CLINIC)
    assert joined.federation.finished(CLINIC) == CODES["removed"]
    assert "you were removed: the operator of the federation took" in joined.federation.said(CLINIC)
    gone = f"Took the site {CLINIC} off Flower's list."
    joined.federation.until(lambda: gone in joined.server, "its removal")
    joined.folder.rename(joined.folder.with_name("before"))
    known = joined.server.count("Known sites: ")
    operator.add(CLINIC)
    (operator.path / "sites" / CLINIC).rename(joined.folder)
    joined.federation.until(lambda: joined.server.count("Known sites: ") > known, "its return")
    assert joined.is_let_in()
