"""The small worlds in which the laws are tested, and what a run leaves behind in a form that can be
compared.

`tiny` is a federation of five clients with pictures of 4 x 4 pixels and a text encoder of one fixed
map: a round takes milliseconds. `digits` is real digits behind the package's own tiny CLIP. Both
come through the package's door, as a user's own classes do. Nothing in here pretends: `Wire` really
turns every message into bytes and back.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from papersets import written
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedexperts.client import Job
from fedexperts.config import Config, build, opened, resolve
from fedexperts.data.federation import Federation, Parts
from fedexperts.data.sets import SETS
from fedexperts.disk import read_checked, write_checked
from fedexperts.engine import Engine, InProcess
from fedexperts.learn import Examples, Learning
from fedexperts.loop import run
from fedexperts.message import Order, Reply, decode_order, decode_reply, encode
from fedexperts.method import Given
from fedexperts.model import Model, PromptModel
from fedexperts.models.built import Built
from fedexperts.models.family import Family, Topped
from fedexperts.models.network import Network, seeded
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors, pack, rng, write

CLASSES = ("ant", "bee", "cow")
WIDTH = 8  # of the tiny world's features
VALID, TEST = 4, 20  # examples of every client
# training examples: no batch divides them, one client has one
COUNTS = {"a": 5, "b": 9, "c": 14, "d": 7, "e": 1}


# ---- the tiny world


@dataclass(frozen=True)
class TinyData:
    """Five clients with unequal numbers of pictures; every client has its own lighting, the
    server's few have all.
    """

    reserve: int = 0  # pictures of each class that are the server's

    def load(self, seed: int) -> Federation:
        draw = rng(seed, "tiny")
        patterns = torch.randint(40, 200, (len(CLASSES), 3, 4, 4), generator=rng(0, "patterns"))
        images, labels, parts, first = [], [], {}, 0
        for place, (client, count) in enumerate(COUNTS.items()):
            whole = count + VALID + TEST
            own = torch.randint(len(CLASSES), (whole,), generator=draw)
            noise = torch.randint(-30, 31, (whole, 3, 4, 4), generator=draw)
            images.append(
                (patterns[own].roll(place, dims=-1) + noise).clamp(0, 255).to(torch.uint8)
            )
            labels.append(own)
            index = torch.arange(first, first := first + whole)
            parts[client] = Parts(*index.split([count, VALID, TEST]))
        for place in range(self.reserve):
            noise = torch.randint(-30, 31, patterns.shape, generator=rng(seed, "reserve", place))
            images.append((patterns.roll(place, dims=-1) + noise).clamp(0, 255).to(torch.uint8))
            labels.append(torch.arange(len(CLASSES)))
        reserve = torch.arange(first, first + self.reserve * len(CLASSES))
        domains = dict.fromkeys(parts, "tiny")
        return Federation(torch.cat(images), torch.cat(labels), CLASSES, parts, domains, reserve)


class TinyPrompted(PromptModel):
    """A prompted model whose text encoder is one fixed map from the context to each class's
    feature.
    """

    scale = 10.0
    classes = CLASSES

    def __init__(self, context: Tensor, patches: bool = False) -> None:
        self.initial, self.patches = {"context": context}, patches
        self.width = 0 if patches else WIDTH
        draw = rng(0, "texts")
        self.map_CWD = torch.randn(len(CLASSES), context.numel(), WIDTH, generator=draw)
        self.base_CD = torch.randn(len(CLASSES), WIDTH, generator=draw)

    def texts(self, context: Tensor) -> Tensor:
        assert context.numel(), "a real text encoder cannot run on nothing, either"
        return normalize(
            torch.einsum("...w,cwd->...cd", context.flatten(-2), self.map_CWD) + self.base_CD,
            dim=-1,
        )


class TinyAdapted(Model):
    """An adapter before a fixed classifier; its middle part is named as what clients share."""

    def __init__(self) -> None:
        self.classes, draw = CLASSES, rng(0, "adapted")
        self.texts_CD = normalize(torch.randn(len(CLASSES), WIDTH, generator=draw), dim=-1)
        shapes = {"image.0.down": (6, WIDTH), "shared.0": (6, 6), "image.0.up": (WIDTH, 6)}
        self.initial = {
            f"{name}.weight": 0.4 * torch.randn(shape, generator=draw)
            for name, shape in shapes.items()
        }

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        names = ("image.0.down", "shared.0", "image.0.up")
        down, shared, up = (tensors[f"{name}.weight"] for name in names)
        small = torch.relu(torch.relu(x @ down.mT) @ shared.mT)
        return 10 * normalize(x + small @ up.mT, dim=-1) @ self.texts_CD.mT


class TinyProbe(Model):
    """A linear classifier, which starts at zero."""

    def __init__(self, classes: tuple[str, ...] = CLASSES) -> None:
        self.classes, self.width = classes, WIDTH
        self.initial = {
            "weight": torch.zeros(len(classes), WIDTH),
            "bias": torch.zeros(len(classes)),
        }

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        return 10 * x @ tensors["weight"].T + tensors["bias"]


def network(classes: int) -> nn.Module:
    """Of two layers, on features."""
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, classes))


def topped(body: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """The same below a last layer that all kinds have alike."""
    return lambda classes: Topped(body(8), nn.Linear(8, classes))


def norm(classes: int) -> nn.Module:
    """With a batch norm, on pixels: a batch of one has more than one value a channel."""
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    return nn.Sequential(*layers)


def pixels(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.5


@dataclass(frozen=True)
class TinyModel:
    """As a user's own model would come through the door."""

    kind: str = "prompted"

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        if self.kind == "norm":
            return Built(Network(seeded(lambda: norm(len(classes)), seed), classes), pixels, "")
        lens = torch.randn(48, WIDTH, generator=rng(0, "lens"))

        def encode(images: Tensor) -> Tensor:
            return normalize(pixels(images).flatten(1) @ lens, dim=-1)

        def encode_patches(images: Tensor) -> Tensor:
            """Of the image, and of each of its four rows."""
            rows = torch.einsum("bcrx,crxd->brd", pixels(images), lens.view(3, 4, 4, WIDTH))
            return torch.cat([encode(images)[:, None], normalize(rows, dim=-1)], dim=1)

        if self.kind == "family":
            makes = (
                topped(network),
                topped(network),
                topped(lambda count: nn.Linear(WIDTH, count)),
            )
            made = (seeded(partial(make, len(classes)), seed) for make in makes)
            members = [Network(module, classes) for module in made]
            return Built(Family(members), lambda images: 5 * encode(images), "tiny-network")
        if self.kind == "adapted":
            return Built(TinyAdapted(), encode, "tiny")
        if self.kind == "network":
            larger = Network(seeded(lambda: network(len(classes)), seed), classes)
            return Built(larger, lambda images: 5 * encode(images), "tiny-network")
        context = 0.1 * torch.randn(2, 4, generator=rng(seed, "context"))
        if self.kind == "patches":
            return Built(TinyPrompted(context, patches=True), encode_patches, "tiny-patches")
        return Built(
            TinyPrompted(context) if self.kind == "prompted" else TinyProbe(classes), encode, "tiny"
        )


