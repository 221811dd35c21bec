"""The command that downloads: models and data sets of the hub, by name or all that configs lack."""

import difflib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from .terminal import Settings, err, errors, out, say, stopped

if TYPE_CHECKING:
    from ..download import Offer, Tell
    from ..fetch import Repository

QUIET = 30.0  # seconds between two lines


def fetch(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|CONFIG...",
            help="Data sets (cifar10), models of the hub (OWNER/NAME), or config files and folders"
            " of them: all that they lack.",
            show_default=False,
        ),
    ],
    settings: Settings = None,
) -> None:
    """Download models and data sets, only the files that are read; typed again, it goes on."""
    from .. import download as hub

    with errors(), stopped("What has come is kept; continue with: the same command"):
        repositories = [_repository(name) for name in _names(what, settings or [])]
        offers = [hub.offer(repository) for repository in repositories]
        if not offers:
            say("Nothing is lacking that could be fetched.")
            return
        _announce(offers)
        for offer in offers:
            with _bar(offer.repository.name) as tell:
                folder = hub.fetched(offer, tell)
            say(f"{offer.repository.name} is in {folder}")


def _names(what: list[str], settings: list[str]) -> list[str]:
    """The names that are given, and those that the given configs lack."""
    names: dict[str, None] = {}
    for word in what:
        if word.endswith(".toml") or word.partition("/")[0] == "configs" or Path(word).is_dir():
            names |= dict.fromkeys(_lacking(Path(word), settings))
        else:
            names[word] = None
    return list(names)


def _lacking(path: Path, settings: list[str]) -> Iterator[str]:
    """What configs lack, by name; what else has to be done for them is said."""
    from .. import config as door
    from ..fetch import NotHereError

    configs = [door.load(file, settings) for file in door.find(path)]
    reasons = [error for config in configs for error in door.lacking(config)]
    for error in reasons:
        if isinstance(error, NotHereError):
            yield from error.names
    others = [error for error in reasons if not getattr(error, "names", ())]
    for says in dict.fromkeys(map(str, others)):
        err.print(f"[yellow]Note:[/] {escape(says)}", soft_wrap=True)


def _repository(name: str) -> "Repository":
    from ..data.sets import SETS, reader, repository
    from ..fetch import Repository

    if name in SETS:
        reader()  # what is missing is said before a large download
        return repository(name)
    if name.count("/") == 1:
        return Repository(name)
    near = difflib.get_close_matches(name, SETS, 1)
    hint = f"data sets are {', '.join(SETS)}"
    if near:
        hint = f"did you mean {near[0]}?"
    raise ValueError(
        f"{name}: no data set of the papers, no config, and no OWNER/NAME of the hub; {hint}"
    )


def _announce(offers: list["Offer"]) -> None:
    """What will come, before it comes."""
    from ..download import size

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("from the hub", "files", "size", "to download", "licence"):
        table.add_column(head)
    for offer in offers:
        left = sum(file.size for file in offer.left)
        name, count = escape(offer.repository.name), str(len(offer.files))
        table.add_row(name, count, size(offer.size), size(left), escape(offer.licence))
    out.print(table)


@contextmanager
def _bar(what: str) -> Iterator["Tell"]:
    """What hears how much is there, and shows it; without a terminal, in a line now and then."""
    if not err.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str) -> "Tell":
    from ..download import size

    newest = -QUIET

    def tell(done: int, total: int) -> None:
        nonlocal newest
        if done == total or time.monotonic() - newest >= QUIET:
            newest = time.monotonic()
            err.print(f"{escape(what)}: {size(done)} of {size(total)}", soft_wrap=True)

    return tell
