"""Sites on machines of their own, as network namespaces are: one's cable is pulled in the midst of
a run, and put back.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")
from federated import Federation

SITES = ("as-scanned-0", "inverted-1")
SERVER = "10.78.0.1"  # in namespaces of this test's own: nobody else can reach it


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, timeout=20)


def why_not() -> str:
    """Why there can be no network namespaces here; nothing, if there can."""
    if not shutil.which("ip"):
        return "needs Debian's package iproute2"
    name = f"fx-try-{os.getpid()}"
    try:
        ip(f"netns add {name}")
        ip(f"netns exec {name} true")
        ip(f"link add name eth0 netns {name} type veth peer name eth1 netns {name}")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "needs root, and a kernel that allows network namespaces"
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return ""


class Network:
    """A namespace for the server and one for each site, with a cable from each to the server's."""

    def __init__(self) -> None:
        self.server = f"fx-server-{os.getpid()}"
        self.sites = {site: f"fx-{site}-{os.getpid()}" for site in SITES}

    def build(self) -> None:
        ip(f"netns add {self.server}")
        ip(f"-n {self.server} link set lo up")
        ip(f"-n {self.server} address add {SERVER}/32 dev lo")
        for number, (site, space) in enumerate(self.sites.items(), 1):
            near, far = f"-n {self.server}", f"-n {space}"
            ip(f"netns add {space}")
            ip(f"{far} link set lo up")
            ip(
                f"link add name {self.cable(site)} netns {self.server}"
                f" type veth peer name eth0 netns {space}"
            )
            ip(f"{near} address add 10.78.{number}.1/24 dev {self.cable(site)}")
            ip(f"{near} link set {self.cable(site)} up")
            ip(f"{far} address add 10.78.{number}.2/24 dev eth0")
            ip(f"{far} link set eth0 up")
            ip(f"{far} route add default via 10.78.{number}.1")

    def cable(self, site: str) -> str:
        return f"to-{SITES.index(site)}"

    def pull(self, site: str) -> None:
        ip(f"-n {self.server} link set {self.cable(site)} down")

    def put_back(self, site: str) -> None:
        ip(f"-n {self.server} link set {self.cable(site)} up")

    def remove(self) -> None:
        for space in (self.server, *self.sites.values()):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if why := why_not():
        pytest.skip(why)
    made = Network()
    try:
        made.build()
        yield made
    finally:
        made.remove()


@pytest.fixture
def spread(network: Network, tmp_path: Path) -> Iterator[Federation]:
    """A federation whose server and sites each have a machine of their own."""
    made = Federation(tmp_path, Path(os.environ["FEDEXPERTS_CACHE"]), SERVER)
    for name, space in {"server": network.server, **network.sites}.items():
        made.machines[name] = ["ip", "netns", "exec", space]
    with made.running(SITES):
        yield made


@pytest.mark.slow
def test_a_site_whose_line_is_cut_says_why_and_comes_back_by_itself(
    network: Network, spread: Federation
) -> None:
    run = spread.submit(
        "cut",
        run={"rounds": 500, "evaluate_every": 500},
        engine={"sites": list(SITES), "deadline": 20.0},
    )
    cut, other = SITES
    spread.until(lambda: any(len(row["trained"]) == 2 for row in run.rows()), "a round of both")
    network.pull(cut)
    spread.until(lambda: any(cut in row["refused"] for row in run.rows()), "a round without it")
    reasons = {row["refused"][cut] for row in run.rows() if cut in row["refused"]}
    assert reasons <= {"no reply within 20 s", "it is not connected"}
    assert all(other in row["trained"] for row in run.rows() if row["round"])
    spread.until(lambda: "Not connected: " in spread.said(cut), "why it is not connected")
    said = spread.said(cut)
    assert "cannot be reached" in said or "did not answer within" in said
    assert f"{cut}: it is not connected" in spread.said("cut") or "no reply" in spread.said("cut")
    network.put_back(cut)
    alone = max(row["round"] for row in run.rows() if cut in row["refused"])
    spread.until(
        lambda: any(
            row["round"] > alone and len(row["trained"]) == 2 and not row["refused"]
            for row in run.rows()
        ),
        "a round of both, with nobody's help",
    )
    # Flower may be back before the site looks again and says so
    spread.until(lambda: spread.said(cut).count("is connected.") >= 2, "its word that it is back")
    spread.do("stop", str(spread.folder), "cut")
    assert spread.finished("cut") == 1, "it was stopped, and says so"
