"""Gaussian experts, held to what one would write down for a federation of a few clients."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import TinyProbe, TinyPrompted, given
from torch import Tensor

from fedexperts.learn import Examples, Local
from fedexperts.method import Upload
from fedexperts.methods import discriminant, regimes
from fedexperts.methods.blending import World
from fedexperts.methods.discriminant import Experts, Prior
from fedexperts.methods.gaussian import GaussianExperts
from fedexperts.methods.head import Judges, added, better, head, prior_of
from fedexperts.methods.pool import experts_of
from fedexperts.tensors import Tensors, pack, rng, under

C, P = 3, 8
CLIENTS = ("a", "b", "c", "d", "e")


def world(seed: int, count: int, turned: bool = False) -> Examples:
    """Three classes about three means in eight dimensions; `turned`: their names are others."""
    draw = rng(seed, "world")
    means = torch.eye(C, P)
    y = torch.arange(count) % C
    x = torch.nn.functional.normalize(means[y] + 0.25 * torch.randn(count, P, generator=draw))
    return Examples(x[:, None], (y + 1) % C if turned else y)


def federation(seed: int = 0, turned: Sequence[str] = ()) -> dict[str, Examples]:
    sizes = dict(zip(CLIENTS, (12, 15, 9, 21, 6), strict=True))
    return {
        name: world(10 * seed + number, size, name in turned)
        for number, (name, size) in enumerate(sizes.items())
    }


def pooled(clients: dict[str, Examples]) -> Experts:
    each = [discriminant.expert(own.x[:, 0], own.y, C) for own in clients.values()]
    whole = each[0]
    for one in each[1:]:
        whole = whole.with_another(one)
    return whole


def round_of(method: GaussianExperts, clients: dict[str, Examples], server: Tensors) -> Tensors:
    """The server after every client told what it knows."""
    model = TinyProbe()
    sent = method.send(server, list(clients), 1, 0)
    uploads = []
    for name, own in clients.items():
        local = method.start(model, sent[name].tensors, None, rng(0, "start", client=name))
        said = method.observe(model, local, own)
        expected = method.expects(server, model, name)
        assert {n: v.shape for n, v in said.items()} == {n: v.shape for n, v in expected.items()}
        uploads.append(Upload(name, said, len(own)))
    return method.merge(given(model), server, uploads, 1)


def blends(method: GaussianExperts, clients: dict[str, Examples]) -> dict[str, Local]:
    """What each client predicts with after one round."""
    model = TinyProbe()
    server = round_of(method, clients, method.open(given(model)))
    back = method.give_back(server, [Upload(name, {}, len(own)) for name, own in clients.items()])
    return {
        name: Local.of(method.absorb(model, back[name].tensors, None, own))
        for name, own in clients.items()
    }


def accuracy(method: GaussianExperts, local: Local, examples: Examples) -> float:
    logits = method.predictor(TinyProbe(), local).logits(examples.x[:, 0])
    return float((logits.argmax(-1) == examples.y).float().mean())


# The equations


def test_an_expert_is_counts_means_and_squares_about_them() -> None:
    own = world(0, 10)
    expert = discriminant.expert(own.x[:, 0], own.y, C)
    scatter = torch.zeros(P, P, dtype=torch.float64)
    for c in range(C):
        x = own.x[own.y == c, 0].double()
        assert expert.count[0, c] == len(x)
        torch.testing.assert_close(expert.mean[0, c], x.mean(0))
        scatter += (x - x.mean(0)).T @ (x - x.mean(0))
    torch.testing.assert_close(expert.scatter[0], scatter)


def test_all_weighed_alike_is_the_discriminant_of_all_features_in_one_pile() -> None:
    """With no gate, the blend does not know which client an example came from."""
    clients = federation()
    pile = Examples(*(torch.cat([getattr(own, part) for own in clients.values()]) for part in "xy"))
    prior = Prior(1.0, torch.zeros(C, P).double(), 0.1)
    of_all = discriminant.piled(pooled(clients), prior)
    of_one = discriminant.piled(discriminant.expert(pile.x[:, 0], pile.y, C), prior)
    for part in ("mu", "inverse", "variance", "count", "mean"):
        torch.testing.assert_close(getattr(of_all, part), getattr(of_one, part), atol=1e-5, rtol=0)


def test_who_names_classes_otherwise_disagrees_with_everybody() -> None:
    clients = federation(turned=("b",))
    u = discriminant.disagreement(pooled(clients))
    assert torch.equal(u, u.T)
    assert (u.diagonal() == 0).all()
    others = [0, 2, 3, 4]
    assert u[1, others].min() > 3 * u[others][:, others].max()


def test_clients_that_share_no_class_disagree_by_nothing() -> None:
    """It was NaN in the first prototype."""
    own = world(0, 30)
    alone = {
        name: Examples(own.x[own.y == c], own.y[own.y == c])
        for c, name in enumerate(("a", "b", "c"))
    }
    assert torch.equal(discriminant.disagreement(pooled(alone)), torch.zeros(3, 3).double())
    for local in blends(GaussianExperts(), alone).values():
        assert all(torch.isfinite(value).all() for value in local.fixed.values())


@pytest.mark.parametrize("prior", [0.05, 1.0])
def test_leaving_an_example_out_is_refitting_without_it(prior: float) -> None:
    own = world(3, 14)
    x, y = own.x[:, 0].double(), own.y
    leaning = Prior(prior, 0.1 * torch.eye(C, P).double(), 0.1)
    blend = discriminant.piled(discriminant.expert(x, y, C), leaning)
    squares = discriminant.left_out(blend, prior, x, y)
    for i in range(len(y)):
        rest = [j for j in range(len(y)) if j != i]
        expert = discriminant.expert(x[rest], y[rest], C)
        centre = expert.sums.sum((0, 1)) / len(rest)
        whole = x.mean(0)
        mu = expert.sums[0] + prior * (whole + leaning.anchor)  # the grand mean stays
        mu = mu / (expert.count[0] + prior)[:, None]
        sigma = expert.scatter[0] / blend.degrees  # so do degrees and ridge
        metric = torch.linalg.inv(sigma + 0.1 * blend.variance * torch.eye(P).double())
        away = x[i] - mu
        expected = ((away @ metric) * away).sum(1)
        torch.testing.assert_close(squares[i], expected, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(centre, whole)


# The federation


def test_taking_a_client_out_is_never_having_had_it() -> None:
    """Bit for bit: a row of the pool is all that the server knows of a client."""
    method, model = GaussianExperts(), TinyProbe()
    clients = federation()
    without = {name: own for name, own in clients.items() if name != "c"}
    with_it = round_of(method, clients, method.open(given(model)))
    less = {name: value for name, value in with_it.items() if not name.startswith("pool.c.")}
    after = round_of(method, without, less)
    never = round_of(method, without, method.open(given(model)))
    assert pack(after) == pack(never)


def test_a_client_that_tells_anew_takes_its_own_place() -> None:
    method, model = GaussianExperts(), TinyProbe()
    clients = federation()
    once = round_of(method, clients, method.open(given(model)))
    changed = clients | {"b": world(99, 30)}
    assert pack(round_of(method, {"b": changed["b"]}, once)) == pack(
        round_of(method, changed, method.open(given(model)))
    )


def test_who_is_who_decides_nothing() -> None:
    clients = federation()
    renamed = dict(zip(("e", "d", "c", "b", "a"), clients.values(), strict=True))
    one, other = blends(GaussianExperts(), clients), blends(GaussianExperts(), renamed)
    test = world(50, 60)
    for before, after in zip(CLIENTS, renamed, strict=True):
        logits = [
            GaussianExperts().predictor(TinyProbe(), local).logits(test.x[:, 0])
            for local in (one[before], other[after])
        ]
        torch.testing.assert_close(*logits, atol=1e-3, rtol=1e-4)


def test_others_help_where_a_client_has_few_examples() -> None:
    clients = federation() | {"e": world(44, 3)}
    test = world(51, 300)
    with_them, alone = (
        accuracy(method, blends(method, clients)["e"], test)
        for method in (GaussianExperts(), GaussianExperts(experts=0))
    )
    assert with_them > alone + 0.02


def test_those_who_name_classes_differently_are_hardly_heard() -> None:
    clients = federation(turned=("b", "c"))
    test = world(52, 300)
    gated = GaussianExperts(guard=False)
    deaf = GaussianExperts(guard=False, eta=0.0, rho=0.0)
    wrong, right = (accuracy(m, blends(m, clients)["a"], test) for m in (deaf, gated))
    assert right > wrong + 0.1
    assert right > 0.9


def test_a_client_keeps_to_its_own_expert_where_that_does_better_on_its_own_examples() -> None:
    """Everybody else names the classes otherwise, and no gate notices: the guard does."""
    clients = federation(turned=("b", "c", "d", "e")) | {"a": world(0, 30)}
    test = world(53, 300)
    blind = {"eta": 0.0, "rho": 0.0}
    guarded, unguarded = GaussianExperts(**blind), GaussianExperts(**blind, guard=False)
    mine, theirs = (blends(method, clients)["a"] for method in (guarded, unguarded))
    assert float(mine.fixed["alone"]) == 1
    assert accuracy(guarded, mine, test) > 0.9
    assert accuracy(unguarded, theirs, test) < 0.5
    assert float(blends(GaussianExperts(), federation())["a"].fixed["alone"]) == 0


def judged(count: int, shift: int) -> tuple[Judges, Tensor]:
    """Examples as judges of their own expert, and their losses if its classes change names."""
    own = world(0, count)
    expert = discriminant.expert(own.x[:, 0], own.y, C)
    prior = Prior(1.0, torch.zeros(C, P).double(), 0.1)
    blend = discriminant.piled(expert, prior)
    judges = Judges.of(own.x[:, 0], own, expert.count[0])
    return judges, judges.asked(replace(blend, mu=blend.mu.roll(shift, 0)), 1.0, 0.2)


def test_too_few_examples_judge_nothing() -> None:
    assert not judged(6, 0)[0].enough
    judges, good = judged(30, 0)
    assert judges.enough
    _, bad = judged(30, 1)
    assert better(good, bad)
    assert not better(bad, good)
    assert not better(good, good)


def test_classes_that_a_client_never_had_weigh_as_much_as_its_own_labels_allow() -> None:
    assert added(torch.tensor([9.0, 8.0, 9.0])) == 1
    assert added(torch.tensor([1.0, 1.0, 0.0])) == 1  # each example is the only one of its class
    assert added(torch.tensor([9.0, 8.0, *[0.0] * 15])) < 0.1
    prior = prior_of(torch.tensor([9.0, 8.0, 0.0]))
    assert torch.isfinite(prior).all()
    assert float(prior.exp().sum()) == pytest.approx(1)


def test_a_blend_is_heard_as_loudly_as_the_clients_own_examples_ask_for() -> None:
    own = world(0, 30)
    expert = discriminant.expert(own.x[:, 0], own.y, C)
    judges = Judges.of(own.x[:, 0], own, expert.count[0])
    blend = discriminant.piled(expert, Prior(1.0, torch.zeros(C, P).double(), 0.1))
    loud = replace(blend, inverse=20 * blend.inverse)
    kappa = judges.calmed(loud, 1.0, 0.4)
    assert judges.calmed(blend, 1.0, 0.02) == 0.02
    assert kappa < 0.4
    for other in (0.4, 0.2, 0.1, 0.05, 0.025):
        assert judges.asked(loud, 1.0, kappa).mean() <= judges.asked(loud, 1.0, other).mean()


# Regimes


def numbered(count: int = 30) -> dict[str, Examples]:
    """Eight clients; half of them number the classes otherwise."""
    return {f"site-{i}": world(100 + i, count, turned=i % 2 == 1) for i in range(8)}


def test_regimes_are_the_groups_that_number_classes_alike() -> None:
    alike = regimes.together(pooled(numbered()), 2)
    same = torch.arange(8)[:, None] % 2 == torch.arange(8) % 2
    assert alike[same].min() > 0.9
    assert alike[~same].max() < 0.1
    assert torch.equal(regimes.together(pooled(numbered()), 1), torch.ones(8, 8).double())


def two_rounds(clients: dict[str, Examples]) -> tuple[Tensors, dict[str, Local]]:
    """Told, asked, told again: the server, and what each client ends with."""
    method, model = GaussianExperts(regimes=0), TinyProbe()
    server, kept = method.open(given(model)), dict[str, Tensors]()
    for _ in range(2):
        sent = method.send(server, list(clients), 1, 0)
        uploads = []
        for name, own in clients.items():
            local = method.start(model, sent[name].tensors, kept.get(name), rng(0, ""))
            said = method.observe(model, local, own)
            assert said.keys() == method.expects(server, model, name).keys()
            assert said.keys() <= method.uploads(model)
            uploads.append(Upload(name, said, len(own)))
        server = method.merge(given(model), server, uploads, 1)
        back = method.give_back(server, uploads)
        kept = {
            name: method.absorb(model, back[name].tensors, kept.get(name), own)
            for name, own in clients.items()
        }
    return server, {name: Local.of(own) for name, own in kept.items()}


def test_a_federation_finds_out_that_it_has_two_numberings() -> None:
    """With ten examples each; with thirty the gate alone tells them apart."""
    clients = numbered(10)
    server, after = two_rounds(clients)
    assert regimes.CANDIDATES[int(server["chosen"])][0] == 2
    method = GaussianExperts(guard=False)
    plain = blends(replace(method, eta=0.0, rho=0.0), clients)
    test = world(80, 300, turned=True)
    chosen = accuracy(method, after["site-1"], test)
    assert chosen > 0.9
    assert chosen > accuracy(method, plain["site-1"], test) + 0.2


def test_where_all_agree_there_is_one_regime() -> None:
    server, _ = two_rounds(federation())
    assert regimes.CANDIDATES[int(server["chosen"])][0] == 1


def test_a_candidate_that_is_only_surer_of_itself_has_no_better_score() -> None:
    """All nine name the same classes, each louder than the one before."""
    draw = rng(3, "")
    x = torch.randn(60, 4, generator=draw)
    y = torch.randint(3, (60,), generator=draw)
    others = torch.randn(3, 4, generator=draw)
    louder = 2.0 ** torch.arange(9).float()
    heads = {"others": louder[:, None, None] * others, "offset": torch.zeros(9, 3)}
    scores = regimes.scores(heads, 1.0, x, y)
    wrong = (x @ others.T).argmax(1).ne(y).float().mean()
    torch.testing.assert_close(scores, wrong.expand(9), atol=0.05, rtol=0)
    y = (x @ others.T).argmax(1)
    assert regimes.scores(heads, 1.0, x, y).max() < 0.1


def test_no_client_chooses_alone() -> None:
    """Scores are bounded, and one voice is within the error."""
    honest = {f"{name}.scores": torch.full((9,), 0.2) for name in "abcdefgh"}
    liar = honest | {"h.scores": torch.tensor([1e9, *[0.0] * 8])}
    assert int(regimes.choice(honest)) == 0
    assert int(regimes.choice(liar)) == 0
    asked = honest | {"h.scores": regimes.NONE}
    assert int(regimes.choice(asked)) == 0
    better = {
        f"{n}.scores": torch.tensor([0.3, *[0.3 - 0.01 * i] * 8])
        for i, n in enumerate("abcdefgh", 5)
    }
    assert int(regimes.choice(better)) == 1


# The head


def test_components_are_a_mixture_of_gaussians() -> None:
    """log sum_j pi_jc N(x; m_jc), in the metric of all, up to what all classes have alike."""
    method = GaussianExperts(guard=False)
    local = blends(method, federation())["d"]
    t, x = local.fixed, world(60, 5).x[:, 0]
    logits = method.predictor(TinyProbe(), local).logits(x)
    for b in range(len(x)):
        for c in range(C):
            total = torch.tensor(0.0)
            for mean, weight in zip(t["mean"][:, c], t["weight"][:, c], strict=True):
                away = x[b] - mean
                square = away @ t["inverse"] @ away / t["variance"]
                total += weight * (-t["kappa"] / 2 * square).exp()
            torch.testing.assert_close(
                logits[b, c], total.log() + t["classes"][c], atol=1e-4, rtol=1e-4
            )


def test_responsibilities_are_the_experts_shares() -> None:
    method = GaussianExperts(guard=False)
    local = blends(method, federation(turned=("b",)))["a"]
    shares = method.predictor(TinyProbe(), local).shares(world(61, 9).x[:, 0])
    assert shares is not None
    assert shares.shape == (9, C, 6)  # its own, four others, the blend's mean
    torch.testing.assert_close(shares.sum(-1), torch.ones(9, C))
    deaf = GaussianExperts(guard=False, eta=0.0, rho=0.0)
    all_alike = blends(deaf, federation(turned=("b",)))["a"]
    heard = deaf.predictor(TinyProbe(), all_alike).shares(world(61, 9).x[:, 0])
    assert heard is not None
    assert shares[..., 4].mean() < 0.6 * heard[..., 4].mean(), "who disagrees comes last"


@pytest.mark.parametrize("select", ["adds", "nearest", "farthest", "random"])
def test_k_experts_are_chosen(select: str) -> None:
    method = GaussianExperts(experts=2, select=select, guard=False)  # type: ignore[arg-type]
    clients = federation(turned=("b",))
    local = blends(method, clients)["a"]
    assert len(local.fixed["mean"]) == 4
    server = round_of(method, clients, method.open(given(TinyProbe())))
    assert under(server, "pool").keys() >= {f"{name}.mean" for name in CLIENTS}


def test_what_adds_most_is_chosen_before_what_is_near() -> None:
    """A client that has the class which one lacks, before one that has more of the same."""
    own = world(0, 30)
    two = own.y < 2
    lacking = Examples(own.x[two][:6], own.y[two][:6])
    alike = world(1, 30)
    alike = Examples(alike.x[alike.y < 2], alike.y[alike.y < 2])
    third = world(2, 30)
    third = Examples(third.x[third.y == 2], third.y[third.y == 2])
    experts = pooled({"a": lacking, "b": alike, "c": third})

    def chosen(select: str, *u: float) -> list[int]:
        u_NN = torch.tensor([u, u, u]).double()
        method = GaussianExperts(experts=1, select=select)  # type: ignore[arg-type]
        return method._chosen(World("abc", experts, u_NN, {}), 0)

    assert chosen("adds", 0.0, 0.0, 0.1) == chosen("nearest", 0.0, 0.0, 0.1) == [1]
    assert chosen("adds", 0.0, 5.0, 0.1) == [2]


# Around it


def test_one_image_changes_what_is_told_by_a_bounded_step() -> None:
    """Count, sum and second moment of features of length 1: at most sqrt(3) in l2."""
    own = world(0, 20)

    def told(examples: Examples) -> Tensor:
        expert = discriminant.expert(examples.x[:, 0], examples.y, C)
        sums = expert.sums[0]
        moment = expert.scatter[0] + torch.einsum(
            "c,cp,cq->pq", expert.count[0], expert.mean[0], expert.mean[0]
        )
        return torch.cat([expert.count[0], sums.flatten(), moment.flatten()])

    for i in range(len(own)):
        rest = torch.arange(len(own)) != i
        step = (told(own) - told(Examples(own.x[rest], own.y[rest]))).norm()
        assert step <= 3**0.5 + 1e-6


def test_wide_features_are_brought_to_their_main_directions_in_a_round_of_its_own() -> None:
    method, model = GaussianExperts(width=4), TinyProbe()
    clients = federation()
    server = round_of(method, clients, method.open(given(model)))
    basis = server["global.basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-5, rtol=0)
    assert not under(server, "pool")
    after = round_of(method, clients, server)
    assert after["pool.a.mean"].shape == (C, 4)
    test = world(54, 300)
    shared = method.restore(model, method.publish(after), None)
    assert accuracy(method, shared, test) > 0.9


def test_before_anybody_told_anything_it_is_zero_shot() -> None:
    model = TinyPrompted(torch.randn(2, 4, generator=rng(0, "context")))
    method = GaussianExperts()
    shared = method.restore(model, method.publish(method.open(given(model))), None)
    x = world(55, 20).x[:, 0]
    ours = method.predictor(model, shared).logits(x).log_softmax(-1)
    torch.testing.assert_close(
        ours, model.logits(model.initial, x).log_softmax(-1), atol=1e-4, rtol=0
    )


def test_a_newcomer_with_a_few_labelled_examples_joins_as_an_expert() -> None:
    method, model = GaussianExperts(), TinyProbe()
    clients = federation(turned=("b", "c"))
    server = round_of(method, clients, method.open(given(model)))
    few = world(70, 6, turned=True)
    (chosen,) = method.offers(model, server, few)
    assert accuracy(method, chosen.local, world(56, 300, turned=True)) > 0.9
    assert set(chosen.shares) == {"own examples", *CLIENTS, "mean of all"}
    assert sum(chosen.shares.values()) == pytest.approx(1, abs=1e-4)


def test_a_newcomer_without_labels_hears_those_whose_images_lie_like_its_own() -> None:
    """No round, and nothing is said of any class: only where its images lie is known."""
    method, model = GaussianExperts(), TinyProbe()
    away = 0.4 * torch.randn(P, generator=rng(3, "away"))

    def moved(own: Examples) -> Examples:
        return Examples(own.x + away, own.y)

    clients = {f"here-{i}": world(200 + i, 30) for i in range(3)}
    clients |= {f"there-{i}": moved(world(300 + i, 30)) for i in range(3)}
    server = round_of(method, clients, method.open(given(model)))
    _, experts = experts_of(server)
    few = moved(world(70, 12))
    u = discriminant.strangeness(experts, few.x[:, 0])
    assert u[3:].max() < 0.2 * u[:3].min()
    chosen = method.meets(model, server, few.x[:, 0])
    assert chosen.shares["own examples"] == 0
    of = {
        place: sum(chosen.shares[f"{place}-{i}"] for i in range(3)) for place in ("here", "there")
    }
    assert of["there"] > 2 * of["here"]
    assert accuracy(method, chosen.local, moved(world(56, 300))) > 0.9
    sums = GaussianExperts(select="none")
    with pytest.raises(ValueError, match="by labels, and these images have"):
        sums.meets(model, sums.open(given(model)), few.x[:, 0])


def test_the_portable_form_predicts_the_same() -> None:
    method = GaussianExperts()
    local = blends(method, federation())["d"]
    predictor = method.predictor(TinyProbe(), local)
    portable = predictor.portable()
    space: dict[str, object] = {"t": portable.tensors, "n": portable.numbers, "torch": torch}
    exec(portable.code, space)  # the lines that an export writes
    x = world(57, 9).x[:, 0]
    torch.testing.assert_close(space["logits"](x), predictor.logits(x))  # type: ignore[operator]


def test_a_model_without_frozen_features_is_refused_by_name() -> None:
    from fedexperts.models.network import Network

    with pytest.raises(ValueError, match=r"needs frozen features, and Network trains its own"):
        GaussianExperts().fits(Network(torch.nn.Linear(2, 2), ("a", "b")), 0)


def test_a_head_of_one_mean_a_class_is_linear() -> None:
    local = blends(GaussianExperts(head="linear"), federation())["a"]
    assert len(local.fixed["mean"]) == 1
    blend = discriminant.Blend(
        *(torch.randn(size, generator=rng(0, str(size))).double() for size in ((C, P), (P, P))),
        *(torch.ones(()).double() for _ in range(4)),
    )
    assert head(blend, 0.2)["mean"].shape == (1, C, P)


def test_a_scatter_that_none_can_be_and_frequencies_below_zero_end_nothing() -> None:
    """What a stranger sends is taken for the nearest that could be; the round goes on."""
    method, model, clients = GaussianExperts(regimes=0), TinyProbe(), federation()
    server = method.open(given(model))
    honest = [
        Upload(name, method.observe(model, Local({}, {}), own), len(own))
        for name, own in clients.items()
    ]
    hostile = {
        "frequency": torch.tensor([-5.0, 9.0, 0.0]),
        "mean": torch.full((C, P), 30.0),
        "scatter": torch.linspace(-9, 9, P * (P + 1) // 2),
    }
    uploads = [*honest[:-1], Upload("e", hostile, 6)]
    after = method.merge(given(model), server, uploads, 1)
    back = method.give_back(after, uploads)
    assert back.keys() == set(CLIENTS)
    for sent in back.values():
        assert all(torch.isfinite(value).all() for value in sent.tensors.values())
    assert after["pool.e.frequency"].tolist() == [0.0, 1.0, 0.0]
    before = method.merge(given(model), server, honest, 1)
    assert torch.equal(before["pool.a.scatter"], honest[0].tensors["scatter"])
