"""The plan of the house, read from the imports: a room knows only the rooms below it. A test is a
rule, and says every place that breaks it.
"""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import fedexperts

ROOT = Path(fedexperts.__file__).parent
FLOORS: list[tuple[str, ...]] = [  # from the ground up; rooms of one floor do not know each other
    ("tensors", "declared", "catalog", "options"),
    ("privacy",),
    ("disk", "provenance", "tuning", "fetch", "answers"),
    ("download",),
    ("learn", "average", "fusing"),
    ("model", "noised"),
    ("predictor", "upload", "stacks"),
    ("method",),
    ("metrics", "membership"),
    ("methods", "models", "data"),
    ("message", "private", "post", "masks"),
    ("sums",),
    ("admission", "spent"),
    ("job",),
    ("hidden",),
    ("client",),
    ("engine",),
    ("flower",),
    ("checkpoints",),
    ("rundir",),
    ("loop",),
    ("report", "config", "track"),
    ("units",),
    ("study", "predict", "unlearn", "verify"),
    ("deploy", "export", "evaluate", "serve", "reproduce"),
    ("results",),
    ("cli",),
    # the package's front page, which names what users need; who imports it gets the version alone
    ("", "__main__"),
]
# of config, likewise
DOOR = (
    "folders",
    "names",
    "settings",
    "own",
    "checking",
    "reading",
    "machine",
    "duration",
    "promises",
    "building",
    "engines",
    "deployed",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CLOSED = {
    "methods": {
        "tensors",
        "average",
        "fusing",
        "declared",
        "catalog",
        "options",
        "learn",
        "model",
        "predictor",
        "method",
    },
    "models": {"tensors", "catalog", "options", "fetch", "model"},
    "data": {"tensors", "catalog", "options", "fetch"},
}
# outside packages, and the rooms or files that may know them
ONLY_IN: dict[str, tuple[str, ...]] = {
    "huggingface_hub": ("fetch.py", "download.py"),
    "transformers": (
        "models/halves.py",
        "models/huggingface.py",
        "models/sentences.py",
        "models/transformer.py",
    ),
    "efficientnet_lite_pytorch": ("models/halves.py",),
    "flwr": (
        "flower.py",
        "post.py",
        "deploy/app.py",
        "deploy/courier.py",
        "deploy/fleet.py",
        "deploy/listed.py",
    ),
    "typer": ("cli",),
    "rich": ("cli", "report"),
    "matplotlib": ("report",),
    "IPython": ("report/notebook.py",),
    "dp_accounting": ("privacy.py",),
    "Crypto": ("masks.py", "config/promises.py"),
    "starlette": ("serve",),
    "uvicorn": ("deploy/processes.py", "serve"),
    "tensorboard": ("track/tensorboard.py",),
    "mlflow": ("track/mlflow.py",),
    "wandb": ("track/wandb.py",),
    # elsewhere options say what they may be; and a split is a file that anybody may have written
    "pydantic": ("config/checking.py", "data/manifest.py"),
    "PIL": ("data/pixels.py",),
    "pydicom": ("data/pixels.py",),
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


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def room(file: Path) -> str:
    """The room that a file is, or is in."""
    first = file.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute dotted names of everything that a file imports, wherever in it, with the line."""
    package = ["fedexperts", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def known(file: Path) -> Iterator[tuple[str, str]]:
    """The rooms of ours that a file knows, beside its own, each with the place where it says so."""
    for name, line in imports(file):
        head, *rest = name.split(".")
        if head == "fedexperts" and name != "fedexperts.__version__":
            other = rest[0] if rest and rest[0] in FLOOR else ""
            if other != room(file):
                yield other, f"{where(file, line)} knows {other}"


def readers(names: Collection[str], but: Collection[str] = ()) -> list[str]:
    """Where a dotted name of these is read, as in `os.environ` or `print`, outside some rooms."""
    found = []
    for file in files:
        for node in ast.walk(parsed(file)):
            named = isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node)
            if named in names and room(file) not in but:
                found.append(f"{where(file, node.lineno)} reads {named}")
    return found


def where(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def within(file: Path, places: tuple[str, ...]) -> bool:
    inner = file.relative_to(ROOT)
    return any(inner == Path(place) or Path(place) in inner.parents for place in places)


def test_every_room_has_its_floor() -> None:
    """A new room is put on the plan first."""
    assert {room(file) for file in files} <= FLOOR.keys()


def test_a_room_knows_only_the_rooms_below_it() -> None:
    wrong = []
    for file in files:
        floor = FLOOR[room(file)]
        wrong += [place for other, place in known(file) if FLOOR[other] >= floor]
    assert not wrong


def test_in_config_what_is_read_is_built_and_nothing_goes_back() -> None:
    assert {file.stem for file in (ROOT / "config").glob("*.py")} == {*DOOR, "__init__"}
    for floor, name in enumerate(DOOR):
        inner = [known.split(".") for known, _ in imports(ROOT / "config" / f"{name}.py")]
        assert {known[2] for known in inner if known[:2] == ["fedexperts", "config"]} <= {
            *DOOR[:floor]
        }, name


def test_methods_models_and_data_know_the_contract_alone() -> None:
    wrong = []
    for file in files:
        if allowed := CLOSED.get(room(file)):
            wrong += [place for other, place in known(file) if other not in allowed]
    assert not wrong


def test_an_outside_package_is_known_where_it_belongs_alone() -> None:
    wrong = []
    for file in files:
        for name, line in imports(file):
            package = name.split(".")[0]
            if package in ONLY_IN and not within(file, ONLY_IN[package]):
                wrong.append(f"{where(file, line)} imports {name}")
    assert not wrong


def test_the_environment_is_read_in_config_alone() -> None:
    """Pitfall 24: device, threads and folders of the machine are chosen at the door."""
    machine = {
        "os.environ",
        "os.getenv",
        "torch.set_num_threads",
        "torch.set_default_device",
        "Path.home",
        "torch.cuda",
    }
    assert not readers(machine, but=("config",))


def test_printing_is_done_in_the_cli_and_the_report_alone() -> None:
    assert not readers({"print", "sys.stdout", "sys.stderr"}, but=("cli", "report"))


def test_nothing_that_is_read_can_run() -> None:
    """Pitfall 23: no pickle, in any dress."""
    loads = [line for line in readers({"torch.load"}) if not line.startswith("models/halves.py:")]
    assert not loads  # there, of one file that is known by its bytes
    safe = "torch.load(file, weights_only=True)"
    assert (ROOT / "models" / "halves.py").read_text().count("= torch.load(") == 1
    assert safe in (ROOT / "models" / "halves.py").read_text()
    assert not readers({"torch.save", "eval", "exec", "numpy.load", "np.load"})


def test_a_text_is_read_and_written_in_utf_8_whatever_the_machine_speaks() -> None:
    wrong = []
    for file in files:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                text = node.func.attr in ("read_text", "write_text")
                if text and "encoding" not in {word.arg for word in node.keywords}:
                    wrong.append(where(file, node.lineno))
    assert not wrong


def test_a_module_opens_by_saying_what_it_is() -> None:
    assert not [where(file, 1) for file in files if not ast.get_docstring(parsed(file))]


def test_a_function_is_seen_at_one_glance() -> None:
    long = []
    for file in files:
        for node in ast.walk(parsed(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                lines = node.end_lineno - node.body[0].lineno + 1
                if lines > LONGEST:
                    long.append(f"{where(file, node.lineno)} {node.name}: {lines} lines")
    assert not long


def test_the_front_page_is_turned_without_waiting_for_torch() -> None:
    """`import fedexperts` alone imports no room, and every name that it offers is there."""
    light = (
        "import fedexperts, sys; assert 'torch' not in sys.modules and 'fedexperts.config' not in"
        " sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
    assert all(getattr(fedexperts, name) for name in fedexperts.__all__)
