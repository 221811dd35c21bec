"""Fed-MoE against its paper: each step of a round by hand (spec: B.0 to B.4, C), and where the
published code fell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CASES,
    CLASSES,
    WIDTH,
    Case,
    Remembered,
    TinyModel,
    TinyProbe,
    Wrap,
    carry_out,
    given,
    job_and_engine,
    same_bits,
    tiny,
)
from torch import Tensor

from fedexperts.config import ConfigError, parts
from fedexperts.engine import Engine
from fedexperts.learn import Examples, Learning, Local
from fedexperts.message import Order, Reply, encode
from fedexperts.method import Given, Upload
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.fedmoe import FedMoE
from fedexperts.methods.served import clusters_of
from fedexperts.model import Model
from fedexperts.models.mixture import Mixture
from fedexperts.tensors import Tensors, count, rng, shapes, size, under

MOE = {name: case for name, case in CASES.items() if case.method["name"] == "fedmoe"}
every_moe = pytest.mark.parametrize("case", MOE.values(), ids=MOE)
K, CLIENTS = 3, "abcd"


# A mixture in which everything differs, four clients' models, and a reserve set


def drawn(tensors: Tensors, use: str) -> Tensors:
    """Random values of the same shapes; whole numbers count on."""
    draw = rng(0, use)
    return {
        name: (
            torch.randn(v.shape, generator=draw).abs()
            if v.is_floating_point()
            else v + int(use[-1])
        )
        for name, v in tensors.items()
    }


def mixed(mains: int = 1, top: int = 1, kind: str = "network", experts: int = K) -> Mixture:
    names = tuple(f"expert-{k}" for k in range(experts))
    return Mixture(
        TinyModel(kind).build(CLASSES, 0).model, TinyModel(kind).build(names, 0).model, mains, top
    )


def state(mixture: Mixture) -> Tensors:
    return drawn(mixture.initial, "server 0") | (
        {"alpha": torch.tensor(0.3)} if mixture.mains else {}
    )


def having(mixture: Mixture, count: int = 7) -> Given:
    shape = (3, 4, 4) if "1.running_mean" in mixture.expert.initial else (WIDTH,)
    x = torch.randn(count, 1, *shape, generator=rng(0, "reserve"))
    return Given(mixture, Examples(x, torch.arange(count) % len(CLASSES)), Learning(batch=count), 0)


def uploads(mixture: Mixture) -> list[Upload]:
    return [
        Upload(c, drawn(mixture.expert.initial, f"client {i + 1}"), i + 1)
        for i, c in enumerate(CLIENTS)
    ]


# The paper, transcribed


def gate_of(mixture: Mixture, server: Tensors, x: Tensor) -> Tensor:
    """B.1: Q = G(x), a softmax over the routed experts."""
    return mixture.gate.logits(under(server, "gate"), x).softmax(-1)


def relevance_of(
    mixture: Mixture, server: Tensors, reserve: Examples, sent: Sequence[Upload]
) -> Tensor:
    """B.0 and B.2: the sum over D_r of the outer products of Q(x) with the clients' probabilities
    of x's label.
    """
    gate, total = gate_of(mixture, server, reserve.x[:, 0]), torch.zeros(mixture.experts, len(sent))
    for r, (x, y) in enumerate(zip(reserve.x[:, 0], reserve.y, strict=True)):
        for j, upload in enumerate(sent):
            total[:, j] += (
                gate[r] * mixture.expert.logits(upload.tensors, x[None]).softmax(-1)[0, y]
            )
    return total


def answer_of(mixture: Mixture, server: Tensors, x: Tensor, weights_BK: Tensor) -> Tensor:
    """(1): y(x) = (1 - alpha) E_0(x) + alpha sum_k G_k(x) E_k(x); several main experts are one,
    their mean.
    """

    def expert(name: str) -> Tensor:
        return mixture.expert.logits(under(server, name), x).softmax(-1)

    routed = sum(weights_BK[:, k, None] * expert(f"expert.{k}") for k in range(mixture.experts))
    assert isinstance(routed, Tensor)
    if not mixture.mains:
        return routed
    main = torch.stack([expert(f"main.{i}") for i in range(mixture.mains)]).mean(0)
    return (1 - server["alpha"]) * main + server["alpha"] * routed


def summed(weights: Sequence[Any], items: Sequence[Tensors]) -> Tensors:
    return {
        name: torch.stack([w * item[name] for w, item in zip(weights, items, strict=True)]).sum(0)
        for name in items[0]
    }


def close(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[n], other[n], atol=1e-5) for n in one
    )


every_mains = pytest.mark.parametrize("mains", [0, 1, 2])


@every_mains
@pytest.mark.parametrize(
    ("relevance", "temperature"), [("sum", 1.0), ("sum", 5.0), ("mean", 1.0), ("mean", 0.02)]
)
@pytest.mark.parametrize("weights", ["equal", "examples"])
def test_experts_are_fused_by_relevance_and_main_experts_by_the_mean(
    mains: int, relevance: Any, temperature: float, weights: Any
) -> None:
    """B.2 and B.3, with W^r the softmax of each row; `mean` divides W by the size of D_r;
    `examples` makes each client as many as it has examples.
    """
    method = FedMoE(lam=0.3, relevance=relevance, temperature=temperature, weights=weights)
    mixture = mixed(mains)
    server, sent, own = state(mixture), uploads(mixture), having(mixture)
    if relevance == "mean":
        temperature *= len(own.reserve)
    after = method.merge(own, server, sent, 1)
    counts = torch.tensor([1.0, 2, 3, 4] if weights == "examples" else [1.0, 1, 1, 1])
    rows = (relevance_of(mixture, server, own.reserve, sent) / temperature).exp() * counts
    shares = {f"expert.{k}": rows[k] / rows[k].sum() for k in range(K)}
    shares |= {f"main.{i}": counts / counts.sum() for i in range(mains)}
    for name, share in shares.items():
        fused = summed(share, [upload.tensors for upload in sent])
        assert close(under(after, name), summed([0.7, 0.3], [under(server, name), fused]))


def test_one_expert_alone_is_a_mean_weighted_by_relevance() -> None:
    """lambda = 1, T = 1, K = 1, no main expert: FedAvg, with the softmax of W in place of the
    examples.
    """
    method, mixture = FedMoE(lam=1.0, temperature=2.0), mixed(0, experts=1)
    sent, own = uploads(mixture), having(mixture)
    (row,) = relevance_of(mixture, state(mixture), own.reserve, sent)
    after = method.merge(own, state(mixture), sent, 1)
    assert close(under(after, "expert.0"), summed((row / 2).softmax(0), [u.tensors for u in sent]))


@every_mains
def test_the_gate_descends_its_loss_and_alpha_the_cross_entropy(mains: int) -> None:
    """B.4, a first step of Adam by hand; pitfall 13: the gate has a gradient, however few experts
    will answer.
    """
    method, mixture = (
        FedMoE(lam=0.0, beta=0.5, gate_rate=0.01, alpha_rate=0.02),
        mixed(mains, top=1),
    )
    server, own = state(mixture), having(mixture)
    free = {
        name: v.clone().requires_grad_()
        for name, v in server.items()
        if name.startswith(("gate.", "alpha"))
    }
    weights = gate_of(mixture, free, own.reserve.x[:, 0])
    answers = answer_of(mixture, server | free, own.reserve.x[:, 0], weights)
    loss = -answers.log()[range(len(own.reserve)), own.reserve.y].mean()
    loss = loss - 0.5 * (weights * weights.log()).sum(-1).mean()
    gradients = dict(zip(free, torch.autograd.grad(loss, list(free.values())), strict=True))
    after = method.merge(own, server, uploads(mixture), 1)
    for name, g in gradients.items():
        assert g.any(), name
        step = (0.02 if name == "alpha" else 0.01) * g / (g.abs() + 1e-8)
        assert torch.allclose(after[name], free[name] - step, atol=1e-5), name


def test_alpha_stays_a_share() -> None:
    for rate in (0.0, 50.0):
        mixture = mixed()
        after = FedMoE(alpha_rate=rate).merge(having(mixture), state(mixture), uploads(mixture), 1)
        assert (
            after["alpha"] == state(mixture)["alpha"]
            if rate == 0
            else float(after["alpha"]) in (0, 1)
        )


@every_mains
def test_without_routing_the_gate_stays_where_it_is(mains: int) -> None:
    mixture = mixed(mains)
    server, own = state(mixture), having(mixture)
    after = FedMoE(gate="uniform").merge(own, server, uploads(mixture), 1)
    assert same_bits(under(after, "gate"), under(server, "gate"))
    x = own.reserve.x[:, 0]
    served = FedMoE(gate="uniform").served(mixture, server).logits(x)
    assert torch.allclose(
        served.exp(), answer_of(mixture, server, x, torch.full((len(x), K), 1 / K)), atol=1e-5
    )


@every_mains
def test_each_client_is_given_its_own_blend(mains: int) -> None:
    """C: W is computed anew; W^c, the softmax of each column of concat(1 - alpha, alpha W); lambda
    of one's own.
    """
    method, mixture = FedMoE(inner=2, lam=0.5, lam_client=0.2, blend_temperature=2.0), mixed(mains)
    sent, own = uploads(mixture), having(mixture)
    after = method.merge(own, state(mixture), sent, 1)
    alpha = after["alpha"] if mains else torch.tensor(1.0)
    rows = alpha * relevance_of(mixture, after, own.reserve, sent)
    experts = [under(after, f"expert.{k}") for k in range(K)]
    if mains:
        rows = torch.cat([(1 - alpha).expand(1, len(sent)), rows])
        experts.insert(
            0, summed([1 / mains] * mains, [under(after, f"main.{i}") for i in range(mains)])
        )
    back, shares = method.give_back(after, sent), (rows / 2).softmax(0)
    for j, upload in enumerate(sent):
        blend = summed(shares[:, j], experts)
        given_back = under(back[upload.client].tensors, "blend")
        assert close(given_back, summed([0.2, 0.8], [upload.tensors, blend]))
        later = replace(method, blend="next-order")
        order = later.send(after, CLIENTS, 2, 0)[upload.client].tensors
        begun = later.start(mixture, order, Local(upload.tensors).kept(), rng(0, "start"))
        assert close(begun.trained, given_back), (
            "with the next order, the same of the experts as they are then"
        )
        kept = under(
            method.absorb(mixture, back[upload.client].tensors, None, own.reserve), "trained"
        )
        assert same_bits(kept, given_back)


def test_relative_relevance_is_in_units_of_its_spread() -> None:
    """An option of ours: what a client says more than the others where the gate sends to an
    expert.
    """
    method, mixture = FedMoE(lam=1.0, relevance="relative"), mixed(0)
    server, sent, own = state(mixture), uploads(mixture), having(mixture)
    x = own.reserve.x[:, 0]
    gate = gate_of(mixture, server, x)
    said = torch.stack(
        [
            mixture.expert.logits(u.tensors, x).softmax(-1)[range(len(x)), own.reserve.y]
            for u in sent
        ]
    )
    more = (gate / gate.sum(0)).T @ (said - said.mean(0)).T
    rows = (
        (more - more.mean(1, keepdim=True)) / more.std(1, unbiased=False, keepdim=True)
    ).softmax(1)
    after = method.merge(own, server, sent, 1)
    for k in range(K):
        assert close(under(after, f"expert.{k}"), summed(rows[k], [u.tensors for u in sent]))


def test_who_is_who_decides_nothing() -> None:
    """Other names for the same models: relevance goes with the model, all else stays (up to the
    order of sums).
    """
    method, mixture = FedMoE(lam=0.5, temperature=0.1), mixed()
    sent, own = uploads(mixture), having(mixture)
    renamed = [replace(sent[j], client=name) for name, j in zip(CLIENTS, (2, 0, 3, 1), strict=True)]
    before, after = (method.merge(own, state(mixture), each, 1) for each in (sent, renamed))
    new = {
        f"shares.{sent[j].client}": f"shares.{name}"
        for name, j in zip(CLIENTS, (2, 0, 3, 1), strict=True)
    }
    assert close(before, {name: after[new.get(name, name)] for name in after})
    assert not close(under(before, "shares"), under(after, "shares"))


# The mixture


@every_mains
@pytest.mark.parametrize("top", [1, 2, 3])
def test_the_few_are_the_mixture_without_the_others(mains: int, top: int) -> None:
    """Top-L: the gate's largest weights, made to sum to one; with L = K, equation (1) itself."""
    mixture = mixed(mains, top)
    server, x = state(mixture), torch.randn(9, WIDTH)
    weights = gate_of(mixture, server, x)
    assert torch.allclose(
        mixture.logits(server, x).exp(), answer_of(mixture, server, x, weights), atol=1e-5
    )
    least = weights.sort(descending=True).values[:, top - 1 : top]
    few = torch.where(weights >= least, weights, 0)
    expected = answer_of(mixture, server, x, few / few.sum(-1, keepdim=True))
    assert torch.allclose(mixture.predict(server, x).exp(), expected, atol=1e-5)


