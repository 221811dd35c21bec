"""The plan of the house, read from the imports: a room knows only the rooms below it, and says so
if it does not.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedexperts

ROOT = Path(fedexperts.__file__).parent
FLOORS: list[tuple[str, ...]] = [  # from the ground up; rooms of one floor do not know each other
    ("tensors", "declared", "catalog", "options"),
    ("disk",),
    ("learn", "average"),
    ("model",),
    ("predictor", "upload"),
    ("method",),
    ("metrics",),
    ("methods", "models", "data"),
    ("message", "private", "post"),
    ("admission",),
    ("client",),
    ("engine",),
    ("flower",),
    ("checkpoints",),
    ("rundir",),
    ("loop",),
    ("report", "config", "track"),
    ("units",),
    ("study", "deploy", "predict"),
    ("export", "serve", "reproduce", "results"),
    ("cli",),
    # the package's front page, which names what users need; who imports it gets the version alone
    ("", "__main__"),
]
# of config, likewise
DOOR = (
    "names",
    "settings",
    "own",
    "checking",
    "reading",
    "machine",
    "building",
    "engines",
    "deployed",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CLOSED = {
    "methods": {
        "tensors",
        "average",
        "declared",
        "catalog",
        "options",
        "learn",
        "model",
        "predictor",
        "method",
    },
    "models": {"tensors", "catalog", "options", "model"},
    "data": {"tensors", "catalog", "options"},
}
# outside packages, and the rooms or files that may know them
ONLY_IN: dict[str, tuple[str, ...]] = {
    "transformers": ("models/huggingface.py", "models/transformer.py"),
    "flwr": ("flower.py", "post.py", "deploy/app.py", "deploy/courier.py", "deploy/fleet.py"),
    "typer": ("cli",),
    "rich": ("cli", "report"),
    "matplotlib": ("report",),
    "starlette": ("serve",),
    "uvicorn": ("deploy/processes.py", "serve"),
    "tensorboard": ("track/tensorboard.py",),
    "mlflow": ("track/mlflow.py",),
    "wandb": ("track/wandb.py",),
    # elsewhere options say what they may be; and a split is a file that anybody may have written
    "pydantic": ("config/checking.py", "data/manifest.py"),
    "PIL": ("data/images.py",),
    "pyarrow": ("data/table.py",),
    "datasets": ("data/sets.py",),
    "pandas": ("results.py",),
    "pickle": (),
    "dill": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
}
LONGEST = 50  # lines of a function's body

files = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize("file", files, ids=[str(f.relative_to(ROOT)) for f in files])


def room(file: Path) -> str:
    """The room that a file is, or is in."""
    first = file.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute dotted names of everything that a file imports, wherever in it, with the line."""
    package = ["fedexperts", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def ours(file: Path) -> Iterator[tuple[str, int]]:
    """The rooms of ours that a file knows, beside its own."""
    for name, line in imports(file):
        head, *rest = name.split(".")
        if head == "fedexperts" and name != "fedexperts.__version__":
            known = rest[0] if rest and rest[0] in FLOOR else ""
            if known != room(file):
                yield known, line


def uses(file: Path) -> Iterator[tuple[str, int]]:
    """Names that a file reads, dotted, with the line: `os.environ`, `torch.load`, `print`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.Attribute, ast.Name)):
            yield ast.unparse(node), node.lineno


def where(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def within(file: Path, places: tuple[str, ...]) -> bool:
    inner = file.relative_to(ROOT)
    return any(inner == Path(place) or Path(place) in inner.parents for place in places)


def test_every_room_has_its_floor() -> None:
    """A new room is put on the plan first."""
    assert {room(file) for file in files} <= FLOOR.keys()


@every_file
def test_a_room_knows_only_the_rooms_below_it(file: Path) -> None:
    floor = FLOOR[room(file)]
    wrong = [
        f"{where(file, line)} knows {known}" for known, line in ours(file) if FLOOR[known] >= floor
    ]
    assert not wrong


def test_in_config_what_is_read_is_built_and_nothing_goes_back() -> None:
    assert {file.stem for file in (ROOT / "config").glob("*.py")} == {*DOOR, "__init__"}
    for floor, name in enumerate(DOOR):
        inner = [known.split(".") for known, _ in imports(ROOT / "config" / f"{name}.py")]
        assert {known[2] for known in inner if known[:2] == ["fedexperts", "config"]} <= {
            *DOOR[:floor]
        }, name


@every_file
def test_methods_models_and_data_know_the_contract_alone(file: Path) -> None:
    allowed = CLOSED.get(room(file))
    wrong = [
        f"{where(file, line)} knows {known}"
        for known, line in ours(file)
        if allowed and known not in allowed
    ]
    assert not wrong


@every_file
def test_an_outside_package_is_known_where_it_belongs_alone(file: Path) -> None:
    wrong = [
        f"{where(file, line)} imports {name}"
        for name, line in imports(file)
        if (package := name.split(".")[0]) in ONLY_IN and not within(file, ONLY_IN[package])
    ]
    assert not wrong


@every_file
def test_the_environment_is_read_in_config_alone(file: Path) -> None:
    """Pitfall 24: device, threads and folders of the machine are chosen at the door."""
    machine = {
        "os.environ",
        "os.getenv",
        "torch.set_num_threads",
        "torch.set_default_device",
        "Path.home",
        "torch.cuda",
    }
    assert not [
        where(file, line) for name, line in uses(file) if name in machine and room(file) != "config"
    ]


@every_file
def test_printing_is_done_in_the_cli_and_the_report_alone(file: Path) -> None:
    assert not [
        where(file, line)
        for name, line in uses(file)
        if name in {"print", "sys.stdout", "sys.stderr"} and room(file) not in ("cli", "report")
    ]


@every_file
def test_nothing_that_is_read_can_run(file: Path) -> None:
    """Pitfall 23: no pickle, in any dress."""
    runs = {"torch.load", "torch.save", "eval", "exec", "numpy.load", "np.load"}
    assert not [where(file, line) for name, line in uses(file) if name in runs]


@every_file
def test_a_module_opens_by_saying_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@every_file
def test_a_function_is_seen_at_one_glance(file: Path) -> None:
    long = [
        f"{where(file, node.lineno)} {node.name}: {node.end_lineno - node.body[0].lineno + 1} lines"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno
        and node.end_lineno - node.body[0].lineno >= LONGEST
    ]
    assert not long


def test_the_front_page_is_turned_without_waiting_for_torch() -> None:
    """`import fedexperts` alone imports no room, and every name that it offers is there."""
    light = (
        "import fedexperts, sys; assert 'torch' not in sys.modules and 'fedexperts.config' not in"
        " sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
    assert all(getattr(fedexperts, name) for name in fedexperts.__all__)
