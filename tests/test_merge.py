"""How uploads become one: what each rule is, and that one hostile client of five moves none of
those that are to bear it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, GATE, Case, Spoilt, carry_out, server, tiny
from test_attacks import changed

from fedexperts.average import MergeSettings, geometric_median, krum, outliers, trimmed_mean
from fedexperts.message import Reply
from fedexperts.tensors import Tensors, rng, under

ROBUST = ("median", "trimmed-mean", "geometric-median", "krum")
every_rule = pytest.mark.parametrize("rule", ROBUST)


def points(*numbers: float) -> list[Tensors]:
    return [{"w": torch.tensor([float(number)])} for number in numbers]


def test_a_trimmed_mean_leaves_out_the_ends_of_each_number_by_itself() -> None:
    items = [{"w": torch.tensor(row)} for row in ([0.0, 9.0], [1.0, 1.0], [2.0, 2.0], [99.0, 3.0])]
    assert trimmed_mean(items, 1)["w"].tolist() == [1.5, 2.5]


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    median = MergeSettings("median")
    assert median.average(points(0, 1, 3, 50), [1] * 4)["w"].tolist() == [2.0]
    assert median.average(points(0, 1, 50), [1] * 3)["w"].tolist() == [1.0]


def test_a_geometric_median_has_the_least_sum_of_distances() -> None:
    draw = rng(0, "points")
    items = []
    for _ in range(4):
        items.append({"w": torch.randn(3, generator=draw), "b": torch.randn(2, generator=draw)})
    flat = torch.stack([torch.cat([item["w"], item["b"]]) for item in items])
    best = geometric_median(items)
    middle = torch.cat([best["w"], best["b"]])
    for _ in range(200):
        other = middle + 0.01 * torch.randn(5, generator=draw)
        assert (flat - middle).norm(dim=1).sum() < (flat - other).norm(dim=1).sum() + 1e-5


def test_krum_takes_one_upload_whole_and_never_the_far_one() -> None:
    items = points(1.0, 1.1, 1.2, 1.3, 50.0)
    assert krum(items, 1)["w"].item() in (items[1]["w"].item(), items[2]["w"].item())


@every_rule
def test_whole_numbers_stay_whole(rule: Any) -> None:
    items = [{"w": torch.tensor([1.0]), "steps": torch.tensor(n)} for n in (3, 4, 5)]
    assert MergeSettings(rule).average(items, [1, 1, 1])["steps"].dtype == torch.int64


@every_rule
def test_one_of_five_moves_no_robust_rule_whatever_it_claims_to_weigh(rule: Any) -> None:
    """The mean follows it as far as it likes."""
    honest, hostile = points(1.0, 1.1, 1.2, 1.3), points(1000.0)
    weights = [1, 1, 1, 1, 10**9]
    assert 1 <= MergeSettings(rule).average(honest + hostile, weights)["w"].item() <= 1.3001
    assert MergeSettings().average(honest + hostile, weights)["w"].item() > 900


@every_rule
def test_who_has_no_weight_has_no_voice(rule: Any) -> None:
    merged = MergeSettings(rule).average(points(1, 1, 1, 7, 7, 7, 7), [1, 1, 1, 0, 0, 0, 0])
    assert merged["w"].item() == 1
    with pytest.raises(ValueError, match="nothing to average"):
        MergeSettings(rule).average(points(1), [0])


def far(reply: Reply) -> Reply:
    """Client b sends minus five times what it learned."""
    flip = changed(lambda x: -5 * x)
    return flip(reply) if (reply.client, reply.task) == ("b", "train") else reply  # type: ignore[return-value]


FULL = {"participation": 1.0}
POOLS = {
    "pfedmoap": Case(GATE, secret=True, own=True),
    "fedmoe": CASES["fedmoe"],
    "gaussian": CASES["gaussian"],
}


@pytest.mark.parametrize("name", POOLS)
def test_an_outlier_joins_no_pool_and_is_nobodys_neighbour(name: str, tmp_path: Path) -> None:
    """Only under a rule that bears hostile clients; the log says why, and the others go on."""
    ends = {}
    for rule in ("mean", "median"):
        config = tiny(POOLS[name], run=FULL, merge={"rule": rule})
        run = carry_out(config, tmp_path / rule, lambda engine: Spoilt(engine, far))
        ends[rule] = run
    rows = {rule: run.rows("rounds.jsonl") for rule, run in ends.items()}
    assert not any(row["refused"] for row in rows["mean"]), [r["refused"] for r in rows["mean"]]
    for row in rows["median"]:
        assert "from the middle of all" in row["refused"]["b"]
        assert set(row["trained"]) == set("acde")
    for kind in ("pool", "shares"):
        keys = {name.split(".")[0] for name in under(server(ends["median"]), kind)}
        assert "b" not in keys


def test_where_most_are_equal_nobody_is_an_outlier() -> None:
    same = dict(zip("abc", points(1, 1, 5), strict=True))
    assert outliers(same, 3.0) == {}
    apart = dict(zip("abcd", points(1, 1.1, 1.2, 5), strict=True))
    assert list(outliers(apart, 3.0)) == ["d"]
    assert outliers(dict(list(apart.items())[2:]), 3.0) == {}
