"""A real federation on loopback: TLS, keys, processes that are killed, sites that send garbage."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from PIL import Image

pytest.importorskip("flwr")
from conftest import carry_out as simulate
from federated import ROGUE, SITES, Federation, experiment
from test_dual import save_both

from fedexperts import config as door
from fedexperts.client import Client, Job
from fedexperts.config import Config, ConfigError
from fedexperts.deploy import runs
from fedexperts.deploy.carrying import carry_out
from fedexperts.deploy.control import connected
from fedexperts.deploy.folder import Deployment
from fedexperts.deploy.probe import CODES
from fedexperts.deploy.programs import FlowerError
from fedexperts.deploy.site import answering
from fedexperts.deploy.sitefolder import SiteFolder
from fedexperts.engine import InProcess
from fedexperts.masks import fixed
from fedexperts.message import Order, Reply, decode_reply, encode
from fedexperts.method import Upload
from fedexperts.post import ask
from fedexperts.rundir import RunDir
from fedexperts.tensors import unpack

HERE = Path(__file__).parent
KEPT = "gate."  # what must never leave a site


# ---- the folder


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    return Deployment.create(tmp_path / "dep", "localhost", 9443, ["a", "b"])


def test_private_keys_are_readable_by_their_owner_alone(made: Deployment) -> None:
    keys = sorted(made.path.rglob("*.key"))
    assert [key.name for key in keys] == ["ca.key", "server.key", "node.key", "node.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_every_site_has_a_key_of_its_own_and_the_list_names_it(made: Deployment) -> None:
    assert set(made.sites) == {"a", "b"}
    assert made.sites["a"] != made.sites["b"]
    site = SiteFolder.at(made.path, "a")
    assert (site.name, site.server) == ("a", "localhost:9443")
    assert not list((made.path / "sites" / "a").rglob("ca.key"))


def test_a_certificate_is_trusted_by_what_sites_carry_and_by_nobody_elses(
    made: Deployment, tmp_path: Path
) -> None:
    other = Deployment.create(tmp_path / "other", "localhost", 9443, ["a"])

    def trusts(authority: Path) -> bool:
        command = ["openssl", "verify", "-CAfile", str(authority), str(made.path / "server.crt")]
        return subprocess.run(command, capture_output=True).returncode == 0

    assert trusts(made.path / "sites" / "a" / "ca.crt")
    assert not trusts(other.path / "sites" / "a" / "ca.crt")
    before = (made.path / "server.crt").read_bytes()
    made.renew()
    assert (made.path / "server.crt").read_bytes() != before
    assert trusts(made.path / "sites" / "a" / "ca.crt")


def test_a_site_is_added_and_removed(made: Deployment) -> None:
    before = made.sites
    made.add("c")
    assert made.sites.keys() == {"a", "b", "c"}
    made.remove("c")
    assert made.sites == before
    assert not (made.path / "sites" / "c").exists()
    with pytest.raises(ValueError, match="a site a is there already"):
        made.add("a")
    with pytest.raises(ValueError, match="no site x; there are a, b"):
        made.remove("x")
    with pytest.raises(ValueError, match=r"client name 'x/y' cannot name"):
        made.add("x/y")


def test_a_folder_is_never_written_over_or_left_half_made(tmp_path: Path, made: Deployment) -> None:
    with pytest.raises(ValueError, match="is there already"):
        Deployment.create(made.path, "localhost", 1, ["a"])
    with pytest.raises(ValueError, match="cannot name a tensor and a folder"):
        Deployment.create(tmp_path / "new", "localhost", 1, ["a", "b c"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dep", "dep-signing"]


def test_where_the_data_lie_is_remembered_at_the_site(made: Deployment, tmp_path: Path) -> None:
    site = SiteFolder.at(made.path / "sites" / "a", "a")
    assert site.data == {}
    site.point_at(tmp_path)
    assert SiteFolder.at(made.path, "a").data == {"path": str(tmp_path)}
    assert "Where this site's data lie" in (site.path / "site.toml").read_text()
    with pytest.raises(ValueError, match="nothing is there"):
        site.point_at(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is the site a, not b"):
        SiteFolder.at(site.path, "b")


@pytest.mark.parametrize("text", ["server = 3", "[", 'server = "x"\nport = "y"\n[sites]'])
def test_a_damaged_list_is_an_error_and_not_an_empty_one(made: Deployment, text: str) -> None:
    (made.path / "deploy.toml").write_text(text)
    with pytest.raises(ValueError, match=r"deploy.toml"):
        _ = made.sites


def test_a_run_knows_who_may_take_part(made: Deployment) -> None:
    asked = door.resolve([(experiment(), "test")])
    fitted = runs.fitted(asked, made)
    assert fitted.values["engine"]["sites"] == ["a", "b"]
    strange = door.resolve([(experiment(engine={"name": "flower", "sites": ["a", "z"]}), "test")])
    with pytest.raises(
        ConfigError, match=r"z may not take part here; known are a, b, and `fedexperts deploy add"
    ):
        runs.fitted(strange, made)


class Nobody:
    """An engine whose sites never answer."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def clients(self) -> list[str]:
        return sorted(self.names)

    def exchange(self, orders: Sequence[Order]) -> list[Reply]:
        return []


