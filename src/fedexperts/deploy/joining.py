"""A site's part of the federation: it finds the server, starts Flower's program, and says why
whenever that does not work.

What keeps it out is `probe`'s to know, what an order means `site`'s.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

from ..tensors import write
from . import certificates, consent, hello, probe
from .certificates import keep_key, new_key
from .diary import Diary
from .owner import owners_alone
from .probe import UnreachableError, Welcome
from .programs import FlowerError, Program, alone, free_port, program
from .signing import trusting
from .site import answering
from .sitefolder import SiteFolder

Tell = Callable[[str], None]
_PAUSE = 5.0  # seconds between two tries
_HOURLY = 3600.0  # seconds between greetings of a site that is connected
_SAME = 60.0  # seconds before the same reason is said again
_INSIDE = "SuperNode ID"  # what Flower's program says once it has a number from the server,
_CUT = "Connection attempt failed"  # while its line is cut,
_MENDED = "Connection successful"  # and once it is not
_REFUSED = "[code: 2004]"  # Flower's number for a key that it does not know, or that is in use
# Flower's words of an app that our key did not sign; the last where a signature is such that Flower
# fell over it
_UNSIGNED = re.compile("could not be verified|could not verify the FAB|in _verify_fab")
_NOT_OURS = (
    "refused to run what the server sent: it is not signed by the key of app.pub. Either the"
    " server's app is another deployment's or was signed by another key, which `fedexperts deploy"
    " app` there mends, or somebody changed it"
)
_LOCAL = ("localhost", "127.0.0.1")


def join(site: SiteFolder, patience: float, tell: Tell) -> None:
    """Run a site until it is stopped, is removed, or has been kept out for `patience` seconds."""
    _ = site.signer  # before anything is started: without it any app might run
    owners_alone(site.path)
    diary = Diary(site.path / "site.log")

    def say(text: str) -> None:
        tell(text)
        diary.add(text)

    with alone(site.path, f"the site {site.name}"), answering(site, say) as orders:
        say(f"The site {site.name} looks for {site.door.called}. Its log is {diary.path}.")
        for line in consent.first_lines(site):
            say(line)
        visit = Visit(site, patience, say)
        while True:
            visit.let_in()
            with program(
                _supernode(site, orders), site.path / "flower" / "supernode.log"
            ) as flower:
                visit.stay(flower)
            time.sleep(_PAUSE)


class Visit:
    """A site before the server's door and behind it, and how long it has been kept out."""

    def __init__(self, site: SiteFolder, patience: float, tell: Tell) -> None:
        self._site, self._patience, self._tell = site, patience, tell
        self._connected_at = time.monotonic()
        self._said, self._said_at = "", 0.0
        self._server = ""  # its version, as it was told last
        self._greeted_at = 0.0

    def let_in(self) -> None:
        """Until the server lets the site in; UnreachableError once patience has run out."""
        while error := self._greeted():
            self._bear(error)
            time.sleep(_PAUSE)

    def stay(self, flower: Program) -> None:
        """Until Flower's program has ended, or UnreachableError; what it says is told in ours."""
        heard, inside, cut, ended = 0, False, False, False
        while not ended:
            ended = flower.ended()
            lines = flower.words.since(heard)
            heard += len(lines)
            for line in lines:
                if _UNSIGNED.search(line):
                    self._tell(f"The site {self._site.name} {_NOT_OURS}.")
                if _CUT in line:
                    cut = True
                elif _INSIDE in line or _MENDED in line:
                    if cut:
                        self._greeted()  # another server may be there now
                    inside, cut = True, False
                    self._tell(f"The site {self._site.name} is connected.")
                    self._said = ""
            if cut:
                if error := self._greeted():
                    self._bear(error)
                time.sleep(_PAUSE)
            elif inside:
                self._connected_at = time.monotonic()
                if self._connected_at > self._greeted_at + _HOURLY:
                    self._greeted()  # there may be a new authority to trust
            time.sleep(0.5)
        if not inside:
            self._not_inside(flower)
        elif not self._greeted():
            self._tell(f"Flower's program ended ({flower.words.last()}); it is started again.")

    def _not_inside(self, flower: Program) -> None:
        words = flower.words.last()
        if _REFUSED in words:
            self._bear(probe.session(self._site.door))
        elif not self._greeted():
            raise FlowerError(f"the site {self._site.name} ended: {words}")

    def _greeted(self) -> UnreachableError | None:
        """Nothing, if the server lets the site in; or why it does not."""
        self._greeted_at = time.monotonic()
        try:
            welcome = probe.greet(self._site.door, self._site.key)
        except UnreachableError as error:
            return error
        self._hear(welcome)
        return None

    def _hear(self, welcome: Welcome) -> None:
        if welcome.version != self._server:
            self._server = welcome.version
            self._tell(f"The server has {welcome.version}; this site has {hello.version()}.")
        if welcome.authorities:
            self._site.trust(welcome.authorities)
            self._tell("The server has a new authority; this site trusts it from now on, too.")

    def _bear(self, error: UnreachableError) -> None:
        """Say what keeps the site out, and go on; or raise it, if there is no more patience."""
        kept_out = time.monotonic() - self._connected_at
        if error.cause == "removed" or kept_out > self._patience:
            raise error
        if error.cause != self._said or time.monotonic() > self._said_at + _SAME:
            self._said, self._said_at = error.cause, time.monotonic()
            self._tell(f"Not connected: {error}. Trying on.")


def _supernode(site: SiteFolder, orders: str) -> list[str]:
    trusted = site.path / "flower" / "trusted.yaml"
    write(trusted, trusting(site.signer))
    own = _own_certificate(site.path / "flower")
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
        *own,
        "--node-config",
        f'socket="{orders}"',
        "--trusted-entities",
        str(trusted),
    ]


def _own_certificate(folder: Path) -> list[str]:
    """Flower's programs at a site speak TLS among themselves, by an authority made at each start:
    none that could expire.
    """
    authority, key = new_key(), new_key()
    signer = certificates.authority(authority)
    keep_key(folder / "own.key", key)
    write(folder / "own-ca.crt", signer)
    made = certificates.certificate(_LOCAL, key, certificates.as_pem(authority), signer)
    write(folder / "own.crt", made)
    return [
        "--ssl-certfile",
        str(folder / "own.crt"),
        "--ssl-keyfile",
        str(folder / "own.key"),
        "--ssl-ca-certfile",
        str(folder / "own-ca.crt"),
    ]
