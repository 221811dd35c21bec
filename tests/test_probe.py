"""A site that cannot connect says why: each cause is planted at a real door, and read there."""

import datetime
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

pytest.importorskip("flwr")
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from typer.testing import CliRunner

from fedexperts.cli import app as cli
from fedexperts.deploy import address, certificates, hello, probe
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.gateway import Gateway
from fedexperts.deploy.limits import Limits
from fedexperts.deploy.members import Roster
from fedexperts.deploy.presence import Presence
from fedexperts.deploy.probe import CODES, UnreachableError, Welcome
from fedexperts.deploy.programs import free_port
from fedexperts.deploy.sitefolder import SiteFolder

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), Path("no libfaketime"))


class House:
    """A deployment with one site, and its door on a real socket; Flower's server is not needed."""

    def __init__(self, path: Path) -> None:
        self.made = Deployment.create(path / "dep", "localhost", free_port(), ["a", "b"])
        self.site = SiteFolder.at(self.made.path, "a")
        self.roster, self.presence = Roster(), Presence()
        self.call_up()

    def call_up(self) -> None:
        sites = self.made.sites
        numbers = {name: (str(i), key) for i, (name, key) in enumerate(sites.items(), 1)}
        self.roster.are(sites, numbers, self.made.removed)

    @contextmanager
    def open(self) -> Iterator[None]:
        inside = httpx.AsyncClient(base_url="http://127.0.0.1:1")
        authorities = (self.made.path / "ca.crt").read_bytes
        gateway = Gateway(
            inside,
            self.roster,
            Limits(),
            lambda *_: None,
            lambda _: None,
            self.presence,
            authorities,
        )
        with serving(gateway, self.made):
            yield

    def greet(self) -> Welcome:
        return probe.greet(self.site.door, self.site.key)

    def refused(self) -> UnreachableError:
        with pytest.raises(UnreachableError) as caught:
            self.greet()
        return caught.value


