"""Tables as text for other programs: JSON, Markdown, LaTeX.

Cells are what a terminal shows; in JSON those that are numbers are numbers. This room does not know
what a table says.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain

from rich.table import Table

from .claims import shown
from .columns import NONE

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {mark: f"\\{mark}" for mark in "&%$#_{}"}


def written(form: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Lines, then tables, in a form: "json", "markdown" or "latex"."""
    return _FORMS[form](lines, tables)


def _json(lines: Sequence[str], tables: Sequence[Table]) -> str:
    written = {
        "decision": list(lines),
        "tables": [
            {
                "title": str(table.title),
                "columns": _head(table),
                "rows": [[_value(cell) for cell in row] for row in _rows(table)],
                "notes": str(table.caption).splitlines(),
            }
            for table in tables
        ],
    }
    return json.dumps(written, indent=1, ensure_ascii=False) + "\n"


def _value(cell: str) -> str | float | None:
    if cell == NONE:
        return None
    if re.fullmatch(r"[+-]?\d+", cell):
        return int(cell)
    if re.fullmatch(r"[+-]?\d+\.\d+", cell):
        return float(cell)
    return cell


def _markdown(lines: Sequence[str], tables: Sequence[Table]) -> str:
    return "\n\n".join(chain(map(_marked, lines), map(_markdown_table, tables))) + "\n"


def _markdown_table(table: Table) -> str:
    marks = ["---" if column.justify == "left" else "---:" for column in table.columns]
    cells = [map(_marked, _head(table)), marks, *(map(_marked, row) for row in _rows(table))]
    grid = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    notes = "\\\n".join(map(_marked, str(table.caption).splitlines()))
    return "\n\n".join((f"## {_marked(str(table.title))}", grid, notes))


def _marked(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _latex(lines: Sequence[str], tables: Sequence[Table]) -> str:
    r"""For \usepackage{booktabs}; sentences are comments."""
    return "\n".join(chain((f"% {line}" for line in lines), map(_latex_table, tables)))


def _latex_table(table: Table) -> str:
    head, *rows = (
        " & ".join(map(_escaped, cells)) + r" \\" for cells in (_head(table), *_rows(table))
    )
    sides = "".join(column.justify[0] for column in table.columns)
    return "\n".join(
        [
            *(f"% {line}" for line in (table.title, *str(table.caption).splitlines())),
            rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}",
            rf"\toprule {head} \midrule",
            *rows,
            "\\bottomrule\n\\end{tabular}\n",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in text)


def _head(table: Table) -> list[str]:
    return [shown(str(column.header).replace("\n", " ")) for column in table.columns]


def _rows(table: Table) -> list[list[str]]:
    columns = [[shown(cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


_FORMS: dict[str, Callable[[Sequence[str], Sequence[Table]], str]] = {
    "json": _json,
    "markdown": _markdown,
    "latex": _latex,
}
