"""Methods that others published, each against a short transcription of its equations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CASES, CLASSES, TinyModel, TinyProbe, given, tiny
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, softmax

from fedexperts.config import ConfigError, parts
from fedexperts.learn import Examples, Learning, Local
from fedexperts.method import Upload
from fedexperts.methods import slim
from fedexperts.methods.fedamp import FedAMP
from fedexperts.methods.fedavg import FedAvg
from fedexperts.methods.feddf import FedDF
from fedexperts.methods.fedet import FedET
from fedexperts.methods.fedotp import FedOTP, plan
from fedexperts.methods.fedper import FedPer
from fedexperts.methods.fedpgp import FedPGP
from fedexperts.methods.fedtpg import FedTPG
from fedexperts.methods.heterofl import HeteroFL
from fedexperts.methods.pfedmma import PFedMMA
from fedexperts.methods.pfedprompt import PFedPrompt
from fedexperts.methods.promptfolio import PromptFolio
from fedexperts.models.family import FamilySettings
from fedexperts.models.network import Network
from fedexperts.tensors import named, rng, under

draw = rng(0, "rivals")
IMAGES = torch.nn.functional.normalize(torch.randn(6, 8, generator=draw), dim=-1)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def prompted() -> Any:
    return TinyModel("prompted").build(CLASSES, 0).model


def network(seed: int = 0, hidden: int = 4) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (torch.nn.Linear(2, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3))
        return Network(torch.nn.Sequential(*layers), CLASSES)


def client(method: Any, model: Any) -> Local:
    """A client in its first round."""
    sent = method.publish(method.open(given(model)))
    return method.start(model, sent, None, rng(1, "start"))


# ---- FedPer


def test_fedper_shares_the_first_tokens_and_keeps_the_last() -> None:
    model, method = prompted(), FedPer(tokens=1)
    context = model.initial["context"]
    local = client(method, model)
    assert local.trained.keys() == {"context", "own.last"}
    assert method.finish(model, local).leaves.keys() == {"context"}
    moved = Local(local.trained | {"own.last": local.trained["own.last"] + 1})
    whole = torch.cat([context[:1], context[1:] + 1])
    expected = model.logits({"context": whole}, IMAGES)
    assert torch.equal(method.predictor(model, moved).logits(IMAGES), expected)


def test_fedper_keeps_the_last_layer_of_a_network() -> None:
    finished = FedPer().finish(network(), client(FedPer(), network()))
    assert finished.leaves.keys() == {"0.weight", "0.bias"}
    assert finished.stays.keys() == {"own.2.weight", "own.2.bias"}


def test_fedper_of_a_linear_classifier_would_share_nothing_and_says_so() -> None:
    with pytest.raises(ValueError, match="leaves nothing of TinyProbe to share"):
        FedPer().fits(TinyProbe(), 0)
    with pytest.raises(ValueError, match="use fewer tokens"):
        FedPer(tokens=2).fits(prompted(), 0)


# ---- PromptFolio, FedPGP


def test_promptfolio_mixes_the_logits_of_two_prompts() -> None:
    model, method = prompted(), PromptFolio(theta=0.3)
    shared, own = (torch.randn(2, 4, generator=draw) for _ in range(2))
    local = Local({"context": shared, "own.prompt": own})
    one, other = (model.logits({"context": context}, IMAGES) for context in (shared, own))
    predictor = method.predictor(model, local)
    assert torch.allclose(predictor.logits(IMAGES), 0.7 * one + 0.3 * other, atol=1e-5)
    portable = predictor.portable()
    space: dict[str, Any] = {"torch": torch, "t": portable.tensors, "n": portable.numbers}
    exec(portable.code, space)
    assert torch.allclose(space["logits"](IMAGES), predictor.logits(IMAGES), atol=1e-5)


def test_fedpgp_adds_a_low_rank_part_and_contrasts_the_two_prompts() -> None:
    model, method = prompted(), FedPGP(rank=2, mu=0.5, temperature=0.7)
    local = client(method, model)
    shared = local.trained["context"] + 0.3 * torch.randn(2, 4, generator=draw)
    left, right = torch.randn(2, 2, generator=draw), torch.randn(2, 4, generator=draw)
    local = replace(local, trained={"context": shared, "own.left": left, "own.right": right})
    whole = shared + left @ right
    expected = model.logits({"context": whole}, IMAGES)
    assert torch.allclose(method.predictor(model, local).logits(IMAGES), expected)

    T_0, T_g, T_i = map(model.texts, (model.initial["context"], shared, whole))
    pairs = torch.stack([cosine_similarity(T_g, T_0), cosine_similarity(T_g, T_i)], dim=1) / 0.7
    contrast = cross_entropy(pairs, torch.zeros(len(CLASSES), dtype=torch.long))
    assert torch.allclose(method.penalty(model, local), 0.5 * contrast, atol=1e-6)


# ---- FedOTP


def test_a_plan_takes_a_share_of_all_patches_alike_for_both_prompts() -> None:
    closeness = torch.randn(5, 7, 2, generator=draw)
    for gamma in (0.3, 1.0):
        taken = plan(closeness, gamma)
        assert torch.allclose(taken.sum(-2), torch.full((5, 2), gamma / 2), atol=1e-5)
        assert bool((taken.sum(-1) <= 1 / 7 + 1e-3).all())
    assert torch.allclose(plan(0 * closeness, 1.0), torch.full((5, 7, 2), 1 / 14))


def test_a_clients_own_prompt_starts_apart_from_the_shared_one() -> None:
    model = TinyModel("patches").build(CLASSES, 0).model
    local = client(FedOTP(), model)
    apart = local.trained["own.prompt"] - local.trained["context"]
    assert 0.005 < float(apart.std()) < 0.05


def test_fedotp_weighs_patches_by_partial_transport() -> None:
    model = TinyModel("patches").build(CLASSES, 0).model
    method = FedOTP(gamma=0.6, blur=0.5)
    contexts = [torch.randn(2, 4, generator=draw) for _ in range(2)]
    local = Local({"context": contexts[0], "own.prompt": contexts[1]})
    x = torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=draw), dim=-1)
    logits = method.predictor(model, local).logits(x)
    texts = [model.texts(context) for context in contexts]
    for b in range(2):
        for c in range(len(CLASSES)):
            S = torch.stack([x[b, 1:] @ text[c] for text in texts], dim=1)  # [4, 2]
            u, v, K = torch.ones(4), torch.ones(2), torch.exp((S - 1) / 0.5)
            for _ in range(200):
                u = torch.minimum(0.25 / (K * v).sum(1), torch.ones(4))
                v = 0.3 / (K * u[:, None]).sum(0)
            expected = model.scale * (u[:, None] * K * v * S).sum()
            assert torch.allclose(logits[b, c], expected, atol=1e-3)


# ---- pFedMMA


def test_pfedmma_shares_what_lies_between_both_encoders_alone() -> None:
    model, method = TinyModel("adapted").build(CLASSES, 0).model, PFedMMA()
    local = client(method, model)
    assert method.finish(model, local).leaves.keys() == {"shared.0.weight"}
    assert method.finish(model, local).stays.keys() == {
        "own.image.0.down.weight",
        "own.image.0.up.weight",
    }
    assert torch.equal(
        method.predictor(model, local).logits(IMAGES), model.logits(model.initial, IMAGES)
    )


def test_methods_say_which_model_they_need() -> None:
    with pytest.raises(ValueError, match='prompted-clip" and model.patches = true'):
        FedOTP().fits(prompted(), 0)
    with pytest.raises(ValueError, match="set model.patches = false"):
        PromptFolio().fits(TinyModel("patches").build(CLASSES, 0).model, 0)
    with pytest.raises(ValueError, match='set model.name = "adapted-clip"'):
        PFedMMA().fits(prompted(), 0)


# ---- FedTPG


def test_fedtpg_writes_a_clients_prompt_from_the_names_of_its_own_classes() -> None:
    model, method = prompted(), FedTPG()
    local = client(method, model)
    kept = method.finish(model, local).stays
    kept = method.absorb(model, {}, kept, Examples(IMAGES[:2, None], torch.tensor([2, 0])))
    t = {n: torch.randn(v.shape, generator=draw) for n, v in local.trained.items()}
    own = method.restore(model, named("global", t), kept)
    T = model.texts(model.initial["context"])[[0, 2]]
    attention = softmax(t["query"] @ (T @ t["key"].T).T / 2, dim=-1)  # the square root of W = 4
    z = attention @ (T @ t["value"].T)
    unit = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    h = z + torch.nn.functional.gelu(unit @ t["first"].T) @ t["second"].T
    expected = model.logits({"context": model.initial["context"] + h}, IMAGES)
    assert torch.allclose(method.predictor(model, own).logits(IMAGES), expected, atol=1e-4)


def test_fedtpg_uploads_its_generator_and_not_which_classes_a_client_has() -> None:
    model, method = prompted(), FedTPG()
    leaves = method.finish(model, client(method, model)).leaves
    assert leaves.keys() == {"query", "key", "value", "first", "second"}


# ---- FedAMP


def test_fedamp_sends_each_client_the_models_near_to_its_own() -> None:
    model, method = TinyProbe(), FedAMP(share=0.8, sigma=0.5)
    models = {
        name: {"weight": torch.randn(3, 8, generator=draw), "bias": torch.randn(3, generator=draw)}
        for name in "abc"
    }
    uploads = [Upload(name, tensors, 1) for name, tensors in models.items()]
    server = method.merge(given(model), method.open(given(model)), uploads, 1)
    sent = method.send(server, ["b", "new"], 2, 0)

    def squared(one: str, other: str) -> Tensor:
        return sum((models[one][n] - models[other][n]).square().sum() for n in models[one])

    typical = (squared("a", "b") + squared("a", "c") + squared("b", "c")) / 3
    xi = {j: 0.8 / 2 * torch.exp(-squared("b", j) / (0.5 * typical)) for j in "ac"}
    for name in ("weight", "bias"):
        u = (1 - xi["a"] - xi["c"]) * models["b"][name]
        u = u + xi["a"] * models["a"][name] + xi["c"] * models["c"][name]
        assert torch.allclose(sent["b"].tensors[f"global.{name}"], u, atol=1e-5)
    assert torch.equal(sent["new"].tensors["global.bias"], server["global.bias"])


# ---- pFedPrompt, Tip-Adapter


def test_a_memory_adds_what_the_clients_own_images_say() -> None:
    model, method = prompted(), PFedPrompt(alpha=2.0, beta=3.0)
    local = client(method, model)
    kept = method.finish(model, local).stays
    kept = method.absorb(model, {}, kept, Examples(IMAGES[:4, None], LABELS[:4]))
    sent = method.publish(method.open(given(model)))
    predictor = method.predictor(model, method.restore(model, sent, kept))
    expected = model.logits(model.initial, IMAGES)
    for b, image in enumerate(IMAGES):
        for own, label in zip(IMAGES[:4], LABELS[:4], strict=True):
            expected[b, label] += 2 * torch.exp(-3 * (1 - image @ own))
    assert torch.allclose(predictor.logits(IMAGES), expected, atol=1e-4)


def test_a_clients_images_are_in_nothing_that_pfedprompt_uploads() -> None:
    model = prompted()
    for tuned, names in ((True, {"context"}), (False, set())):
        method = PFedPrompt(tuned=tuned)
        assert method.finish(model, client(method, model)).leaves.keys() == names


# ---- FedDF


def test_feddf_teaches_the_average_what_all_clients_say_together() -> None:
    model, rate = TinyProbe(), 0.2
    reserve = Examples(IMAGES[:, None], LABELS)
    uploads = [
        Upload(name, {n: torch.randn(v.shape, generator=draw) for n, v in model.initial.items()}, k)
        for name, k in (("a", 1), ("b", 3))
    ]
    what = replace(given(model, reserve), learning=Learning(batch=6))  # a step is the whole set
    server = FedDF(epochs=1, distil_rate=rate).merge(what, {}, uploads, 1)

    soft = softmax(sum(model.logits(u.tensors, IMAGES) for u in uploads) / 2, dim=-1)
    averaged = under(FedAvg().merge(what, {}, uploads, 1), "global")
    start = {name: value.clone().requires_grad_() for name, value in averaged.items()}
    said = model.logits(start, IMAGES).log_softmax(-1)
    slopes = torch.autograd.grad(-(soft * said).sum(-1).mean(), list(start.values()))
    for (name, value), slope in zip(averaged.items(), slopes, strict=True):
        assert torch.allclose(server[f"global.{name}"], value - rate * slope, atol=1e-5)


# ---- Fed-ET


def test_fedet_teaches_the_large_network_what_small_ones_agree_on_and_who_does_not() -> None:
    model = TinyModel("family").build(CLASSES, 0).model
    reserve, rate = Examples(IMAGES[:, None], LABELS), 0.2
    uploads = [
        Upload(
            name,
            {
                n: torch.randn(v.shape, generator=draw)
                for n, v in model.initial.items()
                if n.startswith(f"kind.{kind}.")
            },
            count,
        )
        for name, kind, count in (("a", 1, 1), ("b", 1, 3), ("c", 2, 5))
    ]
    what = replace(given(model, reserve), learning=Learning(batch=6))  # a step is the whole set
    method = FedET(epochs=1, distil_rate=rate, diversity=0.5)
    server = method.merge(what, method.open(what), uploads, 1)
    for name, value in uploads[0].tensors.items():
        mean = (value + 3 * uploads[1].tensors[name]) / 4
        if "top" not in name:
            assert torch.allclose(server[f"global.{name}"], mean, atol=1e-6)
    assert torch.equal(
        server["global.kind.2.body.weight"], uploads[2].tensors["kind.2.body.weight"]
    )

    said = [model.logits(u.tensors, IMAGES) for u in uploads]
    large = {n: v for n, v in model.initial.items() if n.startswith("kind.0.")}
    for name in ("weight", "bias"):  # the last layer begins as everybody's mean
        tops = [
            u.tensors[f"kind.{kind}.top.{name}"] for u, kind in zip(uploads, (1, 1, 2), strict=True)
        ]
        large[f"kind.0.top.{name}"] = (tops[0] + 3 * tops[1] + 5 * tops[2]) / 9
    start = {name: value.clone().requires_grad_() for name, value in large.items()}
    own = model.logits(start, IMAGES).log_softmax(-1)
    loss = torch.zeros(())
    for r in range(len(IMAGES)):
        sure = [s[r].var(unbiased=False) for s in said]
        together = sum(w * s[r] for w, s in zip(sure, said, strict=True)) / sum(sure)
        label = int(together.argmax())
        loss = loss - own[r, label]
        others = [i for i, s in enumerate(said) if int(s[r].argmax()) != label]
        if others:
            dissent = sum(sure[i] * said[i][r] for i in others) / sum(sure[i] for i in others)
            q = softmax(dissent, dim=-1)
            loss = loss + 0.5 * (q * (q.log() - own[r])).sum()
    slopes = torch.autograd.grad(loss / len(IMAGES), list(start.values()))
    for (name, value), slope in zip(large.items(), slopes, strict=True):
        assert torch.allclose(server[f"global.{name}"], value - rate * slope, atol=1e-5)
    for kind in (1, 2):  # and ends as the server's
        for name in ("weight", "bias"):
            own_top = server[f"global.kind.{kind}.top.{name}"]
            assert torch.equal(own_top, server[f"global.kind.0.top.{name}"])


def test_a_client_has_a_network_of_its_kind_and_the_server_answers_with_the_large_one() -> None:
    model, method = FamilySettings(["cnn-4", "cnn-1", "mlp-2"]).build(CLASSES, 0).model, FedET()
    server = method.open(given(model))
    sent = method.send(server, "abcdef", 1, 0)
    kinds = {next(iter(s.tensors)).split(".")[2] for s in sent.values()}
    assert kinds == {"1", "2"}
    x = torch.randn(3, 1, 16, 16, generator=draw)
    for client in "abcdef":
        local = method.start(model, sent[client].tensors, None, rng(0, "start"))
        assert method.predictor(model, local).logits(x).shape == (3, 3)
        assert local.trained.keys() == method.expects(server, model, client).keys()
    large = {n: v for n, v in model.initial.items() if n.startswith("kind.0.")}
    assert torch.equal(method.served(model, server).logits(x), model.logits(large, x))


def test_a_config_says_which_client_has_which_network_and_the_others_draw_theirs() -> None:
    model = FamilySettings(["cnn-4", "cnn-1", "mlp-2"]).build(CLASSES, 0).model
    drawn = FedET()
    server = drawn.open(given(model))

    def kinds(method: FedET) -> dict[str, str]:
        """By client: what it is sent, which is what is expected of it."""
        sent = method.send(server, "abcdef", 1, 0)
        for client in "abcdef":
            trained = method.start(model, sent[client].tensors, None, rng(0, "start")).trained
            assert trained.keys() == method.expects(server, model, client).keys()
        return {client: next(iter(s.tensors)).split(".")[2] for client, s in sent.items()}

    for kind in (1, 2):
        said = FedET(clients={"a": kind})
        said.fits(model, 1)
        assert kinds(said) == kinds(drawn) | {"a": str(kind)}
    for wrong in (0, 3):  # the server's own, and none
        with pytest.raises(ValueError, match=f'"a" = {wrong}.*network of clients, 1 to 2'):
            FedET(clients={"a": wrong}).fits(model, 1)


def test_networks_of_several_kinds_are_named_with_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"'rnn-2' is none; expected, say, \"cnn-8\""):
        FamilySettings(["cnn-8", "rnn-2"])
    with pytest.raises(ValueError, match="at least one of clients"):
        FamilySettings(["cnn-8"])
    with pytest.raises(ValueError, match='set model.name = "family"'):
        FedET().fits(network(), 1)
    with pytest.raises(ValueError, match="fedet needs a reserve set"):
        FedET().fits(FamilySettings().build(CLASSES, 0).model, 0)


# ---- HeteroFL, FedRolex


def halves(method: HeteroFL, wanted: float) -> str:
    """A client's name that draws this width."""
    return next(name for name in map(str, range(99)) if method.width_of(name) == wanted)


