"""What is shown of runs: right figures, chosen by validation, nothing mixed or hidden, and a page
that stands alone.
"""

import base64
import io
import json
import math
import re
import shutil
import statistics
from dataclasses import asdict, dataclass, fields, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from conftest import CASES, COUNTS, GATE, Case, Spoilt, carry_out, rewrite, tiny
from rich.console import Console
from typer.testing import CliRunner

import fedexperts as fx
from fedexperts import report
from fedexperts.cli import app
from fedexperts.config import about, load, resolve
from fedexperts.declared import Control, Declared, Figure, Metric
from fedexperts.disk import write_checked
from fedexperts.message import Reply
from fedexperts.methods import METHODS
from fedexperts.methods.fedavg import Alone, FedAvg
from fedexperts.methods.pfedmoap import PFedMoAP
from fedexperts.metrics import valid
from fedexperts.report import claims, figures, ink, notes, paired
from fedexperts.report.tables import Column
from fedexperts.rundir import RunDir
from fedexperts.study import once

EXPERIMENTS = {
    "mixture": Case(GATE),
    "gate-alone": Case(GATE | {"experts": 0}),
    "coop-alone": CASES["alone"],
}
SEEDS = (0, 1, 2)


class StoppedError(Exception):
    """Ends a run as a power cut would."""


def make(path, case, *, name, wrap=lambda engine: engine, stop=None, **sections):
    """A real run of the tiny world at `path`, stopped after round `stop` if there is one."""
    settings = {"run": {"rounds": 2}} | sections
    config = tiny(case, name=name, **settings)

    def tell(round):
        if round == stop:
            raise StoppedError

    federation = config.section("data").load(config.values["run"]["seed"])
    RunDir.create(path, config.toml(), about(config, federation) | {"python": "3.x"})
    try:
        return carry_out(config, path, wrap, tell)
    except StoppedError:
        return RunDir(path)


def seeded(seed, **more):
    return {"rounds": 2, "seed": seed} | more


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Three experiments, two seeds each, with a trial below `tune` that must not count."""
    path = tmp_path_factory.mktemp("runs") / "study"
    path.mkdir()
    write_checked(
        path / "study.json", {"seeds": SEEDS, "experiments": dict.fromkeys(EXPERIMENTS, "")}
    )
    for name, case in EXPERIMENTS.items():
        for seed in SEEDS:
            make(path / name / f"seed-{seed}", case, name=name, run=seeded(seed))
    make(
        path / "mixture" / "tune" / "001",
        EXPERIMENTS["mixture"],
        name="mixture",
        learning={"rate": 9.0},
    )
    return path


@pytest.fixture(scope="session")
def experiments(study):
    return report.collect([study])


@pytest.fixture(scope="session")
def page(experiments, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    report.write_html(experiments, path)
    return path.read_text(encoding="utf-8")


ADDED, ROUTED = "What do experts add?", "What does routing add?"


def table_of(experiments, title):
    (found,) = (table for table in report.tables(experiments) if table.title == title)
    return found


def logged(path, log):
    return [json.loads(line) for line in (path / log).read_text().splitlines()]


def cells(table, row):
    """A row of a table by its headers."""
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    return dict(zip(heads, (str(list(column.cells)[row]) for column in table.columns), strict=True))


def printed(tables, width=250):
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def rows(right, valid=None, client="c", first=0):
    """Client rows by hand: in round r, client i has right[r][i] of 10 test examples right."""
    return [
        {
            "round": first + r,
            "client": f"{client}-{i}",
            "test_correct": count,
            "test_examples": 10,
            "test_global_correct": 1,
            "valid_correct": (valid or right)[r][i],
            "valid_examples": 10,
        }
        for r, counts in enumerate(right)
        for i, count in enumerate(counts)
    ]


def with_rows(experiment, name, by_seed, **settings):
    """An experiment with other rows and settings than it was run with."""
    runs = {}
    for seed, found in by_seed.items():
        values = {s: dict(keys) for s, keys in experiment.values.items()}
        values["run"] |= {"seed": seed, "rounds": max(row["round"] for row in found)}
        for dotted, value in settings.items():
            section, _, key = dotted.partition("__")
            values.setdefault(section, {})[key] = value
        environment = experiment.first.environment | {"declared": declared(values["method"])}
        done = values["run"]["rounds"]
        run = replace(
            experiment.first,
            name=name,
            values=values,
            environment=environment,
            clients=found,
            done=done,
        )
        runs[seed] = run
    return report.Experiment(name, runs)


def declared(settings):
    """What a method with these settings writes into its runs."""
    method = METHODS[settings["name"]]
    known = {field.name for field in fields(method)}
    found = method(**{key: value for key, value in settings.items() if key in known}).declares()
    return json.loads(json.dumps(asdict(found)))


# ---- figures


def test_the_table_says_what_the_rows_say(study, experiments):
    table, differing, *_ = report.tables(experiments)
    for row, name in enumerate(EXPERIMENTS):
        means, spreads, pooled, lows = [], [], [], []
        for seed in SEEDS:
            path = study / name / f"seed-{seed}"
            last = [r for r in logged(path, "clients.jsonl") if r["round"] == 2]
            assert len(last) == len(COUNTS), "all clients, sampled or not"
            local = [100 * r["test_correct"] / r["test_examples"] for r in last]
            means.append(statistics.fmean(local))
            spreads.append(statistics.pstdev(local))
            lows += [
                (r["test_correct"] / r["test_examples"], r["test_examples"], seed) for r in last
            ]
            pooled.append(
                100
                * sum(r["test_global_correct"] for r in last)
                / sum(r["test_examples"] for r in last)
            )
        found = cells(table, row)
        assert found["experiment"] == name
        assert found["local"] == f"{statistics.fmean(means):.1f}"
        assert found["sd seeds"] == f"{statistics.stdev(means):.1f} (3)"
        assert cells(differing, row)["sd"] == f"{statistics.fmean(spreads):.1f}"
        assert cells(differing, row)["lowest"] == f"{100 * min(lows)[0]:.1f}"
        assert found["server"] == (
            "-" if name == "coop-alone" else f"{statistics.fmean(pooled):.1f}"
        )


def test_the_best_round_is_chosen_on_validation_data_and_never_on_test_data(experiments):
    # test is best in round 1, validation in round 2 and again in round 3, where the earlier one
    # counts
    found = rows([[1, 1], [9, 9], [4, 6], [3, 3]], valid=[[1, 1], [2, 2], [8, 8], [8, 8]])
    line = cells(report.tables([with_rows(experiments[0], "x", {0: found})])[0], 0)
    assert (line["local"], line["best valid"], line["at round"]) == ("30.0", "50.0", "2")
    assert line["sd seeds"] == "1 seed"


def test_what_is_held_and_sent_is_a_mean_over_rounds_and_seeds_and_seconds_are_a_runs(experiments):
    logs = ([(10_000, 2_000, 3), (30_000, 2_600, 4)], [(40_000, 4_000, 25)])
    runs = {
        seed: replace(
            experiments[0].runs[seed],
            rounds=[
                {
                    "bytes_down": down,
                    "parameters_down": down // 4,
                    "bytes_up": up,
                    "parameters_up": up // 4,
                    "seconds": seconds,
                    "round": i,
                    "refused": {},
                    "trained": {"c": {"bytes": 800 * i, "parameters": 200}},
                }
                for i, (down, up, seconds) in enumerate(log, 1)
            ],
            server=[
                {"round": 0, "server_bytes": 1},
                {"round": 2, "server_bytes": 4e6, "server_parameters": 1e6},
            ],
        )
        for seed, log in enumerate(logs)
    }
    accuracy, _, held, *_ = report.tables([report.Experiment("x", runs)])
    assert cells(accuracy, 0)["time (s)"] == "16"
    line = cells(held, 0)
    assert (line["client params"], line["client bytes"]) == ("200", "1k")
    assert (line["down params"], line["down bytes"]) == ("7.5k", "30k")
    assert (line["up params"], line["up bytes"]) == ("788", "3.15k")
    assert (line["server params"], line["server bytes"]) == ("1M", "4M")


def test_what_a_log_does_not_say_has_no_size(experiments):
    """Runs of before parameters were counted."""
    old = replace(
        experiments[0].first,
        rounds=[
            {
                "bytes_down": 8,
                "bytes_up": 8,
                "seconds": 1,
                "round": 1,
                "refused": {},
                "trained": {"c": {}},
            }
        ],
        server=[],
    )
    line = cells(report.tables([report.Experiment("x", {0: old})])[2], 0)
    assert [
        line[who] for who in ("client bytes", "down params", "down bytes", "server params")
    ] == ["-", "-", "8", "-"]


def test_without_validation_examples_there_is_no_best_round(experiments):
    found = [row | {"valid_examples": 0, "valid_correct": 0} for row in rows([[1, 2], [3, 4]])]
    line = cells(report.tables([with_rows(experiments[0], "x", {0: found})])[0], 0)
    assert (line["local"], line["best valid"], line["at round"]) == ("35.0", "-", "-")


def test_the_footer_says_what_the_commonest_class_gives_and_that_nothing_is_the_best_test_round(
    experiments,
):
    """By hand: each client's commonest class of training, on its own test part."""
    right = []
    for seed in SEEDS:
        federation = tiny(EXPERIMENTS["mixture"]).section("data").load(seed)
        for own in federation.parts.values():
            train, test = (federation.labels[part].tolist() for part in (own.train, own.test))
            right.append(test.count(max(sorted(set(train)), key=train.count)) / len(test))
        everybody = [
            torch.cat([getattr(own, part) for own in federation.parts.values()])
            for part in ("train", "test")
        ]
        train, test = (federation.labels[part].tolist() for part in everybody)
        common = max(sorted(set(train)), key=train.count)
        assert federation.commonest()["server"] == pytest.approx(
            100 * test.count(common) / len(test)
        )
    text = " ".join(printed(report.tables(experiments)).split())
    level = f"{100 * statistics.fmean(right):.3g} %"
    assert f"Always predicting each client's commonest class gives {level}." in text
    assert "None of them is from the round that is best on test data" in text


