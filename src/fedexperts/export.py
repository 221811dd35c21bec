"""A predictor as a folder that works without this package: tensors, plain numbers, and a README
that says how.

    model.safetensors   text features and gate, or a network's weights
    config.json         classes and numbers
    pixels.py           how a picture is read, as the run read it
    backbone/           the frozen weights that pictures go through first, if they are small
    README.md           the formula in words, the same in plain torch, and what the model is

What the README says of the run is read from the run's folder. This room does not know methods or
models: they say themselves in a few lines of torch, or that they cannot.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .config import Config, only_simulated
from .data import pixels
from .metrics import Row, spent
from .model import Portable
from .predict import Learned
from .privacy import HIDDEN, given_away
from .tensors import pack, write

PICTURE = """from pixels import decoded


def pixels(path):
    return decoded(Path(path).read_bytes(), {side}, {bits})[None]


"""

SMALL = 100_000_000  # bytes of a backbone that is copied: as one sends by mail, hardly more

# of a backbone's folder, what a recipe reads
READ = ("config.json", "*processor_config.json", "model*.safetensors*", "LICENSE*")

COPIED = """

`backbone` is a copy of {name} ({size:,} bytes)."""

LACKING = """

`backbone` is not here: it is {name}, whose {size:,} bytes are more than the {most:,} that are copied. Put a copy of its folder there, or
type `hf download {name} --local-dir backbone` if that is a hub name. These are the sha256 of the right one:
{hashes}"""  # noqa: E501

RECIPE = """```python
{lines}
```

`logits(inputs({shown}))` is all you need."""

NO_RECIPE = "As the model of the run does it: see its settings below."

LOAD = """import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

n, t = json.loads(Path("config.json").read_text(encoding="utf-8")), load_file("model.safetensors")
torch.set_grad_enabled(False)


"""

README = """# {title}

This is {who}, learned by fedexperts, which is not needed to use it. Needed is what the lines below import; run them in this folder.

## From an input to logits
{formula}
`softmax` of the logits gives probabilities; the classes stand in `config.json`, in their order.
```python
{load}{code}
```

## From {kind} to an input
{recipe}

## What it is
{card}

## What never left the client
{privacy}
"""  # noqa: E501

ONNX_NEEDS = ("onnx", "onnxscript")

TO_ONNX = """


class Whole(nn.Module):
    def forward(self, x):
        return logits(x)


made = torch.onnx.export(
    Whole().eval(), (torch.zeros({shape}, dtype={dtype}),), dynamo=True, verbose=False,
    input_names=["x"], output_names=["logits"], dynamic_shapes=({{0: torch.export.Dim("batch")}},),
)
if isinstance(made.model.graph.inputs[0].shape[0], int):
    raise SystemExit("its lines hold for one size of a batch")
made.save("model.onnx", external_data=False)"""

ABOUT_ONNX = """
## In ONNX
`model.onnx` is `logits` as a graph: for a batch of any size, and without torch.
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")


def logits(x):
    return session.run(["logits"], {"x": x})[0]
