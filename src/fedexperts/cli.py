"""The command line. It reads arguments, calls one function of another room, and prints; it computes nothing.

Heavy rooms are imported inside the commands, so that help and typing errors answer at once.
"""

import csv
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from . import study
    from .config import Config
    from .data import Federation
    from .predict import Prediction

app = typer.Typer(
    help="Federated mixtures of experts: sites learn together and exchange experts, never data.",
    no_args_is_help=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Configs = Annotated[list[Path], typer.Argument(help="Config files, or folders of them.", show_default=False)]
OneConfig = Annotated[Path, typer.Argument(help="A config file.", show_default=False)]
Runs = Annotated[list[Path], typer.Argument(help="Folders that `fedexperts run` made.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="section.key=value", help="Another value for a key; repeatable.")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time, each a process.", show_default="one a core")]

OneRun = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, as OUT/EXPERIMENT/seed-0.", show_default=False)
]
ClientName = Annotated[
    str, typer.Option("--client", metavar="NAME", help="Whose own model; without it, what the server has.")
]
PrivateFolder = Annotated[
    Path | None, typer.Option(help="Where clients' private states lie.", show_default="private in RUN")
]


class Form(StrEnum):
    """How predictions are printed."""

    table = "table"
    json = "json"
    csv = "csv"


LOUDEST = 3  # experts that a table names for each input
SERVER = "(the server)"
FEW = 12  # classes that have a column each
MANY = ("classes", "fewest", "most")

START = """[bold]fedexperts[/]: sites learn together and exchange experts, never data.

  fedexperts ls configs                         what can be run
  fedexperts check configs/demo/pfedmoap.toml   data, split and model; nothing is trained
  fedexperts run configs/demo                   the comparison, with a report, in a few minutes
  fedexperts --help                             all commands"""


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        out.print(START, soft_wrap=True)


