"""What a class of one's own must be: each wrong part is named here, with what is expected, before
anything is trained.

A class is looked at when a config names it, before data are read; a model when it is built, and on
two examples; a method once more step by step. This room does not know what a method learns or a
model computes; classes that ship with the package do not come by.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from ..data.federation import Federation
from ..declared import Declared
from ..learn import Local
from ..method import Finished, Given, Method, Sent, Upload
from ..model import Model, PromptModel
from ..models.built import Built
from ..predictor import Predictor
from ..tensors import Tensors, rng

T = TypeVar("T")

TAKES = {  # what a section's class does, and with what
    "method": ("merge", ()),
    "model": ("build", ("classes", "seed")),
    "gate": ("build", ("classes", "seed")),
    "data": ("load", ("seed",)),
    "engine": ("open", ("job", "clients", "about")),
}
MEMBERS = {  # what a model must have beside its functions
    "initial": "a dict of named tensors, with which training starts",
    "classes": "the names that build was given, in the order of the logits",
    "scale": "the number by which every similarity is multiplied",
}


def is_own(name: object) -> bool:
    """Whether a config's name is that of a class of one's own, module:Class."""
    return isinstance(name, str) and ":" in name


# ---- a class, before anything is made of it


def check_class(who: str, section: str, given: Any) -> None:
    """ValueError if a section cannot be an object of this class; `who` is what the config says."""
    does, takes = TAKES[section]
    if not (isinstance(given, type) and is_dataclass(given) and hasattr(given, does)):
        raise ValueError(f"{who} is {given!r}; expected a dataclass with {does}()")
    if "__dataclass_fields__" not in vars(given) and inspect.get_annotations(given):
        fields = ", ".join(inspect.get_annotations(given))
        raise ValueError(
            f"{who}: {fields} would not be an option; write @dataclass(frozen=True) above"
            f" class {given.__name__}"
        )
    if section == "method":
        _check_method_class(who, given)
    else:
        _check_call(who, getattr(given, does), does, takes)


def _check_method_class(who: str, given: type) -> None:
    if not issubclass(given, Method):
        raise ValueError(f"{who}: {given.__name__} is no method; expected a subclass of fx.Method")
    if lacking := sorted(given.__abstractmethods__):
        expected = ", ".join(_written(name, _takes(getattr(Method, name))) for name in lacking)
        raise ValueError(f"{who} lacks {', '.join(lacking)}; expected {expected}")
    for name, ours in inspect.getmembers(Method, inspect.isfunction):
        if not name.startswith("_"):
            _check_call(who, getattr(given, name), name, _takes(ours))


def _takes(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a function takes beside `self`."""
    return tuple(inspect.signature(function).parameters)[1:]


def _check_call(who: str, function: object, name: str, takes: tuple[str, ...]) -> None:
    """ValueError if a class's function cannot be called with so many values beside `self`."""
    if not callable(function):
        raise ValueError(f"{who}: {name} is {function!r}; expected {_written(name, takes)}")
    try:
        inspect.signature(function).bind("self", *takes)
    except TypeError:
        has = _written(name, _takes(function))
        raise ValueError(f"{who}: found {has}; expected {_written(name, takes)}") from None


def _written(name: str, takes: tuple[str, ...]) -> str:
    return f"{name}({', '.join(('self', *takes))})"


# ---- what its object makes


def check_data(who: str, given: object) -> None:
    """ValueError if a source's `load` gave no federation; one that is knows by itself whether it
    is sound.
    """
    if not isinstance(given, Federation):
        raise ValueError(f"{who}: load gave {_kind(given)}; expected fx.Federation(...)")


def check_method(who: str, method: Method, model: Model) -> None:
    """ValueError if what a method says of itself is not what is asked for."""
    uploads = method.uploads(model)
    if isinstance(uploads, str) or not all(isinstance(name, str) for name in uploads):
        raise ValueError(f"{who}: uploads gave {uploads!r}; expected a frozenset of tensors' names")
    if not isinstance(declared := method.declares(), Declared):
        raise ValueError(f"{who}: declares gave {_kind(declared)}; expected fx.Declared(...)")


