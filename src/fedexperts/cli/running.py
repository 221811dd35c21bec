"""`fedexperts deploy run`, and what else is done with runs of a deployment: resume, watch, stop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from .deployment import Folder, flower
from .studies import announce
from .terminal import (
    Forget,
    MLflow,
    OneConfig,
    Seeds,
    Settings,
    TensorBoard,
    Tune,
    Tuning,
    Wandb,
    err,
    out,
    say,
    stopped,
    trackers,
)

if TYPE_CHECKING:
    from ..config import Config
    from ..deploy.folder import Deployment
    from ..deploy.runs import Run

_AT_ONCE = 20.0  # seconds in which a run's loop hears that it is to stop

RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]


def run(
    folder: Folder,
    config: OneConfig,
    settings: Settings = None,
    seeds: Seeds = 1,
    tune: Tuning = Tune.none,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    wandb: Wandb = None,
) -> None:
    """Run an experiment on the sites and watch it; closing this terminal does not stop it.

    With several seeds, tuning or a tracker it is a study: its runs follow one after the other.
    """
    from .. import config as door

    with flower() as deployments:
        from ..deploy import control, runs
        from ..study import budget

        deployment = deployments.Deployment.at(folder)
        fitted = runs.fitted(door.load(config, settings or []), deployment)
        if tune is Tune.none and fitted.tune:
            say(
                f"{fitted.name}: the values in the file are used; --tune config would first try"
                f" those in [tune], in up to {budget([fitted])} runs of half the rounds."
            )
            fitted = replace(fitted, tune={})
        control.connected(deployment)  # before anything is written: is the server there?
        deployment.signed()  # and an app that sites run?
        first = int(fitted.values["run"]["seed"])
        asked = trackers(tensorboard, mlflow, wandb)
        run = _created(deployment, fitted, [first + i for i in range(seeds)], asked)
        if run.is_study:
            announce(folder / "runs" / run.path.name)
        say(f"The run {run.path.name} is submitted; the server begins it in some seconds.")
        _watch(folder, deployment, run)


def _created(
    deployment: "Deployment", config: "Config", seeds: list[int], trackers: dict[str, str]
) -> "Run":
    """A new run, or a study, under the first name that is free."""
    from ..deploy.runs import Run
    from ..study import free

    while True:
        path = free(deployment.path / "runs" / config.name)
        try:
            if len(seeds) > 1 or config.tune or trackers:
                return Run.create_study(deployment, config, path.name, seeds, trackers)
            return Run.create(deployment, config, path.name)
        except ValueError:
            if not path.exists():
                raise
            # another terminal took the name meanwhile


def resume(folder: Folder, name: RunName, forget: Forget = None) -> None:
    """Continue a run that failed or was stopped from its last finished round, and watch it."""
    with _run_of(folder, name) as (control, deployment, run):
        control.connected(deployment)
        if not run.status.over and control.carried_out(deployment, run):
            raise ValueError(
                f"the run {name} goes on already; watch it: fedexperts deploy watch {folder} {name}"
            )
        for site in forget or []:
            run.now.folder.forget(site)
            say(f"{site} starts afresh; the run's log and its report say so.")
        run.begins_anew()
        _watch(folder, deployment, run)


def watch(
    folder: Folder,
    name: RunName,
    json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each change, for a monitor.")
    ] = False,
) -> None:
    """Watch a run."""
    with _run_of(folder, name) as (_, deployment, run):
        if not json:
            _watch(folder, deployment, run)
            return
        from ..deploy import watch

        for line in watch.snapshots(deployment, run):
            typer.echo(line)
        if run.status.state != "finished":
            raise typer.Exit(1)


def stop(
    folder: Folder,
    name: RunName,
    after_round: Annotated[
        bool, typer.Option("--after-round", help="Let the round that is going on finish.")
    ] = False,
) -> None:
    """Stop a run; finished rounds are kept, and `resume` continues it."""
    with _run_of(folder, name) as (control, deployment, run):
        if run.status.over:
            raise ValueError(f"the run {name} is over: it has {run.status.state}")
        if after_round:
            control.connected(deployment)  # or nobody would read it
            run.stop("round")
            say("It stops after the round that is going on.")
            return
        run.stop("now")
        _until_stopped(control, deployment, run)
        again = f"fedexperts deploy resume {folder} {name}"
        out.print(f"Stopped. Continue with: {escape(again)}", soft_wrap=True)


def _until_stopped(control: ModuleType, deployment: "Deployment", run: "Run") -> None:
    """Until the run's loop has heard; or without it, if it does not hear."""
    from ..deploy.programs import FlowerError

    until = time.monotonic() + _AT_ONCE
    try:
        while not run.status.over and time.monotonic() < until:
            control.connected(deployment)
            time.sleep(0.2)
        if not run.status.over and run.number:
            control.stop(deployment, run)
    except FlowerError:
        pass  # the server is gone, and goes on with no run that is stopped
    if not run.status.over:
        run.stands(replace(run.status, state="stopped", why="the operator stopped it"))


@contextmanager
def _run_of(folder: Path, name: str) -> Iterator[tuple[ModuleType, "Deployment", "Run"]]:
    """The room that asks Flower's server, the deployment, and its run of this name."""
    with flower() as deployments:
        from ..deploy import control, runs

        deployment = deployments.Deployment.at(folder)
        yield control, deployment, runs.Run.at(deployment, name)


def _watch(folder: Path, deployment: "Deployment", run: "Run") -> None:
    """Say what happens in a run until it is over; exit with 1 if it did not finish."""
    from .. import report as pictures
    from ..deploy import watch
    from ..deploy.following import following

    name = run.path.name
    again, end = (f"fedexperts deploy {command} {folder} {name}" for command in ("watch", "stop"))
    with (
        stopped(f"The run continues. Watch it: {again}; stop it: {end}"),
        following(run, lambda what: err.print(escape(what), soft_wrap=True)) as tell_trackers,
    ):
        for line in watch.lines(deployment, run):
            say(line)
            tell_trackers()
        tell_trackers()
    status = run.status
    if status.state != "finished":
        kind = "[red]Error:[/]"
        if status.state == "stopped":
            kind = "Stopped:"
        again = f"fedexperts deploy resume {folder} {name}"
        err.print(f"{kind} {escape(status.why)}\nContinue with: {escape(again)}", soft_wrap=True)
        raise typer.Exit(1)
    experiments = pictures.collect([run.path])
    for table in pictures.tables(experiments):
        out.print(table)
    pictures.write_html(experiments, run.path / "report.html")
    out.print(f"\nReport: {run.path / 'report.html'}", soft_wrap=True)