def test_every_column_fits_a_terminal_of_80_letters(experiments):
    lines = printed(report.tables(experiments), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_a_long_name_is_cut_at_its_end_and_no_number_is(experiments):
    long = "an-experiment-with-a-name-that-no-terminal-has-room-for-" * 2
    wordy = with_mixture(experiments[0], long, (100, 50, 60))
    tables = report.tables(
        [wordy, *(with_rows(e, f"{i}-{long}", e.rows) for i, e in enumerate(experiments))]
    )
    assert len(tables) == 5
    for table in tables:
        table.caption = None  # which says names whole
        lines = printed([table], 80).splitlines()
        assert max(map(len, lines)) <= 80
        named = [line.split() for line in lines if "an-ex" in line]
        assert len(named) == len(table.rows)
        assert all(words[0].endswith("…") and "…" not in "".join(words[2:]) for words in named)


def test_a_column_is_its_label_its_unit_and_how_it_is_computed():
    timed = Column("time", "training time", str, unit="s")
    assert (timed.head, timed.legend) == ("time\n(s)", "time (s): training time.")
    assert Column("flat\ngate", "all alike", str).legend == "flat gate: all alike."
    assert Column("experiment", "", str).legend == ""


def test_every_column_has_a_line_of_its_own_below_the_table(experiments):
    first, *_, added = report.tables(experiments)
    for table, heads in (
        (first, ("local", "sd seeds", "best valid", "at round", "server", "time (s)")),
        (added, ("of", "points", "low", "high", "better", "worse", "same")),
    ):
        lines = str(table.caption).splitlines()
        for head in heads:
            assert sum(line.startswith(f"{head}: ") for line in lines) == 1, head


def test_a_wide_terminal_shows_every_name_whole_and_on_one_line(experiments):
    mixed = with_mixture(experiments[0], "a-name-of-twenty-seven-marks", (100, 50, 60))
    text = printed(report.tables([mixed, *experiments]), 200)
    assert "…" not in text
    assert re.search(r"^ mixture +gate-alone \(gate alone\) +local", text, re.M)
    assert len(re.findall(r"^ a-name-of-twenty-seven-marks ", text, re.M)) == 4


def test_a_head_breaks_between_words_alone(experiments):
    tables = report.tables([with_mixture(experiments[0], "moe", (100, 50)), *experiments])
    heads = [str(column.header) for table in tables for column in table.columns]
    assert not [head for head in heads if "-\n" in head]
    for table in tables:
        body = " ".join(printed([table], 80).split())
        assert all(word in body for column in table.columns for word in str(column.header).split())


def test_a_table_stands_apart_from_the_title_of_the_next(study):
    lines = CliRunner().invoke(app, ["compare", str(study)]).output.splitlines()
    titles = [
        i
        for i, line in enumerate(lines)
        if line.rstrip() in {t.title for t in report.tables(report.collect([study]))}
    ]
    assert len(titles) == 4
    assert all(not lines[i - 1].strip() for i in titles[1:])


def test_the_worst_client_is_the_lowest_of_all_seeds_with_its_counts(experiments):
    """A mean over seeds of 60, 64 and 0 % would hide a client that is wrong on all of its
    examples.
    """
    worst = [rows([[9, 6]]), rows([[9, 7]]), rows([[9, 0]])]
    line = cells(report.tables([with_rows(experiments[0], "x", dict(enumerate(worst)))])[1], 0)
    assert (line["clients"], line["lowest"], line["correct"], line["95 %"], line["seed"]) == (
        "2",
        "0.0",
        "0/10",
        "0-28",
        "2",
    )


def test_the_spread_stands_beside_what_sampling_alone_would_give(experiments):
    """By hand: clients with 10 test examples and a mean of 70 % are sqrt(.7 x .3 / 10) apart by
    chance.
    """
    line = cells(report.tables([with_rows(experiments[0], "x", {0: rows([[9, 5]])})])[1], 0)
    assert (line["sd"], line["sampling"]) == ("20.0", f"{100 * (0.7 * 0.3 / 10) ** 0.5:.1f}")


def test_a_run_of_zero_rounds_is_a_finished_one(tmp_path):
    make(tmp_path / "run", CASES["alone"], name="zero-shot", run={"rounds": 0})
    found = report.collect([tmp_path])
    line = cells(report.tables(found)[0], 0)
    assert (line["at round"], line["time (s)"]) == ("0", "0.0")
    report.write_html(found, tmp_path / "report.html")


def test_what_a_crash_left_half_made_is_no_run(study, tmp_path):
    shutil.copytree(study / "mixture", tmp_path / "mixture")
    before = [(e.name, sorted(e.runs)) for e in report.collect([tmp_path])]
    for half in (".seed-0.777.part", ".part"):
        shutil.copytree(study / "mixture" / "seed-0", tmp_path / "mixture" / half)
    assert [(e.name, sorted(e.runs)) for e in report.collect([tmp_path])] == before


# ---- what experts add


def test_a_difference_is_paired_by_seed_and_client(study, experiments):
    differences = []
    for seed in SEEDS:
        last = {
            name: {
                r["client"]: 100 * r["test_correct"] / r["test_examples"]
                for r in logged(study / name / f"seed-{seed}", "clients.jsonl")
                if r["round"] == 2
            }
            for name in ("mixture", "gate-alone")
        }
        differences.append([last["mixture"][c] - last["gate-alone"][c] for c in sorted(COUNTS)])
    line = cells(table_of(experiments, ADDED), 0)
    means = [statistics.fmean(d) for d in differences]
    every = [d for ds in differences for d in ds]
    assert line["experiment"] == "mixture"
    assert line["against"] == "gate-alone (gate alone)"
    assert line["points"] == f"{round(statistics.fmean(means), 1) + 0.0:+.1f}"
    # Student's t, 2 degrees of freedom, 97.5 %
    reach = 4.302652730 * statistics.stdev(means) / 3**0.5
    low, high = statistics.fmean(means) - reach, statistics.fmean(means) + reach
    assert (line["of"], line["low"], line["high"]) == ("local", f"{low:+.1f}", f"{high:+.1f}")
    counts = (sum(d > 0 for d in every), sum(d < 0 for d in every), sum(d == 0 for d in every))
    assert (line["better"], line["worse"], line["same"]) == tuple(map(str, counts))


NOTHING = "no difference is established"


def against(*seeds):
    """What is said of clients with so many of 10 right, a list a seed, against clients with 5
    each.
    """
    these = {seed: rows([right]) for seed, right in enumerate(seeds)}
    return paired.local(these, {seed: rows([[5] * len(right)]) for seed, right in enumerate(seeds)})


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        (
            [[6, 6], [7, 7], [8, 8]],
            f"+20.0 points (between -4.8 and +44.8, 95 %, 3 seeds), {NOTHING}",
        ),
        ([[7, 7], [7, 8], [8, 8]], "+25.0 points (between +12.6 and +37.4, 95 %, 3 seeds), better"),
        ([[3, 3], [3, 2], [2, 2]], "-25.0 points (between -37.4 and -12.6, 95 %, 3 seeds), worse"),
        ([[5, 5], [5, 5], [5, 5]], "no difference at all in 3 seeds"),
        (
            [[4, 6], [6, 4], [5, 5]],
            "+0.0 points in each of 3 seeds; an interval needs seeds that differ",
        ),
        (
            [[6, 6], [6, 6], [6, 6]],
            "+10.0 points in each of 3 seeds; an interval needs seeds that differ",
        ),
        ([[6, 6], [7, 7]], "+10.0 (seed 0), +20.0 (seed 1) points; an interval needs 3 seeds"),
        ([[6, 6]], "+10.0 (seed 0) points; an interval needs 3 seeds"),
    ],
)
def test_a_plain_sentence_says_what_the_seeds_allow(experiments, seeds, says):
    """Student's t by hand: 4.303 times the standard error of three seeds. Fewer give no verdict,
    nor do equal ones.
    """
    claim = claims.Claim(experiments[0], "others", "", "clients", against(*seeds))
    assert sentences([claim]) == [f"mixture against others: {says}."]


