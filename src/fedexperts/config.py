"""The door: one TOML file becomes one experiment, and one experiment becomes a job and an engine.

Everything that is wrong with a config is said at once, with what would be right and the nearest known name. Only this
room chooses threads and folders of the machine, and reads environment variables.
"""

import difflib
import importlib
import json
import os
import platform
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import tomlkit
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from torch import Tensor

from . import __version__
from .admission import Guard
from .client import Client, Job
from .data import DATA, Federation, Parts, features, kept, manifest
from .engine import Engine, InProcess
from .learn import Examples, Learning
from .loop import Schedule
from .method import Facts, Method, Model, needs_reserve, taught
from .methods import METHODS
from .models import MODELS, Built, Mixture, computing_on
from .private import Private
from .tensors import rng, write

Sites = Mapping[str, Client]
Layer = tuple[dict[str, Any], str]  # nested values, and where they came from
Schema = Mapping[str, FieldInfo]


class ConfigError(ValueError):
    """Everything that is wrong with a config, a line each."""


@dataclass(frozen=True)
class RunSettings(Schedule):
    """Who takes part when, from which seed."""

    seed: Annotated[int, Field(ge=0, description="of splits, few-shot draws, sampling, starts and batches alike")] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(description='where models compute; "auto": a GPU of CUDA or of Apple\'s, where torch finds one'),
    ] = "auto"
    threads: Annotated[int, Field(ge=1, description="of one computation; sums may round differently for others")] = 1
    judged_by: Annotated[
        Literal["clients", "server"],
        Field(description="whose validation accuracy chooses rates and rounds: each client's own, or the server's"),
    ] = "clients"


@dataclass(frozen=True)
class StartSettings:
    """What everybody, the server and every client, starts from."""

    epochs: Annotated[
        int, Field(ge=0, description="passes over the reserve set that train the common start; 0: the model's own")
    ] = 0
    rate: Annotated[float, Field(gt=0, description="learning rate (Adam) of these passes")] = 0.003
    batch: Annotated[int, Field(ge=1, description="examples in a step of these passes")] = 16


@dataclass(frozen=True)
class MixtureSettings:
    """A mixture of experts, each of them a whole [model]; [gate] names the gate's model if it is another."""

    experts: Annotated[int, Field(ge=1, description="K, routed experts")] = 4
    mains: Annotated[
        int, Field(ge=0, le=3, description="main experts, always on; only tune_epochs tells several apart")
    ] = 1
    top: Annotated[int, Field(ge=1, description="L, routed experts that the server's predictions use")] = 1

    def __post_init__(self) -> None:
        if self.top > self.experts:
            raise ValueError(f"top = {self.top} of {self.experts} experts; right would be 1 to {self.experts}")


@dataclass(frozen=True)
class InProcessSettings:
    """Every client in this process."""

    together: Annotated[
        int, Field(ge=1, description="clients of equal shapes trained in one computation; 1: one at a time")
    ] = 1
    workers: Annotated[int, Field(ge=1, description="computations at a time, each in a thread")] = 1

    @contextmanager
    def open(self, job: Job, sites: Sites, about: Mapping[str, str]) -> Iterator[Engine]:
        yield InProcess(job, sites, self.together, self.workers)


Deadline = Annotated[float, Field(gt=0, description="seconds for an answer; who is later failed this round")]


@dataclass(frozen=True)
class FlowerSimulationSettings:
    """Every client a node of Flower's simulation (Ray), on this machine or a cluster."""

    workers: Annotated[int, Field(ge=1, description="processes that answer at a time; of a cluster, all it has")] = 2
    cpus: Annotated[int, Field(ge=1, description="CPUs that each of them takes")] = 1
    gpus: Annotated[float, Field(ge=0, description="share of a GPU that each of them takes")] = 0.0
    cluster: Annotated[
        str, Field(description="HOST:PORT of a Ray cluster whose machines see this run's folder; empty: this machine")
    ] = ""
    deadline: Deadline = 3600.0

    @contextmanager
    def open(self, job: Job, sites: Sites, about: Mapping[str, str]) -> Iterator[Engine]:
        flower, names = flower_room(), sorted(sites)
        size = (self.workers, self.cpus, self.gpus, self.cluster)
        with flower.simulation(simulated, names, *size) as (grid, nodes, alive):
            yield flower.Flower(grid, names, lambda: nodes, about, self.deadline, alive)


