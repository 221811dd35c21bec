"""`fedexperts deploy`: a server, and sites on machines of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from .terminal import Forget, OneConfig, Settings, err, errors, out, say, stopped

if TYPE_CHECKING:
    from ..deploy.folder import Deployment
    from ..deploy.runs import Run

app = typer.Typer(
    help="A real federation: a server, and sites on machines of their own.", no_args_is_help=True
)

Folder = Annotated[
    Path, typer.Argument(help="A folder that `fedexperts deploy init` made.", show_default=False)
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(help="A new folder, on the server's machine.", show_default=False)
    ],
    server: Annotated[str, typer.Option(help="Name or address at which sites reach the server.")],
    sites: Annotated[str, typer.Option(help="Names of the sites, separated by commas.")],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The server's port: the only one to open.")
    ] = 9443,
) -> None:
    """Create certificates, keys and each site's folder, and print what to run where."""
    with _flower() as (_, deployments):
        names = [name.strip() for name in sites.split(",") if name.strip()]
        made = deployments.Deployment.create(folder, server, port, names)
        key = deployments.signing_key_of(folder)
        out.print(
            f"Wrote {folder} and, separately, the signing key {key}.\n  Move {key} to another"
            " machine and delete it here: whoever has it can run code at the\n  sites; whoever has"
            " only the server cannot. `fedexperts deploy app` asks for it after an"
            " upgrade.\nNext:",
            soft_wrap=True,
        )
        for name in made.sites:
            out.print(
                f"  copy {folder}/sites/{name} to the machine of site {name}, delete it here, and"
                f" run there\n    fedexperts deploy site {name} --name {name} --data"
                " PATH_OF_ITS_DATA",
                soft_wrap=True,
            )
        out.print(
            f"  run here\n    fedexperts deploy server {folder}\n"
            f"  and in another terminal\n    fedexperts deploy run {folder} CONFIG.toml",
            soft_wrap=True,
        )


@app.command()
def server(
    folder: Folder,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of this machine at which sites reach it.",
            show_default="127.0.0.1 if the server's name is localhost, otherwise all networks",
        ),
    ] = None,
) -> None:
    """Run the server until it is stopped."""
    with (
        _flower() as (processes, deployments),
        stopped("The server has stopped; `resume` continues its runs from their last round."),
    ):
        processes.serve(deployments.Deployment.at(folder), bind, say)


@app.command()
def site(
    folder: Annotated[
        Path, typer.Argument(help="The site's folder, or the deployment's.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="The site's name.")],
    data: Annotated[
        Path | None, typer.Option(help="Where its data are; saved in site.toml.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to keep trying if the server refuses.")
    ] = 180,
    forget: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Start afresh in this run, named as in private/; its state is lost."
        ),
    ] = None,
) -> None:
    """Run a site until it is stopped."""
    with (
        _flower() as (processes, _),
        stopped("The site has stopped; what it keeps is in its folder."),
    ):
        from ..deploy.sitefolder import SiteFolder

        site = SiteFolder.at(folder, name)
        if data:
            site.point_at(data)
        if forget:
            site.forget(forget)
        processes.join(site, patience, say)


@app.command()
def run(folder: Folder, config: OneConfig, settings: Settings = None) -> None:
    """Run an experiment on the sites and watch it; closing this terminal does not stop it."""
    from .. import config as door

    with _flower() as (_, deployments):
        from ..deploy import control, runs
        from ..study import free

        deployment = deployments.Deployment.at(folder)
        asked = door.load(config, settings or [])
        fitted = runs.fitted(asked, deployment)
        if asked.tune:
            say(f"{asked.name}: [tune] is ignored here; the values in the file are used.")
        control.connected(deployment)  # before anything is written: is the server there?
        deployment.signed()  # and an app that sites run?
        run = runs.Run.create(deployment, fitted, free(folder / "runs" / asked.name).name)
        control.submit(deployment, run)
        _watch(folder, deployment, run)


@app.command()
def resume(folder: Folder, name: RunName, forget: Forget = None) -> None:
    """Continue a run from its last finished round, and watch it."""
    with _run_of(folder, name) as (control, deployment, run):
        for site in forget or []:
            run.folder.forget(site)
            say(f"{site} starts afresh; the run's log and its report say so.")
        run.begins_anew()
        control.submit(deployment, run)
        _watch(folder, deployment, run)


