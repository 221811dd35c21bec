"""Which values are tried: a grid, beyond an end that won, between neighbours; the same number for
each experiment.
"""

from collections.abc import Callable

import pytest

from fedexperts.options import Values
from fedexperts.tuning import Tried, best, edges, following, grid


def anything(point: Values) -> bool:
    return True


def searched(
    tune: dict[str, list[object]], score: Callable[[Values], float | None], points: int
) -> list[Tried]:
    """What is tried of a landscape, one point after another."""
    tried = [Tried(point, score(point)) for point in grid(tune)]
    while len(tried) < points and (point := following(tune, tried, anything)):
        tried.append(Tried(point, score(point)))
    return tried


def rates(tried: list[Tried]) -> list[float]:
    return [each.point["rate"] for each in tried]


def test_a_grid_is_every_combination_and_the_first_of_equals_is_best() -> None:
    points = grid({"a": [1, 2], "b": ["x", "y"]})
    assert points == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert best([Tried(point, 1.0) for point in points]) == Tried(points[0], 1.0)
    assert grid({}) == []


@pytest.mark.parametrize(
    ("values", "up", "down"),
    [
        ([0.01, 0.03, 0.1], [0.3, 1.0, 3.0], [0.003, 0.001, 0.0003]),
        ([0.1, 0.3], [1.0, 3.0, 10.0], [0.03, 0.01, 0.003]),
        ([0.15, 0.3], [0.6, 1.2, 2.4], [0.075, 0.037, 0.018]),
        ([2, 4], [8, 16, 32], [1]),
    ],
)
def test_an_end_that_wins_is_passed_in_the_steps_of_its_grid(
    values: list[object], up: list[float], down: list[float]
) -> None:
    higher = searched({"rate": values}, lambda point: point["rate"], len(values) + 3)
    assert rates(higher)[len(values) :] == up
    lower = searched({"rate": values}, lambda point: -point["rate"], len(values) + len(down))
    assert rates(lower)[len(values) :] == down


def test_a_grid_with_zero_is_passed_in_equal_steps() -> None:
    tune: dict[str, list[object]] = {"epochs": [0, 60]}
    tried = searched(tune, lambda point: point["epochs"], 4)
    assert [each.point["epochs"] for each in tried] == [0, 60, 120, 180]


def test_a_best_value_inside_is_looked_at_more_closely() -> None:
    tried = searched({"rate": [0.1, 0.3, 1.0]}, lambda point: -abs(point["rate"] - 0.3), 5)
    assert rates(tried)[3:] == [0.55, 0.17]


def test_both_of_two_keys_are_passed() -> None:
    tune: dict[str, list[object]] = {"rate": [0.1, 0.3], "mu": [1.0, 3.0]}
    peak = {"rate": 0.3, "mu": 1.0}
    tried = searched(tune, lambda point: -sum(point[key] != peak[key] for key in peak), 6)
    assert [each.point for each in tried[4:]] == [
        {"rate": 1.0, "mu": 1.0},
        {"rate": 0.3, "mu": 0.3},
    ]
    assert edges(tune, tried, anything) == {}


def test_a_value_at_the_end_of_what_was_tried_is_an_edge_unless_there_is_nothing_beyond() -> None:
    tune: dict[str, list[object]] = {"rate": [0.1, 0.3], "mu": [1.0, 3.0], "kind": ["a", "b"]}
    tried = [Tried(point, point["rate"] - point["mu"]) for point in grid(tune)]
    assert edges(tune, tried, anything) == {"rate": "highest", "mu": "lowest"}
    assert edges(tune, tried, lambda point: point["rate"] < 1) == {"mu": "lowest"}
    nowhere = following(tune, tried, lambda point: False)
    assert nowhere is None


def test_a_rate_that_came_to_no_end_is_no_best_and_bounds_the_range() -> None:
    tune: dict[str, list[object]] = {"rate": [0.1, 0.3, 1.0]}
    tried = [Tried(point, None if point["rate"] > 0.5 else point["rate"]) for point in grid(tune)]
    assert edges(tune, tried, anything) == {}
    assert following(tune, tried, anything) == {"rate": 0.55}
    assert following(tune, [Tried({"rate": 0.1}, None)], anything) is None


def test_words_and_switches_have_no_steps() -> None:
    tune: dict[str, list[object]] = {"kind": ["a", "b"], "reset": [True, False]}
    tried = [Tried(point, 1.0) for point in grid(tune)]
    assert following(tune, tried, anything) is None
    assert edges(tune, tried, anything) == {}