class Counting(TinyProbe):
    """A probe that knows how many inputs it was shown."""

    together = False
    shown = 0

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        self.shown += len(x)
        return super().logits(tensors, x)


@pytest.mark.parametrize("top", [1, 2])
def test_an_expert_that_is_not_chosen_is_not_computed(top: int) -> None:
    expert = Counting()
    mixture = Mixture(expert, mixed().gate, 2, top)
    server = state(mixture)
    mixture.predict(server, torch.randn(9, WIDTH))
    assert expert.shown == 9 * (2 + top)


@every_mains
def test_experts_share_no_storage(mains: int) -> None:
    """Pitfall 14: neither at the start nor after a round is one of them another."""
    mixture = mixed(mains)
    for server in (
        mixture.initial,
        FedMoE(lam=1.0).merge(having(mixture), state(mixture), uploads(mixture), 1),
    ):
        own = [value for name, value in server.items() if not name.startswith("shares.")]
        assert len({value.untyped_storage().data_ptr() for value in own}) == len(own)


def test_experts_that_are_equal_are_said_to_be() -> None:
    """The spread of the routed experts is 0 at the common start, be that zero itself, and what it
    is by hand later.
    """
    zero = Mixture(TinyProbe(), mixed().gate, 1, 1)
    x, y = torch.randn(5, WIDTH), torch.zeros(5, dtype=torch.int64)
    for mixture in (mixed(), zero):
        assert FedMoE().served(mixture, mixture.initial).metrics(x, y)["apart"] == 0
    server = zero.initial | {f"expert.{k}.bias": torch.tensor([float(k), 1, 0]) for k in range(K)}
    apart = FedMoE().served(zero, server).metrics(x, y)["apart"]
    assert apart == pytest.approx((2 / 3) ** 0.5 / 2**0.5)


