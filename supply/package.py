"""Build the package's two files, check them, and use the wheel as a stranger would.

    .venv/bin/python supply/package.py FOLDER

Writes FOLDER/dist with a wheel and a source archive, and FOLDER/venv, an environment in which only
the wheel and what it asks for is installed, from files that supply/hashes.txt lists. There, in an
empty folder, the README's first commands and lines of Python are run. Needs `build` and `twine`.
"""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Build, check, install, use."""
    if len(sys.argv) != 2:
        sys.exit("type: python supply/package.py FOLDER, a new folder outside of the checkout")
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    dist, programs, empty = folder / "dist", folder / "venv" / "bin", folder / "empty"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT, quiet=True)
    wheel, source = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    venv.create(folder / "venv", with_pip=True)
    run(programs / "python", ROOT / "supply" / "install.py", "pandas", "--wheel", wheel)
    run(programs / "python", "-m", "pip", "check")
    empty.mkdir()
    for command in ("--version", "ls methods", "check configs/demo/pfedmoap.toml", "demo"):
        run(programs / "fedexperts", *command.split(), cwd=empty)
    run(programs / "python", "-c", python(ROOT / "README.md"), cwd=empty)


def python(page: Path) -> str:
    """The first block of Python of a page."""
    block = re.search(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None, page
    return block[1]


def run(*words: str | Path, cwd: Path = ROOT, quiet: bool = False) -> None:
    """Run it, say it, and end with it if it fails."""
    print("$", *words, flush=True)
    out = subprocess.PIPE if quiet else None
    # PYTHONPATH would find the checkout; a narrow terminal would cut tables
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "120"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        stdout=out,
        stderr=out and subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nit exited with {done.returncode}")


if __name__ == "__main__":
    main()
