"""What the commands share: consoles, common arguments, errors, signals."""

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .plain import Plain

out = Plain(highlight=False)
err = Plain(stderr=True, highlight=False)

Configs = Annotated[
    list[Path], typer.Argument(help="Config files, or folders of them.", show_default=False)
]
OneConfig = Annotated[Path, typer.Argument(help="A config file.", show_default=False)]
Runs = Annotated[
    list[Path], typer.Argument(help="Folders made by `fedexperts run`.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="section.key=value", help="Set a key to this value; repeatable."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at a time, each in its own process.", show_default="one per core"
    ),
]


Seeds = Annotated[int, typer.Option(min=1, help="How many seeds, counted up from run.seed.")]
TensorBoard = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Also log each round for TensorBoard, in this folder."),
]
MLflow = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Also log to MLflow, at http://HOST:PORT or sqlite:///FILE."
    ),
]
Wandb = Annotated[
    str | None,
    typer.Option(metavar="PROJECT", help="Also log to this project of Weights & Biases."),
]


class Tune(StrEnum):
    """Which values a run tries before it settles."""

    config = "config"
    none = "none"


Tuning = Annotated[
    Tune,
    typer.Option(help=r"Which values to try first: those in \[tune] of a config, or none."),
]


def trackers(tensorboard: str | None, mlflow: str | None, wandb: str | None) -> dict[str, str]:
    """Who follows the runs elsewhere, and where, of those that were asked for."""
    asked = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
    return {kind: where for kind, where in asked.items() if where}


Forget = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLIENT",
        help="Continue without this client's lost or damaged private state; repeatable.",
    ),
]

ENDING = (signal.SIGTERM, signal.SIGHUP)  # beside Ctrl-C
_ROOM = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space within your quota on that disk",
    errno.EROFS: "that disk is read-only: mount it for writing, or use another folder",
    errno.EACCES: "you may not read or write there: change its permissions, or use another folder",
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
        number: int = signal.SIGINT
        if isinstance(interrupt, TerminatedError):
            number = interrupt.number
        err.print(f"\n{word}", soft_wrap=True)
        raise typer.Exit(128 + number) from None


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar while inputs are gone through; what it gives hears how many of how many are done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda done, of: bar.update(task, completed=done, total=of)


@contextmanager
def to_go_on(line: str) -> Iterator[None]:
    """What went wrong comes with the line to type once it is fixed."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.add_note(f"Every finished round is kept. Once this is fixed, continue with: {line}")
        raise


@contextmanager
def errors() -> Iterator[None]:
    """A clear line instead of a traceback, for what the user can fix."""
    try:
        with stopped("Stopped."):
            yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _nobody_left(error):
            raise
        from ..config import ConfigError

        kind, code = "Error", 1
        if isinstance(error, ConfigError):
            kind, code = "Config", 2
        err.print(f"[red]{kind}:[/] {escape(_words(error))}", soft_wrap=True)
        raise typer.Exit(code) from None


def _nobody_left(error: RuntimeError) -> bool:
    from ..loop import NobodyLeftError  # brings torch: not before there is such an error

    return isinstance(error, NobodyLeftError)


def _words(error: Exception) -> str:
    """What an error says, and what to do; of one of the disk, the file comes first."""
    says = str(error)
    if isinstance(error, OSError) and error.filename:
        says = f"{error.filename}: {error.strerror}"
        if error.errno in _ROOM:
            says += f"; {_ROOM[error.errno]}"
    return "\n".join([says, *getattr(error, "__notes__", [])])