@dataclass(frozen=True)
class FlowerSettings:
    """Clients that are sites on machines of their own, connected by Flower: `fedexperts deploy`."""

    sites: Annotated[
        list[str], Field(description="names of the sites that take part; none: all that are registered")
    ] = field(default_factory=list)
    minimum: Annotated[int, Field(ge=1, description="sites without which the run does not begin")] = 1
    wait: Annotated[float, Field(ge=0, description="seconds that the server waits for all sites at the start")] = 120.0
    deadline: Deadline = 600.0

    def open(self, job: Job, sites: Sites, about: Mapping[str, str]) -> Any:
        raise ConfigError(
            'engine.name = "flower" is a federation of several machines; right would be `fedexperts deploy run FOLDER '
            'CONFIG`, or engine.name = "flower-simulation" on this one'
        )


NAMED: dict[str, Mapping[str, type]] = {
    "data": DATA,
    "model": MODELS,
    "method": METHODS,
    "engine": {
        "inprocess": InProcessSettings,
        "flower-simulation": FlowerSimulationSettings,
        "flower": FlowerSettings,
    },
    "gate": MODELS,
}
PLAIN: dict[str, type] = {
    "learning": Learning, "run": RunSettings, "start": StartSettings, "mixture": MixtureSettings, "guard": Guard,
}  # fmt: skip
OPTIONAL = {"gate", "mixture"}  # sections without which there is no mixture, or a gate like its experts
PLACES = tuple(  # keys that may name a file or folder
    [("data", key) for key in ("path", "root", "split")]
    + [(section, key) for section in ("model", "gate") for key in ("clip", "model")]
)
DEFAULT_NAMES = {"engine": "inprocess"}


@dataclass(frozen=True)
class Config:
    """One experiment, resolved: `values` holds every key of every section, `origins` where each came from."""

    name: str
    values: dict[str, dict[str, Any]]
    tune: dict[str, list[Any]]
    origins: dict[str, str]

    def section(self, name: str) -> Any:
        """A section as the dataclass that it describes."""
        return _section_class(name, self.values[name])(**_without_name(name, self.values[name]))

    def having(self, changes: Mapping[str, Any], origin: str) -> "Config":
        """The same experiment with other values of some dotted keys. Raises ConfigError."""
        return resolve([(self.nested(), "file"), (_nest(changes.items()), origin)])

    def nested(self) -> dict[str, Any]:
        """As the tables of a config file."""
        return {"name": self.name, **self.values, "tune": self.tune}

    def toml(self) -> str:
        """As a config file that runs the same experiment."""
        return tomlkit.dumps(self.nested())

    def shareable(self) -> dict[str, Any]:
        """Dotted keys and values that say nothing of data or of a machine's folders."""
        return {
            f"{section}.{key}": value
            for section in ("method", "model", "mixture", "start", "learning", "run")
            for key, value in self.values.get(section, {}).items()
            if not (isinstance(value, str) and Path(value).expanduser().is_absolute())
        }

    def described(self) -> Iterator[tuple[str, str, str, str]]:
        """Every dotted key with its value as TOML, its meaning and its origin."""
        for section, values in self.values.items():
            meanings = {name: info.description or "" for name, info in _schema(section, values).items()}
            for key, value in values.items():
                dotted = f"{section}.{key}"
                named = ", ".join(NAMED[section]) if section in NAMED else ""
                meaning = meanings.get(key) or f"one of {named}, or module:Class"
                yield dotted, tomlkit.item(value).as_string(), meaning, self.origins.get(dotted, "default")
        for key, choices in self.tune.items():
            yield (
                f'tune."{key}"',
                tomlkit.item(choices).as_string(),
                "tried; chosen by validation accuracy",
                self.origins.get(f"tune.{key}", ""),
            )