def built(who: str, settings: Any, classes: tuple[str, ...], seed: int) -> Built:
    """What a model's settings build; ValueError if it is no model of these classes behind an
    encoder.
    """
    try:
        model: Built = settings.build(classes, seed)
    except TypeError as error:  # a model that lacks a function cannot be made
        raise ValueError(f"{who}: build failed: {error}") from error
    _check_built(who, model, classes)
    return model


def _check_built(who: str, built: Any, classes: tuple[str, ...]) -> None:
    if not isinstance(built, Built):
        raise ValueError(f"{who}: build gave {_kind(built)}; expected fx.Built(model, encode, key)")
    if not callable(built.encode):
        raise ValueError(f"{who}: encode is {_kind(built.encode)}; expected a function")
    model = built.model
    _check_members(who, model)
    if tuple(model.classes) != classes:
        raise ValueError(
            f"{who}: its classes are {_few(model.classes)}; expected those that build was given,"
            f" {_few(classes)}"
        )
    _check_initial(who, model)
    _check_buffers(who, model)
    if isinstance(model, PromptModel):
        _check_prompt(who, model)


def _check_members(who: str, model: Any) -> None:
    kind = type(model).__name__
    if not isinstance(model, Model):
        raise ValueError(f"{who}: {kind} is no model; expected a subclass of fx.Model")
    prompted = isinstance(model, PromptModel)
    if hasattr(model, "texts") and not prompted:
        raise ValueError(f"{who}: {kind} has texts; expected a subclass of fx.PromptModel")
    for name, expected in MEMBERS.items():
        if not hasattr(model, name) and (prompted or name != "scale"):
            raise ValueError(f"{who}: {kind} has no {name}; expected {expected}")


def _check_initial(who: str, model: Model) -> None:
    initial: Any = model.initial
    if not isinstance(initial, Mapping) or not initial:
        raise ValueError(f"{who}: initial is {_kind(initial)}; expected {MEMBERS['initial']}")
    for name, value in initial.items():
        named = f"{who}: initial[{name!r}]"
        if not isinstance(value, Tensor):
            raise ValueError(f"{named} is {_kind(value)}; expected a tensor")
        if value.device.type != "cpu" or value.requires_grad:
            raise ValueError(
                f"{named} lies on {value.device} or has a gradient; expected value.detach().cpu()"
            )
        if not value.is_floating_point() and name not in model.buffers:
            raise ValueError(
                f"{named} is {value.dtype}, which no gradient can train; expected torch.float32"
            )


def _check_buffers(who: str, model: Model) -> None:
    if strange := sorted(model.buffers - model.initial.keys()):
        raise ValueError(f"{who}: buffers are {_few(strange)}, which initial does not have")
    if model.buffers and type(model).step is Model.step:
        raise ValueError(
            f"{who}: {type(model).__name__} has buffers and no step of its own; expected"
            " step(tensors, x), logits in training and the buffers' next values"
        )


def _check_prompt(who: str, model: PromptModel) -> None:
    """A prompted model's one trained tensor is its context, and texts takes several at once."""
    if "context" not in model.initial:
        raise ValueError(
            f'{who}: initial holds {_few(model.initial)}; expected "context", the [l, W] vectors'
            " that texts(context) reads"
        )
    context = model.initial["context"]
    alone = _called(who, "texts(context)", lambda: model.texts(context))
    _check_shape(who, "texts(context)", alone, (len(model.classes), None))
    pair = _called(who, "texts of two contexts", lambda: model.texts(torch.stack([context] * 2)))
    _check_shape(who, "texts of two contexts, [2, l, W],", pair, (2, *alone.shape))


# ---- a model, on two examples