def test_clients_of_one_seed_are_not_independent():
    """A hundred clients agree within each seed, and the seeds do not: the error is that of three
    values.
    """
    found = against([6] * 100, [4] * 100, [5] * 100)
    assert found.error == pytest.approx(10 / 3**0.5)
    assert (found.better, found.worse, found.same) == (100, 100, 100)


def test_comparisons_of_one_table_are_judged_together(experiments):
    """By Holm: alone each of these is established, its p between 1/80 and 1/20; of four, none is;
    nor are their intervals hidden. What has no interval takes nobody's chance.
    """
    seeds = [[7, 7], [8, 8], [7, 8]]
    good = against(*seeds)
    assert 0.05 / 4 < good.p < 0.05
    claim = claims.Claim(experiments[0], "others", "", "clients", good)
    assert sentences([claim])[0].endswith("(between +12.6 and +37.4, 95 %, 3 seeds), better.")
    together = sentences([claim] * 4)
    assert all(line.endswith("3 seeds), not established among 4 comparisons.") for line in together)
    legend = claims.legend([claim] * 4, paired.Family([good] * 4))
    assert "for all 4 comparisons together" in legend[0]
    unjudged = replace(claim, difference=against([9, 9]))
    assert sentences([claim, unjudged, unjudged])[0].endswith(", better.")


def sentences(told):
    return claims.sentences(told, paired.Family([claim.difference for claim in told]))


def test_holm_goes_down_from_the_smallest_p():
    """The steps of Holm's procedure by hand: the smallest p times 3, the next times 2, and no
    further than it holds.
    """

    def difference(p):
        """Of three seeds, with this p: t at 2 degrees of freedom has p = 1 - t / sqrt(t^2 + 2)."""
        t = (1 - p) * (2 / (1 - (1 - p) ** 2)) ** 0.5
        found = paired.Difference({0: t - 3**0.5, 1: t, 2: t + 3**0.5})
        assert found.p == pytest.approx(p)
        return found

    for ps, holds in (
        ([0.04, 0.01, 0.02], [True, True, True]),
        ([0.04, 0.02, 0.01], [True, True, True]),
        # 2 x 0.03 is over 5 %, and with it all that follow
        ([0.03, 0.01, 0.03], [False, True, False]),
        ([0.02, 0.02, 0.02], [False, False, False]),
        ([0.016, 0.026, 0.04], [True, False, False]),
    ):
        assert paired.established([difference(p) for p in ps]) == holds, ps


def test_no_minus_stands_before_a_zero():
    assert (claims.signed(-0.04), claims.signed(0.04), claims.signed(-0.06)) == (
        "+0.0",
        "+0.0",
        "-0.1",
    )


def test_only_the_same_experiment_without_experts_is_its_control(experiments):
    mixture, alone, _ = experiments
    data = {seed: run.clients for seed, run in alone.finished.items()}
    other = with_rows(alone, "other-gate", data, method__lam=2.0)
    table = table_of([mixture, other], ADDED)
    assert not table.rows
    assert "they do not tell whether the experts add anything" in " ".join(printed([table]).split())
    free = report.Experiment(
        "tuned", {s: replace(r, tuned=frozenset({"method.lam"})) for s, r in other.runs.items()}
    )
    assert len(table_of([mixture, free], ADDED).rows) == 1, (
        "what was tuned for each alike may differ"
    )


def test_a_linear_probe_and_experts_by_chance_are_controls_too(experiments):
    mixture, alone, coop = experiments
    probe = with_rows(coop, "probe", coop.rows, model__name="linear-probe")
    chance = with_rows(mixture, "chance", mixture.rows, method__select="random")
    lines = [cells(table_of([mixture, alone, probe, chance], ADDED), i) for i in range(5)]
    assert [(line["experiment"], line["against"]) for line in lines] == [
        ("mixture", "gate-alone (gate alone)"),
        ("mixture", "chance (random experts)"),
        ("mixture", "probe (linear probe)"),
        ("chance", "gate-alone (gate alone)"),
        ("chance", "probe (linear probe)"),
    ]


class Mine(PFedMoAP):
    """pFedMoAP under a name of one's own."""


class Lonely(Alone):
    """And so with clients that share nothing."""


DEEP = Figure("number", 0, 10)


@dataclass(frozen=True)
class Told(FedAvg):
    """A method of one's own that logs a number and names its control."""

    depth: int = 3

    def declares(self):
        controls = (Control("no depth", {"method.depth": (0,)}),) if self.depth else ()
        deep = Metric(
            "deep", "How deep it went", "metres", "At 0 it stayed where it was.", "clients", DEEP
        )
        below = Metric("below", "How deep the server went", "fathoms", "The same.", of="server")
        return Declared(controls=controls, metrics=(deep, below))

    def predictor(self, model, local):
        return Deep(model, local, {"deep": float(self.depth)})

    def served(self, model, server):
        return Deep(model, fx.Local(model.initial), {"below": self.depth / 1.8288})


@dataclass(frozen=True)
class Deep(fx.Predictor):
    told: dict[str, float]

    def metrics(self, x, y):
        return self.told


@pytest.fixture(scope="module")
def own(study, tmp_path_factory):
    """The same experiments as the study's, but that each method is another class."""
    path = tmp_path_factory.mktemp("own")
    names = {"pfedmoap": "test_report:Mine", "alone": "test_report:Lonely"}
    for name, case in EXPERIMENTS.items():
        renamed = replace(case, method=case.method | {"name": names[case.method["name"]]})
        for seed in SEEDS:
            make(path / name / f"seed-{seed}", renamed, name=name, run=seeded(seed))
    return report.collect([path / name for name in EXPERIMENTS])


def test_a_subclass_of_ones_own_has_every_table_and_picture_of_its_parent(experiments, own):
    """But for seconds, which are measured."""

    def shown(found):
        return [[cells(table, i) for i in range(len(table.rows))] for table in report.tables(found)]

    ours, theirs = shown(experiments), shown(own)
    for row in (*ours[0], *theirs[0]):
        del row["time (s)"]
    assert theirs == ours
    assert [table.title for table in report.tables(own)] == [
        table.title for table in report.tables(experiments)
    ]
    alike = lambda found: [(p.title, p.alt, p.caption) for p in figures.draw(found)]  # noqa: E731
    assert alike(own) == alike(experiments)
    assert report.decision(own)[1:] == report.decision(experiments)[1:]
    assert ours[0][2]["server"] == "-", "who shares nothing has no server accuracy"
    assert len(ours) == 4


