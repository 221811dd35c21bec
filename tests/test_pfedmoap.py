"""pFedMoAP against its paper: pools by hand, gates against other transcriptions, and where the
published code fell.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CASES,
    CLASSES,
    GATE,
    WIDTH,
    Remembered,
    TinyPrompted,
    given,
    job_and_engine,
    same_bits,
    tiny,
)
from torch import Tensor
from torch.nn.functional import normalize

from fedexperts.client import answer
from fedexperts.learn import Examples, Local
from fedexperts.message import Order
from fedexperts.method import Sent, Upload
from fedexperts.methods.fedavg import Alone, FedAvg
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.models.clip import LinearProbe
from fedexperts.tensors import Tensors, named, rng, under

SMALL = PFedMoAP(experts=2, width=WIDTH, heads=2)


def context(*values: float) -> Tensor:
    """A prompt [2, 4] that begins with these values."""
    return torch.tensor([*values, *[0.0] * (8 - len(values))]).reshape(2, 4)


# Four clients; "a" and its neighbours on a line, "d" alone in another direction. Not sorted, and
# "e" has no entry.
POOL = {"d": context(0, 7), "c": context(5), "a": context(0), "b": context(-2)}
SERVER = named("global", {"context": context(1, 1)}) | named("pool", POOL)


@pytest.fixture(scope="module")
def model() -> TinyPrompted:
    return TinyPrompted(0.1 * torch.randn(2, 4, generator=rng(0, "context")))


def received(sent: Sent) -> list[str]:
    """Whose prompts a payload holds, told by the prompts themselves."""
    return [
        next(n for n, p in POOL.items() if torch.equal(p, each)) for each in sent.tensors["experts"]
    ]


def send(
    method: PFedMoAP, clients: Sequence[str] = "abcd", round: int = 2, seed: int = 0
) -> dict[str, Sent]:
    return method.send(SERVER, clients, round, seed)


# The pool


def test_the_nearest_are_nearest_by_l2_and_never_oneself() -> None:
    """Pitfall 7: by hand, and by name: places in a list that lacks the client itself would be other
    clients.
    """
    sent = send(SMALL)
    nearest = {client: "".join(received(sent[client])) for client in sent}
    assert nearest == {"a": "bc", "b": "ac", "c": "ab", "d": "ab"}
    assert sent["a"].facts == {"received": ["b", "c"], "distances": [2.0, 5.0]}


def test_the_farthest_are_the_other_end_of_the_same_list() -> None:
    sent = send(replace(SMALL, select="farthest"))
    farthest = {client: "".join(received(sent[client])) for client in sent}
    assert farthest == {"a": "dc", "b": "dc", "c": "db", "d": "cb"}


def test_chance_draws_others_from_the_pool_by_seed_round_and_client_alone() -> None:
    chance = replace(SMALL, select="random")
    draws = [
        received(send(chance, round=round, seed=seed)[c])
        for seed in range(4)
        for round in range(4)
        for c in "ad"
    ]
    assert all("a" not in names for names in draws[::2])
    assert all("d" not in names for names in draws[1::2])
    assert all(len(set(names)) == 2 for names in draws)
    assert {*draws[0], *draws[2], *draws[4], *draws[6]} == {"b", "c", "d"}, "rounds draw anew"
    assert draws[:8] != draws[8:16], "so do seeds"
    orders = [send(replace(chance, experts=3), round=round) for round in range(8)]
    common = [["".join(n for n in received(sent[c]) if n in "bc") for c in "ad"] for sent in orders]
    assert any(a != d for a, d in common), "so do clients"
    assert received(send(chance, "a")["a"]) == received(send(chance, "dba")["a"]), (
        "whoever else is asked"
    )


def test_facts_name_those_whose_prompts_were_sent() -> None:
    for select in ("nearest", "farthest", "random"):
        for client, sent in send(replace(SMALL, select=select)).items():
            assert sent.facts["received"] == received(sent)
            apart = [float((POOL[client] - POOL[name]).norm()) for name in received(sent)]
            assert sent.facts["distances"] == pytest.approx(apart)


def test_who_has_no_entry_gets_the_global_prompt_alone() -> None:
    (sent,) = SMALL.send(SERVER, ["e"], 2, 0).values()
    assert sent.tensors.keys() == {"global.context"}
    assert not sent.facts


def test_with_nobody_else_in_the_pool_there_are_no_experts_but_a_gate(model: TinyPrompted) -> None:
    alone = named("global", {"context": context(1)}) | named("pool", {"a": context(2)})
    sent = SMALL.send(alone, ["a"], 2, 0)["a"]
    assert sent.tensors["experts"].shape == (0, 2, 4)
    local = SMALL.start(model, sent.tensors, None, rng(0, "start"))
    assert local.fixed["experts"].shape == (0, len(CLASSES), WIDTH)
    assert under(local.trained, "gate")


def test_fewer_others_than_experts_are_all_sent() -> None:
    assert len(send(replace(SMALL, experts=9))["a"].tensors["experts"]) == 3


def test_a_round_reads_the_pool_as_the_last_one_left_it(tmp_path: Path) -> None:
    """Pitfall 9: what "a" uploads in a round reaches "b" in the next."""
    job, engine = job_and_engine(tiny(CASES["nearest"]), tmp_path)
    state = job.method.open(job.given)
    for round in (1, 2, 3):
        before = under(state, "pool")
        sent = job.method.send(state, "abcde", round, 0)
        for each in sent.values():
            names, prompts = each.facts.get("received", []), each.tensors.get("experts", [])
            assert all(
                torch.equal(prompt, before[n]) for n, prompt in zip(names, prompts, strict=True)
            )  # type: ignore
        replies = engine.exchange([Order(c, round, "train", s.tensors) for c, s in sent.items()])
        state = job.method.merge(
            job.given, state, [Upload(r.client, r.tensors, r.examples) for r in replies], round
        )
        assert same_bits(
            under(state, "pool"), {reply.client: reply.tensors["context"] for reply in replies}
        )


def test_prompts_are_merged_by_examples_and_entries_overwritten() -> None:
    """By hand: 1 and 3 examples; who was not there keeps its entry."""
    uploads = [
        Upload("a", {"context": context(0, 8)}, 1),
        Upload("e", {"context": context(4, 0)}, 3),
    ]
    after = SMALL.merge(given(TinyPrompted(context(0, 0))), SERVER, uploads, 1)
    assert torch.equal(after["global.context"], context(3, 2))
    kept = {name: POOL[name] for name in "bcd"}
    assert same_bits(under(after, "pool"), kept | {"a": context(0, 8), "e": context(4, 0)})


# A client's state


def sent_to(client: str) -> Tensors:
    return send(SMALL)[client].tensors


class Unread(dict[str, Tensor]):
    """A state that nobody reads from end to end."""

    def items(self) -> Any:
        raise AssertionError("all names were read")

    __iter__ = keys = values = items


def test_what_a_client_must_upload_is_known_without_reading_the_pool(model: TinyPrompted) -> None:
    """Of ten thousand clients each would read ten thousand names."""
    expected = PFedMoAP().expects(Unread({"global.context": torch.ones(2, 4)}), model, "a")
    assert expected.keys() == {"context"}


def test_a_first_timer_tunes_its_prompt_alone(model: TinyPrompted) -> None:
    local = SMALL.start(model, {"global.context": context(1)}, None, rng(0, "start"))
    assert local.trained.keys() == {"context"}
    x = torch.randn(4, WIDTH)
    assert torch.allclose(
        SMALL.predictor(model, local).logits(x), model.logits({"context": context(1)}, x), atol=1e-5
    )


def test_the_gate_goes_on_and_the_prompt_begins_anew(model: TinyPrompted) -> None:
    first = SMALL.start(model, sent_to("a"), None, rng(0, "start"))
    moved = {name: value + 0.5 for name, value in first.trained.items()}
    own = SMALL.finish(model, Local(moved, first.fixed)).stays
    second = SMALL.start(model, sent_to("b"), own, rng(1, "start"))
    assert same_bits(under(second.trained, "gate"), under(moved, "gate"))
    assert torch.equal(second.trained["context"], context(1, 1))
    kept = replace(SMALL, reset=False).start(model, sent_to("b"), own, rng(1, "start"))
    assert torch.equal(kept.trained["context"], moved["context"])


def test_two_clients_gates_are_not_each_others(remembered: Remembered) -> None:
    folder = remembered(tiny(CASES["nearest"], run={"participation": 1.0}))
    files = [folder.path / "private" / client / "round-000003.private" for client in "abcde"]
    assert len({file.read_bytes() for file in files}) == 5


def test_a_client_predicts_with_its_own_prompt_gate_and_experts(model: TinyPrompted) -> None:
    local = SMALL.start(model, sent_to("a"), None, rng(0, "start"))
    mine = Local({n: v + 0.1 for n, v in local.trained.items()}, local.fixed)
    own = SMALL.finish(model, mine).stays
    recalled = SMALL.restore(model, SMALL.publish(SERVER), own)
    assert same_bits(recalled.kept(), mine.kept())
    stranger = SMALL.restore(model, SMALL.publish(SERVER), None)
    assert same_bits(stranger.trained, {"context": context(1, 1)})
    assert not stranger.fixed


def test_everybody_may_know_the_global_prompt_and_nobodys_own() -> None:
    assert SMALL.publish(SERVER).keys() == {"global.context"}


@pytest.mark.parametrize("gates", ["local", "averaged"])
def test_a_gate_leaves_if_it_is_averaged_and_not_else(gates: Any, model: TinyPrompted) -> None:
    method = replace(SMALL, gates=gates)
    state = method.open(given(model)) | named("pool", POOL)
    for client in "ae":  # with a mixture, and a first-timer
        local = method.start(
            model, method.send(state, client, 2, 0)[client].tensors, None, rng(0, "start")
        )
        leaves = method.finish(model, local).leaves
        assert leaves.keys() == method.uploads(model) == method.expects(state, model, client).keys()
        assert (gates == "averaged") == any(name.startswith("gate.") for name in leaves)


# The gate


def mixture(method: PFedMoAP, model: TinyPrompted, experts: int) -> Local:
    """A state with random experts and a gate that has random biases too."""
    draw = rng(0, "mixture")
    local = method.start(
        model,
        {"global.context": context(1, 1), "experts": torch.randn(experts, 2, 4, generator=draw)},
        None,
        rng(0, "start"),
    )
    gate = {
        name: torch.randn(value.shape, generator=draw)
        for name, value in under(local.trained, "gate").items()
    }
    return Local(local.trained | named("gate", gate), local.fixed)


def images(count: int = 5) -> Tensor:
    return normalize(torch.randn(count, WIDTH, generator=rng(0, "images")), dim=-1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("experts", [0, 1, 3])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_attention_gate_is_multi_head_attention(
    normalised: bool, experts: int, bias: bool, model: TinyPrompted
) -> None:
    """Against torch.nn.MultiheadAttention, image by image and class by class; with normalised=False
    this is also the test of the exact saving that applies the output map to the images.
    """
    method = replace(SMALL, attention_scale=0.0, normalised=normalised, bias=bias)
    local, x = mixture(method, model, experts), images()
    attention = torch.nn.MultiheadAttention(WIDTH, 2, bias=bias)
    gate = {
        name.removeprefix("gate."): value
        for name, value in local.trained.items()
        if name.startswith("gate.")
    }
    weights = {
        "in_proj_weight": torch.cat(
            [gate["query.weight"], gate["key.weight"], gate["value.weight"]]
        ),
        "out_proj.weight": gate["output.weight"],
    }
    if bias:
        weights |= {
            "in_proj_bias": torch.cat([gate["query.bias"], gate["key.bias"], gate["value.bias"]]),
            "out_proj.bias": gate["output.bias"],
        }
    attention.load_state_dict(weights)
    own, logits = model.texts(local.trained["context"]), method.predictor(model, local).logits(x)
    for b, image in enumerate(x):
        for c in range(len(CLASSES)):
            texts = torch.stack([own[c], *local.fixed["experts"][:, c]])
            mixed = attention(image[None], texts, texts)[0][0].detach()
            similarity = (
                torch.cosine_similarity(image, mixed, dim=0) if normalised else image @ mixed
            )
            logit = model.scale * (similarity + 0.5 * image @ own[c])
            assert float(logits[b, c]) == pytest.approx(float(logit), rel=1e-5, abs=1e-5)


def class_means(client: str) -> Tensor:
    """What a client would say of its classes; client "b" has no image of the second."""
    means = torch.randn(len(CLASSES), WIDTH, generator=rng(0, "means", client=client))
    if client == "b":
        means[1] = 0
    return means


MEANS = replace(SMALL, experts_are="class-means", bias=False)


def with_means(method: PFedMoAP, model: TinyPrompted) -> Local:
    """What client "a" begins its round with: the means of "b" and "c"."""
    server = SERVER | named("means", {client: class_means(client) for client in POOL})
    sent = method.send(server, ["a"], 2, 0)["a"]
    assert sent.facts["received"] == ["b", "c"]
    return method.start(model, sent.tensors, None, rng(0, "start"))


def test_class_means_are_attended_as_texts_are_where_there_are_any(model: TinyPrompted) -> None:
    """Against torch.nn.MultiheadAttention over those alone who know the class."""
    method = replace(MEANS, attention_scale=0.0)
    local, x = with_means(method, model), images()
    attention = torch.nn.MultiheadAttention(WIDTH, 2, bias=False)
    maps = [local.trained[f"gate.{name}.weight"] for name in ("query", "key", "value")]
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat(maps),
            "out_proj.weight": local.trained["gate.output.weight"],
        }
    )
    own = model.texts(local.trained["context"])
    knowing = {0: "bc", 1: "c", 2: "bc"}
    logits = method.predictor(model, local).logits(x)
    for c, clients in knowing.items():
        means = [normalize(class_means(client)[c], dim=0) for client in clients]
        experts = torch.stack([own[c], *means])
        for b, image in enumerate(x):
            mixed = attention(image[None], experts, experts)[0][0].detach()
            logit = model.scale * (image @ mixed + 0.5 * image @ own[c])
            assert float(logits[b, c]) == pytest.approx(float(logit), rel=1e-5, abs=1e-5)


def test_the_linear_gate_shares_out_the_weight_of_who_does_not_know_a_class(
    model: TinyPrompted,
) -> None:
    method = replace(MEANS, gate="linear")
    local, x = with_means(method, model), images()
    shares = method.predictor(model, local).shares(x)
    assert shares is not None
    weights = (x @ local.trained["gate.mix.weight"].T).softmax(-1)
    assert torch.allclose(shares[:, 0], weights)
    without = weights * torch.tensor([1.0, 0.0, 1.0])  # the second expert is "b"
    assert torch.allclose(shares[:, 1], without / without.sum(-1, keepdim=True))


def test_a_client_says_the_means_of_its_images_class_by_class(model: TinyPrompted) -> None:
    x = images(3)
    own = Examples(x[:, None], torch.tensor([2, 0, 2]))
    said = MEANS.observe(model, Local({}), own)["means"]
    assert torch.allclose(said[0], x[1])
    assert torch.allclose(said[2], (x[0] + x[2]) / 2)
    assert not said[1].any()
    assert not SMALL.observe(model, Local({}), own)
    assert not replace(MEANS, experts=0).uploads(model) - {"context"}


def test_class_means_are_kept_as_said_last_and_never_averaged(model: TinyPrompted) -> None:
    uploads = [
        Upload(client, {"context": POOL[client], "means": class_means(client)}, 3)
        for client in "bc"
    ]
    state = MEANS.merge(given(model), SERVER, uploads, 2)
    for client in "bc":
        assert torch.equal(state[f"means.{client}"], class_means(client))
    assert under(state, "global").keys() == {"context"}


def test_published_code_scales_attention_by_ten(model: TinyPrompted) -> None:
    """Scores times 10 are those of a query ten times as large, divided by nothing."""
    ten = replace(SMALL, attention_scale=10.0, bias=False)
    one = replace(ten, attention_scale=1.0)
    local, x = mixture(ten, model, 2), images()
    larger = Local(
        local.trained | {"gate.query.weight": 10 * local.trained["gate.query.weight"]}, local.fixed
    )
    assert torch.allclose(
        ten.predictor(model, local).logits(x), one.predictor(model, larger).logits(x), atol=1e-5
    )
    assert PFedMoAP().attention_scale == 10


@pytest.mark.parametrize("normalised", [False, True])
def test_the_linear_gate_weighs_whole_experts(normalised: bool, model: TinyPrompted) -> None:
    method = replace(SMALL, gate="linear", normalised=normalised, lam=0.0)
    local, x = mixture(method, model, 2), images()
    weights = (x @ local.trained["gate.mix.weight"].T + local.trained["gate.mix.bias"]).softmax(-1)
    texts = torch.cat([model.texts(local.trained["context"])[None], local.fixed["experts"]])
    for b in range(len(x)):
        mixed = sum(weight * text for weight, text in zip(weights[b], texts, strict=True))
        expected = torch.cosine_similarity(x[b][None], mixed) if normalised else mixed @ x[b]
        assert torch.allclose(
            method.predictor(model, local).logits(x)[b], model.scale * expected, atol=1e-5
        )


def test_features_are_pooled_as_the_name_says() -> None:
    x = torch.arange(10.0)[None]

    def pooled(pooling: Any) -> list[float]:
        found: list[float] = replace(SMALL, width=4, pooling=pooling).pooled(x)[0].tolist()
        return found

    assert pooled("stride") == [0, 2, 4, 6]
    assert pooled("mean") == [0.5, 2.5, 4.5, 6.5]
    assert pooled("random") == pooled("random")


def test_a_random_projection_keeps_dot_products() -> None:
    wide = torch.eye(4, 512)
    seen = replace(SMALL, width=256, pooling="random").pooled(wide)
    assert torch.allclose(seen @ seen.T, torch.eye(4), atol=0.25)


def test_features_that_are_too_narrow_for_the_gate_are_refused(model: TinyPrompted) -> None:
    wide = replace(SMALL, width=16)
    mixed = mixture(wide, model, 1)
    with pytest.raises(
        ValueError, match="width = 16 is wider than the features, 8; expected at most 8"
    ):
        wide.predictor(model, mixed).logits(images())
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 8"):
        replace(SMALL, heads=3)


def gradients(method: PFedMoAP, model: TinyPrompted, experts: int) -> dict[str, float]:
    local = mixture(method, model, experts)
    trained = {name: value.requires_grad_() for name, value in local.trained.items()}
    loss = torch.nn.functional.cross_entropy(
        method.predictor(model, Local(trained, local.fixed)).logits(images()), images()[:, :3]
    )
    found = torch.autograd.grad(loss, list(trained.values()))
    return {name: float(value.norm()) for name, value in zip(trained, found, strict=True)}


@pytest.mark.parametrize("experts", [0, 1, 3])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_gate_has_a_gradient(normalised: bool, experts: int, model: TinyPrompted) -> None:
    """Pitfall 13: also with a single expert, and without any; what chooses has one as soon as there
    is a choice.

    Three biases can have none: the key's moves all scores of an image alike, and without the
    cosine, the value's and the output's move all classes of an image alike.
    """
    found = gradients(replace(SMALL, attention_scale=1.0, normalised=normalised), model, experts)
    idle = {"gate.key.bias"} | (set() if normalised else {"gate.value.bias", "gate.output.bias"})
    choosing = set() if experts else {"gate.query.weight", "gate.query.bias", "gate.key.weight"}
    assert {name for name, norm in found.items() if norm > 1e-5} == found.keys() - choosing - idle


def test_the_linear_gate_has_a_gradient_as_soon_as_there_is_a_choice(model: TinyPrompted) -> None:
    found = gradients(replace(SMALL, gate="linear"), model, 1)
    assert all(norm > 1e-5 for norm in found.values())


def test_the_paper_s_gate_has_66_thousand_numbers() -> None:
    gate = PFedMoAP().new_gate(10, rng(0, "gate"))
    assert sum(value.numel() for value in gate.values()) == 4 * 128 * 128 + 4 * 128
    assert all(float(v.abs().max()) <= 1 / math.sqrt(128) for v in gate.values())


def test_facts_are_the_weights_that_the_mixture_used(model: TinyPrompted) -> None:
    method = replace(SMALL, gate="linear")
    local, x = mixture(method, model, 2), images()
    facts = method.predictor(model, local).metrics(x, x)
    weights = (
        (x @ local.trained["gate.mix.weight"].T + local.trained["gate.mix.bias"])
        .softmax(-1)
        .mean(0)
    )
    shares = method.predictor(model, local).shares(x).mean((0, 1))
    assert shares.tolist() == pytest.approx(weights.tolist())
    apart = 1 - (local.fixed["experts"] * model.texts(context(1, 1))).sum(-1).mean()
    assert facts["experts_apart"] == pytest.approx(float(apart), abs=1e-6)
    attention = SMALL.predictor(model, mixture(SMALL, model, 2)).shares(x).mean((0, 1))
    assert float(attention.sum()) == pytest.approx(1)


def test_a_model_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match=r'not LinearProbe; set model.name = "prompted-clip"'):
        PFedMoAP().fits(LinearProbe(CLASSES, 8, 10.0), 0)


# Only what is trained travels, and everybody begins alike


@pytest.mark.parametrize("method", [FedAvg(), Alone(), SMALL, replace(SMALL, gates="averaged")])
def test_only_what_is_trained_travels(method: Any, model: TinyPrompted) -> None:
    """Pitfall 15: a prompt and at most a gate, in float32; the text encoder's map stays where it
    is.
    """
    names = {
        "context",
        *(f"gate.{m}.{k}" for m in ("query", "key", "value", "output") for k in ("weight", "bias")),
    }
    state = method.open(given(model))
    assert {name.removeprefix("global.") for name in state} <= names
    assert method.uploads(model) <= names
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("name", ["fedavg", "averaged"])
def test_what_is_averaged_begins_alike_everywhere(name: str, tmp_path: Path) -> None:
    """Pitfall 16: no client has a random start of its own in what is merged."""
    job, _ = job_and_engine(tiny(CASES[name]), tmp_path)
    state = job.method.open(job.given) | (
        named("pool", POOL) if "moap" in CASES[name].method["name"] else {}
    )
    sent = job.method.send(state, "ab", 2, 0)
    starts = [
        job.method.start(job.model, sent[c].tensors, None, rng(0, "start", client=c)).trained
        for c in "ab"
    ]
    assert same_bits(*starts)


def test_a_gate_of_ones_own_is_drawn_by_the_client_itself(tmp_path: Path) -> None:
    job, engine = job_and_engine(tiny(CASES["nearest"]), tmp_path)
    starts = [
        job.method.start(job.model, sent_to("a"), None, rng(0, "start", 1, c)).trained for c in "ab"
    ]
    assert not same_bits(*starts)
    replies = answer(job, [engine.members["a"]], [Order("a", 1, "train", sent_to("a"))])
    assert replies[0].tensors.keys() == {"context"}
    assert GATE["experts"] == 2