@app.command()
def run(
    configs: Configs,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, counted up from run.seed.")] = 1,
    folder: Annotated[
        Path | None, typer.Option("--out", help="A new folder.", show_default="the next free runs/NAME")
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Run experiments side by side: tune each on validation data, repeat over seeds, print tables, write the report."""
    from . import study

    with _errors():
        experiments = _load(configs, settings or [])
        first = int(experiments[0].values["run"]["seed"])
        place = folder or study.free(Path("runs") / (configs[0].stem if len(configs) == 1 else "comparison"))
        study.create(place, experiments, [first + i for i in range(seeds)])
        _advance(place, jobs)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `fedexperts run` made.")],
    jobs: Jobs = None,
) -> None:
    """Go on with what was stopped, from the last finished round of each run."""
    with _errors():
        _advance(folder, jobs)


@app.command()
def compare(runs: Runs) -> None:
    """Print the tables of finished runs."""
    from . import report as pictures

    with _errors():
        for table in pictures.tables(pictures.collect(runs)):
            out.print(table)


@app.command()
def report(
    runs: Runs,
    file: Annotated[Path | None, typer.Option("--out", help="The page.", show_default="report.html in RUN")] = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Also write each picture, as SVG, here.")] = None,
) -> None:
    """Write one self-contained HTML page: settings, tables, pictures."""
    from . import report as pictures

    with _errors():
        path, found = file or runs[0] / "report.html", pictures.collect(runs)
        pictures.write_html(found, path)
        written = pictures.write_pictures(found, folder) if folder else []
        for each in (path, *written):
            out.print(f"Wrote {each}", soft_wrap=True)


@app.command("ls")
def list_(what: Annotated[str, typer.Argument(metavar="configs|methods|models|data")]) -> None:
    """List what there is, a line each."""
    from . import config as door

    kinds = {"methods": "method", "models": "model", "data": "data"}
    with _errors():
        if what == "configs":
            rows = [(str(path), about) for path, about in door.shipped()]
        elif what in kinds:
            rows = [(name, (kind.__doc__ or "").split("\n")[0]) for name, kind in door.known(kinds[what]).items()]
        else:
            raise ValueError(f"ls {what}: right would be one of configs, methods, models, data")
        width = max(len(name) for name, _ in rows)
        for name, about in rows:
            out.print(f"{escape(name):{width}}  [dim]{escape(about)}[/]", soft_wrap=True)


@app.command()
def show(config: OneConfig, settings: Settings = None) -> None:
    """Print a config resolved: every key, its value, its meaning, and where the value came from."""
    from . import config as door

    with _errors():
        found = door.load(config, settings or [])
        section = ""
        for key, value, meaning, origin in found.described():
            head, _, name = key.partition(".")
            if head != section:
                out.print(f"\n[bold]{escape(f'[{head}]')}[/]", soft_wrap=True)
                section = head
            out.print(f"{name} = {escape(value)}  [dim]# {escape(meaning)} ({escape(origin)})[/]", soft_wrap=True)


@app.command()
def check(
    config: OneConfig,
    settings: Settings = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the split: a name in .svg or .png.")
    ] = None,
) -> None:
    """Load data and model, print the split; nothing is trained."""
    from . import config as door

    with _errors():
        found = door.load(config, settings or [])
        federation, _, model, method = door.parts(found)
        out.print(_split(federation))
        kept = dict(getattr(model, "expert", model).initial) | model.initial
        leaving = method.uploads(model)
        trained = sum(value.numel() for name, value in kept.items() if name in (leaving or model.initial))
        again = shlex.join(["fedexperts", "run", str(config), *(f"--set={text}" for text in settings or [])])
        out.print(
            f"\n{found.name}: {len(federation.parts)} clients, {len(federation.inputs)} examples of "
            f"{len(federation.classes)} classes; no example stands in two parts or at two clients.\n"
            f"A client trains {trained:,} numbers; what may leave it: {_listed(sorted(leaving))}."
        )
        for remark in (*federation.notes, *_twins(federation)):
            out.print(f"[yellow]Note:[/] {escape(remark)}", soft_wrap=True)
        if picture:
            _draw(federation, picture)
        out.print(f"Next: {escape(again)}", soft_wrap=True)


def _listed(names: list[str]) -> str:
    """The first few of many names."""
    more = len(names) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "") if names else "nothing"


def _split(federation: "Federation") -> Table:
    """Who holds how many examples of which class, the server's reserve set last; of many classes, the extremes."""
    few = len(federation.classes) <= FEW
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("client", no_wrap=True)
    for name in ("train", "valid", "test", *(map(escape, federation.classes) if few else MANY)):
        table.add_column(name, justify="right")
    by_part = {client: [str(sum(own)) for own in parts.values()] for client, parts in federation.counts().items()}
    by_part[""] = [str(len(federation.reserve)), "", ""]
    for client, counts in federation.by_class().items():
        there = [count for count in counts if count]
        shown = counts if few else [len(there), min(there), max(there)]
        table.add_row(escape(client) or SERVER, *by_part[client], *map(str, shown))
    return table


def _draw(federation: "Federation", path: Path) -> None:
    from .report import write_split

    write_split({name or SERVER: own for name, own in federation.by_class().items()}, federation.classes, path)
    out.print(f"Wrote {escape(str(path))}", soft_wrap=True)


def _twins(federation: "Federation") -> Iterator[str]:
    """What to know of equal examples in two places."""
    from .report.claims import plural

    holders, files = federation.holders(), list(federation.files)

    def named(example: int) -> str:
        client, part = holders[example]
        return f"{files[example] if files else f'example {example}'} ({client or SERVER}, {part})"

    if pairs := [f"{named(one)} = {named(other)}" for one, other in federation.twins()]:
        yield (
            f"{plural(len(pairs), 'example')} equal to one at another client or in another part; what is tested on "
            f"should not have been trained on: {_listed(pairs)}."
        )


@app.command()
def predict(
    run: OneRun,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE|FOLDER|TEXTS.txt", help="What to predict; a .txt file has a text a line."),
    ] = None,
    texts: Annotated[list[str] | None, typer.Option("--text", help="A text to predict; repeatable.")] = None,
    client: ClientName = "",
    private: PrivateFolder = None,
    form: Annotated[Form, typer.Option("--format", help="How to print it.")] = Form.table,
) -> None:
    """Predict new images or texts with what a run learned: a client's own model, or what all share."""
    from . import predict as room

    with _errors():
        predictor = room.Predictor.of(run, client, private)
        asked = room.inputs(predictor, paths or [], texts or [])
        if not asked:
            raise ValueError("nothing to predict; right would be images, a folder of them, or texts")
        err.print(f"Predicted with {escape(predictor.who)}.", soft_wrap=True)
        found, broken = list[room.Prediction](), dict[str, str]()
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("", total=len(asked))
            for said, unread in room.predictions(predictor, asked):
                found += said
                broken |= unread
                bar.advance(task, len(said) + len(unread))
        _print_predictions(found, form)
        if broken:
            listed = "\n".join(f"  {file} ({why})" for file, why in broken.items())
            raise ValueError(f"{len(broken)} of {len(asked)} images cannot be read:\n{listed}")


@app.command()
def export(
    run: OneRun,
    folder: Annotated[Path, typer.Option("--out", help="A new folder.", show_default=False)],
    client: ClientName = "",
    private: PrivateFolder = None,
) -> None:
    """Write a client's model as a folder that predicts without this package."""
    from . import export as room
    from .predict import Predictor

    with _errors():
        predictor = Predictor.of(run, client, private)
        room.export(predictor, folder)
        out.print(
            f"Wrote {escape(predictor.who)}; {escape(str(folder / 'README.md'))} says how to use it.", soft_wrap=True
        )


def _print_predictions(found: "list[Prediction]", form: Form) -> None:
    if form is Form.json:
        typer.echo(json.dumps([each.plain() for each in found], indent=1, ensure_ascii=False))
    elif form is Form.csv:
        rows = csv.writer(sys.stdout, lineterminator="\n")
        experts = list(dict.fromkeys(name for each in found for name in each.experts))
        rows.writerow(["input", "class", "probability", *experts])
        rows.writerows(
            [each.input, each.label, each.probability, *(each.experts.get(name, "") for name in experts)]
            for each in found
        )
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("input", "class", "%", "experts"):
            table.add_column(name, justify="right" if name == "%" else "left", overflow="fold")
        for each in found:
            loudest = sorted(each.experts.items(), key=lambda pair: -pair[1])[:LOUDEST]
            spoke = ", ".join(f"{name} {share:.2f}" for name, share in loudest)
            table.add_row(escape(each.input), escape(each.label), f"{100 * each.probability:.1f}", escape(spoke))
        out.print(table)


deploy = typer.Typer(help="A real federation: a server, and sites on machines of their own.", no_args_is_help=True)
app.add_typer(deploy, name="deploy")
Folder = Annotated[Path, typer.Argument(help="A folder that `fedexperts deploy init` made.", show_default=False)]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]


