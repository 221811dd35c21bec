"""fedexperts: federated mixtures of experts. Sites learn together and exchange experts, never data.

    import fedexperts as fx
    config = fx.load("configs/demo/pfedmoap.toml", ["run.rounds=5"])
    results = fx.run(config, "runs/first")
    print(results.scores, results.clients, sep="\n")

The names below are imported when they are first used, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .average import mean as mean
    from .client import answer as answer
    from .config import Config as Config
    from .config import ConfigError as ConfigError
    from .config import build as build
    from .config import load as load
    from .config import opened as opened
    from .data.federation import Federation as Federation
    from .data.federation import Parts as Parts
    from .declared import Control as Control
    from .declared import Declared as Declared
    from .declared import Facts as Facts
    from .declared import Figure as Figure
    from .declared import Metric as Metric
    from .learn import Examples as Examples
    from .learn import Local as Local
    from .loop import NobodyLeftError as NobodyLeftError
    from .message import Order as Order
    from .method import Chosen as Chosen
    from .method import Finished as Finished
    from .method import Given as Given
    from .method import Method as Method
    from .method import Sent as Sent
    from .method import Upload as Upload
    from .methods.fedavg import Alone as Alone
    from .methods.fedavg import FedAvg as FedAvg
    from .methods.fedmoe import FedMoE as FedMoE
    from .methods.pfedmoap import PFedMoAP as PFedMoAP
    from .metrics import Score as Score
    from .model import MixtureModel as MixtureModel
    from .model import Model as Model
    from .model import Portable as Portable
    from .model import PromptModel as PromptModel
    from .models.built import Built as Built
    from .models.built import device as device
    from .models.network import Network as Network
    from .models.network import seeded as seeded
    from .options import option as option
    from .predict import Prediction as Prediction
    from .predictor import MixturePredictor as MixturePredictor
    from .predictor import Predictor as Predictor
    from .results import Results as Results
    from .results import run as run
    from .tensors import Tensors as Tensors
    from .tensors import named as named
    from .tensors import rng as rng
    from .tensors import under as under

_ROOMS = {
    "average": "mean",
    "client": "answer",
    "config": "Config ConfigError build load opened",
    "data.federation": "Federation Parts",
    "declared": "Control Declared Facts Figure Metric",
    "learn": "Examples Local",
    "loop": "NobodyLeftError",
    "message": "Order",
    "method": "Chosen Finished Given Method Sent Upload",
    "methods.fedavg": "Alone FedAvg",
    "methods.fedmoe": "FedMoE",
    "methods.pfedmoap": "PFedMoAP",
    "metrics": "Score",
    "model": "MixtureModel Model Portable PromptModel",
    "models.built": "Built device",
    "models.network": "Network seeded",
    "options": "option",
    "predict": "Prediction",
    "predictor": "MixturePredictor Predictor",
    "results": "Results run",
    "tensors": "Tensors named rng under",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
