"""Federations, splits, reserves and the digits: who holds what, and that images keep their
labels.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from fedexperts.config.checking import checked
from fedexperts.data import DATA
from fedexperts.data.digits import (
    CLASSES,
    PAGES,
    SCANNERS,
    DigitsPathological,
    DigitsScanners,
    digits,
    faint,
    inverted,
    slanted,
)
from fedexperts.data.federation import Federation, Parts, Source
from fedexperts.data.split import (
    apportion,
    cut,
    deal,
    dirichlet,
    few,
    pathological,
    reserve,
    shares,
)
from fedexperts.tensors import rng

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)


@st.composite
def labelled(draw: st.DrawFn) -> Tensor:
    """3 to 200 labels of up to seven classes."""
    numbers = torch.Generator().manual_seed(draw(seeds))
    return torch.randint(
        0, draw(st.integers(1, 7)), (draw(st.integers(3, 200)),), generator=numbers
    )


TEXTS = tuple(
    f"{number} cats" for number in ["one", "two", "three", "four", "five", "six", "seven", "eight"]
)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def parts(train: Iterable[int], valid: Iterable[int], test: Iterable[int]) -> Parts:
    return Parts(train=ints(*train), valid=ints(*valid), test=ints(*test))


def small(**changed: object) -> Federation:
    """Eight grey images of two classes at two clients."""
    whole = {
        "inputs": torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 2, 2),
        "labels": ints(0, 1, 0, 1, 0, 1, 0, 1),
        "classes": ("cat", "dog"),
        "parts": {"b": parts([4, 5], [], [7]), "a": parts([0, 1], [2], [3])},
        "domains": {"b": "night", "a": "day"},
        "reserve": ints(6),
    }
    return Federation(**(whole | changed))  # type: ignore[arg-type]


def every(federation: Federation) -> Tensor:
    return torch.cat(
        [index for each in federation.parts.values() for index in each.named().values()]
    )


def learned(federation: Federation, client: str) -> Tensor:
    """All that a client trains and validates on."""
    own = federation.parts[client]
    return torch.cat([own.train, own.valid])


def held(federation: Federation, client: str) -> set[int]:
    return set(learned(federation, client).tolist())


# A federation


def test_clients_are_sorted_by_name_whatever_the_order_given() -> None:
    assert list(small().parts) == list(small().domains) == ["a", "b"]


def test_counts_are_of_each_client_part_and_class() -> None:
    assert small().counts() == {
        "a": {"train": [1, 1], "valid": [1, 0], "test": [0, 1]},
        "b": {"train": [1, 1], "valid": [0, 0], "test": [0, 1]},
    }


def test_the_reserve_is_counted_by_class_and_empty_unless_given() -> None:
    assert small(reserve=ints(6)).reserve_counts() == [1, 0]
    given = small()
    bare = Federation(given.inputs, given.labels, given.classes, given.parts, given.domains)
    assert bare.reserve_counts() == [0, 0]


@pytest.mark.parametrize(
    ("reserve", "said"),
    [
        (ints(6, 2), "the reserve has example 2, and client 'a' has it in valid"),
        (ints(7, 6), "the reserve has example 7, and client 'b' has it in test"),
        (ints(4), "the reserve has example 4, and client 'b' has it in train"),
        (ints(6, 6), "the reserve has example 6 more than once"),
        (ints(8), "the reserve: index 8 is out of range, it must be 0 to 7"),
        (ints(-2), "the reserve: index -2 is out of range"),
        (ints(6).int(), r"the reserve: indices are torch.int32 \[1\]"),
        (ints(6)[None], r"the reserve: indices are torch.int64 \[1, 1\]"),
    ],
)
def test_what_is_wrong_with_the_reserve_is_said_with_who_else_has_it(
    reserve: Tensor, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        small(reserve=reserve)


def test_a_manifest_is_plain_and_changes_with_a_pixel_a_text_a_label_an_index_a_domain_and_the_reserve() -> (  # noqa: E501
    None
):
    base = small()
    pixel = base.inputs.clone()
    pixel[6, 0, 0, 0] += 1
    others = [
        small(inputs=pixel),
        small(labels=ints(0, 1, 0, 1, 0, 1, 1, 1)),
        small(parts={"a": parts([0, 1], [2], [3]), "b": parts([4], [5], [7])}),
        small(domains={"a": "day", "b": "day"}),
        small(reserve=ints()),
        small(inputs=TEXTS),
        small(inputs=(*TEXTS[:-1], "a cat?")),
    ]
    texts = [json.dumps(each.manifest()) for each in [base, *others]]
    assert len(set(texts)) == len(texts)
    assert json.dumps(small().manifest()) == texts[0]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (
            parts([0, 1], [2], [1]),
            parts([4], [], [5]),
            "client 'a' has example 1 in test, and client 'a' has it in train",
        ),
        (
            parts([0, 2], [2], [3]),
            parts([4], [], [5]),
            "client 'a' has example 2 in valid, and client 'a' has it in train",
        ),
        (
            parts([0], [1], [2]),
            parts([3], [], [2]),
            "client 'b' has example 2 in test, and client 'a' has it in test",
        ),
        (
            parts([0, 0], [1], [2]),
            parts([3], [], [4]),
            "client 'a' has example 0 in train, and client 'a' has it in train",
        ),
        (
            parts([0], [1], [2]),
            parts([3], [8], [4]),
            "client 'b', valid: index 8 is out of range, it must be 0 to 7",
        ),
        (parts([0], [1], [-1]), parts([3], [], [4]), "client 'a', test: index -1 is out of range"),
        (parts([], [1], [2]), parts([3], [], [4]), "client 'a' has no example in train"),
        (parts([0], [1], [2]), parts([3], [], []), "client 'b' has no example in test"),
        (
            parts([0], [1], [2]),
            Parts(ints(3), ints(), ints(4).int()),
            r"client 'b', test: indices are torch.int32 \[1\]",
        ),
    ],
)
def test_what_is_wrong_with_an_index_is_said_with_client_and_part(
    a: Parts, b: Parts, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        small(parts={"b": b, "a": a})


NO_NAMES = [
    "",
    "a.b",
    "a/b",
    "a\\b",
    "a b",
    "a\tb",
    "a\u00a0b",
    "-a",
    "a\0",
    "..",
    "a\n",
    "a\x1b[31m",
    "a\ud800",
    "a:b",
]
NO_NAMES += [
    "a\u202eb",
    "\u2066a",
    "a\u200e",
    "a\ufeff",
    "a" * 65,
    "\U0001f600" * 60,
    "CON",
    "nul",
    "Com1",
    "LPT9",
    "\uff23\uff2f\uff2e",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_cannot_name_a_tensor_and_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="client name"):
        small(parts={name: parts([0], [], [1])}, domains={name: "day"})


@pytest.mark.parametrize(
    ("one", "other"),
    [("clinic", "Clinic"), ("Straße", "STRASSE"), ("é", "e\u0301"), ("ab", "a\u200db")],
)
def test_two_names_that_some_system_takes_for_one_are_refused(one: str, other: str) -> None:
    with pytest.raises(
        ValueError, match="are one name where upper and lower case are the same: change one"
    ):
        small(
            parts={one: parts([0], [], [1]), other: parts([2], [], [3])},
            domains={one: "day", other: "day"},
        )


@pytest.mark.parametrize(
    "name",
    ["clinic-1", "a" * 64, "CONrad", "Kraków", "東京", "\u0645\u06cc\u200c\u062f", "_", "a-"],
)
def test_a_name_in_any_script_is_accepted(name: str) -> None:
    assert list(small(parts={name: parts([0], [], [1])}, domains={name: "day"}).parts) == [name]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": torch.zeros(8, 3, 2, 2)}, r"images are torch.float32 \[8, 3, 2, 2\]"),
        ({"inputs": torch.zeros(8, 1, 2, 2, dtype=torch.uint8)}, r"must be uint8 \[N, 3, H, W\]"),
        ({"inputs": TEXTS[:7]}, r"labels are torch.int64 \[8\]: they must be int64 \[7\]"),
        (
            {"inputs": list(TEXTS)},
            "inputs are a list: they must be images in a tensor, or a tuple of texts",
        ),
        (
            {"inputs": (*TEXTS[:7], " ")},
            "example 7 is ' ': it must be a text with at least one word",
        ),
        ({"inputs": (0, *TEXTS[:7])}, "example 0 is 0"),
        ({"labels": ints(0, 1)}, r"must be int64 \[8\]"),
        ({"labels": torch.zeros(8)}, "labels are torch.float32"),
        ({"labels": ints(0, 1, 0, 2, 0, 1, 0, 1)}, "example 3 has label 2: it must be 0 to 1"),
        ({"labels": ints(0, 1, 0, 0, -1, 1, 0, 1)}, "example 4 has label -1"),
        ({"classes": ("cat", "cat")}, "each only once"),
        ({"classes": ("cat", "")}, "not empty"),
        ({"domains": {"a": "day"}}, r"clients \['b'\] are in only one of parts and domains"),
        ({"parts": {}, "domains": {}}, "0 clients"),
    ],
)
def test_wrong_inputs_labels_classes_and_domains_are_refused(
    changed: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        small(**changed)


# Splits of any labels


@quick
@given(st.integers(0, 500), st.lists(st.floats(0.01, 9), min_size=1, max_size=6))
def test_apportioned_sizes_sum_to_the_total_and_are_less_than_one_from_exact(
    total: int, weights: list[float]
) -> None:
    sizes = apportion(total, weights)
    assert sum(sizes) == total
    assert all(
        abs(size - total * weight / sum(weights)) < 1
        for size, weight in zip(sizes, weights, strict=True)
    )


def test_shares_are_lifted_to_the_least_and_a_weight_of_zero_gets_nothing() -> None:
    assert apportion(10, [0.96, 0.02, 0.02], least=1) == [8, 1, 1]
    assert apportion(3, [0.8, 0, 0.2], least=1) == [2, 0, 1]
    with pytest.raises(ValueError, match="2 examples cannot give at least 1"):
        apportion(2, [0.5, 0.2, 0.3], least=1)


@quick
@given(labelled(), st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), seeds)
def test_dealt_pieces_have_their_sizes_and_the_whole_class_distribution(
    labels: Tensor, weights: list[int], seed: int
) -> None:
    sizes = apportion(len(labels), weights)
    pieces = deal(labels, sizes, rng(seed, "deal"))
    assert [len(piece) for piece in pieces] == sizes
    assert torch.equal(torch.cat(pieces).sort().values, torch.arange(len(labels)))
    whole = labels.bincount(minlength=7)
    for size, piece in zip(sizes, pieces, strict=True):
        assert ((labels[piece].bincount(minlength=7) - whole * size / len(labels)).abs() < 2).all()


def test_sizes_that_do_not_sum_to_the_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes \[1, 1\] sum to 2: it must be 3"):
        deal(ints(0, 0, 0), [1, 1], rng(0, "deal"))


@quick
@given(labelled(), st.integers(1, 9), st.floats(1e-4, 1e4), seeds)
def test_a_dirichlet_split_gives_every_example_once_and_totals_within_one(
    labels: Tensor, clients: int, alpha: float, seed: int
) -> None:
    clients = min(clients, len(labels))
    hands = dirichlet(labels, clients, alpha, rng(seed, "split"))
    assert torch.equal(torch.cat(hands).sort().values, torch.arange(len(labels)))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    again = dirichlet(labels, clients, alpha, rng(seed, "split"))
    assert all(torch.equal(one, other) for one, other in zip(hands, again, strict=True))


def favourite(alpha: float) -> float:
    """Mean share of a client's most frequent class: ten classes of 45 examples, five clients,
    twenty seeds.
    """
    labels = torch.arange(450) % 10
    hands = [hand for seed in range(20) for hand in dirichlet(labels, 5, alpha, rng(seed, "split"))]
    return float(np.mean([int(labels[hand].bincount().max()) / len(hand) for hand in hands]))


def test_a_smaller_alpha_skews_a_split_more() -> None:
    found = [favourite(alpha) for alpha in (0.05, 0.3, 1, 1000)]
    assert all(more > less + 0.05 for more, less in pairwise(found))
    assert found[-1] < 0.16  # nearly even: 0.1 is exact
    # wishes of exactly nothing; 0.5 is the most that equal totals allow here
    assert favourite(1e-4) > 0.35


def test_balancing_keeps_most_of_the_drawn_skew() -> None:
    # Dirichlet(0.3) over ten classes: 0.45. Drawing until classes run out gives 0.32; fitted to the
    # supply first, 0.35.
    assert favourite(0.3) > 0.34


@pytest.mark.parametrize(
    ("clients", "alpha"),
    [(0, 1.0), (5, 1.0), (2, 0.0), (2, -1.0), (2, float("nan")), (2, float("inf"))],
)
def test_impossible_dirichlet_splits_are_refused(clients: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="it must be 1 to 4 clients, and alpha above 0"):
        dirichlet(ints(0, 1, 0, 1), clients, alpha, rng(0, "split"))


@quick
@given(st.integers(1, 5), seeds)
def test_pathological_classes_are_disjoint_and_even(clients: int, seed: int) -> None:
    labels = torch.arange(60) % 10
    owned = [
        set(labels[hand].tolist()) for hand in pathological(labels, clients, rng(seed, "split"))
    ]
    assert sorted(name for names in owned for name in names) == list(range(10))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_a_client_with_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="10 classes to 6 clients: it must be 1 to 5"):
        pathological(torch.arange(60) % 10, 6, rng(0, "split"))


@quick
@given(
    labelled(),
    st.sampled_from([(0.2, 0.3), (0.0, 0.5), (0.01, 0.01), (0.45, 0.5), (0.0, 0.99)]),
    seeds,
)
def test_a_client_is_cut_into_parts_that_are_not_empty(
    labels: Tensor, cuts: tuple[float, float], seed: int
) -> None:
    own = cut(labels, *cuts, rng(seed, "cut"))
    assert torch.equal(
        torch.cat(list(own.named().values())).sort().values, torch.arange(len(labels))
    )
    assert len(own.train)
    assert len(own.test)
    assert bool(len(own.valid)) == (cuts[0] > 0)


def test_the_parts_of_a_client_have_the_shares_asked_for() -> None:
    own = cut(torch.arange(100) % 4, 0.2, 0.3, rng(0, "cut"))
    assert {part: len(index) for part, index in own.named().items()} == {
        "train": 50,
        "valid": 20,
        "test": 30,
    }


def test_no_class_is_always_in_the_same_part() -> None:
    tested = [int(cut(ints(0, 1, 2), 0.2, 0.3, rng(seed, "cut")).test) for seed in range(30)]
    assert {*tested} == {0, 1, 2}


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (-0.1, 0.5), (0.2, 0.0), (0.9, 0.3)])
def test_shares_that_leave_nothing_to_train_or_test_on_are_refused(
    valid: float, test: float
) -> None:
    with pytest.raises(ValueError, match=f"valid={valid} and test={test}"):
        shares(valid, test)


@quick
@given(labelled(), st.integers(1, 5), seeds)
def test_few_gives_each_class_its_shots_and_more_shots_hold_fewer(
    labels: Tensor, shots: int, seed: int
) -> None:
    drawn = few(labels, shots, rng(seed, "few"))
    assert torch.equal(
        labels[drawn].bincount(minlength=7), labels.bincount(minlength=7).clamp(max=shots)
    )
    assert set(drawn.tolist()) <= set(few(labels, shots + 1, rng(seed, "few")).tolist())
    assert torch.equal(few(labels, 0, rng(seed, "few")), torch.arange(len(labels)))


def test_negative_shots_are_refused() -> None:
    with pytest.raises(ValueError, match="shots is -1"):
        few(ints(0, 1), -1, rng(0, "few"))


@quick
@given(st.integers(0, 8), st.sampled_from([0, 0.1, 1, 100]), seeds)
def test_a_reserve_has_its_size_in_all_with_no_example_twice(
    size: int, alpha: float, seed: int
) -> None:
    labels = torch.tensor([3, 5, 9]).repeat_interleave(ints(8, 9, 20))
    drawn = reserve(labels, size, alpha, rng(seed, "reserve"))
    assert len(drawn) == 3 * size == len(drawn.unique())
    if not alpha:
        assert [int((labels[drawn] == name).sum()) for name in (3, 5, 9)] == [size] * 3
    assert torch.equal(drawn, reserve(labels, size, alpha, rng(seed, "reserve")))


def test_a_smaller_alpha_skews_a_reserve_more_and_a_large_one_hardly() -> None:
    labels = torch.arange(2000) % 10

    def most(alpha: float) -> float:
        """Mean share of the most frequent class."""
        drawn = [labels[reserve(labels, 20, alpha, rng(seed, "reserve"))] for seed in range(20)]
        return float(np.mean([int(own.bincount().max()) / len(own) for own in drawn]))

    found = [most(alpha) for alpha in (0.05, 0.3, 1, 1000)]
    assert all(more > less + 0.05 for more, less in pairwise(found))
    assert found[-1] < 0.16  # 0.1 is exact


@pytest.mark.parametrize(
    ("size", "alpha", "said"),
    [
        (3, 0, "class 1 has 2 examples, and the reserve takes 3: it must be at most that"),
        (4, 0.1, "the reserve takes 8 of 7 examples: it must be at most all of them"),
        (-1, 0, "size -1, alpha 0: both must be at least 0"),
        (1, -0.1, "size 1, alpha -0.1"),
        (1, float("inf"), "alpha finite"),
        (1, float("nan"), "alpha nan"),
    ],
)
def test_impossible_reserves_are_refused(size: int, alpha: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        reserve(ints(0, 0, 0, 0, 0, 1, 1), size, alpha, rng(0, "reserve"))


def test_every_draw_depends_on_its_seed() -> None:
    labels = torch.arange(200) % 10
    draws = {
        "deal": lambda seed: deal(labels, [150, 50], rng(seed, "")),
        "dirichlet": lambda seed: dirichlet(labels, 4, 0.5, rng(seed, "")),
        "pathological": lambda seed: pathological(labels, 5, rng(seed, "")),
        "cut": lambda seed: [cut(labels, 0.2, 0.3, rng(seed, "")).train],
        "few": lambda seed: [few(labels, 3, rng(seed, ""))],
        "reserve": lambda seed: [reserve(labels, 3, 0, rng(seed, ""))],
        "skewed reserve": lambda seed: [labels[reserve(labels, 3, 1, rng(seed, ""))]],
    }
    for name, draw in draws.items():
        first, second = torch.cat(draw(0)), torch.cat(draw(1))
        assert not torch.equal(first, second), name


# The digits


@cache
def loaded(source: Source) -> Federation:
    return source.load(0)


@pytest.fixture(scope="module")
def scanned() -> Federation:
    return DigitsScanners().load(4)


def test_digits_are_scikit_learns_enlarged_and_keep_their_labels() -> None:
    images, labels = digits()
    raw = load_digits()
    assert images.dtype == torch.uint8
    assert images.shape == (1797, 3, 32, 32)
    assert labels.tolist() == raw.target.tolist()
    assert (images == images[:, :1]).all()
    for place in range(0, 1797, 50):
        tiny = Image.fromarray((raw.images[place] * 255 // 16).astype(np.uint8))
        theirs = np.asarray(tiny.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(theirs - images[place, 0].numpy()).max() <= 1  # Pillow rounds twice


def test_every_image_is_its_own_digit_through_its_clients_scanner(scanned: Federation) -> None:
    plain, labels = digits()
    assert torch.equal(scanned.labels[:1797], labels)
    for scanner, scan in SCANNERS.items():
        sites = [client for client, domain in scanned.domains.items() if domain == scanner]
        own = torch.cat([learned(scanned, site) for site in sites]).sort().values
        assert torch.equal(scanned.inputs[own], scan(plain[own], 4))


def test_digits_know_their_class_as_well_after_the_split_as_before() -> None:
    plain, labels = digits()
    flat = plain[:, 0].flatten(1).float()
    means = torch.stack([flat[labels == name].mean(0) for name in range(10)])
    whole = (torch.cdist(flat, means).argmin(1) == labels).sum()
    split = DigitsScanners(scanners=1, clients=7).load(3)
    right = 0
    for own in split.parts.values():
        for index in own.named().values():
            found = torch.cdist(split.inputs[index][:, 0].flatten(1).float(), means).argmin(1)
            right += int((found == split.labels[index]).sum())
    assert right == whole


def test_the_default_scanners_use_every_digit_once_at_twenty_clients_of_equal_size(
    scanned: Federation,
) -> None:
    learned_from = torch.cat([learned(scanned, client) for client in scanned.parts])
    rest = torch.ones(1797, dtype=torch.bool)
    rest[pool()] = False
    assert torch.equal(learned_from.sort().values, rest.nonzero().flatten())
    sizes = [len(learned(scanned, client)) for client in scanned.parts]
    assert len(sizes) == 20
    assert {*sizes} <= {62, 63}
    assert scanned.classes == CLASSES
    assert scanned.classes[7] == "seven"
    assert scanned.domains["inverted-1"] == scanned.domains["inverted-17"] == "inverted"


def pool(**options: Any) -> Tensor:
    """The scans that are tested on, by their place among all."""
    whole = DigitsScanners(scanners=1, clients=1, **options).load(0)
    return whole.parts["as-scanned-0"].test


def test_no_scan_that_is_tested_on_is_learned_from_under_any_seed() -> None:
    for source in (DigitsScanners(reserve=10), DigitsPathological(), DigitsScanners(pool="sheets")):
        tests = {*pool(pool=source.pool).tolist()}
        for seed in range(3):
            made = source.load(seed)
            assert not tests & {*made.reserve.tolist()}
            for client in made.parts:
                assert not tests & held(made, client)


def test_every_scanner_reads_the_whole_pool_alike_under_every_seed() -> None:
    plain, _ = digits()
    for seed in (0, 1):
        made = DigitsScanners().load(seed)
        for scanner, scan in SCANNERS.items():
            sites = [client for client, domain in made.domains.items() if domain == scanner]
            exam = torch.cat([made.parts[site].test for site in sites]).sort().values
            assert torch.equal(made.inputs[exam], scan(plain[pool()], -1))
            assert torch.equal(made.labels[exam], made.labels[pool()])


def test_a_client_is_tested_on_fifty_scans_or_more_with_the_classes_that_it_learns(
    scanned: Federation,
) -> None:
    for client, counts in scanned.counts().items():
        assert len(scanned.parts[client].test) >= 100
        taught, tested = (torch.tensor(counts[part]).double() for part in ("train", "test"))
        assert (taught / taught.sum() - tested / tested.sum()).abs().max() < 0.05


def test_skew_is_that_of_what_clients_train_on() -> None:
    one, both = Parts(ints(0, 1), ints(2), ints(3)), Parts(ints(4, 5), ints(6), ints(7))
    made = Federation(
        torch.zeros(8, 3, 8, 8, dtype=torch.uint8),
        ints(0, 0, 1, 1, 0, 1, 1, 1),
        ("a", "b"),
        {"one": one, "both": both},
        {"one": "x", "both": "x"},
    )
    two = math.log(2)
    assert made.skew() == pytest.approx(
        {"largest": 0.75, "entropy": two / 2, "most": two, "single": 1, "clients": 2}
    )


def test_a_sheet_is_tested_on_whole_or_not_at_all() -> None:
    sheets = torch.arange(1797).tensor_split(14)
    tests = pool(pool="sheets")
    shares = [float(torch.isin(sheet, tests).double().mean()) for sheet in sheets]
    assert sorted(shares) == [0.0] * 10 + [1.0] * 4


def test_half_of_the_clients_may_number_the_classes_otherwise() -> None:
    """Images, parts and the reserve stay; what a client calls them does not."""
    plain = DigitsScanners(numberings=1, reserve=2).load(0)
    twice = DigitsScanners(numberings=2, reserve=2).load(0)
    assert torch.equal(plain.inputs, twice.inputs)
    assert torch.equal(plain.labels[plain.reserve], twice.labels[twice.reserve])
    for client, parts in plain.parts.items():
        own = torch.cat([parts.train, parts.valid, parts.test])
        assert torch.equal(own, torch.cat(list(twice.parts[client].named().values())))
        way = int(client.rpartition("-")[2]) // 4 % 2
        assert torch.equal((plain.labels[own] + 5 * way) % 10, twice.labels[own])


def test_scanners_may_number_the_classes_otherwise_and_so_does_the_reserve() -> None:
    plain = DigitsScanners(numberings=1, reserve=4).load(0)
    named = DigitsScanners(numberings=4, numbered_by="scanners", reserve=4).load(0)
    for client, parts in plain.parts.items():
        own = torch.cat(list(parts.named().values()))
        step = int(client.rpartition("-")[2]) % 4 * 10 // 4
        assert torch.equal((plain.labels[own] + step) % 10, named.labels[own])
    steps = (named.labels[named.reserve] - plain.labels[plain.reserve]) % 10
    assert torch.equal(steps.bincount(minlength=8)[[0, 2, 5, 7]], torch.tensor([10] * 4))


def test_pages_may_lie_otherwise_in_each_scanner() -> None:
    turned = DigitsScanners(differ="pages").load(0)
    images, _ = digits()
    kinds = {name: turned.parts[f"{name}-{i}"].train for i, name in enumerate(PAGES)}
    upright, down, mirror, negative = (turned.inputs[own] for own in kinds.values())
    assert torch.equal(upright, images[kinds["upright"]])
    assert torch.equal(down.flip(2, 3), images[kinds["upside-down"]])
    assert torch.equal(mirror.flip(3), images[kinds["mirrored"]])
    assert torch.equal(255 - negative, images[kinds["negative"]])


def test_each_scanner_sees_all_digits_alike(scanned: Federation) -> None:
    for scanner in SCANNERS:
        total = sum(
            torch.tensor(list(counts.values())).sum(0)
            for client, counts in scanned.counts().items()
            if scanned.domains[client] == scanner
        )
        assert (total - scanned.labels.bincount() / 4).abs().max() < 2


@settings(quick, max_examples=12)
@given(st.integers(1, 40), st.integers(1, 4), st.floats(0.05, 10), st.integers(0, 5), seeds)
def test_any_scanners_federation_is_sound_and_balanced(
    clients: int, scanners: int, alpha: float, shots: int, seed: int
) -> None:
    source = DigitsScanners(clients=clients, scanners=scanners, alpha=alpha, shots=shots)
    made = source.load(seed)  # which checks that it is disjoint
    assert sorted(made.parts) == sorted(
        f"{list(SCANNERS)[i % scanners]}-{i}" for i in range(clients)
    )
    sizes = [len(own.valid) for own in made.parts.values()]
    assert max(sizes) - min(sizes) <= 1
    if shots:
        assert max(max(counts["train"]) for counts in made.counts().values()) <= shots
    else:
        assert sum(len(learned(made, client)) for client in made.parts) == 1797 - 539


def test_images_go_to_scanners_in_proportion_to_their_clients() -> None:
    made = DigitsScanners(clients=5, scanners=4).load(0)
    sizes = [len(learned(made, client)) for client in made.parts]
    assert max(sizes) - min(sizes) <= 2
    assert [client for client, domain in made.domains.items() if domain == "as-scanned"] == [
        "as-scanned-0",
        "as-scanned-4",
    ]


def test_pathological_sites_share_no_class_and_train_on_their_shots() -> None:
    made = DigitsPathological().load(0)
    seen: list[int] = []
    for counts in made.counts().values():
        own = [name for name, count in enumerate(counts["train"]) if count]
        assert [counts["train"][name] for name in own] == [16, 16]
        assert all((count > 0) == (name in own) for name, count in enumerate(counts["test"]))
        seen += own
    assert sorted(seen) == list(range(10))
    assert torch.equal(made.inputs, digits()[0])
    assert set(made.domains.values()) == {"as-scanned"}


@pytest.mark.parametrize("name", ["digits-pathological", "digits-scanners", "reviews"])
def test_equal_seeds_give_equal_federations_and_other_seeds_others(name: str) -> None:
    one, same, other = (DATA[name]().load(seed).manifest() for seed in (1, 1, 2))
    assert one == same
    assert one["clients"] != other["clients"]


def test_one_seed_reaches_every_draw() -> None:
    # each time with options that leave all earlier draws nothing to decide
    scanner = [held(DigitsScanners(clients=4).load(seed), "as-scanned-0") for seed in (0, 1)]
    assert scanner[0] != scanner[1]
    label = [
        held(DigitsScanners(scanners=1, clients=2).load(seed), "as-scanned-0") for seed in (0, 1)
    ]
    assert label[0] != label[1]
    owned = [DigitsPathological().load(seed).counts()["site-0"]["test"] for seed in range(3)]
    assert len({tuple(count > 0 for count in counts) for counts in owned}) > 1
    part = [
        set(DigitsPathological(clients=1).load(seed).parts["site-0"].valid.tolist())
        for seed in (0, 1)
    ]
    exam = [
        set(DigitsScanners(scanners=1, clients=2).load(seed).parts["as-scanned-0"].test.tolist())
        for seed in (0, 1)
    ]
    assert exam[0] != exam[1]
    assert part[0] != part[1]
    # one image is not to train on
    nearly_all = DigitsPathological(clients=1, shots=1, valid=0, test=0.0005)
    shot = [set(nearly_all.load(seed).parts["site-0"].train.tolist()) for seed in (0, 1)]
    assert len(shot[0] & shot[1]) < 5


@pytest.mark.parametrize(
    "source", [DigitsScanners(), DigitsPathological()], ids=["scanners", "pathological"]
)
def test_the_server_holds_its_images_of_each_digit_and_the_clients_all_others(
    source: Source,
) -> None:
    made = replace(source, shots=0, reserve=10).load(0)
    assert made.reserve_counts() == [10] * 10
    learned_from = torch.cat([learned(made, client) for client in made.parts])
    assert torch.equal(
        torch.cat([learned_from, made.reserve, pool()]).sort().values, torch.arange(1797)
    )
    assert not torch.equal(replace(source, reserve=10).load(1).reserve, made.reserve)
    skewed = replace(source, reserve=10, reserve_alpha=0.3).load(0)
    assert sum(skewed.reserve_counts()) == 100
    assert max(skewed.reserve_counts()) > 20


def test_each_scanner_reads_its_share_of_each_digit_in_the_reserve() -> None:
    made, (plain, labels) = DigitsScanners(reserve=40).load(3), digits()
    own, scans = plain[made.reserve], made.inputs[made.reserve]
    read = {
        "as-scanned": (scans == own).flatten(1).all(1),
        "inverted": (scans == 255 - own).flatten(1).all(1),
        "faint": (scans >= 85 - 36).flatten(1).all(1),
    }
    read["slanted"] = ~torch.stack(list(read.values())).any(0)
    for scanner, which in read.items():
        assert which.sum() == 100, scanner
        assert (labels[made.reserve[which]].bincount(minlength=10) - 10).abs().max() < 2
    assert not (scans[read["slanted"]] == own[read["slanted"]]).flatten(1).all(1).any()


def test_images_of_the_server_do_not_share_the_noise_of_the_clients() -> None:
    made, plain = DigitsScanners(scanners=3, reserve=20).load(0), digits()[0]
    server = made.reserve[(made.inputs[made.reserve] >= 85 - 36).flatten(1).all(1)]
    clients = torch.cat(
        [learned(made, client) for client, scanner in made.domains.items() if scanner == "faint"]
    )
    noise = [
        (made.inputs[own].float() - plain[own] // 3)[:, 0].flatten(1) for own in (server, clients)
    ]
    both = torch.corrcoef(torch.cat(noise))[: len(server), len(server) :]
    assert both.abs().max() < 0.2  # a quarter of the noise drawn again gives 0.25


def test_sites_of_a_small_alpha_see_few_digits() -> None:
    counts = DigitsScanners(alpha=0.05).load(0).counts().values()
    assert np.mean([max(own["train"]) / sum(own["train"]) for own in counts]) > 0.4


def test_a_federation_is_the_same_on_every_machine(scanned: Federation) -> None:
    # If this number changes, everybody's splits change: say so in the changelog.
    made = (scanned, DigitsPathological().load(0))
    text = json.dumps([each.manifest(counts=True) for each in made])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7bb3b1c792ca51f1"


@pytest.mark.parametrize(
    ("source", "field", "value"),
    [
        (source, field, value)
        for source, changes in [
            (
                DigitsScanners(),
                {"clients": 12, "scanners": 3, "alpha": 0.5, "shots": 2, "valid": 0.1, "test": 0.2},
            ),
            (DigitsPathological(), {"clients": 4, "shots": 2, "valid": 0.1, "test": 0.2}),
            (DigitsScanners(), {"pool": "sheets"}),
            (DigitsPathological(), {"pool": "sheets"}),
            (DigitsScanners(), {"reserve": 3}),
            (DigitsScanners(reserve=3), {"reserve_alpha": 0.5}),
            (DigitsPathological(), {"reserve": 3}),
            (DigitsPathological(reserve=3), {"reserve_alpha": 0.5}),
        ]
        for field, value in changes.items()
    ],
)
def test_every_option_matters(
    source: DigitsScanners | DigitsPathological, field: str, value: float
) -> None:
    assert replace(source, **{field: value}).load(0).manifest() != loaded(source).manifest()


def test_shots_change_what_is_trained_on_and_nothing_else() -> None:
    two, four = (DigitsScanners(shots=shots).load(0).parts for shots in (2, 4))
    for client in two:
        assert torch.equal(two[client].valid, four[client].valid)
        assert torch.equal(two[client].test, four[client].test)
        assert set(two[client].train.tolist()) < set(four[client].train.tolist())


@pytest.mark.parametrize("name", ["digits-pathological", "digits-scanners", "reviews"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"clients": 0},
        {"valid": 0.6, "test": 0.4},
        {"test": 0},
        {"valid": -0.1},
        {"valid": "much"},
        {"reserve": -1},
        {"reserve_alpha": -0.1},
        {"reserve_alpha": float("inf")},
    ],
)
def test_wrong_options_are_refused_at_the_door(name: str, wrong: dict[str, object]) -> None:
    assert checked(DATA[name], "data", {}) == (asdict(DATA[name]()), [])
    assert checked(DATA[name], "data", wrong)[1]


@pytest.mark.parametrize(
    "wrong",
    [{"scanners": 5}, {"scanners": 0}, {"alpha": 0}, {"alpha": float("inf")}, {"shots": -1}],
)
def test_wrong_scanner_options_are_refused_at_the_door(wrong: dict[str, object]) -> None:
    assert checked(DigitsScanners, "data", wrong)[1]


def test_too_many_clients_for_the_digits_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"client 'as-scanned-\d+' with 1 images, and .*use fewer clients"
    ):
        DigitsScanners(clients=700).load(0)


# The scanners


def test_inverted_turns_ink_and_paper_around() -> None:
    assert inverted(torch.tensor([0, 100, 255], dtype=torch.uint8), 0).tolist() == [255, 155, 0]


def test_faint_has_a_third_of_the_contrast_and_noise_by_its_seed() -> None:
    flat = torch.stack([torch.full((3, 32, 32), level, dtype=torch.uint8) for level in (0, 255)])
    scan = faint(flat, 0).float()
    assert scan[1].mean() - scan[0].mean() == pytest.approx(85, abs=2)
    assert 8 < scan[0].std() < 14
    assert torch.equal(scan, faint(flat, 0).float())
    assert not torch.equal(scan, faint(flat, 1).float())
    assert torch.equal(scan[:, 0], scan[:, 1])


def test_slanted_leans_a_bar_to_the_right_and_lets_the_dark_in() -> None:
    bar = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    bar[..., 15:17] = 200
    scan = slanted(bar, 0).float()
    # [N, H], the bar's middle in every row
    place = (scan[:, 0] * torch.arange(32)).sum(2) / scan[:, 0].sum(2)
    slope = (place[:, 0] - place[:, -1]) / 31
    assert slope.min() == pytest.approx(0.25, abs=0.01)
    assert slope.max() == pytest.approx(7 / 16, abs=0.01)
    assert place.mean() == pytest.approx(15.5, abs=0.05)
    assert (scan.sum(3) - 400).abs().max() <= 2  # no ink is lost inside
    bright = slanted(torch.full((30, 3, 32, 32), 255, dtype=torch.uint8), 0)
    assert (bright[:, :, 0, :3] == 0).all()
    assert (bright[:, :, 0, 7:] == 255).all()
    assert not torch.equal(scan, slanted(bar, 1).float())