def load(path: Path | str, settings: Sequence[str] = ()) -> Config:
    """The config file at `path`, on top of its `base` files, below `section.key=value` settings. Raises ConfigError."""
    file, *others = find(Path(path))
    if others:
        raise ConfigError(f"{path} is a folder with {1 + len(others)} configs; right would be one of them, as {file}")
    layers, changes = _layers(file), [_setting(text) for text in settings]
    for values, _ in layers:  # a value that is set by hand is not searched for any more
        if isinstance(tune := values.get("tune"), dict):
            values["tune"] = {key: tried for key, tried in tune.items() if key not in dict(changes)}
    return resolve(
        [*layers, *((_nest([change]), f"--set {text}") for change, text in zip(changes, settings, strict=True))]
    )


def parse(text: str, origin: str) -> Config:
    """The experiment in the text of a config file without a base. Raises ConfigError."""
    try:
        return resolve([(tomllib.loads(text), origin)])
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not a readable TOML file: {error}") from None


def resolve(layers: Iterable[Layer]) -> Config:
    """Merge layers, later ones winning; ConfigError with all that is wrong."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for values, origin in layers:
        _merge(merged, values, origins, origin)
    errors = [_unknown("section", key, [*NAMED, *PLAIN, "name", "tune"]) for key in merged if key not in _TOP]
    name = merged.get("name", "")
    if not isinstance(name, str) or not name:
        errors.append(f'name = {name!r}: right would be a word for the experiment, for example name = "pfedmoap"')
    sections = [section for section in (*NAMED, *PLAIN) if section in merged or section not in OPTIONAL]
    resolved = {section: _resolve_section(section, merged.get(section, {}), errors) for section in sections}
    tune = _resolve_tune(merged.get("tune", {}), resolved, errors)
    if errors:
        raise ConfigError("\n".join(errors))
    return Config(name, resolved, tune, origins)


def parts(config: Config) -> tuple[Federation, Built, Model, Method]:
    """An experiment's data, its model and encoder, the model as its method sees it, the method; ValueError if unfit."""
    federation: Federation = config.section("data").load(config.values["run"]["seed"])
    return federation, *_fitted(config, federation)


def _fitted(config: Config, federation: Federation) -> tuple[Built, Model, Method]:
    built, model = modelled(config, federation.classes)
    method: Method = config.section("method")
    if config.values["start"]["epochs"]:
        _check_start(built.model, federation)
    if "gate" in config.values and len(federation.inputs):
        _check_gate(config, built, federation)
    method.fits(model, len(federation.reserve))
    return built, model, method


def modelled(config: Config, classes: tuple[str, ...]) -> tuple[Built, Model]:
    """An experiment's model and encoder, and the model as its method sees it; without data, and so with its own start.

    ValueError if the model cannot be built.
    """
    with computing_on(place := device(config)):
        _repeatable(place)
        built: Built = config.section("model").build(classes, config.values["run"]["seed"])
    return built, _mixed(config, built.model)


def _repeatable(place: torch.device) -> None:
    """Equal settings, equal bits: of a GPU's convolutions take those that add in a fixed order, and in fp32."""
    if place.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False


def lacking(config: Config) -> list[str]:
    """What an experiment reads that is not on this machine, a line each with what to type; nothing is read for it."""
    found = []
    for section in ("data", "model", "gate"):
        try:
            if section in config.values and hasattr(settings := config.section(section), "at_hand"):
                settings.at_hand()
        except ValueError as error:
            found.append(str(error))
    return found


def build(config: Config, private: Path, split: Path | None = None) -> tuple[Job, Sites]:
    """The job and the clients of an experiment; their private states lie in the folder `private`.

    The data are split as the file `split` says, if there is one by now.
    """
    return _build(config, split_as(config, split)[0] if split and split.exists() else _data(config), private)


def _data(config: Config) -> Federation:
    found: Federation = config.section("data").load(config.values["run"]["seed"])
    return found


def split_as(config: Config, split: Path) -> tuple[Federation, str]:
    """An experiment's data, with all that is known in its part of a split; what changed since it was written, or "".

    A source that does not know its examples one by one is taken as it is.
    """
    given, source, seed = manifest.load(split), config.section("data"), config.values["run"]["seed"]
    if hasattr(source, "again"):
        found: Federation = source.again(given, seed)
        return found, kept.said(found.changed)
    found = source.load(seed)
    return found, manifest.difference(given, found.inputs, found.labels, found.classes, found.files)


