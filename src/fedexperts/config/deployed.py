"""An experiment on machines of a deployment: at the federation's server, and at a site.

A site did not write the config, so this room says what it may name there. It does not know how it
came to the site.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit

from ..client import Client, Job
from ..data import manifest
from ..data.federation import Federation
from ..data.own import Own
from ..options import typed_path
from ..tensors import write
from .building import assembled, loaded, source, split_as
from .machine import cores
from .names import PATHS
from .reading import Config, parse, resolve


def served(config: Config, data: Mapping[str, object]) -> tuple[Job, Federation]:
    """A federation's server: its job and its data, the classes and its own reserve set, which
    `data` leads to.
    """
    if config.values["run"]["pooled"]:
        raise ValueError(
            "run.pooled = true gives every client the data of all, and sites keep theirs; use it"
            " in a simulation"
        )
    if at_sites := isinstance(config.section("data"), Own):
        data = {"path": ""} | dict(data)
    config = _with_data(config, data)
    named = source(config)
    federation: Federation = (
        named.server() if at_sites else named.load(config.values["run"]["seed"])
    )
    job, _ = assembled(config, federation, Path())
    asked = config.values["run"]["confusion"]
    return replace(job, exam={}, unseen=None, confusion=asked, deployed=True), federation


@dataclass(frozen=True)
class Allowed:
    """What a site lets a run's config name on its machine beside its own data, by default nothing;
    and what a run may be, by default anything.
    """

    modules: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()  # what is told beside accuracy, if asked for: "confusion"
    runs: tuple[str, ...] | None = None  # None: any
    methods: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    upload: int | None = None  # bytes of tensors in a reply
    noise: float = 0.0  # in units of upload.clip, at least
    threads: int | None = None  # at most; None: as many as there are cores

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> "Allowed":
        """From [allow] of site.toml; ValueError for what does not fit."""
        if not all(_permits_as(key, value) for key, value in table.items()):
            raise ValueError(
                f"[allow] of site.toml is {dict(table)}; expected modules, runs, methods or classes"
                ' = [names], paths = [paths], figures = ["confusion"], upload = bytes, noise = a'
                " number, threads = a number"
            )
        given: dict[str, Any] = {}
        for key, value in table.items():
            given[key] = tuple(value) if isinstance(value, list) else value
        return cls(**given)

    def code(self, name: str) -> bool:
        """Whether code of this name, "module:Class", may be run."""
        module = name.partition(":")[0]
        return any(module == known or module.startswith(f"{known}.") for known in self.modules)

    def permits(self, path: str) -> bool:
        """Whether what lies there may be read."""
        real = typed_path(path).resolve()
        return any(real.is_relative_to(typed_path(known).resolve()) for known in self.paths)

    def check_run(self, name: str) -> None:
        """ValueError if no run of this name may be carried out here."""
        if self.runs is not None and name not in self.runs:
            raise _outside("runs", f"the run {name!r}", ", ".join(self.runs))

    def check(self, config: Config) -> None:
        """ValueError, with the reason, for an experiment that is outside of what the site lets."""
        method = config.values["method"]["name"]
        if self.methods is not None and method not in self.methods:
            raise _outside("methods", f"method.name = {method!r}", ", ".join(self.methods))
        uploads = config.values["upload"]
        if uploads["noise"] < self.noise or (self.noise and not uploads["clip"]):
            raise _outside(
                "noise", f"upload.noise = {uploads['noise']:g}", f"{self.noise:g} or more"
            )
        threads, most = config.values["run"]["threads"], self.threads or cores()
        if threads > most:
            raise _outside("threads", f"run.threads = {threads}", f"{most} or fewer")

    def check_classes(self, classes: Sequence[str]) -> None:
        """ValueError for a class that the site does not tell of."""
        if self.classes is not None and (strange := sorted({*classes} - {*self.classes})):
            raise _outside("classes", f"class {strange[0]!r}", ", ".join(self.classes))

    def check_upload(self, size: int) -> None:
        """ValueError for a reply whose tensors have more bytes than the site lets out."""
        if self.upload is not None and size > self.upload:
            raise _outside("upload", f"an upload of {size:,} bytes", f"{self.upload:,} or fewer")


def _outside(key: str, asked: str, allowed: str) -> ValueError:
    return ValueError(
        f"{asked} is outside of what this site allows: {key} under [allow] of its site.toml says"
        f" {allowed}"
    )


def _permits_as(key: str, value: object) -> bool:
    """Whether a permission has the form that it must have."""
    if key in ("upload", "threads"):
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    if key == "noise":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and value >= 0  # type: ignore[operator]
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key == "figures":
        return names and value in (["confusion"], [])
    return names and key in ("modules", "paths", "runs", "methods", "classes")


def site(
    text: str,
    name: str,
    data: Mapping[str, object],
    private: Path,
    splits: Path,
    allowed: Allowed = Allowed(),
) -> tuple[Job, Client, str]:
    """The job of an experiment, the site `name` with its own data, and what changed in them since
    they were split.

    Its split is written once into the folder `splits`. ValueError if the data hold no such client.

    The common start is the server's, and comes with its first order; the reserve set is the
    server's, too. Whoever has the server writes the text: it names no code and no path of this
    machine but what the site allows.
    """
    _check_code(text, allowed)  # before anything is imported
    config = parse(text, "the run")
    own = {"site": name, "reserve": 0} if isinstance(config.section("data"), Own) else {}
    config = _with_data(config, {"path": ""} | own | dict(data) if own else data)
    allowed.check(config)
    _check_paths(config, data, allowed)
    _check_same(config, private)
    federation, what = _kept(config, splits) if own else (loaded(config), "")
    allowed.check_classes(federation.classes)
    job, clients = assembled(config.having({"start.epochs": 0}, "a site"), federation, private)
    if name not in clients:
        known = ", ".join(clients) or "none"
        raise ValueError(f"no client {name} in these data; there are {known}")
    confusion = config.values["run"]["confusion"] and "confusion" in allowed.figures
    return replace(job, unseen=None, deployed=True, confusion=confusion), clients[name], what


def _with_data(config: Config, data: Mapping[str, object]) -> Config:
    return (
        resolve([(config.nested(), "the run"), ({"data": dict(data)}, "here")]) if data else config
    )


def _kept(config: Config, splits: Path) -> tuple[Federation, str]:
    """A site's data, split as they were when they were first asked for with these settings."""
    named, seed = source(config), config.values["run"]["seed"]
    split = splits / f"{named.mark(seed)}.json"
    if split.exists():
        return split_as(config, split)
    federation: Federation = named.load(seed)
    splits.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(split, json.dumps(manifest.sealed(federation.manifest()), separators=(",", ":")).encode())
    split.chmod(0o600)
    return federation, ""


