"""What is installed is what was listed: every version has the hashes of its files, and another file
is not taken.
"""

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "supply"))
import install  # noqa: E402  a program, not a package

HASHES, CONSTRAINTS = (
    (ROOT / "supply" / "hashes.txt").read_text(),
    (ROOT / "constraints.txt").read_text(),
)


def test_every_version_that_is_listed_is_the_one_that_is_tested_and_has_hashes() -> None:
    listed = re.findall(
        r"^(\S+==\S+).*\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", HASHES, re.MULTILINE
    )
    pins = {install.plain(row) for row in CONSTRAINTS.splitlines()[1:]}
    assert len(listed) == len(re.findall("==.*", re.sub(";.*", "", HASHES)))
    assert {install.plain(row) for row, _ in listed} == pins


def test_the_lists_name_no_place_on_the_network() -> None:
    assert "://" not in HASHES + CONSTRAINTS


def test_all_that_is_asked_for_is_listed_the_tools_that_build_included() -> None:
    rows = [*install.wanted("dev"), *install.BUILD]
    names = {install.plain(re.split(r"[\[<>=]", row)[0]) for row in rows}
    assert {"torch", "flwr", "starlette", "pytest", "hatchling", "editables"} <= names
    assert names <= {install.plain(row).split("==")[0] for row in CONSTRAINTS.splitlines()[1:]}
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {*needed} <= {*install.BUILD}


def test_a_file_that_is_not_listed_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, odd = tmp_path / "good-1-py3-none-any.whl", tmp_path / "odd_one-1-py3-none-any.whl"
    good.write_bytes(b"as it was")
    odd.write_bytes(b"as it was not")
    monkeypatch.setattr(install, "HASHES", tmp_path / "hashes.txt")
    install.HASHES.write_text(
        f"good==1 \\\n    --hash=sha256:{hashlib.sha256(b'as it was').hexdigest()}\n"
    )
    with pytest.raises(SystemExit, match=r"Nothing was installed\..*: --trust odd-one"):
        install.check([good, odd], set())
    assert (
        f"{odd.name}, sha256 {hashlib.sha256(b'as it was not').hexdigest()}"
        in capsys.readouterr().err
    )
    install.check([good, odd], {"odd-one"})
    assert odd.name in capsys.readouterr().err  # it is said all the same


def test_a_package_that_is_only_source_is_not_run_to_see_what_it_is(tmp_path: Path) -> None:
    """Wheels alone: a source would be run by pip before its hash is known."""
    (tmp_path / "evil-1.tar.gz").write_bytes(b"")
    asked = [
        "download",
        "--no-index",
        "--find-links",
        str(tmp_path),
        *install.CHOSEN,
        "--dest",
        str(tmp_path),
        "evil",
    ]
    done = subprocess.run([*install.PIP, *asked], capture_output=True, text=True)
    assert done.returncode
    assert "No matching distribution found for evil" in done.stderr
