"""The page: one HTML file that needs nothing else.

No scripts, no links, no fonts from elsewhere; pictures are inside it, and every word that came out
of a run is escaped. What it says is said by claims.py and tables.py; this room only sets it.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path

from rich.table import Table

from .. import __version__
from ..metrics import changes, mean_sd, refusals
from ..provenance import differences, flat, follows
from ..tensors import write as write_whole
from .claims import shown
from .collect import Experiment, Run, as_set
from .decision import decision
from .figures import draw
from .ink import Picture
from .tables import tables

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #444; --line: #ddd; --edge: #888;
  --stripe: #f6f6f6; --mark: #0072B2; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #16181c; --ink: #e6e6e6; --soft: #b4b4b4; --line: #3a3d44;
  --edge: #777; --stripe: #1e2126; --mark: #56B4E9; }} }}
body {{ margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
.result {{ margin: .3rem 0; padding-left: .8rem; border-left: .3rem solid var(--mark); }}
.result:first-of-type {{ font-size: 1.15rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: .25rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }} .words td, .words th {{ text-align: left; }}
thead th {{ vertical-align: bottom; border-bottom: 2px solid var(--edge); }}
tbody tr:nth-child(even) {{ background: var(--stripe); }}
.small {{ font-size: .875rem; color: var(--soft); }}
figure {{ margin: 2rem 0; }} figcaption b {{ font-size: 1.05rem; }} img {{ width: 100%; height: auto; background: #fff; }}
.tiles {{ display: flex; flex-wrap: wrap; gap: 1rem; }} .tiles figure {{ margin: 0; width: 9rem; }}
.tiles img {{ image-rendering: pixelated; }}
summary {{ cursor: pointer; padding: .3rem 0; }} pre {{ font-size: .8rem; overflow-x: auto; background: var(--stripe);
  padding: .6rem; }}
@media print {{ :root {{ color-scheme: light; font-size: 80%; --paper: #fff; --ink: #000; --soft: #333; --line: #ccc;
  --stripe: #fff; --mark: #0072B2; }} body {{ max-width: none; padding: 0; }}
  figure, tr, .result {{ break-inside: avoid; }} h2 {{ break-after: avoid; }} details:not([open]) {{ display: none; }}
  .wide {{ overflow: visible; }} th, td {{ padding: .15rem .35rem; }}
  .words {{ font-size: .75rem; overflow-wrap: anywhere; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""  # noqa: E501


def write(experiments: Sequence[Experiment], path: Path) -> None:
    """The page at `path`, whole or not at all."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; expected the name of a file, for example {path}/report.html"
        )
    write_whole(path, page(experiments).encode())


def page(experiments: Sequence[Experiment]) -> str:
    """The whole page as text."""
    names = f"{len(experiments)} experiments compared"
    if len(experiments) == 1:
        names = shown(experiments[0].name)
    body = [
        f"<h1>{escape(names)}</h1>",
        *(f'<p class="result">{escape(line)}</p>' for line in decision(experiments)),
        *(set_table(table) for table in tables(experiments)),
        *_pictures(experiments),
        *_clients(experiments),
        *_refused(experiments),
        *_changed(experiments),
        *_forgotten(experiments),
        *_continued(experiments),
        *_settings(experiments),
        f'<p class="small">Made by fedexperts {escape(__version__)} from the logs of the runs.</p>',
    ]
    return document(names, body)


def document(title: str, body: Iterable[str]) -> str:
    """A page of these elements of HTML."""
    return _PAGE.format(title=f"fedexperts: {escape(title)}", body="\n".join(body))


def _pictures(experiments: Sequence[Experiment]) -> list[str]:
    pictures = [figure(picture) for picture in draw(experiments)]
    if not pictures:
        return []
    return ["<h2>Pictures</h2>", *pictures]


def figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode()
    return (
        f"<figure><figcaption><b>{escape(picture.title)}</b></figcaption>"
        f'<img alt="{escape(picture.alt)}" src="data:image/svg+xml;base64,{data}">'
        f'<figcaption class="small">{escape(picture.caption)}</figcaption></figure>'
    )


def set_table(table: Table) -> str:
    """A table of the terminal, with its caption as text below."""
    head = [str(column.header).replace("\n", " ") for column in table.columns]
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    lines = "<br>".join(escape(line) for line in str(table.caption or "").splitlines())
    return f'<h2>{escape(str(table.title))}</h2>{grid(head, rows)}<p class="small">{lines}</p>'


