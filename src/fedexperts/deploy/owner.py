"""Who may read what a deployment writes: its owner alone, whatever the umask. What is written is
not known here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unseen() -> Iterator[None]:
    """What is written meanwhile, also by programs started here, is its owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def owners_alone(folder: Path) -> None:
    """Take from everybody but its owner what is there already, carried here or older."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
