"""What an operator lives with for months: runs that wait and stop; consent; backups; units."""

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import CASES, every_file, job_and_engine, tiny
from typer.testing import CliRunner

pytest.importorskip("flwr")
from federated import SITES, experiment

from fedexperts import config as door
from fedexperts.cli import app as cli
from fedexperts.config import Allowed
from fedexperts.deploy import backup, consent, figures, presence, runs, watch
from fedexperts.deploy.carrying import Around, carry_out
from fedexperts.deploy.diary import LONGEST, Diary
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.presence import Presence
from fedexperts.deploy.probe import CODES
from fedexperts.deploy.programs import free_port
from fedexperts.deploy.site import answering
from fedexperts.deploy.sitefolder import SiteFolder
from fedexperts.engine import Engine
from fedexperts.message import Order, Reply, decode_reply, encode
from fedexperts.post import ask
from fedexperts.rundir import RunDir

ROOT = Path(__file__).parents[1]
NAMES = ("a", "b", "c", "d", "e")  # of the tiny world's clients
ROUNDS = {"rounds": 2, "evaluate_every": 2, "participation": 1.0}


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    return Deployment.create(tmp_path / "dep", "localhost", 9443, [*NAMES, SITES[0]])


Act = Callable[[Sequence[Order], Around], list[Reply] | None]


class Sites:
    """The sites of a run, in this process: `act` may answer in their stead, or do a thing first."""

    def __init__(self, inner: Engine, around: Around, act: Act) -> None:
        self._inner, self._around, self._act = inner, around, act

    def clients(self) -> list[str]:
        return self._inner.clients()

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        instead = self._act(orders, self._around)
        return self._inner.exchange(orders) if instead is None else instead


def begun(made: Deployment, name: str = "digits", **engine: Any) -> runs.Run:
    settings = {"name": "flower", "sites": [*NAMES], "wait": 0.0, "patience": 60.0} | engine
    config = tiny(CASES["nearest"], engine=settings, run=ROUNDS)
    return runs.Run.create(made, runs.fitted(config, made), name)


def carried(
    made: Deployment, run: runs.Run, act: Act, nodes: Callable[[], dict[str, int]] | None = None
) -> None:
    """Carry the run out, with sites that are there unless `nodes` says otherwise."""
    config = tiny(CASES["nearest"], run=ROUNDS)
    _, inner = job_and_engine(config, run.path.parents[2] / "private")
    carry_out(
        made,
        run.path.name,
        nodes or (lambda: dict.fromkeys(NAMES, 1)),
        lambda around: Sites(inner, around, act),
    )


def silence(orders: Sequence[Order]) -> list[Reply]:
    return [Reply(o.client, o.round, o.task, error="it is not connected") for o in orders]


# ---- runs


def test_a_round_in_which_nobody_answers_is_asked_again_and_the_run_goes_on(
    made: Deployment,
) -> None:
    """All sites go in the midst of round 1, and come back three looks later."""
    run, asked, gone, said = begun(made), list[int](), [0], list[str]()

    def act(orders: Sequence[Order], around: Around) -> list[Reply] | None:
        asked.append(orders[0].round)
        if asked.count(1) == 1 and orders[0].round == 1:
            gone[0] = 3
            return silence(orders)
        return None

    def nodes() -> dict[str, int]:
        said.append(run.status.why)
        if gone[0]:
            gone[0] -= 1
            return {}
        return dict.fromkeys(NAMES, 1)

    carried(made, run, act, nodes)
    assert run.status.state == "finished"
    assert asked == [0, 1, 1, 2, 2]
    assert any(why.startswith("nobody answered; it goes on by itself") for why in said)
    assert all(row["refused"] == {} for row in run.rows())


def test_a_run_that_goes_on_waits_for_the_sites_that_its_newest_orders_went_to(
    made: Deployment,
) -> None:
    """One is enough to begin; but who was asked when the server died is not left out by chance."""
    run, looks = begun(made, minimum=1), [0]
    run.asks(["a", "b"])

    def nodes() -> dict[str, int]:
        looks[0] += 1
        return dict.fromkeys(NAMES[: 1 + (looks[0] > 6)], 1)

    def act(orders: Sequence[Order], around: Around) -> None:
        assert looks[0] > 6, "it began without a site that it had asked"

    carried(made, run, act, nodes)
    assert run.status.state == "finished"
    assert run.asked() == ["a", "b"]