@deploy.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(help="A new folder, on the server's machine.", show_default=False)],
    server: Annotated[str, typer.Option(help="Name or address under which sites reach the server.")],
    sites: Annotated[str, typer.Option(help="Names of the sites, with commas between.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port: the only one to open.")] = 9443,
) -> None:
    """Write certificates, keys, and what every site needs; say what to run where."""
    with _flower() as (_, place):
        names = [name.strip() for name in sites.split(",") if name.strip()]
        made = place.Deployment.create(folder, server, port, names)
        out.print(f"Wrote {folder}. Next:", soft_wrap=True)
        for name in made.sites:
            out.print(
                f"  carry {folder}/sites/{name} to the site {name}'s machine, delete it here, and there type\n"
                f"    fedexperts deploy site {name} --name {name} --data PATH_OF_ITS_DATA",
                soft_wrap=True,
            )
        out.print(
            f"  here type\n    fedexperts deploy server {folder}\n"
            f"  and in another terminal\n    fedexperts deploy run {folder} CONFIG.toml",
            soft_wrap=True,
        )


@deploy.command("server")
def deploy_server(folder: Folder) -> None:
    """Run the server until it is stopped."""
    with (
        _flower() as (processes, place),
        _stopped("The server is stopped; runs go on from their last round by `resume`."),
    ):
        processes.serve(place.Deployment.at(folder), _say)


