"""An experiment becomes objects: data, encoder, model and method, then a job and its clients, then
an engine.

This room reads no config file, and knows neither sites nor what they allow.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..client import Client, Job
from ..data import kept, manifest
from ..data.features import Tell, features
from ..data.federation import Federation, Parts
from ..data.own import Listed, Own
from ..declared import Facts
from ..engine import Engine
from ..fetch import to_paste
from ..learn import Examples, Learning
from ..method import Method, needs_reserve
from ..model import Model, taught
from ..models.built import Built, Sighted, computing_on
from ..models.mixture import Mixture
from ..options import Outside
from ..private import Private
from ..tensors import rng
from . import machine, own, promises
from .checking import unknown
from .folders import cache_folder
from .reading import Config, parse
from .settings import MixtureSettings, RunSettings, StartSettings

Clients = Mapping[str, Client]
READERS = {
    "texts": 'model.name = "transformer" or "sentence-network"',
    "images": 'model.name = "prompted-dual" for photographs, or "compact-cnn"',
}


def _unheard(done: int, total: int) -> None:
    """Nobody asks how far the encoding of images or texts is."""


def parts(config: Config) -> tuple[Federation, Built, Model, Method]:
    """An experiment's data, its model and encoder, the model as its method sees it, the method;
    ValueError if unfit.
    """
    federation = loaded(config)
    _check_clients(config, federation)
    return federation, *_fitted(config, federation)


def _check_clients(config: Config, federation: Federation) -> None:
    """ValueError, with the nearest, if a method's table of clients names one that there is not."""
    for name in config.values["method"].get("clients", {}):
        if name not in federation.parts:
            raise ValueError("method.clients: " + unknown("client", name, list(federation.parts)))


def _fitted(config: Config, federation: Federation) -> tuple[Built, Model, Method]:
    built, model = modelled(config, federation.classes)
    method: Method = config.section("method")
    if len(federation.inputs):
        _check_kind(config, built, federation)
        _try_own(config, built, federation)
    if config.values["start"]["epochs"]:
        _check_start(built.model, federation)
    if "gate" in config.values and len(federation.inputs):
        _check_gate(config, built, federation)
    method.fits(model, len(federation.reserve))
    promises.check(config, method, model)
    if who := _own(config, "method"):
        own.check_method(who, method, model)
    return built, model, method


def _check_kind(config: Config, built: Built, federation: Federation) -> None:
    """ValueError, with what to use, if a model that reads images is given texts, or the other way
    round.
    """
    held = "texts" if federation.side is None else "images"
    if built.reads in ("", held):
        return
    model, data = config.values["model"]["name"], config.values["data"]["name"]
    raise ValueError(
        f'model.name = "{model}" reads {built.reads}, and data.name = "{data}" gives {held}; use'
        f" {READERS[held]}"
    )


def _own(config: Config, section: str) -> str:
    """What a config says of a section whose class is one's own; "" if the class is ours."""
    name = config.values[section]["name"]
    return f"{section}.name = {name!r}" if own.is_own(name) else ""


def _try_own(config: Config, built: Built, federation: Federation) -> None:
    """A model of one's own answers two examples, as many clients at once as will be."""
    if who := _own(config, "model"):
        together: int = config.values["engine"].get("together", 1)
        with computing_on(machine.device(config)):
            own.try_out(who, built, federation.inputs[:2], together)


def modelled(config: Config, classes: tuple[str, ...]) -> tuple[Built, Model]:
    """An experiment's model and encoder, and the model as its method sees it; without data, and so
    with its own start.

    ValueError if the model cannot be built.
    """
    device = machine.device(config)
    with computing_on(device, cache_folder, machine.matrix_units(device)):
        machine.repeatable(device)
        built = _built(config, "model", classes)
    return built, _mixed(config, built.model)


def _built(config: Config, section: str, classes: tuple[str, ...]) -> Built:
    """What [model] or [gate] builds."""
    seed: int = config.values["run"]["seed"]
    settings = config.section(section)
    if who := _own(config, section):
        return own.built(who, settings, classes, seed)
    built: Built = settings.build(classes, seed)
    return built


