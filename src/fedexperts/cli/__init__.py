"""The command line: read arguments, call one function of another room, print.

    studies.py      demo, run, resume, reproduce, compare, report
    verify.py       verify
    unlearn.py      unlearn
    look.py         ls, show, check
    take.py         predict, export
    fetch.py        fetch
    evaluate.py     evaluate
    serve.py        serve
    deployment.py   deploy: servers and sites; running.py: their runs
    terminal.py     what they share
    plain.py        consoles on which words of others are only words

Heavy rooms are imported inside the commands, so that help and typing errors answer at once.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from . import deployment, look, running, studies, take
from .evaluate import evaluate
from .fetch import fetch
from .serve import serve
from .terminal import answer_signals, out
from .unlearn import unlearn
from .verify import verify

app = typer.Typer(
    help="Federated mixtures of experts: sites learn together and exchange experts, never data.",
    no_args_is_help=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

START = """[bold]fedexperts[/]: sites learn together and exchange experts, never data.

  fedexperts demo                               five methods compared, in a minute or two
  fedexperts ls configs                         what can be run
  fedexperts check configs/demo/pfedmoap.toml   data, split and model; nothing is trained
  fedexperts --help                             all commands"""


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(f"fedexperts {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.print(START, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": studies.demo,
    "run": studies.run,
    "resume": studies.resume,
    "reproduce": studies.reproduce,
    "compare": studies.compare,
    "report": studies.report,
    "verify": verify,
    "unlearn": unlearn,
    "ls": look.ls,
    "show": look.show,
    "check": look.check,
    "fetch": fetch,
    "predict": take.predict,
    "evaluate": evaluate,
    "export": take.export,
    "serve": serve,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
for of_runs in (running.run, running.resume, running.watch, running.stop):
    deployment.app.command()(of_runs)
app.add_typer(deployment.app, name="deploy")


def main() -> None:
    """The program."""
    answer_signals()
    app()
