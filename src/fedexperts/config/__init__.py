"""The door: one TOML file becomes one experiment, and one experiment becomes a job and an engine.

    folders.py    where configs ship with the package; where what can be made again is kept
    names.py      which sections there are, and what each can name
    settings.py   sections that belong to no other room
    own.py        whether a class of one's own is what it must be, part by part
    checking.py   whether a section fits its class; everything wrong is said at once
    reading.py    files and layers of values: `load`, `parse`, `resolve` give a `Config`
    machine.py    device, cores, environment variables; rooms that need an optional package
    duration.py   how long an experiment will take here
    promises.py   what of privacy, robustness and method can be had together
    building.py   a `Config` becomes objects: `parts`, `build`, `opened`
    engines.py    the engines, which open what was built
    deployed.py   at a server and at a site, which did not write the config: `served`, `site`

Each of them knows only those above it. What other rooms use is named below, and but for folders.py
imported when it is first used, so that names can be listed without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .folders import cache_folder as cache_folder
from .folders import shipped as shipped
from .folders import shipped_folder as shipped_folder

if TYPE_CHECKING:
    from .building import build as build
    from .building import check_data as check_data
    from .building import check_here as check_here
    from .building import lacking as lacking
    from .building import modelled as modelled
    from .building import opened as opened
    from .building import parts as parts
    from .building import simulated as simulated
    from .building import split_as as split_as
    from .checking import ConfigError as ConfigError
    from .deployed import Allowed as Allowed
    from .deployed import served as served
    from .deployed import site as site
    from .duration import Estimate as Estimate
    from .duration import estimate as estimate
    from .engines import FlowerSettings as FlowerSettings
    from .machine import about as about
    from .machine import cores as cores
    from .machine import deploy_room as deploy_room
    from .machine import device as device
    from .machine import flower_environment as flower_environment
    from .machine import flower_room as flower_room
    from .machine import modules as modules
    from .machine import only_simulated as only_simulated
    from .machine import origin as origin
    from .machine import proxy_to as proxy_to
    from .machine import tracker_room as tracker_room
    from .names import known as known
    from .reading import Config as Config
    from .reading import find as find
    from .reading import load as load
    from .reading import parse as parse
    from .reading import resolve as resolve

_ROOMS = {
    "building": "build check_data check_here lacking modelled opened parts simulated split_as",
    "checking": "ConfigError",
    "deployed": "Allowed served site",
    "duration": "Estimate estimate",
    "engines": "FlowerSettings",
    "machine": (
        "about cores deploy_room device flower_environment flower_room modules only_simulated"
        " origin proxy_to tracker_room"
    ),
    "names": "known",
    "reading": "Config find load parse resolve",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
