"""Whether a section says what its class can be: all that is wrong of it, with the nearest known
name.

This room does not know where values come from, nor what is built of them.
"""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from .names import DEFAULT_NAMES, NAMED, PLAIN

Schema = Mapping[str, FieldInfo]


class ConfigError(ValueError):
    """Everything that is wrong with a config, a line each."""


def resolve_section(section: str, given: Any, errors: list[str]) -> dict[str, Any]:
    """Every key of a section with its value; what is wrong is added to `errors`."""
    if not isinstance(given, dict):
        errors.append(f"{section} = {given!r}: expected a table, [{section}]")
        return {}
    if section in NAMED:
        given = {"name": DEFAULT_NAMES[section]} | given if section in DEFAULT_NAMES else given
        try:
            section_class(section, given)
        except ConfigError as error:
            errors.append(str(error))
            return {}
    values, found = _validate(section, given)
    errors.extend(found)
    return values


def resolve_tune(
    tune: Any, resolved: dict[str, dict[str, Any]], errors: list[str]
) -> dict[str, list[Any]]:
    """Dotted keys with a list of values each, every value checked in its place."""
    if not isinstance(tune, dict):
        errors.append(
            f'tune = {tune!r}: expected a table of lists, [tune] "learning.rate" = [0.1, 0.3]'
        )
        return {}
    for dotted, choices in tune.items():
        section, _, key = dotted.partition(".")
        keys = [f"{s}.{k}" for s, values in resolved.items() for k in values]
        if section in resolved and not resolved[section]:
            continue  # the section itself is wrong, and says so
        if dotted not in keys:
            errors.append(unknown("key to tune", dotted, keys))
        elif not isinstance(choices, list) or not choices:
            errors.append(f'tune."{dotted}" = {choices!r}: expected a list of values to try')
        else:
            for choice in choices:
                errors += [
                    f"tune: {e}" for e in _validate(section, resolved[section] | {key: choice})[1]
                ]
    return tune


def _validate(section: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    known = schema(section, given)
    plain = without_name(section, given)
    try:
        checked = _model(section_class(section, given))(**plain).model_dump()
        section_class(section, given)(**checked)
    except ValidationError as error:
        return {}, [
            _explain(section, e["loc"], e["type"], e["msg"], e["input"], known)
            for e in error.errors()
        ]
    except ValueError as error:  # what a dataclass itself says of its fields together
        return {}, [f"[{section}] {error}"]
    return ({"name": given["name"]} if section in NAMED else {}) | checked, []


def _explain(
    section: str, where: tuple[int | str, ...], kind: str, message: str, given: Any, schema: Schema
) -> str:
    key = str(where[0]) if where else ""
    if kind == "extra_forbidden":
        return unknown("key", f"{section}.{key}", [f"{section}.{name}" for name in schema])
    meaning = f" ({schema[key].description})" if key in schema and schema[key].description else ""
    if kind == "missing":
        return f"{section}.{key} is missing{meaning}"
    return f"{section}.{key} = {given!r}: {message[0].lower()}{message[1:]}{meaning}"


def unknown(what: str, name: str, names: Sequence[str]) -> str:
    """A word that nothing has for a name, with the nearest that is one."""
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return f"{name}: no such {what}; " + (
        f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    )


def section_class(section: str, values: Mapping[str, Any]) -> type:
    """The class that a section's values fit; ConfigError if it names none."""
    if section in PLAIN:
        return PLAIN[section]
    name = values.get("name")
    if isinstance(name, str) and name in NAMED[section]:
        return NAMED[section][name]
    if isinstance(name, str) and ":" in name:
        return _imported(section, name)
    if name is None:
        raise ConfigError(f"{section}.name is missing; known are {', '.join(NAMED[section])}")
    raise ConfigError(f"{section}.name = " + unknown(section, str(name), list(NAMED[section])))


def _imported(section: str, name: str) -> type:
    """A class of the user's own, named "package.module:Class"."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{section}.name = {name!r}: {error}; expected module:Class on the Python path"
        ) from None
    does = {"method": "merge", "model": "build", "data": "load", "engine": "open", "gate": "build"}[
        section
    ]
    if not (isinstance(found, type) and is_dataclass(found) and hasattr(found, does)):
        raise ConfigError(
            f"{section}.name = {name!r} is {found!r}; expected a dataclass with {does}()"
        )
    return found


def without_name(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values that are fields of its class."""
    return {key: value for key, value in values.items() if section not in NAMED or key != "name"}


def schema(section: str, values: Mapping[str, Any]) -> Schema:
    """What the class of a section says of each of its fields."""
    return _model(section_class(section, values)).model_fields


@cache
def _model(kind: type) -> type[BaseModel]:
    """A pydantic model of a dataclass's fields: strict, and nothing beside them."""
    hints = get_type_hints(kind, include_extras=True)
    keys: dict[str, Any] = {f.name: (hints[f.name], _default(f)) for f in fields(kind)}
    return create_model(
        kind.__name__,
        __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
        **keys,
    )


def _default(key: Any) -> Any:
    """A dataclass field's default as pydantic has it."""
    if key.default_factory is not MISSING:
        return Field(default_factory=key.default_factory)
    return ... if key.default is MISSING else key.default
