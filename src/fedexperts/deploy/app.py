"""What Flower's processes run: the server's loop on the server, an answer to one order at a site.

Flower starts a process for each, and gives it the values below; everything else lies in folders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .. import config as door
from ..client import Client, Job
from ..engine import Engine
from ..flower import About, Flower, Here, client_app
from .folder import Deployment, SiteFolder
from .runs import Nodes, carry_out

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The rounds of the run that the operator named."""

    def nodes() -> dict[str, int]:
        return {node.name: node.node_id for node in grid.get_nodes()}

    def engine(names: Sequence[str], nodes: Nodes, about: Mapping[str, str], deadline: float) -> Engine:
        return Flower(grid, names, nodes, about, deadline, poll=0.3)

    folder = Deployment.at(Path(str(context.run_config["folder"])))
    carry_out(folder, str(context.run_config["run"]), nodes, engine)


def _here(about: About, client: str, here: Here) -> tuple[Job, Client]:
    """The job of an order, and this site with its own data; ValueError if the order is another's."""
    site = SiteFolder(Path(str(here["site"])))
    if client != site.name:
        raise ValueError(f"this is the site {site.name}, not {client}")
    return door.site(about["config"], site.name, site.data, site.path / "private" / about["run"])


site_app = client_app(_here)