NOTHING = Examples(torch.empty(0, 1), torch.empty(0, dtype=torch.int64))


def given(model: Model, reserve: Examples = NOTHING) -> Given:
    """What a server has beside its state."""
    return Given(model, reserve, Learning(), 0)


# ---- cases: a method and a model of the small worlds


@dataclass(frozen=True)
class Case:
    """A method on a model; `secret` says whether clients keep what may not leave, `own` whether
    payloads differ.
    """

    method: dict[str, Any]
    model: str = "prompted"
    learning: dict[str, Any] = field(default_factory=dict)
    secret: bool = False
    own: bool = False
    reserve: int = 0
    mixture: dict[str, Any] | None = None
    upload: dict[str, Any] = field(default_factory=dict)


GATE = {"name": "pfedmoap", "experts": 2, "width": 8, "heads": 2}
MOE: dict[str, Any] = {"own": True, "reserve": 8, "mixture": {"experts": 3}}
FRAMED: dict[str, Any] = {"reserve": 8, "mixture": {"experts": 2, "mains": 0, "top": 2}}
NEXT = {
    "name": "fedmoe",
    "blend": "next-order",
    "relevance": "relative",
    "weights": "examples",
    "lam": 1.0,
    "lam_client": 0.0,
    "gate_rate": 0.05,
}
CASES = {
    "fedavg": Case({"name": "fedavg"}),
    "fedavg-probe": Case({"name": "fedavg"}, "probe"),
    "fedprox": Case({"name": "fedavg", "mu": 0.3}),
    "fedavg-personal": Case({"name": "fedavg", "personal": True}),
    "alone": Case({"name": "alone"}, secret=True),
    "alone-probe": Case({"name": "alone"}, "probe", secret=True),
    "nearest": Case(GATE, secret=True, own=True),
    "random": Case(GATE | {"select": "random", "pooling": "random"}, secret=True, own=True),
    "averaged": Case(GATE | {"gates": "averaged"}, secret=True, own=True),
    "clipped": Case(GATE, secret=True, own=True, upload={"clip": 0.5, "noise": 0.1}),
    "linear": Case(GATE | {"gate": "linear", "pooling": "mean"}, secret=True, own=True),
    "class-means": Case(
        GATE | {"experts_are": "class-means", "gates": "averaged"}, secret=True, own=True
    ),
    "gate-alone": Case(GATE | {"experts": 0, "normalised": True}, secret=True),
    "fedavg-norm": Case({"name": "fedavg"}, "norm"),
    "fedmix": Case({"name": "fedavg"}, "network", mixture={"experts": 2}),
    "fedmoe": Case({"name": "fedmoe", "lam": 0.5}, "network", **MOE),
    "fedmoe-next": Case(NEXT, "network", **MOE),
    "fedmoe-norm": Case({"name": "fedmoe", "lam": 0.5, "inner": 2}, "norm", **MOE),
    "fedmoe-strong": Case({"name": "fedmoe-strong", "temperature": 0.3}, "network", **MOE),
    "fedmoe-no-main": Case(
        NEXT | {"warmup": 5}, "network", **MOE | {"mixture": {"experts": 3, "mains": 0, "top": 2}}
    ),
    "framed": Case({"name": "fedmoe-framed", "restart": 5}, "network", **FRAMED),
    "framed-images": Case(
        {"name": "fedmoe-framed", "restart": 5, "groups": "chosen"}, "norm", **FRAMED
    ),
    "central": Case({"name": "central", "rate": 0.1}, reserve=8),
    "cent-moe": Case(
        {"name": "central", "rate": 0.3}, "network", reserve=8, mixture={"experts": 2}
    ),
    "fedavg-tuned": Case({"name": "fedavg-tuned"}, reserve=8),
    "gaussian": Case({"name": "gaussian-experts"}, secret=True, own=True),
    "gaussian-projected": Case(
        {"name": "gaussian-experts", "width": 4, "experts": 2}, "probe", secret=True, own=True
    ),
    "gaussian-chosen": Case(
        {"name": "gaussian-experts", "regimes": 0, "guard": False}, secret=True, own=True
    ),
    "gaussian-sums": Case({"name": "gaussian-experts", "select": "none", "width": 6}, secret=True),
    "gaussian-leaning": Case({"name": "gaussian-sums"}, secret=True),
    "gaussian-placebo": Case(
        {"name": "gaussian-experts", "placebo": "classes", "scatter": "diagonal"},
        secret=True,
        own=True,
    ),
    "class-vectors": Case({"name": "class-vectors"}),
    "class-vectors-white": Case({"name": "class-vectors", "whiten": True, "personal": True}),
    "fedamp": Case({"name": "fedamp"}, own=True),
    "fedet": Case({"name": "fedet", "distil_rate": 0.1}, "family", reserve=8),
    "feddf": Case({"name": "feddf", "distil_rate": 0.1}, "network", reserve=8),
    "fedotp": Case({"name": "fedotp"}, "patches", learning={"rate": 0.5}, secret=True),
    "pfedmma": Case({"name": "pfedmma"}, "adapted", secret=True),
    "fedper": Case({"name": "fedper", "tokens": 1}, secret=True),
    "fedper-network": Case({"name": "fedper"}, "network", secret=True),
    "fedpgp": Case({"name": "fedpgp", "rank": 2}, secret=True),
    "fedtpg": Case({"name": "fedtpg"}, learning={"optimizer": "adam", "rate": 0.03}),
    "heterofl": Case({"name": "heterofl", "widths": [1.0, 0.5]}, "network"),
    "fedrolex": Case({"name": "heterofl", "rolling": True}, "norm"),
    "pfedprompt": Case({"name": "pfedprompt"}, secret=True),
    "tip-adapter": Case({"name": "pfedprompt", "tuned": False, "alpha": 20.0}, secret=True),
    "promptfolio": Case({"name": "promptfolio"}, secret=True),
    "fedjets": Case({"name": "fedjets"}, "network", mixture={"experts": 3}),
}


