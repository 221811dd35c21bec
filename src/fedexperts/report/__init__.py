"""What runs show: tables for a terminal and one page for everybody else.

    collect(paths)             the experiments in folders of runs
    tables(experiments)        what `fedexperts compare` prints
    write_html(experiments)    what `fedexperts report` writes

Every figure is computed by metrics.py from the rows that a run logged. This room prints nothing, trains nothing, and
does not know what a client, a model or an engine is.
"""

from collections.abc import Sequence
from pathlib import Path

from .collect import Experiment, Run, collect
from .tables import tables

__all__ = ["Experiment", "Run", "collect", "tables", "write_html"]


def write_html(experiments: Sequence[Experiment], path: Path) -> None:
    """One self-contained page: no scripts, no links, pictures inside. Raises ValueError if `path` is a folder."""
    from .page import write  # matplotlib takes a second to import: not for a table in a terminal

    write(experiments, path)