def test_a_removed_site_is_not_waited_for_not_even_if_it_was_asked(made: Deployment) -> None:
    run = begun(made)
    run.asks(NAMES)
    made.remove("e")
    seen = list[set[str]]()
    began = time.monotonic()
    carried(
        made,
        run,
        lambda orders, around: seen.append(set(around.removed())),
        lambda: dict.fromkeys("abcd", 1),
    )
    assert run.status.state == "finished"
    assert time.monotonic() - began < 50
    assert seen[0] == {"e"}
    assert run.status.missing == []


def test_a_run_stops_after_its_round_and_goes_on_from_there(made: Deployment) -> None:
    run = begun(made)
    carried(made, run, lambda orders, around: run.stop("round") if orders[0].round == 1 else None)
    assert run.status.state == "stopped"
    assert [row["round"] for row in run.rows()] == [1]
    run.begins_anew()
    carried(made, run, lambda orders, around: None)
    assert run.status.state == "finished"
    assert RunDir(run.path).done() == 2


def test_a_run_stops_at_once_where_its_loop_waits(made: Deployment) -> None:
    run = begun(made)

    def act(orders: Sequence[Order], around: Around) -> None:
        if orders[0].round == 1:
            run.stop("now")
            around.alive()
            raise AssertionError("it goes on")

    carried(made, run, act)
    assert (run.status.state, run.rows()) == ("stopped", [])


def test_a_second_run_comes_after_the_first_and_says_so(made: Deployment) -> None:
    run = begun(made, "second")
    with open(run.path.parent / ".turn", "a+") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write("first")
        first.flush()
        waiting = threading.Thread(target=carried, args=(made, run, lambda *_: None))
        waiting.start()
        end = time.monotonic() + 60
        while run.status.state != "waiting" and time.monotonic() < end:
            time.sleep(0.05)
        assert run.status.why == "it comes after first, which goes on"
    waiting.join(60)
    assert run.status.state == "finished"


def test_a_run_that_flower_starts_twice_is_carried_out_once(made: Deployment) -> None:
    run, asked = begun(made), list[int]()
    with open(run.path.parent / ".turn", "a+") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write("digits")
        first.flush()
        second = threading.Thread(target=carried, args=(made, run, lambda *_: asked.append(0)))
        second.start()
        time.sleep(2)
        assert run.status.state == "submitted", "it says nothing of a run that goes on"
        run.stands(runs.Status("finished", 2))
    second.join(60)
    assert (run.status.state, asked) == ("finished", [])


def test_a_full_disk_is_waited_for(made: Deployment) -> None:
    run, full = begun(made), [True]

    def act(orders: Sequence[Order], around: Around) -> None:
        if orders[0].round == 2 and full[0]:
            full[0] = False
            raise OSError(errno.ENOSPC, "No space left on device", str(run.path / "rounds.jsonl"))

    carried(made, run, act)
    assert run.status.state == "finished"
    assert RunDir(run.path).done() == 2


def test_a_loop_that_is_stuck_gives_no_sign_of_life(made: Deployment) -> None:
    run, quiet = begun(made), list[float]()

    def act(orders: Sequence[Order], around: Around) -> None:
        if orders[0].round == 1:
            time.sleep(2.5)
            quiet.append(run.quiet())
            around.alive()
            quiet.append(run.quiet())

    carried(made, run, act)
    assert quiet[0] > 2
    assert quiet[1] < 1


def test_a_server_knows_which_runs_were_under_way(made: Deployment) -> None:
    one, two = begun(made, "one"), begun(made, "two")
    two.stands(runs.Status("stopped"))
    assert [run.path for run in runs.under_way(made)] == [one.path]


def test_a_run_whose_process_is_ended_has_not_failed(made: Deployment) -> None:
    """As when the server is stopped, or its machine is: it goes on when the server is there."""
    run = begun(made)

    def act(orders: Sequence[Order], around: Around) -> None:
        if orders[0].round == 2:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        carried(made, run, act)
    assert run.status.state == "running"
    assert [each.path for each in runs.under_way(made)] == [run.path]


ORPHAN = """
import fcntl, threading
from fedexperts.deploy.orphans import end_with_parent
end_with_parent()
file = open("turn", "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("held")
file.flush()
waited_for = threading.Lock()
waited_for.acquire(timeout=120)
waited_for.acquire(timeout=120)
"""


