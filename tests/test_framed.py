"""Fed-MoE framed: its sketches, gate, frames and shares, each held to what one would write down
without sums, and its experts to what they should share.
"""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CASES,
    carry_out,
    digits,
    given,
    job_and_engine,
    open_run,
    same_bits,
    server,
    tiny,
)
from torch import Tensor

from fedexperts.admission import unlike
from fedexperts.config import Config
from fedexperts.data.digits import SCANNERS, DigitsScanners
from fedexperts.learn import Examples
from fedexperts.loop import train
from fedexperts.method import Upload
from fedexperts.methods import sketch
from fedexperts.methods.framed import SKETCH, FedMoEFramed
from fedexperts.methods.frames import Framed, SketchGate, frames, read
from fedexperts.methods.sketch import Moments, gate, groups, members, moments_of, of_images
from fedexperts.models.mixture import Mixture
from fedexperts.models.vision import CompactCnnSettings
from fedexperts.tensors import Tensors, named, under

NAMES = ("one", "two", "three")


def scanned(kind: int, count: int, seed: int) -> Tensor:
    """[B, 1, 6, 6]: skewed noise, as one of three scanners reads it: as it is, inverted, faint."""
    draw = torch.Generator().manual_seed(seed)
    ink = torch.rand(count, 1, 6, 6, generator=draw).pow(3) - 0.3
    return (ink, -ink + 0.1, 0.2 * ink + 0.4)[kind]


PILES = [scanned(i % 3, 20 + 7 * i, i) for i in range(6)]  # six clients, two a scanner


def told(piles: list[Tensor]) -> Moments:
    """What a server knows of clients with these images."""
    state: Tensors = {}
    for i, pile in enumerate(piles):
        one = sketch.sketch(of_images(pile)) | {"examples": torch.tensor(float(len(pile)))}
        state |= named(f"sketch.client-{i:02}", one)
    return moments_of(state)[1]


# ---- sketches and groups


def test_an_images_numbers_are_what_they_are_called() -> None:
    image = PILES[0][:1]
    pixels = image[0, 0].double()
    mean, sd = pixels.mean(), pixels.std(correction=0)
    expected = [mean, sd, ((pixels - mean) ** 3).mean() / sd**3]
    for down, right in ((0, 1), (0, 2), *((y, x) for y in (1, 2) for x in range(-2, 3))):
        pairs = [
            (pixels[r, c] - mean) * (pixels[r + down, c + right] - mean) / sd**2
            for r in range(6 - down)
            for c in range(6)
            if 0 <= c + right < 6
        ]
        expected.append(torch.stack(pairs).mean())
    torch.testing.assert_close(of_images(image)[0], torch.stack(expected).float())


def test_several_channels_have_numbers_each() -> None:
    three = torch.cat([PILES[0][:5], PILES[1][:5], PILES[2][:5]], dim=1)
    each = torch.stack([of_images(three[:, [s]]) for s in range(3)], dim=2)
    assert torch.equal(of_images(three), each.flatten(1))


def test_the_gate_is_the_discriminant_of_all_images_in_one_place() -> None:
    """Written down with every image's numbers, which no server ever sees."""
    every = torch.cat([of_images(pile) for pile in PILES]).double()
    label = torch.cat([torch.full((len(pile),), i % 3) for i, pile in enumerate(PILES)])
    z = (every - every.mean(0)) / every.std(0, correction=0)
    mu = torch.stack([z[label == k].mean(0) for k in range(3)])
    inside = (z - mu[label]).T @ (z - mu[label]) / len(z) + 0.001 * torch.eye(15).double()
    weight = torch.linalg.inv(inside) @ mu.T
    share = label.bincount() / len(label)
    logits = z @ weight - (mu * weight.T).sum(1) / 2 + share.log()
    tensors = gate(told(PILES), members([0, 1, 2, 0, 1, 2], 3))
    found = SketchGate(CompactCnnSettings().build(NAMES, 0).model, 3).logits(
        tensors, torch.cat(PILES)
    )
    torch.testing.assert_close(found.softmax(1), logits.softmax(1).float(), atol=1e-3, rtol=1e-3)
    assert (found.argmax(1) == label).float().mean() > 0.95