@deploy.command("site")
def deploy_site(
    folder: Annotated[Path, typer.Argument(help="The site's folder, or the deployment's.", show_default=False)],
    name: Annotated[str, typer.Option(help="The site's name.")],
    data: Annotated[Path | None, typer.Option(help="Where its data lie; remembered in site.toml.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to go on trying if the server refuses.")] = 180,
) -> None:
    """Run a site until it is stopped."""
    with _flower() as (processes, place), _stopped("The site is stopped; what it keeps lies in its folder."):
        site = place.SiteFolder.at(folder, name)
        if data:
            site.point_at(data)
        processes.join(site, patience, _say)


@deploy.command("run")
def deploy_run(folder: Folder, config: OneConfig, settings: Settings = None) -> None:
    """Run an experiment on the sites, and watch it; it goes on when this terminal goes away."""
    from . import config as door

    with _flower() as (processes, place):
        from .deploy import runs
        from .study import free

        deployment = place.Deployment.at(folder)
        asked = door.load(config, settings or [])
        fitted = runs.fitted(asked, deployment)
        if asked.tune:
            _say(f"{asked.name}: the values in [tune] are not tried here; those in the file are taken.")
        processes.connected(deployment)  # before anything is written: is the server there?
        run = runs.Run.create(deployment, fitted, free(folder / "runs" / asked.name).name)
        processes.submit(deployment, run)
        _watch(folder, deployment, run)


@deploy.command("resume")
def deploy_resume(folder: Folder, name: RunName) -> None:
    """Go on with a run from its last finished round, and watch it."""
    with _run_of(folder, name) as (processes, deployment, run):
        run.begins_anew()
        processes.submit(deployment, run)
        _watch(folder, deployment, run)


@deploy.command("watch")
def deploy_watch(folder: Folder, name: RunName) -> None:
    """Watch a run."""
    with _run_of(folder, name) as (_, deployment, run):
        _watch(folder, deployment, run)


@deploy.command("stop")
def deploy_stop(folder: Folder, name: RunName) -> None:
    """Stop a run; its finished rounds are kept, and `resume` goes on."""
    with _run_of(folder, name) as (processes, deployment, run):
        processes.stop(deployment, run)
        out.print(f"Stopped. Go on with: fedexperts deploy resume {folder} {name}", soft_wrap=True)


@deploy.command("sites")
def deploy_sites(folder: Folder) -> None:
    """List the sites, and which of them are connected."""
    with _flower() as (processes, place):
        deployment = place.Deployment.at(folder)
        there = processes.connected(deployment)
        for name in deployment.sites:
            out.print(f"{escape(name)}  [dim]{there.get(name, 'not known to the server yet')}[/]", soft_wrap=True)


@deploy.command("add")
def deploy_add(folder: Folder, site: Annotated[str, typer.Argument(help="The new site's name.")]) -> None:
    """Let another site take part; a server that runs takes notice by itself."""
    with _flower() as (_, place):
        made = place.Deployment.at(folder).add(site)
        out.print(f"Carry {made} to the site's machine and delete it here.", soft_wrap=True)


@deploy.command("remove")
def deploy_remove(folder: Folder, site: Annotated[str, typer.Argument(help="The site's name.")]) -> None:
    """Let a site take part no more; a server that runs takes notice by itself."""
    with _flower() as (_, place):
        place.Deployment.at(folder).remove(site)
        out.print(f"{site} may not take part any more.", soft_wrap=True)


@deploy.command("renew")
def deploy_renew(folder: Folder) -> None:
    """Write a new certificate for the server; start the server again to use it."""
    with _flower() as (_, place):
        place.Deployment.at(folder).renew()
        out.print("Wrote a new certificate; start the server again.", soft_wrap=True)


def main() -> None:
    """The program."""
    app()


def _say(text: str) -> None:
    out.print(escape(text), soft_wrap=True)


@contextmanager
def _flower() -> Iterator[tuple[Any, Any]]:
    """The rooms that know Flower's programs and a deployment's folder, or a clear word on what to install."""
    from . import config as door

    with _errors():
        processes = door.deploy_room()
        from .deploy import folder

        yield processes, folder


