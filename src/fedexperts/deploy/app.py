"""What Flower starts on the server for each run: its rounds. What it is told is a folder and a name
in it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..engine import Engine
from ..flower import Flower
from .folder import Deployment
from .runs import carry_out

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The rounds of the run that the operator named."""

    def nodes() -> dict[str, int]:
        return {node.name: node.node_id for node in grid.get_nodes()}

    def engine(names: Sequence[str], about: Mapping[str, str], deadline: float) -> Engine:
        return Flower(grid, names, nodes, about, deadline, poll=0.5)

    folder = Deployment.at(Path(str(context.run_config["folder"])))
    carry_out(folder, str(context.run_config["run"]), nodes, engine)
