"""What a run that promises differential privacy does: clips each example or client, noises, counts,
stops, and forgets nothing.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    CASES,
    Case,
    TinyProbe,
    carry_out,
    job_and_engine,
    left_behind,
    server,
    tiny,
)
from rich.console import Console
from scipy.stats import beta, norm
from torch.nn.functional import cross_entropy, normalize

from fedexperts.average import noised_mean
from fedexperts.client import answer
from fedexperts.config import opened
from fedexperts.deploy.consent import leaving
from fedexperts.export import export
from fedexperts.hidden import bounded, ledger_of, noised_sums
from fedexperts.learn import Examples, Fitting, Learning, Local, fit
from fedexperts.loop import NobodyLeftError
from fedexperts.membership import area, by_loss, interval
from fedexperts.message import Order
from fedexperts.methods.leaning import LeaningExperts
from fedexperts.noised import Noised, _each, clipped_sum
from fedexperts.predict import Learned
from fedexperts.privacy import PrivacySettings, Use, epsilon_of, noise_for
from fedexperts.private import Private
from fedexperts.report import collect, write_html
from fedexperts.report.collect import Experiment
from fedexperts.report.tables import comparison
from fedexperts.rundir import RunDir
from fedexperts.study import once
from fedexperts.tensors import Normal, Tensors, named, rng, under

pytest.importorskip("dp_accounting", reason='the account needs pip install "fedexperts[privacy]"')

EXAMPLE = {"unit": "example", "epsilon": 8.0}
CLIENT = {"unit": "client", "epsilon": 8.0}
FULL = {"participation": 1.0}


# ---- the account


@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (4.0, 20), (0.5, 2)])
def test_noise_that_everybody_meets_costs_what_balle_and_wang_prove(
    noise: float, times: int
) -> None:
    """arXiv:1805.06530, theorem 8: the exact delta of the Gaussian mechanism."""
    found = epsilon_of((Use(noise, 1.0, times),), 1e-5)
    sigma = noise / math.sqrt(times)
    a, b = 1 / (2 * sigma), found * sigma
    delta = norm.cdf(a - b) - math.exp(found) * norm.cdf(-a - b)
    assert delta == pytest.approx(1e-5, rel=0.01)


def test_sampling_costs_less_than_the_moments_accountant_published() -> None:
    """Abadi et al., arXiv:1607.00133, section 3.2: q = 0.01, noise 4, 10,000 steps: 1.26."""
    assert 0.9 < epsilon_of((Use(4.0, 0.01, 10_000),), 1e-5) < 1.26


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_that_is_found_is_enough_and_hardly_more(epsilon: float) -> None:
    noise = noise_for(epsilon, 1e-5, 0.25, 60)
    assert epsilon_of((Use(noise, 0.25, 60),), 1e-5) <= epsilon
    assert epsilon_of((Use(noise * 0.98, 0.25, 60),), 1e-5) > epsilon


def test_uses_add_up_whatever_their_order() -> None:
    settings = PrivacySettings("example", noise=1.0)
    one, other = Use(1.0, 0.5, 3), Use(2.0, 1.0, 1)
    both = settings.total([one, other, one])
    assert (
        both
        == settings.total([other, one, one])
        == epsilon_of((one._replace(times=6), other), 1e-5)
    )
    assert both > settings.total([one, one])
    assert settings.total([]) == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"epsilon": 8.0}, "whom they hide"),
        ({"unit": "client"}, "needs privacy.epsilon = 8"),
        ({"unit": "example", "noise": 1.0, "noised_by": "server"}, "in every step"),
    ],
)
def test_half_a_promise_is_none(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PrivacySettings(**wrong)


# ---- a step that hides each example


def quiet(shape: torch.Size) -> torch.Tensor:
    """No noise; and of chances, half."""
    return torch.zeros(shape)


STEPPING = ("fedavg", "fedavg-probe", "fedprox", "nearest", "linear", "fedmix", "fedmoe")


@pytest.mark.parametrize("name", STEPPING)
def test_each_examples_gradient_is_its_own_and_clipped(name: str, tmp_path: Path) -> None:
    """Against one example at a time, for every kind of training that there is."""
    job, engine = job_and_engine(tiny(CASES[name], run=FULL), tmp_path / "private")
    client = engine.members["c"]
    sent = job.method.send(job.method.open(job.given), ["c"], 1, 0)["c"].tensors
    local = job.method.start(job.model, sent, None, rng(0, "start"))
    how = Fitting(lambda one, x: job.method.predictor(job.model, one).step(x), job.learning)
    x, y = client.train.x[:, 0], client.train.y
    each, losses = _each(how, local.trained, local.fixed, x, y)
    clip, total = 0.05, dict[str, torch.Tensor]()
    for i in range(len(y)):
        alone = {n: t.clone().requires_grad_() for n, t in local.trained.items()}
        logits, _ = how.step(Local(alone, local.fixed), x[i : i + 1])
        loss = cross_entropy(logits, y[i : i + 1])
        free = [n for n in alone if alone[n].is_floating_point()]
        own = dict(zip(free, torch.autograd.grad(loss, [alone[n] for n in free]), strict=True))
        length = math.hypot(*(float(t.norm()) for t in own.values()))
        assert float(losses[i]) == pytest.approx(float(loss.detach()), abs=1e-5)
        for n, t in own.items():
            assert torch.allclose(each[n][i], t, atol=1e-5)
            scaled = t * min(1.0, clip / length)
            total[n] = total[n] + scaled if n in total else scaled
    found = clipped_sum(each, clip, torch.ones(len(y)))
    assert all(torch.allclose(found[n], total[n], atol=1e-6) for n in total)


def test_no_example_moves_the_sum_by_more_than_the_clip() -> None:
    draw = rng(0, "gradients")
    for scale in (1e-6, 1.0, 1e6):
        one = {"w": scale * torch.randn(1, 50, generator=draw), "b": torch.ones(1, 2)}
        total = clipped_sum(one, 0.3, torch.ones(1))
        assert math.hypot(*(float(t.double().norm()) for t in total.values())) <= 0.3


def test_examples_join_a_step_each_by_its_own_chance() -> None:
    learning, draw = Learning(epochs=50, batch=5), rng(0, "chance")
    how = Noised(1.0, [1.0], [lambda shape: torch.randn(shape, generator=draw)], [20])
    plan = how.plan(0, 1, draw, learning)
    sizes = (plan[:, 0] >= 0).sum(1).float()
    assert len(plan) == 200
    assert float(sizes.mean()) == pytest.approx(5, rel=0.1)
    assert float(sizes.var()) == pytest.approx(20 * 0.25 * 0.75, rel=0.3)
    for row in plan[:, 0]:
        assert len({*row[row >= 0].tolist()}) == int((row >= 0).sum())


def probe(features: torch.Tensor, labels: torch.Tensor) -> tuple[Fitting, Local, Examples]:
    """A linear classifier from zero, and its examples."""
    start = Local({"w": torch.zeros(2, features.shape[1])})
    how = Fitting(lambda local, x: (x @ local.trained["w"].T, {}), Learning(1, 4, rate=0.5))
    return how, start, Examples(features[:, None], labels)


def test_the_noise_of_a_step_has_the_deviation_that_is_counted() -> None:
    """At zero weights and clip c, n steps move each weight by rate * noise * c / batch."""
    how, start, own = probe(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    draw = rng(0, "noise")
    normal = [lambda shape: torch.randn(shape, generator=draw)] * 300
    private = Noised(0.2, [3.0] * 300, normal, [4] * 300)
    how = replace(how, private=private, learning=Learning(1, 4, rate=0.5))
    ended, _ = fit(how, [start] * 300, [own] * 300, [rng(0, "views")] * 300)
    moved = torch.stack([each["w"] for each in ended])
    assert float(moved.std()) == pytest.approx(0.5 * 3.0 * 0.2 / 4, rel=0.05)


# ---- sums that hide each example

SUMS = replace(CASES["gaussian-leaning"], upload={"secure": True})


def test_one_example_moves_what_a_client_says_by_no_more_than_is_counted_and_by_that() -> None:
    """Whatever its length: what is longer than 1 is cut before it is summed."""
    method, model = LeaningExperts(), TinyProbe()
    for scale in (0.1, 1.0, 30.0):
        x = scale * normalize(torch.randn(7, 1, 8, generator=rng(0, "moves")), dim=2)
        own = bounded(Examples(x, torch.arange(7) % 3))
        without = Examples(own.x[:-1], own.y[:-1])
        said, less = (method.observe(model, Local({}), one) for one in (own, without))
        moved = math.hypot(*(float((7 * said[name] - 6 * less[name]).norm()) for name in said))
        assert moved <= method.sensitivity() + 1e-6
        if scale >= 1:
            assert moved == pytest.approx(method.sensitivity(), abs=1e-4)


def test_each_example_is_in_every_sum_and_counted_so(tmp_path: Path) -> None:
    """No chance of joining counts in one's favour, as it does in steps."""
    job, engine = job_and_engine(tiny(SUMS, privacy=EXAMPLE | {"noise": 3.0}), tmp_path)
    for name in "abcde":
        use = ledger_of(job, engine.members[name], Order(name, 1, "train", {})).use
        assert use == Use(noise=3.0, rate=1.0, times=1)


