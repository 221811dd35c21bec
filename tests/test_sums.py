"""Secure sums: what the server sees is behind masks, and what comes of it is the plain mean."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, Case, Wire, carry_out, server, tiny

from fedexperts import masks
from fedexperts.config import opened
from fedexperts.engine import Engine
from fedexperts.loop import NobodyLeftError
from fedexperts.masks import Masks, fixed, join, split
from fedexperts.message import Order, Reply
from fedexperts.metrics import moved
from fedexperts.report import collect, write_html
from fedexperts.rundir import RunDir
from fedexperts.study import once
from fedexperts.tensors import Tensors

pytest.importorskip("cryptography", reason='needs pip install "fedexperts[privacy]"')
pytest.importorskip("Crypto", reason='needs pip install "fedexperts[privacy]"')

FULL = {"participation": 1.0}
PROBE = CASES["fedavg-probe"]


@dataclass
class Overheard:
    """All that the server sends and sees; some clients fall silent at a step."""

    inner: Engine
    silent: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[Order, Reply]] = field(default_factory=list)

    def clients(self) -> list[str]:
        return self.inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        asked = {order.client: order for order in orders}
        replies = [
            reply
            for reply in Wire(self.inner).exchange(orders)
            if self.silent.get(reply.client) != reply.task
        ]
        self.seen += [(asked[reply.client], reply) for reply in replies]
        return replies


def overheard(secure: bool, path: Path, **silent: str) -> tuple[Tensors, Overheard]:
    """What the server holds after a round, and all that it saw."""
    ears: list[Overheard] = []

    def wrap(engine: Engine) -> Overheard:
        ears.append(Overheard(engine, silent))
        return ears[0]

    config = tiny(PROBE, upload={"secure": secure}, run=FULL | {"rounds": 1})
    return server(carry_out(config, path, wrap)), ears[0]


def uploads(ears: Overheard) -> dict[str, Tensors]:
    return {reply.client: reply.tensors for _, reply in ears.seen if reply.task == "train"}


def test_the_sum_is_the_plain_one_up_to_the_rounding_that_is_stated(tmp_path: Path) -> None:
    plain, _ = overheard(False, tmp_path / "plain")
    secure, _ = overheard(True, tmp_path / "secure")
    assert plain.keys() == secure.keys()
    for name in plain:
        assert (plain[name] - secure[name]).abs().max() < 2**-24


def test_in_all_that_the_server_sees_there_is_no_single_upload(tmp_path: Path) -> None:
    """Neither as it is, nor in fixed point, nor with everybody's public keys taken for secrets; a
    masked number is like any other.
    """
    _, open_ears = overheard(False, tmp_path / "plain")
    _, ears = overheard(True, tmp_path / "secure")
    honest, hidden = uploads(open_ears), uploads(ears)
    traffic = b"".join(
        masks.pack(message.tensors) for order, reply in ears.seen for message in (order, reply)
    )
    for client, own in honest.items():
        weight = {"a": 5, "b": 9, "c": 14, "d": 7, "e": 1}[client]
        for name, value in own.items():
            assert value.numpy().tobytes() not in traffic
            number = fixed({name: value}, weight, 5)[name]
            assert number.numpy().tobytes() not in traffic
            apart = (hidden[client][name] - number).flatten()
            assert (apart != 0).all()
    high = torch.cat([t.flatten() for own in hidden.values() for t in own.values()]) > 0
    assert 0.3 < float(high.float().mean()) < 0.7
    for one in hidden:
        for other in hidden:  # nor do two of them give one away
            if one != other:
                both = masks.added(hidden[one], hidden[other])
                assert int(both["weight"].abs().min()) > 2**30


@pytest.mark.parametrize(
    ("silent", "left"),
    [
        ({"b": "keys"}, "acde"),
        ({"b": "shares"}, "acde"),
        ({"b": "train"}, "acde"),
        ({"b": "unmask"}, "abcde"),
    ],
)
def test_who_drops_out_is_taken_off_wherever_it_does(
    silent: dict[str, str], left: str, tmp_path: Path
) -> None:
    """The mean is that of who sent something."""
    merged, ears = overheard(True, tmp_path / "run", **silent)
    _, open_ears = overheard(False, tmp_path / "plain")
    counts = {"a": 5, "b": 9, "c": 14, "d": 7, "e": 1}
    honest = uploads(open_ears)
    total = sum(counts[client] for client in left)
    for name in ("weight", "bias"):
        mean = sum(honest[client][name] * counts[client] for client in left) / total
        assert torch.allclose(merged[f"global.{name}"], mean, atol=2**-22)
    assert {reply.client for _, reply in ears.seen if reply.task == "predict"} == set("abcde")


def test_with_too_few_left_nothing_is_unmasked(tmp_path: Path) -> None:
    with pytest.raises(NobodyLeftError, match="too few clients are left for a secure sum"):
        overheard(True, tmp_path / "run", b="train", c="train")


def test_with_dropouts_a_client_tells_one_secret_of_each_and_of_one_sum(tmp_path: Path) -> None:
    """A server that asks for both, or for two sums of a round, could take one from the other."""
    names = "abcd"
    all_masks = {name: Masks(tmp_path, name, 1) for name in names}
    keys = {
        f"{kind}.{name}": key
        for name, own in all_masks.items()
        for kind, key in own.begin().items()
    }
    boxes = {name: own.share(keys) for name, own in all_masks.items()}
    for own in all_masks.values():
        own.masked({"w": torch.ones(3)}, 2, names)

    def asked(alive: str) -> Tensors:
        cipher = {f"from.{peer}": boxes[peer]["to.a"] for peer in names}
        return cipher | {f"alive.{name}": torch.zeros(0) for name in alive}

    told = all_masks["a"].unmask(asked("abc"))
    assert set(told) == {"seed.a", "seed.b", "seed.c", "key.d"}
    assert set(all_masks["a"].unmask(asked("abc"))) == set(told)
    with pytest.raises(ValueError, match="another sum of this round"):
        all_masks["a"].unmask(asked("abcd"))
    with pytest.raises(ValueError, match="too small"):
        all_masks["b"].unmask(asked("ab"))
    with pytest.raises(ValueError, match="shared before"):
        all_masks["b"].share(keys)
    all_masks["a"].begin()  # nor after a round that begins anew
    all_masks["a"].share(keys)
    all_masks["a"].masked({"w": torch.ones(3)}, 2, names)
    with pytest.raises(ValueError, match="another sum of this round"):
        all_masks["a"].unmask(asked("abcd"))


def test_two_thirds_of_the_shares_give_a_secret_and_fewer_do_not() -> None:
    secret = masks.new_key()
    shares = dict(enumerate(split(secret, 4, 5)))
    assert join({i: shares[i] for i in (0, 2, 3, 4)}) == secret
    assert join({i: shares[i] for i in (0, 2, 3)}) != secret


def test_what_does_not_fit_is_refused_and_nothing_is_cut_off() -> None:
    with pytest.raises(ValueError, match="bear numbers up to 8192; w has 8193"):
        fixed({"w": torch.tensor([8193.0])}, 1, 3)
    with pytest.raises(ValueError, match="examples in all"):
        fixed({"w": torch.zeros(1)}, 2**24, 3)
    most = fixed({"w": torch.tensor([8192.0, -8192.0])}, 2**25 // 4, 4)["w"]
    summed = most * 4
    assert (summed.double() / 2**25 / 2**24).tolist() == [8192, -8192]


def test_flowers_own_masks_have_a_seed_of_32_bits() -> None:
    """Why they are not used: two secrets whose words have the same exclusive or give one mask."""
    utils = pytest.importorskip("flwr.common.secure_aggregation.secaggplus_utils")
    one, other = (
        bytes(range(32)),
        bytes(28)
        + bytes(
            a ^ b ^ c ^ d ^ e ^ f ^ g ^ h
            for a, b, c, d, e, f, g, h in zip(
                *[bytes(range(32))[4 * i : 4 * i + 4] for i in range(8)], strict=True
            )
        ),
    )
    assert one != other
    first, second = (utils.pseudo_rand_gen(seed, 2**32, [(9,)])[0] for seed in (one, other))
    assert (first == second).all()
    ours = [masks.stream(seed, {"w": torch.zeros(9)})["w"] for seed in (one, other)]
    assert not torch.equal(*ours)


def test_the_noise_of_the_server_is_as_large_as_without_masks(tmp_path: Path) -> None:
    privacy = {"unit": "client", "noise": 1.0, "noised_by": "server"}
    ends = []
    for secure in (False, True):
        config = tiny(PROBE, privacy=privacy, upload={"secure": secure}, run=FULL | {"rounds": 1})
        ends.append(server(carry_out(config, tmp_path / str(secure))))
    assert torch.allclose(ends[0]["global.weight"], ends[1]["global.weight"], atol=2**-20)


def test_a_run_behind_masks_has_a_report_which_says_of_no_upload_how_far_it_lies(
    tmp_path: Path,
) -> None:
    once(tiny(PROBE, upload={"secure": True}, run=FULL), tmp_path / "run")
    write_html(collect([tmp_path / "run"]), tmp_path / "report.html")
    rows = RunDir(tmp_path / "run").rows("rounds.jsonl")
    assert not any("moved" in facts for row in rows for facts in row["trained"].values())
    assert moved(rows) == {}


@pytest.mark.parametrize(
    ("case", "merge", "says"),
    [
        (CASES["nearest"], {}, "pfedmoap needs to see more of uploads"),
        (CASES["fedmoe"], {}, "fedmoe needs to see more of uploads"),
        (CASES["fedavg"], {"rule": "krum"}, "holds uploads against each other"),
        (CASES["fedavg-norm"], {}, "a batch norm counts steps"),
    ],
)
def test_what_cannot_be_had_with_secure_sums_says_so(
    case: Case, merge: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = tiny(case, upload={"secure": True}, merge=merge)
    with pytest.raises(ValueError, match=says), opened(config, tmp_path / "run"):
        pass