def started(made: Deployment, online: list[str], **engine: Any) -> runs.Run:
    """A run that is carried out with these sites connected, up to the error that ends it."""
    config = door.resolve(
        [(experiment(engine={"name": "flower", "wait": 0.0, "patience": 0.0} | engine), "test")]
    )
    run = runs.Run.create(made, runs.fitted(config, made), "digits")
    with pytest.raises(RuntimeError):
        carry_out(
            made, "digits", lambda: dict.fromkeys(online, 1), lambda around: Nobody(around.names)
        )
    return run


def test_a_run_does_not_begin_without_enough_sites_and_says_who_is_missing(
    made: Deployment,
) -> None:
    run = started(made, ["a"], minimum=2)
    assert run.status.state == "failed"
    assert "1 of 2 sites came within 0 s, and engine.minimum is 2; missing: b" in run.status.why
    assert run.rows() == []


def test_a_run_begins_with_who_is_there_if_they_are_enough(made: Deployment) -> None:
    run = started(made, ["a"], minimum=1)
    assert run.status.why.startswith("round 1: no client is left (a: no reply; b: no reply)")


def test_a_run_that_nobody_knows_is_named(made: Deployment) -> None:
    started(made, ["a"], minimum=2)
    with pytest.raises(ValueError, match="no run other in .*; there are digits"):
        runs.Run.at(made, "other")


# ---- processes


def checkpoint(run: runs.Run) -> bytes:
    folder = RunDir(run.path)
    return (
        run.path / "checkpoints" / f"round-{folder.done():06d}" / "server.safetensors"
    ).read_bytes()


def private(federation: Federation, run: runs.Run) -> dict[str, bytes]:
    """The newest private state of every site."""
    found = {
        site: sorted((federation.path / site / "private" / run.id).rglob("*.private"))
        for site in SITES
    }
    return {site: files[-1].read_bytes() for site, files in found.items()}


def logged(run: runs.Run) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in RunDir(run.path).rows("rounds.jsonl")
    ]


ROUNDS = {"rounds": 2, "evaluate_every": 2}


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> runs.Run:
    """A run in which nothing happened."""
    run = federation.submit("undisturbed", run=ROUNDS)
    assert federation.finished("undisturbed") == 0, federation.words()
    return run


@pytest.mark.slow
def test_a_federation_ends_where_one_process_does(
    federation: Federation, undisturbed: runs.Run, tmp_path: Path
) -> None:
    one_by_one = {"together": 1}  # as sites train, each on its own machine
    config = door.resolve([(experiment(run=ROUNDS, engine=one_by_one), "test")])
    alone = simulate(config, tmp_path / "alone")
    here = alone.path / "checkpoints" / "round-000002" / "server.safetensors"
    assert checkpoint(undisturbed) == here.read_bytes()
    for site, state in private(federation, undisturbed).items():
        assert state == sorted((alone.path / "private" / site).glob("*.private"))[-1].read_bytes()
    told = RunDir(undisturbed.path).rows("clients.jsonl")
    rows = alone.rows("clients.jsonl")
    confusion = [row.pop("test_confusion", None) for row in rows]
    assert any(confusion), "a simulation tells it; sites do not, as nobody asked them"
    assert rows == told


@pytest.fixture
def allowed(federation: Federation, tmp_path: Path) -> Iterator[Path]:
    """A folder whose models runs may name at every site, until the test is over."""
    before = {}
    for site in SITES:
        file = federation.path / site / "site.toml"
        before[file] = file.read_text()
        said = tomlkit.parse(before[file])
        said.setdefault("allow", tomlkit.table())["paths"] = [str(tmp_path)]
        file.write_text(tomlkit.dumps(said))
    yield tmp_path
    for file, text in before.items():
        file.write_text(text)