def test_a_method_of_ones_own_has_its_picture_and_its_row(tmp_path):
    for depth in (3, 0):
        for seed in SEEDS:
            case = Case({"name": "test_report:Told", "depth": depth})
            make(
                tmp_path / f"deep-{depth}" / f"seed-{seed}",
                case,
                name=f"deep-{depth}",
                run=seeded(seed),
            )
    found = report.collect([tmp_path / "deep-3", tmp_path / "deep-0"])
    table = table_of(found, ADDED)
    assert [
        (cells(table, i)["experiment"], cells(table, i)["against"]) for i in range(len(table.rows))
    ] == [("deep-3", "deep-0 (no depth)")]
    pictures = {picture.title: picture for picture in figures.draw(found)}
    assert pictures["How deep it went"].caption.startswith("At 0 it stayed where it was.")
    assert "deep-3 3" in pictures["How deep it went"].alt
    assert "deep-3 1.6" in pictures["How deep the server went"].alt


def test_without_an_experiment_with_experts_there_is_no_table_of_what_they_add(experiments):
    titles = [table.title for table in report.tables(experiments[1:])]
    assert titles == ["Accuracy in percent", "How clients differ", "What is held and sent"]


def test_what_experts_add_is_said_against_the_strongest_control_on_validation_data(experiments):
    """Test data, and data in one place, have no say in which control that is."""
    mixture, gate, alone = experiments
    one = judged(mixture, "one", [9, 9, 9], [8, 8, 7])
    weak = judged(gate, "weak", [5, 5, 5], [9, 9, 9])
    strong = judged(alone, "strong", [6, 6, 6], [5, 5, 5], model__name="linear-probe")
    bound = judged(alone, "bound", [9, 9, 9], [9, 9, 9], run__pooled=True)
    line = report.decision([one, weak, strong, bound])[-1]
    assert line.startswith(
        "What experts add: one against strong (linear probe; the strongest of 2 controls on"
        " validation data): +26.7 points (between "
    )
    assert line.endswith(", better.")
    line = report.decision([one, weak])[-1]
    assert line.startswith("What experts add: one against weak (gate alone): -13.3 points")


def test_a_difference_has_one_verdict_wherever_it_stands(experiments):
    """Its p of 0.0198 is enough for one of two comparisons. The sentences above the tables make
    two, and the table below three: they are judged as three, all of them.
    """
    mixture, gate, alone = experiments
    one = judged(mixture, "one", [9, 9, 9], [7, 8, 7])
    weak = judged(gate, "weak", [5, 5, 5], [5, 5, 5])
    probe = judged(alone, "probe", [6, 6, 6], [5, 5, 5], model__name="linear-probe")
    bound = judged(alone, "bound", [9, 9, 9], [5, 5, 5], run__pooled=True)
    assert "one is better than probe" in report.decision([one, weak, probe])[1]
    _, sure, *_, last = told = report.decision([one, weak, probe, bound])
    assert "established on test data, for all 3 comparisons together" in sure
    assert last.endswith("not established among 3 comparisons.")
    assert "better" not in " ".join(told)
    assert said(one, weak, probe, bound).count("not established among 3 comparisons.") == 3


def test_what_a_control_is_asked_to_differ_in_is_no_remark(experiments):
    share = {"run__pooled": True, "run__participation": 0.01, "model__name": "probe"}
    bound = with_rows(experiments[1], "bound", {0: rows([[5]])}, **share)
    one = with_rows(experiments[0], "one", {0: rows([[5]])}, run__pooled=False)
    text = said(one, bound)
    assert "one against bound (all data in one place): no difference at all in 1 seed." in text


def searched(experiment, path, trials, edges, rounds=3):
    """An experiment whose study wrote down what it tried of its rate."""
    folder = path / experiment.name
    folder.mkdir()
    tried = {
        "seed": 1_000_000,
        "rounds": [rounds] * len(trials),
        "trials": [{"learning.rate": rate} for rate in trials],
        "valid": [50.0] * len(trials),
        "chosen": {"learning.rate": trials[0]},
        "edges": edges,
    }
    write_checked(folder / "tune.json", tried)
    tuned = frozenset({"learning.rate"})
    runs = {
        seed: replace(run, path=folder / f"seed-{seed}", tuned=tuned)
        for seed, run in experiment.runs.items()
    }
    return report.Experiment(experiment.name, runs)


def test_a_value_at_the_end_of_what_was_tried_is_marked(experiments, tmp_path):
    inside = searched(experiments[0], tmp_path, [0.3, 0.1, 1.0], {})
    end = searched(experiments[1], tmp_path, [0.3, 0.1, 0.03], {"learning.rate": "highest"})
    table = table_of([inside, end], "How values were chosen")
    assert [cells(table, i)["chosen"] for i in (0, 1)] == [
        "learning.rate = 0.3",
        "learning.rate = 0.3 (highest tried)",
    ]
    assert cells(table, 0)["trials"] == "3"
    assert cells(table, 0)["passes"] == str(9 * inside.values["learning"]["epochs"])
    text = said(inside, end)
    name = end.name
    assert f"{name}: learning.rate = 0.3 is the highest value that was tried; a higher one" in text
    assert f"{inside.name}: learning.rate = 0.3 is" not in text
    assert "All had the same number of trials" in text


def test_unequal_budgets_are_said(experiments, tmp_path):
    one = searched(experiments[0], tmp_path, [0.3, 0.1, 1.0], {})
    more = searched(experiments[1], tmp_path, [0.3, 0.1, 0.03, 1.0], {})
    assert "They did NOT have the same number of trials" in said(one, more)
    longer = searched(experiments[2], tmp_path, [0.3, 0.1, 0.03], {}, rounds=4)
    assert "They did NOT have the same number of trials" in said(one, longer)


def test_the_skew_that_clients_have_stands_beside_what_was_asked_for(experiments):
    asked = with_rows(experiments[0], "x", {0: rows([[5]])}, data__alpha=0.3)
    skew = {"largest": 0.36, "entropy": 1.6, "most": 2.303, "single": 1, "clients": 20}
    runs = {
        s: replace(r, environment=r.environment | {"skew": skew}) for s, r in asked.runs.items()
    }
    says = (
        "A client's largest class has 36 % of its training data on average (Dirichlet(0.3) was"
        " asked for); entropy of its classes 1.60 of 2.30 nats; one class alone: 1 of 20 clients."
    )
    assert says in said(report.Experiment("x", runs))
    plain = {"partition": "pathological", "alpha": 0.5}
    assert "asked for" not in notes.skewed(skew, plain)


def test_experiments_over_different_seeds_are_not_ranked_in_words(experiments):
    """The mean of the first is higher, by its seeds alone: where both were run, it is lower."""
    first = with_rows(experiments[0], "first", {0: rows([[4]]), 1: rows([[9]]), 2: rows([[9]])})
    other = with_rows(experiments[1], "other", {0: rows([[5]])})
    lines = report.decision([first, other])
    assert lines[0] == "These experiments have different seeds, so they are listed but not ranked."
    assert not any("use" in line for line in lines)
    assert lines[1].endswith("(gate alone): -10.0 (seed 0) points; an interval needs 3 seeds.")
    assert "do not have the same seeds" in printed(report.tables([first, other]))


def test_experiments_on_different_data_are_not_ranked(experiments):
    first = with_rows(experiments[0], "first", {0: rows([[8]])})
    other = with_rows(experiments[1], "other", {0: rows([[5]])}, data__name="other-data")
    assert "not ranked" in report.decision([first, other])[0]
    assert "do not have the same data" in printed(report.tables([first, other]))
    assert not table_of([first, other], ADDED).rows


# ---- which runs


def test_seeds_of_one_config_are_one_experiment_in_the_order_of_the_study(experiments):
    assert [(e.name, list(e.runs)) for e in experiments] == [
        (name, list(SEEDS)) for name in EXPERIMENTS
    ]


def test_an_experiment_or_a_run_may_be_given_alone_and_twice_counts_once(study):
    one, other = study / "gate-alone", study / "mixture" / "seed-1"
    found = report.collect([one, other, other, one / "seed-0"])
    assert [(e.name, list(e.runs)) for e in found] == [("gate-alone", [0, 1, 2]), ("mixture", [1])]


def test_trials_are_left_out_unless_asked_for(study):
    assert all(
        run.path.parent.name != "tune"
        for e in report.collect([study / "mixture"])
        for run in e.runs.values()
    )
    assert report.collect([study / "mixture" / "tune" / "001"])[0].values["learning"]["rate"] == 9.0