def test_a_process_whose_parent_was_killed_lets_go_of_what_it_held(tmp_path: Path) -> None:
    """Though its main thread waits for another, and hears no signal."""
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    parent = subprocess.Popen([sys.executable, "-c", start, ORPHAN], cwd=tmp_path)
    turn, end = tmp_path / "turn", time.monotonic() + 60
    while not (turn.exists() and turn.read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    with open(turn) as file:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.1)
    pytest.fail("it lives on")


def test_a_run_waits_for_flower_until_it_has_a_number_there(made: Deployment) -> None:
    new, handed, over = begun(made, "new"), begun(made, "handed"), begun(made, "over")
    handed.numbered(7)
    over.stands(runs.Status("stopped"))
    assert [run.path for run in runs.waiting(made)] == [new.path]
    handed.begins_anew()
    assert {run.path for run in runs.waiting(made)} == {new.path, handed.path}


def test_a_run_that_the_server_does_not_begin_is_said_to_wait_for_it(made: Deployment) -> None:
    run, heard = begun(made), Presence()
    (made.path / "flower").mkdir()
    heard.note(made.path / "flower")
    assert watch._look_after(made, run) == ""
    os.utime(run.path / "flower.json", (0, 0))
    assert watch._look_after(made, run).startswith("the server has not begun the run in 120 s")


# ---- sight


def test_a_monitor_reads_of_each_site_how_it_stands(made: Deployment) -> None:
    run, heard = begun(made), Presence()
    carried(made, run, lambda *_: None)
    heard.heard("a", 10, 20)
    heard.of("b")
    (made.path / "flower").mkdir()
    heard.note(made.path / "flower")
    made.remove("e")
    now = watch.snapshot(made, run)
    assert (now["state"], now["round"], now["rounds"], now["server"]) == ("finished", 2, 2, True)
    assert 0 < now["accuracy"] <= 100
    states = {name: facts["state"] for name, facts in now["sites"].items()}
    assert [states[name] for name in "abe"] == ["online", "offline", "removed"]
    assert now["sites"]["a"]["bytes_in"] == 10


def test_connected_means_heard_within_the_last_beat(made: Deployment) -> None:
    heard = Presence()
    heard.heard("a", 1, 1)
    heard.of("b").at = time.time() - presence.BEAT - 1
    assert heard.connected() == ["a"]
    assert heard.of("b").said() == "not connected; heard 61 s ago"
    assert heard.of("c").said() == "not heard since the server started"
    (made.path / "flower").mkdir()
    heard.note(made.path / "flower")
    noted = presence.heard_sites(made.path / "flower")
    assert noted is not None
    assert noted["a"].connected


def test_figures_for_prometheus_are_told_on_this_machine(made: Deployment) -> None:
    run, heard = begun(made), Presence()
    heard.heard("a", 10, 20)
    (made.path / "flower").mkdir()
    heard.note(made.path / "flower")
    port = free_port()
    with (
        figures.told(made, port),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer,
    ):
        said = answer.read().decode()
    assert 'fedexperts_site_connected{site="a"} 1\n' in said
    assert 'fedexperts_site_connected{site="b"} 0\n' in said
    assert 'fedexperts_site_bytes_total{site="a",way="out"} 20\n' in said
    assert f'fedexperts_run_rounds{{run="{run.path.name}"}} 2\n' in said
    assert f'fedexperts_run_site_answers{{run="{run.path.name}",site="a"}} 1\n' in said
    assert f'fedexperts_run_site_answers{{run="{run.path.name}",site="b"}} 0\n' in said


def test_stop_without_a_server_stops_a_run_that_would_go_on(made: Deployment) -> None:
    run = begun(made)
    done = CliRunner().invoke(cli, ["deploy", "stop", str(made.path), "digits"])
    assert done.exit_code == 0, done.output
    assert run.status.state == "stopped"
    again = CliRunner().invoke(cli, ["deploy", "stop", str(made.path), "digits"])
    assert "the run digits is over: it has stopped" in " ".join(again.output.split())


# ---- consent


def allowing(site: SiteFolder, line: str) -> None:
    with open(site.path / "site.toml", "a") as file:
        file.write(f"{line}\n")


@pytest.fixture
def site(made: Deployment) -> SiteFolder:
    return SiteFolder.at(made.path, SITES[0])


