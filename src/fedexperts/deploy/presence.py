"""Which sites the server has heard, and when: written by its door, read by whoever wants to know.

    FOLDER/flower/presence.json   the time, and of each site: when it was heard, its version, bytes

Flower's own list of who is online outlives the server, and then names sites that are not there.
This room knows no Flower, and not what sites say.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT = 60.0  # seconds: Flower's program gives a sign of life every 25, and one may be lost
_FRESH = 15.0  # seconds without a note after which the server is not there


@dataclass
class Heard:
    """What one site let hear of itself since the server started."""

    at: float = 0.0  # seconds since 1970
    version: str = ""
    bytes_in: int = 0  # from it
    bytes_out: int = 0  # to it
    refused: str = ""  # what it was refused last
    trusts: str = ""  # the hash of its ca.crt

    @property
    def connected(self) -> bool:
        """Whether it called within the last beat."""
        return time.time() - self.at < BEAT

    def said(self) -> str:
        """How the site stands, in words."""
        if not self.at:
            said = "not heard since the server started"
        elif self.connected:
            said = f"connected ({self.version or 'a version that greets nobody'})"
        else:
            said = f"not connected; heard {_ago(time.time() - self.at)} ago"
        if self.refused:
            said += f"; refused: {self.refused}"
        return said


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


class Presence:
    """What the server's door notes. One writer, many readers."""

    def __init__(self) -> None:
        self._sites: dict[str, Heard] = {}

    def of(self, site: str) -> Heard:
        return self._sites.setdefault(site, Heard())

    def heard(self, site: str, came: int, went: int) -> None:
        """A site's call was answered."""
        heard = self.of(site)
        heard.at = time.time()
        heard.bytes_in += came
        heard.bytes_out += went

    def connected(self) -> list[str]:
        """Sites that called within the last beat."""
        return sorted(site for site, heard in list(self._sites.items()) if heard.connected)

    def note(self, folder: Path) -> None:
        """Write it down for other processes; lost at a crash, as it would be false after it."""
        sites = {site: asdict(heard) for site, heard in list(self._sites.items())}
        part = folder / f".presence.{os.getpid()}.part"
        part.write_text(json.dumps({"at": time.time(), "sites": sites}), encoding="utf-8")
        os.replace(part, folder / "presence.json")


def heard_sites(folder: Path) -> dict[str, Heard] | None:
    """What the running server heard of each site; None if no server is running."""
    try:
        noted = json.loads((folder / "presence.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if time.time() - noted["at"] > _FRESH:
        return None
    return {site: Heard(**facts) for site, facts in noted["sites"].items()}