def test_the_fewest_that_a_secure_sum_can_have_bring_all_of_the_noise(tmp_path: Path) -> None:
    """Of five clients that begin, four at least are in the sum."""
    job, engine = job_and_engine(tiny(SUMS, privacy=EXAMPLE | {"noise": 3.0}), tmp_path)
    server = job.method.open(job.given)
    local = Local({}, under(job.method.publish(server), "global"))
    masked = named("masked.with", dict.fromkeys("abcde", torch.zeros(0)))
    errors = []
    for round in range(1, 101):
        total = torch.zeros(())
        for name in "abcd":
            client = engine.members[name]
            exact = job.method.observe(job.model, local, bounded(client.train))
            said = noised_sums(job, client, Order(name, round, "train", masked), local)
            total = total + len(client.train) * (said["sum"] - exact["sum"])
        errors.append(total)
    deviation = float(torch.stack(errors).std())
    assert deviation == pytest.approx(3.0 * job.method.sensitivity(), rel=0.05)


# ---- an audit


def lower_bound(inside: torch.Tensor, outside: torch.Tensor, delta: float) -> float:
    """Epsilon that is beyond doubt (95 %) from a statistic with and without a canary.

    The threshold is chosen on one half, and judged on the other (Clopper and Pearson).
    """
    half = len(inside) // 2
    best = max(
        inside.tolist(),
        key=lambda t: (
            float((inside[:half] > t).float().mean())
            / (float((outside[:half] > t).float().mean()) + 0.01)
        ),
    )
    hits, false = int((inside[half:] > best).sum()), int((outside[half:] > best).sum())
    n = len(inside) - half
    least = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    most = beta.ppf(0.975, false + 1, n - false)
    return math.log(max(least - delta, 1e-12) / most)