def try_out(who: str, built: Built, inputs: Any, together: int) -> None:
    """ValueError if a model does not answer examples as it should, for so many clients at once.

    With 0, as many as is fastest, one that cannot be computed for several goes alone.
    """
    x = _called(who, "encode", lambda: built.encode(inputs))
    if not isinstance(x, Tensor) or len(x) != len(inputs):
        raise ValueError(
            f"{who}: encode made {_kind(x)} of {len(inputs)} examples; expected a tensor"
            f" [{len(inputs)}, ...]"
        )
    model = built.model
    tensors = {
        name: value.clone().requires_grad_(name not in model.buffers)
        for name, value in model.initial.items()
    }
    logits = _called(who, "logits", lambda: model.logits(tensors, x))
    _check_shape(who, f"logits of {len(x)} inputs", logits, (len(x), len(model.classes)))
    if not logits.requires_grad:
        raise ValueError(
            f"{who}: logits do not depend on the tensors that they are given, so nothing would be"
            " learned; expected logits(tensors, x) to compute with tensors"
        )
    if together == 1 or not model.together:
        return
    try:
        _try_together(who, model, x)
    except ValueError:
        if together:
            raise
        model.together = False


def _try_together(who: str, model: Model, x: Tensor) -> None:
    pair: Tensors = {name: torch.stack([value] * 2) for name, value in model.initial.items()}
    try:
        vmap(model.logits)(pair, torch.stack([x, x]))
    except Exception as error:
        why = str(error).strip().split("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{who}: {type(model).__name__} cannot be computed for several clients at once"
            f" ({why}); use together = False, as a member of {type(model).__name__}, or"
            " engine.together = 1"
        ) from error


# ---- a method, step by step, before anybody trains


def walk(who: str, method: Method, given: Given, clients: Sequence[str]) -> None:
    """ValueError if a step of a round gives what the next one cannot take."""
    model, client = given.model, clients[0]

    def step(name: str, kind: type[T], *takes: object) -> T:
        given = _called(who, name, lambda: getattr(method, name)(*takes))
        if not isinstance(given, kind):
            raise ValueError(f"{who}: {name} gave {_kind(given)}; expected {_GIVES[kind]}")
        return given

    with torch.no_grad():
        server = step("open", dict, given)
        shared = step("publish", dict, server)
        sent = step("send", dict, server, clients, 1, given.seed)
        if sorted(sent) != sorted(clients) or not isinstance(sent[client], Sent):
            raise ValueError(
                f"{who}: send gave payloads for {_few(sent) or 'nobody'}; expected a dict with"
                " fx.Sent(tensors) for every client"
            )
        local = step("start", Local, model, sent[client].tensors, None, rng(given.seed, "walk"))
        step("predictor", Predictor, model, local)
        finished = step("finish", Finished, model, local)
        step("restore", Local, model, shared, None)
        step("restore", Local, model, shared, finished.stays or None)
        expected = step("expects", dict, server, model, client)
        own_merge = not type(method).merge.__module__.startswith("fedexperts.")
        if own_merge and finished.leaves.keys() == expected.keys():
            step("merge", dict, given, server, [Upload(client, finished.leaves, 1)], 1)


_GIVES: dict[type, str] = {
    dict: "a dict",
    Local: "fx.Local(trained)",
    Predictor: "an fx.Predictor",
    Finished: "fx.Finished(stays, leaves)",
}


# ---- words


def _called(who: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise ValueError(f"{who}: {what} failed: {type(error).__name__}: {error}") from error


def _check_shape(who: str, what: str, given: object, expected: tuple[int | None, ...]) -> None:
    """ValueError if it is no tensor of this shape; None: any length."""
    shape = tuple(given.shape) if isinstance(given, Tensor) else None
    if shape is None or not _fits(shape, expected):
        wanted = ", ".join("D" if length is None else str(length) for length in expected)
        raise ValueError(f"{who}: {what} are {_kind(given)}; expected a tensor [{wanted}]")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    return all(want in (None, length) for length, want in zip(shape, expected, strict=True))


def _kind(value: object) -> str:
    """What something is, in few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if value is None:
        return "nothing"
    if isinstance(value, (str, int, float)):
        return f"{value!r}"
    return f"a value of type {type(value).__name__}"


def _few(names: Iterable[object]) -> str:
    some = [str(name) for name in names]
    return ", ".join(some[:4]) + (", ..." if len(some) > 4 else "")
