"""Weighted sums of whole models, in chunks and compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CASES, carry_out, same_bits, server, tiny

from fedexperts.fusing import UNROLLED, combine, compiled
from fedexperts.tensors import Tensors, rng

ONE, TWO = torch.tensor([1.0, -2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])


def models(count: int, kind: torch.dtype = torch.float32) -> list[Tensors]:
    """Large enough for several chunks, with a small tensor and a count of steps."""
    drawn = rng(0, "models")
    sizes = {"gate": (3, 70_001), "bias": (), "none": (0, 2)}
    values = [
        {name: torch.randn(size, generator=drawn).to(kind) for name, size in sizes.items()}
        for _ in range(count)
    ]
    return [tensors | {"steps": torch.tensor([10 + place])} for place, tensors in enumerate(values)]


WEIGHTS = torch.tensor([[0.2, 0.5, 0.3, 0, 0], [0, 0, 0.1, 0.9, 0], [0, 0.25, 0, 0, 0.75]])


@pytest.mark.parametrize(
    ("kind", "error"), [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_each_sum_is_weighted_by_its_own_row_and_keeps_the_type(
    kind: torch.dtype, error: float
) -> None:
    items, weights = models(5, kind), WEIGHTS.double()
    for row, found in zip(weights, combine(weights, items), strict=True):
        for name in ("gate", "bias", "none"):
            wanted = torch.zeros(items[0][name].shape, dtype=torch.float64)
            for weight, item in zip(row, items, strict=True):
                wanted += weight * item[name].double()
            assert found[name].dtype == kind
            torch.testing.assert_close(found[name].double(), wanted, rtol=error, atol=error / 10)


def test_half_precision_is_summed_in_more() -> None:
    """In bfloat16 the small addend would be lost, and 1/3 be coarse."""
    items = [{"p": torch.tensor([value]).bfloat16()} for value in (3 * 512.0, 3.0, -3 * 512.0)]
    assert combine(torch.full((1, 3), 1 / 3), items)[0]["p"].tolist() == [1.0]


def test_a_count_is_copied_from_the_item_of_the_largest_weight() -> None:
    assert [found["steps"].tolist() for found in combine(WEIGHTS, models(5))] == [[11], [13], [14]]


def test_the_order_of_items_does_not_matter() -> None:
    items, order = models(5), [3, 1, 4, 0, 2]
    for one, other in zip(
        combine(WEIGHTS, items), combine(WEIGHTS[:, order], [items[i] for i in order]), strict=True
    ):
        assert torch.equal(one["steps"], other["steps"])
        torch.testing.assert_close(one["gate"], other["gate"])


def test_a_sum_stands_for_itself() -> None:
    items = [{"p": ONE.clone().requires_grad_(), "steps": torch.tensor(3)}] * 2
    first, second = combine(torch.eye(2), items)
    assert not first["p"].requires_grad
    first["p"][0], first["steps"][...] = 7, 7
    assert (second["p"][0], second["steps"], items[0]["p"][0], items[0]["steps"]) == (1, 3, 1, 3)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({}, "its p is missing"),
        ({"p": TWO}, "its p is .*2, 2"),
        ({"p": ONE, "q": ONE}, "expected is none"),
    ],
)
def test_an_item_unlike_the_others_is_named(odd: Tensors, why: str) -> None:
    with pytest.raises(ValueError, match=f"item 1 is not like the first item: .*{why}"):
        combine(torch.ones(1, 2), [{"p": ONE}, odd])


@pytest.mark.parametrize("weights", [torch.ones(2), torch.ones(1, 3), torch.ones(0, 2)])
def test_weights_that_are_not_the_items_are_refused(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"for 2 items; expected \[sums, items\]"):
        combine(weights, [{"p": ONE}] * 2)


# Compiled


# torch's compiler imports what torch itself no longer wants
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler: apt-get install g++")
class TestCompiled:
    @pytest.mark.parametrize(
        ("kind", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=["fp32", "bf16"]
    )
    def test_a_compiled_sum_differs_from_one_in_chunks_by_rounding_alone(
        self, kind: torch.dtype, error: float
    ) -> None:
        items = models(5, kind)
        with compiled(True):
            made = combine(WEIGHTS, items)
        for one, other in zip(made, combine(WEIGHTS, items), strict=True):
            assert one["steps"].tolist() == other["steps"].tolist()
            for name in ("gate", "bias", "none"):
                assert one[name].dtype == kind
                torch.testing.assert_close(one[name], other[name], rtol=error, atol=error)

    def test_more_products_than_can_be_written_out_are_summed_in_chunks(self) -> None:
        items, weights = models(5), torch.rand(UNROLLED, 5, generator=rng(0, "weights"))
        with compiled(True):
            made = combine(weights, items)
        assert all(map(same_bits, made, combine(weights, items)))

    def test_a_run_says_whether_its_sums_are_compiled(self, tmp_path: Path) -> None:
        """Equal settings give equal bits, and others differ by rounding: so both ways were gone."""
        config = tiny(CASES["fedmoe"], merge={"compiled": True})
        one, again = (server(carry_out(config, tmp_path / name)) for name in ("one", "again"))
        other = server(carry_out(tiny(CASES["fedmoe"]), tmp_path / "other"))
        assert same_bits(one, again)
        assert not same_bits(one, other)
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_machine_without_a_compiler_says_what_to_install(tmp_path: Path) -> None:
    nobody = {"PATH": str(tmp_path), "CXX": "nobody", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    program = "from fedexperts.fusing import compiled\nwith compiled(True): pass"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **nobody},
        capture_output=True,
        text=True,
    )
    assert "ValueError: merge.compiled = true, and torch could not compile" in ended.stderr
    assert "apt-get install g++" in ended.stderr
