"""Where the configs lie that ship with the package, and where this machine keeps what can be made
again.

This room brings nothing with it, not even torch: whoever only asks for a folder waits for nothing.
"""

import os
from pathlib import Path


def shipped() -> list[tuple[Path, str]]:
    """The configs that ship with the package, each with the comment in its first line."""
    files = [
        file for file in sorted(shipped_folder().rglob("*.toml")) if not file.name.startswith("_")
    ]
    return [
        (
            Path("configs") / file.relative_to(shipped_folder()),
            file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "),
        )
        for file in files
    ]


def shipped_folder() -> Path:
    """Where the configs lie that ship with the package."""
    here = Path(__file__).parents[1]
    return here / "configs" if (here / "configs").exists() else here.parents[1] / "configs"


def cache_folder() -> Path:
    """Where image features are kept: FEDEXPERTS_CACHE, or the user's cache folder."""
    if named := os.environ.get("FEDEXPERTS_CACHE"):
        return Path(named)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "fedexperts"
    try:
        return Path.home() / ".cache" / "fedexperts"
    except RuntimeError:  # a user whom the system does not know, as in a container
        raise ValueError(
            "this user has no home to keep image features in: set FEDEXPERTS_CACHE to a folder"
        ) from None