@contextmanager
def _run_of(folder: Path, name: str) -> Iterator[tuple[Any, Any, Any]]:
    """The room of Flower's programs, the deployment, and its run of this name."""
    with _flower() as (processes, place):
        from .deploy import runs

        deployment = place.Deployment.at(folder)
        yield processes, deployment, runs.Run.at(deployment, name)


@contextmanager
def _stopped(word: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"\n{word}")
        raise typer.Exit(130) from None


def _watch(folder: Path, deployment: Any, run: Any) -> None:
    """Say what happens in a run until it is over; the exit code tells whether it finished."""
    from . import report as pictures
    from .deploy import watch

    name = run.path.name
    try:
        for line in watch.lines(deployment, run):
            _say(line)
    except KeyboardInterrupt:
        err.print(f"\nThe run goes on. Watch it: fedexperts deploy watch {folder} {name}; "
                  f"end it: fedexperts deploy stop {folder} {name}")  # fmt: skip
        raise typer.Exit(130) from None
    status = run.status
    if status.state != "finished":
        err.print(f"[red]Error:[/] {escape(status.why)}\nGo on with: fedexperts deploy resume {folder} {name}")
        raise typer.Exit(1)
    found = pictures.collect([run.path])
    for table in pictures.tables(found):
        out.print(table)
    pictures.write_html(found, run.path / "report.html")
    out.print(f"\nReport: {run.path / 'report.html'}", soft_wrap=True)


def _load(paths: list[Path], settings: list[str]) -> list["Config"]:
    from . import config as door

    found, wrong = [], []
    for file in [file for path in paths for file in door.find(path)]:
        try:
            found.append(door.load(file, settings))
        except door.ConfigError as error:
            wrong.append(f"{file}:\n{error}" if len(paths) > 1 or file != paths[0] else str(error))
    if wrong:
        raise door.ConfigError("\n".join(wrong))
    return found


def _advance(folder: Path, jobs: int | None) -> None:
    """Run what is left in a folder with a progress bar; then tables, report, and what to type next."""
    from . import config as door
    from . import report as pictures
    from . import study

    if (folder / "study.json").exists() or not (folder / "config.toml").exists():
        _announce(folder)
    with _interruptible(folder), _progress() as tell:
        study.advance(folder, jobs or door.cores(), tell)
    found = pictures.collect([folder])
    for table in pictures.tables(found):
        out.print(table)
    pictures.write_html(found, folder / "report.html")
    report_line = f"Report: {folder / 'report.html'}"
    out.print(f"\n{report_line}\nTables again: fedexperts compare {folder}", soft_wrap=True)


def _announce(folder: Path) -> None:
    """How much a study is."""
    from . import study
    from .report.claims import plural

    seeds, experiments = study.read(folder)
    trials = sum(len(study.trials(folder, e, seeds[0])) for e in experiments)
    runs = trials + len(experiments) * len(seeds)
    counts = f"{plural(len(experiments), 'experiment')}, {plural(len(seeds), 'seed')}, {plural(runs, 'run')}"
    out.print(f"{counts}, {trials} of them to tune, in {folder}", soft_wrap=True)


@contextmanager
def _progress() -> Iterator["study.Progress"]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("round"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[clients]} clients a round"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(beat: "study.Beat") -> None:
            if beat.what not in tasks:
                tasks[beat.what] = bar.add_task(beat.what, clients=0)
            bar.update(tasks[beat.what], completed=beat.done, total=beat.total, clients=beat.clients or "...")

        yield tell


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"\nStopped. Every finished round is kept; go on with: fedexperts resume {folder}")
        raise typer.Exit(130) from None


@contextmanager
def _errors() -> Iterator[None]:
    """A clear line instead of a traceback, for what is the user's to mend."""
    from .config import ConfigError
    from .loop import NobodyLeftError

    try:
        yield
    except (ValueError, OSError, NobodyLeftError) as error:
        err.print(f"[red]{'Config' if isinstance(error, ConfigError) else 'Error'}:[/] {escape(str(error))}")
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