@contextmanager
def serving(application: Any, made: Deployment) -> Iterator[None]:
    """An application behind TLS, with the deployment's certificate, at its port."""
    settings = uvicorn.Config(
        application,
        host="0.0.0.0",
        port=made.address[1],
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_level="critical",
        ssl_certfile=str(made.path / "server.crt"),
        ssl_keyfile=str(made.secret / "server.key"),
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_a_site_that_is_let_in_learns_the_servers_version(house: House) -> None:
    with house.open():
        welcome = house.greet()
    assert welcome.version == hello.version()
    assert (welcome.heard, welcome.authorities) == (None, b"")
    assert house.presence.of("a").version == hello.version()
    assert not house.presence.of("a").connected, "it has greeted, and does not work yet"


def test_a_name_that_nobody_knows(house: House) -> None:
    change(house.site.path / "site.toml", "localhost:", "no-such-name.invalid:")
    error = house.refused()
    assert error.cause == "name"
    assert "does not know the name no-such-name.invalid" in str(error)


def test_a_server_that_is_not_up(house: House) -> None:
    error = house.refused()
    assert error.cause == "port"
    assert "nothing listens at localhost" in str(error)
    assert "`fedexperts deploy server`" in str(error)


def test_a_program_that_speaks_no_tls(house: House) -> None:
    with listening(house.made.address[1], lambda line: line.sendall(b"220 mail\r\n")):
        error = house.refused()
    assert error.cause == "tls"
    assert "does not speak TLS as our server does" in str(error)


def test_a_program_that_hangs_up(house: House) -> None:
    with listening(house.made.address[1], lambda line: line.close()):
        error = house.refused()
    assert error.cause in ("tls", "port")


@contextmanager
def listening(port: int, act: Callable[[socket.socket], None]) -> Iterator[None]:
    """Whoever connects is treated so, and let go."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def take() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with line:
                    act(line)
                    time.sleep(0.1)

        threading.Thread(target=take, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)


def test_another_authority_is_named_with_who_signed(house: House, tmp_path: Path) -> None:
    other = Deployment.create(tmp_path / "other", "localhost", 1, ["a"])
    (house.site.path / "ca.crt").write_bytes((other.path / "ca.crt").read_bytes())
    with house.open():
        error = house.refused()
    assert error.cause == "authority"
    assert 'shows a certificate of "CN=fedexperts deployment"' in str(error)
    assert "a firewall or proxy opens the connection" in str(error)


def test_a_certificate_for_another_name_says_for_which(house: House) -> None:
    change(house.site.path / "site.toml", "localhost:", "127.0.0.2:")
    change(house.made.path / "deploy.toml", '"localhost"', '"0.0.0.0"')
    with house.open():
        settings = house.site.door
        with socket.socket() as line:
            if line.connect_ex((settings.host, settings.port)):
                pytest.skip("this machine has no address 127.0.0.2")
        error = house.refused()
    assert error.cause == "host"
    assert "the server's certificate is for localhost, 127.0.0.1 and not for 127.0.0.2" in str(
        error
    )


def certified(made: Deployment, begins: int, ends: int) -> None:
    """Give the server a certificate that holds between these days from now."""
    now = datetime.datetime.now(datetime.UTC)
    signer = x509.load_pem_x509_certificate((made.path / "ca.crt").read_bytes())
    signing: Any = form.load_pem_private_key((made.secret / "ca.key").read_bytes(), None)
    key: Any = form.load_pem_private_key((made.secret / "server.key").read_bytes(), None)
    old = x509.load_pem_x509_certificate((made.path / "server.crt").read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(signer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=begins))
        .not_valid_after(now + datetime.timedelta(days=ends))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pem = builder.sign(signing, hashes.SHA384()).public_bytes(form.Encoding.PEM)
    (made.path / "server.crt").write_bytes(pem)


@pytest.mark.parametrize("days", [(-20, -10), (10, 20)])
def test_a_certificate_out_of_its_time_is_told_with_dates(
    house: House, days: tuple[int, int]
) -> None:
    certified(house.made, *days)
    with house.open():
        error = house.refused()
    assert error.cause == "expired"
    dates = [datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=d) for d in (*days, 0)]
    begins, ends, now = (f"{date:%Y-%m-%d}" for date in dates)
    assert f"it holds from {begins}" in str(error)
    assert f"to {ends}" in str(error)
    assert f"this machine's clock says {now}" in str(error)


def test_a_server_with_an_ended_certificate_does_not_start_and_says_what_to_type(
    house: House,
) -> None:
    certified(house.made, -20, -1)
    done = CliRunner().invoke(cli, ["deploy", "server", str(house.made.path)])
    said = " ".join(done.output.split())
    assert done.exit_code == 1
    assert "so no site would connect: type `fedexperts deploy renew" in said
    house.made.renew()
    assert house.made.lasts() == []


def test_a_certificate_that_ends_soon_is_told_sixty_days_before(house: House) -> None:
    certified(house.made, -1, 61)
    assert house.made.lasts() == []
    certified(house.made, -1, 59)
    (line,) = house.made.lasts()
    assert "server.crt ends on 20" in line
    assert "sites notice nothing" in line


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    """Something with our certificate that is not our server."""
    await send({"type": "http.response.start", "status": 502, "headers": []})
    await send({"type": "http.response.body", "body": b"Bad gateway"})


def test_an_answer_that_is_not_our_servers_is_told_by_its_status(house: House) -> None:
    with serving(elsewhere, house.made):
        error = house.refused()
    assert error.cause == "http"
    assert "answered with HTTP status 502, as our server does not" in str(error)


def test_a_key_that_is_on_no_list(house: House, tmp_path: Path) -> None:
    other = Deployment.create(tmp_path / "other", "localhost", 1, ["a"])
    key = other.path / "sites" / "a" / "node.key"
    (house.site.path / "node.key").write_bytes(key.read_bytes())
    with house.open():
        error = house.refused()
    assert error.cause == "key"
    assert "does not know this site's key" in str(error)


def test_a_site_that_was_removed_is_told_so(house: House) -> None:
    site = house.site.path
    kept = {file.name: file.read_bytes() for file in site.iterdir() if file.is_file()}
    house.made.remove("a")
    site.mkdir()
    for name, data in kept.items():
        (site / name).write_bytes(data)
    house.call_up()
    with house.open():
        error = house.refused()
    assert error.cause == "removed"
    assert str(error).startswith("you were removed")


def elsewhere_greeting(house: House, first: str, **environment: str) -> str:
    """What another process at the site says when it greets."""
    code = (
        f"{first}\nfrom pathlib import Path\nfrom fedexperts.deploy import probe\n"
        "from fedexperts.deploy.sitefolder import SiteFolder\n"
        f"site = SiteFolder.at(Path({str(house.site.path)!r}), 'a')\n"
        "try:\n    probe.greet(site.door, site.key); print('welcome')\n"
        "except probe.UnreachableError as error:\n    print(error.cause, error.code, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def test_versions_that_do_not_fit_are_both_named_at_both_ends(house: House) -> None:
    with house.open():
        said = elsewhere_greeting(house, "import fedexperts; fedexperts.__version__ = '7.3.1'")
    assert said.startswith(
        "version 21 the versions do not fit: this site has fedexperts 7.3.1 with"
    )
    assert f"the server has {hello.version()}" in said
    assert "its version does not fit: fedexperts 7.3.1" in house.presence.of("a").refused


@pytest.mark.parametrize(
    ("one", "other", "fit"),
    [
        ("fedexperts 0.2.0 with flwr 1.41.0", "fedexperts 0.2.7 with flwr 1.38.0", True),
        ("fedexperts 0.2.0 with flwr 1.41.0", "fedexperts 0.3.0 with flwr 1.41.0", False),
        ("fedexperts 1.2.0 with flwr 1.41.0", "fedexperts 0.2.0 with flwr 1.41.0", False),
        ("", "fedexperts 0.2.0 with flwr 1.41.0", False),
    ],
)
def test_versions_fit_by_their_first_two_numbers(one: str, other: str, fit: bool) -> None:
    assert hello.fits(one, other) == fit


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's package faketime")
@pytest.mark.parametrize(("shift", "way"), [("+60s", "60 s ahead of"), ("-400s", "400 s behind")])
def test_a_wrong_clock_is_told_in_seconds(house: House, shift: str, way: str) -> None:
    wrong = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with house.open():
        said = elsewhere_greeting(house, "", **wrong)
    assert said.startswith("clock 18 this machine's clock is ")
    seconds = int(said.split("clock is ")[1].split(" s ")[0])
    assert abs(seconds - int(way.split()[0])) <= 5
    assert f" s {way.partition(' s ')[2]} the server's" in said
    assert "timedatectl set-ntp true" in said


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's package faketime")
def test_a_clock_that_flower_bears_is_borne(house: House) -> None:
    right = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "-100s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with house.open():
        assert elsewhere_greeting(house, "", **right).startswith("welcome")


def test_a_proxy_that_leads_nowhere_is_named_with_its_variable(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{free_port()}")
    error = house.refused()
    assert error.cause == "proxy"
    assert "which HTTPS_PROXY in the environment names" in str(error)
    assert "add localhost to NO_PROXY" in str(error)
    assert "secret" not in str(error)
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert house.refused().cause == "port"


def test_a_proxy_that_refuses_is_told_and_one_that_leads_on_is_taken(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")

    def refuse(line: socket.socket) -> None:
        line.recv(4096)
        line.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def lead_on(line: socket.socket) -> None:
        line.recv(4096)
        with socket.create_connection(house.made.address) as onward:
            line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for one, other in ((line, onward), (onward, line)):
                threading.Thread(target=carry, args=(one, other), daemon=True).start()
            time.sleep(2)

    with listening(port, refuse):
        error = house.refused()
    assert error.cause == "proxy"
    assert "403" in str(error)
    with house.open(), listening(port, lead_on):
        assert house.greet().version == hello.version()


def carry(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass


def test_every_cause_has_an_exit_code_of_its_own() -> None:
    assert len(set(CODES.values())) == len(CODES)
    assert not {0, 1, 2, 129, 130, 143} & set(CODES.values()), "these are taken"


def test_the_document_lists_every_code_with_words_that_are_said() -> None:
    root = Path(__file__).parents[1]
    section = (root / "docs" / "deploy.md").read_text().split("## When a site cannot connect\n")[1]
    rows = [
        row.split(" | ") for row in section.split("\n## ")[0].splitlines() if row[2:3].isdigit()
    ]
    assert [int(row[0].strip("| ")) for row in rows] == sorted(CODES.values())
    source = (root / "src" / "fedexperts" / "deploy" / "probe.py").read_text()
    said = re.sub(r'"\s+f?"', "", source)
    for row in rows:
        for words in re.findall(r"`([^`]+)`", row[1]):
            for part in words.split(" ... ")[0].split(" ..., ")[:1]:
                assert part in said, part


def test_a_site_without_patience_gives_up_with_the_code_of_its_cause(house: House) -> None:
    asked = ["deploy", "site", str(house.site.path), "--name", "a", "--patience", "0"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == CODES["port"]
    assert "nothing listens at localhost" in " ".join(done.output.split())
    assert "The site a looks for localhost" in (house.site.path / "site.log").read_text()


def test_a_second_start_of_a_site_is_refused_and_the_log_is_kept(house: House) -> None:
    from fedexperts.deploy import joining
    from fedexperts.deploy.programs import alone

    with (
        alone(house.site.path, "the site a"),
        pytest.raises(
            ValueError, match=f"the site a runs already in .*, as process {os.getpid()}: stop that"
        ),
    ):
        joining.join(house.site, 0, lambda _: None)
    for _ in range(2):
        with pytest.raises(UnreachableError):
            joining.join(house.site, 0, lambda _: None)
    log = (house.site.path / "site.log").read_text()
    assert log.count("The site a looks for localhost") == 2
    assert log.startswith("20"), "a line has its time"


# ---- the server's name


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("fed.example.org", "fed.example.org"),
        ("Fed.Example.org.", "fed.example.org"),
        ("10.0.0.5", "10.0.0.5"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::1", "::1"),
    ],
)
def test_a_name_or_an_address_is_taken_as_a_certificate_has_it(given: str, kept: str) -> None:
    assert address.checked(given) == kept


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("https://fed.example.org", "not a web address; leave https:// out, as 'fed.example.org'"),
        ("fed.example.org:9443", "--server fed.example.org --port 9443"),
        ("10.0.0.999", "is no address: each is 0 to 255"),
        ("my_server", "has no underscore"),
        ("köln.example.org", "use xn--kln-sna.example.org"),
        ("0.0.0.0", "sites cannot reach that"),
        ("", "expected letters, digits, dots and dashes"),
        ("a b", "expected letters, digits, dots and dashes"),
        ("fed/x", "expected a name as fed.example.org"),
    ],
)
def test_any_other_is_refused_with_what_to_type(given: str, why: str) -> None:
    with pytest.raises(ValueError, match="--server") as caught:
        address.checked(given)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("sites", "why"),
    [
        ("", "--sites: it names no site"),
        ("a,,b", "cannot name a tensor and a folder"),
        ("a,a", "--sites: a stands there twice"),
        ("a,A", "are one name where upper and lower case are the same"),
        ("con", "no word that a system takes for a device"),
    ],
)
def test_init_refuses_sites_that_cannot_be(sites: str, why: str, tmp_path: Path) -> None:
    asked = ["deploy", "init", str(tmp_path / "dep"), "--server", "localhost", "--sites", sites]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 1
    assert why in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_an_ipv6_address_stands_in_brackets(tmp_path: Path) -> None:
    made = Deployment.create(tmp_path / "dep", "::1", 9443, ["a"])
    site = SiteFolder.at(made.path, "a")
    assert site.server == "[::1]:9443"
    assert (site.door.host, site.door.port, site.door.called) == ("::1", 9443, "[::1]:9443")
    change(site.path / "site.toml", "[::1]:9443", "::1:9443")
    with pytest.raises(ValueError, match=r"expected NAME:PORT, and an IPv6 address in brackets"):
        _ = site.door


# ---- a new authority


def test_sites_move_over_to_a_new_authority_and_none_is_left_behind(house: House) -> None:
    made, bundle = house.made, house.made.path / "ca.crt"
    assert not made.renew_authority([])
    with house.open():
        house.site.trust(house.greet().authorities)
        house.greet()
    assert house.presence.of("a").trusts == hello.hash_of(bundle.read_bytes())
    with pytest.raises(ValueError, match="do not trust the new authority yet: b. A site learns"):
        made.renew_authority(["a"])
    assert made.renew_authority(["a", "b"])
    with house.open():
        assert house.greet().authorities == bundle.read_bytes(), "the new one alone, from now on"
        old = SiteFolder.at(made.path / "sites" / "b", "b")
        with pytest.raises(UnreachableError) as caught:
            probe.greet(old.door, old.key)
    assert caught.value.cause == "authority"
    ssl.create_default_context(cadata=bundle.read_text())
    assert len(certificates.each(bundle.read_bytes())) == 1
