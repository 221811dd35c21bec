"""Your own images or texts in a table, CSV or parquet: a row an example, with its class and, if
known, client and part.

This room reads rows, not images.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..options import option, typed_path
from .examples import PART, Example, Listing, below, merged, words
from .images import Folder, several
from .own import Own

Row = Mapping[str, object]
BYTES = 2**30  # of a table, unpacked: some ten million sentences
ROWS = 256  # of a parquet file, unpacked at once
LONGEST = 2**17  # characters of a cell: far more than models read
COMMAS = ",;\t|"  # what may stand between two cells


@dataclass(frozen=True, kw_only=True)
class Table(Own):
    """Your own images or texts in a table: path or text, label, and maybe client and split."""

    path: str = option("", says="a .csv, .tsv or .parquet file")
    root: str = option("", says="the folder that paths are seen from; empty: that of the table")
    path_column: str = option("path", says="column of image files")
    text_column: str = option("text", says="column of texts")
    label_column: str = option("label", says="column of classes, in words")
    site_column: str = option(
        "site", says="column of clients; without it, data.site names the one client"
    )
    part_column: str = option(
        "split", says="column of train, valid or test; without it, parts are drawn"
    )

    def nothing(self) -> tuple[str, ...]:
        """As texts: a table that is not here does not say."""
        return ()

    def listing(self) -> Listing:
        file = typed_path(self.path)
        if not file.is_file():
            raise ValueError(
                f"data.path = {self.path!r}: no such file, seen from {Path.cwd()}; expected a table"
            )
        read = _parquet if file.suffix.lower() == ".parquet" else _csv
        columns, rows = read(file)
        if not rows:
            raise ValueError(f"{file} has no rows; expected one row for each example")
        what = self._checked(file, columns)
        root = store = None
        if what == self.path_column:
            root = typed_path(self.root) if self.root else file.parent
            store = Folder(root)
        examples = self._examples(file, columns, rows, what, root)
        used = {what, self.label_column, self.site_column, self.part_column}
        others = [column for column in columns if column not in used]
        notes = []
        if others:
            notes.append(f"Columns of {file.name} that are not used: {', '.join(others)}.")
        notes += merged(_cell(self.label_column, row[self.label_column]) for row in rows)
        return Listing(examples, store=store, notes=tuple(notes))

    def _checked(self, file: Path, columns: Sequence[str]) -> str:
        """The column of what is shown to a model; ValueError if a column is not there."""
        asked = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_column")}
        defaults = {f.name: f.default for f in fields(self)}
        there = f"{file} has the columns {', '.join(columns)}"
        for name, column in asked.items():
            needed = name == "label_column" or column not in ("", defaults[name])
            if needed and column not in columns:
                raise ValueError(f"{there}, and none is {column!r}; use data.{name} = one of them")
        whats = [column for column in (self.path_column, self.text_column) if column in columns]
        if twice := [column for column in {*asked.values()} if columns.count(column) > 1]:
            raise ValueError(
                f"{there}: {several(sorted(twice))} more than once; use a name for each column"
            )
        if len(whats) != 1:
            raise ValueError(
                f"{there}: it must have one of files, {self.path_column!r}, or one of texts,"
                f" {self.text_column!r}; use data.path_column or data.text_column = one"
                ' of them, and the other ""'
            )
        if bool(self.site) == (self.site_column in columns):
            raise ValueError(
                f"{there}: use either one of clients, data.site_column = one of them, or"
                " data.site = 'NAME' (and data.site_column = \"\") for a table of one client"
            )
        return whats[0]

    def _examples(
        self, file: Path, columns: Sequence[str], rows: Sequence[Row], what: str, root: Path | None
    ) -> list[Example]:
        """Every row as an example; ValueError with all rows that cannot be one."""
        needed = [
            name
            for name in (what, self.label_column, self.site_column, self.part_column)
            if name in columns
        ]
        examples: dict[str, Example] = {}  # an image by its file, a text by its row
        wrong = []
        for number, row in enumerate(rows, start=1):
            try:
                cells = {name: _cell(name, row[name]) for name in needed}
                example = self._example(cells, what, root)
                if root and example.what in examples:
                    raise ValueError(f"{example.what} is in another row already")
                examples[example.what if root else str(number)] = example
            except ValueError as error:
                wrong.append(f"row {number}: {error}")
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(rows)} rows of {file} cannot be used. {several(wrong)}"
            )
        return list(examples.values())

    def _example(self, cells: Mapping[str, str], what: str, root: Path | None) -> Example:
        if empty := [name for name, cell in cells.items() if not cell]:
            raise ValueError(f"{empty[0]} is empty")
        if long := [name for name, cell in cells.items() if len(cell) > LONGEST]:
            raise ValueError(
                f"{long[0]} has {len(cells[long[0]]):,} characters, and at most {LONGEST:,} are"
                " read"
            )
        if (part := cells.get(self.part_column, "train").lower()) not in PART:
            raise ValueError(f"{self.part_column} is {part!r}, expected train, valid or test")
        shown = cells[what]
        if root:
            shown = below(root, root / shown)
        return Example(
            shown,
            words(cells[self.label_column]),
            cells.get(self.site_column, self.site),
            PART[part],
        )


def _cell(name: str, value: object) -> str:
    """What stands in a cell; "" for what is missing, of which NaN is one spelling."""
    if value is None or value != value:
        return ""
    if isinstance(value, (bytes, list, dict)):
        raise ValueError(f"{name} holds {type(value).__name__}, expected a text or a number")
    return str(value).strip()


def _csv(file: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows, by the mark that parts the first line into the most cells."""
    _check_size(file, file.stat().st_size)
    csv.field_size_limit(BYTES)  # what is longer than `LONGEST` is refused with its row
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            comma = max(COMMAS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=comma, strict=True)
            rows: list[Row] = list(reader)
            columns = list(reader.fieldnames or ())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not in UTF-8 ({error.reason}); save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise ValueError(
            f"{file}, after line {reader.line_num}: {error}; expected a table in CSV"
        ) from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(
                f"{file}: row {number} has not as many cells as there are columns ({len(columns)});"
                ' expected quotes around a text with a comma in it: "so, so"'
            )
    return columns, rows


def _parquet(file: Path) -> tuple[list[str], list[Row]]:
    try:
        from pyarrow import ArrowException, parquet  # not for a table in CSV
    except ImportError:
        raise ValueError(f"{file}: parquet needs pyarrow; use pip install pyarrow") from None
    rows: list[Row] = []
    size = 0
    try:
        with parquet.ParquetFile(file) as opened:
            groups = range(opened.metadata.num_row_groups)
            _check_size(
                file, sum(opened.metadata.row_group(group).total_byte_size for group in groups)
            )
            for batch in opened.iter_batches(ROWS):  # a text of many rows may be written once
                size += batch.nbytes
                _check_size(file, size)
                rows += batch.to_pylist()
            return opened.schema_arrow.names, rows
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable parquet file: {error}") from None


def _check_size(file: Path, size: int) -> None:
    if size > BYTES:
        raise ValueError(
            f"{file} has more than {BYTES:,} bytes, unpacked; expected a table of fewer rows"
        )
