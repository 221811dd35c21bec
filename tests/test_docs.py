"""Documents say what is true: commands run, fragments stand in the code, the tree is the tree."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedexperts.cli import app

ROOT = Path(__file__).parents[1]


def flat(text):
    """Without the line breaks and spaces that a formatter may move."""
    return re.sub(r"\s+", "", text)


def test_every_fragment_in_methods_stands_in_the_source():
    rows = [
        line
        for line in (ROOT / "docs/methods.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    fragments = [re.findall(r"`([^`]+)`", row.split(" | ")[-1]) for row in rows]
    found = [fragment for cell in fragments for fragment in cell]
    assert len(found) >= 12
    source = flat("\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py")))
    for fragment in found:
        assert flat(fragment) in source, fragment


def test_the_readmes_tree_is_the_tree():
    block = re.search(
        r"```text\n(fedexperts/\n.*?)```", (ROOT / "README.md").read_text(), re.S
    ).group(1)
    listed = {
        line.split("#")[0].split()[-1].rstrip("/")
        for line in block.splitlines()[1:]
        if line.strip()
    }
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    rooms = {path.split("/")[2] for path in tracked if path.startswith("src/fedexperts/")} - {
        "__init__.py",
        "py.typed",
    }
    assert listed == top | rooms


def commands(text):
    return [
        line.strip()
        for line in re.findall(r"^(?:    |)((?:fedexperts|python) [^\n#`|]+)", text, re.M)
    ]


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(r"\b((?:configs|docs|examples|benchmarks|tests|src|pretraining)/[\w./-]*\w)")
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


def test_every_file_that_a_document_names_is_there():
    gone = []
    for document in DOCUMENTS:
        text = document.read_text()
        places = [(path, ROOT / path) for path in PATH.findall(text)]
        places += [(link, document.parent / link) for link in LINK.findall(text)]
        gone += [f"{document.name}: {name}" for name, place in places if not place.exists()]
    assert not gone


def test_every_command_in_a_document_is_one_that_the_program_knows():
    unknown = []
    for document in DOCUMENTS:
        for line in commands(document.read_text()):
            program, *words = line.split()
            if program == "fedexperts" and not words[0].startswith("-"):
                options = [word.split("=")[0] for word in words if word.startswith("--")]
                said = usage(*words[: 2 if words[0] == "deploy" else 1])
                if "Usage" not in said or not all(option in said for option in options):
                    unknown.append(f"{document.name}: {line}")
    assert not unknown


@cache
def usage(*command):
    """What the program says of a command of its own."""
    return CliRunner().invoke(app, [*command, "--help"], terminal_width=200).output


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_every_example_runs(example):
    command = [sys.executable, f"examples/{example}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout or "right" in done.stdout
