"""Clients may train and upload models of several sizes: what is expected is each client's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from conftest import CASES, Spoilt, carry_out, server, tiny
from torch import Tensor

from fedexperts.learn import Local
from fedexperts.message import Reply
from fedexperts.method import Given, Sent, Upload
from fedexperts.methods.fedavg import FedAvg
from fedexperts.model import Model
from fedexperts.predictor import Predictor
from fedexperts.rundir import RunDir
from fedexperts.tensors import Tensors, named, under

NARROW = ("a", "b")  # see the first features alone
FEW = 3


@dataclass(frozen=True)
class Narrow(FedAvg):
    """HeteroFL (arXiv:2010.01264) in small: weak clients train some columns of the global model."""

    def expects(self, server: Tensors, model: Model, client: str) -> Tensors:
        shared = under(server, "global")
        if client in NARROW:
            return {"weight": shared["weight"][:, :FEW], "bias": shared["bias"]}
        return shared

    def send(
        self, server: Tensors, clients: Sequence[str], round: int, seed: int
    ) -> dict[str, Sent]:
        shared = under(server, "global")
        few = {"weight": shared["weight"][:, :FEW], "bias": shared["bias"]}
        parts = {client: few if client in NARROW else shared for client in clients}
        return {client: Sent(named("global", part)) for client, part in parts.items()}

    def merge(
        self, given: Given, server: Tensors, uploads: Sequence[Upload], round: int
    ) -> Tensors:
        average = dict(under(server, "global"))
        if wide := [upload.tensors for upload in uploads if upload.client not in NARROW]:
            average = given.average(wide, [1.0] * len(wide))
        few = torch.stack([upload.tensors["weight"][:, :FEW] for upload in uploads]).mean(0)
        average["weight"] = torch.cat([few, average["weight"][:, FEW:]], dim=1)
        return named("global", average)

    def predictor(self, model: Model, local: Local) -> Predictor:
        return Columns(model, local)


class Columns(Predictor):
    """A linear classifier of as many features as it has columns for."""

    def logits(self, x: Tensor) -> Tensor:
        weight = self.local.trained["weight"]
        return 10 * x[:, : weight.shape[1]] @ weight.T + self.local.trained["bias"]


CONFIG = tiny(
    replace(CASES["fedavg-probe"], method={"name": "test_submodels:Narrow"}),
    run={"participation": 1.0},
)


def refused(run: RunDir) -> list[dict[str, str]]:
    return [row["refused"] for row in run.rows("rounds.jsonl")]


def test_clients_of_two_widths_train_one_model(tmp_path: Path) -> None:
    run = carry_out(CONFIG, tmp_path / "run")
    assert refused(run) == [{}] * 3
    trained = run.rows("rounds.jsonl")[-1]["trained"]
    for way in ("up", "down"):
        sizes = {client: facts[f"parameters_{way}"] for client, facts in trained.items()}
        assert sizes["a"] == sizes["b"] < sizes["c"] == sizes["d"]
    assert server(run)["global.weight"].abs().sum(0).min() > 0


def test_an_upload_of_another_clients_width_is_refused(tmp_path: Path) -> None:
    def wide(reply: Reply) -> Reply:
        if reply.client != "a" or not reply.tensors:
            return reply
        weight = reply.tensors["weight"].repeat(1, 2)
        return replace(reply, tensors=reply.tensors | {"weight": weight})

    run = carry_out(CONFIG, tmp_path / "run", lambda engine: Spoilt(engine, wide))
    for row in refused(run):
        assert row.keys() == {"a"}
        assert "its weight is" in row["a"]
