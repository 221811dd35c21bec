"""The papers' sets, on copies of a few rows with the columns of their pages; and our splits beside
flwr-datasets'.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from papersets import EACH, GROUPS, NAMES, OUT, SENTIMENT, WORDS, png, sight
from PIL import Image

from fedexperts.config import ConfigError, parse
from fedexperts.data import split
from fedexperts.data.examples import words
from fedexperts.data.federation import Federation
from fedexperts.data.hub import Hub
from fedexperts.data.sets import OFFICE, SETS
from fedexperts.tensors import rng

datasets = pytest.importorskip("datasets")

DOCUMENT = Path(__file__).parents[1] / "docs/data.md"
every_set = pytest.mark.parametrize("name", SETS)


def word(dataset: str, name: str) -> str:
    return SENTIMENT[name] if dataset == "sentiment140" else WORDS.get(name, name.replace("_", " "))


def load(copies: Path, dataset: str, seed: int = 0, **options: Any) -> Federation:
    return Hub(
        dataset=dataset, **({"path": str(copies / dataset), "side": 8, "clients": 2} | options)
    ).load(seed)


def said(dataset: str, example: torch.Tensor | str) -> str:
    """A zero-shot classifier: the class, in words, that an image or text seems to be of."""
    if isinstance(example, str):
        name = example.removeprefix("so ").partition(",")[0]
    else:
        name = NAMES[dataset][int(example.float().mean()) // 9]
    return "" if name in OUT else word(dataset, name)


def whole(copies: Path, dataset: str) -> tuple[int, int]:
    """Hits of the zero-shot classifier, and examples, in all rows of the papers' classes, as they
    were written.
    """
    rows = [
        (n, row) for n, name in enumerate(NAMES[dataset]) for row in range(EACH) if name not in OUT
    ]
    return sum(sight(n, row) == n for n, row in rows), len(rows)


def ways(dataset: str) -> list[dict[str, Any]]:
    """Every partition that a set can have, with its own parts and with pooled ones."""
    partitions = ["pathological", "dirichlet", "dominant"]
    partitions += ["dirichlet-in-domains", "natural"] if dataset in GROUPS else []
    few = dataset == "sentiment140"  # classes and examples of the copy
    classes = len(set(NAMES[dataset]) - OUT)
    return [
        {
            "partition": way,
            "given": given,
            "clients": (
                {
                    "pathological": 2 - few,
                    "dominant": classes,
                    "dirichlet-in-domains": 6 - 2 * few,
                }.get(way, 2)
            ),
        }
        for way in partitions
        for given in (True, False)
    ]


@every_set
def test_zero_shot_of_a_split_is_that_of_the_whole(copies: Path, name: str) -> None:
    """Pitfall 1: images keep their own labels, labels their own words, and nobody is lost, whatever
    the split.
    """
    hits, count = whole(copies, name)
    for way in ways(name):
        made = load(copies, name, **way)
        held = [
            place
            for own in made.parts.values()
            for index in own.named().values()
            for place in index.tolist()
        ]
        right = [
            said(name, made.inputs[place]) == made.classes[int(made.labels[place])]
            for place in held
        ]
        assert (sum(right), len(held)) == (hits, count), way
        assert made.classes == tuple(word(name, other) for other in NAMES[name] if other not in OUT)


@every_set
def test_a_seed_is_a_split_and_another_is_another(copies: Path, name: str) -> None:
    for way in ways(name)[::2]:
        one, same, other = (load(copies, name, seed, **way).manifest() for seed in (0, 0, 1))
        assert one == same
        assert one["clients"] != other["clients"]


def test_pathological_clients_share_no_class_and_train_on_k_of_each(copies: Path) -> None:
    made = load(copies, "oxford-pets", shots=3)
    classes = [
        {place for place, n in enumerate(map(sum, zip(*parts.values(), strict=True))) if n}
        for parts in made.counts().values()
    ]
    assert [len(own) for own in classes] == [2, 2]
    assert not classes[0] & classes[1]
    assert all(n in (0, 3) for parts in made.counts().values() for n in parts["train"])


def test_parts_of_the_set_stay_and_pooled_ones_are_drawn(copies: Path) -> None:
    """Food-101 calls its test images "validation"."""
    for given in (True, False):
        made = load(copies, "food101", given=given)
        part = {list(made.files)[place]: part for place, (_, part) in made.holders().items()}
        tested = {name for name, use in part.items() if use == "test"}
        assert (tested == {name for name in part if name.startswith("validation/")}) == given


@every_set
def test_no_seed_learns_from_what_another_tests_on(copies: Path, name: str) -> None:
    for way in ways(name):
        tested, learned = set(), set()
        for seed in range(3):
            made = load(copies, name, seed, reserve=1, **way)
            files = list(made.files) or list(made.inputs)
            for place, (_, part) in made.holders().items():
                (tested if part == "test" else learned).add(files[place])
        assert tested, way
        assert not tested & learned, way


def test_a_client_that_got_nothing_to_test_on_takes_nothing_from_what_others_learn(
    copies: Path,
) -> None:
    few = {"partition": "dirichlet", "clients": 20, "valid": 0.0}  # four examples each
    with pytest.raises(ValueError, match="has no example in test: it must have at least 1"):
        load(copies, "cifar10", 2, **few)


def test_a_pooled_sets_parts_have_the_shares_that_are_asked_for(copies: Path) -> None:
    made = load(copies, "cifar10", given=False, partition="dirichlet", valid=0.2, test=0.3)
    parts = [part for _, part in made.holders().values()]
    assert Counter(parts) == {"train": 40, "valid": 16, "test": 24}


def test_clients_of_a_domain_have_its_images_alone(copies: Path) -> None:
    made = load(copies, "office-caltech10", partition="dirichlet-in-domains", clients=7, alpha=0.3)
    assert Counter(made.domains.values()) == {"amazon": 3, "dslr": 2, "webcam": 2}
    domains = GROUPS["office-caltech10"][1]
    for place, (client, _) in made.holders().items():
        row = int(list(made.files)[place].partition("/")[2]) // 10
        assert domains[row % 3] == made.domains[client] == client.rpartition("-")[0]


def test_a_writer_is_a_client_or_with_others_but_never_in_two(copies: Path) -> None:
    alone = load(copies, "femnist", partition="natural", clients=0)
    assert list(alone.parts) == GROUPS["femnist"][1]
    dealt = load(copies, "femnist", partition="natural", clients=2)
    homes: dict[int, set[str]] = {}
    for place, (client, _) in dealt.holders().items():
        writer = int(list(dealt.files)[place].partition("/")[2]) // 4 % 4
        homes.setdefault(writer, set()).add(client)
    assert all(len(own) == 1 for own in homes.values())
    assert {client for own in homes.values() for client in own} == {"site-0", "site-1"}
    with pytest.raises(ValueError, match="0 have 99 examples, for 2 clients"):
        load(copies, "femnist", partition="natural", least=99)


def test_a_class_is_kept_by_its_name_or_its_words_in_the_order_asked_for(copies: Path) -> None:
    made = load(
        copies, "domainnet", classes=("wine glass", "axe", "ice_cream", "bird"), per_class=7
    )
    assert made.classes == ("wine glass", "axe", "ice cream", "bird")
    assert Counter(made.labels.tolist()) == dict.fromkeys(range(4), 7)
    named = [
        NAMES["domainnet"][int(file.partition("/")[2]) % 11].replace("_", " ")
        for file in made.files
    ]
    assert named == [made.classes[label] for label in made.labels.tolist()]
    assert made.notes == (
        "Left out, as of other classes: 140 of 220 examples.",
        "Left out, by per_class or least: 52 of 80 examples.",
    )
    with pytest.raises(
        ValueError, match="'wineglass' is no class of domainnet; did you mean 'wine"
    ):
        load(copies, "domainnet", classes=("wineglass",))


def test_a_folder_of_the_same_name_is_the_same_class() -> None:
    for name, known in SETS.items():
        for other in set(NAMES[name]) - OUT - set(known.words):
            assert words(other) == word(name, other)


def test_a_split_is_taken_up_and_another_copy_is_refused(copies: Path, tmp_path: Path) -> None:
    first = load(copies, "dtd")
    (tmp_path / "split.json").write_text(json.dumps(first.manifest()))
    again = load(copies, "dtd", seed=5, split=str(tmp_path / "split.json"), side=16)
    assert {c: own.train.tolist() for c, own in again.parts.items()} == {
        c: own.train.tolist() for c, own in first.parts.items()
    }
    with pytest.raises(ValueError, match="its classes are"):
        load(copies, "cifar10", split=str(tmp_path / "split.json"))


def test_what_save_to_disk_wrote_is_a_copy_too(copies: Path, tmp_path: Path) -> None:
    datasets.load_dataset(str(copies / "cifar10")).save_to_disk(tmp_path / "cifar10")
    assert load(tmp_path, "cifar10").manifest() == load(copies, "cifar10").manifest()


def test_a_copy_that_is_not_what_the_page_documents_is_refused(
    copies: Path, tmp_path: Path
) -> None:
    path = str(copies / "dtd")
    with pytest.raises(
        ValueError,
        match=("uoft-cs/cifar10 documents: train has the columns image, label, not img. Expected"),
    ):
        load(copies, "cifar10", path=path)
    with pytest.raises(ValueError, match="no such folder, seen from .*; use a copy of dtd"):
        load(copies, "dtd", path="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        load(tmp_path, "dtd", path=str(tmp_path / "empty"))
    plain = datasets.Dataset.from_dict({"image": [png(3)], "label": [0]})
    (tmp_path / "plain").mkdir()
    plain.to_parquet(tmp_path / "plain" / "train.parquet")
    with pytest.raises(ValueError, match="label is a column of numbers without class names"):
        load(tmp_path, "dtd", path=str(tmp_path / "plain"))
    plain.to_parquet(tmp_path / "plain" / "extra-0.parquet")


def test_a_set_that_is_not_here_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copies: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="Type: fedexperts fetch dtd, or give a copy"):
        load(copies, "dtd", path="")
    with pytest.raises(ValueError, match="not on the hub with its domains.*docs/data.md says how"):
        load(copies, "office-caltech10", path="")


def test_office_caltech_is_made_as_the_documents_say(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = DOCUMENT.read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    for name in OFFICE.split():
        for domain in ("amazon", "dslr"):
            folder = tmp_path / "office_caltech_10" / domain / name
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (9, 9), (i, 9, 9)).save(folder / f"frame_{i}.jpg")
    exec(recipe, {})
    made = load(
        tmp_path, "office-caltech10", path="office", partition="dirichlet-in-domains", clients=4
    )
    assert made.classes == tuple(name.replace("_", " ") for name in OFFICE.split())
    assert Counter(made.domains.values()) == {"amazon": 2, "dslr": 2}
    assert len(made.inputs) == 120


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("dataset = 'flowers'", "dataset = 'flowers': no such set; use flowers102"),
        (
            "dataset = 'dtd'\nclients = 0",
            "clients = 0 with partition = 'pathological'; expected at least 1",
        ),
        (
            "dataset = 'dtd'\npartition = 'natural'",
            "dtd does not say whose an example is; expected",
        ),
        (
            "dataset = 'dtd'\npartition = 'iid'",
            "data.partition = 'iid': input should be 'pathological', 'dirichlet'",
        ),
        ("", "data.dataset is missing .one of flowers102"),
    ],
)
def test_options_that_do_not_fit_are_said_at_the_door(options: str, says: str) -> None:
    text = (
        f"name = 'x'\n[data]\nname = 'hub'\n{options}\n[model]\nname ="
        " 'prompted-clip'\n[method]\nname = 'pfedmoap'\n"
    )
    with pytest.raises(ConfigError, match=says):
        parse(text, "here")


def test_too_many_clients_are_said_with_the_set(copies: Path) -> None:
    with pytest.raises(
        ValueError,
        match="data.partition = 'pathological': 4 classes to 3 clients: it must be 1 to 2",
    ):
        load(copies, "dtd", clients=3)


# ---- beside flwr-datasets: why our splits are used (docs/data.md)

LABELS = torch.arange(1000) % 10


def partitioned(partitioner: Any, **columns: list[Any]) -> list[list[int]]:
    """The rows of each of a partitioner's clients."""
    table = datasets.Dataset.from_dict(
        {"row": list(range(len(next(iter(columns.values()))))), **columns}
    )
    partitioner.dataset = table
    return [sorted(partitioner.load_partition(i)["row"]) for i in range(partitioner.num_partitions)]