def test_a_client_has_a_share_of_each_group_as_the_gate_sees_its_average_input() -> None:
    """One whose images lie between two scanners belongs to both of them."""
    between = told([*PILES, (PILES[0] + PILES[2][: len(PILES[0])]) / 2])
    member = members([0, 1, 2, 0, 1, 2, 0], 3)
    tensors = gate(between, member)
    model = SketchGate(CompactCnnSettings().build(NAMES, 0).model, 3)
    share = sketch.shares(between, tensors).T
    for i, pile in enumerate(PILES):
        unit = (of_images(pile).mean(0) - tensors["middle"]) / tensors["sd"]
        logits = unit @ tensors["weight"] + tensors["bias"]
        torch.testing.assert_close(share[i].float(), logits.softmax(0), atol=1e-3, rtol=1e-3)
        assert share[i].argmax() == model.logits(tensors, pile).mean(0).argmax()


def test_a_group_without_a_client_is_never_chosen() -> None:
    tensors = gate(told(PILES), members([0, 1, 3, 0, 1, 3], 4))
    model = SketchGate(CompactCnnSettings().build(NAMES, 0).model, 4)
    assert model.logits(tensors, torch.cat(PILES)).softmax(1)[:, 2].max() == 0


@pytest.mark.parametrize("choose", [False, True])
def test_clients_of_one_scanner_make_a_group(choose: bool) -> None:
    most = 5 if choose else 3
    assert groups(told(PILES), most, choose, 0) == [0, 1, 2, 0, 1, 2]


def test_where_all_read_alike_there_is_one_group() -> None:
    assert set(groups(told([scanned(0, 40, i) for i in range(8)]), 4, True, 0)) == {0}


def test_equal_sketches_are_one_group_whatever_is_asked() -> None:
    assert groups(told([PILES[0]] * 4), 3, False, 0) == [0, 0, 0, 0]


def grey_digits(seed: int) -> dict[str, Tensor]:
    """Client -> its training images, as a compact network reads them."""
    data = DigitsScanners(reserve=10).load(seed)
    encode = CompactCnnSettings().build(NAMES, 0).encode
    return {client: encode(data.inputs[own.train]) for client, own in data.parts.items()}


@pytest.mark.parametrize("seed", range(10))
def test_groups_of_four_scanners_are_pure(seed: int) -> None:
    images = grey_digits(seed)
    labels = groups(told(list(images.values())), 4, False, seed)
    pairs = {(client.rpartition("-")[0], k) for client, k in zip(images, labels, strict=True)}
    assert len(pairs) == len(SCANNERS)


# ---- frames


def test_behind_their_frames_all_groups_read_alike() -> None:
    """One mean, one deviation, dark paper; each written down from the pixels themselves."""
    member = members([0, 1, 2, 0, 1, 2], 3)
    made = frames(told(PILES).together(member))
    seen = []
    for k, frame in enumerate(made):
        pixels = torch.cat([PILES[k], PILES[k + 3]])
        framed = read(frame, pixels)
        seen.append((framed.mean(), framed.std(correction=0)))
        assert (framed - framed.mean()).pow(3).mean() > 0
    for one, other in pairwise(seen):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)
    assert made[1]["frame.scale"] < 0 < made[2]["frame.scale"]


def test_groups_that_read_alike_share_a_frame_and_the_widest_reads_as_it_is() -> None:
    piles = [scanned(0, 50, 1), scanned(0, 60, 2), scanned(2, 50, 3)]
    one, other, faint = frames(told(piles).together(members([0, 1, 2], 3)))
    assert same_bits(one, other)
    torch.testing.assert_close(one["frame.scale"], torch.ones(1, 1, 1))
    torch.testing.assert_close(one["frame.shift"], torch.zeros(1, 1, 1), atol=1e-6, rtol=0)
    assert faint["frame.scale"] > 4


def test_a_frame_is_no_part_of_training_nor_of_an_upload() -> None:
    method = FedMoEFramed()
    mixture = parts(2)
    expert = mixture.expert.initial | frames(told(PILES).together(members([0] * 6, 1)))[0]
    assert not Framed(mixture.expert).buffers - expert.keys()
    local = method.start(mixture, named("global", expert), None, torch.Generator())
    assert local.fixed.keys() == method.finish(mixture, local).leaves.keys()
    assert local.fixed.keys() == mixture.expert.initial.keys()