```
"""


@torch.no_grad()
def export(predictor: Learned, folder: Path, onnx: bool = False) -> None:
    """Write the folder, whole or not at all; ValueError if it is there, or if the model cannot be
    written down.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; use another folder")
    if onnx and not all(map(find_spec, ONNX_NEEDS)):
        raise ValueError("ONNX needs onnx and onnxscript; type: pip install 'fedexperts[onnx]'")
    carried = predictor.answering.portable()
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _write(predictor, carried, aside)
        if onnx:
            _write_onnx(predictor, carried, aside)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(predictor: Learned, carried: Portable, folder: Path) -> None:
    numbers = {"classes": list(predictor.model.classes)} | carried.numbers
    write(folder / "model.safetensors", pack(carried.tensors))
    write(
        folder / "config.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode()
    )
    for name, data in predictor.built.files().items():
        write(folder / name, data)
    if _reads_pictures(predictor):
        write(folder / "pixels.py", Path(pixels.__file__).read_bytes())
    about = _backbone(predictor, folder / "backbone")
    write(folder / "README.md", _readme(predictor, carried, about).encode())


def _reads_pictures(predictor: Learned) -> bool:
    return predictor.side is not None and bool(predictor.built.recipe)


def _backbone(predictor: Learned, folder: Path) -> str:
    """Copy what the recipe reads besides, if it is small; what to say of it."""
    backbone = predictor.built.backbone
    if backbone is None or not predictor.built.recipe:
        return ""
    files = [file for pattern in READ for file in sorted(backbone.folder.glob(pattern))]
    size = sum(file.stat().st_size for file in files)
    if size > SMALL:
        hashes = "\n".join(f"- `{file.name}`: {_sha256(file)}" for file in files)
        return LACKING.format(name=backbone.name, size=size, most=SMALL, hashes=hashes)
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return COPIED.format(name=backbone.name, size=size)


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _write_onnx(predictor: Learned, carried: Portable, folder: Path) -> None:
    """The very lines of the README as a graph, in a process that stands in the folder, as its
    reader would.
    """
    side = predictor.side
    x = predictor.built.encode(
        ["", ""] if side is None else torch.zeros(2, 3, side, side, dtype=torch.uint8)
    )
    lines = LOAD + carried.code + TO_ONNX.format(shape=list(x.shape), dtype=x.dtype)
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1]
        raise ValueError(f"this model has no form in ONNX ({why}); use an export without --onnx")
    with open(folder / "README.md", "a", encoding="utf-8") as readme:
        readme.write(ABOUT_ONNX)


def _readme(predictor: Learned, carried: Portable, backbone: str) -> str:
    side = predictor.side
    lines, shown = predictor.built.recipe, '["a text"]'
    if _reads_pictures(predictor):
        lines = PICTURE.format(side=side, bits=predictor.bits) + lines
        shown = "pixels(path)"
    recipe = NO_RECIPE
    if lines:
        recipe = RECIPE.format(lines=lines, shown=shown) + backbone
    return README.format(
        title=f"{predictor.config.name}: {_whose(predictor)}",
        who=predictor.who,
        formula=carried.formula,
        load=LOAD,
        code=carried.code,
        kind="texts" if side is None else "an image",
        recipe=recipe,
        card=_card(predictor),
        privacy=_privacy(predictor),
    )


def _whose(predictor: Learned) -> str:
    if predictor.serves:
        return "the server's own predictor"
    return predictor.client or "what all clients share"


def _card(predictor: Learned) -> str:
    """Data, accuracy, settings; no folder of this machine."""
    config, side = predictor.config, predictor.side
    rows = [
        row for row in predictor.folder.rows("clients.jsonl") if row["round"] == predictor.round
    ]
    shown = "texts" if side is None else f"images of {side} x {side} pixels"
    simulated = only_simulated(config)
    total = spent(predictor.folder.rows("rounds.jsonl"))
    facts = [
        f"Classes: {', '.join(predictor.model.classes)}.",
        f"Data: {config.values['data']['name']}, {shown}.",
        (
            f"Clients of the run: {len(rows)}. Rounds: {predictor.round} of"
            f" {config.values['run']['rounds']}."
        ),
        *_counts(predictor),
        *_tested(predictor, rows),
        *_given_away(config, total),
        *(
            [
                f"{simulated.capitalize()} was simulated: it follows from the seed and protects"
                " nobody."
            ]
            if simulated
            else []
        ),
    ]
    settings = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in config.shareable().items()
    ]
    return "\n".join([*(f"- {fact}" for fact in facts), "", "```", *settings, "```"])


def _given_away(config: Config, total: tuple[float, float] | None) -> list[str]:
    """What the run's uploads give away, as far as it is counted."""
    if total is None:
        return []
    said = given_away(HIDDEN[config.values["privacy"]["unit"]], *total)
    return [said[0].upper() + said[1:]]


def _tested(predictor: Learned, rows: list[Row]) -> list[str]:
    """Accuracy on test examples as the run's last round logged it, if it was asked then."""
    whose, column = "its own", "test"
    if predictor.serves:
        rows = [
            row for row in predictor.folder.rows("server.jsonl") if row["round"] == predictor.round
        ]
        whose = "all clients'"
    elif predictor.client:
        rows = [row for row in rows if row["client"] == predictor.client]
    else:
        whose, column = "all clients'", "test_global"
    tested = sum(row.get("test_examples", 0) for row in rows)
    if not tested:
        return []
    correct = sum(row[f"{column}_correct"] for row in rows)
    return [f"Accuracy on {whose} {tested} test examples: {100 * correct / tested:.1f} %."]


def _counts(predictor: Learned) -> list[str]:
    """How many examples the client has and, if the run was to write that down, of which classes."""
    file = predictor.folder.path / "split.json"
    held: dict[str, Any] = json.loads(file.read_bytes())["clients"] if file.exists() else {}
    if predictor.client not in held:
        return []
    own = held[predictor.client]
    parts = ", ".join(f"{len(own[part])} {part}" for part in ("train", "valid", "test"))
    said = [f"The client's own examples: {parts}."]
    if predictor.config.values["run"]["counts"]:
        counts = zip(predictor.model.classes, own["counts"], strict=True)
        by_class = ", ".join(f"{count} {name}" for name, count in counts if count)
        said.append(f"By class: {by_class}.")
    return said


def _privacy(predictor: Learned) -> str:
    names = sorted(predictor.method.uploads(predictor.model))
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    leaves = (
        f"what left a client that trained were the tensors {shown}"
        if names
        else "no tensor left any client"
    )
    kept = (
        "This folder does hold what the client had kept to itself: who gets it has that model. "
        if predictor.kept is not None
        else ""
    )
    return (
        f"Examples and their labels never left a client. In training {leaves}, with plain figures"
        f" (numbers of examples, losses, hits, experts' mean weights). {kept}A trained model can"
        " tell something of the examples that it was trained on; nothing here is a proof that it"
        " does not."
    )