def tiny(case: Case, **sections: dict[str, Any]) -> Config:
    """A case in the tiny world; sections are laid over it, as a config file is over its base."""
    base = {
        "name": "tiny",
        "data": {"name": "conftest:TinyData", "reserve": case.reserve},
        "model": {"name": "conftest:TinyModel", "kind": case.model},
        "method": case.method,
        "learning": {"epochs": 2, "batch": 4, "rate": 0.1} | case.learning,
        "run": {"rounds": 3, "participation": 0.8},
        "upload": case.upload,
    } | ({} if case.mixture is None else {"mixture": case.mixture})
    return resolve([(base, "tiny"), (sections, "test")])


REAL_MODELS = {
    "prompted": {"name": "prompted-clip", "context": 4},
    "probe": {"name": "linear-probe"},
    "network": {"name": "compact-cnn", "width": 2},
}


def digits(case: Case, **sections: dict[str, Any]) -> Config:
    """A case on real digits: behind the tiny CLIP, whose features are computed once as data and
    seed are left alone, or in a network of the demo's kind.
    """
    base = {
        "name": "digits",
        "data": {
            "name": "digits-scanners",
            "clients": 5,
            "scanners": 4,
            "shots": 2,
            "reserve": case.reserve,
        },
        "model": REAL_MODELS[case.model],
        "method": case.method,
        "learning": (
            {"epochs": 1, "batch": 6, "rate": 0.01 if case.model == "probe" else 0.05}
            | case.learning
        ),
        "run": {"rounds": 2},
    } | ({} if case.mixture is None else {"mixture": case.mixture})
    wide = {"width": 64, "heads": 4} if "width" in case.method else {}
    # while experts are alike, gradients are rounding
    calm = {"gate_rate": 0.001} if "gate_rate" in case.method else {}
    return resolve([(base, "digits"), ({"method": wide | calm}, "digits"), (sections, "test")])


