"""Where figures come from: commits, versions, the weights that were read, modules of one's own; and
what follows where two runs, or then and now, differ in these.

This room reads files and asks git. It knows no config, no run's folder, and no torch.
"""

import ast
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .options import Values

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
)
READ = {".safetensors", ".json", ".txt", ".model", ".pt"}  # files of a model's folder
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages that are not one's own
_OURS = __name__.partition(".")[0]

CODE = "the program is another, so any figure may differ"
ROUNDING = (
    "sums may round differently, so figures may differ in their last digits at first, and by more"
    " after many rounds"
)
FOLLOWS = {  # by dotted name, or by the first part of it; of the rest, no figure depends on it
    "versions": ROUNDING,
    "versions.fedexperts": CODE,
    "versions.pillow": "images may be decoded to slightly different pixels",
    "versions.scikit-learn": "its digits and its k-means may differ, and so may any figure",
    "commit.fedexperts": CODE,
    "modules": CODE,
    "weights": "the model has other weights, so every figure may differ",
    "processor": ROUNDING,
    "device": ROUNDING,
    "threads": ROUNDING,
    "matmul": ROUNDING,
    "precision": ROUNDING,
}


def follows(name: str) -> str:
    """What a difference in this means for figures; "" if nothing."""
    return FOLLOWS.get(name) or FOLLOWS.get(name.partition(".")[0], "")


def flat(values: Mapping[str, object], above: str = "") -> dict[str, str]:
    """Dotted names and plain words."""
    words: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            words |= flat(value, f"{above}{name}.")
        else:
            words[f"{above}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return words


def differences(then: Values, now: Values) -> dict[str, tuple[str, str]]:
    """Dotted names of what differs and may change figures, with what it was and is; a table that
    only one of them has is no difference.
    """
    both = then.keys() & now.keys()
    before = flat({name: then[name] for name in sorted(both)})
    after = flat({name: now[name] for name in sorted(both)})
    pairs = {name: (before.get(name, "none"), after.get(name, "none")) for name in before | after}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and follows(name)}


# ---- the program


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Of those packages that figures depend on, and of more, as far as they are installed."""
    installed = {}
    for package in (*PACKAGES, *more):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def program() -> str:
    """What printed figures come from, in a line."""
    head = commits(Path.cwd()).get(_OURS, "no checkout")
    return f"{_OURS} {__version__} ({head}), torch {version('torch')}"


@cache
def commits(folder: Path) -> dict[str, str]:
    """The commit of this package, if it runs from a checkout, and of a folder, if it is in one: as
    they were when this process first asked, for that is the code which it runs.
    """
    package = Path(__file__).parent
    asked = {"folder": commit(folder)}
    # a checkout around an environment in which this package is installed does not know its files
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name):
        asked = {_OURS: commit(package)} | asked
    return {name: head for name, head in asked.items() if head}


def commit(folder: Path) -> str:
    """What is checked out in a folder, and whether it was changed since; "" where nothing is."""
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    if head and _git(folder, "status", "--porcelain", "--untracked-files=no"):
        return f"{head}, with uncommitted changes"
    return head


def _git(folder: Path, *words: str) -> str:
    """What git says, in a folder that it leaves as it is; "" if it has nothing to say."""
    calm = ("--no-optional-locks", "-c", "core.fsmonitor=false")
    try:
        said = subprocess.run(
            ["git", "-C", str(folder), *calm, *words], capture_output=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.decode(errors="replace").strip()


def command(words: Sequence[str]) -> str:
    """A command line, without the program's folder and without what opens a server's door."""
    program, *rest = words or [""]
    return re.sub(r"(://)[^/@\s]+@", r"\1...@", shlex.join([Path(program).name, *rest]))


# ---- files


def weights(paths: Iterable[Path]) -> str:
    """A hash of a model's files: those given, and those of folders given that a model may read."""
    files = [file for path in paths for file in _model_files(path)]
    lines = [f"{file.name} {_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _model_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in READ)


def modules(names: Iterable[str]) -> dict[str, str]:
    """The files behind classes named "module:Class", each with its hash: the module's, and those
    that it imports from beside it.
    """
    files: dict[str, str] = {}
    for name in names:
        module = name.partition(":")[0]
        if (file := getattr(sys.modules.get(module), "__file__", None)) is None:
            continue
        depth = module.count(".")
        if Path(file).name == "__init__.py":
            depth += 1
        root = Path(file).parents[depth]
        for own in _imported(Path(file), root, set()):
            files[str(own.relative_to(root))] = _sha256(own)
    return dict(sorted(files.items()))


def _imported(file: Path, root: Path, seen: set[Path]) -> set[Path]:
    """A module's file and those that it imports from `root`; of installed ones, its own package's
    alone.
    """
    if file in seen or not file.is_file():
        return seen
    seen.add(file)
    *package, _ = file.relative_to(root).parts
    for name in _names(file, package):
        steps = name.split(".")
        installed = root.name in INSTALLED and steps[:1] != package[:1]
        if steps[0] == _OURS or installed:
            continue
        for length in range(1, len(steps) + 1):  # a package's own file runs first
            path = root.joinpath(*steps[:length])
            _imported(path.with_suffix(".py"), root, seen)
            _imported(path / "__init__.py", root, seen)
    return seen


def _names(file: Path, package: Sequence[str]) -> Iterator[str]:
    """Dotted names of all that a module of a package may import; of `from a import b`, a.b."""
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            steps = package[: len(package) - node.level + 1] if node.level else ()
            base = [*steps, node.module] if node.module else steps
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
