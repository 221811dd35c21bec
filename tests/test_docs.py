"""Documents say what is true: commands run, fragments stand in the code, the tree is the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))


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
    for fragment in found:
        assert flat(fragment) in flat(SOURCE), fragment


def test_the_readmes_tree_is_the_tree():
    block = re.search(r"```\n(fedexperts/\n.*?)```", (ROOT / "README.md").read_text(), re.S).group(
        1
    )
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


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_file_that_a_document_names_is_there(document):
    text = (ROOT / document).read_text()
    for path in re.findall(
        r"\b((?:configs|docs|examples|benchmarks|tests|src|pretraining)/[\w./-]*\w)", text
    ):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / document).parent / link).exists(), link


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_command_in_a_document_is_one_that_the_program_knows(document):
    from typer.testing import CliRunner

    from fedexperts.cli import app

    for line in commands((ROOT / document).read_text()):
        program, *words = line.split()
        if program == "fedexperts" and not words[0].startswith("-"):
            command = words[: 2 if words[0] == "deploy" else 1]
            help_text = CliRunner().invoke(app, [*command, "--help"], terminal_width=200).output
            assert "Usage" in help_text, line
            assert all(
                word.split("=")[0] in help_text for word in words if word.startswith("--")
            ), line


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_every_example_runs(example):
    command = [sys.executable, f"examples/{example}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout or "right" in done.stdout