def test_an_unfinished_run_is_named_and_counted_nowhere(study, tmp_path):
    shutil.copytree(study / "mixture", tmp_path / "mixture")
    whole = cells(report.tables(report.collect([tmp_path]))[0], 0)
    make(
        tmp_path / "mixture" / "seed-7",
        EXPERIMENTS["mixture"],
        name="mixture",
        stop=1,
        run=seeded(7),
    )
    make(tmp_path / "late", CASES["fedavg"], name="late", stop=0)
    found = report.collect([tmp_path / "mixture", tmp_path / "late"])
    tables = report.tables(found)
    text = said(*found)
    assert cells(tables[0], 0) == whole | {"sd seeds": whole["sd seeds"].replace("(3)", "(3/4)")}
    assert set(cells(tables[0], 1).values()) == {"late", "(0/1)", "-"}
    assert "Not counted: mixture, seed 7: unfinished, 1 of 2 rounds done." in text
    assert "Not counted: late, seed 0: unfinished, 0 of 2 rounds done." in text
    report.write_html(found, tmp_path / "report.html")
    assert (
        "mixture, seed 7: unfinished, 1 of 2 rounds done" in (tmp_path / "report.html").read_text()
    )


def test_runs_before_their_first_round_make_a_page_without_a_result(tmp_path):
    RunDir.create(tmp_path / "run", tiny(CASES["alone"], name="new").toml(), {})
    report.write_html(report.collect([tmp_path]), tmp_path / "report.html")
    assert "No run is finished yet" in (tmp_path / "report.html").read_text()


def test_equal_names_with_other_settings_or_the_same_seed_are_never_mixed(study, tmp_path):
    make(tmp_path / "a", EXPERIMENTS["mixture"], name="mixture", method={"lam": 3.0}, run=seeded(9))
    shutil.copytree(study / "mixture", tmp_path / "b")
    shutil.copytree(study / "mixture", tmp_path / "c")
    found = report.collect([tmp_path])
    assert [(e.name, list(e.runs)) for e in found] == [
        ("mixture (method.lam=3.0)", [9]),
        ("mixture (method.lam=0.5) (b/seed-0)", [0, 1, 2]),
        ("mixture (method.lam=0.5) (c/seed-0)", [0, 1, 2]),
    ]
    found = report.collect([tmp_path / "a", tmp_path / "b"])
    assert [list(e.runs) for e in found] == [
        [9],
        [0, 1, 2],
    ], "other settings, even without a seed in common"


def test_equal_names_are_told_apart_by_settings_that_all_have_and_nobody_tuned(tmp_path):
    def labels(*cases, tune=()):
        for number, (case, sections) in enumerate(cases):
            config = tiny(CASES[case], name="x", **sections)
            tuned = replace(config, tune={key: [0.1] for key in tune})
            RunDir.create(tmp_path / "-".join(tune) / str(number), tuned.toml(), {})
        return [each.name for each in report.collect([tmp_path / "-".join(tune)])]

    some, more = {"reserve": 1}, {"reserve": 4}
    cases = ("alone", {"data": some}), ("alone", {"data": more, "learning": {"rate": 0.7}})
    assert labels(*cases) == [
        "x (data.reserve=1, learning.rate=0.1)",
        "x (data.reserve=4, learning.rate=0.7)",
    ]
    assert labels(*cases, tune=["learning.rate"]) == ["x (data.reserve=1)", "x (data.reserve=4)"]
    others = ("fedprox", {"run": {"judged_by": "server"}}), ("alone", {})
    assert labels(*others, tune=["data.reserve"]) == [
        "x (method.name=fedavg, run.judged_by=server)",
        "x (method.name=alone, run.judged_by=clients)",
    ]


def test_a_client_who_did_not_answer_is_named(experiments):
    found = [
        row for row in rows([[5, 5, 5], [5, 5, 5]]) if (row["round"], row["client"]) != (1, "c-2")
    ]
    text = said(with_rows(experiments[0], "x", {0: found}))
    assert "x, seed 0: missing from the last evaluation: c-2, which did not answer." in text


def test_a_run_whose_last_evaluation_nobody_answered_does_not_count(experiments):
    whole = with_rows(experiments[0], "x", {0: rows([[5, 5], [5, 5]])})
    run = replace(whole.first, clients=rows([[5, 5]]))
    assert report.Experiment("x", {0: run}).finished == {}
    assert "no client answered" in run.unfinished


@pytest.mark.parametrize(
    ("make_it", "says"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "this is a file"),
        (lambda path: (path / "empty").mkdir(parents=True), "holds no run"),
        (
            lambda path: make(path / "x" / "tune" / "001", CASES["alone"], name="x"),
            "holds only trials",
        ),
    ],
)
def test_a_folder_without_runs_says_what_would_be_right(tmp_path, make_it, says):
    path = tmp_path / "given"
    make_it(path)
    with pytest.raises(
        ValueError, match=f"{re.escape(str(path))}.* {says}.*expected a folder made by"
    ):
        report.collect([path])


def test_a_damaged_run_is_named(study, tmp_path):
    shutil.copytree(study / "mixture" / "seed-0", tmp_path / "run")
    rewrite(tmp_path / "run", "config.toml", "name = 'x'")
    with pytest.raises(
        ValueError, match=r"run is damaged: config.toml or environment.json \(KeyError: 'method'\)"
    ):
        report.collect([tmp_path])


# ---- the page


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them; complains of what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def test_names_at_the_ends_of_lines_do_not_touch_and_stay_in_their_order():
    assert ink.apart([1, 50, 51, 52], 10, 100) == [1, 50, 60, 70]
    assert ink.apart([96, 97, 99], 10, 100) == [80, 90, 100]
    assert ink.apart([], 10, 100) == []


def test_an_experiment_has_one_colour_in_all_pictures(experiments):
    """The third has no global model: where the others are drawn without it, too, and without the
    first, theirs stay as they are.
    """
    names = list(EXPERIMENTS)
    alone, gate, mixture = (experiments[names.index(name)] for name in reversed(names))
    drawn = figures.draw([alone, gate, mixture])
    pictures = {picture.title: picture.svg.decode() for picture in drawn}
    moved, every = pictures["How far clients move what they share"], pictures["Every client"]
    first, second, third = (colour.lower() for colour in ink.COLOURS[:3])
    assert first not in moved
    assert second in moved
    assert third in moved
    assert all(colour in every for colour in (first, second, third))


def test_the_page_can_be_read_in_the_dark_and_printed(page):
    assert "@media (prefers-color-scheme: dark)" in page
    assert "@media print" in page


def svg(image):
    kind, data = image["src"].split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data)