def _build(config: Config, federation: Federation, private: Path) -> tuple[Job, Sites]:
    run: RunSettings = config.section("run")
    learning: Learning = config.section("learning")
    torch.set_num_threads(run.threads)
    built, _, method = _fitted(config, federation)
    inputs = _inputs(federation.inputs, built, learning.views, run.seed)

    def examples(*index: Tensor) -> Examples:
        places = torch.cat(index) if index else torch.empty(0, dtype=torch.int64)
        return Examples(inputs[places], federation.labels[places])

    def client(name: str, own: Parts) -> Client:
        changed: Facts = {**federation.changed[name].counts()} if name in federation.changed else {}
        return Client(name, examples(own.train), examples(own.valid), examples(own.test), Private(private), changed)

    sites = {name: client(name, own) for name, own in federation.parts.items()}
    exam = {part: examples(*(getattr(own, part) for own in federation.parts.values())) for part in ("valid", "test")}
    reserve = examples(federation.reserve)
    model = _mixed(config, _started(config, built.model, reserve))
    return Job(method, model, learning, run.rounds, run.seed, reserve, exam, config.section("guard")), sites


@contextmanager
def opened(
    config: Config, private: Path, split: Path | None = None, changed_data: bool = False
) -> Iterator[tuple[Job, Engine, Federation]]:
    """The job of an experiment, the engine that its [engine] names, as long as it is needed, and the data.

    With a `split`, the data as it has them; ValueError if they changed since, unless that is allowed.
    """
    federation = _unchanged(config, split, changed_data) if split else _data(config)
    job, sites = _build(config, federation, private)
    home = private.absolute()
    recipe = {"config": config.toml(), "private": str(home), "split": str(home.with_name("split.json"))}
    with config.section("engine").open(job, sites, recipe) as engine:
        yield job, engine, federation


def _unchanged(config: Config, split: Path, changed_data: bool) -> Federation:
    federation, what = split_as(config, split)
    if what and not changed_data:
        raise ValueError(
            f"the data are not those of {split}. {what}. Right would be to put them back, or another run; or go on by "
            "`fedexperts resume RUN --changed-data`: what is known stays in its part, and the run's log and report say "
            "what changed"
        )
    return federation


def check_data(config: Config, split: Path) -> None:
    """ValueError if an experiment's data changed since a split, from another seed perhaps, was written."""
    if hasattr(config.section("data"), "again"):
        _unchanged(config, split, changed_data=False)


def simulated(about: Mapping[str, str], client: str) -> tuple[Job, Client]:
    """In a process of a simulation: the job, and the client of this name; built once for as many orders as come."""
    job, sites = _built_once(about["config"], about["private"], about["split"])
    return job, sites[client]


@lru_cache(maxsize=2)
def _built_once(text: str, private: str, split: str) -> tuple[Job, Sites]:
    return build(parse(text, "an order"), Path(private), Path(split))


def served(config: Config, data: Mapping[str, Any]) -> tuple[Job, Federation]:
    """A federation's server: its job and its data, the classes and its own reserve set, which `data` leads to."""
    if at_sites := hasattr(config.section("data"), "server"):
        data = {"path": ""} | dict(data)
    config = _with_data(config, data)
    source = config.section("data")
    federation: Federation = source.server() if at_sites else source.load(config.values["run"]["seed"])
    return replace(_build(config, federation, Path())[0], exam={}), federation


@dataclass(frozen=True)
class Allowed:
    """What a run's config may name on a site's machine, beside the site's own data; by default, nothing."""

    modules: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> "Allowed":
        """From [allow] of site.toml; ValueError for what does not fit."""
        lists = all(isinstance(v, list) and all(isinstance(name, str) for name in v) for v in table.values())
        if not lists or table.keys() - {"modules", "paths"}:
            raise ValueError(
                f"[allow] of site.toml is {dict(table)}; right would be modules = [names] and paths = [places]"
            )
        return cls(**{key: tuple(names) for key, names in table.items()})

    def code(self, name: str) -> bool:
        """Whether code of this name, "module:Class", may be run."""
        module = name.partition(":")[0]
        return any(module == known or module.startswith(f"{known}.") for known in self.modules)

    def place(self, path: str) -> bool:
        """Whether what lies there may be read."""
        real = Path(path).expanduser().resolve()
        return any(real.is_relative_to(Path(known).expanduser().resolve()) for known in self.paths)