@pytest.mark.slow
def test_a_federation_behind_a_model_for_photographs_ends_where_one_process_does(
    federation: Federation, allowed: Path
) -> None:
    classifier, encoder = save_both(allowed)
    model = {"name": "prompted-dual", "classifier": classifier, "encoder": encoder, "context": 9}
    sections: dict[str, Any] = {"model": model, "run": {"rounds": 1}}
    run = federation.submit("photographs", **sections)
    assert federation.finished("photographs") == 0, federation.words()
    config = door.resolve([(experiment(**sections, engine={"together": 1}), "test")])
    alone = simulate(config, allowed / "alone")
    here = alone.path / "checkpoints" / "round-000001" / "server.safetensors"
    assert checkpoint(run) == here.read_bytes()


@pytest.mark.slow
def test_the_gate_is_in_no_message(federation: Federation, undisturbed: runs.Run) -> None:
    """Every byte that the server ever stored of messages, searched for the private tensors' names
    and values.
    """
    stored = b"".join(
        path.read_bytes() for path in (federation.folder / "flower").glob("state.db*")
    )
    # uploads are seen there: what is not, was not sent
    assert stored.count(b'{"context"') >= 2 * len(SITES)
    stored += b"".join(path.read_bytes() for path in undisturbed.path.rglob("*.safetensors"))
    for state in private(federation, undisturbed).values():
        gate = {
            name: value
            for name, value in unpack(state[32:]).items()
            if KEPT in name and value.numel() > 8
        }
        assert gate
        for name, value in gate.items():
            assert name.encode() not in stored
            assert value.numpy().tobytes()[:64] not in stored


@pytest.mark.slow
def test_under_secure_sums_no_upload_is_in_any_message_and_the_sum_is_the_plain_one(
    federation: Federation, tmp_path: Path
) -> None:
    """Every byte that the server ever stored, searched for what each site would have sent."""
    pytest.importorskip("Crypto", reason='needs pip install "fedexperts[privacy]"')
    plain: dict[str, Any] = {"method": {"name": "fedavg"}, "run": {"rounds": 1}}
    run = federation.submit("hidden", **plain, upload={"secure": True})
    assert federation.finished("hidden") == 0, federation.words()
    config = door.resolve([(experiment(**plain, engine={"together": 1}), "test")])
    job, sites = door.build(config, tmp_path / "private")
    sent = job.method.publish(job.method.open(job.given))
    orders = [Order(site, 1, "train", sent) for site in SITES]
    uploads = [
        Upload(reply.client, reply.tensors, reply.examples)
        for reply in InProcess(job, sites, 1).exchange(orders)
    ]
    mean = unpack(checkpoint(run))["global.context"]
    plain_mean = job.method.merge(job.given, sent, uploads, 1)["global.context"]
    assert (mean - plain_mean).abs().max() <= 2**-24
    stored = b"".join(
        path.read_bytes() for path in (federation.folder / "flower").glob("state.db*")
    )
    assert mean.numpy().tobytes() in stored  # what everybody may know is seen there
    for upload in uploads:
        number = fixed(upload.tensors, upload.examples, len(SITES))["context"]
        assert upload.tensors["context"].numpy().tobytes() not in stored
        assert number.numpy().tobytes() not in stored


@pytest.fixture(scope="module")
def lied_to(federation: Federation) -> Iterator[runs.Run]:
    """A run that is under way, one of whose sites sends garbage."""
    rogue = [sys.executable, str(HERE / "rogue.py"), str(federation.path / ROGUE), ROGUE]
    federation.start(ROGUE, *rogue)
    federation.until(lambda: "is connected" in federation.said(ROGUE), "the rogue")
    yield federation.submit(
        "rogue",
        data={"name": "digits-scanners", "clients": 4, "scanners": 4, "shots": 2},
        run={"rounds": 6, "evaluate_every": 6},
        engine={"sites": ["as-scanned-0", "inverted-1", ROGUE], "deadline": 30.0},
    )
    federation.kill(ROGUE)


