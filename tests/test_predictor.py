"""What answers, at a client and at the server: what it says of itself reaches the run's log."""

from pathlib import Path

import pytest
import torch
from conftest import CASES, carry_out, job_and_engine, server, tiny

from fedexperts.model import Model


def test_each_experts_mean_share_is_logged_the_clients_own_first(tmp_path: Path) -> None:
    run = carry_out(tiny(CASES["nearest"], run={"participation": 1.0}), tmp_path / "run")
    last = [row for row in run.rows("clients.jsonl") if row["round"] == 3]
    for row in last:
        assert len(row["shares"]) == 3  # its own and two others
        assert sum(row["shares"]) == pytest.approx(1)
        assert 0 < row["experts_apart"] < 2


def test_a_mixtures_shares_are_not_logged_where_its_method_mixes_nobodys_experts(
    tmp_path: Path,
) -> None:
    run = carry_out(tiny(CASES["fedmix"], run={"rounds": 1}), tmp_path / "run")
    assert not any("shares" in row for row in run.rows("clients.jsonl"))


def test_buffers_move_as_clients_train_and_are_averaged(tmp_path: Path) -> None:
    """Batch norm: in training the model's own step is taken, whose buffers are what moved."""
    config = tiny(CASES["fedavg-norm"], run={"rounds": 1})
    job, _ = job_and_engine(config, tmp_path / "private")
    model: Model = job.model
    after = server(carry_out(config, tmp_path / "run"))
    assert model.buffers
    for name in model.buffers:
        assert not torch.equal(after[f"global.{name}"], model.initial[name]), name
