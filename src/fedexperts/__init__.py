"""fedexperts: federated mixtures of experts. Sites learn together and exchange experts, never data.

    import fedexperts as fx
    config = fx.load("configs/demo/pfedmoap.toml", ["run.rounds=5"])
    score = fx.once(config, "runs/first")
    print(f"{score.mean:.1f} % on average, {score.worst:.1f} % at the worst client")

The names below are imported when they are first used, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .average import mean
    from .config import Config, ConfigError, build, load, opened
    from .declared import Control, Declared, Figure, Metric
    from .learn import Local
    from .loop import NobodyLeftError
    from .method import Chosen, Finished, Given, Method, Sent, Upload
    from .metrics import Score
    from .model import MixtureModel, Model, Portable, PromptModel
    from .models.built import Built
    from .models.network import Network, seeded
    from .predictor import MixturePredictor, Predictor
    from .study import once

_ROOMS = {
    "config": ("Config", "ConfigError", "build", "load", "opened"),
    "average": ("mean",),
    "declared": ("Control", "Declared", "Figure", "Metric"),
    "loop": ("NobodyLeftError",),
    "learn": ("Local",),
    "method": ("Chosen", "Finished", "Given", "Method", "Sent", "Upload"),
    "metrics": ("Score",),
    "model": ("MixtureModel", "Model", "Portable", "PromptModel"),
    "models.built": ("Built",),
    "models.network": ("Network", "seeded"),
    "predictor": ("MixturePredictor", "Predictor"),
    "study": ("once",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = [
    "Built",
    "Chosen",
    "Config",
    "ConfigError",
    "Control",
    "Declared",
    "Figure",
    "Finished",
    "Given",
    "Local",
    "Method",
    "Metric",
    "MixtureModel",
    "MixturePredictor",
    "Model",
    "Network",
    "NobodyLeftError",
    "Portable",
    "Predictor",
    "PromptModel",
    "Score",
    "Sent",
    "Upload",
]
__all__ += ["build", "load", "mean", "once", "opened", "seeded"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
