"""TOML files become one experiment: layers of values, later ones winning, every error said at once.

This room knows no data, model or method, and imports none: `checking` asks for their classes when a
section names them.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from ..options import Values
from .checking import (
    ConfigError,
    meanings,
    resolve_section,
    resolve_tune,
    section_class,
    unknown,
    without_name,
)
from .folders import shipped_folder
from .names import NAMED, OPTIONAL, SECTIONS

Layer = tuple[Values, str]  # nested values, and where they came from


@dataclass(frozen=True)
class Config:
    """One experiment, resolved: `values` holds every key of every section, `origins` where each
    came from.
    """

    name: str
    values: dict[str, Values]
    tune: dict[str, list[Any]]
    origins: dict[str, str]

    def section(self, name: str) -> Any:
        """A section as the dataclass that it describes."""
        return section_class(name, self.values[name])(**without_name(name, self.values[name]))

    def having(self, changes: Mapping[str, object], origin: str) -> "Config":
        """The same experiment with other values of some dotted keys. Raises ConfigError."""
        return resolve([(self.nested(), "file"), (_nest(changes.items()), origin)])

    def nested(self) -> Values:
        """As the tables of a config file."""
        return {"name": self.name, **self.values, "tune": self.tune}

    def toml(self) -> str:
        """As a config file that runs the same experiment."""
        return tomlkit.dumps(self.nested())

    def shareable(self) -> Values:
        """Dotted keys and values that say nothing of data or of a machine's folders."""
        return {
            f"{section}.{key}": value
            for section in ("method", "model", "mixture", "start", "learning", "run")
            for key, value in self.values.get(section, {}).items()
            if not (isinstance(value, str) and _is_of_this_machine(value))
        }

    def described(self) -> Iterator[tuple[str, str, str, str]]:
        """Every dotted key with its value as TOML, its meaning and its origin."""
        for section, values in self.values.items():
            said = meanings(section_class(section, values))
            for key, value in values.items():
                dotted = f"{section}.{key}"
                named = ", ".join(NAMED[section]) if section in NAMED else ""
                meaning = said.get(key) or f"one of {named}, or module:Class"
                yield (
                    dotted,
                    _as_toml(value),
                    meaning,
                    self.origins.get(dotted, "default"),
                )
        for key, choices in self.tune.items():
            yield (
                f'tune."{key}"',
                _as_toml(choices),
                "tried; chosen by validation accuracy",
                self.origins.get(f"tune.{key}", ""),
            )


def _as_toml(value: object) -> str:
    """A value as it stands behind its key, in one line."""
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return tomlkit.item(value).as_string()


def _is_of_this_machine(value: str) -> bool:
    return value.startswith(("~", "$")) or Path(value).is_absolute()


def load(path: Path | str, settings: Sequence[str] = ()) -> Config:
    """The config file at `path`, on top of its `base` files (of several, later ones win), below
    `section.key=value` settings. Raises ConfigError.
    """
    file, *others = find(Path(path))
    if others:
        raise ConfigError(
            f"{path} is a folder with {1 + len(others)} configs; expected one of them, such as"
            f" {file}"
        )
    layers, changes = _layers(file), [_setting(text) for text in settings]
    for values, _ in layers:  # a value that is set by hand is not searched for any more
        if isinstance(tune := values.get("tune"), dict):
            values["tune"] = {key: tried for key, tried in tune.items() if key not in dict(changes)}
    return resolve(
        [
            *layers,
            *(
                (_nest([change]), f"--set {text}")
                for change, text in zip(changes, settings, strict=True)
            ),
        ]
    )


def parse(text: str, origin: str) -> Config:
    """The experiment in the text of a config file without a base. Raises ConfigError."""
    try:
        return resolve([(tomllib.loads(text), origin)])
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not a readable TOML file: {error}") from None


def resolve(layers: Iterable[Layer]) -> Config:
    """Merge layers, later ones winning; ConfigError with all that is wrong."""
    merged: Values = {}
    origins: dict[str, str] = {}
    for values, origin in layers:
        _merge(merged, values, origins, origin)
    keys = [*SECTIONS, "name", "tune"]
    errors = [unknown("section", key, keys) for key in merged if key not in keys]
    name = merged.get("name", "")
    if not isinstance(name, str) or not name:
        errors.append(
            f'name = {name!r}: expected a name for the experiment, for example name = "pfedmoap"'
        )
    sections = [section for section in SECTIONS if section in merged or section not in OPTIONAL]
    resolved = {
        section: resolve_section(section, merged.get(section, {}), errors) for section in sections
    }
    tune = resolve_tune(merged.get("tune", {}), resolved, errors)
    if errors:
        raise ConfigError("\n".join(errors))
    return Config(name, resolved, tune, origins)


def find(path: Path) -> list[Path]:
    """The config files at `path`: a file, or every file of a folder whose name does not begin with
    "_".

    A path that is not there is looked up among the configs that ship with the package.
    """
    below = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    folder = path if path.exists() else shipped_folder() / Path(*below)
    if not folder.is_dir():
        return [folder if folder.exists() else path]
    files = sorted(file for file in folder.glob("*.toml") if not file.name.startswith("_"))
    if not files:
        raise ConfigError(f"{path}: no config files in this folder; expected NAME.toml files")
    return files


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    if path.resolve() in above:
        raise ConfigError(
            f"{path}: base = leads back to itself: {' -> '.join(p.name for p in above)}"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], 3)
        hint = "`fedexperts ls configs` lists what is there"
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        raise ConfigError(f"{path}: no such file; {hint}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    bases = values.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{path}: base = {bases!r}; expected the path of another config file, or a list of them"
        )
    layers = []
    for base in bases:
        layers += _layers(path.parent / base, (*above, path.resolve()))
    return [*layers, (values, str(path))]


def _setting(text: str) -> tuple[str, object]:
    """A key and a value from "section.key=value"; the value as TOML, or else as a plain word."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set {text}: use section.key=value, for example run.rounds=5")
    name = key.replace('"', "").strip()  # `show` prints tune."learning.rate"
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value.strip()


def _nest(items: Iterable[tuple[str, object]]) -> Values:
    nested: Values = {}
    for dotted, value in items:
        section, _, key = dotted.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def _merge(
    into: Values, values: Mapping[str, object], origins: dict[str, str], origin: str
) -> None:
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
