"""Whoever takes the server runs no code at a site: not by an app, and not by what a run's config
names there.
"""

import base64
import hashlib
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

pytest.importorskip("flwr")
from federated import SITES, Federation, experiment
from flwr.cli.install import install_from_fab
from flwr.supercore.fab import Fab
from flwr.supercore.utils import request_download_link
from flwr.superlink.servicer.control.control_handlers import _format_verification
from flwr.supernode.start_client_internal import _verify_fab

from fedexperts import config as door
from fedexperts.cli import app as cli
from fedexperts.client import answer
from fedexperts.config import Allowed, deployed, names
from fedexperts.deploy import control, joining, processes
from fedexperts.deploy.folder import Deployment, signing_key_of
from fedexperts.deploy.hub import hub
from fedexperts.deploy.joining import Visit
from fedexperts.deploy.programs import free_port, program
from fedexperts.deploy.signing import NAME, SIGNER, Signed, built, public_half, read_key, trusting
from fedexperts.deploy.sitefolder import SiteFolder
from fedexperts.message import Order

# ---- the app and its signature, in the eyes of Flower at a site


KEY = Ed25519PrivateKey.generate()
HONEST = Signed.by(KEY, built())


def runs_at_a_site(app: bytes, verifications: dict[str, str]) -> bool:
    """What a site's Flower decides, by its own functions, of an app and what came with it."""
    trusted = yaml.safe_load(trusting(public_half(KEY)))
    return bool(verifications.get("valid_license")) and _verify_fab(
        Fab("", app, verifications), trusted
    )


def told(signed: Signed, **changed: Any) -> dict[str, str]:
    return _format_verification([signed.told() | changed])  # type: ignore[list-item]


def test_a_site_runs_the_app_that_the_key_signed() -> None:
    assert runs_at_a_site(HONEST.app, told(HONEST))


def changed_byte(signed: Signed) -> Signed:
    place = signed.app.index(b"courier")
    return replace(signed, app=signed.app[:place] + b"C" + signed.app[place + 1 :])