def test_what_is_shown_of_a_mixture_is_how_it_does_without_its_parts() -> None:
    mixture = mixed(2, top=2)
    server, draw = state(mixture), rng(0, "shown")
    x, y = (
        torch.randn(40, WIDTH, generator=draw),
        torch.randint(len(CLASSES), (40,), generator=draw),
    )
    held = server | {"shares.a": torch.tensor([0.5, 0.25])}
    shown = FedMoE().served(mixture, held).metrics(x, y)
    weights, even, sure = (
        gate_of(mixture, server, x),
        torch.full((40, K), 1 / K),
        {"alpha": torch.tensor(1.0)},
    )
    few = torch.where(weights > weights.min(-1, keepdim=True).values, weights, 0)
    few /= few.sum(-1, keepdim=True)

    def right(answers: Tensor) -> int:
        return int((answers.argmax(-1) == y).sum())

    one = torch.eye(K)[:, None].expand(K, 40, K)
    assert shown["dense_correct"] == right(answer_of(mixture, server, x, weights))
    assert shown["uniform_correct"] == right(answer_of(mixture, server, x, even))
    assert shown["routed_correct"] == right(answer_of(mixture, server | sure, x, few))
    assert shown["main_correct"] == right(
        answer_of(mixture, server | {"alpha": torch.tensor(0.0)}, x, even)
    )
    assert shown["experts_correct"] == [
        right(answer_of(mixture, server | sure, x, one[k])) for k in range(K)
    ]
    chosen = weights.argmax(-1)
    assert shown["use"] == [
        float(((chosen == k) & (y == c)).sum()) for k in range(K) for c in range(len(CLASSES))
    ]
    assert shown["entropy"] == pytest.approx(
        float(-(weights * weights.log()).sum(-1).mean()), rel=1e-4
    )
    assert (shown["alpha"], shown["shares.a"]) == (pytest.approx(0.3), [0.5, 0.25])


