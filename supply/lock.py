"""Write supply/hashes.txt: the sha256 of every file that the package index has of the versions in
constraints.txt.

    .venv/bin/python supply/lock.py

To be run after constraints.txt or pyproject.toml has changed, on a machine and with a package index
that one trusts: install.py takes these files later, and no others. uv asks the index, for all
systems and Pythons that we run on, so that the list holds elsewhere. Builds of a version that pip
takes from a folder of this machine (PIP_FIND_LINKS), as a torch for processors alone, which no
index has, are listed beside them.
"""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from install import BUILD, CONSTRAINTS, HASHES, ROOT, plain

HEAD = "# By `python supply/lock.py`, not by hand: what supply/install.py takes.\n"
UV = (
    "uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11"
    f" --generate-hashes --no-header --no-annotate --quiet -c {CONSTRAINTS}"
)


def main() -> None:
    """Ask, compare with constraints.txt, and write."""
    needs = "\n".join(BUILD)
    listed = subprocess.run(
        UV.split(), cwd=ROOT, input=needs, capture_output=True, text=True, check=True
    ).stdout
    known = CONSTRAINTS.read_text().splitlines()
    pins = {plain(row) for row in known}
    if loose := [
        row for row in re.findall(r"^\S+==\S+", listed, re.MULTILINE) if plain(row) not in pins
    ]:
        sys.exit(
            "constraints.txt lacks these, so that pip would take others tomorrow:\n"
            + "\n".join(loose)
        )
    for wheel in here():
        name, version = wheel.name.split("-")[:2]
        row = f"{name}=={version.partition('+')[0]} \\\n"
        listed = listed.replace(f"\n{row}", f"\n{row}    --hash=sha256:{sha256(wheel)} \\\n")
    HASHES.write_text(HEAD + listed)


def here() -> list[Path]:
    """The wheels in folders that pip is told to look into, beside the index."""
    folders = os.environ.get("PIP_FIND_LINKS", "").split()
    return [wheel for folder in folders for wheel in sorted(Path(folder).glob("*.whl"))]


def sha256(file: Path) -> str:
    """Of a file's bytes, read piece by piece."""
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


if __name__ == "__main__":
    main()
