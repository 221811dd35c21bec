"""The one door out of a client: what leaves is clipped, noised and sealed, whatever the method."""

from pathlib import Path

import pytest
import torch
from conftest import CASES, carry_out, same_bits, server, tiny

from fedexperts.tensors import Tensors, named, rng
from fedexperts.upload import Normal, UploadSettings

START = {"context": torch.ones(1, 2), "bias": torch.zeros(2)}
SENT = named("global", START)


def normal(round: int = 0) -> Normal:
    generator = rng(0, "finish", round)
    return lambda shape: torch.randn(shape, generator=generator)


def leaving(settings: UploadSettings, leaves: Tensors, round: int = 0) -> Tensors:
    return settings.leaving(leaves, SENT, normal(round), {"context", "bias", "steps"}, "a")


def test_an_upload_is_near_the_global_tensors_if_clipped_all_tensors_as_one_vector() -> None:
    clipped = UploadSettings(clip=0.25)
    far = {"context": torch.tensor([[4.0, 5.0]]), "bias": torch.tensor([12.0, 0.0])}  # 13 away
    shrunk = {name: START[name] + (far[name] - START[name]) * 0.25 / 13 for name in far}
    near = {"context": torch.tensor([[1.1, 1.1]]), "bias": torch.zeros(2)}
    for trained, expected in ((far, shrunk), (near, near)):
        found = leaving(clipped, trained)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name]) for name in found)


def test_noise_on_an_upload_has_the_deviation_that_was_asked_for() -> None:
    noisy = UploadSettings(clip=0.25, noise=2.0)
    left = [leaving(noisy, START, round) for round in range(500)]
    for name, start in START.items():
        apart = torch.stack([leaves[name] for leaves in left]) - start
        assert float(apart.std()) == pytest.approx(0.5, rel=0.05)


def test_whole_numbers_which_count_steps_leave_as_they_are() -> None:
    steps = {"steps": torch.tensor(7)}
    assert leaving(UploadSettings(clip=0.25, noise=2.0), START | steps)["steps"] == 7


def test_noise_needs_a_clip_and_a_clip_needs_global_tensors() -> None:
    with pytest.raises(ValueError, match=r"set upload\.clip > 0"):
        UploadSettings(noise=1.0)
    with pytest.raises(ValueError, match="nothing of this upload is shared"):
        UploadSettings(clip=1.0).leaving({"use": torch.ones(2)}, SENT, normal(), {"use"}, "a")


def test_without_a_clip_what_leaves_is_what_was_learned() -> None:
    assert same_bits(leaving(UploadSettings(), START), START)


@pytest.mark.parametrize("name", ["fedavg", "nearest", "fedjets", "fedavg-norm", "fedavg-tuned"])
def test_any_methods_uploads_are_clipped(name: str, tmp_path: Path) -> None:
    """Nothing may move by more than the clip in a round, so neither may the mean."""
    run = carry_out(tiny(CASES[name], upload={"clip": 0.001}, run={"rounds": 1}), tmp_path / "run")
    for row in run.rows("rounds.jsonl"):
        assert all(facts["moved"] <= 0.00101 for facts in row["trained"].values())
        assert any(facts["moved"] > 0.0005 for facts in row["trained"].values())
    assert server(run)


def test_who_sends_nothing_has_nothing_to_clip() -> None:
    assert UploadSettings(clip=1.0).leaving({}, {}, normal(), set(), "a") == {}
