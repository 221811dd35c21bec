"""Install this package with what it needs, and of that only files whose sha256 stands in
supply/hashes.txt.

    python supply/install.py           what running needs
    python supply/install.py dev       what tests need, too
    python supply/install.py dev --trust torch     this package's file is taken as it is found, and
    said
    python supply/install.py --wheel FILE          this wheel of the package, and not the checkout

pip chooses and downloads, wheels alone, so that nothing of them runs; each file is compared with
the list; pip installs from these very files, without an index. The build of this package itself
uses the hatchling that was so installed. What is taken on trust: Python, the pip that came with it,
and whoever wrote the list (lock.py). Needs no package itself.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS, HASHES = ROOT / "constraints.txt", ROOT / "supply" / "hashes.txt"
# what builds this package, for pip would fetch it unchecked
BUILD = ("hatchling>=1.25", "editables>=0.5")
CHOSEN = ("--only-binary", ":all:", "--constraint", str(CONSTRAINTS))
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def main() -> None:
    """Download, compare, install."""
    asked = argparse.ArgumentParser(
        description="Install with every file checked against supply/hashes.txt."
    )
    asked.add_argument(
        "extra", nargs="?", default="", help="an extra of pyproject.toml, as dev; default: none"
    )
    asked.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="not to be checked; repeatable",
    )
    asked.add_argument(
        "--wheel", metavar="FILE", help="install this wheel, and not the checkout itself"
    )
    said = asked.parse_args()
    package = ["--no-build-isolation", "--editable", str(ROOT)]
    if said.wheel:
        package = [said.wheel]
    with tempfile.TemporaryDirectory() as folder:
        pip("download", *CHOSEN, "--dest", folder, *BUILD, *wanted(said.extra))
        files = sorted(Path(folder).iterdir())
        check(files, {plain(name) for name in said.trust})
        pip("install", "--no-index", "--no-deps", *map(str, files))
    pip("install", "--no-index", "--no-deps", *package)


def pip(*words: str) -> None:
    """Run it; it says itself what went wrong."""
    if subprocess.run([*PIP, *words]).returncode:
        sys.exit(1)


def wanted(extra: str) -> list[str]:
    """What pyproject.toml asks for, an extra's extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: list[str] = list(project["dependencies"])
    waiting = [extra] if extra else []
    while waiting:
        for row in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", row)
            waiting += own[1].split(",") if own else []
            found += [] if own else [row]
    return found


def check(files: list[Path], trusted: set[str]) -> None:
    """Ends the program, with all files that are not listed, if there are any."""
    listed = set(re.findall(r"sha256:([0-9a-f]{64})", HASHES.read_text()))
    odd = [
        (file, found)
        for file in files
        if (found := hashlib.sha256(file.read_bytes()).hexdigest()) not in listed
    ]
    for file, found in odd:
        print(f"not in supply/hashes.txt: {file.name}, sha256 {found}", file=sys.stderr)
    if strange := sorted({plain(file.name.split("-")[0]) for file, _ in odd} - trusted):
        sys.exit(
            "Nothing was installed. Expected the index that the list was made with. If you"
            f" know where these files come from: {' '.join(f'--trust {name}' for name in strange)}"
        )


def plain(name: str) -> str:
    """A package's name, or a row "name==version", in the one spelling that indexes compare."""
    return (
        re.sub("[-_.]+", "-", name.partition("==")[0]).lower()
        + "".join(name.partition("==")[1:]).strip()
    )


if __name__ == "__main__":
    main()
