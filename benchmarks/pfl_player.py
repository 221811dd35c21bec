"""pfl-research as one of the peers of peers.py, which starts it in an environment of its own. No
benchmark itself.

    python benchmarks/pfl_player.py TASK ROUNDS
"""

import sys

import torch
from contest import RATE, TASKS, ended, turn
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Judged(nn.Module):
    """A network with the two functions that pfl asks of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.network(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Turns:
    """A callback of pfl's that waits before every round."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        turn()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if central_iteration < self.rounds - 1:
            turn()
        return False, Metrics()

    def on_train_end(self, *, model: PyTorchModel) -> None:
        """All is said by `main`."""


def main() -> None:
    torch.set_num_threads(1)
    task, rounds = TASKS[sys.argv[1]], int(sys.argv[2])
    clients = [PyTorchTensorDataset(pair) for pair in task.each()]
    sampler = MinimizeReuseUserSampler(range(task.clients))
    data = FederatedDataset(clients.__getitem__, sampler)
    judged = Judged(task.module())
    central = torch.optim.SGD(judged.parameters(), lr=1.0)
    model = PyTorchModel(judged, torch.optim.SGD, central)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,  # the first round alone, which is not counted
            train_cohort_size=task.clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_batch_size=task.batch, local_num_epochs=1, local_learning_rate=RATE
        ),
        callbacks=[Turns(rounds)],
        send_metrics_to_platform=False,
    )
    ended(task, judged.network.state_dict())


if __name__ == "__main__":
    main()