def site(
    text: str, name: str, data: Mapping[str, Any], private: Path, splits: Path, allowed: Allowed = Allowed()
) -> tuple[Job, Client, str]:
    """The job of an experiment, the site `name` with its own data, and what changed in them since they were split.

    Its split is written once into the folder `splits`. ValueError if the data hold no such client.

    The common start is the server's, and comes with its first order; the reserve set is the server's, too. Whoever has
    the server writes the text: it names no code and no place of this machine but what the site allows.
    """
    _check_code(text, allowed)  # before anything is imported
    config = parse(text, "the run")
    own = {"site": name, "reserve": 0} if hasattr(config.section("data"), "server") else {}
    config = _with_data(config, {"path": ""} | own | dict(data) if own else data)
    _check_places(config, data, allowed)
    _check_same(config, private)
    federation, what = _kept(config, splits) if own else (_data(config), "")
    job, sites = _build(config.having({"start.epochs": 0}, "a site"), federation, private)
    if name not in sites:
        raise ValueError(f"the data hold {', '.join(sites) or 'no client'}, and not {name}")
    return replace(job, deployed=True), sites[name], what


def _kept(config: Config, splits: Path) -> tuple[Federation, str]:
    """A site's data, split as they were when they were first asked for with these settings."""
    source, seed = config.section("data"), config.values["run"]["seed"]
    split = splits / f"{source.mark(seed)}.json"
    if split.exists():
        return split_as(config, split)
    federation: Federation = source.load(seed)
    splits.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(split, json.dumps(manifest.sealed(federation.manifest()), separators=(",", ":")).encode())
    split.chmod(0o600)
    return federation, ""


def _check_code(text: str, allowed: Allowed) -> None:
    """ValueError if an experiment names code, "module:Class", that a site does not allow; nothing is imported."""
    sections = {key: values for key, values in tomllib.loads(text).items() if isinstance(values, dict)}
    if sections.get("tune"):
        raise ValueError(
            "the run has [tune], and nothing is tried at sites; right would be a run of `fedexperts deploy`"
        )
    for section, values in sections.items():
        name = values.get("name")
        if isinstance(name, str) and ":" in name and not allowed.code(name):
            raise ValueError(
                f"{section}.name = {name!r} names code, and this site allows none of that name: use a {section} of "
                f'fedexperts, or add modules = ["{name.partition(":")[0]}"] to [allow] of the site\'s site.toml'
            )


def _check_places(config: Config, own: Mapping[str, Any], allowed: Allowed) -> None:
    """ValueError if an experiment names a place of a site's machine that neither the site's data nor [allow] name."""
    for section, key in PLACES:
        path = config.values.get(section, {}).get(key, "")
        asked = path and not (section == "data" and key in own)
        if asked and (section == "data" or _is_place(path)) and not allowed.place(path):
            raise ValueError(
                f"{section}.{key} = {path!r} is a place on the site's machine, which its site.toml does not name: "
                f"leave it out, or let the site add paths = [{tomlkit.item(path).as_string()}] to its [allow]"
            )


def _check_same(config: Config, private: Path) -> None:
    """Write down by which method and model a run began at a site; ValueError if it goes on by others.

    What is private in the one may leave a site in the other: it would be read from the site's disk, and sent.
    """
    file, sections = private / "experiment.json", ("method", "model", "gate", "mixture")
    now = json.dumps({section: config.values[section] for section in sections if section in config.values})
    if not file.exists():
        write(file, now.encode())
        return
    try:
        before, after = json.loads(file.read_bytes()), json.loads(now)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): put a backup of {private} in its place") from None
    changed = [f"[{section}]" for section in sorted(before.keys() ^ after.keys())]
    for section in before.keys() & after.keys():  # a key that is new is a newer version's
        changed += [f"{section}.{key}" for key, value in before[section].items() if after[section].get(key) != value]
    if changed:
        raise ValueError(
            f"the run {private.name} began at this site with another {', '.join(changed)}, and what it kept to itself "
            "then might be sent now; right would be a new run, by `fedexperts deploy run`"
        )