def test_our_natural_split_is_flowers() -> None:
    flower = pytest.importorskip("flwr_datasets.partitioner")
    writers = [f"w{i * 7 % 13}" for i in range(100)]
    theirs = partitioned(flower.NaturalIdPartitioner(partition_by="writer"), writer=writers)
    assert [own.tolist() for own in split.natural(writers).values()] == theirs


def test_flowers_pathological_clients_share_classes_and_ours_do_not() -> None:
    flower = pytest.importorskip("flwr_datasets.partitioner")
    with pytest.warns(UserWarning, match=r"Classes: \[6, 7, 8, 9\] will NOT be used"):
        theirs = partitioned(
            flower.PathologicalPartitioner(5, "y", 2, "deterministic"), y=LABELS.tolist()
        )
    ours = split.pathological(LABELS, 5, rng(0, "x"))
    shared = [
        Counter(c for own in hands for c in set(LABELS[own].tolist())) for hands in (theirs, ours)
    ]
    assert max(shared[0].values()) == 2
    assert set(shared[1].values()) == {1}
    assert len(shared[1]) == 10


def shares(hands: list[Any], labels: torch.Tensor) -> Counter[tuple[int, ...]]:
    """How many clients have so many examples of each class."""
    return Counter(
        tuple(labels[own].bincount(minlength=int(labels.max()) + 1).tolist()) for own in hands
    )


