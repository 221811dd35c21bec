"""What is nearest is what a plain search finds, of equal distances the first, for every vector."""

import pytest
import torch
from torch import Tensor

from fedexperts.methods import nearest as room
from fedexperts.methods.nearest import nearest


def plain(vectors_NF: Tensor, rows: list[int], count: int, farthest: bool) -> Tensor:
    """By all distances in double precision."""
    chosen = []
    for row in rows:
        apart_NF = vectors_NF.double() - vectors_NF[row].double()
        distance_N = torch.linalg.vector_norm(apart_NF, dim=1)
        order = torch.argsort(distance_N, stable=True, descending=farthest)
        chosen.append(order[order != row][:count])
    return torch.stack(chosen)


def far_from_zero(count: int) -> Tensor:
    """Vectors about a common one that is much longer than they are apart."""
    draw = torch.Generator().manual_seed(0)
    return 10 * torch.randn(32, generator=draw) + 0.01 * torch.randn(count, 32, generator=draw)


def with_copies(count: int) -> Tensor:
    vectors = far_from_zero(count)
    vectors[5:40:2] = vectors[3]
    vectors[-1] = vectors[0]
    return vectors


def all_nearly_equal(count: int) -> Tensor:
    """In single precision many of the distances are the same."""
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(32, generator=draw, dtype=torch.float64)
    return common + 1e-9 * torch.randn(count, 32, generator=draw, dtype=torch.float64)


def in_pairs(count: int) -> Tensor:
    """Two and two lie closer than products of single precision can tell from others."""
    half = far_from_zero(count // 2)
    return torch.cat([half, half + 1e-6 * half.flip(1)])


def split_by_a_hair(count: int) -> Tensor:
    """Corners of a cube, of which many are equally far but for a small coordinate more."""
    draw = torch.Generator().manual_seed(0)
    corners = torch.randn(count, 31, generator=draw).sign()
    return torch.cat([0.01 * torch.randn(count, 1, generator=draw), corners], dim=1)


MAKERS = (far_from_zero, with_copies, all_nearly_equal, in_pairs, split_by_a_hair)
POOLS = {make.__name__: make for make in MAKERS}


@pytest.mark.parametrize("farthest", [False, True], ids=["nearest", "farthest"])
@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("rows", [range(300), range(7, 300, 11), [299, 4]], ids=len)
def test_what_is_chosen_is_what_a_plain_search_chooses(
    make, rows, farthest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BLOCK", 64)
    vectors = make(300)
    expected = plain(vectors, list(rows), 9, farthest)
    assert nearest(vectors, list(rows), 9, farthest).equal(expected)


def test_a_small_pool_is_chosen_whole() -> None:
    vectors = far_from_zero(4)
    assert nearest(vectors, [0, 2], 9).equal(plain(vectors, [0, 2], 9, False))
    assert nearest(vectors[:1], [0], 9).shape == (1, 0)
    assert nearest(vectors, [0, 2], 0).shape == (2, 0)


def test_products_of_lower_precision_are_not_trusted() -> None:
    """With "medium" some processors round a product's factors to eight bits."""
    vectors = split_by_a_hair(300)
    torch.set_float32_matmul_precision("medium")
    try:
        chosen = nearest(vectors, [*range(300)], 9)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert chosen.equal(plain(vectors, [*range(300)], 9, False))


def test_a_hundred_million_distances_are_never_held_at_once() -> None:
    """No tensor of one number a pair."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for value in found if isinstance(found, (tuple, list)) else [found]:
                largest = max(largest, value.numel() if isinstance(value, Tensor) else 0)
            return found

    with Watch():
        nearest(torch.randn(3000, 4), [*range(3000)], 9)
    assert largest <= room.BLOCK * 3000
