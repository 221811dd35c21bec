"""How many clients are computed at once where nobody says so."""

from typing import Any

import torch
from conftest import CASES, tiny
from torch import Tensor

from fedexperts import config as door
from fedexperts.learn import Local
from fedexperts.stacks import HELD, MOST, SHOWN, SMALL, STACK, Stacks, at_once


def stacks(sizes: list[int], together: int = 0, stackable: bool = True) -> list[list[int]]:
    """Which clients, each with so many numbers, are computed with which."""
    model = door.parts(tiny(CASES["fedavg"]))[2]
    model.together = stackable
    done: list[list[int]] = []

    def act(positions: list[int]) -> list[int]:
        done.append(positions)
        return positions

    states = [Local({"weight": torch.zeros(size)}) for size in sizes]
    inputs: list[Tensor] = [torch.zeros(1, 1, 8)] * len(sizes)
    assert Stacks(model, 4, together).each(states, inputs, act) == list(range(len(sizes)))
    return done


def test_small_clients_share_a_computation_and_large_ones_do_not() -> None:
    assert at_once(numbers=5_000, shown=8_000, held=0) == MOST
    assert at_once(SMALL, SHOWN, 0) == STACK // SMALL
    assert at_once(SMALL + 1, SHOWN, 0) == 1
    assert at_once(5_000, SHOWN + 1, 0) == 1
    assert at_once(5_000, 8_000, HELD // 10) == 10
    assert at_once(5_000, 8_000, HELD // 2) == 1  # two gain nothing


def test_only_equal_shapes_are_stacked() -> None:
    assert stacks([3, 5, 3, 5]) == [[0, 2], [1, 3]]
    assert stacks([3] * (MOST + 1)) == [[*range(MOST)], [MOST]]
    assert stacks([3, 3, 3], together=2) == [[0, 1], [2]]
    assert stacks([SMALL + 1] * 2) == [[0], [1]]


def test_one_at_a_time_is_so_whatever_the_shapes() -> None:
    assert stacks([3, 3], together=1) == [[0], [1]]
    assert stacks([3, 3], together=2, stackable=False) == [[0], [1]]


def test_a_model_of_ones_own_that_cannot_be_mapped_goes_alone_unasked() -> None:
    model: Any = {"name": "test_own:Wrong", "part": "one by one"}
    assert not door.parts(tiny(CASES["fedavg"], model=model))[2].together
    model = {"name": "test_own:Wrong", "part": ""}
    assert door.parts(tiny(CASES["fedavg"], model=model))[2].together