def lacking(config: Config) -> list[ValueError]:
    """What an experiment reads that is not on this machine, each with what to type; nothing is read
    for it.
    """
    reasons = []
    for section in ("data", "model", "gate"):
        try:
            settings = config.section(section) if section in config.values else None
            if isinstance(settings, Outside):
                settings.at_hand()
        except ValueError as error:
            reasons.append(error)
    return reasons


def check_here(configs: Sequence[Config]) -> None:
    """ValueError, with all to type at once, if experiments read what is not on this machine."""
    reasons = [error for config in configs for error in lacking(config)]
    if not reasons:
        return
    says = list(dict.fromkeys(map(str, reasons)))
    block = to_paste(reasons)
    if len(says) > 1 or len(block) > 1:
        says += ["All of it, to paste:", *block]
    raise ValueError("\n".join(says))


def _mixed(config: Config, model: Model) -> Model:
    """The mixture whose experts are `model`, if one is asked for; or `model` itself."""
    if "mixture" not in config.values:
        return model
    settings: MixtureSettings = config.section("mixture")
    section = "gate" if "gate" in config.values else "model"
    names = tuple(f"expert-{k}" for k in range(settings.experts))
    device = machine.device(config)
    with computing_on(device, units=machine.matrix_units(device)):
        gate = _built(config, section, names).model
    return Mixture(model, gate, settings.mains, settings.top)


def _check_start(model: Model, federation: Federation) -> None:
    needs_reserve(len(federation.reserve), "start.epochs")
    model.starting(model.initial)


def _check_gate(config: Config, built: Built, federation: Federation) -> None:
    """A gate reads what the experts read: inputs are made once."""
    gate: Built = config.section("gate").build(("one", "two"), 0)
    one, other = (b.encode(federation.inputs[:1]) for b in (built, gate))
    if one.shape != other.shape or not one.equal(other):
        raise ValueError(
            f'gate.name = "{config.values["gate"]["name"]}" reads inputs {list(other.shape)},'
            f" which differ from those of the experts, {list(one.shape)}; use"
            f' "{config.values["model"]["name"]}" with the same inputs'
        )


def build(config: Config, private: Path, split: Path | None = None) -> tuple[Job, Clients]:
    """The job and the clients of an experiment; their private states lie in the folder `private`.

    The data are split as the file `split` says, if there is one by now.
    """
    return assembled(
        config, split_as(config, split)[0] if split and split.exists() else loaded(config), private
    )


@contextmanager
def opened(
    config: Config,
    private: Path,
    split: Path | None = None,
    changed_data: bool = False,
    tell: Tell = _unheard,
) -> Iterator[tuple[Job, Engine, Federation]]:
    """The job of an experiment, the engine that its [engine] names, as long as it is needed, and
    the data.

    With a `split`, the data as it has them; ValueError if they changed since, unless that is
    allowed. `tell` hears how far the encoding of images or texts is.
    """
    federation = _unchanged(config, split, changed_data) if split else loaded(config)
    _check_clients(config, federation)
    job, clients = assembled(config, federation, private, tell)
    if who := _own(config, "method"):
        own.walk(who, job.method, job.given, sorted(clients))
    home = private.absolute()
    recipe = {
        "config": config.toml(),
        "private": str(home),
        "split": str(home.with_name("split.json")),
    }
    with config.section("engine").open(job, clients, recipe) as engine:
        yield job, engine, federation


def source(config: Config) -> Any:
    """Where an experiment's data come from; its images as large as the model sees them, if nothing
    else is asked.
    """
    named, model = config.section("data"), config.section("model")
    if isinstance(named, Listed) and not named.side and isinstance(model, Sighted):
        return replace(named, side=model.sees())
    return named


def loaded(config: Config) -> Federation:
    """An experiment's data, as its source has them now."""
    federation: Federation = source(config).load(config.values["run"]["seed"])
    if who := _own(config, "data"):
        own.check_data(who, federation)
    return federation