def test_a_warm_gate_knows_the_clusters_of_the_reserve_set(tmp_path: Path) -> None:
    """So that it does not start symmetric; a random one agrees with them by chance."""
    job, _ = job_and_engine(tiny(MOE["fedmoe"]), tmp_path)
    x = job.reserve.x[:, 0]
    clusters = clusters_of(x, K, job.seed)

    def agreeing(warmup: int) -> float:
        server = FedMoE(warmup=warmup, gate_rate=0.03).open(job.given)
        return float((gate_of(job.model, server, x).argmax(-1) == clusters).float().mean())  # type: ignore[arg-type]

    assert agreeing(30) > 0.9 > 0.6 > agreeing(0)


def test_texts_are_clustered_by_the_words_in_them() -> None:
    texts = torch.tensor([[1, 1, 2], [9, 8, 8], [2, 1, 1], [8, 9, 8], [2, 2, 1]])
    found = clusters_of(texts, 2, 0).tolist()
    assert found in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])


# Batch norm


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    """Pitfall 17, for fused experts and for blends; the counter is that of whoever counts most."""
    method, mixture = FedMoE(lam=1.0, temperature=0.02, lam_client=0.4), mixed(kind="norm")
    server, sent, own = state(mixture), uploads(mixture), having(mixture)
    after = method.merge(own, server, sent, 1)
    shares = (relevance_of(mixture, server, own.reserve, sent) / 0.02).softmax(1)
    for k in range(K):
        expert = under(after, f"expert.{k}")
        statistics = [
            {"m": u.tensors["1.running_mean"], "v": u.tensors["1.running_var"]} for u in sent
        ]
        assert close(
            {"m": expert["1.running_mean"], "v": expert["1.running_var"]},
            summed(shares[k], statistics),
        )
        assert expert["1.num_batches_tracked"] == 1 + shares[k].argmax()
    assert under(after, "main.0")["1.num_batches_tracked"] in (1, 2, 3, 4)
    back = method.give_back(after, sent)["d"].tensors
    assert shapes(under(back, "blend")) == shapes(mixture.expert.initial)