def parts(experts: int) -> Mixture:
    names = tuple(f"expert-{k}" for k in range(experts))
    expert, blank = (CompactCnnSettings(side=6).build(n, 0).model for n in (NAMES, names))
    return Mixture(expert, blank, 0, experts)


def test_the_servers_mixture_is_a_few_lines_of_torch() -> None:
    method, mixture = FedMoEFramed(), parts(3)
    state = grouped(method, mixture)
    served = method.served(mixture, state)
    written = served.portable()
    scope: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    scope |= {"t": written.tensors, "n": written.numbers}
    exec(written.code, scope)
    x = torch.cat(PILES)
    torch.testing.assert_close(scope["logits"](x), served.logits(x), rtol=1e-4, atol=1e-4)


# ---- rounds


def grouped(method: FedMoEFramed, mixture: Mixture) -> Tensors:
    """A server that has the sketches of the six clients."""
    reserve = Examples(torch.cat(PILES)[:30, None], torch.arange(30) % 3)
    context = given(mixture, reserve)
    uploads = [
        Upload(f"client-{i}", named("sketch", sketch.sketch(of_images(pile))), len(pile))
        for i, pile in enumerate(PILES)
    ]
    return method.merge(context, method.open(context), uploads, 1)


def trained(state: Tensors, method: FedMoEFramed, mixture: Mixture, push: float) -> list[Upload]:
    """What the clients send: all move by 1; clients of a group, `push` times as far apart."""
    draw = torch.Generator().manual_seed(0)
    uploads = []
    for i, pile in enumerate(PILES):
        client = f"client-{i}"
        start = method.expects(state, mixture, client)
        moved = {}
        for name, value in sorted(start.items()):
            own = torch.randn(value.shape, generator=draw)
            moved[name] = value + 1 + push * (i % 3) + 0.1 * own
        uploads.append(Upload(client, moved, len(pile)))
    return uploads


def test_experts_move_as_is_written_down() -> None:
    """E_k + all + share_l (own_k - all), share_l from the variances of each layer's updates."""
    method, mixture = FedMoEFramed(restart=0), parts(3)
    state = grouped(method, mixture)
    uploads = trained(state, method, mixture, 0.2)
    after = method.merge(given(mixture), state, uploads, 2)
    size = torch.tensor([float(len(pile)) for pile in PILES]).double()
    names = [("0.weight", "0.bias"), ("2.weight", "2.bias"), ("5.weight", "5.bias")]
    for layer in names:
        D = []
        for i, upload in enumerate(uploads):
            start = under(state, f"expert.{i % 3}")
            D.append(torch.cat([(upload.tensors[n] - start[n]).flatten() for n in layer]).double())
        moves = torch.stack(D)
        everybody = size @ moves / size.sum()
        own = [size[k::3] @ moves[k::3] / size[k::3].sum() for k in range(3)]
        between = sum(2 * (own[k] - everybody).square().sum() for k in range(3)) / 2
        within = sum((moves[i] - own[i % 3]).square().sum() for i in range(6)) / 3
        share = float((1 - within / between).clamp(0, 1))
        assert share > 0.5
        for k in range(3):
            was, now = under(state, f"expert.{k}"), under(after, f"expert.{k}")
            moved = torch.cat([(now[n] - was[n]).flatten() for n in layer]).double()
            expected = everybody + share * (own[k] - everybody)
            torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)


