"""What a number of seeds allows to be said: the levels that are stated are those that come out."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from fedexperts.metrics import Row
from fedexperts.report.paired import Difference, established, local, server, wilson

DRAWS = 4000
CLIENTS = 12


def worlds(seeds: int, effect: float = 0.0) -> Iterator[dict[int, float]]:
    """Mean differences, one a seed: every seed has an effect of its own, larger than what clients'
    noise leaves.
    """
    draw = np.random.default_rng(seeds)
    for _ in range(DRAWS):
        of_seed = draw.normal(effect, 2.0, (seeds, 1))
        clients = of_seed + draw.normal(0, 3.0, (seeds, CLIENTS))
        yield dict(enumerate(clients.mean(1).tolist()))


def within(count: int, draws: int, rate: float) -> bool:
    """Whether a count is within three standard deviations of a binomial one."""
    return abs(count - rate * draws) <= 3 * math.sqrt(draws * rate * (1 - rate))


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_difference_that_is_not_there_is_found_in_five_of_a_hundred_tables(seeds: int) -> None:
    """Under the null, alone; the intervals without zero are those same cases."""
    differences = [Difference(world) for world in worlds(seeds)]
    found = [established([difference]) == [True] for difference in differences]
    assert within(sum(found), DRAWS, 0.05)
    outside = [
        not difference.interval[0] <= 0 <= difference.interval[1] for difference in differences
    ]
    assert found == outside


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("comparisons", [2, 8])
def test_of_many_differences_that_are_not_there_any_is_found_in_five_of_a_hundred_tables(
    seeds: int, comparisons: int
) -> None:
    """Holm's promise, for comparisons of experiments of their own."""
    differences = [Difference(world) for world in worlds(seeds)]
    tables = [differences[first : first + comparisons] for first in range(0, DRAWS, comparisons)]
    assert within(sum(any(established(table)) for table in tables), len(tables), 0.05)


@pytest.mark.parametrize("seeds", [3, 5])
def test_one_control_for_many_experiments_keeps_the_level_too(seeds: int) -> None:
    """Then comparisons are not independent; the level is still a bound."""
    draw, wrong = np.random.default_rng(seeds), 0
    for _ in range(DRAWS // 4):
        control = draw.normal(50, 2.0, seeds)
        experiments = draw.normal(50, 2.0, (6, seeds))
        wrong += any(
            established(
                [Difference(dict(enumerate(row.tolist()))) for row in experiments - control]
            )
        )
    assert wrong / (DRAWS // 4) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / (DRAWS // 4))


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_covers_the_effect_in_ninety_five_of_a_hundred_tables(seeds: int) -> None:
    intervals = [Difference(world).interval for world in worlds(seeds, effect=7.0)]
    assert within(sum(low <= 7.0 <= high for low, high in intervals), DRAWS, 0.95)


def counted(draw: np.random.Generator, share: float) -> list[Row]:
    """A row a client of 25 test examples."""
    right = draw.binomial(25, np.clip(share + draw.normal(0, 0.05, CLIENTS), 0, 1))
    return [
        {
            "round": 1,
            "client": f"c{i}",
            "test_correct": int(k),
            "test_examples": 25,
            "test_global_correct": 0,
        }
        for i, k in enumerate(right)
    ]


@pytest.mark.parametrize("whose", ["clients", "server"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_counts_of_right_answers_keep_the_level_as_well(seeds: int, whose: str) -> None:
    """Accuracies come in steps, and two experiments share a seed's data: as rows of a log, through
    the whole door.
    """
    draw, wrong, tables = np.random.default_rng(seeds), 0, 1000
    for _ in range(tables):
        levels = 0.6 + draw.normal(0, 0.05, seeds)  # of the seed's data, for both
        shares = levels + draw.normal(0, 0.03, (2, seeds))  # of each experiment's training
        if whose == "clients":
            one, other = (
                {s: counted(draw, share) for s, share in enumerate(row)} for row in shares
            )
            found = local(one, other)
        else:
            right = draw.binomial(200, shares) / 2
            found = server(*(dict(enumerate(row.tolist())) for row in right))
        assert found is not None
        wrong += established([found])[0]
    assert wrong / tables <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)
    assert wrong > 0


def test_fewer_than_three_seeds_and_equal_ones_are_judged_nowhere() -> None:
    for by_seed in (
        {0: 9.0},
        {0: 9.0, 1: 9.5},
        {0: 9.0, 1: 9.0, 2: 9.0},
        {0: 0.1 + 0.2, 1: 0.3, 2: 0.3},
    ):
        found = Difference(by_seed)
        assert established([found]) == [False]
        assert math.isnan(found.p)
        assert all(map(math.isnan, found.interval))


@pytest.mark.parametrize(
    ("right", "examples", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3; and what 0 of 10 and 10 of
    # 10 are by hand
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0000, 1.959964**2 / (10 + 1.959964**2)),
        (10, 10, 10 / (10 + 1.959964**2), 1.0000),
    ],
)
def test_the_interval_of_a_share_is_wilsons(
    right: int, examples: int, low: float, high: float
) -> None:
    assert wilson(right, examples) == (
        pytest.approx(100 * low, abs=0.006),
        pytest.approx(100 * high, abs=0.006),
    )
