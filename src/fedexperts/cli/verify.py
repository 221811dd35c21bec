"""The command that checks finished work: what was written, and whether it comes out again."""

from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import Runs, errors, say

if TYPE_CHECKING:
    from ..rundir import RunDir


def verify(
    runs: Runs,
    rerun: Annotated[
        bool, typer.Option(" /--no-rerun", help="Check the files alone; repeat no round.")
    ] = True,
) -> None:
    """Check that runs are as they were written, and repeat a round of each to see the same bits.

    Of several runs, it says what can be compared. It exits with 1 if anything does not hold.
    """
    from .. import verify as checks
    from ..report.collect import runs as folders
    from ..rundir import RunDir

    with errors():
        paths = [path for each in runs for path in folders(each)]
        whole = [_verified(RunDir(path), rerun) for path in paths]
        if len(paths) > 1:
            say("What can be compared")
            for line in checks.compared(paths):
                say(f"  {line}")
        if not all(whole):
            raise typer.Exit(1)


def _verified(folder: "RunDir", rerun: bool) -> bool:
    """Whether a run holds, printed."""
    from .. import verify as checks

    say(str(folder.path))
    files = checks.files(folder)
    say(f"  {files.says}")
    if not files.holds:
        return False
    say(f"  {checks.made(folder)}")
    try:
        changed = checks.since(folder)
    except ValueError as error:
        changed = [f"What changed since the run cannot be said: {error}"]
    for line in changed:
        say(f"  {line}")
    if not rerun:
        return True
    again = checks.again(folder, changed)
    say(f"  {again.says}")
    return again.holds