@pytest.mark.parametrize(
    ("allow", "why"),
    [
        ({"methods": ["fedavg"]}, "method.name = 'pfedmoap' is outside of what this site allows"),
        ({"noise": 0.5}, r"upload.noise = 0 is outside .* \[allow\] .* says 0.5 or more"),
        ({"classes": ["one", "two"]}, "class 'eight' is outside of what this site allows: classes"),
        ({"threads": 1}, "run.threads = 2 is outside of what this site allows: threads"),
    ],
)
def test_an_order_outside_of_what_a_site_allows_is_refused_with_the_reason(
    allow: dict[str, Any], why: str, tmp_path: Path
) -> None:
    given = door.resolve([(experiment(run={"threads": 2}), "test")]).toml()
    with pytest.raises(ValueError, match=why):
        door.site(given, SITES[0], {}, tmp_path, tmp_path / "split", Allowed.read(allow))


def test_threads_end_at_the_sites_cores(tmp_path: Path) -> None:
    given = door.resolve([(experiment(run={"threads": 100_000}), "test")]).toml()
    with pytest.raises(ValueError, match="run.threads = 100000 is outside of what this site"):
        door.site(given, SITES[0], {}, tmp_path, tmp_path / "split")


@pytest.mark.parametrize(
    "table",
    [{"upload": 0}, {"upload": True}, {"noise": -1}, {"noise": float("nan")}, {"threads": "2"}],
)
def test_a_bound_that_is_none_is_an_error(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\[allow\] of site.toml is .*; expected modules"):
        Allowed.read(table)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("upload = 100", "an upload of 1,104 bytes is outside of what this site allows: upload"),
        ('runs = ["another"]', "the run 'digits' is outside of what this site allows: runs under"),
        ("", ""),
    ],
)
def test_a_site_answers_within_what_it_allows_and_says_a_line_a_round(
    site: SiteFolder, line: str, why: str
) -> None:
    allowing(site, line)
    config = door.resolve([(experiment(), "test")])
    job, _ = door.served(config, {})
    sent = job.method.send(job.method.open(job.given), [site.name], 1, 0)[site.name].tensors
    order, said = Order(site.name, 1, "train", sent, most=10_000), list[str]()
    with answering(site, said.append) as path:
        about = {"config": config.toml(), "run": "digits-0011aabb"}
        reply = decode_reply(ask(path, about, encode(order)), 10_000)
    assert why in reply.error
    assert bool(reply.error) == bool(why)
    assert bool(reply.tensors) == (not why)
    assert said[-1].startswith("digits, round 1: train")
    assert " bytes in, " in said[-1]
    assert why in said[-1]
    if not why:
        assert "  context: 2 x 128, float32, 1,024 bytes" in said


def test_a_dry_run_says_what_would_leave_and_keeps_nothing(site: SiteFolder) -> None:
    before = every_file(site.path)
    config = ROOT / "configs" / "deploy" / "digits.toml"
    asked = ["deploy", "site", str(site.path), "--name", site.name, "--dry-run"]
    done = CliRunner().invoke(cli, [*asked, "--config", str(config)], terminal_width=1000)
    assert done.exit_code == 0, done.output
    assert "To whom: localhost:9443, if its certificate is signed by ca.crt" in done.output
    assert "Figures after training: examples, loss, parameters, bytes." in done.output
    assert "float32" in done.output
    assert "as it was trained, without noise" in done.output
    assert every_file(site.path) == before
    allowing(site, 'methods = ["fedavg"]')
    refused = CliRunner().invoke(cli, [*asked, "--config", str(config)])
    assert refused.exit_code == 1
    assert "is outside of what this site allows" in " ".join(refused.output.split())


def test_noise_is_told_before_it_is_added(tmp_path: Path) -> None:
    noisy = door.resolve([(experiment(upload={"clip": 0.5, "noise": 2.0}), "test")])
    job, _, _ = door.site(noisy.toml(), SITES[0], {}, tmp_path, tmp_path / "split")
    assert "with noise of 2 times the clip of 0.5" in consent.leaving("x", job, SITES[0])[-1]


# ---- logs, backups, units


def test_a_log_has_times_is_appended_and_put_aside_when_it_is_long(tmp_path: Path) -> None:
    for _ in range(2):
        Diary(tmp_path / "log").add("\x1b[31mhello\x1b[0m\nforged")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["hello forged"] * 2
    with open(tmp_path / "log", "a") as file:
        file.truncate(LONGEST + 1)
    Diary(tmp_path / "log").add("new")
    assert (tmp_path / "log").read_text().endswith(" new\n")
    assert (tmp_path / "log.1").stat().st_size == LONGEST + 1