# ---- engines


@dataclass(frozen=True)
class Wire:
    """Every order and every reply crosses as bytes, and who is asked last answers first."""

    inner: Engine

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        arrived = [decode_order(encode(order)) for order in reversed(orders)]
        most = {order.client: order.most for order in orders}
        replies = reversed(self.inner.exchange(arrived))
        return [decode_reply(encode(reply), most[reply.client]) for reply in replies]


@dataclass(frozen=True)
class Spoilt:
    """An engine between whose clients and server replies go wrong: `spoil` returns another reply,
    or None.
    """

    inner: Engine
    spoil: Callable[[Reply], Reply | None]

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        return [
            after
            for reply in self.inner.exchange(orders)
            if (after := self.spoil(reply)) is not None
        ]


@dataclass(frozen=True)
class InOrder:
    """Clients are asked one after the other, in an order of one's own."""

    inner: Engine
    order: str

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        line = sorted(orders, key=lambda order: self.order.index(order.client))
        return [reply for order in line for reply in self.inner.exchange([order])]


# ---- runs


Wrap = Callable[[Engine], Engine]


def open_run(config: Config, path: Path) -> RunDir:
    """The run's folder, new or as it stands."""
    return RunDir(path) if path.exists() else RunDir.create(path, config.toml(), {})