def _check_code(text: str, allowed: Allowed) -> None:
    """ValueError if an experiment names code, "module:Class", that a site does not allow; nothing
    is imported.
    """
    sections = {
        key: values for key, values in tomllib.loads(text).items() if isinstance(values, dict)
    }
    if sections.get("tune"):
        raise ValueError(
            "the run has [tune], but sites do not tune; use a run made by `fedexperts deploy`"
        )
    for section, values in sections.items():
        name = values.get("name")
        if isinstance(name, str) and ":" in name and not allowed.code(name):
            raise ValueError(
                f"{section}.name = {name!r} names code that this site does not allow: use"
                " one that comes with "
                f'fedexperts, or add modules = ["{name.partition(":")[0]}"] to [allow] of the'
                " site's site.toml"
            )


def _check_paths(config: Config, own: Mapping[str, object], allowed: Allowed) -> None:
    """ValueError if an experiment names a path of a site's machine that neither the site's data
    nor [allow] name.
    """
    for section, key in PATHS:
        path = config.values.get(section, {}).get(key, "")
        asked = path and not (section == "data" and key in own)
        if asked and (section == "data" or _is_path(path)) and not allowed.permits(path):
            raise ValueError(
                f"{section}.{key} = {path!r} is a path on the site's machine that its site.toml"
                " does not allow: leave it out, or let the site add paths ="
                f" [{tomlkit.item(path).as_string()}] to its [allow]"
            )


def _is_path(name: str) -> bool:
    """Whether a model's name leads to a file or folder, or would if one were there; or else it is a
    hub's or ours.
    """
    path = Path(name)
    return path.is_absolute() or name.startswith((".", "~")) or ".." in path.parts or path.exists()


def _check_same(config: Config, private: Path) -> None:
    """Write down by which method and model a run began at a site; ValueError if it goes on by
    others.

    What is private in the one may leave a site in the other: it would be read from the site's disk,
    and sent.
    """
    file, sections = private / "experiment.json", ("method", "model", "gate", "mixture")
    now = json.dumps(
        {section: config.values[section] for section in sections if section in config.values}
    )
    if not file.exists():
        write(file, now.encode())
        return
    try:
        before, after = json.loads(file.read_bytes()), json.loads(now)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}): put a backup of {private} in its place"
        ) from None
    changed = [f"[{section}]" for section in sorted(before.keys() ^ after.keys())]
    for section in before.keys() & after.keys():  # a key that is new is a newer version's
        changed += [
            f"{section}.{key}"
            for key, value in before[section].items()
            if after[section].get(key) != value
        ]
    if changed:
        raise ValueError(
            f"the run {private.name} began at this site with another {', '.join(changed)}, so"
            " tensors that were private then might be sent now; start a new run with `fedexperts"
            " deploy run`"
        )