def grid(head: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(shown(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    if not body:
        return ""
    top = f"<thead>{line('th', head)}</thead>"
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def _clients(experiments: Sequence[Experiment]) -> list[str]:
    """Each client's accuracy, the mean over seeds."""
    counted = [e for e in experiments if e.finished]
    scores = [[score.clients for score in e.last.values()] for e in counted]
    rows = []
    for client in sorted({client for e in counted for client in e.clients}):
        values = [[seed[client] for seed in seeds if client in seed] for seeds in scores]
        rows.append([client, *map(_mean, values)])
    numbers = grid(["client", *(e.name for e in counted)], rows)
    return [
        _more(
            "Every client in numbers: local accuracy in percent after the last round, mean over"
            " seeds",
            numbers,
        )
    ]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean_sd(values)[0]:.1f}"


def _refused(experiments: Sequence[Experiment]) -> list[str]:
    head = ("round", "client", "why")
    return _noted(experiments, "Refused uploads", "", head, lambda run: refusals(run.rounds))


def _changed(experiments: Sequence[Experiment]) -> list[str]:
    says = "Compared with the split as first written; known examples stayed in their part."
    head = ("from round", "client", "examples")
    return _noted(experiments, "Data that changed", says, head, lambda run: changes(run.clients))


def _forgotten(experiments: Sequence[Experiment]) -> list[str]:
    says = "These were lost, and the run was told to continue without them: the clients restarted."

    def forgot(run: Run) -> list[tuple[object, ...]]:
        return [(row["round"], row["forgot"]) for row in run.events if "forgot" in row]

    return _noted(experiments, "Lost private states", says, ("after round", "client"), forgot)


def _continued(experiments: Sequence[Experiment]) -> list[str]:
    says = "These were continued on another machine, or by another program than they began with."

    def changed(run: Run) -> Iterator[tuple[object, ...]]:
        before = run.environment
        for row in run.events:
            if "continued" in row:
                for what, (was, now) in differences(before, row["continued"]).items():
                    yield row["round"], what, was, now, follows(what)
                before = row["continued"]

    head = ("after round", "what", "was", "is", "what follows")
    return _noted(experiments, "Continued elsewhere", says, head, changed)


def _noted(
    experiments: Sequence[Experiment],
    title: str,
    says: str,
    head: Sequence[str],
    rows_of: Callable[[Run], Iterable[Sequence[object]]],
) -> list[str]:
    """What was noted of runs, a row each; nothing where there is nothing."""
    runs = [(e.name, seed, run) for e in experiments for seed, run in e.runs.items()]
    rows = [[name, seed, *row] for name, seed, run in runs for row in rows_of(run)]
    if not rows:
        return []
    paragraph = says and f"<p>{says}</p>"
    return [f"<h2>{title}</h2>", paragraph, grid(["experiment", "seed", *head], rows, "words")]


def _settings(experiments: Sequence[Experiment]) -> list[str]:
    """Where the experiments differ; each one whole; where they ran."""
    settings = [e.first.settings for e in experiments]
    rows = []
    for key in dict.fromkeys(chain.from_iterable(settings)):
        values = [_value(each, key) for each in settings]
        if len(set(values)) > 1:
            rows.append([key, *values])
    html = ["<h2>Settings</h2>"]
    if rows:
        names = [e.name for e in experiments]
        html += ["<p>Where the experiments differ:</p>", grid(["key", *names], rows, "words")]
    for e in experiments:
        seeds = ", ".join(map(str, e.runs))
        text = f"<pre>{escape(e.first.text)}</pre>"
        html.append(_more(f"{e.name}: all settings (seeds {seeds}; the first is shown)", text))
    return [*html, *_environments(experiments)]


def _environments(experiments: Sequence[Experiment]) -> list[str]:
    """Where runs come from: each different answer, with the runs that it belongs to."""
    where: dict[str, list[str]] = {}
    for e in experiments:
        for seed, run in e.runs.items():
            where.setdefault(json.dumps(run.environment, sort_keys=True), []).append(
                f"{e.name} seed {seed}"
            )
    html = []
    for text, runs in where.items():
        rows = flat(json.loads(text)).items()
        whose = ", ".join(runs)
        if len(where) == 1:
            whose = "all runs"
        title = f"Where the figures of {whose} come from"
        html.append(_more(title, grid(["what", "value"], rows, "words")))
    return html


def _more(title: str, inside: str) -> str:
    return f"<details><summary>{escape(shown(title))}</summary>{inside}</details>"


def _value(settings: Mapping[str, object], key: str) -> str:
    if key not in settings:
        return "-"
    return as_set(settings[key])
