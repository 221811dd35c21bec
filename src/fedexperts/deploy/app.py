"""What Flower starts on the server for each run: its rounds. What it is told is a folder and a name
in it.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..engine import Engine
from ..flower import Flower
from .carrying import Around, carry_out
from .folder import Deployment
from .orphans import end_with_parent
from .presence import heard_sites

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The rounds of the run that the operator named."""
    end_with_parent()  # or it would keep the run's turn from the process that goes on with it
    folder = Deployment.at(Path(str(context.run_config["folder"])))

    def nodes() -> dict[str, int]:
        """Those that Flower takes for online and that our door has heard of late: Flower's list
        outlives a server that is killed.
        """
        heard = heard_sites(folder.path / "flower") or {}
        connected = {name for name, facts in heard.items() if facts.connected}
        return {node.name: node.node_id for node in grid.get_nodes() if node.name in connected}

    def engine(around: Around) -> Engine:
        return Flower(
            grid,
            around.names,
            nodes,
            around.about,
            around.deadline,
            around.alive,
            poll=0.5,
            removed=around.removed,
        )

    carry_out(folder, str(context.run_config["run"]), nodes, engine)