@pytest.mark.slow
def test_a_site_that_is_killed_comes_back_with_what_it_kept(federation: Federation) -> None:
    """That it reads what it kept is seen by damaging it for a while: a site that began afresh would
    not mind.
    """
    run = federation.submit(
        "killed-site", run={"rounds": 500, "evaluate_every": 500}, engine={"deadline": 40.0}
    )

    def refused(why: str) -> bool:
        return any(why in row["refused"].get("faint-2", "") for row in run.rows())

    federation.until(lambda: len(run.rows()) >= 1, "round 1")
    federation.kill("faint-2")
    kept = sorted((federation.path / "faint-2" / "private" / run.id).rglob("*.private"))[-1]
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    federation.until(
        lambda: refused("no reply within 40 s") or refused("not connected"),
        "a round without the site",
    )
    federation.join("faint-2")
    federation.until(
        lambda: refused("the private state of client faint-2 is damaged"),
        "the site that was killed",
    )
    kept.write_bytes(whole)
    damaged = max(row["round"] for row in run.rows() if row["refused"])
    federation.until(
        lambda: any(row["round"] > damaged and not row["refused"] for row in run.rows()),
        "a whole round",
    )
    federation.do("stop", str(federation.folder), "killed-site")
    # it did not finish, and the terminal that watched it says so
    assert federation.finished("killed-site") == 1
    rows = run.rows()
    assert all(row["refused"].keys() <= {"faint-2"} for row in rows)
    assert len(rows[-1]["trained"]["faint-2"]["received"]) == 2


@pytest.mark.slow
def test_garbage_and_slowness_cost_a_site_its_round_and_nobody_elses(
    federation: Federation, lied_to: runs.Run
) -> None:
    """The site answers, round by round: a wrong shape, NaN, too much, noise, too late; and at last
    as it should.
    """
    assert federation.finished("rogue") == 0, federation.words()
    rows = lied_to.rows()
    assert all(set(row["trained"]) >= {"as-scanned-0", "inverted-1"} for row in rows)
    why = [row["refused"].get(ROGUE, "") for row in rows]
    wanted = [
        "expected is",
        "NaN or infinite",
        "at most",
        "begins with a line of JSON",
        "no reply within 30 s",
        "",
    ]
    assert [want in reason for want, reason in zip(wanted, why, strict=True)] == [True] * 6, why
    assert why[-1] == ""


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_to_the_same_bits(
    federation: Federation, undisturbed: runs.Run
) -> None:
    """At the worst moment for a site: it has an order, and its receipt is on the way."""
    federation.kill("server")
    federation.serve_until("confirm-message-received")
    run = federation.submit("killed-server", run=ROUNDS)
    federation.until(lambda: len(run.rows()) >= 1, "round 1")
    federation.dies()
    assert RunDir(run.path).done() in (1, 2)
    federation.serve()
    assert federation.finished("killed-server") == 0, federation.words()
    assert "The run killed-server was under way; it goes on." in federation.said("server")
    assert checkpoint(run) == checkpoint(undisturbed)
    assert private(federation, run) == private(federation, undisturbed)
    assert logged(run) == logged(undisturbed)


@pytest.mark.slow
def test_runs_that_begin_while_sites_are_listed_and_added_disturb_nobody(
    federation: Federation,
) -> None:
    """Each a terminal of its own, all at once."""
    folder = str(federation.folder)
    new = ["new-1", "new-2", "new-3"]
    alone = {"sites": ["as-scanned-0"]}
    for name in ("at-once", "at-once-2"):
        federation.start_run("at-once", name, run={"rounds": 1}, engine=alone)
    with ThreadPoolExecutor() as pool:
        added = [pool.submit(federation.do, "add", folder, name) for name in new]
        listed = [pool.submit(federation.do, "sites", folder) for _ in range(3)]
        assert ["Copy " in each.result() for each in added] == [True] * 3
        assert ["as-scanned-0  connected" in each.result() for each in listed] == [True] * 3
    assert [federation.finished(name) for name in ("at-once", "at-once-2")] == [0, 0]
    known = Deployment.at(federation.folder)
    assert {run.path.name for run in runs.all_runs(known)} >= {"at-once", "at-once-2"}
    federation.until(lambda: "new-1, new-2, new-3" in federation.said("server"), "the new sites")
    for name in new:
        federation.do("remove", folder, name)
    assert "Traceback" not in federation.said("server")


