"""Every command and every block of code on every page is run, cut short; what is not run here
stands below with its reason. And the site is built, where a link that leads nowhere is a failure.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedexperts as fx

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^( *)```(\w*)(?: title=\"([^\"\n]+)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"`((?:fedexperts|python|pip|make) [^`\n]+)`")

# what no page's test runs, and why
NOT_RUN = {
    r"fedexperts deploy|dep/runs": "a federation of processes, for minutes: tests/test_deploy.py",
    r"^fedexperts (fetch|reproduce)": "downloads: tests/test_fetch.py, tests/test_reproduce.py",
    r"^fedexperts serve": "goes on until it is stopped: tests/test_serve.py",
    r"^fedexperts (?!demo)\w+$|\.\.\.": "names a command or what follows it, and is none",
    r"configs/(benchmark|pfedmoap|fedmoe)/|/pacs\b|runs/(pacs|benchmark|prompts)": (
        "pictures or checkpoints that are not shipped: tests/test_configs.py"
    ),
    r"--(like|private|forget|changed-code|onnx)\b": (
        "needs a run or a package of a certain kind: tests/test_predict.py, test_export.py"
    ),
    r"--wandb|--mlflow": "a server of somebody: tests/test_track.py",
    r"engine.name=flower-simulation": "half a minute of Ray: tests/test_flower.py",
    r"texts.txt|CLIENT --out": "needs another kind of run: tests/test_predict.py, test_unlearn.py",
    r"python benchmarks/": "a measurement, of minutes to hours; mypy checks it",
    r"^make|python -m|python3 -m|source|supply/|python example": ".ci/run and tests/test_docs.py",
    r"runs/a runs/b": "two names of any runs",
    r"data.path=FOLDER": "the same line with a folder of pictures is run: docs/tutorials",
}
STAND_INS = {  # what a page says for what a reader has
    "RUN": "runs/any/pfedmoap/seed-0",
    "CONFIG": "configs/demo/pfedmoap.toml",
    "COMMAND": "run",
    "NAME": "as-scanned-0",
    "IMAGE": "img/0-0.png",
    "PAGES": "pages",
}
# what a reader has made before
BEFORE = (
    "fedexperts demo",
    "fedexperts run configs/demo/pfedmoap.toml --set data.clients=6 --out runs/any",
)
# of each kind that a block of a config leaves out
REST = {
    "data": 'name = "digits-scanners"',
    "model": 'name = "prompted-clip"',
    "method": 'name = "fedavg"',
}
SHORT = """#!/bin/sh
# `fedexperts`, with two rounds of one seed, untuned
command=$1
shift
case $command in
demo) [ -e runs/demo ] && exit 0
  set -- configs/demo/zero-shot.toml configs/demo/pfedmoap.toml \
  configs/demo/gaussian-experts.toml --out runs/demo ;;
esac
case $command in
run | demo) exec {program} run "$@" --seeds 1 --tune none --jobs 1 --set run.rounds=2 \
  --set learning.epochs=1 ;;
esac
exec {program} "$command" "$@"
"""
PIP = """#!{python}
# `pip`, which only says whether there is such an extra
import re, sys, tomllib
extras = tomllib.loads(open("{root}/pyproject.toml").read())["project"]["optional-dependencies"]
named = re.search(r"\\[(.*)\\]", sys.argv[-1])
sys.exit(bool(named and not set(named[1].split(",")) <= extras.keys()))
"""


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    body: str

    @property
    def kind(self) -> str:
        """What it is, where the page does not say it."""
        return self.language or ("toml" if self.body.startswith("[") else "sh")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, moved to the left where they stand in a list."""
    return [
        Block(language, title, re.sub(f"^{indent}", "", body, flags=re.MULTILINE))
        for indent, language, title, body in BLOCK.findall(page.read_text())
    ]


def lines(block: Block) -> list[str]:
    """Commands without what is said of them; a loop is one."""
    body = re.sub(r"(?:^|\s)# .*$", "", block.body, flags=re.MULTILINE).strip()
    if re.match(r"^for |.*\bfor \w+ in ", body, re.DOTALL):
        return [body]
    return [line.strip() for line in body.splitlines() if line.strip()]


def reason(command: str) -> str:
    """Why a command is not run here; "": it is."""
    words = [why for pattern, why in NOT_RUN.items() if re.search(pattern, command, re.MULTILINE)]
    return "; ".join(words)