def test_a_full_disk_stops_no_log(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "log")
    (tmp_path / "log").symlink_to("/dev/full")
    diary.add("lost")
    assert list(diary.lines) == ["lost"]


def test_a_backup_is_the_folder_without_what_flower_keeps(made: Deployment, tmp_path: Path) -> None:
    run = begun(made)
    carried(made, run, lambda *_: None)
    (made.path / "flower").mkdir()
    (made.path / "flower" / "state.db").write_text("Flower's")
    file, again = tmp_path / "dep.tar.gz", tmp_path / "again"
    assert CliRunner().invoke(cli, ["deploy", "backup", str(made.path), str(file)]).exit_code == 0
    assert CliRunner().invoke(cli, ["deploy", "restore", str(file), str(again)]).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shutil.rmtree(made.path / "flower")
    left_out = {"runs/.turn", "runs/digits/.lock"}
    kept = {name: data for name, data in every_file(made.path).items() if name not in left_out}
    assert every_file(again) == kept
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in again.rglob("*")} == {0}
    RunDir(again / "runs" / "digits").check()
    for asked, why in [
        ((made.path, file), "is there already"),
        ((made.path, made.path / "x.tar.gz"), "lies in .* itself"),
        ((tmp_path, tmp_path.parent / "x.tar.gz"), "is no deployment and no site"),
    ]:
        with pytest.raises(ValueError, match=why):
            backup.backup(*asked)
    with pytest.raises(ValueError, match="restore into a new folder"):
        backup.restore(file, again)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no whole backup"):
        backup.restore(file, tmp_path / "third")
    assert not (tmp_path / "third").exists()


UNITS = sorted((ROOT / "docs" / "deploy").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_without_rights_and_says_a_command_that_is_known(
    unit: Path, tmp_path: Path
) -> None:
    text = unit.read_text()
    for line in ("User=fedexperts", "NoNewPrivileges=yes", "PrivateTmp=yes", "UMask=0077"):
        assert f"\n{line}\n" in text
    words = text.split("ExecStart=/opt/fedexperts/bin/fedexperts ")[1].splitlines()[0].split()
    said = CliRunner().invoke(cli, [*words[:2], "--help"]).output
    assert all(word in said for word in words if word.startswith("--"))
    if "site" in unit.name:
        codes = f"{CODES['removed']} {CODES['version']}"
        assert f"\nRestartPreventExitStatus={codes}\n" in text
    if not shutil.which("systemd-analyze"):
        return
    here = tmp_path / unit.name.replace("@", "@clinic-a")
    here.write_text(text.replace("/opt/fedexperts/bin/fedexperts", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert here.name not in done.stderr, done.stderr


def test_there_are_units_for_both_ends() -> None:
    assert [unit.name for unit in UNITS] == [
        "fedexperts-server.service",
        "fedexperts-site@.service",
    ]


RECIPE = (ROOT / "docs" / "deploy" / "Dockerfile").read_text()


def test_a_container_is_built_from_files_that_are_there_and_are_enough() -> None:
    copied = [line.split()[1:] for line in RECIPE.splitlines() if line.startswith("COPY")]
    names = {name for line in copied for name in line[:-1]}
    assert all((ROOT / name).exists() for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    needed += [*wheel["force-include"], *wheel["packages"]]
    assert {name.split("/")[0] for name in needed} <= names
    installed = RECIPE.split("/build[")[1].split("]")[0]
    assert installed in project["project"]["optional-dependencies"]
    assert "--constraint /build/constraints.txt" in RECIPE


def test_a_container_runs_as_a_user_without_rights_and_its_commands_are_known() -> None:
    number = RECIPE.split("--uid ")[1].split()[0]
    assert RECIPE.index(f"USER {number}\n") < RECIPE.index("ENTRYPOINT")
    assert f"chown -R {number}:{number}" in RECIPE
    assert f"install --directory --owner={number} /data\n" in RECIPE
    assert "FEDEXPERTS_CACHE=/data/" in RECIPE, "a folder that the user may write to"
    typed = RECIPE.replace("\\\n#", "")
    for command in re.findall(r"^#.* fedexperts +(deploy .*)$", typed, re.MULTILINE):
        said = CliRunner().invoke(cli, [*command.split()[:2], "--help"])
        assert said.exit_code == 0
        assert all(word in said.output for word in command.split() if word.startswith("--"))