@pytest.mark.slow
def test_an_unknown_key_is_refused(federation: Federation, tmp_path: Path) -> None:
    other = Deployment.create(tmp_path / "other", "localhost", federation.port, ["stranger"])
    site = other.path / "sites" / "stranger"
    (site / "ca.crt").write_bytes((federation.folder / "ca.crt").read_bytes())
    command = federation.command("site", str(site), "--name", "stranger", "--patience", "0")
    done = subprocess.run(
        command, env=federation.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == CODES["key"]
    assert "does not know this site's key" in " ".join(done.stderr.split())


# ---- the document


def blocks(title: str) -> list[str]:
    """What stands to be typed under a title of docs/deploy.md."""
    text = (HERE.parent / "docs" / "deploy.md").read_text()
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return section.split("```")[1::2]


class Terminals:
    """A reader's terminals, in a folder: what is typed in each, and what it shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, subprocess.Popen[bytes]] = {}

    def typed(self, name: str, words: str) -> "subprocess.Popen[bytes]":
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with open(self.folder / name, "wb") as shown:
            self.open[name] = subprocess.Popen(
                ["bash", "-c", f"{words}\nwait"],
                cwd=self.folder,
                env=dict(os.environ) | {"PATH": programs},
                stdout=shown,
                stderr=shown,
                start_new_session=True,
            )
        return self.open[name]

    def shows(self, name: str) -> str:
        return (self.folder / name).read_text()

    def until(self, name: str, word: str, count: int = 1, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while self.shows(name).count(word) < count:
            assert time.monotonic() < end, f"no {word!r} in {name}: {self.all()}"
            time.sleep(0.2)

    def all(self) -> str:
        logs = [self.folder / name for name in self.open]
        logs += self.folder.glob("dep/**/flower/*.log")
        return "\n".join(f"---- {log}\n{log.read_text()[-3000:]}" for log in logs)

    def close(self) -> None:
        for terminal in self.open.values():
            with suppress(ProcessLookupError):
                os.killpg(terminal.pid, signal.SIGKILL)
            terminal.wait()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    made = Terminals(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_the_walk_of_the_document_leads_where_it_says(terminals: Terminals) -> None:
    """Word for word, each terminal a process."""
    server, sites, operator, again = blocks("First on one machine, in three terminals")
    (terminals.folder / "configs").symlink_to(HERE.parent / "configs")
    first = terminals.typed("server", server)
    terminals.until("server", "It listens on 127.0.0.1, port 9443")
    terminals.typed("sites", sites)
    terminals.until("sites", "is connected.", 3)
    walk = terminals.typed("operator", operator)
    terminals.until("operator", "round 1 of 8: 3 of 3 sites")
    os.killpg(first.pid, signal.SIGKILL)
    terminals.until("operator", "the server is gone, and the run goes on by itself")
    terminals.typed("again", again)
    terminals.until("again", "The run digits was under way; it goes on.")
    for round in range(2, 9):
        terminals.until("operator", f"round {round} of 8: 3 of 3 sites")
    terminals.until("operator", "Report: ")
    assert walk.wait(60) == 0, terminals.all()
    assert (terminals.folder / "dep" / "runs" / "digits" / "report.html").exists()


# ---- a site's own images


def pictures(folder: Path, counts: dict[str, int]) -> Path:
    """So many images of each class, all of them different."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (40 * label, 10 * i, 7)).save(folder / name / f"{i}.png")
    return folder


def own(**data: Any) -> door.Config:
    """An experiment whose data lie at the sites."""
    return door.resolve(
        [
            (
                {
                    "name": "own",
                    "data": {"name": "image-folders", "side": 32, "classes": ["cat", "dog"]} | data,
                    "model": {"name": "linear-probe"},
                    "method": {"name": "fedavg"},
                },
                "test",
            )
        ]
    )


def at_site(config: Config, name: str, home: Path, **data: object) -> tuple[Job, Client, str]:
    """What a site with these data makes of a run, and what changed since it first did."""
    return door.site(config.toml(), name, data, home / "private", home / "split")


def test_a_site_trains_on_its_own_folder_under_its_own_name(tmp_path: Path) -> None:
    place = pictures(tmp_path / "images", {"cat": 6, "dog": 4})
    job, client, _ = at_site(own(), "clinic-a", tmp_path, path=str(place))
    assert client.name == "clinic-a"
    assert [len(client.train), len(client.valid), len(client.test)] == [5, 2, 3]
    assert job.model.classes == ("cat", "dog")


def test_pictures_that_change_while_a_site_runs_are_named_at_both_ends(
    made: Deployment, tmp_path: Path
) -> None:
    """Without a restart; and pictures that are as they were cost no second look."""
    site, config = SiteFolder.at(made.path, "a"), own()
    place, said = pictures(tmp_path / "images", {"cat": 6, "dog": 4}), list[str]()
    site.point_at(place)
    job, _ = door.served(config, {})
    sent = job.method.send(job.method.open(job.given), ["a"], 1, 0)["a"].tensors
    about = {"config": config.toml(), "run": "own-0011aabb"}

    def told(round: int) -> dict[str, Any]:
        order = encode(Order("a", round, "train", sent, most=100_000))
        return dict(decode_reply(ask(path, about, order), 100_000).facts)

    with answering(site, said.append) as path:
        assert "data_new" not in told(1)
        assert "data_new" not in told(2)
        assert "\n".join(said).count("may send to the server") == 1, "it was built once"
        Image.new("RGB", (32, 32), (9, 99, 9)).save(place / "dog" / "new.png")
        (place / "cat" / "0.png").unlink()
        facts = told(3)
    assert (facts["data_new"], facts["data_gone"]) == (1, 1)
    changed = [line for line in said if line.startswith("The data changed since they were split")]
    assert len(changed) == 1
    assert "1 new" in changed[0]
    assert "cat/0.png" in changed[0]


def test_what_stands_in_the_sites_file_is_laid_over_the_runs_data(tmp_path: Path) -> None:
    place = pictures(tmp_path / "images", {"cat": 6, "dog": 4})
    _, client, _ = at_site(own(reserve=3), "a", tmp_path, path=str(place), valid=0.0)
    assert [len(client.train), len(client.valid), len(client.test)] == [
        7,
        0,
        3,
    ]  # and no image for the server's reserve


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({"cat": 4}, "'dog': among data.classes, but there is no such folder"),
        ({"cat": 4, "dog": 4, "wolf": 4}, "'wolf': not among data.classes"),
    ],
)
def test_a_missing_or_extra_class_is_an_error_of_that_site(
    tmp_path: Path, counts: dict[str, int], why: str
) -> None:
    place = pictures(tmp_path / "images", counts)
    with pytest.raises(ValueError, match=why):
        at_site(own(), "a", tmp_path, path=str(place))