@pytest.mark.parametrize(("noisy", "times"), [(True, 200), (False, 200)])
def test_a_canary_tells_no_more_than_the_account_says_and_without_noise_it_does(
    noisy: bool, times: int
) -> None:
    """The canary lies where no other example does, so its gradient can be read off the weights:
    the strongest view of it that there is.
    """
    stated, delta = 2.0, 1e-3
    others = normalize(torch.randn(12, 6, generator=rng(0, "others")), dim=1)
    others = torch.cat([others, torch.zeros(12, 1)], 1)
    canary = torch.tensor([[0.0] * 6 + [1.0]])
    labels = torch.arange(12) % 2
    x = torch.cat([others, canary])
    y = torch.cat([labels, torch.tensor([0])])
    rate, steps = 4 / 12, 3
    noise = noise_for(stated, delta, rate, steps) if noisy else 0.0

    def weights(features: torch.Tensor, classes: torch.Tensor, use: str) -> torch.Tensor:
        how, start, own = probe(features, classes)
        generators = [rng(0, use, i) for i in range(times)]
        normals: Sequence[Normal] = [
            lambda shape, g=g: torch.randn(shape, generator=g) for g in generators
        ]
        private = Noised(0.5, [noise] * times, normals, [len(classes)] * times)
        ended, _ = fit(replace(how, private=private), [start] * times, [own] * times, generators)
        return torch.stack([each["w"][0, -1] - each["w"][1, -1] for each in ended])

    found = lower_bound(weights(x, y, "in"), weights(x[:-1], y[:-1], "out"), delta)
    assert (found <= stated) == noisy


