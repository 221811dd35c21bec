"""What a person who installs or cites the package is told is what the package says of itself."""

import re
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fedexperts as fx

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_stands_in_one_place_and_is_the_one_to_cite() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == fx.__version__
    assert f"## {fx.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pythons_of_the_package_are_those_of_its_page() -> None:
    classified = [
        name.rpartition(" ")[2]
        for name in PROJECT["classifiers"]
        if name.startswith("Programming Language :: Python :: 3.")
    ]
    (row,) = re.findall(r"^\| Python \| (.+?) \|", (ROOT / "docs/about.md").read_text(), re.M)
    assert row.split(", ") == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"


def test_the_flower_that_is_here_is_one_that_is_supported_and_the_newest_that_was_tried() -> None:
    pytest.importorskip("flwr")
    (asked,) = (
        Requirement(row)
        for row in PROJECT["optional-dependencies"]["flower"]
        if row.startswith("flwr[")
    )
    pinned = re.search(r"^flwr==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    (row,) = re.findall(r"^\| Flower \| (.+?) \|", (ROOT / "docs/about.md").read_text(), re.M)
    assert version("flwr") in asked.specifier
    assert pinned[1] in asked.specifier
    major, minor, _ = pinned[1].split(".")
    assert f"{major}.{int(minor) + 1}.0" not in asked.specifier, "it was not tried"
    assert f"{major}.{minor} is the newest" in row


def test_what_an_extra_asks_for_stands_in_contributing_with_its_reason() -> None:
    reasons = (ROOT / "CONTRIBUTING.md").read_text().lower().replace("_", "-")
    asked = [Requirement(row).name for row in requires("fedexperts") or []]
    assert len(asked) > 30
    for name in {*asked} - {"fedexperts"}:
        assert re.search(rf"\b{re.escape(name.lower().replace('_', '-'))}\b", reasons), name


def test_the_types_of_the_package_are_for_its_users_too() -> None:
    assert (Path(fx.__file__).parent / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["classifiers"]