def split_as(config: Config, split: Path) -> tuple[Federation, str]:
    """An experiment's data, with all that is known in its part of a split; what changed since it
    was written, or "".

    A source that does not know its examples one by one is taken as it is.
    """
    given, named, seed = manifest.load(split), source(config), config.values["run"]["seed"]
    if isinstance(named, Own):
        federation: Federation = named.again(given, seed)
        return federation, kept.said(federation.changed)
    federation = named.load(seed)
    return federation, manifest.difference(
        given, federation.inputs, federation.labels, federation.classes, federation.files
    )


def _unchanged(config: Config, split: Path, changed_data: bool) -> Federation:
    federation, what = split_as(config, split)
    if what and not changed_data:
        raise ValueError(
            f"the data are not those of {split}. {what}. Put them back, or start another run; or"
            " use `fedexperts resume RUN --changed-data`: known examples keep their part, and the"
            " run's log and report say what changed"
        )
    return federation


def check_data(config: Config, split: Path) -> None:
    """ValueError if an experiment's data changed since a split, from another seed perhaps, was
    written.
    """
    if isinstance(config.section("data"), Own):
        _unchanged(config, split, changed_data=False)


def assembled(
    config: Config, federation: Federation, private: Path, tell: Tell = _unheard
) -> tuple[Job, Clients]:
    """The job and the clients of an experiment with these data."""
    run: RunSettings = config.section("run")
    learning: Learning = config.section("learning")
    torch.set_num_threads(run.threads)
    built, _, method = _fitted(config, federation)
    inputs = _inputs(federation.inputs, built, learning.views, run.seed, tell)

    def examples(*index: Tensor) -> Examples:
        positions = torch.cat(index) if index else torch.empty(0, dtype=torch.int64)
        return Examples(inputs[positions], federation.labels[positions])

    everybody = [own.train for own in federation.parts.values()]

    def client(name: str, own: Parts) -> Client:
        trained = everybody if run.pooled else [own.train]
        changed: Facts = {**federation.changed[name].counts()} if name in federation.changed else {}
        return Client(
            name,
            examples(*trained),
            examples(own.valid),
            examples(own.test),
            Private(private),
            changed,
        )

    clients = {name: client(name, own) for name, own in federation.parts.items()}
    exam = {
        part: examples(*(getattr(own, part) for own in federation.parts.values()))
        for part in ("valid", "test")
    }
    reserve = examples(federation.reserve)
    model = _mixed(config, _started(config, built.model, reserve))
    return (
        Job(
            method,
            model,
            learning,
            run.rounds,
            run.seed,
            reserve,
            exam,
            config.section("guard"),
            config.section("merge"),
            promises.door(config),
            config.section("privacy"),
            unseen=examples(federation.unseen) if len(federation.unseen) else None,
            members=examples(*everybody) if run.membership else None,
        ),
        clients,
    )


def _inputs(given: Any, built: Built, views: int, seed: int, tell: Tell) -> Tensor:
    """What a model is shown of images or texts, [N, V, ...]; an encoder without a key is cheap, and
    nothing is kept.
    """
    if not len(given):  # a server without a reserve set
        return torch.empty(0, 1)
    if built.key:
        cache = cache_folder()
        return features(given, built.encode, built.key, cache, views, seed, tell)
    if views > 1:
        raise ValueError(
            f"learning.views = {views}: this model does not augment its inputs; use"
            " learning.views = 1"
        )
    return built.encode(given)[:, None]


def _started(config: Config, model: Model, reserve: Examples) -> Model:
    """The model with the common start that the reserve set taught it; itself, where nothing is
    asked.
    """
    settings: StartSettings = config.section("start")
    if not settings.epochs:
        return model
    seed: int = config.values["run"]["seed"]
    learning = Learning(settings.epochs, settings.batch, optimizer="adam", rate=settings.rate)
    trained = taught(model, model.initial, reserve, learning, rng(seed, "common start"))
    return model.starting(trained)


def simulated(about: Mapping[str, str], client: str) -> tuple[Job, Client]:
    """In a process of a simulation: the job, and the client of this name; built once for as many
    orders as come.
    """
    job, clients = _built_once(about["config"], about["private"], about["split"])
    return job, clients[client]


@lru_cache(maxsize=2)
def _built_once(text: str, private: str, split: str) -> tuple[Job, Clients]:
    return build(parse(text, "an order"), Path(private), Path(split))