_made: set[str] = set()


def is_new(command: str) -> bool:
    """Whether a command is still to be carried out: a study in a folder that no line names is made
    once, though several pages speak of it.
    """
    if not command.startswith("fedexperts run ") or "--out" in command:
        return True
    study = re.sub(r" --seeds \d+", "", command)
    if study in _made:
        return False
    _made.add(study)
    return True


def in_blocks() -> list[str]:
    """Commands that stand in blocks."""
    every = [block for page in PAGES for block in blocks(page) if block.kind == "sh"]
    return [line for block in every for line in lines(block)]


def inline() -> list[str]:
    """Commands that stand within the lines of pages and in no block, each once. How many seeds is
    no difference: here it is one.
    """
    every = [command for page in PAGES for command in INLINE.findall(page.read_text())]
    named = {re.sub(r" --seeds \d+", "", command) for command in every}
    return sorted(named - {re.sub(r" --seeds \d+", "", line) for line in in_blocks()})


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program that starts at once; see warm.py."""
    file = ROOT / "tests/warm.py"
    address = str(tmp_path_factory.mktemp("warm") / "door")
    start = f"import sys; sys.path.insert(0, {str(file.parent)!r}); import warm"
    command = [sys.executable, "-c", f"{start}; warm.make_copies({address!r})"]
    with subprocess.Popen(command) as process:
        while not Path(address).exists():
            assert process.poll() is None
            time.sleep(0.1)
        yield f"{sys.executable} -IS {file} {address}"
        process.kill()


@pytest.fixture(scope="session")
def before(warm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder with the runs that pages speak of."""
    folder = tmp_path_factory.mktemp("before")
    furnish(folder, f"{warm} fedexperts", warm)
    with pytest.MonkeyPatch.context() as patch:
        sit_down(folder, patch)
        carried_out(["bash", "-ec", "\n".join(BEFORE)], folder)
    return folder


@pytest.fixture
def desk(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder for one page."""
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    sit_down(tmp_path, monkeypatch)
    return tmp_path


def sit_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{folder / '.bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FEDEXPERTS_DATA", str(folder))
    monkeypatch.chdir(folder)


def furnish(folder: Path, program: str, python: str) -> None:
    """The configs, some pictures, and programs that make long things short."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    draw(folder)
    programs = folder / ".bin"
    programs.mkdir()
    texts = {
        "fedexperts": SHORT.replace("{program}", program),
        "pip": PIP.replace("{python}", sys.executable).replace("{root}", str(ROOT)),
        "python": f'#!/bin/sh\nexec {python} "$@"\n',
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)


def draw(folder: Path) -> None:
    """Pictures of two kinds at three sites, and files that pages speak of."""
    noise = np.random.default_rng(0)
    places = [f"photos/clinic-{site}/{kind}" for site in "abc" for kind in ("cat", "dog")]
    places += ["new/cat", "new/dog", "labelled/zero", "labelled/one"]
    places += ["office_caltech_10/amazon/mug", "img"]
    for place in places:
        (folder / place).mkdir(parents=True)
        for number in range(10):
            name = f"{number}-{number}.png" if place == "img" else f"{number}.jpg"
            pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / name)


def filled(command: str) -> str:
    """A command with a reader's own names in the places that pages leave open."""
    for word, own in STAND_INS.items():
        command = re.sub(rf"\b{word}\b", own, command)
    command = re.sub(r"--out FOLDER", "--out $(mktemp -u -p .)", command)
    pictures = "labelled" if " evaluate " in command else "img"
    return command.replace(" FOLDER", f" {pictures}")


def in_a_shell(commands: list[str]) -> list[str]:
    """Commands of one block, in a shell of their own."""
    new = [filled(command) for command in commands if is_new(command)]
    if not new:
        return []
    return ["(", *new, ")"]


def carried_out(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=[str(page.relative_to(ROOT)) for page in PAGES[1:]])
def test_what_stands_on_a_page_works(page: Path, desk: Path) -> None:
    followed(page, desk)


@pytest.mark.slow
def test_what_stands_in_the_readme_works_in_new_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(tmp_path, f"{sys.executable} -m fedexperts", sys.executable)
    sit_down(tmp_path, monkeypatch)
    followed(PAGES[0], tmp_path)


