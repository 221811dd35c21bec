"""Commands that show what there is and what a config means; nothing is trained."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .terminal import OneConfig, Settings, errors, out

if TYPE_CHECKING:
    from ..config import Config, Estimate
    from ..data.federation import Federation

SERVER = "(the server)"
FEW = 12  # classes that have a column each
MANY = ("classes", "fewest", "most")


def ls(what: Annotated[str, typer.Argument(metavar="configs|methods|models|data")]) -> None:
    """List what can be named or run, one per line."""
    from .. import config as door

    kinds = {"methods": "method", "models": "model", "data": "data"}
    with errors():
        if what == "configs":
            rows = [(str(path), about) for path, about in door.shipped()]
        elif what in kinds:
            named = door.known(kinds[what])
            rows = [(name, named.meaning(name)) for name in named]
        else:
            raise ValueError(f"ls {what}: expected one of configs, methods, models, data")
        width = max(len(name) for name, _ in rows)
        for name, about in rows:
            out.print(f"{escape(name):{width}}  [dim]{escape(about)}[/]", soft_wrap=True)


def show(config: OneConfig, settings: Settings = None) -> None:
    """Print every key of a config: its value, its meaning, and where the value came from."""
    from .. import config as door

    with errors():
        experiment = door.load(config, settings or [])
        section = ""
        for key, value, meaning, origin in experiment.described():
            head, _, name = key.partition(".")
            if head != section:
                out.print(f"\n[bold]{escape(f'[{head}]')}[/]", soft_wrap=True)
                section = head
            out.print(
                f"{name} = {escape(value)}  [dim]# {escape(meaning)} ({escape(origin)})[/]",
                soft_wrap=True,
            )


def check(
    config: OneConfig,
    settings: Settings = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the split, as a .svg or .png file."),
    ] = None,
) -> None:
    """Load data and model and print the split; nothing is trained."""
    from .. import config as door
    from ..models.seen import unfit, zero_shot
    from ..report.notes import skewed

    with errors():
        experiment = door.load(config, settings or [])
        door.check_here([experiment])
        federation, built, model, method = door.parts(experiment)
        out.print(_split(federation))
        kept = method.trains(model).initial | model.initial
        leaving = method.uploads(model)
        trained = sum(kept[name].numel() for name in leaving or model.initial if name in kept)
        again = shlex.join(
            ["fedexperts", "run", str(config), *(f"--set={text}" for text in settings or [])]
        )
        out.print(
            f"\n{experiment.name}: {len(federation.parts)} clients, {len(federation.inputs)}"
            f" examples of {len(federation.classes)} classes; no example is in two parts or at two"
            f" clients.\nA client trains {trained:,} numbers; only these tensors may leave it:"
            f" {_listed(sorted(leaving))}."
        )
        if skew := federation.skew():
            out.print(skewed(skew, experiment.values["data"]), soft_wrap=True)
        if says := zero_shot(built, federation.inputs, federation.labels):
            out.print(escape(says), soft_wrap=True)
        unknown = [text for text in [unfit(experiment.values)] if text]
        for remark in (*federation.notes, *_flat(federation), *_twins(federation), *unknown):
            out.print(f"[yellow]Note:[/] {escape(remark)}", soft_wrap=True)
        if picture:
            _draw(federation, picture)
        if estimate := door.estimate(experiment, federation, built, model, method):
            out.print(_time(experiment, estimate, len(federation.reserve) > 0), soft_wrap=True)
        out.print(f"Next: {escape(again)}", soft_wrap=True)


def _time(experiment: "Config", estimate: "Estimate", reserve: bool) -> str:
    """How long it will take, and of what that is made."""
    from .. import study

    trials = 0
    if experiment.tune:
        trials = study.budget([experiment])
    whole = estimate.encode * estimate.examples + estimate.run * (1 + trials / 2)
    text = f"It takes about {lasting(whole)} here, one run at a time"
    if reserve:
        text += " and without what the server trains"
    said = [f"{lasting(estimate.run)} a run, {lasting(estimate.step)} a step"]
    if estimate.examples:
        once = lasting(estimate.encode * estimate.examples)
        each = lasting(estimate.encode)
        said.insert(0, f"{once} to encode {estimate.examples:,} examples once, {each} each")
    if trials:
        said.append(f"up to {trials} trials to tune, each half a run")
    return f"{text}: {'; '.join(said)}. Every further seed is a run more."


def lasting(seconds: float) -> str:
    """A time in words."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _listed(names: list[str]) -> str:
    """The first few of many names."""
    if not names:
        return "none"
    text = ", ".join(names[:4])
    if len(names) > 4:
        text += f" and {len(names) - 4} more"
    return text


def _split(federation: "Federation") -> Table:
    """Examples by client and class, or their extremes; the server's reserve set last."""
    few = len(federation.classes) <= FEW
    heads: Iterable[str] = MANY
    if few:
        heads = map(escape, federation.classes)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("client", no_wrap=True)
    for name in ("train", "valid", "test", *heads):
        table.add_column(name, justify="right")
    by_part = {
        client: [str(sum(own)) for own in parts.values()]
        for client, parts in federation.counts().items()
    }
    by_part[""] = [str(len(federation.reserve)), "", ""]
    for client, counts in federation.by_class().items():
        if not few:
            there = [count for count in counts if count]
            counts = [len(there), min(there), max(there)]
        table.add_row(escape(client) or SERVER, *by_part[client], *map(str, counts))
    return table


def _draw(federation: "Federation", path: Path) -> None:
    from ..report import write_split

    write_split(
        {name or SERVER: own for name, own in federation.by_class().items()},
        federation.classes,
        path,
    )
    out.print(f"Wrote {escape(str(path))}", soft_wrap=True)


def _flat(federation: "Federation") -> Iterator[str]:
    """A warning about pictures in which there is next to nothing to see."""
    from torch import Tensor

    from ..data.images import flat
    from ..report.claims import plural

    if isinstance(federation.inputs, Tensor) and (positions := flat(federation.inputs)):
        name = f"number {positions[0]}"
        if federation.files:
            name = list(federation.files)[positions[0]]
        yield (
            f"{plural(len(positions), 'picture')} nearly of one colour, for example {name}. Of"
            " files of 16 bits, data.bits says what is white."
        )


def _twins(federation: "Federation") -> Iterator[str]:
    """A warning about equal examples in two parts or at two clients."""
    from ..report.claims import plural

    holders, files = federation.holders(), list(federation.files)

    def named(example: int) -> str:
        client, part = holders[example]
        name = f"example {example}"
        if files:
            name = files[example]
        return f"{name} ({client or SERVER}, {part})"

    if pairs := [f"{named(one)} = {named(other)}" for one, other in federation.twins()]:
        yield (
            f"{plural(len(pairs), 'example')} equal to one at another client or in another part;"
            f" test examples should not be trained on: {_listed(pairs)}."
        )