# ---- a run


def spent(folder: RunDir) -> list[dict[str, float]]:
    rows = folder.rows("rounds.jsonl")
    return [{who: facts["epsilon"] for who, facts in row["trained"].items()} for row in rows]


PRIVATE = {
    "example": (CASES["fedavg-probe"], EXAMPLE),
    "client": (CASES["fedavg-probe"], CLIENT),
    "server": (CASES["fedavg-probe"], CLIENT | {"noised_by": "server"}),
    "pfedmoap": (CASES["nearest"], EXAMPLE),
    "sums": (SUMS, EXAMPLE),
}
every_promise = pytest.mark.parametrize("name", PRIVATE)


@every_promise
def test_the_log_counts_every_client_and_round_and_ends_below_what_was_promised(
    name: str, tmp_path: Path
) -> None:
    case, privacy = PRIVATE[name]
    folder = carry_out(tiny(case, privacy=privacy, run=FULL), tmp_path / "run")
    totals = spent(folder)
    for client in "abcd":
        own = [row[client] for row in totals]
        assert own == sorted(own)
        assert own[0] < own[-1]
        assert 6 < own[-1] <= 8
    rows = folder.rows("rounds.jsonl")
    assert all(facts["delta"] == 1e-5 for row in rows for facts in row["trained"].values())
    assert not any("loss" in facts for row in rows for facts in row["trained"].values())


@every_promise
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    """Nothing is forgotten and nothing counts twice: not even where clients had answered."""
    case, privacy = PRIVATE[name]
    config = tiny(case, privacy=privacy, run=FULL)
    whole = carry_out(config, tmp_path / "whole")

    class CutOffError(RuntimeError):
        pass

    class Cutting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def clients(self) -> list[str]:
            return self.inner.clients()

        def exchange(self, orders: Sequence[Order]) -> Any:
            replies = self.inner.exchange(orders)
            if (orders[0].round, orders[0].task) == (2, "train"):
                raise CutOffError
            return replies

    with pytest.raises(CutOffError):
        carry_out(config, tmp_path / "cut", Cutting)
    assert left_behind(carry_out(config, tmp_path / "cut")) == left_behind(whole)


def test_a_run_stops_before_it_spends_more_and_stands_where_it_was(tmp_path: Path) -> None:
    privacy = {"unit": "client", "epsilon": 8.0, "noise": 1.0}
    config = tiny(CASES["fedavg-probe"], privacy=privacy, run=FULL | {"rounds": 9})
    with pytest.raises(NobodyLeftError, match=r"its privacy is spent.*epsilon would be 8\.\d"):
        carry_out(config, tmp_path / "run")
    folder = RunDir(tmp_path / "run")
    assert 1 <= len(spent(folder)) < 9
    assert max(spent(folder)[-1].values()) <= 8


