"""Who may read what a deployment writes: its owner alone, whatever the umask. What is written is
not known here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unseen() -> Iterator[None]:
    """What is written meanwhile, here and by programs that are started, is its owner's alone,
    whatever the umask.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def owners_alone(folder: Path) -> None:
    """Take from everybody but its owner what is there already: it may have been carried here, or be
    older.
    """
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