@app.command()
def watch(folder: Folder, name: RunName) -> None:
    """Watch a run."""
    with _run_of(folder, name) as (_, deployment, run):
        _watch(folder, deployment, run)


@app.command()
def stop(folder: Folder, name: RunName) -> None:
    """Stop a run; finished rounds are kept, and `resume` continues it."""
    with _run_of(folder, name) as (control, deployment, run):
        control.stop(deployment, run)
        out.print(
            f"Stopped. Continue with: fedexperts deploy resume {folder} {name}", soft_wrap=True
        )


@app.command()
def sites(folder: Folder) -> None:
    """List the sites, and say which are connected."""
    with _flower() as (_, deployments):
        from ..deploy import control

        deployment = deployments.Deployment.at(folder)
        there = control.connected(deployment)
        for name in deployment.sites:
            out.print(
                f"{escape(name)}  [dim]{there.get(name, 'not yet known to the server')}[/]",
                soft_wrap=True,
            )


@app.command()
def add(folder: Folder, site: Annotated[str, typer.Argument(help="The new site's name.")]) -> None:
    """Add a site to the federation; a running server picks it up."""
    with _flower() as (_, deployments):
        made = deployments.Deployment.at(folder).add(site)
        out.print(f"Copy {made} to the site's machine, then delete it here.", soft_wrap=True)


@app.command("app")
def sign(
    folder: Folder,
    key: Annotated[Path, typer.Option(help="Path of the signing key that `init` wrote.")],
) -> None:
    """After an upgrade: build and sign the app that sites run. A running server picks it up."""
    with _flower() as (_, deployments):
        deployment = deployments.Deployment.at(folder)
        lacking = deployment.sign(key)
        out.print(
            f"Signed the app in {folder}/app with {key}; keep that key off the server.",
            soft_wrap=True,
        )
        for name in lacking:
            out.print(f"Copy {folder}/app/app.pub into the folder of site {name}.", soft_wrap=True)


@app.command()
def remove(folder: Folder, site: Annotated[str, typer.Argument(help="The site's name.")]) -> None:
    """Remove a site from the federation; a running server picks it up."""
    with _flower() as (_, deployments):
        deployments.Deployment.at(folder).remove(site)
        out.print(f"Removed {site}.", soft_wrap=True)


@app.command()
def renew(folder: Folder) -> None:
    """Write a new certificate for the server; restart the server to use it."""
    with _flower() as (_, deployments):
        deployments.Deployment.at(folder).renew()
        out.print("Wrote a new certificate; restart the server.", soft_wrap=True)


@contextmanager
def _flower() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The rooms that know Flower's programs and a deployment's folder, or a clear word on what to
    install.
    """
    from .. import config as door

    with errors():
        processes = door.deploy_room()
        from ..deploy import folder, owner

        with owner.unseen():
            yield processes, folder


@contextmanager
def _run_of(folder: Path, name: str) -> Iterator[tuple[ModuleType, "Deployment", "Run"]]:
    """The room that asks Flower's server, the deployment, and its run of this name."""
    with _flower() as (_, deployments):
        from ..deploy import control, runs

        deployment = deployments.Deployment.at(folder)
        yield control, deployment, runs.Run.at(deployment, name)


def _watch(folder: Path, deployment: "Deployment", run: "Run") -> None:
    """Say what happens in a run until it is over; exit with 1 if it did not finish."""
    from .. import report as pictures
    from ..deploy import watch

    name = run.path.name
    again, end = (f"fedexperts deploy {command} {folder} {name}" for command in ("watch", "stop"))
    with stopped(f"The run continues. Watch it: {again}; stop it: {end}"):
        for line in watch.lines(deployment, run):
            say(line)
    status = run.status
    if status.state != "finished":
        err.print(
            f"[red]Error:[/] {escape(status.why)}\nContinue with: fedexperts deploy resume {folder}"
            f" {name}"
        )
        raise typer.Exit(1)
    experiments = pictures.collect([run.path])
    for table in pictures.tables(experiments):
        out.print(table)
    pictures.write_html(experiments, run.path / "report.html")
    out.print(f"\nReport: {run.path / 'report.html'}", soft_wrap=True)