def test_a_client_of_two_groups_moves_both_experts_by_its_share_of_each() -> None:
    """Its start is their mixture, behind the frame of the group to which it belongs most."""
    method, mixture = FedMoEFramed(restart=0, share="whole"), parts(3)
    state = grouped(method, mixture)
    state["shares.client-0"] = torch.tensor([0.6, 0.4, 0.0])
    state["expert.1.5.bias"] = torch.tensor([1.0, 2.0, 3.0])
    start = under(method.send(state, ["client-0"], 2, 0)["client-0"].tensors, "global")
    expected = 0.6 * state["expert.0.5.bias"] + 0.4 * state["expert.1.5.bias"]
    torch.testing.assert_close(start["5.bias"], expected)
    assert torch.equal(start["frame.scale"], state["expert.0.frame.scale"])
    uploads = trained(state, method, mixture, 0.2)
    after = method.merge(given(mixture), state, uploads, 2)
    moves = []
    for i, upload in enumerate(uploads):
        began = method.expects(state, mixture, f"client-{i}")["5.bias"]
        moves.append(upload.tensors["5.bias"] - began)
    size = [len(pile) for pile in PILES]
    for k, weight in enumerate(
        ([0.6 * size[0], 0, 0, size[3]], [0.4 * size[0], size[1], 0, 0, size[4]])
    ):
        own = sum(w * moves[i] for i, w in enumerate(weight)) / sum(weight)
        moved = after[f"expert.{k}.5.bias"] - state[f"expert.{k}.5.bias"]
        torch.testing.assert_close(moved, own, atol=1e-5, rtol=1e-4)


def test_experts_move_together_where_groups_differ_no_more_than_their_clients() -> None:
    method, mixture = FedMoEFramed(restart=0), parts(3)
    state = grouped(method, mixture)
    after = method.merge(given(mixture), state, trained(state, method, mixture, 0.0), 2)
    one, other = under(after, "expert.0"), under(after, "expert.1")
    assert one["0.weight"].ne(under(state, "expert.0")["0.weight"]).all()
    for name in mixture.expert.initial:
        torch.testing.assert_close(one[name], other[name], atol=0.02, rtol=0)


def test_with_one_expert_that_reads_as_it_is_a_round_is_fedproxs_bit_for_bit(
    tmp_path: Path,
) -> None:
    """K = 1, no frames, share 0: from the same model, the same round."""
    prox = tiny(replace(CASES["fedprox"], model="network", reserve=8))
    one = {"experts": 1, "mains": 0}
    own = {"name": "fedmoe-framed", "frames": False, "share": "none", "restart": 0, "mu": 0.3}
    framed = tiny(replace(CASES["framed"], method=own, mixture=one))
    first, second = rounds(framed, tmp_path / "framed", 2)
    start = named("global", without_frame(under(first, "expert.0")))
    assert same_bits(under(start, "global"), under(opened(prox, tmp_path / "a"), "global"))
    (after,) = rounds(prox, tmp_path / "prox", 1, start, 2)
    assert same_bits(without_frame(under(second, "expert.0")), under(after, "global"))
    assert not same_bits(without_frame(under(second, "expert.0")), under(start, "global"))


def without_frame(expert: Tensors) -> Tensors:
    return {name: value for name, value in expert.items() if not name.startswith("frame.")}


def opened(config: Config, path: Path) -> Tensors:
    job, _ = job_and_engine(config, path)
    return job.method.open(job.given)


def rounds(
    config: Config, path: Path, count: int, state: Tensors | None = None, first: int = 1
) -> list[Tensors]:
    """The server's states after some rounds of all clients, from any state and round."""
    folder = open_run(config, path)
    job, engine = job_and_engine(config, path / "private")
    schedule = replace(config.section("run"), participation=1.0)
    state = state or job.method.open(job.given)
    states = []
    for number in range(first, first + count):
        state = train(job, engine, schedule, folder, state, number, {})
        states.append(state)
    return states