@pytest.mark.parametrize(("rolling", "units"), [(False, [0, 1]), (True, [1, 2])])
def test_a_weak_client_trains_some_hidden_units_and_leaves_the_others_alone(
    rolling: bool, units: list[int]
) -> None:
    model, method = network(), HeteroFL(widths=[1.0, 0.5], rolling=rolling)
    weak, strong = halves(method, 0.5), halves(method, 1.0)
    server = method.open(given(model))
    sent = method.send(server, [weak], 1, 0)[weak].tensors
    assert torch.equal(sent["global.0.weight"], model.initial["0.weight"][units])
    assert torch.equal(sent["global.2.weight"], model.initial["2.weight"][:, units])
    assert torch.equal(sent["global.2.bias"], model.initial["2.bias"])

    trained = {name: value + 1 for name, value in under(sent, "global").items()}
    alone = method.merge(given(model), server, [Upload(weak, trained, 2)], 1)
    others = [i for i in range(4) if i not in units]
    assert torch.allclose(alone["global.0.bias"][units], model.initial["0.bias"][units] + 1)
    assert torch.equal(alone["global.0.bias"][others], model.initial["0.bias"][others])

    whole = {name: value - 1 for name, value in model.initial.items()}
    both = [Upload(weak, trained, 2), Upload(strong, whole, 6)]
    merged = method.merge(given(model), server, both, 1)["global.0.bias"] - model.initial["0.bias"]
    assert torch.allclose(merged[units], torch.tensor((2 * 1 - 6 * 1) / 8))
    assert torch.allclose(merged[others], torch.tensor(-1.0))


