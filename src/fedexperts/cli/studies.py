"""Commands that run experiments and show their results."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from .progress import progress
from .terminal import (
    Configs,
    Forget,
    Jobs,
    MLflow,
    Runs,
    Seeds,
    Settings,
    TensorBoard,
    Tune,
    Tuning,
    Wandb,
    err,
    errors,
    out,
    say,
    stopped,
    to_go_on,
    trackers,
)

if TYPE_CHECKING:
    from ..config import Config
    from ..report import Experiment
    from ..reproduce import Figure, Result


KEPT = "Stopped. Every finished round is kept; continue with: "
DEMO = ("zero-shot", "coop-alone", "pfedmoap", "linear-probe-fedavg", "gaussian-experts")


def demo(jobs: Jobs = None) -> None:
    """Compare five methods on real handwritten digits, with 20 clients, in a minute or two."""
    configs = [Path("configs/demo", f"{name}.toml") for name in DEMO]
    with errors():
        from .. import study

        folder = study.free(Path("runs/demo"))
    run(configs, folder=folder, jobs=jobs, tune=Tune.none)
    say("All twenty, each tuned: fedexperts run configs/demo")


def run(
    configs: Configs,
    settings: Settings = None,
    seeds: Seeds = 1,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="A new folder.", show_default="the next free runs/NAME"),
    ] = None,
    jobs: Jobs = None,
    tune: Tuning = Tune.config,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    wandb: Wandb = None,
) -> None:
    """Run experiments: tune each on validation data, repeat over seeds, write a report."""
    from .. import config as door
    from .. import study
    from ..models.seen import unfit

    with errors():
        experiments = _load(configs, settings or [])
        if tune is Tune.none:
            experiments = [replace(experiment, tune={}) for experiment in experiments]
        for text in sorted({unfit(experiment.values) for experiment in experiments} - {""}):
            out.print(f"[yellow]Note:[/] {escape(text)}", soft_wrap=True)
        first = int(experiments[0].values["run"]["seed"])
        door.check_here(experiments)
        name = "comparison"
        if len(configs) == 1:
            name = configs[0].stem
        path = folder or study.free(Path("runs") / name)
        asked = trackers(tensorboard, mlflow, wandb)
        study.create(path, experiments, [first + i for i in range(seeds)], asked)
        _advance(path, jobs)


def resume(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A folder made by `fedexperts run`.")
    ],
    jobs: Jobs = None,
    changed_data: Annotated[
        bool,
        typer.Option(
            "--changed-data",
            help="Continue although the data changed; known examples keep their part.",
        ),
    ] = False,
    changed_code: Annotated[
        bool,
        typer.Option("--changed-code", help="Continue although your own modules changed."),
    ] = False,
    forget: Forget = None,
) -> None:
    """Continue what was stopped, from the last finished round of each run."""
    from .. import study

    with errors():
        for client in forget or []:
            study.forget(folder, client)
            say(f"{client} starts afresh; the run's log and its report say so.")
        _advance(folder, jobs, changed_data, changed_code)


def reproduce(
    paper: Annotated[str, typer.Argument(help="pfedmoap or fedmoe.", show_default=False)],
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this set or method, such as flowers102 or cifar10/50; repeatable.",
        ),
    ] = None,
    settings: Settings = None,
    seeds: Seeds = 3,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A new folder, or one made by this command.",
            show_default="runs/reproduce/PAPER",
        ),
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Run a paper's experiments and print our figures beside the published ones.

    Run again, it continues where it stopped, and includes data and models added since.
    """
    from .. import config as door
    from .. import reproduce as papers

    with errors():
        asked = papers.read(paper, only or [], settings or [])
        path = folder or Path("runs/reproduce") / paper
        there = sum(not figure.lacking for figure in asked.figures)
        out.print(
            f"{asked.source}: {there} of {len(asked.figures)} figures can be reproduced here, in"
            f" {path}",
            soft_wrap=True,
        )
        _say_lacking(paper, asked.figures)
        with stopped(KEPT + "the same command"), progress() as tell:
            failed = papers.run(asked, path, seeds, jobs or door.cores(), tell)
        results = papers.results(asked, path, failed)
        _print_beside(results, asked.column)
        if not any(result.ours for result in results):
            raise typer.Exit(1)


def _say_lacking(paper: str, figures: Sequence["Figure"]) -> None:
    """What to type for what is not here, and what then says how long a run will take."""
    from ..fetch import to_paste

    if block := to_paste(error for figure in figures for error in figure.lacking):
        first = next(figure for figure in figures if figure.lacking)
        check = f"fedexperts check configs/{paper}/{first}.toml  # says how long it will take"
        say("\n".join(["Lacking for the others; to paste:", *block, check]))


