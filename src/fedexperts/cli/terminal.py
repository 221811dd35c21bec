"""What the commands share: consoles, common arguments, errors, signals."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from .plain import Plain

out = Plain(highlight=False)
err = Plain(stderr=True, highlight=False)

Configs = Annotated[
    list[Path], typer.Argument(help="Config files, or folders of them.", show_default=False)
]
OneConfig = Annotated[Path, typer.Argument(help="A config file.", show_default=False)]
Runs = Annotated[
    list[Path], typer.Argument(help="Folders that `fedexperts run` made.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="section.key=value", help="Another value for a key; repeatable."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Runs at a time, each a process.", show_default="one a core"),
]


Forget = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLIENT",
        help="Go on without this client's private state, which is gone or damaged; repeatable.",
    ),
]

ENDING = (signal.SIGTERM, signal.SIGHUP)  # beside Ctrl-C
_ROOM = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota of that disk",
    errno.EROFS: "that disk can only be read: mount it for writing, or choose another folder",
    errno.EACCES: (
        "the user who runs this may not write or read there: mend its permissions, or choose"
        " another folder"
    ),
}


class TerminatedError(KeyboardInterrupt):
    """A signal that ends the program, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


def answer_signals() -> None:
    """Treat SIGTERM and SIGHUP like Ctrl-C; under nohup, ignore them."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TerminatedError(number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def say(text: str) -> None:
    out.print(escape(text), soft_wrap=True)


@contextmanager
def stopped(word: str) -> Iterator[None]:
    """On Ctrl-C or another signal, say what that means and what to type, and exit."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, TerminatedError) else signal.SIGINT
        err.print(f"\n{word}", soft_wrap=True)
        raise typer.Exit(128 + number) from None


@contextmanager
def to_go_on(line: str) -> Iterator[None]:
    """What went wrong comes with the line to type once it is mended."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.add_note(f"Every finished round is kept. Once that is mended, go on with: {line}")
        raise


@contextmanager
def errors() -> Iterator[None]:
    """A clear line instead of a traceback, for what is the user's to mend."""
    try:
        with stopped("Stopped."):
            yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _nobody_left(error):
            raise
        from ..config import ConfigError

        kind = "Config" if isinstance(error, ConfigError) else "Error"
        err.print(f"[red]{kind}:[/] {escape(_words(error))}", soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


def _nobody_left(error: RuntimeError) -> bool:
    from ..loop import NobodyLeftError  # brings torch: not before there is such an error

    return isinstance(error, NobodyLeftError)


def _words(error: Exception) -> str:
    """What an error says, and what to do; of one of the disk, the file comes first."""
    says = str(error)
    if isinstance(error, OSError) and error.filename:
        says = f"{error.filename}: {error.strerror}"
        says += f"; {_ROOM[error.errno]}" if error.errno in _ROOM else ""
    return "\n".join([says, *getattr(error, "__notes__", [])])
