"""Each wrong part of a class of one's own is named before anything is trained, with what is
expected.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, Case, TinyData, TinyModel, TinyProbe, TinyPrompted, tiny
from torch import Tensor

import fedexperts as fx
from fedexperts import config as door
from fedexperts.config import ConfigError

GATED = CASES["nearest"].method


def refused(says: str, case: Case = CASES["fedavg"], **sections: Any) -> None:
    """The parts of a config are not put together, and the reason has these words."""
    with pytest.raises(ValueError, match=says):
        door.parts(tiny(case, **sections))


# ---- a method


class Bare:
    """No dataclass."""

    def merge(self) -> None: ...


@dataclass(frozen=True)
class Stranger:
    """Has a merge, and is no method."""

    def merge(self) -> None: ...


@dataclass(frozen=True)
class Half(fx.Method):
    def uploads(self, model: Any) -> frozenset[str]:
        return frozenset()

    def merge(self, given: Any, server: Any, uploads: Any, round: int) -> Any:
        return server


@dataclass(frozen=True)
class Narrow(fx.FedAvg):
    def merge(self, server: Any, uploads: Any) -> Any:  # type: ignore[override]
        return server


@dataclass(frozen=True)
class Data(fx.FedAvg):
    merge: int = 3  # type: ignore[assignment]


class Undecorated(fx.FedAvg):
    share: float = 0.5


@dataclass(frozen=True)
class OneWord(fx.FedAvg):
    def uploads(self, model: Any) -> Any:
        return "context"


@dataclass(frozen=True)
class Silent(fx.FedAvg):
    def declares(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Bare", r"expected a dataclass with merge\(\)"),
        ("Stranger", "Stranger is no method; expected a subclass of fx.Method"),
        ("Half", r"lacks finish, restore, start; expected finish\(self, model, local\)"),
        (
            "Narrow",
            r"found merge\(self, server, uploads\); expected merge\(self, given, server, uploads,"
            r" round\)",
        ),
        ("Data", r"merge is 3; expected merge\("),
        ("Undecorated", r"share would not be an option; write @dataclass\(frozen=True\) above"),
    ],
)
def test_a_method_is_looked_at_when_a_config_names_it(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"method.name = 'test_own:{name}'.*{says}"):
        tiny(Case({"name": f"test_own:{name}"}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("OneWord", "uploads gave 'context'; expected a frozenset of tensors' names"),
        ("Silent", r"declares gave nothing; expected fx.Declared\(\.\.\.\)"),
    ],
)
def test_what_a_method_says_of_itself_is_looked_at(name: str, says: str) -> None:
    refused(says, Case({"name": f"test_own:{name}"}))


@dataclass(frozen=True)
class Astray(fx.FedAvg):
    """A method that is wrong in one step."""

    step: str = ""

    def __getattribute__(self, name: str) -> Any:
        asked = object.__getattribute__(self, name)
        if name != object.__getattribute__(self, "step"):
            return asked
        return lambda *takes: WRONG_STEPS[name](asked(*takes))


WRONG_STEPS: dict[str, Any] = {
    "open": lambda found: None,
    "send": lambda found: list(found.values()),
    "start": lambda found: found.trained,
    "predictor": lambda found: found.model,
    "finish": lambda found: (found.stays, found.leaves),
    "publish": lambda found: None,
    "restore": lambda found: found.nothing,
    "expects": lambda found: sorted(found),
}


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("open", "open gave nothing; expected a dict"),
        ("send", "send gave a value of type list; expected a dict"),
        ("start", r"start gave a value of type dict; expected fx.Local\(trained\)"),
        ("predictor", "predictor gave a value of type .*; expected an fx.Predictor"),
        ("finish", r"finish gave a value of type tuple; expected fx.Finished\(stays, leaves\)"),
        ("publish", "publish gave nothing; expected a dict"),
        ("restore", "restore failed: AttributeError"),
        ("expects", "expects gave a value of type list; expected a dict"),
    ],
)
def test_a_method_is_walked_through_before_anybody_trains(
    step: str, says: str, tmp_path: Path
) -> None:
    config = tiny(Case({"name": "test_own:Astray", "step": step}))
    with pytest.raises(ValueError, match=f"method.name = 'test_own:Astray': {says}"):
        fx.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Forgetful(fx.FedAvg):
    """Its author forgot to return."""

    def merge(self, given: Any, server: Any, uploads: Any, round: int) -> Any:
        fx.mean([u.tensors for u in uploads], [u.examples for u in uploads])


@dataclass(frozen=True)
class Partial(fx.FedAvg):
    """Sends to one client alone."""

    def send(self, server: Any, clients: Any, round: int, seed: int) -> Any:
        return {clients[0]: fx.Sent(self.publish(server))}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Forgetful", "merge gave nothing; expected a dict"),
        ("Partial", r"send gave payloads for a; expected a dict with fx.Sent\(tensors\) for every"),
    ],
)
def test_what_its_author_forgot(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        fx.run(tiny(Case({"name": f"test_own:{name}"})), tmp_path / "run")


def test_a_method_in_one_line_is_a_method() -> None:
    door.parts(tiny(Case({"name": "test_own:Mine"})))


class Mine(fx.FedAvg):
    pass


# ---- a model


@dataclass(frozen=True)
class Wrong:
    """A model that is wrong in one part."""

    part: str = ""

    def build(self, classes: tuple[str, ...], seed: int) -> Any:
        kind = "prompted" if self.part in PROMPTED else "probe"
        built = TinyModel(kind).build(classes, seed)
        return WRONG[self.part](built)


def without(name: str) -> Any:
    """The model lacks a member."""

    class Lacking(TinyProbe):
        def __getattribute__(self, asked: str) -> Any:
            if asked == name:
                raise AttributeError(asked)
            return super().__getattribute__(asked)

    return lambda built: replace(built, model=Lacking(built.model.classes))


def having(**members: Any) -> Any:
    """The model has other members."""

    def changed(built: fx.Built) -> fx.Built:
        for name, value in members.items():
            setattr(built.model, name, value)
        return built

    return changed


class Mute(fx.Model):
    """Says nothing."""

    def __init__(self, classes: tuple[str, ...]) -> None: ...


class Duck:
    """Is like a model."""

    initial: fx.Tensors = {}  # noqa: RUF012


class Unscaled(TinyPrompted):
    scale = property()  # type: ignore[assignment]


class OneByOne(TinyProbe):
    """Its logits ask for a number, which cannot be told for several clients at once."""

    def logits(self, tensors: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        size = float(tensors["weight"].detach().abs().sum())  # type: ignore[call-overload]
        return super().logits(tensors, x) / (1 + size)  # type: ignore[arg-type]


def another(kind: Any) -> Any:
    return lambda built: replace(built, model=kind(built.model.classes))


WRONG: dict[str, Any] = {
    "": lambda built: built,
    "no Built": lambda built: built.model,
    "nothing": lambda built: None,
    "no function": lambda built: replace(built, encode=3),
    "no initial": without("initial"),
    "no classes": without("classes"),
    "no logits": another(Mute),
    "no model": lambda built: replace(built, model=Duck()),
    "other classes": having(classes=("one", "two")),
    "a tensor": having(initial=torch.zeros(3)),
    "a number": having(initial={"weight": 3.0}),
    "a gradient": having(initial={"weight": torch.zeros(3, requires_grad=True)}),
    "whole numbers": having(initial={"weight": torch.zeros(3, dtype=torch.int64)}),
    "no step": having(buffers=frozenset({"bias"})),
    "strange buffers": having(buffers=frozenset({"mean"})),
    "no context": having(initial={"prompt": torch.zeros(2, 4)}),
    "no scale": lambda built: replace(built, model=Unscaled(built.model.initial["context"])),
    "half prompted": having(texts=lambda context: context),
    "narrow texts": having(texts=lambda context: torch.zeros(3)),
    "texts of one": having(texts=lambda context: torch.zeros(3, 8)),
    "broken texts": having(texts=lambda context: context @ torch.zeros(99)),
    "encode of one": lambda built: replace(built, encode=lambda images: images[0].float()),
    "encode a list": lambda built: replace(built, encode=list),
    "broken encode": lambda built: replace(built, encode=lambda images: images.nothing),
    "broken logits": having(logits=lambda tensors, x: x @ torch.zeros(99)),
    "flat logits": having(logits=lambda tensors, x: x.sum() + tensors["bias"].sum()),
    "own weights": having(logits=lambda tensors, x: x @ torch.zeros(x.shape[1], 3)),
    "one by one": another(OneByOne),
    "says so": lambda built: having(together=False)(another(OneByOne)(built)),
}
RIGHT = {"", "says so"}
PROMPTED = {"no context", "no scale", "narrow texts", "texts of one", "broken texts"}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (
            "no Built",
            r"build gave a value of type TinyProbe; expected fx.Built\(model, encode, key\)",
        ),
        ("nothing", "build gave nothing; expected fx.Built"),
        ("no function", "encode is 3; expected a function"),
        ("no initial", "Lacking has no initial; expected a dict of named tensors"),
        ("no classes", "Lacking has no classes; expected the names that build was given"),
        ("no logits", "build failed: Can't instantiate abstract class Mute .*logits"),
        ("no model", "Duck is no model; expected a subclass of fx.Model"),
        ("other classes", "its classes are one, two; expected those that build was given"),
        ("a tensor", r"initial is a tensor \[3\]; expected a dict of named tensors"),
        ("a number", r"initial\['weight'\] is 3.0; expected a tensor"),
        ("a gradient", r"initial\['weight'\] .* expected value.detach\(\).cpu\(\)"),
        ("whole numbers", "is torch.int64, which no gradient can train; expected torch.float32"),
        ("no step", r"TinyProbe has buffers and no step of its own; expected step\(tensors, x\)"),
        ("strange buffers", "buffers are mean, which initial does not have"),
        ("no context", r'initial holds prompt; expected "context"'),
        ("no scale", "Unscaled has no scale; expected the number"),
        ("half prompted", "TinyProbe has texts; expected a subclass of fx.PromptModel"),
        ("narrow texts", r"texts\(context\) are a tensor \[3\]; expected a tensor \[3, D\]"),
        ("texts of one", r"texts of two contexts.* \[3, 8\]; expected a tensor \[2, 3, 8\]"),
        ("broken texts", r"texts\(context\) failed: RuntimeError"),
        ("encode of one", r"encode made .* of 2 examples; expected a tensor \[2, \.\.\.\]"),
        ("encode a list", "encode made a value of type list of 2 examples"),
        ("broken encode", "encode failed: AttributeError"),
        ("broken logits", "logits failed: RuntimeError"),
        ("flat logits", r"logits of 2 inputs are a tensor \[\]; expected a tensor \[2, 3\]"),
        ("own weights", "logits do not depend on the tensors that they are given"),
        ("one by one", "use together = False, as a member of OneByOne, or engine.together = 1"),
    ],
)
def test_a_model_is_looked_at_when_it_is_built(part: str, says: str) -> None:
    model = {"name": "test_own:Wrong", "part": part}
    with pytest.raises(ValueError, match=f"model.name = 'test_own:Wrong': .*{says}") as raised:
        door.parts(tiny(CASES["fedavg"], model=model, engine={"together": 4}))
    assert "bug report" not in str(raised.value)


def test_every_wrong_model_has_a_test_and_a_right_one_passes() -> None:
    marks: Any = test_a_model_is_looked_at_when_it_is_built
    told = {part for part, _ in marks.pytestmark[0].args[1]}
    assert told == WRONG.keys() - RIGHT
    own = tiny(CASES["fedavg"], model={"name": "test_own:Wrong", "part": ""})
    door.parts(own.having({"engine.together": 4}, "test"))


@pytest.mark.parametrize(("part", "together"), [("one by one", 1), ("says so", 4)])
def test_a_model_that_goes_one_by_one_need_not_be_mapped(part: str, together: int) -> None:
    model = {"name": "test_own:Wrong", "part": part}
    door.parts(tiny(CASES["fedavg"], model=model, engine={"together": together}))


@dataclass(frozen=True)
class Eager:
    def build(self, classes: tuple[str, ...]) -> None: ...


def test_build_takes_classes_and_seed() -> None:
    with pytest.raises(
        ConfigError, match=r"found build\(self, classes\); expected build\(self, cla"
    ):
        tiny(CASES["fedavg"]).having({"model.name": "test_own:Eager"}, "test")


def test_a_gate_is_looked_at_like_a_model() -> None:
    gate = {"name": "test_own:Wrong", "part": "nothing"}
    refused("gate.name = 'test_own:Wrong': build gave nothing", CASES["fedmix"], gate=gate)


# ---- data


@dataclass(frozen=True)
class WrongData(TinyData):
    part: str = ""

    def load(self, seed: int) -> Any:
        found = super().load(seed)
        return WRONG_DATA[self.part](found)


def labelled(label: int) -> Any:
    def change(found: fx.Federation) -> fx.Federation:
        labels = found.labels.clone()
        labels[3] = label
        return replace(found, labels=labels)

    return change


def parted(change: Any) -> Any:
    return lambda found: replace(found, parts={name: change(p) for name, p in found.parts.items()})


WRONG_DATA: dict[str, Any] = {
    "a pair": lambda found: (found.inputs, found.labels),
    "labels": labelled(7),
    "a list of labels": lambda found: replace(found, labels=found.labels.tolist()),
    "a list of classes": lambda found: replace(found, classes=list(found.classes)),
    "floats": lambda found: replace(found, inputs=found.inputs / 255),
    "a list of inputs": lambda found: replace(found, inputs=list(found.inputs)),
    "parts": parted(lambda parts: (parts.train, parts.valid, parts.test)),
    "indices": parted(lambda parts: replace(parts, train=parts.train.tolist())),
    "test twice": parted(lambda parts: replace(parts, test=parts.train)),
    "no domains": lambda found: replace(found, domains={}),
}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("a pair", r"load gave a value of type tuple; expected fx.Federation\(\.\.\.\)"),
        ("labels", "example 3 has label 7: it must be 0 to 2"),
        ("a list of labels", "labels are a list: they must be a tensor, int64"),
        ("a list of classes", "classes are .*: they must be a tuple of names"),
        ("floats", r"images are torch.float32 .*: they must be uint8 \[N, 3, H, W\]"),
        ("a list of inputs", "inputs are a list: they must be images in a tensor, or a tuple"),
        ("parts", r"has a tuple: it must be Parts\(train=\.\.\., valid=\.\.\., test=\.\.\.\)"),
        ("indices", "train: indices are a list, not a tensor"),
        ("test twice", "an example must be at one client, in one part, once"),
        ("no domains", "are in only one of parts and domains"),
    ],
)
def test_data_are_looked_at_before_a_model_is_built(part: str, says: str) -> None:
    data = {"name": "test_own:WrongData", "part": part}
    refused(says, data=data, model={"name": "test_own:Wrong", "part": "nothing"})


@dataclass(frozen=True)
class Seedless:
    def load(self) -> None: ...


def test_load_takes_a_seed() -> None:
    with pytest.raises(ConfigError, match=r"found load\(self\); expected load\(self, seed\)"):
        tiny(CASES["fedavg"]).having({"data.name": "test_own:Seedless"}, "test")


def test_nothing_of_a_wrong_model_is_left_behind(tmp_path: Path) -> None:
    config = tiny(CASES["fedavg"], model={"name": "test_own:Wrong", "part": "own weights"})
    with pytest.raises(ValueError, match="nothing would be learned"):
        fx.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
