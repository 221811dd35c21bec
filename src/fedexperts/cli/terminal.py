"""What the commands share: two consoles, arguments that several of them take, and a clear line for what went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .plain import Plain

out = Plain(highlight=False)
err = Plain(stderr=True, highlight=False)

Configs = Annotated[list[Path], typer.Argument(help="Config files, or folders of them.", show_default=False)]
OneConfig = Annotated[Path, typer.Argument(help="A config file.", show_default=False)]
Runs = Annotated[list[Path], typer.Argument(help="Folders that `fedexperts run` made.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="section.key=value", help="Another value for a key; repeatable.")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time, each a process.", show_default="one a core")]


def say(text: str) -> None:
    out.print(escape(text), soft_wrap=True)


@contextmanager
def stopped(word: str) -> Iterator[None]:
    """Ctrl-C ends what goes on, with a word on what that means and what to type."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"\n{word}")
        raise typer.Exit(130) from None


@contextmanager
def errors() -> Iterator[None]:
    """A clear line instead of a traceback, for what is the user's to mend."""
    from ..config import ConfigError
    from ..loop import NobodyLeftError

    try:
        yield
    except (ValueError, OSError, NobodyLeftError) as error:
        err.print(f"[red]{'Config' if isinstance(error, ConfigError) else 'Error'}:[/] {escape(str(error))}")
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
