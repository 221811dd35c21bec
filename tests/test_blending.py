"""Whom a client of Gaussian experts hears, and what is told where: each equation against what one
would write down, placebos, sums alone, groups; and the class vectors that are their controls.
"""

from typing import Any

import pytest
import torch
from conftest import TinyProbe, TinyPrompted, given
from test_gaussian import C, P, accuracy, blends, federation, pooled, round_of, world
from torch import Tensor

from fedexperts.learn import Examples, Local
from fedexperts.method import Upload
from fedexperts.methods import discriminant
from fedexperts.methods.discriminant import Experts, Prior
from fedexperts.methods.gaussian import GaussianExperts
from fedexperts.methods.pool import said_of, sums_of, symmetric
from fedexperts.methods.vectors import ClassVectors
from fedexperts.tensors import Tensors, rng, under

# The equations


def test_a_blend_is_its_weighted_sums_and_the_scatter_about_them() -> None:
    experts = pooled(federation())
    N, draw = len(experts), rng(0, "weights")
    w = torch.rand(2, N, C, generator=draw).double()
    v = torch.rand(2, N, generator=draw).double()
    prior = Prior(1.5, torch.randn(C, P, generator=draw).double(), 0.1)
    for i, blend in enumerate(discriminant.blended(experts, w, v, prior)):
        n, m, S = experts.count, experts.mean, experts.scatter
        total = [sum(w[i, j, c] * n[j, c] for j in range(N)) for c in range(C)]
        sums = [sum(w[i, j, c] * n[j, c] * m[j, c] for j in range(N)) for c in range(C)]
        middle = sum(sums) / sum(total)
        sigma = sum(v[i, j] * S[j] for j in range(N))
        for c in range(C):
            mean = sums[c] / total[c]
            mu = (sums[c] + 1.5 * (middle + prior.anchor[c])) / (total[c] + 1.5)
            torch.testing.assert_close(blend.mu[c], mu)
            for j in range(N):
                share = min(v[i, j], (w[i, j] * n[j]).sum() / n[j].sum())
                sigma += share * n[j, c] * torch.outer(m[j, c] - mean, m[j, c] - mean)
        sigma = sigma / (sum(v[i, j] * n[j].sum() for j in range(N)) - C)
        ridge = 0.1 * sigma.diagonal().mean() * torch.eye(P).double()
        torch.testing.assert_close(blend.inverse / blend.variance, torch.linalg.inv(sigma + ridge))


def test_disagreement_is_the_squared_offset_less_its_noise() -> None:
    experts = pooled(federation(turned=("b",)))
    S = discriminant.within(experts)
    A = torch.linalg.inv(S + 0.3 * S.diagonal().mean() * torch.eye(P).double())
    edf = (A * S).sum()
    raw, noise = {}, {}
    N = len(experts)
    for i in range(N):
        for j in range(N):
            if i == j:
                continue
            far, H = torch.tensor(0.0).double(), torch.tensor(0.0).double()
            for c in range(C):
                a, b = experts.count[i, c], experts.count[j, c]
                away = experts.mean[i, c] - experts.mean[j, c]
                far += a * b / (a + b) * (away @ A @ away)
                H += a * b / (a + b)
            raw[i, j] = (far - C * edf) / (H * edf)
            noise[i, j] = 2 * C / (edf * H.square())
    all_raw, all_noise = torch.stack(list(raw.values())), torch.stack(list(noise.values()))
    spread = all_raw.var(unbiased=False) - all_noise.mean()
    u = discriminant.disagreement(experts)
    for pair, value in raw.items():
        trust = spread / (spread + noise[pair])
        shrunk = trust * value + (1 - trust) * all_raw.mean()
        torch.testing.assert_close(u[pair], shrunk.clamp_min(0))


def test_examples_with_an_offset_are_worth_less_the_more_there_are() -> None:
    experts = pooled(federation())
    u = torch.tensor([[0.0, 0.5, 1.0, 2.0, 4.0]]).double()
    weight, scatter = discriminant.heard(experts, u, torch.full_like(u, 0.5), 2.0, 3.0)
    for j in range(5):
        assert scatter[0, j] == pytest.approx(float(1 / (1 + 3 * u[0, j])))
        for c in range(C):
            expected = 0.5 / (1 + 2 * experts.count[j, c] * u[0, j])
            assert weight[0, j, c] == pytest.approx(float(expected))


def sums_over(clients: dict[str, Examples], method: GaussianExperts, model: Any) -> Tensors:
    server = method.open(given(model))
    local = Local({}, under(server, "global"))
    uploads = [
        Upload(name, method.observe(model, local, own), len(own)) for name, own in clients.items()
    ]
    return method.merge(given(model), server, uploads, 1)