def _is_place(name: str) -> bool:
    """Whether a model's name leads to a file or folder, or would if one were there; or else it is a hub's or ours."""
    path = Path(name).expanduser()
    return path.is_absolute() or name.startswith((".", "~")) or ".." in path.parts or path.exists()


def _with_data(config: Config, data: Mapping[str, Any]) -> Config:
    return resolve([(config.nested(), "the run"), ({"data": dict(data)}, "here")]) if data else config


_SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's default from its next version on
}

_BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # else minutes, each time


def flower_environment(home: Path) -> dict[str, str]:
    """What Flower's programs are started with: their files in `home`, nothing installed, nobody called, short waits."""
    own = {"FLWR_HOME": str(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    own |= {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **_SILENT, **own, "PATH": programs}


def flower_room() -> ModuleType:
    """The room that knows Flower, silent towards the outside; ConfigError, with what to type, if Flower is missing."""
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
            f"[engine] needs Flower ({error}); type: pip install 'fedexperts[flower]', or take the engine inprocess"
        ) from None


def tracker_room(kind: str) -> ModuleType:
    """The room that knows a tracker, likewise: "tensorboard", "mlflow" or "wandb"."""
    os.environ |= _SILENT
    os.environ |= {name: value for name, value in _BRIEF.items() if name not in os.environ}
    try:
        return importlib.import_module(f"fedexperts.track.{kind}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"--{kind} needs a package ({error}); type: pip install 'fedexperts[{kind}]'") from None


def _inputs(given: Any, built: Built, views: int, seed: int) -> Tensor:
    """What a model is shown of images or texts, [N, V, ...]; an encoder without a key is cheap, and nothing is kept."""
    if not len(given):  # a server without a reserve set
        return torch.empty(0, 1)
    if built.key:
        return features(given, built.encode, built.key, cache_folder(), views, seed)
    if views > 1:
        raise ValueError(f"learning.views is {views}: it must be 1 for this model, which sees every example as it is")
    return built.encode(given)[:, None]


def _started(config: Config, model: Model, reserve: Examples) -> Model:
    """The model with the common start that the reserve set taught it; itself, where nothing is asked."""
    settings: StartSettings = config.section("start")
    if not settings.epochs:
        return model
    seed: int = config.values["run"]["seed"]
    learning = Learning(settings.epochs, settings.batch, optimizer="adam", rate=settings.rate)
    trained = taught(model, model.initial, reserve, learning, rng(seed, "common start"))
    begun: Model = model.starting(trained)  # type: ignore[attr-defined]  # `_check_start` saw to it
    return begun


def _check_start(model: Model, federation: Federation) -> None:
    needs_reserve(len(federation.reserve), "start.epochs")
    if not hasattr(model, "starting"):
        raise ValueError(
            f"start.epochs: {type(model).__name__} has a start of its own; right would be start.epochs = 0"
        )


def _check_gate(config: Config, built: Built, federation: Federation) -> None:
    """A gate reads what the experts read: inputs are made once."""
    gate: Built = config.section("gate").build(("one", "two"), 0)
    one, other = (b.encode(federation.inputs[:1]) for b in (built, gate))
    if one.shape != other.shape or not one.equal(other):
        raise ValueError(
            f'gate.name = "{config.values["gate"]["name"]}" is shown inputs {list(other.shape)} that are not those of '
            f'the experts, {list(one.shape)}; right would be "{config.values["model"]["name"]}" with the same inputs'
        )


def _mixed(config: Config, model: Model) -> Model:
    """The mixture whose experts are `model`, if one is asked for; or `model` itself."""
    if "mixture" not in config.values:
        return model
    settings: MixtureSettings = config.section("mixture")
    gate = config.section("gate" if "gate" in config.values else "model")
    names = tuple(f"expert-{k}" for k in range(settings.experts))
    with computing_on(device(config)):
        gate_model: Model = gate.build(names, config.values["run"]["seed"]).model
    return Mixture(model, gate_model, settings.mains, settings.top)


def find(path: Path) -> list[Path]:
    """The config files at `path`: a file, or every file of a folder whose name does not begin with "_".

    A path that is not there is looked up among the configs that ship with the package.
    """
    below = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    place = path if path.exists() else shipped_folder() / Path(*below)
    if not place.is_dir():
        return [place if place.exists() else path]
    found = sorted(file for file in place.glob("*.toml") if not file.name.startswith("_"))
    if not found:
        raise ConfigError(f"{path}: a folder without config files; right would be one with NAME.toml in it")
    return found


def shipped() -> list[tuple[Path, str]]:
    """The configs that ship with the package, each with the comment in its first line."""
    files = [file for file in sorted(shipped_folder().rglob("*.toml")) if not file.name.startswith("_")]
    return [
        (Path("configs") / file.relative_to(shipped_folder()), file.read_text().splitlines()[0].removeprefix("# "))
        for file in files
    ]


def shipped_folder() -> Path:
    """Where the configs lie that ship with the package."""
    here = Path(__file__).parent
    return here / "configs" if (here / "configs").exists() else here.parents[1] / "configs"


def device(config: Config) -> torch.device:
    """Where an experiment's models compute on this machine; ConfigError if what run.device asks for is not here."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked: str = config.values["run"]["device"]
    if asked == "auto":
        asked = next(name for name, here in there.items() if here)
    if not there[asked]:
        right = " or ".join(name for name, here in there.items() if here)
        raise ConfigError(f'run.device = "{asked}": torch {torch.__version__} finds none here; right would be {right}')
    return torch.device(asked)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cache_folder() -> Path:
    """Where image features are kept: FEDEXPERTS_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedexperts"
    return Path(os.environ.get("FEDEXPERTS_CACHE") or default)


def about(config: Config, federation: Federation) -> dict[str, Any]:
    """What a run writes down of its data, of its method for reports, and of the machine: all beside its config."""
    simulated = only_simulated(config)
    found = {
        "fedexperts": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": _called(device(config)),
        "classes": list(federation.classes),
        "side": federation.side,
        "commonest": federation.commonest(),
        "declared": asdict(config.section("method").declares()),
    }
    return found | ({"simulated": simulated} if simulated else {})


def only_simulated(config: Config) -> str:
    """What of an experiment would protect clients if they were deployed, and is drawn from the seed as they are not."""
    method: Method = config.section("method")
    return "" if config.values["engine"]["name"] == "flower" else method.simulated


def _called(place: torch.device) -> str:
    """A device in words."""
    return f"cuda ({torch.cuda.get_device_name(place)})" if place.type == "cuda" else place.type


def known(kind: str) -> Mapping[str, type]:
    """The classes that a section can name: kind is "data", "model", "method", "engine" or "gate"."""
    return NAMED[kind]


# ---- reading


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    if path.resolve() in above:
        raise ConfigError(f"{path}: base = leads back to itself by {' -> '.join(p.name for p in above)}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], 3)
        hint = f"; near it: {', '.join(near)}" if near else "; `fedexperts ls configs` lists what is there"
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return [(values, str(path))]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base = {base!r}; right would be the path of another config file")
    return [*_layers(path.parent / base, (*above, path.resolve())), (values, str(path))]


def _setting(text: str) -> tuple[str, Any]:
    """A key and a value from "section.key=value"; the value as TOML, or else as a plain word."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set {text}: right would be section.key=value, for example run.rounds=5")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _nest(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in items:
        section, _, key = dotted.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def _merge(into: dict[str, Any], values: Mapping[str, Any], origins: dict[str, str], origin: str) -> None:
    """Lay `values` over `into`; a section that names another class than before begins anew."""
    for section, given in values.items():
        if not isinstance(given, dict):
            into[section], origins[section] = given, origin
            continue
        before = into.get(section)
        renamed = (
            section in NAMED
            and isinstance(before, dict)
            and given.get("name", before.get("name")) != before.get("name")
        )
        if renamed:
            for key in before or {}:
                origins.pop(f"{section}.{key}", None)
        into[section] = given if renamed or not isinstance(before, dict) else before | given
        origins.update({f"{section}.{key}": origin for key in given})


# ---- checking

_TOP = {*NAMED, *PLAIN, "name", "tune"}


def _resolve_section(section: str, given: Any, errors: list[str]) -> dict[str, Any]:
    """Every key of a section with its value; what is wrong is added to `errors`."""
    if not isinstance(given, dict):
        errors.append(f"{section} = {given!r}: right would be a table, [{section}]")
        return {}
    if section in NAMED:
        given = {"name": DEFAULT_NAMES[section]} | given if section in DEFAULT_NAMES else given
        try:
            _section_class(section, given)
        except ConfigError as error:
            errors.append(str(error))
            return {}
    values, found = _validate(section, given)
    errors.extend(found)
    return values


def _validate(section: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    schema = _schema(section, given)
    plain = _without_name(section, given)
    try:
        checked = _model(_section_class(section, given))(**plain).model_dump()
        _section_class(section, given)(**checked)
    except ValidationError as error:
        return {}, [_explain(section, e["loc"], e["type"], e["msg"], e["input"], schema) for e in error.errors()]
    except ValueError as error:  # what a dataclass itself says of its fields together
        return {}, [f"[{section}] {error}"]
    return ({"name": given["name"]} if section in NAMED else {}) | checked, []


def _resolve_tune(tune: Any, resolved: dict[str, dict[str, Any]], errors: list[str]) -> dict[str, list[Any]]:
    """Dotted keys with a list of values each, every value checked in its place."""
    if not isinstance(tune, dict):
        errors.append(f'tune = {tune!r}: right would be a table of lists, [tune] "learning.rate" = [0.1, 0.3]')
        return {}
    for dotted, choices in tune.items():
        section, _, key = dotted.partition(".")
        keys = [f"{s}.{k}" for s, values in resolved.items() for k in values]
        if section in resolved and not resolved[section]:
            continue  # the section itself is wrong, and says so
        if dotted not in keys:
            errors.append(_unknown("key to tune", dotted, keys))
        elif not isinstance(choices, list) or not choices:
            errors.append(f'tune."{dotted}" = {choices!r}: right would be a list of values to try')
        else:
            for choice in choices:
                errors += [f"tune: {e}" for e in _validate(section, resolved[section] | {key: choice})[1]]
    return tune


def _explain(section: str, where: tuple[int | str, ...], kind: str, message: str, given: Any, schema: Schema) -> str:
    key = str(where[0]) if where else ""
    if kind == "extra_forbidden":
        return _unknown("key", f"{section}.{key}", [f"{section}.{name}" for name in schema])
    meaning = f" ({schema[key].description})" if key in schema and schema[key].description else ""
    if kind == "missing":
        return f"{section}.{key} is missing{meaning}"
    return f"{section}.{key} = {given!r}: {message[0].lower()}{message[1:]}{meaning}"


def _unknown(what: str, name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return f"{name}: no such {what}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}")


def _section_class(section: str, values: Mapping[str, Any]) -> type:
    if section in PLAIN:
        return PLAIN[section]
    name = values.get("name")
    if isinstance(name, str) and name in NAMED[section]:
        return NAMED[section][name]
    if isinstance(name, str) and ":" in name:
        return _imported(section, name)
    if name is None:
        raise ConfigError(f"{section}.name is missing; known are {', '.join(NAMED[section])}")
    raise ConfigError(f"{section}.name = " + _unknown(section, str(name), list(NAMED[section])))


def _imported(section: str, name: str) -> type:
    """A class of the user's own, named "package.module:Class"."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{section}.name = {name!r}: {error}; right would be module:Class on the Python path"
        ) from None
    does = {"method": "merge", "model": "build", "data": "load", "engine": "open", "gate": "build"}[section]
    if not (isinstance(found, type) and is_dataclass(found) and hasattr(found, does)):
        raise ConfigError(f"{section}.name = {name!r} is {found!r}; right would be a dataclass with {does}()")
    return found


def _without_name(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if section not in NAMED or key != "name"}


def _schema(section: str, values: Mapping[str, Any]) -> Schema:
    return _model(_section_class(section, values)).model_fields


@cache
def _model(kind: type) -> type[BaseModel]:
    """A pydantic model of a dataclass's fields: strict, and nothing beside them."""
    hints = get_type_hints(kind, include_extras=True)
    keys: dict[str, Any] = {f.name: (hints[f.name], _default(f)) for f in fields(kind)}
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **keys)


def _default(key: Any) -> Any:
    """A dataclass field's default as pydantic has it."""
    if key.default_factory is not MISSING:
        return Field(default_factory=key.default_factory)
    return ... if key.default is MISSING else key.default