def test_our_dominant_split_is_flowers_with_a_table_that_says_so() -> None:
    flower = pytest.importorskip("flwr_datasets.partitioner")
    labels = LABELS % 5
    table = np.full((5, 10), 0.05)
    table[np.arange(10) % 5, np.arange(10)] = 0.8
    theirs = partitioned(flower.DistributionPartitioner(table, 10, 5, "y", 0), y=labels.tolist())
    ours = split.dominant(labels, 10, 0.8, rng(0, "x"))
    assert shares(ours, labels) == shares(theirs, labels)
    assert set(shares(ours, labels).values()) == {2}


@pytest.mark.parametrize(
    ("clients", "share", "within"),
    [(5, 1.0, 0), (10, 0.2, 0), (10, 0.5, 2), (50, 0.6, 2), (7, 0.5, 8)],
)
def test_one_class_has_its_share_of_a_dominated_client(
    clients: int, share: float, within: int
) -> None:
    """And clients are equal in size, and nobody is left out."""
    labels = torch.arange(1000) % 5
    hands = split.dominant(labels, clients, share, rng(1, "x"))
    assert torch.cat(hands).sort().values.tolist() == list(range(1000))
    assert {len(own) for own in hands} <= {1000 // clients, 1000 // clients + 1}
    owned = [int(labels[own].bincount(minlength=5).max()) - share * len(own) for own in hands]
    assert max(map(abs, owned)) <= within + 1
    others = [c for own in hands for c in sorted(labels[own].bincount(minlength=5).tolist())[:-1]]
    assert max(others) <= (1 - share) / 4 * len(hands[0]) + within + 2


def test_a_share_that_cannot_be_is_refused() -> None:
    for clients, share, says in (
        (2, 0.1, "a share of 0.2 to 1"),
        (2000, 0.5, "1 to 1000 clients"),
        (2, 0.9, "smaller"),
    ):
        with pytest.raises(ValueError, match=says):
            split.dominant(LABELS % 5, clients, share, rng(0, "x"))


def test_flowers_dirichlet_is_as_skewed_as_ours_but_uneven_in_size() -> None:
    flower = pytest.importorskip("flwr_datasets.partitioner")

    def skew(hands: list[Any]) -> float:
        """The share of a client's largest class, on average over clients."""
        return float(
            np.mean([max(Counter(LABELS[own].tolist()).values()) / len(own) for own in hands])
        )

    draws = range(20)
    theirs = [
        partitioned(flower.DirichletPartitioner(10, "y", 0.5, 1, seed=i), y=LABELS.tolist())
        for i in draws
    ]
    ours = [split.dirichlet(LABELS, 10, 0.5, rng(i, "x")) for i in draws]
    assert abs(np.mean([*map(skew, theirs)]) - np.mean([*map(skew, ours)])) < 0.05
    assert all({len(own) for own in hands} == {100} for hands in ours)
    assert min(max(map(len, hands)) / min(map(len, hands)) for hands in theirs) > 1.5