def site(tmp_path: Path, privacy: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A job at a site of its own, the site, and an order to it."""
    config = tiny(CASES["fedavg-probe"], privacy=privacy, run=FULL)
    job, engine = job_and_engine(config, tmp_path / "private")
    sent = job.method.publish(job.method.open(job.given))
    return replace(job, deployed=True), engine.members["c"], Order("c", 1, "train", sent)


@pytest.mark.parametrize("unit", [EXAMPLE, CLIENT])
def test_a_site_that_is_asked_twice_sends_what_it_sent_and_spends_once(
    unit: dict[str, Any], tmp_path: Path
) -> None:
    """Two draws of noise could be averaged away; another site's noise is another."""
    job, client, order = site(tmp_path, unit)
    (first,), (again,) = (answer(job, [client], [order]) for _ in range(2))
    assert first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(first.tensors[n], again.tensors[n]) for n in first.tensors)
    assert first.facts["epsilon"] == again.facts["epsilon"]
    job, elsewhere, _ = site(tmp_path / "other", unit)
    (other,) = answer(job, [elsewhere], [order])
    assert not torch.equal(first.tensors["weight"], other.tensors["weight"])


def test_a_site_does_not_answer_again_what_it_no_longer_has(tmp_path: Path) -> None:
    job, client, order = site(tmp_path, {"unit": "example", "noise": 3.0})
    for round in (1, 2, 3, 4):
        (reply,) = answer(job, [client], [replace(order, round=round)])
    (reply,) = answer(job, [client], [order])
    assert "answered before" in reply.error
    assert not reply.tensors


def test_what_is_spent_outlives_a_state_that_is_given_up(tmp_path: Path) -> None:
    job, client, order = site(tmp_path, EXAMPLE)
    (before,) = answer(job, [client], [order])
    client.private.forget("c")
    (after,) = answer(job, [client], [replace(order, round=2)])
    assert after.facts["epsilon"] > before.facts["epsilon"]
    assert Private(tmp_path / "private").load("c", before=9) is None


def test_noise_at_the_server_hides_the_heaviest_clients_change() -> None:
    draw = rng(0, "server")
    items: list[Tensors] = [{"w": torch.zeros(4000), "steps": torch.tensor(3)}] * 3
    merged = noised_mean(items, [1, 1, 2], 0.8, lambda shape: torch.randn(shape, generator=draw))
    assert float(merged["w"].std()) == pytest.approx(0.8 * 2 / 4, rel=0.05)
    assert merged["steps"] == 3


def test_noise_moves_what_a_run_learns(tmp_path: Path) -> None:
    ends = []
    for i, privacy in enumerate(({}, EXAMPLE, CLIENT, CLIENT | {"noised_by": "server"})):
        config = tiny(CASES["fedavg-probe"], privacy=privacy, run=FULL)
        ends.append(server(carry_out(config, tmp_path / str(i)))["global.weight"])
    for i, one in enumerate(ends):
        assert not any(torch.equal(one, other) for other in ends[:i])


# ---- what is said of it


@pytest.mark.parametrize(("unit", "whom"), [(EXAMPLE, "a training example"), (CLIENT, "a client")])
def test_table_report_and_card_say_what_the_run_gave_away(
    unit: dict[str, Any], whom: str, tmp_path: Path
) -> None:
    """The most of any client, after the last round; and without privacy, nothing."""
    model = {"name": "compact-cnn", "width": 2, "side": 8}
    case = Case({"name": "fedavg"})
    once(tiny(case, model=model, privacy=unit, run=FULL), tmp_path / "private")
    once(tiny(case, model=model, run=FULL), tmp_path / "plain")
    most = max(spent(RunDir(tmp_path / "private"))[-1].values())
    says = f"give away of {whom} epsilon {most:.3g} at delta 1e-05, of the client that spent most"
    console = Console(record=True, width=300, file=io.StringIO())
    private, plain = (collect([tmp_path / name]) for name in ("private", "plain"))
    console.print(comparison(private))
    assert f" {most:.3g} " in console.export_text()
    assert "epsilon" in headers(private)
    assert "epsilon" not in headers(plain)
    write_html(private, tmp_path / "report.html")
    assert says in (tmp_path / "report.html").read_text()
    for name, expected in (("private", True), ("plain", False)):
        export(Learned.of(tmp_path / name, ""), tmp_path / f"{name}-export")
        assert (says in (tmp_path / f"{name}-export" / "README.md").read_text()) == expected


