"""What runs show: tables for a terminal and one page for everybody else.

    collect(paths)             the experiments in folders of runs
    decision(experiments)      which to use, and how sure that is
    tables(experiments)        what `fedexperts compare` prints
    written(form, ...)         the same as JSON, Markdown or LaTeX
    as_csv(experiments)        the same in numbers, a row an experiment
    write_html(experiments)    what `fedexperts report` writes
    write_pictures(...)        its pictures alone, an SVG each
    write_split(counts, ...)   who has how many examples of which class

Every figure is computed by metrics.py from the rows that a run logged. This room prints nothing,
trains nothing, and does not know what a client, a model or an engine is.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..tensors import write
from .collect import Experiment, Run, collect
from .decision import decision
from .flat import as_csv
from .forms import written
from .tables import tables

__all__ = [
    "Experiment",
    "Run",
    "as_csv",
    "collect",
    "decision",
    "tables",
    "write_html",
    "write_pictures",
    "write_split",
    "written",
]


def write_html(experiments: Sequence[Experiment], path: Path) -> None:
    """One self-contained page: no scripts, no links. Raises ValueError if `path` is a folder."""
    # matplotlib takes a second to import: not for a table in a terminal
    from .page import write as write_page

    write_page(experiments, path)


def write_pictures(experiments: Sequence[Experiment], folder: Path) -> list[Path]:
    """The page's pictures as files of a folder, named by their titles; returns their paths."""
    from .figures import draw

    files = {
        folder / f"{re.sub('[^a-z0-9]+', '-', p.title.lower()).strip('-')}.svg": p.svg
        for p in draw(experiments)
    }
    for path, data in files.items():
        write(path, data)
    return list(files)


def write_split(counts: Mapping[str, Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Examples by client and class, as SVG or PNG. Raises ValueError for another suffix."""
    from .split import write as write_picture

    write_picture(counts, classes, path)