def _print_beside(results: list["Result"], column: str) -> None:
    """A row for each published figure; below, by number, what differs and what was not run."""
    from ..metrics import mean_sd

    notes: dict[str, str] = {}  # by text, with its number
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("experiment", no_wrap=True)
    for name in ("published", "ours", "sd (seeds)", "difference", "notes"):
        table.add_column(name, justify="right")
    for result in results:
        says = [
            *(f"Differs: {text}" for text in result.figure.differs),
            *(f"Not run: {text}" for text in result.why),
        ]
        numbers = [notes.setdefault(text, str(len(notes) + 1)) for text in says]
        cells = ["-", "-", "-"]
        if result.ours:
            mean, sd = mean_sd(result.ours)
            spread = "1 seed"
            if len(result.ours) > 1:
                spread = f"{sd:.2f} ({len(result.ours)})"
            cells = [f"{mean:.2f}", spread, f"{mean - result.figure.percent:+.2f}"]
        table.add_row(str(result.figure), f"{result.figure.percent:.2f}", *cells, " ".join(numbers))
    out.print(table)
    of = {
        "server": "the server's predictor on all test parts",
        "local": "mean over clients, on their own test parts",
    }[column]
    count = sum(bool(result.ours) for result in results)
    out.print(
        f"Accuracy in percent after the last round: {of}. {count} of {len(results)} figures"
        " reproduced.",
        soft_wrap=True,
    )
    for text, number in notes.items():
        out.print(f"{number:>3}  {escape(text)}", soft_wrap=True)


class Form(StrEnum):
    """How a comparison is printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


def compare(
    runs: Runs,
    form: Annotated[Form, typer.Option("--format", help="Output format.")] = Form.table,
) -> None:
    """Say which of finished experiments to use, and print their tables."""
    from .. import report as pictures

    with errors():
        experiments = pictures.collect(runs)
        if form is Form.table:
            _print_comparison(experiments)
        elif form is Form.csv:
            typer.echo(pictures.as_csv(experiments), nl=False)
        else:
            lines, tables = pictures.decision(experiments), pictures.tables(experiments)
            typer.echo(pictures.written(form.value, lines, tables), nl=False)


def report(
    runs: Runs,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write the page.", show_default="report.html in RUN"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--pictures", help="Also write each picture as SVG into this folder."),
    ] = None,
) -> None:
    """Write one self-contained HTML page with settings, tables and pictures."""
    from .. import report as pictures

    with errors():
        path, experiments = file or runs[0] / "report.html", pictures.collect(runs)
        pictures.write_html(experiments, path)
        written = pictures.write_pictures(experiments, folder) if folder else []
        for each in (path, *written):
            out.print(f"Wrote {each}", soft_wrap=True)


def _print_comparison(experiments: "list[Experiment]") -> None:
    """What to use; then tables, each with an empty line below, apart from the title of the next."""
    from .. import report as pictures

    for line in pictures.decision(experiments):
        out.print(f"{escape(line)}\n", soft_wrap=True)
    for table in pictures.tables(experiments):
        out.print(table)
        out.print()


def _load(paths: list[Path], settings: list[str]) -> list["Config"]:
    from .. import config as door

    experiments, wrong = [], []
    for file in [file for path in paths for file in door.find(path)]:
        try:
            experiments.append(door.load(file, settings))
        except door.ConfigError as error:
            says = str(error)
            if len(paths) > 1 or file != paths[0]:
                says = f"{file}:\n{says}"
            wrong.append(says)
    if wrong:
        raise door.ConfigError("\n".join(wrong))
    return experiments


def _advance(
    folder: Path, jobs: int | None, changed_data: bool = False, changed_code: bool = False
) -> None:
    """Run what is left in a folder with a progress bar; then print and write the results."""
    from .. import config as door
    from .. import report as pictures
    from .. import study

    if (folder / "study.json").exists() or not (folder / "config.toml").exists():
        announce(folder)

    def warn(what: str) -> None:
        err.print(escape(what), soft_wrap=True)

    again = f"fedexperts resume {folder}"
    with stopped(f"{KEPT}{again}"), to_go_on(again), progress() as tell:
        study.advance(folder, jobs or door.cores(), tell, warn, changed_data, changed_code)
    experiments = pictures.collect([folder])
    _print_comparison(experiments)
    pictures.write_html(experiments, folder / "report.html")
    report_line = f"Report: {folder / 'report.html'}"
    out.print(f"{report_line}\nTables again: fedexperts compare {folder}", soft_wrap=True)


def announce(folder: Path) -> None:
    """How much a study is."""
    from .. import study
    from ..report.claims import plural

    seeds, experiments = study.read(folder)
    runs = plural(len(experiments) * len(seeds), "run")
    tuned = [experiment for experiment in experiments if experiment.tune]
    before = ""
    if tuned:
        trials = plural(len(tuned) * study.budget(tuned), "trial")
        before = f", after {trials} of half the rounds with seed {study.TUNING_SEED}"
    counts = f"{plural(len(experiments), 'experiment')}, {plural(len(seeds), 'seed')}, {runs}"
    out.print(f"{counts}{before}, in {folder}", soft_wrap=True)