def test_a_gate_with_batch_norm_counts_its_steps() -> None:
    mixture = mixed(kind="norm")
    server = state(mixture)
    after = FedMoE(gate_epochs=2, inner=3).merge(having(mixture), server, uploads(mixture), 1)
    assert after["gate.1.num_batches_tracked"] - server["gate.1.num_batches_tracked"] == 6


def test_fedprox_holds_no_running_statistics() -> None:
    model: Any = TinyModel("norm").build(CLASSES, 0).model
    prox = FedAvg(mu=0.3)
    local = prox.start(model, prox.publish(prox.open(given(model))), None, rng(0, "start"))
    moved = {
        name: value + 1 if name in model.buffers else value for name, value in local.trained.items()
    }
    assert prox.penalty(model, Local(moved, local.fixed)) == 0
    assert float(prox.penalty(model, Local({n: v + 1 for n, v in moved.items()}, local.fixed))) > 0


def test_a_mixture_in_training_is_its_parts_in_training() -> None:
    """Each expert's and the gate's statistics move as they would alone, and nothing that was given
    is written over.
    """
    mixture = mixed(2, kind="norm")
    server, x = state(mixture), torch.randn(6, 3, 4, 4)
    before = {name: value.clone() for name, value in server.items()}
    logits, moved = mixture.step(server, x)
    model: Any = mixture.expert
    gate: Any = mixture.gate
    weights, _ = gate.step(under(server, "gate"), x)
    in_training = Mixture(InTraining(model), mixture.gate, 2, 1)
    expected = answer_of(in_training, server, x, weights.softmax(-1))
    assert torch.allclose(logits.exp(), expected, atol=1e-5)
    assert moved.keys() == mixture.buffers
    for name in ("main.1", "expert.2"):
        assert same_bits(under(moved, name), model.step(under(server, name), x)[1])
    assert same_bits(server, before)


