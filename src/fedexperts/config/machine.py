"""The machine: its device, cores and environment variables, and rooms that need a package
not always there.

Only this room chooses or reads them. It does not know how an experiment is built.
"""

import importlib
import os
import platform
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from .. import __version__, provenance
from ..data.federation import Federation
from ..models.built import Sighted
from ..options import Outside, Values
from ..privacy import PrivacySettings
from ..upload import UploadSettings
from .checking import ConfigError
from .reading import Config


def device(config: Config) -> torch.device:
    """Where an experiment's models compute on this machine; ConfigError if what run.device asks for
    is not here.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    asked: str = config.values["run"]["device"]
    if asked == "auto":
        asked = next(name for name, here in there.items() if here)
    if not there[asked]:
        usable = " or ".join(name for name, here in there.items() if here)
        raise ConfigError(
            f'run.device = "{asked}": torch {torch.__version__} finds none here; use {usable}'
        )
    return torch.device(asked)


def matrix_units(device: torch.device) -> bool:
    """Whether it has units for matrix products in bf16: a CPU's AMX, a GPU's tensor cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def repeatable(device: torch.device) -> None:
    """Equal settings, equal bits: of a GPU's convolutions take those that add in a fixed order, and
    in fp32.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def about(config: Config, federation: Federation) -> Values:
    """What a run writes down of where it comes from, of its data, and of its method for reports:
    all beside its config.
    """
    facts: Values = {
        **origin(config),
        "classes": list(federation.classes),
        "side": federation.side,
        "commonest": federation.commonest(),
        "skew": federation.skew(),
        "declared": asdict(config.section("method").declares()),
    }
    if simulated := only_simulated(config):
        facts["simulated"] = simulated
    return facts


def origin(config: Config) -> Values:
    """The program, the machine and the files with which an experiment runs here and now."""
    flower = ("flwr", "ray") if config.values["engine"]["name"].startswith("flower") else ()
    versions = {"fedexperts": __version__, "python": platform.python_version()}
    return {
        "versions": versions | provenance.versions(flower),
        "commit": provenance.commits(Path.cwd()),
        "command": provenance.command(sys.argv),
        "platform": platform.platform(),
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "device": _called(device(config)),
        "threads": config.values["run"]["threads"],
        "matmul": torch.get_float32_matmul_precision(),
        "precision": _precision(config),
        "weights": _weights(config),
        "modules": modules(config),
    }


def modules(config: Config) -> dict[str, str]:
    """Files of one's own that an experiment names a class of, each with its hash."""
    names = [values.get("name", "") for values in config.values.values()]
    return provenance.modules(name for name in names if ":" in name)


def _weights(config: Config) -> dict[str, str]:
    """A hash for each section that reads a model from outside."""
    hashes = {}
    for section in ("model", "gate"):
        settings = config.section(section) if section in config.values else None
        if isinstance(settings, Outside) and (read := settings.reads()):
            hashes[section] = provenance.weights(read)
    return hashes


def _precision(config: Config) -> str:
    """Of a model's frozen weights; "", if it has none that may be rounded."""
    settings = config.section("model")
    if not isinstance(settings, Sighted):
        return ""
    return settings.rounded(matrix_units(device(config)))


def _processor() -> str:
    """Its name, as far as the system tells."""
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def only_simulated(config: Config) -> str:
    """What of an experiment would protect clients if they were deployed, and is drawn from the seed
    as they are not.
    """
    if config.values["engine"]["name"] == "flower":
        return ""
    uploads: UploadSettings = config.section("upload")
    privacy: PrivacySettings = config.section("privacy")
    return uploads.simulated or privacy.simulated


def _called(device: torch.device) -> str:
    """A device in words."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


_SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's default from its next version on
}
# else minutes, each time
_BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def flower_environment(home: Path) -> dict[str, str]:
    """What Flower's programs are started with: their files in `home`, nothing installed, nobody
    called, short waits.
    """
    own = {"FLWR_HOME": str(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    own |= {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **_SILENT, **own, "PATH": programs}


def proxy_to(host: str) -> tuple[str, str]:
    """The proxy by which programs reach a host over HTTPS, and the variable that names it; "" if
    there is none. It is the one that Flower's program takes.
    """
    if not urllib.request.proxy_bypass(host):
        for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            if proxy := os.environ.get(variable):
                return proxy, variable
    return "", ""


def flower_room() -> ModuleType:
    """The room that knows Flower, silent towards the outside; ConfigError, with what to type, if
    Flower is missing.
    """
    return _needing_flower("fedexperts.flower")


def deploy_room() -> ModuleType:
    """The room that starts Flower's programs, likewise."""
    return _needing_flower("fedexperts.deploy.processes")


def _needing_flower(room: str) -> ModuleType:
    os.environ |= _SILENT
    try:
        return importlib.import_module(room)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"[engine] needs Flower ({error}); type: pip install 'fedexperts[flower]', or use"
            ' engine.name = "inprocess"'
        ) from None


def tracker_room(kind: str) -> ModuleType:
    """The room that knows a tracker, likewise: "tensorboard", "mlflow" or "wandb"."""
    os.environ |= _SILENT
    os.environ |= {name: value for name, value in _BRIEF.items() if name not in os.environ}
    try:
        return importlib.import_module(f"fedexperts.track.{kind}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--{kind} needs a package ({error}); type: pip install 'fedexperts[{kind}]'"
        ) from None
