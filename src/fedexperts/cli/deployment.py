"""`fedexperts deploy`: a server, and sites on machines of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from .terminal import err, errors, out, say, stopped

if TYPE_CHECKING:
    from ..deploy.folder import Deployment
    from ..deploy.sitefolder import SiteFolder

app = typer.Typer(
    help="A real federation: a server, and sites on machines of their own.", no_args_is_help=True
)

Folder = Annotated[
    Path, typer.Argument(help="A folder that `fedexperts deploy init` made.", show_default=False)
]


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
    with flower() as deployments:
        names = [name.strip() for name in sites.split(",")]
        if names == [""]:
            names = []
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
                f" run there\n    fedexperts deploy site {name} --name {name}",
                soft_wrap=True,
            )
        out.print(
            "    and --data PATH behind it, if the site's data are files of its own",
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
    metrics: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of this machine for Prometheus figures; 0: none."
        ),
    ] = 0,
) -> None:
    """Run the server until it is stopped; runs that were under way go on."""
    with (
        flower() as deployments,
        stopped("The server has stopped; runs that were under way go on when it starts again."),
    ):
        from ..deploy import processes

        processes.serve(deployments.Deployment.at(folder), bind, say, metrics)


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
        float,
        typer.Option(min=0, help="Seconds without the server before the site gives up."),
    ] = 259200,
    forget: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Start afresh in this run, named as in private/; its state is lost."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would leave this site, and connect to nobody."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: an experiment, whose uploads are listed by name."),
    ] = None,
) -> None:
    """Run a site until it is stopped. Its exit code says why it gave up: docs/deploy.md lists
    them.
    """
    with flower(), stopped("The site has stopped; what it keeps is in its folder."):
        from ..deploy.sitefolder import SiteFolder

        site = SiteFolder.at(folder, name)
        if data:
            site.point_at(data)
        if dry_run:
            _would_leave(site, config)
            return
        if forget:
            site.forget(forget)
        _join(site, patience)


def _would_leave(site: "SiteFolder", config: Path | None) -> None:
    """Say what would leave a site, also in a run of this experiment."""
    from .. import config as door
    from ..deploy import consent

    lines = consent.first_lines(site)
    if config:
        lines += consent.dry_run(site, door.load(config, []))
    for line in lines:
        say(line)


def _join(site: "SiteFolder", patience: float) -> None:
    """Run a site; the exit code says what kept it out at last."""
    from ..deploy import joining
    from ..deploy.probe import UnreachableError

    try:
        joining.join(site, patience, say)
    except UnreachableError as error:
        err.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(error.code) from None


@app.command()
def sites(folder: Folder) -> None:
    """List the sites, and say which are connected."""
    with flower() as deployments:
        from ..deploy import control
        from ..deploy.presence import Heard

        deployment = deployments.Deployment.at(folder)
        for line in deployment.lasts():
            say(line)
        heard = control.connected(deployment)
        for name in deployment.sites:
            facts = heard.get(name, Heard())
            out.print(f"{escape(name)}  [dim]{escape(facts.said())}[/]", soft_wrap=True)


@app.command()
def add(folder: Folder, site: Annotated[str, typer.Argument(help="The new site's name.")]) -> None:
    """Add a site to the federation; a running server picks it up."""
    with flower() as deployments:
        made = deployments.Deployment.at(folder).add(site)
        out.print(f"Copy {made} to the site's machine, then delete it here.", soft_wrap=True)


@app.command("app")
def sign(
    folder: Folder,
    key: Annotated[Path, typer.Option(help="Path of the signing key that `init` wrote.")],
) -> None:
    """After an upgrade: build and sign the app that sites run. A running server picks it up."""
    with flower() as deployments:
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
    with flower() as deployments:
        deployments.Deployment.at(folder).remove(site)
        out.print(f"Removed {site}.", soft_wrap=True)


@app.command()
def renew(
    folder: Folder,
    server: Annotated[
        str | None, typer.Option(help="Another name or address at which sites reach the server.")
    ] = None,
    authority: Annotated[
        bool,
        typer.Option("--authority", help="Renew the authority, too: twice, once sites know it."),
    ] = False,
) -> None:
    """Write a new certificate for the server; restart the server to use it."""
    with flower() as deployments:
        deployment = deployments.Deployment.at(folder)
        if not authority:
            deployment.renew(server)
            out.print("Wrote a new certificate; restart the server.", soft_wrap=True)
            return
        if deployment.renew_authority(_moved(deployment)):
            say("The new authority has taken the old one's place; restart the server.")
            return
        say(
            "Made a new authority. Sites learn of it from the running server, at the latest within"
            f" an hour. Then type again: fedexperts deploy renew {folder} --authority"
        )


@app.command()
def backup(
    folder: Annotated[
        Path, typer.Argument(help="A deployment's folder, or a site's.", show_default=False)
    ],
    file: Annotated[Path, typer.Argument(help="A new file, ending in .tar.gz.")],
) -> None:
    """Write a deployment's folder, or a site's, into one file; runs may go on meanwhile."""
    with flower():
        from ..deploy import backup

        count = backup.backup(folder, file)
        say(
            f"Wrote {count} files of {folder} into {file}. It holds keys: keep it as you keep them."
        )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `backup` wrote.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
) -> None:
    """Make a deployment's folder, or a site's, from a backup."""
    with flower():
        from ..deploy import backup

        backup.restore(file, folder)
        say(f"Restored {folder}. Start it as before; a server goes on with the runs in it.")


def _moved(deployment: "Deployment") -> list[str]:
    """Sites that trust all authorities of today; none if the server does not run."""
    from ..deploy.hello import hash_of
    from ..deploy.presence import heard_sites

    wanted = hash_of((deployment.path / "ca.crt").read_bytes())
    heard = heard_sites(deployment.path / "flower") or {}
    return [name for name, facts in heard.items() if facts.trusts == wanted]


@contextmanager
def flower() -> Iterator[ModuleType]:
    """The room that knows a deployment's folder, Flower being there, or a clear word on what to
    install.
    """
    from .. import config as door

    with errors():
        door.deploy_room()
        from ..deploy import folder, owner

        with owner.unseen():
            yield folder