class InTraining(TinyProbe):
    """A model that is always in training."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.initial, self.classes = inner, inner.initial, inner.classes

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        logits: Tensor = self.inner.step(tensors, x)[0]
        return logits


# What travels


@dataclass(frozen=True)
class Overhearing:
    """An engine whose orders and replies somebody reads."""

    inner: Engine
    orders: list[Order]
    replies: list[Reply]

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        replies = self.inner.exchange(orders)
        self.orders.extend(orders)
        self.replies.extend(replies)
        return replies


def overheard(case: Case, path: Path) -> tuple[list[dict[str, Any]], list[Order], list[Reply]]:
    orders: list[Order] = []
    replies: list[Reply] = []
    wrap: Wrap = lambda engine: Overhearing(engine, orders, replies)  # noqa: E731
    return carry_out(tiny(case), path, wrap).rows("rounds.jsonl"), orders, replies


NONE = replace(MOE["fedmoe-next"], method=MOE["fedmoe-next"].method | {"blend": "none"})


@pytest.mark.parametrize("case", [*MOE.values(), NONE], ids=[*MOE, "fedmoe-none"])
def test_a_client_gets_one_model_a_round_and_sends_one(case: Case, tmp_path: Path) -> None:
    """In the log and in every order: newcomers too; neither the mixture nor the reserve set is in
    any of them.
    """
    rows, orders, replies = overheard(case, tmp_path / "run")
    job, _ = job_and_engine(tiny(case), tmp_path / "private")
    model: Model = job.model.expert  # type: ignore[attr-defined]
    one = size(model.initial)
    for row in rows:
        for client, facts in row["trained"].items():
            got = [
                o.tensors
                for o in orders
                if (o.round, o.client) == (row["round"], client) and o.task != "predict"
            ]
            assert facts["bytes_down"] == sum(map(size, got)) <= one == facts["bytes_up"]
            assert facts["parameters_down"] == sum(map(count, got))
    for order in orders:
        if order.tensors:
            (prefix,) = {name.split(".")[0] for name in order.tensors}
            assert prefix in ("global", "blend")
            assert shapes(under(order.tensors, prefix)) == shapes(model.initial)
    secrets = [x.numpy().tobytes() for x in job.reserve.x]
    assert not any(secret in encode(order) for secret in secrets for order in orders)
    assert all(not reply.tensors for reply in replies if reply.task == "absorb")


def test_absorbing_is_measured_before_and_after(tmp_path: Path) -> None:
    rows, orders, replies = overheard(MOE["fedmoe"], tmp_path / "run")
    job, engine = job_and_engine(tiny(MOE["fedmoe"]), tmp_path / "private")

    def right(client: str, tensors: Tensors) -> int:
        test = engine.members[client].test
        return int((job.model.expert.logits(tensors, test.x[:, 0]).argmax(-1) == test.y).sum())  # type: ignore

    trained = {(r.round, r.client): r.tensors for r in replies if r.task == "train"}
    blends = {(o.round, o.client): under(o.tensors, "blend") for o in orders if o.task == "absorb"}
    assert trained.keys() == blends.keys()
    for (round, client), blend in blends.items():
        facts = rows[round - 1]["absorbed"][client]
        assert facts == {
            "before_correct": right(client, trained[round, client]),
            "after_correct": right(client, blend),
            "test_examples": 20,
        }


@every_moe
def test_the_server_is_examined_on_everybodys_examples(
    case: Case, remembered: Remembered, tmp_path: Path
) -> None:
    """Its own predictor, on all clients' test and validation parts in one, and how large it and its
    clients are.
    """
    folder = remembered(tiny(case))
    job, engine = job_and_engine(tiny(case), tmp_path)
    found, row = folder.load(), folder.rows("server.jsonl")[-1]
    assert found is not None
    assert (row["server_parameters"], row["server_bytes"]) == (count(found[1]), size(found[1]))
    one = job.model.expert.initial  # type: ignore[attr-defined]
    for facts in folder.rows("rounds.jsonl")[-1]["trained"].values():
        assert (facts["parameters"], facts["bytes"]) == (count(one), size(one))
        assert (facts["parameters_up"], facts["bytes_up"]) == (count(one), size(one))
    for part in ("valid", "test"):
        several = [getattr(site, part) for site in engine.members.values()]
        answers = [job.model.predict(found[1], each.x[:, 0]).argmax(-1) for each in several]  # type: ignore
        right = sum(int((a == each.y).sum()) for a, each in zip(answers, several, strict=True))
        assert (row[f"{part}_correct"], row[f"{part}_examples"]) == (right, sum(map(len, several)))


def test_a_server_without_a_predictor_of_its_own_says_how_large_it_is(
    remembered: Remembered,
) -> None:
    for row in remembered(tiny(CASES["fedavg"])).rows("server.jsonl"):
        assert row.keys() == {"round", "server_parameters", "server_bytes"}
        assert (row["server_parameters"], row["server_bytes"]) == (2 * 4, 2 * 4 * 4)


def test_a_client_whose_disk_is_lost_begins_afresh(tmp_path: Path) -> None:
    """With nothing kept and nothing sent, from the common start."""
    job, _ = job_and_engine(tiny(MOE["fedmoe"]), tmp_path)
    assert same_bits(
        job.method.start(job.model, {}, None, rng(0, "start")).trained, job.model.expert.initial
    )  # type: ignore


# What is asked for together


def test_the_common_start_is_learnt_from_the_reserve_set_and_everybodys(tmp_path: Path) -> None:
    """Spec: clients and experts start from the same weights; these know the reserve set's
    labels.
    """
    plain, _ = job_and_engine(tiny(MOE["fedmoe"]), tmp_path)
    job, _ = job_and_engine(tiny(MOE["fedmoe"], start={"epochs": 60, "rate": 0.01}), tmp_path)
    model: Any = job.model

    def right(start: Tensors) -> float:
        return float(
            (model.expert.logits(start, job.reserve.x[:, 0]).argmax(-1) == job.reserve.y)
            .float()
            .mean()
        )

    start = model.expert.initial
    assert right(start) > 0.9 > right(plain.model.expert.initial)  # type: ignore[attr-defined]
    server = job.method.open(job.given)
    for name in ("main.0", "expert.0", "expert.1", "expert.2"):
        assert same_bits(under(server, name), start)
    assert same_bits(job.method.restore(model, job.method.publish(server), None).trained, start)
    assert same_bits(under(server, "gate"), plain.model.gate.initial)  # type: ignore[attr-defined]


WRONG: dict[str, tuple[Case, dict[str, Any], str]] = {
    "no reserve": (
        replace(MOE["fedmoe"], reserve=0),
        {},
        r"needs a reserve set, and there is none; use data.reserve",
    ),
    "no mixture": (
        replace(MOE["fedmoe"], mixture=None),
        {},
        r"needs a mixture; use a section \[mixture\]",
    ),
    "no reserve to start from": (
        CASES["fedavg-norm"],
        {"start": {"epochs": 1}},
        "start.epochs needs a reserve set",
    ),
    "no start but its own": (
        replace(CASES["fedavg"], reserve=2),
        {"start": {"epochs": 1}},
        "TinyPrompted has a start of its own; use start.epochs = 0",
    ),
}


@pytest.mark.parametrize(("case", "sections", "why"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_with_what_would(
    case: Case, sections: Any, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=why):
        job_and_engine(tiny(case, **sections), tmp_path)


def test_more_experts_cannot_answer_than_there_are() -> None:
    with pytest.raises(ConfigError, match="top = 4 of 3 experts; expected 1 to 3"):
        tiny(MOE["fedmoe"], mixture={"top": 4})


def test_a_method_is_asked_before_anything_is_computed() -> None:
    with pytest.raises(ValueError, match="needs a mixture"):
        parts(tiny(replace(MOE["fedmoe"], mixture=None)))
