"""Where figures come from: commits, versions, weights, one's own modules, and what follows where
two of them differ.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import fedexperts
from fedexperts import provenance
from fedexperts.config import load, origin

ROOT = Path(__file__).parents[1]


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With one committed file."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("A = 1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-qm", "one")
    return folder


def test_a_commit_is_named_and_whether_it_was_changed_since(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "untracked.txt").write_text("a run's folder, say")
    assert provenance.commit(checkout) == head
    (checkout / "a.py").write_text("A = 2\n")
    assert provenance.commit(checkout) == f"{head}, with uncommitted changes"


def test_where_nothing_is_checked_out_no_commit_is_named(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == ""
    assert "folder" not in provenance.commits(tmp_path)


def test_a_checkout_around_an_environment_is_not_the_packages(checkout: Path) -> None:
    """Of a package that lies in a checkout which does not know it, there is no commit."""
    installed = checkout / ".venv" / "fedexperts"
    installed.mkdir(parents=True)
    for name in ("__init__.py", "provenance.py", "options.py"):
        (installed / name).write_text((Path(fedexperts.__file__).parent / name).read_text())
    ask = "import pathlib, fedexperts.provenance as p; print(p.commits(pathlib.Path('/')))"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=installed.parent, capture_output=True, text=True
    )
    assert done.stdout.strip() == "{}", done.stderr


def test_nothing_that_a_checkout_names_is_run(checkout: Path) -> None:
    git(checkout, "config", "core.fsmonitor", f"touch {checkout / 'ran'}; false")
    assert provenance.commit(checkout) == git(checkout, "rev-parse", "HEAD")
    assert not (checkout / "ran").exists()


def test_a_command_line_holds_no_password_and_no_folder_of_the_program() -> None:
    words = ["/home/a/bin/fedexperts", "run", "a b.toml", "--mlflow", "https://me:secret@host/x"]
    assert provenance.command(words) == "fedexperts run 'a b.toml' --mlflow https://...@host/x"


# ---- modules of one's own


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package and a module of one's own, on the Python path."""
    files = {
        "own_things/__init__.py": "",
        "own_things/method.py": "import json, torch\nfrom . import steps\nimport own_helper\n",
        "own_things/steps.py": "import fedexperts.options\nfrom own_things import deep\n",
        "own_things/deep.py": "",
        "own_helper.py": "import own_things.method\n",
        "unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("own_things", "own_helper"))]:
        del sys.modules[name]


def test_what_a_module_imports_from_beside_it_is_hashed_with_it(project: Path) -> None:
    import own_things.method  # type: ignore[import-not-found]  # noqa: F401

    before = provenance.modules(["own_things.method:Mine"])
    assert list(before) == [
        "own_helper.py",
        "own_things/__init__.py",
        "own_things/deep.py",
        "own_things/method.py",
        "own_things/steps.py",
    ]
    (project / "own_things/deep.py").write_text("A = 1\n")
    after = provenance.modules(["own_things.method:Mine"])
    assert [name for name in after if after[name] != before[name]] == ["own_things/deep.py"]


def test_of_what_is_installed_a_packages_own_files_are_hashed_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = project / "site-packages"
    installed.mkdir()
    for name in ("own_things", "own_helper.py"):
        (project / name).rename(installed / name)
    monkeypatch.syspath_prepend(installed)
    import own_things.method  # noqa: F401

    assert "own_helper.py" not in provenance.modules(["own_things.method:Mine"])
    assert "own_things/deep.py" in provenance.modules(["own_things.method:Mine"])


# ---- weights


def test_weights_are_known_by_the_files_that_a_model_reads(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = provenance.weights([tmp_path])
    (tmp_path / "README.md").write_text("nothing that a model reads")
    assert provenance.weights([tmp_path]) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert provenance.weights([tmp_path]) != before


def test_an_origin_names_what_figures_depend_on() -> None:
    noted = origin(load("configs/demo/pfedmoap.toml"))
    assert noted["versions"].keys() >= {"fedexperts", "python", "torch", "safetensors", "pillow"}
    assert "flwr" not in noted["versions"]
    assert len(noted["weights"]["model"]) == 64
    assert noted["threads"] == 1


def test_versions_of_flower_are_noted_where_it_runs_the_clients() -> None:
    pytest.importorskip("flwr")
    simulated = load("configs/demo/pfedmoap.toml", ["engine.name=flower-simulation"])
    assert "flwr" in origin(simulated)["versions"]


# ---- differences


def test_a_difference_is_named_if_a_figure_may_depend_on_it() -> None:
    then = {"versions": {"torch": "2.6"}, "command": "a", "threads": 1, "platform": "x"}
    now = {"versions": {"torch": "2.7"}, "command": "b", "threads": 2, "modules": {"a.py": "f"}}
    assert provenance.differences(then, now) == {
        "versions.torch": ("2.6", "2.7"),
        "threads": ("1", "2"),
    }


def test_a_module_that_came_or_went_is_a_difference() -> None:
    one, two = {"modules": {"a.py": "f"}}, {"modules": {}}
    assert provenance.differences(one, two) == {"modules.a.py": ("f", "none")}
    assert provenance.differences(two, one) == {"modules.a.py": ("none", "f")}


# ---- how to cite


def test_the_citation_is_this_version_and_names_both_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (fedexperts.__version__, project["license"])
    assert cited["authors"]
    assert cited["message"]
    documents = (ROOT / "docs/methods.md").read_text()
    for paper in cited["references"]:
        assert paper["title"] in documents
        assert ", ".join(author["family-names"] for author in paper["authors"]) in documents
    assert len(cited["references"]) == 2