def test_a_client_sends_its_sketch_once_and_no_model_with_it(tmp_path: Path) -> None:
    config = tiny(CASES["framed-images"], run={"participation": 1.0})
    rows = carry_out(config, tmp_path / "run").rows("rounds.jsonl")
    up = [{facts["parameters_up"] for facts in row["trained"].values()} for row in rows]
    P = 3 * sketch.KINDS
    assert up[0] == {P + P * (P + 1) // 2}
    assert up[1] == up[2]
    assert up[1] != up[0]
    assert rows[0]["parameters_down"] == 0


def test_who_comes_later_changes_no_expert_of_a_group_that_stays() -> None:
    method, mixture = FedMoEFramed(), parts(3)
    state = grouped(method, mixture)
    experts = {name: value + len(name) for name, value in state.items() if "expert." in name}
    late = Upload("client-9", named("sketch", sketch.sketch(of_images(scanned(1, 30, 9)))), 30)
    after = method.merge(given(mixture), state | experts, [late], 2)
    assert after["shares.client-9"].tolist() == after["shares.client-1"].tolist() == [0, 1, 0]
    for k in range(3):
        for name in mixture.expert.initial:
            key = f"expert.{k}.{name}"
            assert torch.equal(after[key], experts[key]), key


def test_a_scanner_that_nobody_had_begins_with_what_all_know() -> None:
    method, mixture = FedMoEFramed(frames=False, restart=0), parts(3)
    context = given(mixture, Examples(torch.cat(PILES)[:30, None], torch.arange(30) % 3))
    one = [
        Upload(f"client-{i}", named("sketch", sketch.sketch(of_images(PILES[i]))), len(PILES[i]))
        for i in range(6)
    ]
    state = method.merge(context, method.open(context), [one[0], one[1], one[3], one[4]], 1)
    before = {int(state[f"shares.client-{i}"].argmax()): i for i in (0, 1, 3, 4)}
    for k in before:
        state[f"expert.{k}.5.bias"] = torch.full((3,), float(k + 1))
    after = method.merge(context, state, [one[2], one[5]], 2)
    new = int(after["shares.client-2"].argmax())
    values = [state[f"expert.{k}.5.bias"][0] for k in before]
    assert min(values) < after[f"expert.{new}.5.bias"][0] < max(values)


# ---- digits


def shares(numberings: int, path: Path) -> dict[str, float]:
    """By layer, on four scanners."""
    config = digits(
        CASES["framed"],
        data={
            "clients": 20,
            "numberings": numberings,
            "numbered_by": "scanners",
            "shots": 0,
            "reserve": 10,
        },
        method={"restart": 30},
        mixture={"experts": 4, "top": 4},
        learning={"optimizer": "adam", "rate": 0.03, "batch": 16, "epochs": 2},
        engine={"together": 20},
    )
    state = server(carry_out(config, path))
    return {k: float(1 - v[1] / v[0]) for k, v in under(state, "variance").items()}


def test_experts_share_all_where_clients_name_classes_alike_and_little_where_they_do_not(
    tmp_path: Path,
) -> None:
    """After the first round in which anybody trains, behind frames."""
    assert max(shares(1, tmp_path / "one").values()) < 0.1
    assert max(shares(4, tmp_path / "four").values()) > 0.3


# ---- newcomers and strangers


def test_a_newcomer_is_given_the_expert_of_its_scanner_whatever_its_labels() -> None:
    method, mixture = FedMoEFramed(), parts(3)
    state = grouped(method, mixture)
    for kind in range(3):
        few = Examples(scanned(kind, 8, 50 + kind)[:, None], torch.zeros(8, dtype=torch.int64))
        (chosen,) = method.offers(mixture, state, few)
        k = int(state[f"shares.client-{kind}"].argmax())
        assert chosen.shares == {f"expert {k}": 1.0}
        assert same_bits(chosen.local.trained, under(state, f"expert.{k}"))


def test_a_sketch_that_no_images_can_have_is_not_taken() -> None:
    method, mixture = FedMoEFramed(), parts(3)
    state = grouped(method, mixture)
    lie = sketch.sketch(of_images(PILES[0]))
    lie["spread"] = -lie["spread"]
    after = method.merge(given(mixture), state, [Upload("liar", named("sketch", lie), 9)], 2)
    assert same_bits(after, state)
    assert set(method.expects(after, mixture, "liar")) == set(SKETCH)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("sketch.mean", torch.full((15,), torch.nan), "NaN"),
        ("sketch.spread", torch.full((120,), 1e6), "numbers up to 1e\\+06"),
        ("sketch.mean", torch.zeros(16), "expected is"),
        ("model", torch.zeros(3), "tensors are named"),
    ],
)
def test_a_hostile_sketch_is_refused_before_it_is_read(
    name: str, value: Tensor, why: str, tmp_path: Path
) -> None:
    job, _ = job_and_engine(tiny(CASES["framed"]), tmp_path)
    expected = FedMoEFramed().expects({"gate.sd": torch.ones(15)}, job.model, "stranger")
    said = expected | {name: value}
    assert re.search(why, unlike(said, expected, job.terms))