def carry_out(
    config: Config, path: Path, wrap: Wrap = lambda engine: engine, tell: Any = lambda _: None
) -> RunDir:
    """Run an experiment, or go on with it, to its end."""
    folder = open_run(config, path)
    with opened(config, path / "private") as (job, engine, _):
        run(job, wrap(engine), config.section("run"), folder, tell)
    return folder


def job_and_engine(config: Config, path: Path) -> tuple[Job, InProcess]:
    """For tests that ask clients themselves."""
    job, sites = build(config, path)
    settings = config.section("engine")
    return job, InProcess(job, sites, settings.together, settings.workers)


# what a clock says differs between runs that are the same
TIMES = ("seconds.jsonl", "seconds.json")


def every_file(path: Path) -> dict[str, bytes]:
    """Every file of a run's folder, byte for byte, but those of times."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in TIMES)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def left_behind(folder: RunDir) -> dict[str, bytes]:
    """The same without what says where it ran and who followed it, and keys, which are new each
    time: what must not differ between engines.
    """
    where = {
        "config.toml",
        "environment.json",
        "split.json",
        "hashes.json",
        "tracked.json",
        "report.html",
    }
    return {
        name: data
        for name, data in every_file(folder.path).items()
        if name not in where and not name.endswith(".masks")
    }


def rewrite(run: Path, name: str, text: str) -> None:
    """Another text for a file that a run wrote once, as if the run had written it."""
    write(run / name, text.encode())
    hashes = read_checked(run / "hashes.json", "")
    hashes["sha256"][name] = hashlib.sha256(text.encode()).hexdigest()
    write_checked(run / "hashes.json", hashes)


def server(folder: RunDir) -> Tensors:
    """The server's state after the last round."""
    found = folder.load()
    assert found is not None
    return found[1]


def same_bits(one: Tensors, other: Tensors) -> bool:
    return pack(one) == pack(other)


@pytest.fixture(scope="session", autouse=True)
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One thread, in processes that tests start, too; image features kept for this session alone;
    and no waiting for a disk that nobody unplugs.

    That a file is flushed before it gets its name is held by test_crash.py, in processes without
    this.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("FEDEXPERTS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("os.fsync", lambda _: None)
        yield


Remembered = Callable[[Config], RunDir]


@pytest.fixture(scope="session")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Remembered:
    """The finished run of an experiment, carried out once a session; for those who only look at
    it.
    """
    runs: dict[str, RunDir] = {}

    def find(config: Config) -> RunDir:
        text = config.toml()
        if text not in runs:
            runs[text] = carry_out(config, tmp_path_factory.mktemp("remembered") / "run")
        return runs[text]

    return find


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server and three sites that run; whoever changes something of it puts it back."""
    from federated import SITES, Federation

    made = Federation(tmp_path_factory.mktemp("federation"), Path(os.environ["FEDEXPERTS_CACHE"]))
    with made.running(SITES):
        yield made


def characters() -> Any:
    """A CLIP's tokenizer of one token a character, but for the words of "a photo of"."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        "ph",
        "pho",
        "phot",
        "photo</w>",
        "of</w>",
    ]
    merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"), ("o", "f</w>")]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of every set of the papers, each in a folder of its name."""
    datasets = pytest.importorskip("datasets")
    home = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
        datasets.disable_progress_bars()
        for name in SETS:
            written(name, home / name)
        yield home