@pytest.mark.parametrize("width", [0, 5])
def test_sums_alone_are_the_discriminant_of_one_pile(width: int) -> None:
    """Behind a basis, too, which comes from the same sums: one round is all."""
    clients, model = federation(), TinyProbe()
    method = GaussianExperts(select="none", width=width)
    server = sums_over(clients, method, model)
    basis = under(server, "global")
    x = torch.cat([own.x[:, 0] for own in clients.values()])
    y = torch.cat([own.y for own in clients.values()])
    if width:
        x = (x - basis["middle"]) @ basis["basis"]
    anchor = torch.zeros(C, x.shape[1]).double()
    pile = discriminant.piled(discriminant.expert(x, y, C), Prior(1.0, anchor, 0.1))
    torch.testing.assert_close(basis["mean"][0].double(), pile.mu, atol=1e-5, rtol=0)
    torch.testing.assert_close(basis["variance"].double(), pile.variance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(basis["inverse"].double(), pile.inverse, atol=1e-2, rtol=1e-3)


def test_where_sums_are_enough_the_server_keeps_nothing_of_a_single_client() -> None:
    method, model, clients = GaussianExperts(select="none"), TinyProbe(), federation()
    server = sums_over(clients, method, model)
    assert not under(server, "pool")
    uploads = [Upload(name, {}, len(own)) for name, own in clients.items()]
    back = method.give_back(server, uploads)
    assert len({id(sent) for sent in back.values()}) == 1, "all are given the same"
    assert method.uploads(model) == {"frequency", "sum", "moment"}
    with pytest.raises(ValueError, match="nothing to group or to replace"):
        GaussianExperts(select="none", groups="names").fits(model, 0)


def test_one_image_moves_sums_by_at_most_the_root_of_three() -> None:
    """As they leave, by the number of examples: what noise must be calibrated to."""
    own = world(0, 20)

    def sent(rows: Tensor) -> Tensor:
        parts = sums_of(own.x[rows, 0], own.y[rows], C, len(own))
        moment = symmetric(parts["moment"], P).float()
        return torch.cat([parts["frequency"], parts["sum"].flatten(), moment.flatten()])

    everyone = torch.arange(len(own))
    for i in range(len(own)):
        step = (sent(everyone) - sent(everyone[everyone != i])).norm() * len(own)
        assert step == pytest.approx(3**0.5, abs=1e-4)


def test_a_scatter_of_few_numbers_has_the_right_variances() -> None:
    draw = rng(0, "wide")
    x = torch.randn(60, 20, generator=draw) * torch.linspace(3, 0.1, 20)
    expert = discriminant.expert(x, torch.arange(60) % C, C)
    whole = expert.scatter[0] / 60
    told = {
        kind: symmetric(said_of(expert, kind, 60)["scatter"], 20)  # type: ignore[arg-type]
        for kind in ("full", "low-rank", "diagonal")
    }
    for matrix in told.values():
        torch.testing.assert_close(matrix.diagonal(), whole.diagonal(), atol=1e-5, rtol=1e-4)
    errors = {kind: float((matrix - whole).norm()) for kind, matrix in told.items()}
    assert errors["full"] < 1e-5 < errors["low-rank"] < 0.5 * errors["diagonal"]
    assert said_of(expert, "low-rank", 60)["scatter"].numel() == 9 * 20


# Whom a client hears


@pytest.mark.parametrize("kind", ["labels", "classes", "random"])
def test_a_placebo_helps_nobody(kind: str) -> None:
    """Never above one's own expert alone by more than noise; the truth is above it by far."""
    clients = federation() | {"e": world(44, 3)}
    test = world(51, 300)
    method = GaussianExperts(placebo=kind)  # type: ignore[arg-type]
    alone = accuracy(method, blends(GaussianExperts(experts=0), clients)["e"], test)
    truth = accuracy(method, blends(GaussianExperts(), clients)["e"], test)
    instead = accuracy(method, blends(method, clients)["e"], test)
    assert instead < alone + 0.01 < truth


def test_with_a_placebo_each_client_still_tells_itself_the_truth() -> None:
    clients = federation()
    server = round_of(GaussianExperts(), clients, GaussianExperts().open(given(TinyProbe())))
    method = GaussianExperts(placebo="classes", eta=1e9)  # nobody else is heard
    false = round_of(method, clients, method.open(given(TinyProbe())))
    assert torch.equal(server["pool.a.mean"], false["pool.a.mean"])
    assert not torch.equal(false["pool.a.placebo.mean"], false["pool.a.mean"])
    given_to_a = dict(method.blends(false, ["a"]))["a"]
    mean = given_to_a["about.average"]
    torch.testing.assert_close(mean, server["pool.a.mean"], atol=1e-4, rtol=0)


def test_a_federation_that_knows_its_groups_may_name_them() -> None:
    """Who is of another group is not heard, and who has a name of its own is alone."""
    clients = dict(zip(("x-1", "x-2", "y-1", "y-2", "z"), federation().values(), strict=True))
    method = GaussianExperts(groups="names", rho=0.0, eta=0.0)
    server = round_of(method, clients, method.open(given(TinyProbe())))
    given_to = dict(method.blends(server, list(clients)))
    sizes = {name: len(own) for name, own in clients.items()}
    for name, group in {"x-1": ("x-1", "x-2"), "y-2": ("y-1", "y-2"), "z": ("z",)}.items():
        counted = float(given_to[name]["about.count"].sum())
        assert counted == pytest.approx(sum(sizes[other] for other in group), rel=1e-4)


def test_blocks_of_clients_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    method, clients = GaussianExperts(regimes=2), federation()
    server = round_of(method, clients, method.open(given(TinyProbe())))
    whole = dict(method.blends(server, list(clients)))
    monkeypatch.setattr("fedexperts.methods.blending.BLOCK", 2)
    for name, tensors in method.blends(server, list(clients)):
        for part, value in tensors.items():
            torch.testing.assert_close(value, whole[name][part], atol=1e-5, rtol=1e-5)


def test_a_class_of_few_images_is_not_told() -> None:
    own = world(0, 9)
    few = Examples(own.x[:8], own.y[:8])  # three, three, and two
    told = GaussianExperts(least=3).observe(TinyProbe(), Local({}, {}), few)
    assert told["frequency"].tolist() == pytest.approx([3 / 8, 3 / 8, 0])
    assert not told["mean"][2].any()
    nothing = GaussianExperts(least=9).observe(TinyProbe(), Local({}, {}), few)
    assert not any(value.any() for value in nothing.values())
    assert all(torch.isfinite(value).all() for value in nothing.values())


# Class vectors


def whitened(clients: dict[str, Examples], model: Any) -> Tensors:
    method = ClassVectors(whiten=True)
    server = method.open(given(model))
    local = method.start(model, method.publish(server), None, rng(0, ""))
    assert not local.trained, "the round of the metric trains nothing"
    uploads = []
    for name, own in clients.items():
        said = method.observe(model, local, own)
        expected = method.expects(server, model, name)
        assert {n: v.shape for n, v in said.items()} == {n: v.shape for n, v in expected.items()}
        uploads.append(Upload(name, said, len(own)))
    return method.merge(given(model), server, uploads, 1)


def test_whitened_features_vary_alike_in_every_direction() -> None:
    """Inside classes, about everybody's class means; the ridge holds the least varying back."""
    clients = federation()
    shared = under(whitened(clients, TinyProbe()), "global")
    x = torch.cat([own.x[:, 0] for own in clients.values()])
    y = torch.cat([own.y for own in clients.values()])
    turned = (x - shared["middle"]) @ shared["basis"]
    for c in range(C):
        turned[y == c] -= turned[y == c].mean(0)
    variances = torch.linalg.eigvalsh(turned.T @ turned / len(turned))
    plain = x.clone()
    for c in range(C):
        plain[y == c] -= plain[y == c].mean(0)
    before = torch.linalg.eigvalsh(plain.T @ plain / len(plain))
    size = before.mean()
    torch.testing.assert_close(
        variances / size, (before / size) / (before / size + 0.1), atol=1e-4, rtol=1e-3
    )


def test_class_vectors_start_at_zero_shot_whitened_or_not() -> None:
    model = TinyPrompted(torch.randn(2, 4, generator=rng(0, "context")))
    x = world(55, 20).x[:, 0]
    expected = model.logits(model.initial, x).log_softmax(-1)
    method = ClassVectors()
    for server in (method.open(given(model)), whitened(federation(), model)):
        shared = method.restore(model, method.publish(server), None)
        predictor = method.predictor(model, shared)
        ours = predictor.logits(x).log_softmax(-1)
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)
        portable = predictor.portable()
        space: dict[str, Any] = {"t": portable.tensors, "n": portable.numbers}
        exec(portable.code, space)  # the lines that an export writes
        torch.testing.assert_close(space["logits"](x), predictor.logits(x))


def test_experts_are_joined_and_replaced_by_client() -> None:
    experts = pooled(federation())
    other = Experts(experts.count + 1, experts.mean + 1, experts.scatter + 1)
    mixed = other.in_place(2, experts)
    assert torch.equal(mixed.mean[2], experts.mean[2])
    assert torch.equal(mixed.mean[:2], other.mean[:2])
    assert torch.equal(mixed.scatter[3:], other.scatter[3:])