@pytest.mark.parametrize(
    ("case", "sections", "says"),
    [
        (SUMS, {"privacy": EXAMPLE}, "part of the noise that hides an example in the sum"),
        (CASES["fedavg-probe"], {"privacy": EXAMPLE}, "in steps that this machine noised"),
        (CASES["fedavg-probe"], {"upload": {"secure": True}}, "behind masks: the server sees"),
    ],
)
def test_a_site_reads_how_it_will_be_hidden_before_it_answers(
    case: Case, sections: dict[str, Any], says: str, tmp_path: Path
) -> None:
    job, _ = job_and_engine(tiny(case, **sections), tmp_path)
    assert says in "\n".join(leaving("run", job, "c"))


def headers(experiments: list[Experiment]) -> list[str]:
    return [str(column.header) for column in comparison(experiments).columns]


def test_a_run_that_is_asked_says_what_a_threshold_for_losses_finds(tmp_path: Path) -> None:
    """Of all training examples against all test ones; a run that trains nothing tells nothing."""
    areas = []
    for rounds in (12, 0):
        much: dict[str, Any] = {"rounds": rounds, "membership": True, "evaluate_every": 12}
        config = tiny(CASES["fedavg-probe"], learning={"epochs": 9, "rate": 0.5}, run=FULL | much)
        once(config, tmp_path / str(rounds))
        experiments = collect([tmp_path / str(rounds)])
        row = RunDir(tmp_path / str(rounds)).rows("server.jsonl")[-1]
        write_html(experiments, tmp_path / "report.html")
        assert (row["members"], row["others"]) == (36, 100)
        low, high = interval(row["member_area"], 36, 100)
        says = f"area under the curve of {row['member_area']:.3f} [{low:.3f}, {high:.3f}]"
        assert says in (tmp_path / "report.html").read_text()
        areas.append(row["member_area"])
    assert areas[0] != areas[1] == 0.5


def test_an_area_counts_pairs_and_its_interval_is_hanleys() -> None:
    inside, outside = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0])
    assert area(inside, outside) == pytest.approx((2 + 1.5 + 1) / 6)
    low, high = interval(0.8, 50, 60)
    assert (low, high) == pytest.approx((0.7143, 0.8857), abs=2e-3)
    found = by_loss(torch.linspace(0, 0.9, 100), torch.linspace(0.1, 1, 100))
    assert found["member_caught"] == pytest.approx(0.12)


# ---- what cannot be had together


@pytest.mark.parametrize(
    ("case", "sections", "says"),
    [
        (CASES["fedavg-norm"], {"privacy": EXAMPLE}, "behind a batch norm"),
        (CASES["gaussian"], {"privacy": EXAMPLE}, "more of its examples than what it trained"),
        (CASES["gaussian"], {"privacy": EXAMPLE}, 'method.name = "gaussian-sums"'),
        (CASES["gaussian-leaning"], {"privacy": EXAMPLE}, "use upload.secure = true"),
        (CASES["gaussian-leaning"], {"privacy": CLIENT}, "uploads sums that nobody shares"),
        (CASES["fedjets"], {"privacy": EXAMPLE}, "more of its examples than what it trained"),
        (
            CASES["nearest"],
            {"privacy": CLIENT | {"noised_by": "server"}},
            "pfedmoap needs to see more of uploads",
        ),
        (
            CASES["fedavg"],
            {"privacy": CLIENT | {"noised_by": "server"}, "merge": {"rule": "median"}},
            'use merge.rule = "mean"',
        ),
        (CASES["fedavg"], {"privacy": CLIENT, "upload": {"clip": 1.0}}, "both clip uploads"),
    ],
)
def test_what_cannot_be_had_together_says_so(
    case: Case, sections: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says), opened(tiny(case, **sections), tmp_path / "run"):
        pass