def test_the_page_needs_nothing_but_itself(page):
    reader = Reader(page)
    assert not re.search(r"https?://", page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    assert not [
        a for _, attributes in reader.tags for a in attributes if a == "href" or a.startswith("on")
    ]
    for image in reader.images():
        assert ElementTree.fromstring(svg(image)).tag.endswith("svg")
        assert image["alt"].endswith(".")


def test_the_page_has_every_picture_for_which_there_is_something_to_show(page):
    text = " ".join(Reader(page).text)
    for title in (
        "Accuracy over rounds",
        "Every client",
        "How sure, how right",
        "Which class is said for which: coop-alone",
        "Shares of the experts: mixture",
        "Who received whose expert: mixture",
        "How far clients move what they share",
        "How different the experts are",
        "What travels",
    ):
        assert title in text
    assert len(Reader(page).images()) == 11
    assert "Shares of the experts: gate-alone" not in text


def test_the_page_has_both_tables_every_client_the_settings_and_the_environment(page, experiments):
    text = " ".join(Reader(page).text)
    for table in report.tables(experiments):
        for row in range(len(table.rows)):
            for cell in cells(table, row).values():
                assert cell in text
    for client in COUNTS:
        assert f"<td>{client}</td>" in page
    assert "method.experts" in text
    assert "gate_rate = 0.01" in text
    assert "3.x" in text
    assert all(line in text for line in report.decision(experiments))


def test_equal_runs_make_equal_pages(experiments, page, tmp_path):
    report.write_html(experiments, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_names_and_reasons_from_outside_are_shown_and_never_obeyed(experiments, tmp_path):
    bad = "<script>alert(1)</script> & $x^$ [red]\x1b[31m _你"
    found = [row | {"client": f"{row['client']}{bad}"} for row in experiments[0].first.clients]
    refused = [row | {"refused": {f"z{bad}": bad}} for row in experiments[0].first.rounds]
    run = replace(
        experiments[0].first,
        name=bad,
        clients=found,
        rounds=refused,
        environment={bad: bad},
        text=f"# {bad}",
    )
    hostile = [report.Experiment(f"_{bad}", {0: run}), experiments[1]]
    report.write_html(hostile, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "<script" not in text
    assert "a&lt;script&gt;" in text
    for image in reader.images():
        ElementTree.fromstring(svg(image))
    terminal = printed(report.tables(hostile))
    assert "\x1b" not in terminal
    assert "[red]" in terminal


def test_refused_uploads_are_listed_with_client_and_reason(tmp_path):
    def spoil(reply):
        if reply.client == "b" and reply.task == "train":
            return Reply("b", reply.round, "train", error="the <disk> is full")
        return reply

    make(
        tmp_path / "run",
        CASES["fedavg"],
        name="x",
        wrap=lambda engine: Spoilt(engine, spoil),
        run={"rounds": 2},
    )
    found = report.collect([tmp_path])
    count = sum("b" in row["refused"] for row in logged(tmp_path / "run", "rounds.jsonl"))
    assert f"x: {claims.plural(count, 'upload')} refused" in printed(report.tables(found))
    report.write_html(found, tmp_path / "report.html")
    assert "<td>b</td><td>the &lt;disk&gt; is full</td>" in (tmp_path / "report.html").read_text()


def test_a_client_that_is_refused_in_every_round_is_said_loudly(tmp_path):
    """One whose last upload was taken is in the result; one whose never was is not, and nobody may
    overlook it.
    """

    def spoil(reply):
        if reply.task == "train" and (
            reply.client == "b" or (reply.client == "c" and reply.round == 1)
        ):
            return Reply(reply.client, reply.round, "train", error="the disk is full")
        return reply

    full = {"rounds": 2, "participation": 1.0}
    make(
        tmp_path / "run",
        CASES["fedavg"],
        name="x",
        wrap=lambda engine: Spoilt(engine, spoil),
        run=full,
    )
    (found,) = report.collect([tmp_path])
    lines = [line for line in notes.notes([found]) if line.startswith("WARNING")]
    assert lines == [
        "WARNING: x, seed 0: every upload from b was refused, so it contributed nothing to this"
        " result."
    ]
    assert lines[0] in said(found)


def test_writing_over_a_folder_says_what_would_be_right(experiments, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; expected the name of a file"):
        report.write_html(experiments, tmp_path)


def test_many_experiments_and_clients_still_make_a_page(experiments, tmp_path):
    right = [[i % 10 for i in range(20)]] * 2
    found = {0: [row for d in range(3) for row in rows(right, client=f"domain{d}")]}
    mixed = {0: [row | {"shares": [0.3, 0.1, 0.6], "experts_apart": 0.1} for row in found[0]]}
    many = [with_rows(experiments[1], f"experiment-with-a-long-name-{i}", found) for i in range(11)]
    report.write_html(
        [*many, with_rows(experiments[0], "mixture", mixed)], tmp_path / "report.html"
    )
    assert len(Reader((tmp_path / "report.html").read_text()).images()) == 7


def test_a_shipped_config_resolves_to_what_the_report_reads():
    """The keys by which controls are found are those of the package's own methods and models."""
    names = {"data": "digits-scanners", "model": "linear-probe", "method": "pfedmoap"}
    config = resolve(
        [({"name": "x", **{section: {"name": name} for section, name in names.items()}}, "test")]
    )
    assert config.values["model"]["name"] == "linear-probe"
    assert {"experts", "select"} <= set(config.values["method"])
    assert {"seed", "rounds", "threads"} <= set(config.values["run"])


# ---- a mixture at the server

MIXED = {
    "dense_correct": 55,
    "uniform_correct": 40,
    "routed_correct": 50,
    "main_correct": 45,
    "experts_correct": [30, 20],
    "use": [30, 10, 0, 0, 20, 40],
    "entropy": 0.5,
    "apart": 0.25,
    "alpha": 0.75,
    "shares.c-0": [0.2, 0.7, 0.1],
}
METHOD = {
    "method__name": "fedmoe",
    "method__relevance": "mean",
    "method__temperature": 1.0,
    "method__gate": "trained",
}
AVERAGING = {"method__name": "fedavg"}


def row_of_server(round, right, **facts):
    """The server has so many of 100 test examples right, and of 100 validation examples."""
    part = {
        "test_correct": right,
        "test_examples": 100,
        "valid_correct": right,
        "valid_examples": 100,
    }
    return {"round": round, "server_bytes": 16_700} | part | facts


def with_server(experiment, name, by_seed, judged_by="server", **settings):
    """An experiment whose server logged these rows, a list a seed; its clients have 1, 2, 3 .. of
    10 right.
    """
    clients = {s: rows([[row["round"] + 1] for row in found]) for s, found in by_seed.items()}
    plain = with_rows(experiment, name, clients, run__judged_by=judged_by, **settings)
    return report.Experiment(
        name, {s: replace(run, server=by_seed[s]) for s, run in plain.runs.items()}
    )


def with_mixture(experiment, name, rights=(60,), **settings):
    """One evaluated round a seed, of a mixture that has so many right."""
    facts = MIXED | {key: settings.pop(key) for key in list(settings) if key in MIXED}
    by_seed = {seed: [row_of_server(0, right, **facts)] for seed, right in enumerate(rights)}
    return with_server(experiment, name, by_seed, **METHOD | settings)


def said(*experiments):
    return " ".join(printed(report.tables(experiments)).split())


def test_a_server_with_a_predictor_of_its_own_is_scored_by_it(experiments):
    found = [
        with_server(experiments[0], "x", {0: [row_of_server(0, 42)]}, judged)
        for judged in ("clients", "server")
    ]
    by_clients, by_server = (cells(report.tables([e])[0], 0) for e in found)
    assert by_clients["server"] == by_server["server"] == "42.0"
    assert list(by_clients)[1] == "local"
    assert list(by_server)[1] == "server"


def test_where_the_server_judges_the_table_leads_with_it(experiments):
    x = with_server(
        experiments[0], "x", {s: [row_of_server(0, right)] for s, right in enumerate((40, 42))}
    )
    line = cells(report.tables([x])[0], 0)
    assert (line["server"], line["sd seeds"], line["local"]) == ("41.0", "1.4 (2)", "10.0")
    assert report.decision([x])[0].startswith("x, 41.0 % on average over 2 seeds")


@pytest.mark.parametrize(
    ("judged_by", "local", "at"), [("clients", "30.0", "2"), ("server", "20.0", "1")]
)
def test_the_best_round_is_chosen_by_whom_the_experiment_says(experiments, judged_by, local, at):
    """The clients are best in round 2, the server in round 1."""
    logged = [row_of_server(round, right) for round, right in enumerate((10, 50, 20))]
    found = with_server(experiments[0], "x", {0: logged}, judged_by).best[0]
    assert (f"{found.mean:.1f}", str(found.round)) == (local, at)


def test_a_server_without_a_predictor_is_judged_by_the_global_model_at_all_clients():
    found = [
        row | {"valid_global_correct": 4 + i, "valid_examples": 10 * (i + 1)}
        for i, row in enumerate(rows([[9, 9]]))
    ]
    assert valid(found, judged_by="server") == pytest.approx(100 * (4 + 5) / (10 + 20))


def test_every_column_of_the_servers_table_fits_a_terminal_too(experiments):
    tables = report.tables([with_mixture(experiments[0], "a-long-name", (100, 50))])
    lines = printed(tables, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_the_parts_of_a_mixture_stand_beside_the_whole(experiments):
    table = report.tables([with_mixture(experiments[0], "moe", (60, 70)), experiments[1]])[-1]
    assert cells(table, 0) == {
        "experiment": "moe",
        "server": "65.0",
        "dense": "55.0",
        "flat gate": "40.0",
        "no main": "50.0",
        "main alone": "45.0",
        "best expert": "30.0",
        "worst expert": "20.0",
        "apart": "0.250",
        "entropy": "0.50",
        "alpha": "0.75",
    }
    assert len(table.rows) == 1


def test_a_mixture_without_main_experts_has_no_alpha(experiments):
    (run,) = with_mixture(experiments[0], "moe").runs.values()
    (row,) = run.server
    bare = replace(
        run,
        server=[{key: value for key, value in row.items() if key not in ("main_correct", "alpha")}],
    )
    line = cells(report.tables([report.Experiment("moe", {0: bare})])[-1], 0)
    assert (line["main alone"], line["alpha"]) == ("-", "-")


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        ((60,), "+20.0 (seed 0) points; an interval needs 3 seeds."),
        ((60, 62, 64), "+22.0 points (between +17.0 and +27.0, 95 %, 3 seeds), better."),
        (
            (38, 41, 44),
            "+1.0 points (between -6.5 and +8.5, 95 %, 3 seeds), no difference is established.",
        ),
        ((30, 31, 32), "-9.0 points (between -11.5 and -6.5, 95 %, 3 seeds), worse."),
        ((40, 40), "no difference at all in 2 seeds."),
    ],
)
def test_the_gate_is_held_against_none_over_seeds(experiments, rights, says):
    text = said(with_mixture(experiments[0], "moe", rights))
    assert f"moe against its own experts under a uniform gate: {says}" in text


def test_a_mixture_is_held_against_copies_and_against_averaging(experiments):
    moe = with_mixture(experiments[0], "moe", (60, 62, 67))
    copies = with_mixture(
        experiments[0], "copies", (50, 52, 54), method__relevance="uniform", method__temperature=9.0
    )
    fedavg = with_server(
        experiments[0], "fedavg", {s: [row_of_server(0, 55)] for s in SEEDS}, **AVERAGING
    )
    text = said(moe, copies, fedavg)
    assert "moe against copies (uniform relevance): +11.0 points" in text
    assert "moe against fedavg (one averaged model): +8.0 points" in text
    assert "copies against" not in text
    assert "do not tell" not in text
    lines = report.decision([fedavg, moe, copies])
    assert "Highest server accuracy on validation data: moe, " in lines[0]
    assert "; on test data 63.0 % on average over 3 seeds" in lines[0]
    assert lines[-1].startswith("What experts add: moe against fedavg (one averaged model; the")
    line = cells(table_of([moe, copies], ADDED), 0)
    assert (line["of"], line["better"]) == ("server", "-")


def test_an_averaged_mixture_is_not_one_averaged_model(experiments):
    moe = with_mixture(experiments[0], "moe")
    fedmix = with_server(
        experiments[0], "fedmix", {0: [row_of_server(0, 55)]}, **AVERAGING, mixture__experts=4
    )
    assert "they do not tell whether a mixture adds anything" in said(moe, fedmix)


@pytest.mark.parametrize("key", ["data__name", "model__name"])
def test_averaging_from_elsewhere_is_no_control(experiments, key):
    fedavg = with_server(
        experiments[0], "fedavg", {0: [row_of_server(0, 55)]}, **AVERAGING | {key: "other"}
    )
    assert "they do not tell whether a mixture adds anything" in said(
        with_mixture(experiments[0], "moe"), fedavg
    )


@pytest.mark.parametrize(
    ("facts", "collapsed"),
    [
        ({}, False),
        ({"apart": 0.001}, True),
        ({"use": [40, 30, 29, 1, 0, 0]}, True),
        ({"use": [100, 0, 0, 0, 0, 0], "method__gate": "uniform"}, False),
    ],
)
def test_experts_that_collapsed_into_one_are_called_so(experiments, facts, collapsed):
    text = said(with_mixture(experiments[0], "moe", (60, 60), **facts))
    assert ("The routed experts of moe collapsed into one: in 2 of 2 seeds" in text) == collapsed


def test_the_pictures_of_a_mixture_say_their_figures_in_words(experiments):
    moe = with_mixture(experiments[0], "moe", (60, 70))
    absorbed = {"c-0": {"before_correct": 3, "after_correct": 9, "test_examples": 10}}
    logs = [row | {"absorbed": absorbed} for row in moe.first.rounds]
    moe = report.Experiment(
        "moe", {seed: replace(run, rounds=logs) for seed, run in moe.runs.items()}
    )
    alts = {picture.title: picture.alt for picture in figures.draw([moe])}
    assert alts["Accuracy of the server over rounds"].endswith("moe from 65.0 to 65.0 %.")
    assert "first choice for 60 %" in alts["Which expert serves which class: moe"]
    assert (
        "is 0.70 on average, of 3 experts" in alts["Shares of the experts in clients' blends: moe"]
    )
    assert alts["Clients before and after their blend: moe"].endswith("before it 30, after it 90.")
    assert alts["Largest share of one expert in a client's blend"].endswith("moe 0.7.")
    assert alts["Share of the routed experts"].endswith("moe 0.75.")


AVERAGED = ("fedmix", "fedjets", "cent-moe")  # their servers hold a mixture that all share


@pytest.fixture(scope="session")
def fedmoe(tmp_path_factory):
    """Real runs of Fed-MoE and of FedAvg on a few digits."""
    path = tmp_path_factory.mktemp("fedmoe")
    small = [
        "data.clients=4",
        "start.epochs=1",
        "learning.rate=0.01",
        "run.rounds=2",
        "run.evaluate_every=1",
    ]
    for name in ("fedmoe-letter", "fedavg", *AVERAGED):
        once(load(f"configs/demo/fedmoe-digits/{name}.toml", small), path / name)
    return path


def test_the_page_shows_a_mixture_beside_runs_without_one(fedmoe, study, tmp_path):
    report.write_html(report.collect([fedmoe, study / "mixture"]), tmp_path / "report.html")
    reader = Reader((tmp_path / "report.html").read_text())
    text = " ".join(reader.text)
    for title in (
        "Accuracy of the server over rounds",
        "Which expert serves which class: fedmoe-letter",
        "Shares of the experts in clients' blends: fedmoe-letter",
        "Clients before and after their blend: fedmoe-letter",
        "Largest share of one expert in a client's blend",
        "Share of the routed experts",
        "How undecided the gate is",
        "How far apart the routed experts are",
        "Shares of the experts: mixture",
    ):
        assert title in text
    assert "serves which class: fedavg" not in text
    assert "serves which class: mixture" not in text
    for image in reader.images():
        assert ElementTree.fromstring(svg(image)).tag.endswith("svg")


def test_every_server_that_holds_a_mixture_has_a_row_of_what_routing_adds(fedmoe):
    """The mixture that all share predicts with every expert: dense, at all clients' test parts in
    one.
    """
    found = report.collect([fedmoe])
    table = table_of(found, ROUTED)
    lines = {line["experiment"]: line for line in (cells(table, i) for i in range(len(table.rows)))}
    assert lines.keys() == {"fedmoe-letter", *AVERAGED}
    accuracy = {
        line["experiment"]: line
        for line in (cells(report.tables(found)[0], i) for i in range(len(found)))
    }
    for name, line in lines.items():
        assert line["server"] == accuracy[name]["server"]
        assert name not in AVERAGED or line["dense"] == line["server"]
        assert f"{name} against its own experts under a uniform gate" in said(*found)
    assert lines["fedmix"]["alpha"] == "-"
    titles = [picture.title for picture in figures.draw(found)]
    assert "Which expert serves which class: fedmix" in titles


# ---- the decision


def judged(experiment, name, valid, test, **settings):
    """An experiment of one round with these accuracies in tenths, one each seed."""
    by_seed = {
        seed: rows([[right] * 4], [[known] * 4])
        for seed, (known, right) in enumerate(zip(valid, test, strict=True))
    }
    return with_rows(experiment, name, by_seed, **settings)


def taking(seconds, experiment):
    """The same with rounds that take so long."""
    for seed, run in experiment.runs.items():
        slow = [row | {"seconds": seconds} for row in run.rounds]
        experiment.runs[seed] = replace(run, rounds=slow)
    return experiment


def test_what_is_chosen_on_validation_data_is_claimed_on_test_data(experiments):
    mixture, _, alone = experiments
    good = judged(mixture, "good", [9, 9, 9], [8, 9, 8])
    poor = judged(alone, "poor", [5, 5, 6], [5, 5, 5])
    first, sure = report.decision([poor, good])
    assert first.startswith(
        "For these sites, use good. Highest local accuracy on validation data: good, 90.0 %; on"
        " test data 83.3 % on average over 4 clients and 3 seeds; the commonest class alone gives "
    )
    assert sure.startswith("How sure that is: good is better than poor, +33.3 points (between ")
    assert sure.endswith("95 %, 3 seeds); established on test data.")


def test_of_many_the_nearest_are_listed_and_pooled_data_are_no_choice(experiments):
    _, _, alone = experiments
    best = judged(alone, "best", [9, 9, 9], [9, 9, 8])
    others = [
        judged(alone, f"other-{k}", [7, 7, 7], [4 - k, 3 - k, 3 - k], learning__rate=float(k + 1))
        for k in range(4)
    ]
    bound = judged(alone, "bound", [10, 10, 10], [10, 10, 10], run__pooled=True)
    first, sure, *_ = report.decision([*others, bound, best])
    assert first.startswith("For these sites, use best.")
    assert "bound" not in sure
    assert [f"other-{k}" in sure for k in range(4)] == [True, True, True, False]
    assert "; and 1 other, by more; established" in sure


def test_a_better_test_accuracy_chooses_nothing(experiments):
    mixture, _, alone = experiments
    chosen = judged(mixture, "chosen", [9, 9, 9], [5, 5, 5])
    lucky = judged(alone, "lucky", [7, 7, 7], [9, 9, 8])
    first, sure = report.decision([lucky, chosen])
    assert first.startswith("For these sites, use chosen.")
    assert "chosen is worse than lucky, -36.7 points" in sure


def test_of_those_that_are_as_good_the_cheapest_is_named_with_what_it_costs(experiments):
    """The mixture uploads; who trains alone sends nothing, however long it takes."""
    mixture, _, alone = experiments
    best = judged(mixture, "best", [9, 9, 9], [8, 9, 8])
    cheap = taking(9999.0, judged(alone, "cheap", [9, 9, 9], [9, 8, 8]))
    far = judged(alone, "far", [8, 8, 8], [9, 8, 9], learning__rate=0.2)
    first, sure, rest = report.decision([best, cheap, far])
    assert first.startswith(
        "For these sites, use cheap. Highest local accuracy on validation data: best"
    )
    assert "Within 1 point of it, and not established to be worse: cheap. The cheapest of" in first
    assert "cheap, with 0 bytes a client and round (which count first) and" in first
    assert sure == (
        "How sure that is: no difference to best is established on test data, for all 2 comparisons"
        " together (Holm, 5 %)."
    )
    assert rest.startswith("Not established: best minus cheap, +0.0 points (between ")
    assert "far, -3.3 points" in rest


def test_of_equal_bytes_the_faster_is_the_cheaper(experiments):
    *_, alone = experiments
    slow = taking(50.0, judged(alone, "slow", [9, 9], [8, 9]))
    fast = taking(5.0, judged(alone, "fast", [9, 9], [8, 9]))
    first, sure = report.decision([slow, fast])
    assert first.startswith("For these sites, use fast.")
    assert "repeat with --seeds 3 or more" in sure


def test_nothing_is_decided_without_validation_data_or_between_what_cannot_be_compared(experiments):
    mixture, _, alone = experiments
    one, other = (judged(e, e.name, [9, 9], [9, 8]) for e in (mixture, alone))
    bare = [row | {"valid_examples": 0, "valid_correct": 0} for row in one.first.clients]
    blind = report.Experiment("blind", {s: replace(r, clients=bare) for s, r in one.runs.items()})
    assert report.decision([blind, other])[0].startswith("Which to use cannot be said")
    assert report.decision([one])[0].startswith("mixture, 85.0 % on average over 4 clients")
    elsewhere = judged(alone, "elsewhere", [9, 9], [9, 8], data__name="other-data")
    assert report.decision([one, elsewhere])[0].startswith("These experiments have different data")
    assert report.decision([]) == ["No run is finished yet, so there is no result."]


def test_the_decision_stands_first_in_compare_and_on_the_page(study, experiments, page):
    (first, *_) = report.decision(experiments)
    done = CliRunner().invoke(app, ["compare", str(study)])
    assert done.stdout.startswith(f"{first}\n")
    assert re.findall('<p class="result">(.*?)</p>', page)[0] == first


# ---- tables for other programs


def test_a_comparison_is_one_csv_table_of_numbers(study, experiments):
    """Nothing stands above it or below it, and a number is one: pandas reads it as it is."""
    text = CliRunner().invoke(app, ["compare", str(study), "--format", "csv"]).stdout
    frame = pytest.importorskip("pandas").read_csv(io.StringIO(text), index_col="experiment")
    assert list(frame.index) == [experiment.name for experiment in experiments]
    mixture, alone = frame.loc["mixture"], frame.loc["coop-alone"]
    scores = [score.mean for score in experiments[0].last.values()]
    assert mixture["local"] == pytest.approx(statistics.fmean(scores), abs=1e-4)
    assert mixture["local_sd"] == pytest.approx(statistics.stdev(scores), abs=1e-4)
    assert mixture["up_bytes"] > alone["up_bytes"] == 0
    assert math.isnan(alone["server"]), "who shares nothing has no server accuracy"
    assert all(kind.kind in "fi" for kind in frame.drop(columns="chosen").dtypes)


def test_a_comparison_is_written_as_json_markdown_and_latex(study, experiments):
    def compare(form):
        return CliRunner().invoke(app, ["compare", str(study), "--format", form]).stdout

    (first, *_) = tables = report.tables(experiments)
    lines = report.decision(experiments)
    local = cells(first, 0)["local"]
    found = json.loads(compare("json"))
    assert found["decision"] == lines
    assert [each["title"] for each in found["tables"]] == [str(table.title) for table in tables]
    row = dict(zip(found["tables"][0]["columns"], found["tables"][0]["rows"][0], strict=True))
    assert (row["experiment"], row["local"]) == ("mixture", float(local))
    assert f"| mixture | {local} |" in compare("markdown")
    assert rf"mixture & {local} & " in compare("latex")


def test_names_from_outside_are_only_words_in_every_form(experiments):
    bad = "a|b & 50% $x_1$ \\ <i>*\x1b[31m"
    named = with_rows(experiments[0], bad, {0: rows([[8]])})
    tables = report.tables([named])
    made = {form: report.written(form, [], tables) for form in ("json", "markdown", "latex")}
    made["csv"] = report.as_csv([named])
    assert not any("\x1b" in text for text in made.values())
    assert r"a\|b & 50% $x\_1$ \\ \<i\>\*" in made["markdown"]
    assert r"a|b \& 50\% \$x\_1\$ \textbackslash{} <i>*" in made["latex"]
    assert json.loads(made["json"])["tables"][0]["rows"][0][0].startswith("a|b & 50% $x_1$ \\ <i>*")


# ---- calibration


def test_a_calibration_error_is_of_all_clients_together_and_a_mean_over_seeds(experiments):
    """One client is as much too sure as the other is not sure enough: together they are right."""

    def bins(correct):
        return {
            "test_bin_examples": [0] * 8 + [10, 0],
            "test_bin_sure": [0.0] * 8 + [8.0, 0.0],
            "test_bin_correct": [0] * 8 + [correct, 0],
        }

    def seed(*rights):
        return [row | bins(right) for row, right in zip(rows([list(rights)]), rights, strict=True)]

    made = with_rows(experiments[0], "made", {0: seed(10, 6), 1: seed(6, 6)})
    assert cells(table_of([made], "Accuracy in percent"), 0)["ece"] == "10.0"
    pictures = {picture.title: picture for picture in figures.draw([made])}
    assert "mean over seeds: made 10.0." in pictures["How sure, how right"].alt


def test_a_log_without_calibration_is_still_read(experiments):
    old = with_rows(experiments[0], "old", {0: rows([[8, 7]])})
    assert cells(table_of([old], "Accuracy in percent"), 0)["ece"] == "-"
    titles = {picture.title for picture in figures.draw([old])}
    assert not {"How sure, how right", "Which class is said for which: old"} & titles


def test_the_matrices_of_clients_are_counts_of_all_seeds(experiments):
    cells_of = {"test_confusion": [0, 5, 1, 3, 8, 2]}
    found = [row | cells_of for row in rows([[7]])]
    made = with_rows(experiments[0], "made", {0: found, 1: found})
    pictures = {picture.title: picture for picture in figures.draw([made])}
    alt = pictures["Which class is said for which: made"].alt
    assert alt == "Most frequent mistakes: ant taken for bee (6)."