def followed(page: Path, desk: Path) -> None:
    """A page from top to bottom, in a reader's folder."""
    script = ["set -e"]
    for number, block in enumerate(blocks(page)):
        if block.title:
            (desk / block.title).write_text(block.body)
        elif block.kind == "toml":
            loaded(block.body, desk / f"block-{number}.toml")
        elif block.kind == "python":
            (desk / f"block-{number}.py").write_text(block.body)
            script.append(f"PYTHONPATH=. python block-{number}.py")
        elif block.kind == "sh":
            script += in_a_shell([line for line in lines(block) if not reason(line)])
    carried_out(["bash", "-c", "\n".join(script)], desk)


@pytest.mark.slow
def test_commands_within_a_line_work(desk: Path) -> None:
    run = [command for command in inline() if not reason(command)]
    assert len(run) > 10
    carried_out(["bash", "-c", "\n".join(["set -e", *in_a_shell(run)])], desk)


def loaded(text: str, file: Path) -> None:
    """A part of a config is one that the program knows."""
    said = tomllib.loads(text)
    rest = [f"[{kind}]\n{name}\n" for kind, name in REST.items() if kind not in said]
    first = "" if "name" in said else 'name = "page"\n'
    file.write_text("\n".join([first + text, *rest]))
    fx.load(file)


def test_no_reason_is_left_of_a_command_that_is_gone() -> None:
    every = [*in_blocks(), *inline()]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command, re.MULTILINE) for command in every), pattern


def test_every_file_that_gives_a_reason_is_there() -> None:
    named = re.findall(r"(?:tests/)?(test_\w+\.py)", " ".join(NOT_RUN.values()))
    assert all((ROOT / "tests" / name).exists() for name in named)


def test_the_start_page_leads_to_an_answer_of_each_of_twenty_questions() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (.+\?) \| (\[.+) \|$", (ROOT / "docs/index.md").read_text(), re.MULTILINE
    )
    assert [int(number) for number, _, _ in rows] == list(range(1, 21))
    for _, question, answers in rows:
        for target in re.findall(r"\]\(([^)]+)\)", answers):
            file, _, anchor = target.partition("#")
            text = (ROOT / "docs" / file).read_text()
            assert not anchor or anchor in anchors(text), f"{question} {target}"


def anchors(text: str) -> set[str]:
    """Headings of a page, as links say them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_every_message_on_the_page_of_errors_stands_in_the_source() -> None:
    source = flat("\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py")))
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/reference/errors.md").read_text(), re.M)
    assert len(rows) > 30
    for message in rows:
        for part in message.split("..."):
            assert flat(part) in source, message


def flat(text: str) -> str:
    """Messages as they are said: lines of source joined, names of values taken out."""
    joined = re.sub(r'["\']\s*\n\s*f?["\']', "", text)
    return re.sub(r"\{[^{}]*(?:\{[^{}]*\})*[^{}]*\}", "", re.sub(r"\s+", "", joined))


def test_the_page_of_python_has_all_that_the_package_offers() -> None:
    listed = set(
        re.findall(
            r"^::: fedexperts\.(\S+)$", (ROOT / "docs/reference/python.md").read_text(), re.M
        )
    )
    listed = {name.rpartition(".")[2] for name in listed}
    assert set(fx.__all__) - listed == {"Facts", "Tensors"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    carried_out([sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)], ROOT)
    pages = {str(page.relative_to(tmp_path)): page.read_text() for page in tmp_path.rglob("*.html")}
    assert "--tensorboard" in pages["reference/commands.html"]
    assert "deploy init" in pages["reference/commands.html"]
    assert "distance from the global tensors beyond" in pages["reference/config.html"]
    assert "<math" in pages["explanation/equations.html"]
    for name, page in pages.items():
        loads = re.findall(r'<(?:link|script|img)[^>]*(?:src|href)="(https?:[^"]+)"', page)
        assert not loads, name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.ipynb")))
def test_a_notebook_runs_from_a_clean_kernel_and_shows_pictures(name: str, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "examples" / name, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=600, resources=where).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    shown = [output.data for output in outputs if "data" in output]
    assert any("image/png" in data for data in shown)
    assert any("<table" in data.get("text/html", "") for data in shown)
    assert any("<progress" in data.get("text/html", "") for data in shown)
