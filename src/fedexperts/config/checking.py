"""Whether a section says what its class can be: all that is wrong of it, with the nearest known
name.

This room does not know where values come from, nor what is built of them.
"""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from dataclasses import Field as DataclassField
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..options import Values
from .names import DEFAULT_NAMES, NAMED, PLAIN


class ConfigError(ValueError):
    """Everything that is wrong with a config, a line each."""


def resolve_section(section: str, given: object, errors: list[str]) -> Values:
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
    values, wrong = _validate(section, given)
    errors.extend(wrong)
    return values


def resolve_tune(
    tune: object, resolved: dict[str, Values], errors: list[str]
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


def _validate(section: str, given: Values) -> tuple[Values, list[str]]:
    kind = section_class(section, given)
    values, wrong = checked(kind, section, without_name(section, given))
    name = {"name": given["name"]} if section in NAMED and not wrong else {}
    return name | values, wrong


def checked(kind: type, section: str, given: Mapping[str, object]) -> tuple[Values, list[str]]:
    """Every option of a settings class with its value, or all that is wrong with what is given."""
    try:
        values = _model(kind)(**given).model_dump()
        kind(**values)
    except ValidationError as error:
        return {}, [_explain(kind, section, wrong) for wrong in error.errors()]
    except ValueError as error:  # what a dataclass itself says of its fields together
        return {}, [f"[{section}] {error}"]
    return values, []


def _explain(kind: type, section: str, wrong: Mapping[str, Any]) -> str:
    key, message = str(wrong["loc"][0]), wrong["msg"]
    known = meanings(kind)
    if wrong["type"] == "extra_forbidden":
        return unknown("key", f"{section}.{key}", [f"{section}.{name}" for name in known])
    meaning = f" ({known[key]})" if known.get(key) else ""
    if wrong["type"] == "missing":
        return f"{section}.{key} is missing{meaning}"
    return f"{section}.{key} = {wrong['input']!r}: {message[0].lower()}{message[1:]}{meaning}"


def unknown(what: str, name: str, names: Sequence[str]) -> str:
    """A word that nothing has for a name, with the nearest that is one."""
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    if near:
        return f"{name}: no such {what}; did you mean {near[0]}?"
    return f"{name}: no such {what}; expected one of {', '.join(names)}"


def section_class(section: str, values: Mapping[str, object]) -> type:
    """The class that a section's values fit; ConfigError if it names none."""
    if section in PLAIN:
        return PLAIN[section]
    name = values.get("name")
    if isinstance(name, str) and name in NAMED[section]:
        return NAMED[section][name]
    if isinstance(name, str) and ":" in name:
        return _imported(section, name)
    if name is None:
        raise ConfigError(f"{section}.name is missing; expected one of {', '.join(NAMED[section])}")
    raise ConfigError(f"{section}.name = " + unknown(section, str(name), list(NAMED[section])))


def _imported(section: str, name: str) -> type:
    """A class of the user's own, named "package.module:Class"."""
    module, _, attribute = name.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{section}.name = {name!r}: {error}; expected module:Class on the Python path"
        ) from None
    from . import own  # it needs torch, as such a class does: not for what ships with the package

    try:
        own.check_class(f"{section}.name = {name!r}", section, loaded)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    kind: type = loaded
    return kind


def without_name(section: str, values: Mapping[str, object]) -> Values:
    """A section's values that are fields of its class."""
    return {key: value for key, value in values.items() if section not in NAMED or key != "name"}


def meanings(kind: type) -> dict[str, str]:
    """What a settings class says of each of its options."""
    return {name: info.description or "" for name, info in _model(kind).model_fields.items()}


@cache
def _model(kind: type) -> type[BaseModel]:
    """A pydantic model of a settings class: strict, and nothing beside its options."""
    hints = get_type_hints(kind, include_extras=True)
    keys: Values = {key.name: (hints[key.name], _check(key)) for key in fields(kind)}
    return create_model(
        kind.__name__,
        __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False),
        **keys,
    )


def _check(key: DataclassField[Any]) -> Any:
    """A field of a settings class, an `option` or any other, as pydantic has it."""
    said: Values = dict(key.metadata.get("bounds", {}))
    if "says" in key.metadata:
        said["description"] = key.metadata["says"]
    if isinstance(key.default, tuple):  # TOML knows lists alone
        said["strict"] = False
    if key.default is not MISSING:
        said["default"] = key.default
    if key.default_factory is not MISSING:
        said["default_factory"] = key.default_factory
    return Field(**said)