FOREIGN = Ed25519PrivateKey.generate()
LIES: dict[str, tuple[Signed, dict[str, Any]]] = {
    "a changed byte": (changed_byte(HONEST), {}),
    "a byte more": (replace(HONEST, app=HONEST.app + b" "), {}),
    "another app under this signature": (replace(HONEST, app=b"another"), {}),
    "signed by another key": (Signed.by(FOREIGN, built()), {}),
    "another time": (replace(HONEST, at=HONEST.at + 1), {}),
    "a signature of nothing": (replace(HONEST, signature=bytes(64)), {}),
    "a short signature": (replace(HONEST, signature=b""), {}),
    "another signer": (HONEST, {"public_key_id": "somebody"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_runs_no_other_app_and_believes_no_lie_about_the_signature(lie: str) -> None:
    signed, changed = LIES[lie]
    assert not runs_at_a_site(signed.app, told(signed, **changed))
    assert not (signed.holds(public_half(KEY)) and not changed)  # and the server sees it, too


def test_a_site_runs_no_app_without_a_signature() -> None:
    assert not runs_at_a_site(HONEST.app, {})
    assert not runs_at_a_site(HONEST.app, {"valid_license": "Valid"})


@pytest.mark.parametrize(
    ("said", "words"), [("{}", "KeyError"), ('{"signed_at": -1}', "OverflowError"), ("x", "JSON")]
)
def test_a_site_says_what_it_refused_though_flower_falls_over_the_signature(
    said: str, words: str, tmp_path: Path
) -> None:
    trusted = yaml.safe_load(trusting(public_half(KEY)))
    code = (
        "from flwr.supercore.fab import Fab; from flwr.supernode.start_client_internal import"
        " _verify_fab\n"
    )
    code += f"_verify_fab(Fab('', b'', {{{SIGNER!r}: {said!r}}}), {trusted})"
    refused: list[str] = []
    site = Deployment.create(tmp_path / "dep", "localhost", free_port(), ["a"]).path
    visit = Visit(SiteFolder.at(site, "a"), 60, refused.append)
    with program([sys.executable, "-c", code], tmp_path / "log") as flower:
        visit.stay(flower)
    assert sum("refused to run what the server sent" in line for line in refused) == 1
    assert flower.process.returncode == 1
    assert words in flower.words.last()


def test_the_app_is_one_that_flower_can_install_and_the_same_bytes_each_time(
    tmp_path: Path,
) -> None:
    assert built() == built()
    there = install_from_fab(built(), tmp_path, skip_prompt=True)
    assert "courier" in (there / "fedexperts_app" / "site.py").read_text()
    name, version = NAME.removeprefix("@fedexperts/").split("==")
    assert there.name == f"fedexperts.{name}.{version}.{hashlib.sha256(built()).hexdigest()[:8]}"


def test_flower_gets_app_and_signature_from_the_hub() -> None:
    name, version = NAME.split("==")
    with hub(lambda: HONEST) as address:
        link, verifications, _ = request_download_link(
            name, version, f"{address}/hub/fetch-fab", "fab_url"
        )
        app = httpx.get(link).content
    assert verifications is not None
    assert runs_at_a_site(app, _format_verification(verifications))


def test_the_hub_says_why_it_has_no_app() -> None:
    def damaged() -> Signed:
        raise ValueError("app.json is damaged")

    with hub(damaged) as address, pytest.raises(ValueError, match="app.json is damaged"):
        request_download_link("a", None, f"{address}/hub/fetch-fab", "fab_url")


# ---- the folder


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    return Deployment.create(tmp_path / "dep", "localhost", 9443, ["a", "b"])


def key_of(made: Deployment) -> Path:
    return signing_key_of(made.path)


def test_the_signing_key_lies_apart_and_nowhere_in_the_servers_folder(made: Deployment) -> None:
    file = key_of(made)
    assert not file.is_relative_to(made.path)
    assert [stat.S_IMODE(place.stat().st_mode) for place in (file.parent, file)] == [0o700, 0o600]
    secret = [read_key(file).private_bytes_raw(), file.read_bytes().splitlines()[2]]
    for other in filter(Path.is_file, made.path.rglob("*")):
        data = other.read_bytes()
        assert not [form for form in (*secret, base64.b64encode(secret[0])) if form in data]


def test_each_site_carries_the_public_key_and_the_server_works_without_the_signing_key(
    made: Deployment,
) -> None:
    public = public_half(read_key(key_of(made)))
    shutil.rmtree(key_of(made).parent)
    made.add("c")
    assert {SiteFolder.at(made.path, name).signer for name in "abc"} == {public}
    assert made.signed().holds(public)


def test_a_new_version_is_signed_by_the_key_that_sites_trust_and_by_no_other(
    made: Deployment, tmp_path: Path
) -> None:
    before, file = made.signed(), made.path / "app" / "app.json"
    file.write_bytes(Signed.by(read_key(key_of(made)), b"the app of an older version").written())
    with pytest.raises(
        ValueError,
        match=r"app.json is the app of another version of fedexperts: type `fedexperts dep",
    ):
        made.signed()
    made.sign(key_of(made))
    assert made.signed().app == before.app
    other = Deployment.create(tmp_path / "other", "localhost", 9443, ["a"])
    with pytest.raises(ValueError, match=r"its public half is not .*app.pub, which sites trust"):
        made.sign(key_of(other))
    with pytest.raises(
        ValueError, match=r"nowhere: no such file; expected the signing key that `init` wrote"
    ):
        made.sign(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"node.key: a key of another kind"):
        made.sign(made.path / "sites" / "a" / "node.key")


@pytest.mark.parametrize("spoil", [b"", b"{}", b'{"app": 3, "at": 0, "signature": ""}', b"[]"])
def test_a_damaged_app_is_named_with_what_to_type(made: Deployment, spoil: bytes) -> None:
    (made.path / "app" / "app.json").write_bytes(spoil)
    with pytest.raises(
        ValueError, match=r"app.json is damaged: .* type `fedexperts deploy app .*dep --key"
    ):
        made.signed()


def test_an_app_that_sites_would_refuse_is_not_served(made: Deployment) -> None:
    (made.path / "app" / "app.json").write_bytes(Signed.by(FOREIGN, built()).written())
    with pytest.raises(
        ValueError, match=r"not signed by the key that sites trust, so that none would run it: type"
    ):
        processes.serve(made, None, print)


def test_a_deployment_of_an_older_version_says_what_to_type_and_that_mends_it(
    made: Deployment,
) -> None:
    """Version 0.1 signed nothing. The site b has been carried away, a's folder still lies here."""
    shutil.rmtree(key_of(made).parent)
    shutil.rmtree(made.path / "app")
    shutil.rmtree(made.path / "sites" / "b")
    (made.path / "sites" / "a" / "app.pub").unlink()
    for refused in (lambda: processes.serve(made, None, print), lambda: made.add("c")):
        with pytest.raises(
            ValueError,
            match="made by a version that did not sign its app: type `fedexperts deploy app",
        ):
            refused()
    with pytest.raises(
        ValueError, match=r"app.pub is missing, by which a site knows the app .* carry it here"
    ):
        _ = SiteFolder.at(made.path, "a").signer
    done = CliRunner().invoke(cli, ["deploy", "app", str(made.path), "--key", str(key_of(made))])
    assert done.exit_code == 0
    assert "into the folder of site b" in " ".join(done.output.split())
    assert "site a" not in done.output
    assert made.signed().holds(SiteFolder.at(made.path, "a").signer)


@pytest.mark.parametrize("line", ["", "{}", "ecdsa-sha2-nistp384 AAAA", "ssh-ed25519 AAAA", "\x00"])
def test_a_site_without_a_whole_public_key_does_not_start(made: Deployment, line: str) -> None:
    """An empty list of trusted keys would let Flower run any app."""
    site = SiteFolder.at(made.path, "a")
    (site.path / "app.pub").write_text(line)
    with pytest.raises(ValueError, match=r"app.pub holds no public key of the app"):
        joining.join(site, 0, print)


def test_init_says_where_the_signing_key_is_and_to_keep_it_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "dep"
    done = CliRunner().invoke(
        cli, ["deploy", "init", str(folder), "--server", "localhost", "--sites", "a"]
    )
    said = " ".join(done.output.split())
    assert f"Move {signing_key_of(folder)} to another machine and delete it here" in said


# ---- what a run's config may name at a site


def asked(**sections: Any) -> str:
    """A run's config as it comes to a site, with sections laid over it that no operator's
    `fedexperts` checked.
    """
    import tomlkit

    plain = door.resolve([(experiment(), "test")]).nested()
    return tomlkit.dumps(
        {key: plain[key] | sections.pop(key, {}) for key in plain if isinstance(plain[key], dict)}
        | {"name": "x"}
        | sections
    )


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module that is installed at the site; whether it has been imported."""
    (tmp_path / "trap_module.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n"
    )
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return (tmp_path / "sprung").exists


@pytest.mark.parametrize("section", ["method", "model", "data", "engine", "gate", "learning"])
def test_a_run_cannot_name_code_of_the_site(
    section: str, trap: Callable[[], bool], tmp_path: Path
) -> None:
    given = {section: {"name": "trap_module:Trap"}}
    with pytest.raises(
        ValueError,
        match=rf'{section}.name .* names code that .* add modules = \["trap_module"\] to',
    ):
        door.site(asked(**given), "a", {}, tmp_path, tmp_path / "split")
    assert not trap()


def test_a_run_cannot_name_code_among_values_to_try(
    trap: Callable[[], bool], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="sites do not tune"):
        door.site(
            asked(tune={"method.name": ["trap_module:Trap"]}), "a", {}, tmp_path, tmp_path / "split"
        )
    assert not trap()


def test_code_that_the_site_allows_by_name_is_run(trap: Callable[[], bool], tmp_path: Path) -> None:
    given = asked(method={"name": "trap_module:Trap"})
    for other in ("trap", "trap_module_2", "trap_module.inner"):
        with pytest.raises(ValueError, match="names code"):
            door.site(given, "a", {}, tmp_path, tmp_path / "split", Allowed(modules=(other,)))
    assert not trap()
    with pytest.raises(ValueError, match="has no attribute 'Trap'"):
        door.site(given, "a", {}, tmp_path, tmp_path / "split", Allowed(modules=("trap_module",)))
    assert trap()


PATHS: dict[str, dict[str, dict[str, Any]]] = {
    "a split": {"data": {"name": "image-folders", "split": "/etc/hostname", "classes": ["a", "b"]}},
    "a table's root": {"data": {"name": "table", "root": "/", "classes": ["a", "b"]}},
    "a copy of a set": {"data": {"name": "hub", "dataset": "flowers102", "path": "/srv"}},
    "a CLIP": {"model": {"name": "prompted-clip", "clip": "/srv/clip"}},
    "a CLIP at home": {"model": {"name": "linear-probe", "clip": "~/clip"}},
    "a CLIP above": {"model": {"name": "linear-probe", "clip": "../clip"}},
    "a text model": {"model": {"name": "transformer", "model": "/srv/bert"}},
    "a gate": {"mixture": {"experts": 2}, "gate": {"name": "linear-probe", "clip": "/srv/clip"}},
}


@pytest.mark.parametrize("what", PATHS)
def test_a_run_cannot_name_a_place_of_the_site(what: str, tmp_path: Path) -> None:
    config = door.resolve([(experiment(), "test"), (PATHS[what], "the run")])
    with pytest.raises(
        ValueError,
        match=r"is a path on the site's machine that its site.toml does not allow: leave",
    ):
        door.site(config.toml(), "a", {}, tmp_path, tmp_path / "split")


def test_a_place_that_the_site_allows_is_read_and_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "models" / "out").symlink_to("/srv")

    def read(place: str) -> None:
        given = door.resolve(
            [(experiment(model={"name": "linear-probe", "clip": str(tmp_path / place)}), "test")]
        )
        door.site(
            given.toml(),
            SITES[0],
            {},
            tmp_path,
            tmp_path / "split",
            Allowed(paths=(str(tmp_path / "models"),)),
        )

    with pytest.raises(ValueError, match="a learned context needs a text encoder"):
        read("models/clip")
    for outside in ("models/../clip", "models/out", "models-2"):
        with pytest.raises(ValueError, match="is a path on the site's machine"):
            read(outside)


def test_no_shipped_experiment_needs_a_permission() -> None:
    files = [door.shipped_folder() / path.relative_to("configs") for path, _ in door.shipped()]
    for config in map(door.load, files):
        deployed._check_code(config.toml().split("[tune]")[0], Allowed())  # a run at sites has none
        if config.values["data"]["name"] == "simulated-folders":
            continue  # pictures that lie in one place: never at sites
        own = {"path": "a site's own"} if hasattr(config.section("data"), "server") else {}
        deployed._check_paths(config, own, Allowed())
    assert len(files) > 20


def test_every_option_of_text_that_could_be_a_place_is_looked_at() -> None:
    """Who adds such an option says here whether it is one."""
    import dataclasses
    from typing import get_type_hints

    words = {
        "dataset",
        "words",
        "path_column",
        "text_column",
        "label_column",
        "site_column",
        "part_column",
        "site",
    }
    # of engines, which no site opens; and lists of names
    words |= {"cluster", "experts", "classes", "sites", "kinds", "clients"}
    for section, named in names.NAMED.items():
        for kind in named.values():
            for field in dataclasses.fields(kind):
                if "str" in str(get_type_hints(kind)[field.name]) and "Literal" not in str(
                    get_type_hints(kind)
                ):
                    assert field.name in words or (section, field.name) in names.PATHS, (
                        section,
                        field.name,
                    )


def test_a_run_goes_on_by_the_method_with_which_it_began(tmp_path: Path) -> None:
    """A model that is trained alone stays at its site. Fed-MoE would go on with it, and upload
    it.
    """

    def ask(method: str, run: str, **sections: Any) -> None:
        given = door.resolve(
            [(experiment(), "test"), ({"method": {"name": method}, **sections}, "the run")]
        )
        door.site(given.toml(), SITES[0], {}, tmp_path / run, tmp_path / "split")

    model = {"name": "compact-cnn", "width": 2}
    ask("alone", "one", model=model)
    ask("alone", "one", model=model, learning={"rate": 0.5})
    with pytest.raises(
        ValueError,
        match=r"the run one began at this site with another method.name, so tensors",
    ):
        ask("fedmoe", "one", model=model)
    with pytest.raises(ValueError, match=r"with another \[mixture\]"):
        ask("alone", "one", model=model, mixture={"experts": 2})
    with pytest.raises(ValueError, match=r"with another model.width"):
        ask("alone", "one", model=model | {"width": 3})
    ask("fedavg", "two", model=model)


@pytest.mark.parametrize(
    "table", [{"module": ["x"]}, {"modules": "x"}, {"paths": [3]}, {"figures": ["all"]}]
)
def test_a_misspelt_permission_is_an_error(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\[allow\] of site.toml is .*; expected modules"):
        Allowed.read(table)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("allow", [(), ("confusion",)])
def test_a_site_says_its_classes_only_if_it_is_asked_and_allows_it(
    ask: bool, allow: tuple[str, ...], tmp_path: Path
) -> None:
    given = asked(run={"confusion": ask, "rounds": 0})
    allowed = Allowed(figures=allow)
    job, client, _ = door.site(given, SITES[0], {}, tmp_path, tmp_path / "split", allowed)
    payload = job.method.publish(job.method.open(job.given))
    (reply,) = answer(job, [client], [Order(client.name, 0, "predict", payload)])
    assert not reply.error
    assert ("test_confusion" in reply.facts) == (ask and bool(allow))
    assert "test_bin_examples" in reply.facts


def test_a_sites_permissions_are_those_of_its_file(made: Deployment) -> None:
    site = SiteFolder.at(made.path, "a")
    assert Allowed.read(site.allowed) == Allowed()
    with open(site.path / "site.toml", "a") as file:
        file.write('modules = ["our_methods"]\n')
    assert Allowed.read(site.allowed) == Allowed(modules=("our_methods",))


# ---- a captured server, on loopback


EVIL = """
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    sent = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    said = [str(reply.error) for reply in grid.send_and_receive(sent, timeout=60)]
    Path(context.run_config["marker"], "server").write_text(" ".join(said) or "nobody")
"""
MANIFEST = """
[project]
name = "fedexperts-app"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedexperts"
components = { serverapp = "evil:app", clientapp = "evil_site:app" }
config = { marker = "" }
"""


@pytest.mark.slow
def test_an_unsigned_app_runs_on_a_captured_server_and_not_at_the_site(
    federation: Federation, tmp_path: Path
) -> None:
    federation.until(lambda: "is connected" in federation.said(SITES[0]), "the site")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "pyproject.toml").write_text(MANIFEST)
    (tmp_path / "evil" / "evil.py").write_text(EVIL)
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'site')!r}).touch()\n"
    mark += "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
    (tmp_path / "evil" / "evil_site.py").write_text(mark)
    deployment = Deployment.at(federation.folder)
    control._flwr(deployment, "run", str(tmp_path / "evil"), "here", "-c", f'marker="{tmp_path}"')
    federation.until((tmp_path / "server").exists, "the server's part of the app", 90)
    assert "could not be verified" in (tmp_path / "server").read_text()
    assert not (tmp_path / "site").exists()
    federation.until(
        lambda: "refused to run what the server sent" in federation.said(SITES[0]),
        "a word of the site",
        20,
    )


@pytest.mark.slow
def test_an_app_signed_by_another_key_is_refused_and_both_ends_read_why(
    federation: Federation, tmp_path: Path
) -> None:
    """Whoever has the server can make its folder agree with a key of his own; the sites do not."""
    app = federation.folder / "app"
    shutil.copytree(app, tmp_path / "honest")
    (app / "app.pub").unlink()
    Deployment.at(federation.folder).sign(tmp_path / "mine.key")
    try:
        federation.submit("foreign", run={"rounds": 1}, engine={"sites": [SITES[0]]})
        assert federation.finished("foreign") == 1
    finally:
        shutil.copytree(tmp_path / "honest", app, dirs_exist_ok=True)
    said = " ".join(federation.said("foreign").split())
    assert (
        f"{SITES[0]}: it refuses the server's app, which is not signed by the key in the site's"
        " app.pub" in said
    )
    assert federation.said(SITES[0]).count("it is not signed by the key of app.pub") >= 2