def test_a_config_says_how_wide_a_client_is() -> None:
    method = HeteroFL(widths=[1.0, 0.5, 0.25], clients={"a": 0.25, "b": 1.0})
    assert method.width_of("a") == 0.25
    assert method.width_of("b") == 1.0
    assert method.width_of("c") == HeteroFL(widths=[1.0, 0.5, 0.25]).width_of("c")
    with pytest.raises(ValueError, match=r'"a" = 0.3\}: expected one of widths = \[1.0, 0.5\]'):
        HeteroFL(widths=[1.0, 0.5], clients={"a": 0.3})


def test_a_window_goes_round_and_keeps_channels_together_behind_a_flatten() -> None:
    layers = (torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 4, 3))
    model = Network(torch.nn.Sequential(*layers), CLASSES)
    positions = slim.window(model.initial, slim.hidden(model), 0.5, turn=3)
    assert positions["0.weight"][0].tolist() == [1]
    assert positions["2.weight"][1].tolist() == [4, 5, 6, 7]
    small = slim.cut(model.initial, positions)
    assert model.logits(small, torch.zeros(5, 1, 4, 4)).shape == (5, 3)


def test_equal_widths_are_federated_averaging() -> None:
    model, method = network(), HeteroFL(widths=[1.0])
    uploads = [
        Upload(name, {n: torch.randn(v.shape, generator=draw) for n, v in model.initial.items()}, k)
        for name, k in (("a", 1), ("b", 3))
    ]
    merged = method.merge(given(model), method.open(given(model)), uploads, 1)
    averaged = FedAvg().merge(given(model), {}, uploads, 1)
    for name, value in averaged.items():
        assert torch.allclose(merged[name], value, atol=1e-6)


def test_a_width_that_a_network_cannot_have_is_named_with_those_it_can() -> None:
    with pytest.raises(ValueError, match=r"cannot have 0.3 .* use one of 0.25, 0.5, 0.75, 1,"):
        HeteroFL(widths=[1.0, 0.3]).fits(network(), 0)
    with pytest.raises(ValueError, match="TinyProbe has no hidden layer"):
        HeteroFL().fits(TinyProbe(), 0)
    with pytest.raises(ConfigError, match=r"widths = \[2.0\]: expected shares above 0"):
        parts(tiny(CASES["heterofl"], method={"widths": [2.0]}))


def test_a_server_of_sub_models_answers_with_the_whole_network() -> None:
    model, method = network(), HeteroFL()
    server = method.open(given(model))
    assert method.publish(server)["global.0.bias"].shape == (2,)
    x = torch.randn(5, 2, generator=draw)
    assert torch.equal(method.served(model, server).logits(x), model.logits(model.initial, x))
    assert named("global", model.initial).keys() <= server.keys()