def test_a_site_without_a_path_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.path is missing: use .* --data FOLDER at a site"):
        at_site(own(path="/of/the/operator"), "a", tmp_path)


def test_the_server_has_the_classes_and_nobodys_images(tmp_path: Path) -> None:
    job, _ = door.served(own(path=str(tmp_path / "of-the-operator")), {})
    assert (job.model.classes, len(job.reserve), job.exam) == (("cat", "dog"), 0, {})
    with pytest.raises(
        ValueError, match=r"data\.classes is missing: sites and server must number them alike"
    ):
        door.served(own(classes=[]), {})


def test_data_in_one_place_are_for_simulations_alone() -> None:
    with pytest.raises(ValueError, match="run.pooled = true gives every client the data of all"):
        door.served(own().having({"run.pooled": True}, "test"), {})


def test_a_server_that_never_ran_is_said_not_to_run(made: Deployment) -> None:
    """Flower's command line would make a config of its own there, and look for a server in it."""
    with pytest.raises(
        FlowerError, match="the server is not running: start it by `fedexperts deploy server"
    ):
        connected(made)
    assert not (made.path / "flower" / "config.toml").exists()


def test_a_run_of_sites_that_hold_the_data_begins_on_a_server_that_has_none(
    made: Deployment,
) -> None:
    run = runs.Run.create(made, runs.fitted(own(path="/of/the/operator"), made), "own")
    about = json.loads((run.path / "environment.json").read_bytes())
    assert (about["classes"], about["side"]) == (["cat", "dog"], 32)
    assert run.status.state == "submitted"
    run.stands(runs.Status("failed", 3, why="the server is gone"))
    run.begins_anew()
    assert (run.status.state, run.status.why) == ("submitted", "")


def test_the_servers_own_folder_is_its_reserve(tmp_path: Path) -> None:
    place = pictures(tmp_path / "reserve", {"cat": 2, "dog": 3})
    job, _ = door.served(own(), {"path": str(place)})
    assert sorted(job.reserve.y.tolist()) == [0, 0, 1, 1, 1]
