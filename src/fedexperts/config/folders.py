"""Where this machine keeps what can be made again.

This room brings nothing with it, not even torch: whoever only asks for a folder waits for nothing.
"""

import os
from pathlib import Path


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
